"""Quantizing in one pass: all steps on one stretch of a row after another.

Every byte comes from memory once. What the steps compute, and how they round, is defined by
`pipeline` and `scales`.
"""

from typing import Any

import numpy as np
from numba.extending import register_jitable

from quantarray.kernels.bits import as_bits, flushed
from quantarray.kernels.compiling import compiled, entry, inlined
from quantarray.kernels.loops import (
    DERIVE,
    MEASURE,
    SPAN,
    divide,
    extremes,
    load,
    pack,
    round_off,
    spread,
)
from quantarray.kernels.plans import ABSMAX, EDGE, MINMAX, ONE


@compiled
def derive(p: Any, outer: Any, low: Any, high: Any, scale: Any, code: Any, zero: Any) -> None:
    """Derive scales, their codes, and zero points or offsets from ranges."""
    for b in range(low.size):
        bottom, top = low[b], high[b]
        if p.rule != ABSMAX:
            if p.rule == MINMAX:
                bottom, top = min(bottom, p.nothing), max(top, p.nothing)
            bottom, top = flushed(bottom, p.tiny), flushed(top, p.tiny)
        absmax = max(top, -bottom)
        if p.scale_count:
            scale[b], code[b] = _coded(p, outer, absmax)
            continue
        scale[b] = _plain(p, bottom, top, absmax)
        if p.rule == EDGE:
            scale[b], zero[b] = _edge(p, bottom, top, scale[b])
        elif p.zero_is_offset:
            zero[b] = p.nothing if bottom == 0 else bottom
        elif p.zero_is_low:
            point = min(max(np.rint(p.lowest - bottom / scale[b]), p.lowest), p.highest)
            zero[b] = p.nothing if absmax < p.tiny else point
        else:
            zero[b] = p.zero


@compiled
def _plain(p: Any, low: Any, high: Any, absmax: Any) -> Any:
    if p.rule == ONE:
        extent = scale = p.one
    elif p.rule == ABSMAX:
        extent, scale = absmax, absmax / p.divisor
    else:
        part = p.half if absmax > p.largest * p.half else p.one
        extent = high * part - low * part
        scale = extent / (p.divisor * part)
    scale = min(max(scale, p.least), p.largest)
    empty = extent < p.tiny
    if p.least < p.tiny:
        scale = flushed(scale, p.tiny)
        empty = empty or scale == 0
    return p.zero_block if empty else scale


@compiled
def _edge(p: Any, low: Any, high: Any, scale: Any) -> Any:
    below = -low > abs(high)
    scale = scale if below else -scale
    edge = low if below else high
    steps = np.rint(edge / scale)
    if steps == 0:
        return scale, p.nothing
    return edge / steps, edge


@compiled
def _coded(p: Any, outer: Any, absmax: Any) -> Any:
    """Give the scale whose code is stored, and the code."""
    empty = absmax < p.tiny
    quotient = absmax if p.scale_exact else (p.nothing if empty else absmax) / p.divisor
    if p.has_outer:
        quotient = quotient * outer if p.outer_divides else quotient / outer
        quotient = min(max(quotient, p.least), p.scale_values[p.scale_count])
    code = np.int64(p.scale_starts[as_bits(quotient) >> p.scale_shift])
    code += np.int64(p.scale_ends[code] < quotient)  # which is all, but for few numbers
    while p.scale_ends[code] < quotient:
        code += 1
    empty = empty or (p.has_outer and code == 0)
    code = p.zero_block_code if empty else max(code, p.least_code)
    scale = p.scale_values[code]
    if p.has_outer:
        scale = flushed(scale / outer if p.outer_divides else scale * outer, p.tiny)
    return scale, code


@compiled
def factors(p: Any, outer: Any, scale: Any, code: Any, factor: Any) -> bool:
    """Find what elements are divided by, or multiplied with; tell whether all can be."""
    for b in range(scale.size):
        by = p.tiny if p.guarded and abs(scale[b]) < p.tiny else scale[b]
        if by != by:
            return False
        if p.inverse:
            over = min(max(p.one / outer, p.nothing), p.largest * p.least)
            by = over / p.scale_values[code[b]]
        elif p.multiplies:
            if not abs(by) <= p.one / p.tiny:
                return False
            by = p.one / by
            if p.steps != 1:
                by = min(max(by, -p.bound), p.bound) * p.steps
        elif p.zero_is_offset and not by <= p.largest_scale:
            return False
        factor[b] = by
    return True


@compiled
def _store(found: Any, at: int, scale: Any, code: Any, zero: Any) -> None:
    """Write the parameters of blocks to those of the results that there are."""
    for k in range(scale.size):
        if found.scale.size:
            found.scale[at + k] = scale[k]
        if found.code.size:
            found.code[at + k] = code[k]
        if found.zero.size:
            found.zero[at + k] = zero[k]
        if found.point.size:
            found.point[at + k] = np.uint8(np.int32(zero[k]))


