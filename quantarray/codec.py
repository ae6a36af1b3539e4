"""Values to the codes of one number format, and back: rounding lives here."""

import math
from typing import Any, Literal

import numpy as np

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.formats import SMALLEST_NORMAL, Codebook, Float, Integer, NumberFormat

Mode = Literal["half_even", "half_away", "half_down", "toward_zero", "stochastic"]
MODES: tuple[Mode, ...] = ("half_even", "half_away", "half_down", "toward_zero", "stochastic")
# Beyond every integer code and zero point, where Inf may be clipped to.
BEYOND = float(1 << 20)


def code_dtype(element: NumberFormat) -> str:
    """Name the dtype of unpacked codes: signed for signed integers, unsigned for the rest."""
    signed = isinstance(element, Integer) and element.signed
    return f"{'' if signed else 'u'}int{8 if element.bits <= 8 else 16}"


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
    if mode in ("half_away", "half_down"):
        floor = xp.floor(xp.abs(x))
        # Adding 0.5 first would round the number just below a half up.
        rest = xp.abs(x) - floor
        up = rest >= 0.5 if mode == "half_away" else rest > 0.5
        return xp.copysign(_xp.where(up, floor + 1, floor, xp), x)
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
        A rounding mode; "down" or "up" to the next value; "half_down", in which a tie goes to the
        smaller value; or "up_log2", for powers of two: up to that of ceil(log2(x)) in float32.
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
    elif mode == "up_log2":
        # log2(x) rounds to log2(v) until it is half a step of float32 beyond.
        exponents = np.log2(v[:-1]).astype(np.float32)
        steps = np.nextafter(exponents, np.float32(np.inf)).astype(np.float64) - exponents
        between = _round_down(2.0 ** (exponents + steps / 2))
        inclusive = np.full(v.size - 1, False)
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


