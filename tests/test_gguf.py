"""ggml's block types as bytes: the bits of NumPy on every backend.

NumPy's own bytes are held against ggml in C, in test_oracles_ggml.py.
"""

import ml_dtypes
import numpy as np
import pytest
from gguf_corpus import (
    COLUMNS,
    ENCODED,
    FEW,
    NEEDED,
    PLAIN,
    ROWS,
    SEARCHED,
    TAKEN_APART,
    TRIED,
    any_bytes,
    importance,
    needed,
    rows,
)
from helpers import (
    SESSION,
    assert_same,
    device_of,
    dtypes_of,
    to_backend,
    to_numpy,
)

from quantarray import _xp, gguf
from quantarray.formats import LARGEST
from quantarray.records import RECORDS

NUMPY = _xp.load("numpy")
# As many elements each, because JAX compiles anew for every number of blocks.
SHAPES = ((3, 4, 512), (0, 256), (2, 0), (6144,), (2, 1, 3, 1024), (24, 256), (0,))
if SESSION == "jax":
    SHAPES = SHAPES[:3]


def test_types():
    assert set(gguf.TYPES) == {*RECORDS, *PLAIN}


@pytest.mark.parametrize("name", [*TRIED, *PLAIN])
def test_encoding(xp, name):
    x, weights = rows(), needed(name)
    given = None if weights is None else to_backend(weights, xp)
    found = gguf.encode(to_backend(x, xp), name, given)
    assert_same(found, gguf.encode(x, name, weights), xp)
    size = RECORDS[name].bits / 8 if name in RECORDS else {"F32": 4}.get(name, 2)
    assert found.shape == (len(x), COLUMNS * size)


@pytest.mark.parametrize("name", [name for name in TRIED if name in set(SEARCHED) - set(NEEDED)])
def test_encoding_with_importance(xp, name):
    x, weights = rows(), importance()
    found = gguf.encode(to_backend(x, xp), name, to_backend(weights, xp))
    expected = gguf.encode(x, name, weights)
    assert_same(found, expected, xp)
    assert (expected != gguf.encode(x, name)).any()


@pytest.mark.parametrize("name", ["Q4_0"] if SESSION == "jax" else ["Q4_0", "Q6_K"])
def test_importance_may_differ_from_row_to_row(xp, name):
    x, weights = rows(), np.stack([np.roll(importance(), i) for i in range(len(ROWS))])
    found = gguf.encode(to_backend(x, xp), name, to_backend(weights, xp))
    one_by_one = [gguf.encode(row, name, weight) for row, weight in zip(x, weights, strict=True)]
    assert_same(found, np.stack(one_by_one), xp)


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", sorted(set(ENCODED) - set(SEARCHED)))
def test_types_without_a_search_ignore_importance(name):
    found = gguf.encode(rows(), name, importance())
    assert_same(found, gguf.encode(rows(), name), NUMPY)


@pytest.mark.parametrize("name", FEW)
def test_encoding_every_dtype(xp, float_dtype, name):
    """They are rounded to float32 first: of the corpus, nothing is lost."""
    x = rows(float_dtype)
    expected = gguf.encode(x.astype(np.float32), name)
    assert_same(gguf.encode(to_backend(x, xp), name.lower()), expected, xp)


@pytest.mark.parametrize("name", TAKEN_APART)
def test_decoding_any_bytes(xp, name):
    """Scales are NaN, Inf, subnormal and negative too; a NaN is one, whatever its payload."""
    data = any_bytes(name)
    there = to_backend(data, xp)
    for dtype in dtypes_of(xp):
        assert_same(gguf.decode(there, name, dtype), gguf.decode(data, name, dtype), xp)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_floats_are_their_bytes(xp, name):
    x = rows()
    kind = ml_dtypes.bfloat16 if name == "BF16" else np.dtype(PLAIN[name])
    narrow = x.astype(kind)
    expected = np.ascontiguousarray(narrow).view(np.uint8)
    data = gguf.encode(to_backend(x, xp), name)
    assert_same(data, expected, xp)
    assert_same(gguf.decode(data, name), narrow.astype(np.float32), xp)


