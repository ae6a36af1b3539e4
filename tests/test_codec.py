"""Values to codes and back: every float16 and bfloat16, every integer format, every rounding."""

import itertools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same, device_of, dtypes_of, lacks, to_backend

import quantarray as qa
from quantarray import QuantArrayError, _xp, codec
from quantarray.formats import FORMATS

NAMES = [f"{sign}int{bits}" for sign in ("", "u") for bits in range(2, 9)]
MODES = ("half_even", "half_away", "half_down", "toward_zero")
WORDS = np.arange(1 << 16, dtype=np.uint16)
EVERY = {"float16": WORDS.view(np.float16), "bfloat16": WORDS.view(ml_dtypes.bfloat16)}


def every_value(dtype):
    """Give all values of a 16-bit dtype; all of both as a wider one."""
    if dtype in EVERY:
        return EVERY[dtype]
    with np.errstate(invalid="ignore"):  # signaling NaNs
        return np.concatenate([values.astype(dtype) for values in EVERY.values()])


def expected_codes(x, element, mode):
    """Round in float64, where every half of a 16-bit value is exact, and saturate; NaN is 0."""
    x = np.clip(np.nan_to_num(x.astype(np.float64), nan=0, posinf=1e9, neginf=-1e9), -1e9, 1e9)
    rounded = {
        "half_even": np.rint(x),
        "half_away": np.copysign(np.floor(np.abs(x) + 0.5), x),
        "half_down": np.copysign(np.ceil(np.abs(x) - 0.5), x),
        "toward_zero": np.trunc(x),
    }[mode]
    dtype = f"{'' if element.signed else 'u'}int{8 if element.bits <= 8 else 16}"
    return np.clip(rounded, element.min, element.max).astype(dtype)


@pytest.mark.parametrize("mode", MODES)
def test_every_value_of_16_bits(mode, xp, float_dtype):
    with np.errstate(invalid="ignore"):
        x = every_value(float_dtype)
        array = to_backend(x, xp)
        for name in NAMES:
            codes = qa.encode(array, name, rounding=mode)
            assert_same(codes, expected_codes(x, FORMATS[name], mode), xp)


@pytest.mark.backend_independent
@pytest.mark.parametrize("mode", MODES)
def test_the_reference_rounds_as_fractions_do(mode):
    def rounded(value):
        if mode == "half_even":
            return round(value)
        if mode == "toward_zero":
            return math.trunc(value)
        if mode == "half_down":
            return math.copysign(1, value) * math.ceil(abs(value) - Fraction(1, 2))
        return math.copysign(1, value) * math.floor(abs(value) + Fraction(1, 2))

    x = every_value("float16")[::7]
    x = x[np.isfinite(x)]
    exact = [min(127, max(-128, rounded(Fraction(float(value))))) for value in x]
    assert expected_codes(x, FORMATS["int8"], mode).tolist() == exact


@pytest.mark.backend_independent
@pytest.mark.parametrize("name", ["int2", "int4", "uint2", "uint4"])
def test_integers_of_ml_dtypes_are_the_same_codes(name):
    x = np.arange(-9, 17, 0.5, dtype=np.float32)
    element = FORMATS[name]
    theirs = np.clip(np.rint(x), element.min, element.max).astype(getattr(ml_dtypes, name))
    assert qa.encode(x, name).tolist() == theirs.astype(int).tolist()
    assert (qa.decode(qa.encode(x, name), name) == theirs.astype(np.float32)).all()


@pytest.mark.parametrize(
    ("mode", "x", "expected"),
    [
        ("half_even", [0.5, 1.5, 2.5, -0.5, -1.5, -2.5], [0, 2, 2, 0, -2, -2]),
        ("half_away", [0.5, 1.5, 2.5, -0.5, -1.5, -2.5], [1, 2, 3, -1, -2, -3]),
        ("toward_zero", [0.99, 1.5, -0.99, -1.5], [0, 1, 0, -1]),
        ("half_away", [0.49999997, -0.49999997, 0.50000006], [0, 0, 1]),
        ("half_even", [0.49999997, 0.50000006, 1.4999999], [0, 1, 1]),
        (
            "half_away",
            [4194303.5, 8388606.5, 8388607.5, 8388609, 16777218],
            [4194304, 8388607, 8388608, 8388609, 16777218],
        ),
        (
            "half_even",
            [4194303.5, 8388606.5, 8388607.5, 8388609, 16777218],
            [4194304, 8388606, 8388608, 8388609, 16777218],
        ),
        ("toward_zero", [8388606.5, -8388607.5, 1e30], [8388606, -8388607, 1e30]),
    ],
)
def test_ties_and_their_neighbours(mode, x, expected, xp):
    found = codec.round_to_integer(to_backend(np.float32(x), xp), mode, None, xp)
    assert_same(found + 0, np.float32(expected), xp)  # whatever the sign of zero


@pytest.mark.parametrize("name", [*NAMES, "int9", "int16", "uint1", "uint16"])
def test_every_code_decodes_to_itself(name, xp):
    element = FORMATS[name]
    codes = np.arange(element.min, element.max + 1).astype(codec.code_dtype(element))
    codes = np.resize(codes, 1 << 16)  # one shape: JAX compiles once
    assert_same(qa.decode(to_backend(codes, xp), name), codes.astype(np.float32), xp)
    assert_same(qa.encode(to_backend(codes.astype(np.float32), xp), name), codes, xp)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_decode_gives_the_dtype_asked_for(dtype, xp):
    codes = to_backend(np.arange(256, dtype=np.uint8), xp)
    if reason := lacks(_xp.backend(xp), dtype):
        with pytest.raises(QuantArrayError, match=dtype):
            qa.decode(codes, "uint8", dtype)
        return
    values = np.arange(256).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert reason is None
    assert_same(qa.decode(codes, "uint8", dtype), values, xp)
    assert_same(qa.decode(codes, "uint8", _xp.dtype(xp, dtype)), values, xp)


