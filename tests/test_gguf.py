"""ggml's block types as bytes: the bits of NumPy on every backend, and what is refused.

NumPy's own bytes are held against ggml in C, in test_oracles_ggml.py.
"""

import ml_dtypes
import numpy as np
import pytest
from gguf_corpus import (
    COLUMNS,
    DECODED_ONLY,
    ENCODED,
    FEW,
    NO_NAN,
    PLAIN,
    ROWS,
    SEARCHED,
    any_bytes,
    importance,
    rows,
)
from helpers import (
    assert_same,
    device_of,
    dtypes_of,
    lacks,
    to_backend,
    to_numpy,
)

from quantarray import QuantArrayError, _xp, gguf
from quantarray.formats import LARGEST
from quantarray.records import RECORDS


def is_lazy(xp):
    return _xp.backend(xp) == "dask"


def blocks_of(data, name):
    """View bytes of NumPy as blocks: (row, block, bytes)."""
    return data.reshape(len(data), -1, RECORDS[name].size)


def test_types():
    assert set(gguf.TYPES) == {*RECORDS, *PLAIN}
    assert set(gguf.ENCODABLE) == {*ENCODED, *PLAIN}
    assert (len(ENCODED), len(DECODED_ONLY)) == (18, 7)


@pytest.mark.parametrize("name", gguf.ENCODABLE)
def test_encoding(xp, name):
    x = rows()
    found = gguf.encode(to_backend(x, xp), name)
    assert_same(found, gguf.encode(x, name), xp)
    size = RECORDS[name].bits / 8 if name in RECORDS else {"F32": 4}.get(name, 2)
    assert found.shape == (len(x), COLUMNS * size)


@pytest.mark.parametrize("name", SEARCHED)
def test_encoding_with_importance(xp, name):
    x, weights = rows(), importance()
    found = gguf.encode(to_backend(x, xp), name, to_backend(weights, xp))
    expected = gguf.encode(x, name, weights)
    assert_same(found, expected, xp)
    assert (expected != gguf.encode(x, name)).any()


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K"])
def test_importance_may_differ_from_row_to_row(xp, name):
    x, weights = rows()[:, :256], np.stack([np.roll(importance(), i)[:256] for i in range(12)])
    found = gguf.encode(to_backend(x, xp), name, to_backend(weights, xp))
    one_by_one = [gguf.encode(*pair[::2], pair[1]) for pair in zip(x, weights, [name] * 12)]
    assert_same(found, np.stack(one_by_one), xp)


@pytest.mark.parametrize("name", sorted(set(ENCODED) - set(SEARCHED)))
def test_types_without_a_search_ignore_importance(name, xp):
    x = rows()[:2]
    found = gguf.encode(to_backend(x, xp), name, to_backend(importance(), xp))
    assert_same(found, gguf.encode(x, name), xp)


@pytest.mark.parametrize("name", FEW)
def test_encoding_every_dtype(xp, float_dtype, name):
    """They are rounded to float32 first: of the corpus, nothing is lost."""
    x = rows(float_dtype)
    expected = gguf.encode(x.astype(np.float32), name)
    assert_same(gguf.encode(to_backend(x, xp), name.lower()), expected, xp)


@pytest.mark.parametrize("name", RECORDS)
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


