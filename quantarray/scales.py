"""The range of a block to its scale and zero point."""

from dataclasses import dataclass
from functools import reduce

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.blocks import Blocks
from quantarray.formats import LARGEST, SMALLEST_NORMAL
from quantarray.scheme import Scheme


@dataclass(frozen=True)
class Parameters:
    """What the codes of each block mean: a scale, and a zero point where the scheme has one.

    Both are floats of the arithmetic's dtype, with one entry per block.
    """

    scale: Array
    zero: Array | None


@dataclass(frozen=True)
class Range:
    """The smallest and largest element of each block; not finite where an element is not."""

    low: Array
    high: Array

    def finite(self, xp: Namespace) -> Array:
        """Tell which blocks hold finite elements only."""
        return xp.isfinite(self.low) & xp.isfinite(self.high)


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
    tiny, largest = SMALLEST_NORMAL[dtype], LARGEST[dtype]
    if scheme.scale.rule == "absmax":
        low, high = ranges.low, ranges.high
        scale = _xp.divide(xp.maximum(high, -low), scheme.scale.divisor, xp)
    else:
        low = _xp.flush(_xp.clip(ranges.low, -largest, 0.0, xp), tiny, xp)
        high = _xp.flush(_xp.clip(ranges.high, 0.0, largest, xp), tiny, xp)
        # The span of a finite block can overflow; that of its half cannot, and halving is exact.
        part = _xp.where(xp.maximum(high, -low) > largest / 2, xp.full_like(high, 0.5), 1.0, xp)
        scale = _xp.divide(high * part - low * part, scheme.scale.divisor * part, xp)
    empty = xp.maximum(high, -low) < tiny
    scale = _xp.where(empty, scheme.scale.zero_block, _xp.clip(scale, tiny, largest, xp), xp)
    zero = None
    if scheme.zero == "point":
        zero = xp.round(scheme.element.min - _xp.divide(low, scale, xp))
        zero = _xp.clip(zero, scheme.element.min, scheme.element.max, xp)
    return poison(Parameters(scale, zero), finite, xp)


def poison(parameters: Parameters, finite: Array | None, xp: Namespace) -> Parameters:
    """Give blocks that are not finite a NaN scale, which decodes to NaN, and the zero point 0."""
    if finite is None:
        return parameters
    zero = parameters.zero
    return Parameters(
        _xp.where(finite, parameters.scale, xp.nan, xp),
        None if zero is None else _xp.where(finite, zero, 0.0, xp),
    )
