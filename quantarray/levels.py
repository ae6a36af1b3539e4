"""Scales that are quantized themselves: two levels of scales."""

import math

from quantarray import _xp, codec
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import Arithmetic, plain
from quantarray.blocks import Blocks, resolve
from quantarray.formats import Float
from quantarray.parameters import Outer, Parameters, least_scale, nan_of, poison, zero_block_scale
from quantarray.scheme import Scale, Scheme
from quantarray.sums import mean_magnitude


def outer_blocks(scheme: Scheme, grid: tuple[int, ...]) -> Blocks:
    """Give the blocks of the array of scales."""
    assert scheme.scale.outer is not None
    return resolve("quantize", scheme.scale.outer.block, grid)


def _per_scale(outer: Array, grid: tuple[int, ...], scheme: Scheme, xp: Namespace) -> Array:
    """Give every scale the entry of its block of scales."""
    blocks = outer_blocks(scheme, grid)
    if math.prod(blocks.grid) == 1:
        return xp.reshape(outer, (1,) * len(grid))
    whole = xp.broadcast_to(blocks.spread(outer, xp), blocks.view)
    return xp.reshape(blocks.merge(whole, xp), grid)


def effective(values: Array, outer: Outer, scheme: Scheme, xp: Namespace) -> Array:
    """Apply the scales of scales."""
    assert scheme.scale.outer is not None
    math_ = plain(values, xp)
    scale = _per_scale(outer.scale, values.shape, scheme, xp)
    if scheme.scale.outer.scale.stored == "absmax":
        scale = math_.divide(scale, scheme.scale.outer.scale.divisor)
    if scheme.scale.outer.scale.stored == "reciprocal":
        return math_.flush(math_.divide(values, scale))
    values = math_.flush(math_.multiply(values, scale))
    return values if outer.offset is None else values + outer.offset


def at_least(code: Array, zero: Array, rule: Scale, math_: Arithmetic) -> Array:
    """Keep codes of scales from being too small, and give zero blocks theirs."""
    assert isinstance(rule.coded, Float)
    xp, values = math_.xp, rule.coded.magnitudes
    least, zero_block = (
        next(i for i, value in enumerate(values) if value >= wanted)
        for wanted in (least_scale(rule, math_), zero_block_scale(rule, math_))
    )
    code = _xp.where(code < least, xp.full_like(code, least), code, xp)
    return _xp.where(zero, xp.full_like(code, zero_block), code, xp)


def derive(absmax: Array, finite: Array | None, scheme: Scheme, math_: Arithmetic) -> Parameters:
    """Derive scales that are quantized themselves, and the scales of those."""
    xp, rule, outer_scheme = math_.xp, scheme.scale, scheme.scale.outer
    assert outer_scheme is not None
    if finite is not None:
        absmax = _xp.where(finite, absmax, 0.0, xp)
    zero_block = absmax < math_.tiny
    absmax = _xp.where(zero_block, 0.0, absmax, xp)
    unrounded = math_.divide(absmax, rule.divisor)
    outer, quotient = _derive_outer(absmax, unrounded, finite, scheme, math_)
    if isinstance(rule.coded, Float):
        quotient = _xp.clip(quotient, least_scale(rule, math_), rule.coded.max, xp)
    code = codec.to_codes(quotient, outer_scheme.element, "half_even", None, xp)
    if outer_scheme.rounding.zero_scale == "first":
        nothing = _per_scale(outer.scale, code.shape, scheme, xp) == 0
        code = _xp.where(nothing, xp.zeros_like(code), code, xp)
    if isinstance(rule.coded, Float):
        code = at_least(code, zero_block | (code == 0), rule, math_)
    values = codec.to_values(code, outer_scheme.element, math_.dtype, xp)
    scale, inverse, inner = unrounded, None, None
    if rule.codes_from == "stored":
        scale = effective(values, outer, scheme, xp)
        if scheme.rounding.quotient == "reciprocal":
            one_over = math_.divide(xp.ones_like(outer.scale), outer.scale)
            one_over = _xp.clip(one_over, 0.0, math_.limit * least_scale(rule, math_), xp)
            inverse = math_.divide(_per_scale(one_over, code.shape, scheme, xp), values)
    if outer_scheme.scale.stored == "absmax":
        inner, extent = values, _per_scale(outer.scale, code.shape, scheme, xp)
        inverse = xp.zeros_like(values) + _over(outer_scheme.scale.divisor, extent, math_)
    found = Parameters(scale, code, inverse=inverse, inner=inner, outer=outer)
    return poison(found, finite, scheme, xp)


def _derive_outer(
    absmax: Array, unrounded: Array, finite: Array | None, scheme: Scheme, math_: Arithmetic
) -> tuple[Outer, Array]:
    """Derive the scales of scales, and what is left of the scales for their codes."""
    outer = scheme.scale.outer
    assert outer is not None
    xp, rule, blocks = math_.xp, outer.scale, outer_blocks(scheme, tuple(absmax.shape))
    offset = None
    if outer.zero == "mean":
        whole = Blocks(tuple(absmax.shape), tuple(absmax.shape))
        offset = mean_magnitude(unrounded, xp.reshape(xp.max(absmax), whole.grid), whole, math_)
        absmax = math_.subtract(absmax, offset)
        unrounded = absmax
    scale = _scale_of(_largest_of(xp.abs(absmax), blocks, xp), rule, math_)
    spread = _per_scale(scale, absmax.shape, scheme, xp)
    safe = _xp.where(spread == 0, 1.0, spread, xp)
    if rule.stored == "absmax":
        quotient = math_.multiply(unrounded, _over(rule.divisor, spread, math_))
    elif rule.stored == "reciprocal":
        quotient = math_.multiply(unrounded, spread)
    elif outer.rounding.quotient == "reciprocal":
        quotient = math_.by_reciprocal(unrounded, safe)
    else:
        quotient = math_.divide(unrounded, safe)
    if finite is not None and nan_of(scheme) is None:
        # All that can tell is the scale of the block of scales.
        bad = _largest_of(_xp.where(finite, xp.zeros_like(absmax), 1.0, xp), blocks, xp) > 0
        scale = _xp.where(bad, math.nan, scale, xp)
    return Outer(scale, offset), quotient


def _scale_of(extent: Array, rule: Scale, math_: Arithmetic) -> Array:
    """Give the scale, or what is stored instead, of a block of scales."""
    xp, zero_block = math_.xp, zero_block_scale(rule, math_)
    if rule.stored == "scale":
        least = least_scale(rule, math_)
        scale = _xp.clip(math_.divide(extent, rule.divisor), least, math_.limit, xp)
        return _xp.where(extent < math_.tiny, zero_block, scale, xp)
    held = extent > rule.divisor / math_.limit
    if rule.stored == "absmax":
        return _xp.where(held, extent, zero_block, xp)
    safe = _xp.where(held, extent, 1.0, xp)
    inverse = math_.reciprocal(safe, rule.divisor)
    quotient = _over(rule.divisor, safe, math_)
    # The second where 1 / safe would be subnormal.
    scale = _xp.where(safe > 1 / math_.tiny, quotient, inverse, xp)
    return _xp.where(held, scale, zero_block, xp)


def _over(divisor: float, extent: Array, math_: Arithmetic) -> Array:
    return math_.divide(math_.xp.full_like(extent, divisor), extent)


def _largest_of(per_block: Array, blocks: Blocks, xp: Namespace) -> Array:
    view = blocks.split(xp.reshape(per_block, blocks.shape), xp)
    return xp.reshape(xp.max(view, axis=blocks.axes, keepdims=True), blocks.grid)
