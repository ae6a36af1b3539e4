"""The range of a block to its scale and zero point."""

from functools import reduce

from quantarray import _xp, codec, levels
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import Arithmetic, plain
from quantarray.blocks import Blocks
from quantarray.formats import LARGEST, Float, Integer
from quantarray.parameters import (
    Outer,
    Parameters,
    Range,
    least_scale,
    poison,
    stored_dtype,
    zero_block_scale,
)
from quantarray.scheme import Scale, Scheme
from quantarray.sums import mean_magnitude


def largest(scheme: Scheme, dtype: str) -> float:
    """Give the magnitude up to which the scheme can hold elements."""
    rule, limit = scheme.scale, LARGEST[dtype]
    if rule.rule == "edge":
        return limit / 2
    span = 2 if rule.rule in ("minmax", "range") else 1
    held = rule.format.max if isinstance(rule.format, Float) else limit
    # The scale of a power of two that is rounded down reaches the next one.
    reach = 2 if rule.rounding == "down" else 1
    return min(limit, held / span * rule.divisor * reach) if rule.outer is None else limit


def as_values(
    stored: Array, scheme: Scheme, dtype: str, xp: Namespace, outer: Outer | None = None
) -> Array:
    """Give the scales, in the dtype of the arithmetic, that are stored as they are or as codes."""
    coded = scheme.scale.coded
    if coded is None:
        return _xp.cast(stored, dtype, xp)
    values = codec.to_values(stored, coded, dtype, xp)
    return values if outer is None else levels.effective(values, outer, scheme, xp)


def as_stored(scale: Array, scheme: Scheme, dtype: str, xp: Namespace) -> Array:
    """Give the stored form of scales: the nearest there is."""
    if scheme.scale.coded is None:
        return _xp.cast(scale, stored_dtype(scheme, dtype), xp)
    return codec.to_codes(scale, scheme.scale.coded, "half_even", None, xp)


def measure(x: Array, blocks: Blocks, scheme: Scheme, xp: Namespace) -> Range:
    """Find the range of each block.

    Parameters
    ----------
    x : array of float32 or float64, shape ``blocks.shape``
        Values, not empty.
    blocks : Blocks
        Which elements share a scale.
    scheme : Scheme
        Whose rule may ask for more than the range.
    xp : namespace
        The array's.

    Returns
    -------
    Range
        Arrays of shape ``blocks.grid``.
    """
    view, axes = blocks.split(x, xp), blocks.axes
    low = high = x
    if axes:
        low, high = _xp.extremes(view, axes, xp)
        if blocks.grid != blocks.spread_view:
            low, high = xp.reshape(low, blocks.grid), xp.reshape(high, blocks.grid)
    if scheme.scale.rule != "absmean":
        return Range(low, high)
    return Range(low, high, mean_magnitude(x, xp.maximum(high, -low), blocks, plain(x, xp)))


def join(ranges: list[Range], xp: Namespace) -> Range:
    """Find the range of blocks that were measured in parts."""
    return reduce(
        lambda a, b: Range(xp.minimum(a.low, b.low), xp.maximum(a.high, b.high), a.mean), ranges
    )


def derive(
    ranges: Range, finite: Array | None, scheme: Scheme, math_: Arithmetic, dtype: str
) -> Parameters:
    """Derive each block's scale and zero point from its range.

    Parameters
    ----------
    ranges : Range
        Of every block.
    finite : array of bool, or None
        Which of them are finite; None if all are known to be.
    scheme : Scheme
        Its rule.
    math_ : Arithmetic
        On the ranges' dtype.
    dtype : str
        Of the input.

    Returns
    -------
    parameters : Parameters
        A block that is not finite has a NaN scale and the zero point 0. A block whose elements are
        all zero or subnormal has the scheme's scale of a zero block.
    """
    xp, rule = math_.xp, scheme.scale
    low, high = ranges.low, ranges.high
    if rule.rule != "absmax":
        bound = 0.0 if rule.rule == "minmax" else math_.limit
        low = math_.flush(_xp.clip(low, -math_.limit, bound, xp))
        high = math_.flush(_xp.clip(high, -bound, math_.limit, xp))
    absmax = xp.maximum(high, -low)
    if rule.outer is not None:
        return levels.derive(absmax, finite, scheme, math_)
    if rule.coded is not None:
        return poison(_derive_codes(absmax, rule, math_), finite, scheme, xp)
    extent, scale = _extent_and_scale(Range(low, high, ranges.mean), absmax, rule, math_)
    least, most = least_scale(rule, math_), math_.limit
    if isinstance(rule.format, Float):
        least, most = max(least, rule.format.magnitude(1)), min(most, rule.format.max)
    scale = _xp.clip(scale, least, most, xp)
    nothing = extent < math_.tiny
    if least < math_.tiny:
        scale = math_.flush(scale)
        nothing = nothing | (scale == 0)
    scale = _xp.where(nothing, zero_block_scale(rule, math_), scale, xp)
    offset = None
    if scheme.zero == "edge":
        scale, offset = _edge(Range(low, high), scale, math_)
    elif scheme.zero == "offset":
        offset = _xp.where(low == 0, 0.0, low, xp)  # whose zero is the smaller differs
    stored = as_stored(scale, scheme, dtype, xp)
    if rule.codes_from == "stored":
        scale = as_values(stored, scheme, math_.dtype, xp)
    zero = _zero_point(low, absmax, scale, scheme, math_)
    return poison(Parameters(scale, stored, zero, offset), finite, scheme, xp)


