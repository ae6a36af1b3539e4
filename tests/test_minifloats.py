"""The bare cast of every float16 and bfloat16 value, against ml_dtypes and gfloat.

Where codes are meant to be others than an oracle's, `DIFFERENCES` says which, how many, and why;
all others have to be equal, NaN and the sign of zero included.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import gfloat
import ml_dtypes
import numpy as np
import pytest
from array_api_extra.testing import lazy_xp_function, patch_lazy_xp_functions
from gfloat import RoundMode
from gfloat import formats as gfloat_formats
from helpers import assert_same, dtypes_of, to_backend, to_numpy

import quantarray as qa
from quantarray import QuantArrayError, _xp, encode
from quantarray.formats import BFLOAT16, FLOAT16, FORMATS, Float

lazy_xp_function(encode)  # `qa.encode` stays eager

MINIFLOATS = [name for name, f in FORMATS.items() if isinstance(f, Float)]
WITH_NAN = [name for name in MINIFLOATS if FORMATS[name].nan is not None]
ROUNDINGS = {
    "half_even": RoundMode.TiesToEven,
    "half_away": RoundMode.TiesToAway,
    "toward_zero": RoundMode.TowardZero,
}
GFLOAT = {
    "e4m3fn": gfloat_formats.format_info_ocp_e4m3,
    "e5m2": gfloat_formats.format_info_ocp_e5m2,
    "e4m3fnuz": gfloat_formats.format_info_p3109(8, 4, domain=gfloat.Domain.Finite),
    "e5m2fnuz": gfloat_formats.format_info_p3109(8, 3, domain=gfloat.Domain.Finite),
    "e3m2fn": gfloat_formats.format_info_ocp_e3m2,
    "e2m3fn": gfloat_formats.format_info_ocp_e2m3,
    "e2m1fn": gfloat_formats.format_info_ocp_e2m1,
    "e8m0fnu": gfloat_formats.format_info_ocp_e8m0,
}
SMALLEST_NORMAL = 2.0**-126
# Inputs of these dtypes are rounded in float32, where subnormal numbers count as zeros.
IN_FLOAT32 = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Difference:
    """Which codes of one format are not an oracle's."""

    oracle: str
    name: str
    # Of these casts; "" is any.
    rounding: str
    nonfinite: str
    # The dtypes of the input.
    dtypes: tuple[str, ...]
    # For which float64 values, given the oracle's codes; how many float16 and bfloat16 ones. Where
    # the oracle has no answer, some of its codes may be ours by chance.
    where: Callable
    count: tuple[int, int]
    # Our codes, given the oracle's.
    ours: Callable
    reason: str


SIGN_OF_NAN = "NaN, also what overflows to it, keeps its sign, as in ml_dtypes; gfloat has one code"
NOT_POSITIVE = "gfloat has no code for 0 and takes no notice of signs"
SUBNORMAL = "subnormal float32 numbers count as zeros, which JAX makes of them"
ODD = "all powers of two are odd: half way, ml_dtypes and torch take the larger, gfloat even codes"
ALL = (*IN_FLOAT32, "float64")


def half_way(x, codes):
    """1.5 * 2**k where the code of 2**k is even."""
    fraction, exponent = np.frexp(x)
    return (fraction == 0.75) & (exponent % 2 == 0) & (x >= SMALLEST_NORMAL)


def gfloat_nan(x, codes):
    return codes == 0xFF