@pytest.mark.parametrize("name", RECORDS)
def test_parts_have_the_documented_shapes_and_dtypes(xp, name):
    record, data = RECORDS[name], any_bytes(name)[:3]
    expected = gguf.parts(data, name)
    blocks, groups = COLUMNS // record.elements, record.groups
    kinds = {
        "codes": ((3, blocks, record.elements), expected["codes"].dtype),
        "scale": ((3, blocks, groups), np.float32),
        "offset": ((3, blocks, groups), np.float32),
        "base": ((3, blocks), np.float32),
        "base_offset": ((3, blocks), np.float32),
        "scales": ((3, blocks, groups), np.int32),
        "mins": ((3, blocks, groups), np.int32),
    }
    assert expected["codes"].dtype in (np.int8, np.uint8)
    has = {"codes": True, "scale": True, "offset": record.offset, "base": record.base}
    has |= {"base_offset": record.offset, "scales": record.scales, "mins": record.mins}
    assert set(expected) == {part for part, there in has.items() if there}
    found = gguf.parts(to_backend(data, xp), name)
    assert list(found) == list(expected)
    for part, array in expected.items():
        if part in ("scale", "offset") and not (record.scales if part == "scale" else record.mins):
            assert array.shape == (3, blocks, 1)
        else:
            assert (array.shape, array.dtype) == kinds[part]
        assert_same(found[part], array, xp)


def test_parts_of_known_bytes(xp):
    block = np.uint8([0, 0x3C, 0, 0xC0, *[0x21] * 16])  # 1.0, -2.0, and codes 1 and 2
    found = gguf.parts(to_backend(block, xp), "Q4_1")
    assert to_numpy(found["codes"]).tolist() == [[1] * 16 + [2] * 16]
    assert to_numpy(found["scale"]).tolist() == [[1.0]]
    assert to_numpy(found["offset"]).tolist() == [[-2.0]]
    values = gguf.decode(to_backend(block, xp), "Q4_1")
    assert_same(values, np.float32([-1.0] * 16 + [0.0] * 16), xp)


# Shapes.


@pytest.mark.parametrize("shape", [(256,), (3, 1, 256), (2, 3, 512), (0, 256), (2, 0), (0,)])
@pytest.mark.parametrize("name", ["Q5_0", "Q6_K", "TQ1_0"])
def test_shapes(xp, name, shape):
    x = np.resize(rows(), shape) if 0 not in shape else np.zeros(shape, np.float32)
    record = RECORDS[name]
    row = shape[-1] // record.elements * record.size
    for weights in (None, np.ones(shape[-1], np.float32)):
        given = None if weights is None else to_backend(weights, xp)
        data = gguf.encode(to_backend(x, xp), name, given)
        assert_same(data, gguf.encode(x, name, weights), xp)
        assert data.shape == (*shape[:-1], row)
        assert_same(gguf.decode(data, name), gguf.decode(to_numpy(data), name), xp)
        assert gguf.decode(data, name).shape == shape


# What is not finite.

BAD = {(0, 5): np.nan, (1, 511): np.inf, (7, 300): -np.inf, (7, 301): np.nan}


def poisoned():
    x = rows().copy()
    for at, value in BAD.items():
        x[at] = value
    return x


def is_bad(record):
    """Tell which blocks hold what is not finite."""
    return ~np.isfinite(poisoned()).reshape(len(ROWS), -1, record.elements).all(-1)


@pytest.mark.parametrize("name", ENCODED)
def test_only_its_block_is_poisoned(xp, name):
    record = RECORDS[name]
    data = gguf.encode(to_backend(poisoned(), xp), name, nonfinite="propagate")
    bad, found = is_bad(record), blocks_of(to_numpy(data), name)
    clean = blocks_of(gguf.encode(np.nan_to_num(poisoned(), False, 0, 0, 0), name), name)
    assert (found[~bad] == clean[~bad]).all()
    values = to_numpy(gguf.decode(data, name)).reshape(len(ROWS), -1, record.elements)
    if name in NO_NAN:
        assert not found[bad].any()
        assert not values[bad].any()
    else:
        assert np.isnan(values[bad]).all()
    assert np.isfinite(values[~bad]).all()
    assert 3 <= bad.sum() <= 3


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "IQ4_NL"])
def test_only_its_block_is_poisoned_beside_importance(xp, name):
    """What is not finite counts as 0 in the mean square of its row."""
    weights = importance()
    data = gguf.encode(
        to_backend(poisoned(), xp), name, to_backend(weights, xp), nonfinite="propagate"
    )
    bad = is_bad(RECORDS[name])
    clean = gguf.encode(np.nan_to_num(poisoned(), False, 0, 0, 0), name, weights)
    assert (blocks_of(to_numpy(data), name)[~bad] == blocks_of(clean, name)[~bad]).all()


