"""Values to the codes of one number format, and back: rounding lives here."""

from typing import Any, Literal

import numpy as np

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.formats import SMALLEST_NORMAL, Codebook, Float, Integer, NumberFormat

Mode = Literal["half_even", "half_away", "toward_zero", "stochastic"]
MODES: tuple[Mode, ...] = ("half_even", "half_away", "toward_zero", "stochastic")
# Beyond every integer code and zero point, where Inf may be clipped to.
BEYOND = float(1 << 20)


def code_dtype(element: NumberFormat) -> str:
    """Name the dtype of unpacked codes: signed for signed integers, unsigned for the rest."""
    signed = isinstance(element, Integer) and element.signed
    return f"{'' if signed else 'u'}int{8 if element.bits <= 8 else 16}"


def arithmetic(dtype: str) -> str:
    """Name the dtype that arithmetic on values of `dtype` is done in."""
    return "float64" if dtype == "float64" else "float32"


def round_to_integer(x: Array, mode: Mode, noise: Array | None, xp: Namespace) -> Array:
    """Round to integers, kept as floats.

    Parameters
    ----------
    x : array of float32 or float64
        Quotients.
    mode : str
        One of `MODES`.
    noise : array or None
        Numbers in [0, 1) for "stochastic": `x` goes up where they lie below its fraction.
    xp : namespace
        The array's.

    Returns
    -------
    array of x's dtype
    """
    if mode == "half_even":
        return xp.round(x)
    if mode == "toward_zero":
        return xp.trunc(x)
    if mode == "half_away":
        floor = xp.floor(xp.abs(x))
        # Adding 0.5 first would round the number just below a half up.
        magnitude = _xp.where(xp.abs(x) - floor >= 0.5, floor + 1, floor, xp)
        return xp.copysign(magnitude, x)
    x = _xp.flush(x, SMALLEST_NORMAL[_xp.dtype_name(x.dtype)], xp)
    floor = xp.floor(x)
    return _xp.where(noise < x - floor, floor + 1, floor, xp)


@_xp.constant
def thresholds(
    values: tuple[float, ...], mode: str, factor: float, dtype: str
) -> np.ndarray[Any, Any]:
    """Give the numbers that separate rounding to one value from rounding to the next.

    Parameters
    ----------
    values : tuple of float
        Ascending.
    mode : str
        A rounding mode; "down" or "up" to the next value; or "half_down", in which a tie goes to
        the smaller value.
    factor : float
        By which the thresholds, not the values, are multiplied. Comparing `x` with them is exact
        where dividing `x` by the factor would round.
    dtype : str
        "float32" or "float64".

    Returns
    -------
    numpy.ndarray of dtype, one fewer than values
        As many lie strictly below `x` as the index of the value that `x` is rounded to.
    """
    v = np.asarray(values)
    if mode in ("down", "toward_zero", "stochastic"):
        between, inclusive = v[1:], np.full(v.size - 1, True)
    elif mode in ("up", "half_down"):
        between = v[:-1] if mode == "up" else (v[1:] + v[:-1]) / 2
        inclusive = np.full(v.size - 1, False)
    else:  # a tie goes to the even code, or away from zero
        between = (v[1:] + v[:-1]) / 2
        inclusive = (
            np.full(v.size - 1, True) if mode == "half_away" else np.arange(v.size - 1) % 2 == 1
        )
    with np.errstate(over="ignore"):  # nothing lies above Inf
        between = (between * factor).astype(dtype)
    return np.where(inclusive, np.nextafter(between, np.asarray(-np.inf, dtype)), between)


@_xp.constant
def limits_of(element: NumberFormat) -> tuple[float, float, float]:
    """Give a format's smallest and largest values, and its resolution."""
    return float(element.min), float(element.max), element.resolution


@_xp.constant
def values_of(element: Float | Codebook) -> tuple[float, ...]:
    """Give the value of every code."""
    return element.table


def index_of(x: Array, between: np.ndarray[Any, Any], xp: Namespace) -> Array:
    """Count the thresholds strictly below each element; NaN counts as any number would."""
    table = xp.asarray(between, device=_xp.beside(x))
    return _xp.count_below(table, x, xp)


def to_codes(
    x: Array, element: NumberFormat, mode: Mode, noise: Array | None, xp: Namespace
) -> Array:
    """Round values to the codes of a number format, saturating.

    Parameters
    ----------
    x : array of float32 or float64
        Finite values.
    element : NumberFormat
        The format.
    mode : str
        One of `MODES`.
    noise : array or None
        As for `round_to_integer`.
    xp : namespace
        The array's.

    Returns
    -------
    array of `code_dtype`, shape of x
    """
    if isinstance(element, Integer):
        return clip_to_codes(round_to_integer(x, mode, noise, xp), element, xp)
    dtype = _xp.dtype_name(x.dtype)
    if isinstance(element, Codebook):
        ascending = tuple(sorted(set(element.table)))
        index = index_of(x, thresholds(ascending, "half_down", 1.0, dtype), xp)
        indices = [element.table.index(value) for value in ascending]
        order = xp.asarray(indices, dtype=xp.uint8, device=_xp.beside(x))
        return _xp.lookup(order, index, xp)
    values = element.magnitudes
    magnitude = xp.abs(x) if element.signed else x
    index = index_of(magnitude, thresholds(values, mode, 1.0, dtype), xp)
    if mode == "stochastic":
        index = index + _goes_up(magnitude, values, index, noise, xp)
    if not element.signed:
        return xp.astype(index, xp.uint8)
    negative = xp.signbit(x)
    if element.specials == "nan_zero":
        negative = negative & (index > 0)
    return xp.astype(_xp.where(negative, index + (1 << (element.bits - 1)), index, xp), xp.uint8)


def _goes_up(
    x: Array, values: tuple[float, ...], index: Array, noise: Array | None, xp: Namespace
) -> Array:
    """Tell, as 0 or 1, where stochastic rounding goes to the value after `index`."""
    table = xp.asarray(values, dtype=x.dtype, device=_xp.beside(x))
    low = _xp.lookup(table, index, xp)
    high = _xp.lookup(table, xp.minimum(index + 1, xp.full_like(index, len(values) - 1)), xp)
    # The step is a power of two, so that both sides are exact. There is none after the last value.
    return xp.astype((noise * (high - low) < x - low) & (high > low), index.dtype)


def clip_to_codes(x: Array, element: Integer, xp: Namespace) -> Array:
    """Saturate rounded values to the codes of an integer format; NaN must be gone."""
    least, most, _ = limits_of(element)
    return xp.astype(_xp.clip(x, least, most, xp), _xp.dtype(xp, code_dtype(element)))


def to_values(codes: Array, element: NumberFormat, dtype: str, xp: Namespace) -> Array:
    """Give the values of codes.

    Parameters
    ----------
    codes : array of integers
        Codes of the format.
    element : NumberFormat
        The format.
    dtype : str
        "float32" or "float64".
    xp : namespace
        The array's.

    Returns
    -------
    array of dtype, shape of codes
    """
    if isinstance(element, Integer):
        return xp.astype(codes, _xp.dtype(xp, dtype))
    table = xp.asarray(values_of(element), dtype=_xp.dtype(xp, dtype), device=_xp.beside(codes))
    return _xp.lookup(table, codes, xp)