DIFFERENCES = (
    Difference(
        *("ml_dtypes", "e8m0fnu", "half_even", "saturate", IN_FLOAT32),
        where=lambda x, codes: (x > 2.0**-127) & (x < SMALLEST_NORMAL),
        count=(0, 63),
        ours=lambda x, codes: 0 * codes,
        reason=SUBNORMAL,
    ),
    Difference(
        *("ml_dtypes", "e8m0fnu", "half_even", "propagate", IN_FLOAT32),
        where=lambda x, codes: (x > 0) & (x < SMALLEST_NORMAL),
        count=(0, 127),
        ours=lambda x, codes: 0 * codes + 0xFF,
        reason=SUBNORMAL,
    ),
    Difference(
        *("ml_dtypes", "e8m0fnu", "half_even", "", ("float64",)),
        where=lambda x, codes: (x > 2.0**-127) & (x < 1.5 * 2.0**-127),
        count=(0, 31),
        ours=lambda x, codes: codes - 1,
        reason="ml_dtypes rounds what lies between 2**-127 and 2**-126 up, we to the nearest",
    ),
    *(
        Difference(
            *("gfloat", "e4m3fn", rounding, "propagate", ALL),
            where=lambda x, codes: gfloat_nan(x, codes) & ~np.signbit(x),
            count=count,
            ours=lambda x, codes: codes & 0x7F,
            reason=SIGN_OF_NAN,
        )
        # Positive NaNs, Inf, and finite values beyond 464, or from 464 on.
        for rounding, count in {
            "half_even": (1023 + 1 + 7359, 127 + 1 + 15255),
            "half_away": (1023 + 1 + 7360, 127 + 1 + 15256),
            "toward_zero": (1023 + 1, 127 + 1),
        }.items()
    ),
    Difference(
        *("gfloat", "e5m2", "", "propagate", ALL),
        where=gfloat_nan,
        count=(2 * 1023, 2 * 127),
        ours=lambda x, codes: np.where(np.signbit(x), 0xFE, 0x7E),
        reason=f"{SIGN_OF_NAN}, and another payload",
    ),
    Difference(
        *("gfloat", "e8m0fnu", "", "saturate", ALL),
        where=lambda x, codes: ~(x > 0),
        count=(2046 + 2 + 31743 + 1, 254 + 2 + 32639 + 1),
        ours=lambda x, codes: 0 * codes,
        reason=NOT_POSITIVE,
    ),
    Difference(
        *("gfloat", "e8m0fnu", "", "propagate", ALL),
        where=lambda x, codes: x <= 0,
        count=(2 + 31743 + 1, 2 + 32639 + 1),
        ours=lambda x, codes: 0 * codes + 0xFF,
        reason=NOT_POSITIVE,
    ),
    Difference(
        *("gfloat", "e8m0fnu", "", "saturate", IN_FLOAT32),
        where=lambda x, codes: (x > 0) & (x < SMALLEST_NORMAL),
        count=(0, 127),
        ours=lambda x, codes: 0 * codes,
        reason=SUBNORMAL,
    ),
    Difference(
        *("gfloat", "e8m0fnu", "", "propagate", IN_FLOAT32),
        where=lambda x, codes: (x > 0) & (x < SMALLEST_NORMAL),
        count=(0, 127),
        ours=lambda x, codes: 0 * codes + 0xFF,
        reason=SUBNORMAL,
    ),
    Difference(
        *("gfloat", "e8m0fnu", "", "", ("float64",)),
        where=lambda x, codes: (x > 0) & (x < 2.0**-127),
        count=(0, 63),
        ours=lambda x, codes: 0 * codes,
        reason="there is no smaller code: gfloat's exponent wraps around",
    ),
    Difference(
        *("gfloat", "e8m0fnu", "half_even", "saturate", ALL),
        where=lambda x, codes: half_way(x, codes) & (x < 2.0**127),
        count=(20, 126),
        ours=lambda x, codes: codes + 1,
        reason=ODD,
    ),
    Difference(
        *("gfloat", "e8m0fnu", "half_even", "propagate", ALL),
        where=half_way,
        count=(20, 127),
        ours=lambda x, codes: codes + 1,
        reason=ODD,
    ),
    Difference(
        *("gfloat", "e8m0fnu", "half_even", "", ("float64",)),
        where=lambda x, codes: x == 1.5 * 2.0**-127,
        count=(0, 1),
        ours=lambda x, codes: codes + 1,
        reason=ODD,
    ),
)