def _round_down(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give the next float32 at or below each float64."""
    nearest = x.astype(np.float32)
    return np.where(nearest > x, np.nextafter(nearest, np.float32(-np.inf)), nearest)


@_xp.constant
def codebook_ends(element: Codebook, dtype: str) -> np.ndarray[Any, Any]:
    """Give the largest number that each value of a codebook but the last is the code of.

    Parameters
    ----------
    element : Codebook
        The format.
    dtype : str
        "float32" or "float64".

    Returns
    -------
    numpy.ndarray of dtype, one fewer than values
        As many lie strictly below `x` as the place of its value in ascending order.
    """
    ends = thresholds(tuple(sorted(element.table)), "half_down", 1.0, dtype)
    if element.bins is None:
        return ends
    # The bin of `x` is trunc((x + 1) / 2 * (bins - 1) + 0.5), each step rounded to float32.
    one, half, last = np.float32(1), np.float32(0.5), np.float32(element.bins - 1)
    centres = np.arange(element.bins, dtype=np.float32) * np.float32(2) / last - one
    first = np.searchsorted(centres, ends, side="right")
    low, high = np.full(ends.size, -1.0, np.float32), np.full(ends.size, 1.0, np.float32)
    while np.any(np.nextafter(low, high) < high):
        middle = low + (high - low) / 2
        middle = np.where(middle > low, middle, np.nextafter(low, high))
        below = np.trunc((middle + one) * half * last + half) < first
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low.astype(dtype)


@_xp.constant
def limits_of(element: NumberFormat) -> tuple[float, float, float]:
    """Give a format's smallest and largest values, and its resolution."""
    return float(element.min), float(element.max), element.resolution


@_xp.constant
def code_limits(element: Integer) -> tuple[int, int]:
    """Give a format's smallest and largest codes."""
    return element.codes


@_xp.constant
def values_of(element: Float | Codebook) -> tuple[float, ...]:
    """Give the value of every code."""
    return element.table


@_xp.constant
def magnitudes_of(element: Float, mode: str, overflow: bool) -> tuple[float, ...]:
    """Give what magnitudes round to: the finite values, and one more where they may overflow.

    The code after that of the largest finite value is Inf, or NaN, and what is rounded to the value
    that it would have, were it finite, overflows. Rounding toward zero, only Inf itself does.
    """
    values = element.magnitudes
    if not overflow:
        return values
    return (*values, math.inf if mode == "toward_zero" else element.magnitude(len(values)))


def index_of(x: Array, between: np.ndarray[Any, Any], xp: Namespace) -> Array:
    """Count the thresholds strictly below each element; NaN counts as any number would."""
    table = xp.asarray(between, device=_xp.beside(x))
    return _xp.count_below(table, x, xp)


def to_codes(
    x: Array,
    element: NumberFormat,
    mode: Mode,
    noise: Array | None,
    xp: Namespace,
    overflow: bool = False,
) -> Array:
    """Round values to the codes of a number format, saturating.

    Parameters
    ----------
    x : array of float32 or float64
        Finite values; any if they may overflow.
    element : NumberFormat
        The format.
    mode : str
        One of `MODES`.
    noise : array or None
        As for `round_to_integer`.
    xp : namespace
        The array's.
    overflow : bool
        Whether what is too large becomes Inf, or NaN where the format has no Inf, instead: only for
        a `Float` with a NaN.

    Returns
    -------
    array of `code_dtype`, shape of x
    """
    if isinstance(element, Integer):
        scaled = x if element.steps == 1 else _xp.multiply(x, element.steps, xp)
        rounded = round_to_integer(scaled, mode, noise, xp)
        return clip_to_codes(rounded + element.origin if element.origin else rounded, element, xp)
    dtype = _xp.dtype_name(x.dtype)
    if isinstance(element, Codebook):
        index = index_of(x, codebook_ends(element, dtype), xp)
        if element.order == tuple(range(len(element.table))):
            return xp.astype(index, xp.uint8)
        order = xp.asarray(element.order, dtype=xp.uint8, device=_xp.beside(x))
        return _xp.lookup(order, index, xp)
    if mode == "half_even" and element.mantissa == 0:
        mode = "half_away"  # powers of two are all odd: ml_dtypes and torch take the larger
    values = magnitudes_of(element, mode, overflow)
    magnitude = xp.abs(x) if element.signed else x
    index = None
    if mode == "half_even":
        index = _xp.nearest_magnitude(magnitude, element, len(values) - 1, xp)
    if index is None:
        index = index_of(magnitude, thresholds(values, mode, 1.0, dtype), xp)
    if mode == "stochastic":
        index = index + _goes_up(magnitude, values, index, noise, xp)
    if overflow:
        # Without a sign, negative numbers and 0 have no code.
        lost = xp.isnan(x) if element.signed else ~(x > 0)
        index = _xp.where(lost, xp.full_like(index, element.nan), index, xp)
    if element.signed:
        half = 1 << (element.bits - 1)
        negative = xp.signbit(x)
        if element.specials == "nan_zero":  # neither 0 nor NaN, whose code is `half`, has a sign
            negative = negative & (index > 0) & (index < half)
        index = _xp.where(negative, index + half, index, xp)
    return xp.astype(index, _xp.dtype(xp, code_dtype(element)))


def _goes_up(
    x: Array, values: tuple[float, ...], index: Array, noise: Array | None, xp: Namespace
) -> Array:
    """Tell, as 0 or 1, where stochastic rounding goes to the value after `index`."""
    x = _xp.flush(x, SMALLEST_NORMAL[_xp.dtype_name(x.dtype)], xp)
    # There is no step after the last value, which may be more than float32 holds.
    low, step = (
        _xp.lookup(xp.asarray(table, dtype=x.dtype, device=_xp.beside(x)), index, xp)
        for table in ((*values[:-1], 0.0), (*np.diff(values).tolist(), 0.0))
    )
    # Steps are powers of two, so that both sides are exact.
    return xp.astype((noise * step < x - low) & (step > 0), index.dtype)


def clip_to_codes(x: Array, element: Integer, xp: Namespace) -> Array:
    """Saturate rounded values to the codes of an integer format; NaN must be gone."""
    least, most = code_limits(element)
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
        values = xp.astype(codes, _xp.dtype(xp, dtype))
        shift = element.origin - element.middle / 2
        values = values - shift if shift else values
        return values if element.steps == 1 else _xp.divide(values, element.steps, xp)
    table = xp.asarray(values_of(element), dtype=_xp.dtype(xp, dtype), device=_xp.beside(codes))
    return _xp.lookup(table, codes, xp)
