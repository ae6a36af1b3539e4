"""The range of a block to its scale and zero point."""

from dataclasses import dataclass
from functools import reduce

from quantarray import _xp, codec
from quantarray._xp import Array, Namespace
from quantarray.blocks import Blocks
from quantarray.formats import LARGEST, SMALLEST_NORMAL
from quantarray.scheme import Scale, Scheme


@dataclass(frozen=True)
class Parameters:
    """What the codes of each block mean: a scale, and a zero point where the scheme has one.

    Both are floats of the arithmetic's dtype, with one entry per block; `stored` holds the codes of
    the scales where the scheme stores those, and otherwise the scales.
    """

    scale: Array
    zero: Array | None
    stored: Array


@dataclass(frozen=True)
class Range:
    """The smallest and largest element of each block; not finite where an element is not."""

    low: Array
    high: Array

    def within(self, limit: float, xp: Namespace) -> Array:
        """Tell which blocks hold only finite elements, none beyond a limit."""
        return (self.low >= -limit) & (self.high <= limit) & (self.high == self.high)


def largest(scheme: Scheme, dtype: str) -> float:
    """Give the magnitude up to which the scheme can hold elements."""
    if scheme.scale.format is None:
        return LARGEST[dtype]
    return min(LARGEST[dtype], scheme.scale.format.max * scheme.element.max)


def measure(x: Array, blocks: Blocks, xp: Namespace) -> Range:
    """Find the range of each block.

    Parameters
    ----------
    x : array of float32 or float64, shape ``blocks.shape``
        Values, not empty.
    blocks : Blocks
        Which elements share a scale.
    xp : namespace
        The array's.

    Returns
    -------
    Range
        Two arrays, of shape ``blocks.grid``.
    """
    view, axes = blocks.split(x, xp), blocks.axes
    if not axes:
        return Range(x, x)
    low, high = _xp.extremes(view, axes, xp)
    if blocks.grid == blocks.spread_view:
        return Range(low, high)
    return Range(xp.reshape(low, blocks.grid), xp.reshape(high, blocks.grid))


def join(ranges: list[Range], xp: Namespace) -> Range:
    """Find the range of blocks that were measured in parts."""
    return reduce(lambda a, b: Range(xp.minimum(a.low, b.low), xp.maximum(a.high, b.high)), ranges)


def derive(ranges: Range, finite: Array | None, scheme: Scheme, xp: Namespace) -> Parameters:
    """Derive each block's scale and zero point from its range.

    Parameters
    ----------
    ranges : Range
        Of every block.
    finite : array of bool, or None
        Which of them are finite; None if all are known to be.
    scheme : Scheme
        Its rule.
    xp : namespace
        The arrays'.

    Returns
    -------
    parameters : Parameters
        A block that is not finite has a NaN scale and the zero point 0. A block whose elements are
        all zero or subnormal has the scheme's scale of a zero block. No other scale is subnormal.
    """
    dtype = _xp.dtype_name(ranges.low.dtype)
    tiny, limit = SMALLEST_NORMAL[dtype], LARGEST[dtype]
    divisor = scheme.scale.divisor
    if scheme.scale.rule == "absmax":
        low, high = ranges.low, ranges.high
        absmax = xp.maximum(high, -low)
    else:
        low = _xp.flush(_xp.clip(ranges.low, -limit, 0.0, xp), tiny, xp)
        high = _xp.flush(_xp.clip(ranges.high, 0.0, limit, xp), tiny, xp)
        absmax = xp.maximum(high, -low)
    empty = absmax < tiny
    if scheme.scale.format is not None:
        return poison(_derive_stored(absmax, empty, scheme.scale, dtype, xp), finite, scheme, xp)
    if scheme.scale.rule == "absmax":
        scale = _xp.divide(absmax, divisor, xp)
    else:
        # The span of a finite block can overflow; that of its half cannot, and halving is exact.
        part = _xp.where(absmax > limit / 2, xp.full_like(high, 0.5), 1.0, xp)
        scale = _xp.divide(high * part - low * part, divisor * part, xp)
    scale = _xp.where(empty, scheme.scale.zero_block, _xp.clip(scale, tiny, limit, xp), xp)
    zero = None
    if scheme.zero == "point":
        zero = xp.round(scheme.element.min - _xp.divide(low, scale, xp))
        zero = _xp.clip(zero, scheme.element.min, scheme.element.max, xp)
    return poison(Parameters(scale, zero, scale), finite, scheme, xp)


def _derive_stored(
    absmax: Array, empty: Array, rule: Scale, dtype: str, xp: Namespace
) -> Parameters:
    assert rule.format is not None
    values = rule.format.magnitudes
    # The quotient is compared as absmax with multiples of the divisor, which is exact.
    between = codec.thresholds(values, rule.rounding, rule.divisor, dtype)
    code = codec.index_of(absmax, between, xp)
    least = next(i for i, value in enumerate(values) if value >= SMALLEST_NORMAL[dtype])
    code = _xp.where(code < least, xp.full_like(code, least), code, xp)
    code = _xp.where(empty, xp.full_like(code, values.index(rule.zero_block)), code, xp)
    scale = codec.to_values(code, rule.format, dtype, xp)
    return Parameters(scale, None, xp.astype(code, xp.uint8))


def poison(
    parameters: Parameters, finite: Array | None, scheme: Scheme, xp: Namespace
) -> Parameters:
    """Give blocks that are not finite a NaN scale, which decodes to NaN, and the zero point 0."""
    if finite is None:
        return parameters
    scale, zero = parameters.scale, parameters.zero
    scale = _xp.where(finite, scale, xp.nan, xp)
    stored = scale
    if scheme.scale.format is not None:
        nan = xp.full_like(parameters.stored, scheme.scale.format.nan or 0)
        stored = _xp.where(finite, parameters.stored, nan, xp)
    return Parameters(scale, None if zero is None else _xp.where(finite, zero, 0.0, xp), stored)
