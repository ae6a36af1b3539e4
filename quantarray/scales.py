"""The range of a block to its scale and zero point."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce

from quantarray import _xp, codec
from quantarray._xp import Array, Namespace
from quantarray.blocks import Blocks, Slices
from quantarray.formats import DTYPES, LARGEST, SMALLEST_NORMAL
from quantarray.scheme import Scale, Scheme


@dataclass(frozen=True)
class Parameters:
    """What the codes of each block mean: a scale, and a zero point or offset if the scheme has one.

    All are floats of the arithmetic's dtype with one entry per block, but for `stored`: the scales
    in the dtype, or as the codes, that the scheme stores.
    """

    scale: Array
    stored: Array
    zero: Array | None = None
    offset: Array | None = None

    def map(self, function: Callable[[Array], Array]) -> "Parameters":
        """Apply a function to each array."""
        arrays = (self.scale, self.stored, self.zero, self.offset)
        return Parameters(*(None if array is None else function(array) for array in arrays))

    def at(self, blocks: Slices) -> "Parameters":
        """Give those of some of the blocks."""
        return self.map(lambda array: array[blocks])


@dataclass(frozen=True)
class Range:
    """The smallest and largest element of each block; not finite where an element is not."""

    low: Array
    high: Array

    def within(self, limit: float, xp: Namespace) -> Array:
        """Tell which blocks hold only finite elements, none beyond a limit."""
        return xp.maximum(self.high, -self.low) <= limit  # false for NaN


def largest(scheme: Scheme, dtype: str) -> float:
    """Give the magnitude up to which the scheme can hold elements."""
    rule = scheme.scale
    if rule.format is None:
        return LARGEST[dtype]
    span = 1 if rule.rule == "absmax" else 2
    return min(LARGEST[dtype], rule.format.max * rule.divisor / span)


def stored_dtype(scheme: Scheme, dtype: str) -> str:
    """Name the dtype that scales are stored in, where arithmetic is done in `dtype`."""
    if scheme.scale.format is None:
        return dtype
    return next((name for name, f in DTYPES.items() if f == scheme.scale.format), "uint8")


def as_values(stored: Array, scheme: Scheme, dtype: str, xp: Namespace) -> Array:
    """Give the scales, in the dtype of the arithmetic, that are stored as they are or as codes."""
    if scheme.scale.format is None:
        return stored
    if stored_dtype(scheme, dtype) != "uint8":
        return xp.astype(stored, _xp.dtype(xp, dtype))
    return codec.to_values(stored, scheme.scale.format, dtype, xp)


def as_stored(scale: Array, scheme: Scheme, dtype: str, xp: Namespace) -> Array:
    """Give the stored form of scales: the nearest there is."""
    if scheme.scale.format is None:
        return scale
    name = stored_dtype(scheme, dtype)
    if name != "uint8":
        return xp.astype(scale, _xp.dtype(xp, name))
    return codec.to_codes(scale, scheme.scale.format, "half_even", None, xp)


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
    dtype, rule = _xp.dtype_name(ranges.low.dtype), scheme.scale
    tiny, limit = SMALLEST_NORMAL[dtype], LARGEST[dtype]
    low, high = ranges.low, ranges.high
    if rule.rule != "absmax":
        low = _xp.flush(
            _xp.clip(low, -limit, 0.0 if rule.rule == "minmax" else limit, xp), tiny, xp
        )
        high = _xp.flush(
            _xp.clip(high, 0.0 if rule.rule == "minmax" else -limit, limit, xp), tiny, xp
        )
    absmax = xp.maximum(high, -low)
    if stored_dtype(scheme, dtype) == "uint8":
        return poison(_derive_codes(absmax, rule, dtype, xp), finite, scheme, xp)
    if rule.rule == "absmax":
        extent, scale = absmax, _xp.divide(absmax, rule.divisor, xp)
    else:
        # The span of a finite block can overflow; that of its half cannot, and halving is exact.
        part = _xp.where(absmax > limit / 2, xp.full_like(high, 0.5), 1.0, xp)
        extent = high * part - low * part
        scale = _xp.divide(extent, rule.divisor * part, xp)
    least, most = tiny, limit
    if rule.format is not None:
        least, most = max(tiny, rule.format.magnitude(1)), min(limit, rule.format.max)
    scale = _xp.clip(scale, least, most, xp)
    scale = _xp.where(extent < tiny, rule.zero_block, scale, xp)
    stored = as_stored(scale, scheme, dtype, xp)
    scale = as_values(stored, scheme, dtype, xp)
    zero = None
    if scheme.zero == "point":
        zero = xp.round(scheme.element.min - _xp.divide(low, scale, xp))
        zero = _xp.clip(zero, scheme.element.min, scheme.element.max, xp)
    offset = None
    if scheme.zero == "offset":
        offset = _xp.where(low == 0, 0.0, low, xp)  # whose zero is the smaller differs
    return poison(Parameters(scale, stored, zero, offset), finite, scheme, xp)


def _derive_codes(absmax: Array, rule: Scale, dtype: str, xp: Namespace) -> Parameters:
    """Derive scales that are stored as codes of a small float format."""
    assert rule.format is not None
    values, tiny = rule.format.magnitudes, SMALLEST_NORMAL[dtype]
    # The quotient is compared as absmax with multiples of the divisor, which is exact.
    between = codec.thresholds(values, rule.rounding, rule.divisor, dtype)
    code = codec.index_of(absmax, between, xp)
    least = next(i for i, value in enumerate(values) if value >= tiny)
    code = _xp.where(code < least, xp.full_like(code, least), code, xp)
    zero_block = xp.full_like(code, values.index(rule.zero_block))
    code = _xp.where(absmax < tiny, zero_block, code, xp)
    scale = codec.to_values(code, rule.format, dtype, xp)
    return Parameters(scale, xp.astype(code, xp.uint8))


def poison(
    parameters: Parameters, finite: Array | None, scheme: Scheme, xp: Namespace
) -> Parameters:
    """Give blocks that are not finite a NaN scale, which decodes to NaN, and zero for the rest."""
    if finite is None:
        return parameters
    nan: float = math.nan
    if parameters.stored.dtype == xp.uint8:
        assert scheme.scale.format is not None
        assert scheme.scale.format.nan is not None
        nan = scheme.scale.format.nan
    settled = parameters.map(lambda array: _xp.where(finite, array, xp.zeros_like(array), xp))
    return replace(
        settled,
        scale=_xp.where(finite, parameters.scale, math.nan, xp),
        stored=_xp.where(finite, parameters.stored, xp.full_like(parameters.stored, nan), xp),
    )