@pytest.mark.parametrize("name", ENCODED)
def test_saturation(xp, name):
    """NaN is 0, and Inf the largest finite magnitude of its block."""
    record, x = RECORDS[name], poisoned()
    blocks = x.reshape(len(ROWS), -1, record.elements)
    largest = np.where(np.isfinite(blocks), np.abs(blocks), 0).max(-1, keepdims=True)
    settled = np.where(np.isinf(blocks), np.copysign(largest, blocks), np.nan_to_num(blocks))
    expected = gguf.encode(settled.reshape(x.shape).astype(np.float32), name)
    assert_same(gguf.encode(to_backend(x, xp), name, nonfinite="saturate"), expected, xp)


@pytest.mark.parametrize("name", FEW)
def test_what_is_not_finite_is_refused(xp, name):
    x = poisoned().reshape(12, 2, 256)
    if is_lazy(xp):  # cannot be looked at
        expected = gguf.encode(x, name, nonfinite="propagate")
        assert_same(gguf.encode(to_backend(x, xp), name), expected, xp)
        return
    message = r"gguf\.encode: x has 4 NaN or Inf of 6144 elements, the first at \(0, 0, 5\)"
    with pytest.raises(QuantArrayError, match=message):
        gguf.encode(to_backend(x, xp), name)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "Q6_K", "IQ4_XS"])
def test_scales_that_float16_does_not_hold_are_refused(xp, name):
    x = np.ones((3, 512), np.float32)
    x[1, 300:] = 1e10
    blocks = {"Q8_0": 7, "Q4_1": 7, "Q6_K": 1, "IQ4_XS": 1}[name]
    if not is_lazy(xp):
        message = rf"gguf\.encode: {blocks} blocks of x have a scale that float16, .* {name} "
        with pytest.raises(QuantArrayError, match=message):
            gguf.encode(to_backend(x, xp), name)
    values = to_numpy(
        gguf.decode(gguf.encode(to_backend(x, xp), name, nonfinite="propagate"), name)
    )
    assert np.isnan(values[1, 512 - blocks * RECORDS[name].elements :]).all()
    assert (values[::2] == values[0, 0]).all()
    assert np.isfinite(values).sum() == values.size - blocks * RECORDS[name].elements


@pytest.mark.parametrize("name", ["Q4_0", "MXFP4", "F32"])
def test_float64_beyond_float32_is_refused(xp, name):
    if lacks(_xp.backend(xp), "float64") or is_lazy(xp):
        pytest.skip("no float64, or values cannot be looked at")
    x = np.ones((2, 32))
    x[1, 3] = 1e300
    message = r"gguf\.encode: 1 .*elements of x are more than (float32|F32)"
    with pytest.raises(QuantArrayError, match=message):
        gguf.encode(to_backend(x, xp), name)
    found = gguf.encode(to_backend(x, xp), name, nonfinite="saturate")
    x[1, 3] = LARGEST["float32"] if name == "F32" else 1.0
    assert_same(found, gguf.encode(x, name), xp)


# What is refused.

ONES = np.ones((2, 256), np.float32)