@compiled
def _clear(scale: Any, start: int, size: int, codes: Any) -> None:
    """Give code 0 to the elements of blocks whose scale is 0."""
    for block in range(scale.size):
        if scale[block] == 0:
            first = (start // size + block) * size - start
            codes[max(first, 0) : min(first + size, codes.size)] = 0


@compiled
def _has_small(p: Any, scale: Any) -> bool:
    """Tell whether a subnormal element can be more than the code of 0."""
    resolution, tiny, small = p.resolution, p.tiny, False
    for k in range(scale.size):
        small |= not abs(scale[k]) * resolution >= tiny
    return small


@compiled
def _is_beyond(low: Any, high: Any, limit: Any) -> bool:
    """Tell whether a block holds more than the scheme can, or what is not finite."""
    beyond = False
    for k in range(low.size):
        beyond |= not (high[k] <= limit and -low[k] <= limit)
    return beyond


@inlined
def _measure(
    rule: int, memory: Any, rows: Any, members: Any, left: int, right: int, found: Any, space: Any
) -> None:
    """Find the ranges of the blocks of some rows between two columns."""
    (low, high), (bits, spare), size = found, space, rows.size
    low[:], high[:] = np.inf, -np.inf
    for row in members:
        for a in range(left, right, SPAN):
            z = min(a + SPAN, right)
            k, m = a // size - left // size, (z - 1) // size - left // size + 1
            elements = _elements(memory, rows, row, a, bits[: z - a])
            extremes(rule, elements, a, size, low[k:m], high[k:m], spare)


@register_jitable
def _elements(memory: Any, rows: Any, row: int, column: int, bits: Any) -> Any:
    """Give the bits of elements: those in memory, if they lie there as they are needed."""
    first = rows.first + rows.offsets[row] + column * rows.step
    if rows.step == 1 and memory.itemsize == bits.itemsize:
        return memory[first : first + bits.size].view(bits.dtype)
    load(memory, first, rows.step, bits)
    return bits


@inlined
def _encode(
    p: Any,
    memory: Any,
    rows: Any,
    members: Any,
    left: int,
    right: int,
    parameters: Any,
    space: Any,
    out: Any,
) -> None:
    """Encode some rows between two columns, with the parameters of their blocks."""
    scale, factor, zero = parameters
    (bits, spare), factor_row, zero_row, ones, codes = space
    size, columns, dtype = rows.size, rows.columns, scale.dtype
    whole = columns // size * size if p.tail_divides and right == columns else columns
    small = _has_small(p, scale)
    prepares = small or p.prepares or whole < columns
    for row in members:
        for a in range(left, right, SPAN):
            z = min(a + SPAN, right)
            k, m = a // size - left // size, (z - 1) // size - left // size + 1
            elements = _elements(memory, rows, row, a, bits[: z - a])
            if row == members[0] or right - left > SPAN:
                spread(factor[k:m], a, size, factor_row[: z - a], spare)
                if p.uses_zero:
                    spread(zero[k:m], a, size, zero_row[: z - a], spare)
            by, multiply = factor_row, p.multiplies
            if prepares:
                bits[: z - a] = elements
                elements = bits[: z - a]
                work, cut = elements.view(dtype), min(max(whole - a, 0), z - a)
                divide(p, work[:cut], multiply, factor_row, zero_row, small)
                divide(p, work[cut:], False, factor_row[cut:], zero_row[cut:], small)
                by, multiply = ones, True
            start = row * rows.row_bytes + a * p.width // 8
            stop = row * rows.row_bytes + z * p.width // 8
            target = out[start : (row + 1) * rows.row_bytes if z == columns else stop]
            plain = target.size == z - a and p.width == 8
            into = target if plain else codes[: z - a]
            round_off(p, elements.view(dtype), multiply, by, zero_row, into)
            if p.zero_first:
                _clear(scale[k:m], a, size, into)
            if not plain:
                if z == columns:
                    codes[z - a : z - a + 64] = p.padding
                pack(p, codes, target)


@entry
def quantize(
    phases: int, plan: Any, outer: Any, memory: Any, rows: Any, share: Any, found: Any, bits: Any
) -> bool:
    """Run phases of the pipeline on a share of the rows and columns of an array.

    Gives False, with some results not written, where a block needs the care of the generic path.
    """
    p, dtype, size, columns = plan[0], found.scale.dtype, rows.size, rows.columns
    grid = (columns - 1) // size + 1
    most = (min(share.stretch, share.stop - share.start) - 1) // size + 2
    low, high, zero = np.empty(most, dtype), np.empty(most, dtype), np.empty(most, dtype)
    scale, factor, code = np.empty(most, dtype), np.empty(most, dtype), np.zeros(most, np.uint8)
    working = bits, np.empty(2 * SPAN, bits.dtype)
    row_of_factors, row_of_zeros = np.empty(SPAN, dtype), np.empty(SPAN, dtype)
    codes, ones = np.empty(SPAN + 64, np.uint8), np.ones(SPAN, dtype)
    space = working, row_of_factors, row_of_zeros, ones, codes
    for band in range(share.starts.size - 1):
        members = share.order[share.starts[band] : share.starts[band + 1]]
        for left in range(share.start, share.stop, share.stretch):
            right = min(left + share.stretch, share.stop)
            n = (right - 1) // size - left // size + 1
            at = (share.band + band) * grid + left // size
            if phases & MEASURE:
                ranges = low[:n], high[:n]
                _measure(p.rule, memory, rows, members, left, right, ranges, working)
                if _is_beyond(low[:n], high[:n], p.limit):
                    return False
            if phases == MEASURE:
                for k in range(n):
                    found.low[at + k] = min(found.low[at + k], low[k])
                    found.high[at + k] = max(found.high[at + k], high[k])
                continue
            if phases & DERIVE:
                derive(p, outer, low[:n], high[:n], scale[:n], code[:n], zero[:n])
                _store(found, at, scale[:n], code[:n], zero[:n])
            else:
                scale[:n] = found.scale[at : at + n]
                if found.zero.size:
                    zero[:n] = found.zero[at : at + n]
            if not factors(p, outer, scale[:n], code[:n], factor[:n]):
                return False
            if p.tail_divides and right == columns and columns % size:
                last = scale[n - 1]
                factor[n - 1] = p.tiny if p.guarded and abs(last) < p.tiny else last
            parameters = scale[:n], factor[:n], zero[:n]
            _encode(p, memory, rows, members, left, right, parameters, space, found.out)
    return True