def values_of(dtype):
    """All values of a 16-bit dtype, or those of both as a wider one."""
    words = np.arange(1 << 16, dtype=np.uint16)
    both = {"float16": words.view(np.float16), "bfloat16": words.view(ml_dtypes.bfloat16)}
    if dtype in both:
        return both[dtype]
    with np.errstate(invalid="ignore"):  # signaling NaNs
        return np.concatenate([x.astype(dtype) for x in both.values()])


def ml_dtype(name):
    return getattr(ml_dtypes, f"float{FORMATS[name].bits}_{name}")


def asked_of_ml_dtypes(x, name, rounding, nonfinite):
    """Cast with ml_dtypes, which does not saturate, so that it is given clipped values."""
    assert rounding == "half_even"
    if nonfinite == "saturate":
        x = np.clip(np.where(np.isnan(x), 0, x), FORMATS[name].min, FORMATS[name].max)
    return x.astype(np.float32).astype(ml_dtype(name)).view(np.uint8)


def asked_of_gfloat(x, name, rounding, nonfinite):
    saturate = nonfinite == "saturate"
    x = np.where(np.isnan(x), 0, x) if saturate else x
    rounded = gfloat.round_ndarray(GFLOAT[name], x, ROUNDINGS[rounding], sat=saturate)
    return gfloat.encode_ndarray(GFLOAT[name], rounded).astype(np.uint8)


ORACLES = {"ml_dtypes": asked_of_ml_dtypes, "gfloat": asked_of_gfloat}
CASTS = [
    (oracle, rounding, nonfinite)
    for nonfinite in ("saturate", "propagate")
    for oracle, roundings in (("ml_dtypes", ("half_even",)), ("gfloat", tuple(ROUNDINGS)))
    for rounding in roundings
]


@functools.cache
def expected_codes(oracle, name, rounding, nonfinite, dtype):
    """The oracle's codes of all values, but for the differences, whose number is asserted."""
    with warnings.catch_warnings(action="ignore"):  # of NaN and Inf in the oracles
        x = values_of(dtype).astype(np.float64)
        codes = ORACLES[oracle](x, name, rounding, nonfinite)
    changed = codes.copy()
    for row in DIFFERENCES:
        if (row.oracle, row.name) != (oracle, name) or dtype not in row.dtypes:
            continue
        if row.rounding in ("", rounding) and row.nonfinite in ("", nonfinite):
            here = row.where(x, codes)
            counts = dict(zip(("float16", "bfloat16"), row.count, strict=True))
            assert here.sum() == counts.get(dtype, sum(row.count)), row
            changed[here] = row.ours(x[here], codes[here])
            assert (changed != codes)[here].any() == here.any(), row
    return changed


@pytest.mark.parametrize(("oracle", "rounding", "nonfinite"), CASTS)
def test_every_16_bit_value(oracle, rounding, nonfinite, xp, float_dtype):
    x = to_backend(values_of(float_dtype), xp)
    for name in MINIFLOATS if nonfinite == "saturate" else WITH_NAN:
        codes = qa.encode(x, name, rounding=rounding, nonfinite=nonfinite)
        expected = expected_codes(oracle, name, rounding, nonfinite, float_dtype)
        assert_same(codes, expected, xp)


@pytest.mark.parametrize("name", WITH_NAN)
def test_propagating_where_values_cannot_be_seen(name, request, xp, float_dtype):
    x = to_backend(values_of(float_dtype), xp)
    with patch_lazy_xp_functions(request, xp=xp):
        codes = encode(x, name, nonfinite="propagate")
    expected = expected_codes("ml_dtypes", name, "half_even", "propagate", float_dtype)
    assert_same(codes, expected, xp)