def test_no_code_decodes_to_inf(xp):
    if "float16" not in dtypes_of(xp):
        pytest.skip("the namespace has no float16")
    codes = to_backend(np.uint16([0, 65504, 65520, 65535]), xp)
    assert_same(qa.decode(codes, "uint16", "float16"), np.float16([0, 65504, 65504, 65504]), xp)


INF, NAN, TINY = math.inf, math.nan, 1e-40


@pytest.mark.parametrize("name", ["int2", "int8", "uint4"])
def test_what_is_not_finite_saturates(name, xp):
    element = FORMATS[name]
    x = np.float32([NAN, INF, -INF, -0.0, TINY, -TINY, 3e38, -3e38])
    expected = [0, element.max, element.min, 0, 0, 0, element.max, element.min]
    codes = qa.encode(to_backend(x, xp), name, nonfinite="saturate")
    assert_same(codes, np.array(expected, codec.code_dtype(element)), xp)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_is_refused_on_request(bad, xp):
    x = np.zeros((3, 4), np.float32)
    assert_same(qa.encode(to_backend(x, xp), "int4", nonfinite="raise"), x.astype(np.int8), xp)
    x[1, 2:] = bad
    array = to_backend(x, xp)
    if not _xp.is_concrete(array, xp):
        pytest.skip("lazy values cannot be refused")
    with pytest.raises(QuantArrayError, match=r"encode: x has 2 NaN or Inf of 12 .*at \(1, 2\)"):
        qa.encode(array, "int4", nonfinite="raise")


@pytest.mark.parametrize("shape", [(), (2, 0, 3)])
def test_any_shape(shape, xp):
    x = np.full(shape, 2.6, np.float32)
    for mode, key in itertools.chain(((mode, None) for mode in MODES), [("stochastic", 1)]):
        codes = qa.encode(to_backend(x, xp), "int4", rounding=mode, key=key)
        if mode != "stochastic":
            assert_same(codes, np.full(shape, 2 if mode == "toward_zero" else 3, np.int8), xp)
        assert tuple(codes.shape) == shape
        assert tuple(qa.decode(codes, "int4").shape) == shape


@pytest.mark.parametrize(
    ("codes", "name", "message"),
    [
        (np.int8([8]), "int4", r"codes lie in 8\.\.8: expected -8\.\.7"),
        (np.int8([-9, 3]), "int4", r"codes lie in -9\.\.3: expected -8\.\.7"),
        (np.int8([-1]), "uint8", r"codes lie in -1\.\.-1: expected 0\.\.255"),
        (np.uint8([4]), "uint2", r"codes lie in 4\.\.4: expected 0\.\.3"),
        (np.float32([1]), "int4", "codes has dtype float32: expected integers"),
        (np.array([True]), "int4", "codes has dtype bool: expected integers"),
    ],
)
def test_codes_of_another_format_are_refused(codes, name, message, xp):
    array = to_backend(codes, xp)
    if "lie" in message and not _xp.is_concrete(array, xp):
        pytest.skip("lazy codes cannot be looked at")
    with pytest.raises(QuantArrayError, match=f"decode: {message}"):
        qa.decode(array, name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: qa.encode([1.0], "int4"), "encode: x is a list: expected an array"),
        (lambda x: qa.decode([1], "int4"), "decode: codes is a list: expected an array"),
        (lambda x: qa.encode(x, "int99"), "'int99' is not known; known: int2"),
        (lambda x: qa.encode(x, None), "encode: format=None: expected"),
        (lambda x: qa.encode(x, 4), "encode: format=4: expected"),
        (
            lambda x: qa.encode(x, "int4", rounding="up"),
            "rounding='up': expected one of .*half_even",
        ),
        (lambda x: qa.encode(x, "int4", rounding=None), "rounding=None: expected one of"),
        (lambda x: qa.encode(x, "int4", nonfinite="clip"), "nonfinite='clip': expected one of"),
        (
            lambda x: qa.encode(x, "int4", nonfinite="propagate"),
            "nonfinite='propagate': 'int4' has no NaN: expected 'saturate' or 'raise'",
        ),
        (lambda x: qa.encode(x, "int4", key=1), "key=1: rounding 'half_even' takes no key"),
        (lambda x: qa.encode(x, "int4", rounding="stochastic"), "key=None: expected an integer"),
        (lambda x: qa.encode(x, "int4", rounding="stochastic", key=-1), "key=-1: expected"),
        (
            lambda x: qa.encode(x, "int4", rounding="stochastic", key=2**64),
            f"key={2**64}: expected",
        ),
        (
            lambda x: qa.decode(qa.encode(x, "int4"), "int4", "int8"),
            "dtype='int8': expected float16",
        ),
        (lambda x: qa.decode(qa.encode(x, "int4"), "int4", "f4"), "dtype='f4': expected float16"),
    ],
)
def test_bad_arguments_are_refused(call, message, xp):
    with pytest.raises(QuantArrayError, match=message):
        call(xp.ones((3,), dtype=xp.float32, device=device_of(xp)))


def test_the_largest_and_smallest_keys_work(xp):
    x = to_backend(np.float32([0.5] * 8), xp)
    for key in (0, 2**64 - 1, np.int64(3)):
        assert qa.encode(x, "int4", rounding="stochastic", key=key).shape == (8,)
