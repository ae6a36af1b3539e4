"""The bare cast between values and the codes of one number format, without a scale."""

from typing import Any

from quantarray import _xp, arguments, codec, counter
from quantarray._xp import Array
from quantarray.arithmetic import working_dtype
from quantarray.blocks import whole
from quantarray.codec import MODES, Mode
from quantarray.errors import QuantArrayError, choice, short
from quantarray.formats import LARGEST, SMALLEST_NORMAL, Codebook, Float, NumberFormat


def encode(
    x: Array,
    format: str | NumberFormat,
    *,
    rounding: Mode = "half_even",
    nonfinite: str = "saturate",
    key: int | None = None,
) -> Array:
    """Cast values to the codes of a number format, without a scale.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64
        Values, any shape.
    format : str or NumberFormat
        The format, such as "int4".
    rounding : {"half_even", "half_away", "half_down", "toward_zero", "stochastic"}
        How values between two codes are rounded.
    nonfinite : {"saturate", "raise", "propagate"}
        "saturate": values beyond the largest finite one, Inf too, take its code, and NaN that of 0,
        or of the smallest value where there is no 0. "raise": the same, but Inf and NaN are refused
        where values can be looked at (not while traced, compiled, or lazy); finite values still
        saturate. "propagate": IEEE 754's cast. NaN stays NaN, and Inf and finite values that round
        beyond the largest become Inf, or NaN in a format without Inf; none does under
        "toward_zero", which takes finite values to the largest. In e8m0fnu, which has no sign and
        no 0, numbers that are not positive become NaN. Refused for formats without NaN.
    key : int, optional
        0 to 2**64 - 1; "stochastic" needs it.

    Returns
    -------
    array of int8 or uint8 (16 bits for wider formats), shape of x
        Unpacked codes, in the namespace and on the device of `x`. Subnormal elements, of float32
        unless `x` is float64, count as zeros.

    Raises
    ------
    QuantArrayError
        If an argument is not of these.
    """
    x, xp = _xp.as_array("encode", x)
    element = arguments.find_format("encode", format)
    choice("encode", "rounding", rounding, MODES)
    choice("encode", "nonfinite", nonfinite, arguments.NONFINITE)
    key = arguments.check_key("encode", rounding, key)
    if isinstance(element, Codebook) and rounding != "half_even":
        raise QuantArrayError(
            f"encode: rounding={rounding!r}: a codebook has only its nearest value"
        )
    overflow = nonfinite == "propagate"
    if overflow and not (isinstance(element, Float) and element.nan is not None):
        raise QuantArrayError(
            f"encode: nonfinite='propagate': {short(format)} has no NaN: "
            "expected 'saturate' or 'raise'"
        )
    if nonfinite == "raise" and _xp.is_concrete(x, xp):
        arguments.check_finite("encode", x, xp)
    name = working_dtype(_xp.dtype_name(x.dtype))
    x = xp.astype(x, _xp.dtype(xp, name), copy=False)
    if codec.limits_of(element)[2] < SMALLEST_NORMAL[name]:
        x = _xp.flush(x, SMALLEST_NORMAL[name], xp)
    if not overflow:
        x = _xp.where(xp.isnan(x), 0.0, x, xp)
        x = _xp.clip(x, float(element.min), float(element.max), xp)
    noise = None if key is None else counter.uniform(key, x.shape, whole(x.shape), x, xp)
    return codec.to_codes(x, element, rounding, noise, xp, overflow)


def decode(codes: Array, format: str | NumberFormat, dtype: Any = None) -> Array:
    """Give the values of the codes of a number format, without a scale.

    Parameters
    ----------
    codes : array of integers
        Unpacked codes, any shape.
    format : str or NumberFormat
        The format, such as "int4".
    dtype : dtype or str, optional
        A floating dtype of the namespace, float32 by default.

    Returns
    -------
    array of dtype, shape of codes

    Raises
    ------
    QuantArrayError
        If an argument is not of these, or a code is none of the format's.
    """
    element = arguments.find_format("decode", format)
    xp = arguments.check_codes("decode", codes, element)
    target = arguments.float_dtype("decode", dtype or "float32", xp)
    name = _xp.dtype_name(target)
    values = codec.to_values(codes, element, working_dtype(name), xp)
    if element.max > LARGEST[name] or element.min < -LARGEST[name]:
        values = _xp.clip(values, -LARGEST[name], LARGEST[name], xp)
    return xp.astype(values, target, copy=False)