@pytest.mark.parametrize(
    ("x", "name", "message"),
    [
        (ONES[:, :40], "Q4_0", r"x has shape \(2, 40\): .* multiple of 32, .* block of Q4_0"),
        (ONES[:, :255], "q4_k", r"x has shape \(2, 255\): .* multiple of 256, .* block of Q4_K"),
        (ONES[0, 0], "Q8_0", r"x has shape \(\): expected a last axis"),
        (ONES[0, 0], "F16", "x has no axes"),
        (ONES, "Q9_0", "type='Q9_0': expected one of Q4_0, Q4_1, .*BF16"),
        (ONES, "q4_0 ", "type='q4_0 ': expected one of"),
        (ONES, 2, "type=2: expected one of"),
        (ONES, "IQ2_XXS", "IQ2_XXS can only be decoded: expected one of Q4_0, .*Q2_0"),
        (ONES[:0], "iq3_s", "IQ3_S can only be decoded"),
        (ONES.astype(np.int32), "Q4_0", "x has dtype int32: expected float16, bfloat16, float32"),
        (ONES > 0, "Q4_0", "x has dtype bool: expected"),
        (ONES.astype(np.complex64), "Q4_0", "x has dtype complex64: expected"),
    ],
    ids=str,
)
def test_refusals(xp, x, name, message):
    with pytest.raises(QuantArrayError, match=rf"^gguf\.encode: {message}"):
        gguf.encode(to_backend(x, xp), name)


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_K"])
def test_refusals_of_importance(xp, name):
    x, good = to_backend(ONES, xp), np.ones(256, np.float32)
    for wrong in (good[:255], np.ones((3, 256), np.float32), np.ones((2, 2, 256), np.float32)):
        with pytest.raises(QuantArrayError, match=r"importance=.*broadcasts to \(2, 256\)"):
            gguf.encode(x, name, to_backend(wrong, xp))
    with pytest.raises(QuantArrayError, match=r"importance=.*: expected real numbers"):
        gguf.encode(x, name, to_backend(good.astype(np.complex64), xp))
    with pytest.raises(QuantArrayError, match=r"importance='text': expected real numbers"):
        gguf.encode(x, name, "text")
    if is_lazy(xp):  # cannot be looked at
        return
    for value in (-1.0, np.nan, np.inf):
        wrong = good.copy()
        wrong[7] = value
        with pytest.raises(QuantArrayError, match="importance has negative elements, or NaN or In"):
            gguf.encode(x, name, to_backend(wrong, xp))


def test_refusals_of_choices(xp):
    x = to_backend(ONES, xp)
    with pytest.raises(QuantArrayError, match=r"^gguf\.encode: nonfinite='no': expected one of"):
        gguf.encode(x, "Q4_0", nonfinite="no")
    with pytest.raises(QuantArrayError, match=r"^gguf\.encode: x is a list: expected an array"):
        gguf.encode([1.0] * 32, "Q4_0")


@pytest.mark.parametrize("function", [gguf.decode, gguf.parts])
def test_refusals_of_bytes(xp, function):
    good = np.zeros((2, 36), np.uint8)
    for data, message in (
        (good[:, :35], r"data has dtype uint8 and shape \(2, 35\): .* multiple of 18, .* of Q4_0"),
        (good[0, 0], r"data has dtype uint8 and shape \(\): expected uint8"),
        (good.view(np.int8), r"data has dtype int8 and shape"),
        (good.astype(np.float32), r"data has dtype float32 and shape"),
    ):
        with pytest.raises(QuantArrayError, match=rf"^gguf\.{function.__name__}: {message}"):
            function(to_backend(data, xp), "Q4_0")
    with pytest.raises(QuantArrayError, match=r"type=None: expected one of Q4_0"):
        function(to_backend(good, xp), None)
    with pytest.raises(QuantArrayError, match=r"data is a .*: expected an array of uint8"):
        function([1, 2], "Q4_0")


def test_refusals_of_dtypes(xp):
    data = to_backend(np.zeros((2, 36), np.uint8), xp)
    with pytest.raises(QuantArrayError, match=r"gguf\.decode: dtype='int8': expected float16, "):
        gguf.decode(data, "Q4_0", "int8")
    with pytest.raises(QuantArrayError, match=r"gguf\.parts: type=F16: plain floats have no parts"):
        gguf.parts(data, "f16")


def test_device(xp):
    data = gguf.encode(to_backend(ONES, xp), "Q4_0")
    for array in (data, gguf.decode(data, "Q4_0"), *gguf.parts(data, "Q4_0").values()):
        assert _xp.device(array) == device_of(xp)