def test_finite_values_are_clipped_and_others_are_not(xp):
    half = np.float16([60000, np.inf, -np.inf, np.nan]).view(np.uint8).reshape(4, 2)
    codes = np.tile(np.int8([-128, 127, 1, 0, *range(28)]).view(np.uint8), (4, 1))
    data = np.concatenate([half, codes], axis=1)
    for dtype in dtypes_of(xp):
        values = gguf.decode(to_backend(data, xp), "Q8_0", dtype)
        assert_same(values, gguf.decode(data, "Q8_0", dtype), xp)
        largest = {"float16": 65504.0}.get(dtype, 127 * 60000.0)
        found = to_numpy(values).astype(np.float64)
        if dtype != "bfloat16":  # which rounds
            assert found[0, 1] == largest
        assert np.isfinite(found[0]).all()
        assert found[1, :3].tolist() == [-np.inf, np.inf, np.inf]
        assert np.isnan(found[1, 3])
        assert np.isnan(found[3]).all()


def test_plain_values_are_clipped(xp):
    x = np.float32([3.4e38, -3.4e38, np.inf, 1.0])
    for dtype in dtypes_of(xp):
        found = gguf.decode(to_backend(x.view(np.uint8), xp), "F32", dtype)
        limit = min(LARGEST[dtype], float(x[0]))
        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        assert_same(found, np.asarray([limit, -limit, np.inf, 1.0]).astype(kind), xp)


# Taking blocks apart.


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # Dask computes elsewhere
@pytest.mark.parametrize("name", TAKEN_APART)
def test_parts_have_the_documented_shapes_and_dtypes(xp, name):
    record, data = RECORDS[name], any_bytes(name)
    expected = gguf.parts(data, name)
    blocks = len(ROWS), COLUMNS // record.elements
    groups = (*blocks, record.groups)
    kinds = {
        "codes": ((*blocks, record.elements), expected["codes"].dtype),
        "scale": (groups, np.float32),
        "offset": (groups, np.float32),
        "base": (blocks, np.float32),
        "base_offset": (blocks, np.float32),
        "scales": (groups, np.int32),
        "mins": (groups, np.int32),
    }
    assert expected["codes"].dtype in (np.int8, np.uint8)
    has = {"codes": True, "scale": True, "offset": record.offset, "base": record.base}
    has |= {"base_offset": record.offset, "scales": record.scales, "mins": record.mins}
    assert set(expected) == {part for part, there in has.items() if there}
    found = gguf.parts(to_backend(data, xp), name)
    assert list(found) == list(expected)
    for part, array in expected.items():
        assert (array.shape, array.dtype) == kinds[part]
        assert_same(found[part], array, xp)


def test_parts_of_known_bytes(xp):
    block = np.uint8([0, 0x3C, 0, 0xC0, *[0x21] * 16])  # 1.0, -2.0, and codes 1 and 2
    data = to_backend(np.tile(block, (12, 16)), xp)
    found = gguf.parts(data, "Q4_1")
    assert to_numpy(found["codes"])[3, 5].tolist() == [1] * 16 + [2] * 16
    assert to_numpy(found["scale"])[3, 5].tolist() == [1.0]
    assert to_numpy(found["offset"])[3, 5].tolist() == [-2.0]
    values = gguf.decode(data, "Q4_1")
    assert_same(values, np.tile(np.float32([-1.0] * 16 + [0.0] * 16), (12, 16)), xp)


# Shapes.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["Q5_0", "Q6_K", "TQ1_0"])
def test_shapes(xp, name, shape):
    x = rows().reshape(shape) if 0 not in shape else np.zeros(shape, np.float32)
    record = RECORDS[name]
    row = shape[-1] // record.elements * record.size
    for weights in (None, np.resize(importance(), shape[-1])):
        given = None if weights is None else to_backend(weights, xp)
        data = gguf.encode(to_backend(x, xp), name, given)
        assert_same(data, gguf.encode(x, name, weights), xp)
        assert data.shape == (*shape[:-1], row)
        assert_same(gguf.decode(data, name), gguf.decode(to_numpy(data), name), xp)
        assert gguf.decode(data, name).shape == shape


def test_device(xp):
    data = gguf.encode(to_backend(rows(), xp), "Q4_0")
    for array in (data, gguf.decode(data, "Q4_0"), *gguf.parts(data, "Q4_0").values()):
        assert _xp.device(array) == device_of(xp)