@pytest.mark.parametrize("name", MINIFLOATS)
def test_every_code_decodes_to_its_value(name, xp):
    codes = np.arange(1 << FORMATS[name].bits, dtype=np.uint8)
    theirs = gfloat.decode_ndarray(GFLOAT[name], codes.astype(np.int64))
    values = codes.view(ml_dtype(name))
    for dtype in dtypes_of(xp):
        decoded = qa.decode(to_backend(codes, xp), name, dtype)
        if dtype == "float16":  # Finite values stay finite.
            limit = float(np.finfo(np.float16).max)
            clipped = np.where(np.isfinite(theirs), np.clip(theirs, -limit, limit), theirs)
            assert_same(decoded, clipped.astype(np.float16), xp)
            continue
        assert_same(decoded, values.astype(dtype), xp)
        assert_same(decoded, theirs.astype(dtype), xp)


# The largest finite value, half way to what would be next, that, and Inf.
@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("e4m3fn", [448.0, 464.0, 480.0, np.inf]),
        ("e5m2", [57344.0, 61440.0, 65536.0, np.inf]),
        ("e4m3fnuz", [240.0, 248.0, 256.0, np.inf]),
        ("e5m2fnuz", [57344.0, 61440.0, 65536.0, np.inf]),
        ("e8m0fnu", [2.0**127, 1.5 * 2.0**127, float(np.finfo(np.float32).max), np.inf]),
    ],
)
def test_stochastic_rounding_overflows_as_often_as_it_rounds_up(name, x, xp):
    element = FORMATS[name]
    x = np.repeat(np.array([*x, np.nan], np.float32), 4096)
    options = {"rounding": "stochastic", "nonfinite": "propagate", "key": 5}
    codes = qa.encode(to_backend(x, xp), name, **options)
    assert_same(codes, qa.encode(x, name, **options), xp)
    largest = len(element.magnitudes) - 1
    low, half, high, infinite, nan = to_numpy(codes).reshape(5, -1)
    assert (low == largest).all()
    assert abs((half == largest + 1).mean() - 0.5) < 5 * 0.5 / 64
    assert set(half.tolist()) == {largest, largest + 1}
    assert (high == largest + 1).mean() > 0.999
    assert (infinite == largest + 1).all()
    assert (nan == element.nan).all()


@pytest.mark.parametrize("element", [FLOAT16, BFLOAT16])
def test_formats_of_16_bits_are_casts_of_dtypes(element, xp):
    words = np.random.default_rng(0).integers(0, 2**32, 1 << 16, dtype=np.uint32)
    x = words.view(np.float32)
    x = np.where(np.abs(x) < SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)
    dtype = np.float16 if element == FLOAT16 else ml_dtypes.bfloat16
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(dtype)
        words = expected.view(np.uint16)
    nan = np.isnan(x)  # whose payload NumPy keeps
    quiet = np.where(np.signbit(x), np.uint16(element.nan + 0x8000), np.uint16(element.nan))
    codes = qa.encode(to_backend(x, xp), element, nonfinite="propagate")
    assert_same(codes, np.where(nan, quiet, words), xp)


@pytest.mark.parametrize("name", ["e3m2fn", "e2m3fn", "e2m1fn", "int4", "uint8", "nf4", "mxint8"])
def test_formats_without_nan_cannot_propagate(name, xp):
    x = to_backend(np.ones(3, np.float32), xp)
    message = f"encode: nonfinite='propagate': '{name}' has no NaN: expected 'saturate' or 'raise'"
    with pytest.raises(QuantArrayError, match=message):
        qa.encode(x, name, nonfinite="propagate")


@pytest.mark.parametrize("name", MINIFLOATS)
def test_finite_values_saturate_where_nan_and_inf_are_refused(name, xp):
    x = np.array([3e38, -3e38, 1.0], np.float32)
    codes = qa.encode(to_backend(x, xp), name, nonfinite="raise")
    assert_same(codes, qa.encode(x, name, nonfinite="saturate"), xp)
    x = to_backend(np.array([1.0, np.inf], np.float32), xp)
    if _xp.is_concrete(x, xp):
        with pytest.raises(QuantArrayError, match="encode: x has 1 NaN or Inf of 2 elements"):
            qa.encode(x, name, nonfinite="raise")
