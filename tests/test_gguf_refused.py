"""ggml's block types: what is not finite, what is too large, and what is refused."""

import numpy as np
import pytest
from gguf_corpus import (
    COLUMNS,
    FEW,
    NEEDED,
    NO_NAN,
    ROWS,
    TRIED,
    blocks_of,
    importance,
    needed,
    rows,
)
from helpers import assert_same, lacks, to_backend, to_numpy

from quantarray import QuantArrayError, _xp, gguf
from quantarray.formats import LARGEST
from quantarray.records import RECORDS

NUMPY = _xp.load("numpy")


def is_lazy(xp):
    return _xp.backend(xp) == "dask"


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


def encode(x, name, xp, nonfinite="raise"):
    """Encode, with importances where a type needs them."""
    weights = needed(name)
    given = None if weights is None else to_backend(weights, xp)
    return gguf.encode(to_backend(x, xp), name, given, nonfinite=nonfinite)


@pytest.mark.parametrize("name", TRIED)
def test_only_its_block_is_poisoned(xp, name):
    """What is not finite counts as 0 in the mean square of its row."""
    record = RECORDS[name]
    data = encode(poisoned(), name, xp, "propagate")
    bad, found = is_bad(record), blocks_of(to_numpy(data), name)
    clean = blocks_of(encode(np.nan_to_num(poisoned(), False, 0, 0, 0), name, NUMPY), name)
    assert (found[~bad] == clean[~bad]).all()
    values = to_numpy(gguf.decode(data, name)).reshape(len(ROWS), -1, record.elements)
    if name in NO_NAN:
        assert not found[bad].any()
        assert not values[bad].any()
    else:
        assert np.isnan(values[bad]).all()
    assert np.isfinite(values[~bad]).all()
    assert bad.sum() == 3


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "IQ4_NL"])
def test_only_its_block_is_poisoned_beside_importance(xp, name):
    weights = importance()
    data = gguf.encode(
        to_backend(poisoned(), xp), name, to_backend(weights, xp), nonfinite="propagate"
    )
    bad = is_bad(RECORDS[name])
    clean = gguf.encode(np.nan_to_num(poisoned(), False, 0, 0, 0), name, weights)
    assert (blocks_of(to_numpy(data), name)[~bad] == blocks_of(clean, name)[~bad]).all()


@pytest.mark.parametrize("name", TRIED)
def test_saturation(xp, name):
    """NaN is 0, and Inf the largest finite magnitude of its block."""
    record, x = RECORDS[name], poisoned()
    blocks = x.reshape(len(ROWS), -1, record.elements)
    largest = np.where(np.isfinite(blocks), np.abs(blocks), 0).max(-1, keepdims=True)
    settled = np.where(np.isinf(blocks), np.copysign(largest, blocks), np.nan_to_num(blocks))
    expected = encode(settled.reshape(x.shape).astype(np.float32), name, NUMPY)
    assert_same(encode(x, name, xp, "saturate"), expected, xp)


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
    x = np.ones((len(ROWS), COLUMNS), np.float32)
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
    message = r"gguf\.encode: 1 .*elements of x are (far )?more than "
    with pytest.raises(QuantArrayError, match=message):
        gguf.encode(to_backend(x, xp), name)
    found = gguf.encode(to_backend(x, xp), name, nonfinite="saturate")
    x[1, 3] = LARGEST["float32"] if name == "F32" else 1.0
    assert_same(found, gguf.encode(x, name), xp)


@pytest.mark.parametrize("kernels", ["fused", "generic"])
@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "IQ4_XS", "IQ3_S", "NVFP4"])
def test_elements_beyond_reach_are_refused(name, kernels, monkeypatch):
    """Of some C makes zeros, silently."""
    monkeypatch.setenv("QUANTARRAY_KERNELS", kernels)
    x = np.ones((2, 256), np.float32)
    x[1, 3] = np.nextafter(np.float32(RECORDS[name].reach), np.float32(np.inf))
    with pytest.raises(QuantArrayError, match=f"1 of 512 elements .* more than a scale of {name}"):
        gguf.encode(x, name)
    x[1, 3] = RECORDS[name].reach
    if name == "NVFP4":  # whose largest scale is stored, as in C
        assert gguf.decode(gguf.encode(x, name), name).max() == 2688
    else:
        with pytest.raises(QuantArrayError, match="1 blocks of x have a scale that float16"):
            gguf.encode(x, name)


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
        (ONES.astype(np.int32), "Q4_0", "x has dtype int32: expected float16, bfloat16, float32"),
        (ONES > 0, "Q4_0", "x has dtype bool: expected"),
        (ONES.astype(np.complex64), "Q4_0", "x has dtype complex64: expected"),
    ],
    ids=str,
)
def test_refusals(xp, x, name, message):
    with pytest.raises(QuantArrayError, match=rf"^gguf\.encode: {message}"):
        gguf.encode(to_backend(x, xp), name)


@pytest.mark.parametrize("name", NEEDED)
def test_types_that_need_importances_are_refused_without(xp, name):
    message = rf"^gguf\.encode: importance=None: {name} is encoded with importances only: "
    for x in (ONES, ONES[:0]):
        with pytest.raises(QuantArrayError, match=message):
            gguf.encode(to_backend(x, xp), name.lower())


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