def _extent_and_scale(
    ranges: Range, absmax: Array, rule: Scale, math_: Arithmetic
) -> tuple[Array, Array]:
    """Give what is zero in a zero block, and that over the divisor."""
    xp, low, high = math_.xp, ranges.low, ranges.high
    if rule.rule == "one":
        return xp.ones_like(absmax), xp.ones_like(absmax)
    if rule.rule in ("absmax", "absmean"):
        extent = absmax if ranges.mean is None else ranges.mean
        return extent, math_.divide(extent, rule.divisor)
    # The span of a finite block can overflow; that of its half cannot, and halving is exact.
    part = _xp.where(absmax > math_.limit / 2, xp.full_like(high, 0.5), 1.0, xp)
    extent = math_.subtract(high * part, low * part)
    return extent, math_.divide(extent, rule.divisor * part)


def _edge(ranges: Range, scale: Array, math_: Arithmetic) -> tuple[Array, Array]:
    """Fit a scale so that a whole number of it is the end with the larger magnitude."""
    xp, low, high = math_.xp, ranges.low, ranges.high
    below = -low > xp.abs(high)
    scale = _xp.where(below, scale, -scale, xp)
    edge = _xp.where(below, low, high, xp)
    steps = xp.round(math_.divide(edge, scale))
    exact = steps != 0
    fitted = math_.divide(edge, _xp.where(exact, steps, 1.0, xp))
    return _xp.where(exact, fitted, scale, xp), _xp.where(exact, edge, 0.0, xp)


def _zero_point(
    low: Array, absmax: Array, scale: Array, scheme: Scheme, math_: Arithmetic
) -> Array | None:
    if scheme.zero_kind != "point":
        return None
    assert isinstance(scheme.element, Integer)
    least, most = codec.code_limits(scheme.element)
    if scheme.zero == "midpoint":
        return math_.xp.full_like(scale, float((least + most + 1) // 2))
    zero = math_.xp.round(math_.subtract(float(least), math_.divide(low, scale)))
    zero = _xp.clip(zero, float(least), float(most), math_.xp)
    return _xp.where(absmax < math_.tiny, 0.0, zero, math_.xp)


def _derive_codes(absmax: Array, rule: Scale, math_: Arithmetic) -> Parameters:
    """Derive scales that are stored as codes of a small float format."""
    assert isinstance(rule.coded, Float)
    xp, values = math_.xp, rule.coded.magnitudes
    if rule.rounding == "half_even":
        quotient = _xp.clip(math_.divide(absmax, rule.divisor), 0.0, rule.coded.max, xp)
        code = codec.to_codes(quotient, rule.coded, "half_even", None, xp)
    elif rule.rounding == "up_log2":
        between = codec.thresholds(values, rule.rounding, 1.0, math_.dtype)
        code = codec.index_of(math_.divide(absmax, rule.divisor), between, xp)
    else:
        # The quotient is compared as absmax with multiples of the divisor, which is exact.
        between = codec.thresholds(values, rule.rounding, rule.divisor, math_.dtype)
        code = codec.index_of(absmax, between, xp)
    code = levels.at_least(code, absmax < math_.tiny, rule, math_)
    return Parameters(codec.to_values(code, rule.coded, math_.dtype, xp), xp.astype(code, xp.uint8))
