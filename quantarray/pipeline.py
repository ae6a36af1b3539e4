"""The pipeline: blocks, range to scale, values to codes, pack.

A kernel does all of it in one pass where there is one. Otherwise everything is array-API code on
whole arrays. NumPy arrays go through it in pieces that fit a cache, so that no temporary reaches
the array's size; the pieces change no bit of the result.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from quantarray import _xp, arguments, codec, counter, kernels, scales, storage
from quantarray._xp import Array
from quantarray.blocks import Blocks, Part, Slices, pieces, whole
from quantarray.errors import QuantArrayError
from quantarray.formats import Integer
from quantarray.gguf import rows
from quantarray.levels import outer_blocks
from quantarray.parameters import Outer, Parameters, Range, poison
from quantarray.task import PIECE, Result, Task, result


def quantize(x: Array, task: Task) -> Result:
    """Quantize an array.

    Parameters
    ----------
    x : array of a floating dtype, shape ``task.blocks.shape``
        At least 1-d.
    task : Task
        What to do.

    Returns
    -------
    Result
        `data` of ``task.data_shape``, the others of ``task.blocks.grid``.

    Raises
    ------
    QuantArrayError
        If `x` is concrete, not finite, and the task says "raise".
    """
    record = task.scheme.record
    if record is not None:
        return Result(rows.encode("quantize", x, record, None, task.nonfinite, task.xp), None)
    if 0 in x.shape:
        return _empty(x, task)
    found = kernels.quantize(x, task, quantize)
    return _generic(x, task) if found is None else found


def _generic(x: Array, task: Task) -> Result:
    if not task.in_pieces:
        everything = whole(x.shape)
        parts = [(everything, task.blocks)]
        parameters = _settle(_measure(x, parts, task), x, task.given, task)
        codes = _encode(x, everything, task.blocks, parameters, task)
        return result(storage.from_rows(codes, task), parameters, task)
    shape = task.data_shape(x.shape) if task.in_rows else x.shape
    data = np.empty(shape, storage.row_dtype(task))
    levels = task.given is None and task.scheme.scale.outer is not None
    found = _levels(x, task) if levels else _ones(task, None)
    for blocks_at, parts in pieces(task.blocks, PIECE, task.multiple):
        if levels:
            parameters = found.at(blocks_at)
        else:
            given = task.given and task.given.at(blocks_at)
            parameters = _settle(_measure(x, parts, task), x, given, task)
            for name, array in vars(parameters).items():
                if array is not None:
                    getattr(found, name)[blocks_at] = array
        for at, blocks in parts:
            data[task.rows_where(at)] = _encode(x[at], at, blocks, parameters, task)
    return result(storage.from_rows(data, task), found, task)


def _levels(x: Array, task: Task) -> Parameters:
    """Find the parameters of all blocks at once, whose scales have scales of their own."""
    low, high = (np.empty(task.blocks.grid, task.arithmetic.dtype) for _ in range(2))
    for blocks_at, parts in pieces(task.blocks, PIECE, task.multiple):
        found = _measure(x, parts, task)
        low[blocks_at], high[blocks_at] = found.low, found.high
    return _settle(Range(low, high), x, None, task)


def _empty(x: Array, task: Task) -> Result:
    """Quantize an array without elements: there are no blocks unless they were given."""
    xp, place = task.xp, _xp.beside(x)
    data = xp.zeros(x.shape, dtype=_xp.dtype(xp, codec.code_dtype(task.element)), device=place)
    return result(_stored(data, task), task.given or _ones(task, place), task)


def _ones(task: Task, place: Any) -> Parameters:
    """Give parameters for every block, to be overwritten if there are any."""
    xp, scheme, name = task.xp, task.scheme, task.arithmetic.dtype
    dtype = _xp.dtype(xp, name)
    scale = xp.ones(task.blocks.grid, dtype=dtype, device=place)
    outer = None
    if scheme.scale.outer is not None:
        grid = outer_blocks(scheme, task.blocks.grid).grid
        one = xp.ones(grid, dtype=dtype, device=place)
        mean = xp.zeros((1,) * len(task.blocks.grid), dtype=dtype, device=place)
        outer = Outer(one, mean if scheme.scale.outer.zero == "mean" else None)
    return Parameters(
        scale,
        scales.as_stored(scale, scheme, task.dtype, xp),
        scale * 0 if scheme.zero_kind == "point" else None,
        scale * 0 if scheme.zero_kind == "offset" else None,
        outer=outer,
    )


def _measure(x: Array, parts: list[Part], task: Task) -> Range:
    """Find the ranges of blocks, each of which lies in one part or is cut into all of them."""
    xp, ranges = task.xp, []
    for at, blocks in parts:
        values = task.working(x if blocks.shape == x.shape else x[at])
        if task.nonfinite == "saturate":
            values = _xp.where(xp.isfinite(values), values, 0.0, xp)
        ranges.append(scales.measure(values, blocks, task.scheme, xp))
    return scales.join(ranges, xp)


def _settle(found: Range, x: Array, given: Parameters | None, task: Task) -> Parameters:
    """Derive parameters from ranges, or take those that were given, and refuse or poison blocks."""
    xp = task.xp
    limit = scales.largest(task.scheme, task.arithmetic.dtype)
    finite: Array | None = found.within(limit, xp)
    if task.nonfinite == "raise" and task.concrete:
        if not bool(xp.all(finite)):
            arguments.check_finite("quantize", x, xp)
            raise QuantArrayError(
                f"quantize: x has elements beyond {limit:g}, which is all that the scales of "
                f"{task.scheme.name} can reach: expected smaller ones, or another scheme"
            )
        finite = None
    if given is None:
        return scales.derive(found, finite, task.scheme, task.arithmetic, task.dtype)
    return given if task.nonfinite == "saturate" else poison(given, finite, task.scheme, xp)


def _encode(x: Array, at: Slices, blocks: Blocks, parameters: Parameters, task: Task) -> Array:
    """Encode one part, whose place in the whole array is `at`, and pack it if that is in rows."""
    xp, math_ = task.xp, task.arithmetic
    spread = parameters.spread(blocks, xp)
    values = task.working(x)
    noise = None
    if task.key is not None:
        noise = blocks.split(counter.uniform(task.key, task.blocks.shape, at, values, xp), xp)
    view = blocks.split(values, xp)
    _, _, resolution = codec.limits_of(task.element)
    # A subnormal number can be more than the code of zero only where the scale is this small, or
    # where something is added to it; where -0.0 is special, so would be what libraries take for it.
    rounding = task.scheme.rounding
    added = spread.offset is not None or rounding.zero_added == "before"
    special = added or rounding.negative_zero == "rounded"
    small = special or not (
        task.concrete and bool(xp.min(xp.abs(spread.scale)) * resolution >= math_.tiny)
    )
    if small:
        view = math_.flush(view)
    if spread.offset is not None:
        view, spread = _shift(view, spread, small, task)
    codes = blocks.merge(_codes(view, spread, _tail(x, at, blocks, task), noise, task), xp)
    return storage.to_rows(codes, task)


def _tail(x: Array, at: Slices, blocks: Blocks, task: Task) -> Array | None:
    """Tell which blocks of a part are cut short by the end of the array, if that matters."""
    if task.scheme.rounding.quotient != "but_tail":
        return None
    extents = task.blocks.extents
    counts = task.blocks.counts()
    short = counts < (task.scheme.block.flat or math.prod(extents))
    if not short.any():
        return None
    grid = tuple(slice(s.start // e, -(-s.stop // e)) for s, e in zip(at, extents, strict=True))
    return blocks.spread(task.xp.asarray(short[grid], device=_xp.beside(x)), task.xp)


def _shift(
    view: Array, parameters: Parameters, small: bool, task: Task
) -> tuple[Array, Parameters]:
    """Subtract the offset, halving all where the difference could overflow."""
    xp, math_, scale = task.xp, task.arithmetic, parameters.scale
    large = scale > math_.limit / 4 / task.scheme.scale.divisor
    half = _xp.where(large, xp.full_like(scale, 0.5), 1.0, xp)
    difference = _xp.multiply(view, half, xp) - _xp.multiply(parameters.offset, half, xp)
    if small:
        difference = math_.flush(difference)
    return difference, replace(parameters, scale=scale * half)


def _stored(codes: Array, task: Task) -> Array:
    return storage.from_rows(storage.to_rows(codes, task), task)


def store(codes: Array, task: Task) -> Result:
    """Store codes that exist already, with the parameters the task was given.

    Parameters
    ----------
    codes : array of integers, shape ``task.blocks.shape``
        Codes of the element format.
    task : Task
        With `given`.

    Returns
    -------
    Result
    """
    assert task.given is not None
    codes = task.xp.astype(codes, _xp.dtype(task.xp, codec.code_dtype(task.element)))
    return result(_stored(codes, task), task.given, task)


def _codes(
    view: Array, parameters: Parameters, tail: Array | None, noise: Array | None, task: Task
) -> Array:
    """Divide by the scale, round, and add the zero point, in the order the scheme says."""
    xp, element, rounding, math_ = task.xp, task.element, task.scheme.rounding, task.arithmetic
    quotient = _quotient(view, parameters, tail, task)
    if task.inside:
        rounded = codec.round_to_integer(quotient, rounding.mode, noise, xp)
        return xp.astype(rounded, _xp.dtype(xp, codec.code_dtype(element)))
    if not isinstance(element, Integer):
        if codec.limits_of(element)[2] == 0 or rounding.negative_zero == "rounded":
            quotient = math_.flush(quotient)  # the smallest numbers have codes of their own
        if rounding.negative_zero == "rounded":
            quotient = _xp.where(quotient == 0, 0.0, quotient, xp)
        codes = codec.to_codes(quotient, element, rounding.mode, noise, xp)
        if rounding.negative_zero == "never":
            codes = _xp.where(codes == 1 << (element.bits - 1), xp.zeros_like(codes), codes, xp)
        if rounding.zero_scale == "first":
            codes = _xp.where(parameters.scale == 0, xp.zeros_like(codes), codes, xp)
        return codes
    zero = parameters.zero if parameters.zero is not None else element.origin or None
    if zero is not None and rounding.zero_added == "before":
        quotient = math_.add(quotient, zero)
    rounded = codec.round_to_integer(quotient, rounding.mode, noise, xp)
    if zero is not None and rounding.zero_added == "after":
        rounded = rounded + zero
    return codec.clip_to_codes(rounded, element, xp)


def _quotient(view: Array, parameters: Parameters, tail: Array | None, task: Task) -> Array:
    """Give elements in units of their codes."""
    xp, scale = task.xp, parameters.scale
    if task.given is None and task.concrete and task.nonfinite == "raise":
        # Known to be finite, and to stay in the element's range.
        return _divide(view, parameters, tail, task)
    # Inf, and what would overflow, must not meet the division; NaN is the code of 0.
    beyond = xp.abs(view) * (1 / codec.BEYOND) > xp.abs(scale)
    inner = _xp.where(beyond, 0.0, view, xp)
    quotient = _divide(inner, parameters, tail, task)
    quotient = _xp.where(xp.isnan(quotient), 0.0, quotient, xp)
    signed = _xp.where(scale < 0, -view, view, xp)
    return _xp.where(beyond, xp.copysign(xp.full_like(view, codec.BEYOND), signed), quotient, xp)


def _divide(view: Array, parameters: Parameters, tail: Array | None, task: Task) -> Array:
    xp, math_, scale = task.xp, task.arithmetic, parameters.scale
    steps = task.element.steps if isinstance(task.element, Integer) else 1.0
    if parameters.inner is not None:
        inner = _xp.where(parameters.inner == 0, 1.0, parameters.inner, xp)
        view = math_.divide(view, inner)
    if parameters.inverse is not None:
        return math_.multiply(view, parameters.inverse)
    if task.scheme.scale.least is not None or task.scheme.scale.outer is not None:
        # A scale of 0 or a subnormal one, which some libraries take for 0, divides nothing.
        scale = _xp.where(xp.abs(scale) < math_.tiny, math_.tiny, scale, xp)
    product = None
    if task.scheme.rounding.quotient != "divide":
        product = math_.by_reciprocal(view, scale, steps)
        if tail is None:
            return product
    quotient = math_.divide(view, scale)
    quotient = quotient if steps == 1 else math_.multiply(quotient, steps)
    return quotient if product is None else _xp.where(tail, quotient, product, xp)
