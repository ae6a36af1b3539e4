"""Loops over a few thousand elements, in memory that stays in a cache.

Each is a step of the pipeline, written so that a compiler vectorizes it. The numbers of a scheme
come in a record, as `plans.encoder` gives it; loops read them before they begin, because a compiler
cannot tell that what they write is no part of it.
"""

from typing import Any

import numpy as np
from numba.extending import register_jitable

from quantarray.kernels.bits import as_bits, as_float, fit, flushed, magnitude, ordered, widened
from quantarray.kernels.compiling import compiled
from quantarray.kernels.plans import ABSMAX, FLOAT, INTEGER, MAGNITUDES, ONE, VALUES

# What `quantize` does.
MEASURE, DERIVE, ENCODE = 1, 2, 4
# Elements that are worked on at once: a multiple of every unit of packing.
SPAN = 4096


@compiled
def load(memory: Any, first: int, step: int, bits: Any) -> None:
    """Copy elements that lie `step` apart into working memory."""
    if step == 1:
        row = memory[first : first + bits.size]
        for i in range(bits.size):
            bits[i] = widened(row[i])
    else:
        for i in range(bits.size):
            bits[i] = widened(memory[first + i * step])


@compiled
def extremes(rule: int, bits: Any, start: int, size: int, low: Any, high: Any, spare: Any) -> None:
    """Widen the ranges of the blocks of `size` that the columns from `start` on lie in.

    A NaN is larger, or smaller, than every number, and stays.
    """
    signless = rule in (ABSMAX, ONE)
    if size == 1:
        _columns(bits.view(low.dtype), low, high)
    elif size <= 64 and size & (size - 1) == 0 and bits.size == size * low.size:
        _pairs(signless, bits, low, high, spare)
    else:
        _blocks(signless, bits, start, size, low, high)


@compiled
def _columns(values: Any, low: Any, high: Any) -> None:
    for i in range(values.size):
        low[i] = _lower(values[i], low[i])
        high[i] = _higher(values[i], high[i])


@compiled
def _pairs(signless: bool, bits: Any, low: Any, high: Any, spare: Any) -> None:
    """Compare neighbours, then the larger ones, and so on, which suits small blocks."""
    n = bits.size // 2
    most, least, other = spare[:n], spare[n : 2 * n], spare[2 * n : 3 * n]
    if signless:
        for i in range(n):
            most[i] = max(magnitude(bits[2 * i]), magnitude(bits[2 * i + 1]))
        most, other = _halved(most, other, low.size)
        for b in range(low.size):
            high[b] = _higher(as_float(most[b]), high[b])
            low[b] = -high[b]
    else:
        for i in range(n):
            one, two = ordered(bits[2 * i]), ordered(bits[2 * i + 1])
            most[i], least[i] = max(one, two), -1 - min(one, two)
        most, other = _halved(most, other, low.size)
        least, other = _halved(least, other, low.size)
        for b in range(low.size):
            high[b] = _higher(as_float(ordered(most[b])), high[b])
        for b in range(low.size):
            low[b] = _lower(as_float(ordered(fit(-1 - least[b], least[b]))), low[b])


@compiled
def _halved(x: Any, other: Any, size: int) -> Any:
    """Take the larger of neighbours until `size` are left; give them, and the other buffer."""
    n = x.size
    while n > size:
        n //= 2
        _larger(x[: 2 * n], other[:n])
        x, other = other, x
    return x, other


@compiled
def _larger(x: Any, larger: Any) -> None:
    for i in range(larger.size):
        larger[i] = max(x[2 * i], x[2 * i + 1])


@compiled
def _blocks(signless: bool, bits: Any, start: int, size: int, low: Any, high: Any) -> None:
    for b in range(low.size):
        first = (start // size + b) * size - start
        values = bits[max(first, 0) : min(first + size, bits.size)]
        if signless:
            most = magnitude(values[0])
            for i in range(values.size):
                most = max(most, magnitude(values[i]))
            high[b] = _higher(as_float(most), high[b])
            low[b] = -high[b]
        else:
            least = most = ordered(values[0])
            for i in range(values.size):
                key = ordered(values[i])
                least, most = min(least, key), max(most, key)
            high[b] = _higher(as_float(ordered(most)), high[b])
            low[b] = _lower(as_float(ordered(least)), low[b])


@register_jitable
def _lower(x: Any, y: Any) -> Any:
    """Give the smaller number, or the NaN."""
    return x if x < y or x != x else y


@register_jitable
def _higher(x: Any, y: Any) -> Any:
    return x if x > y or x != x else y


@compiled
def divide(p: Any, work: Any, multiply: bool, factor: Any, zero: Any, small: bool) -> None:
    """Turn elements into what is left to round to the nearest code, in place."""
    tiny, steps = p.tiny, p.steps
    if small or p.flushes:
        for i in range(work.size):
            work[i] = flushed(work[i], tiny)
    if p.zero_is_offset:
        for i in range(work.size):
            work[i] = flushed(work[i] - zero[i], tiny)
    for i in range(work.size):
        work[i] = work[i] * factor[i] if multiply else work[i] / factor[i]
    if steps != 1 and not multiply:
        for i in range(work.size):
            work[i] = work[i] * steps
    if p.small_counts:
        for i in range(work.size):
            work[i] = flushed(work[i], tiny)
    if p.zero_before:
        _add(work, p.origin, zero)
    if p.truncates:
        for i in range(work.size):
            work[i] = np.trunc(work[i])


@compiled
def _add(work: Any, origin: Any, zero: Any) -> None:
    """Add the code of 0 that all blocks have, or else that of each."""
    if origin != 0:
        for i in range(work.size):
            work[i] = work[i] + origin
    else:
        for i in range(work.size):
            work[i] = work[i] + zero[i]


@compiled
def round_off(p: Any, work: Any, multiply: bool, factor: Any, zero: Any, codes: Any) -> None:
    """Divide elements by their factors, and round to the nearest code."""
    if p.kind == INTEGER:
        _integers(p, work, multiply, factor, zero, codes)
    elif p.kind == FLOAT:
        _floats(p, work, multiply, factor, codes)
    elif p.kind == VALUES:
        _values(p, work, multiply, factor, codes)
    elif p.kind == MAGNITUDES:
        _magnitudes(p, work, multiply, factor, codes)
    else:
        _search(p, work, multiply, factor, codes)
    if p.reorders:
        order = p.order
        for i in range(codes.size):
            codes[i] = order[codes[i]]


@compiled
def _integers(p: Any, work: Any, multiply: bool, factor: Any, zero: Any, codes: Any) -> None:
    low, high, origin, after = p.lowest, p.highest, p.origin_after, p.zero_after
    mask, excess = p.mask, p.excess
    for i in range(codes.size):
        rounded = np.rint(work[i] * factor[i] if multiply else work[i] / factor[i])
        if after:
            rounded += zero[i]
        codes[i] = np.uint8(np.int32(min(max(rounded + origin, low), high)))
    if mask != 255 or excess:
        for i in range(codes.size):
            codes[i] = (codes[i] & mask) ^ excess


@compiled
def _floats(p: Any, work: Any, multiply: bool, factor: Any, codes: Any) -> None:
    """Round to nearest, ties to even, by adding a power of two that is `step` exponents larger."""
    most, exponents, least = p.float_max, p.exponents, p.float_min
    step, shift, sign = p.float_step, p.float_shift, p.sign
    signed_from, signed_above = p.signed_from, p.signed_above
    for i in range(codes.size):
        bits = as_bits(work[i] * factor[i] if multiply else work[i] / factor[i])
        size = min(magnitude(bits), most)
        power = max(fit(size & exponents, size), least)
        grid = fit(power + step, size)
        rounded = as_bits(as_float(size) + as_float(grid))
        above = fit(fit(power - least, size) >> shift, size)
        code = fit(fit(rounded - grid, size) + above, size)
        negative = bits < 0 and size >= signed_from and code > signed_above
        codes[i] = np.uint8(code | sign if negative else code)


@compiled
def _values(p: Any, work: Any, multiply: bool, factor: Any, codes: Any) -> None:
    ends = _unpacked(p.ends)
    for i in range(codes.size):
        codes[i] = _below(ends, work[i] * factor[i] if multiply else work[i] / factor[i])


@compiled
def _magnitudes(p: Any, work: Any, multiply: bool, factor: Any, codes: Any) -> None:
    ends, sign = _unpacked(p.ends), p.sign
    signed_from, signed_above = p.signed_from, p.signed_above
    for i in range(codes.size):
        bits = as_bits(work[i] * factor[i] if multiply else work[i] / factor[i])
        size = magnitude(bits)
        code = _below(ends, as_float(size))
        negative = bits < 0 and size >= signed_from and code > signed_above
        codes[i] = np.uint8(code | sign if negative else code)


@register_jitable
def _unpacked(e: Any) -> Any:
    few = e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7]
    return few + (e[8], e[9], e[10], e[11], e[12], e[13], e[14])  # noqa: RUF005


@register_jitable
def _below(e: Any, x: Any) -> Any:
    """Count which of 15 ascending numbers lie below x, by halves, without a branch."""
    half = x > e[7]
    quarter = x > (e[11] if half else e[3])
    high = e[13] if quarter else e[9]
    low = e[5] if quarter else e[1]
    eighth = x > (high if half else low)
    high = (e[14] if eighth else e[12]) if quarter else (e[10] if eighth else e[8])
    low = (e[6] if eighth else e[4]) if quarter else (e[2] if eighth else e[0])
    last = x > (high if half else low)
    count = np.int32(8 if half else 0) | np.int32(4 if quarter else 0)
    return np.uint8(count | np.int32(2 if eighth else 0) | np.int32(1 if last else 0))


@compiled
def _search(p: Any, work: Any, multiply: bool, factor: Any, codes: Any) -> None:
    """Look up where numbers with the same leading bits begin, and go on from there."""
    ends, starts = p.many_ends, p.many_starts
    shift, mask = p.many_shift, p.many_starts.size - 1
    for i in range(codes.size):
        x = work[i] * factor[i] if multiply else work[i] / factor[i]
        code = np.int64(starts[(as_bits(x) >> shift) & mask])
        code += np.int64(ends[code] < x)
        while ends[code] < x:
            code += 1
        codes[i] = code


@compiled
def pack(p: Any, codes: Any, out: Any) -> None:
    """Pack codes into bytes."""
    flip, high_first = p.flip, p.high_first
    if p.width == 8:
        for i in range(out.size):
            out[i] = codes[i] ^ flip
    elif p.width == 4:
        low, high = (4, 0) if high_first else (0, 4)
        for i in range(out.size):
            out[i] = np.uint8(codes[2 * i] << low | codes[2 * i + 1] << high) ^ flip
    else:
        _pack_bits(p.width, high_first, flip, codes, out)


@compiled
def _pack_bits(width: int, high_first: bool, flip: Any, codes: Any, out: Any) -> None:
    held, count, at = np.int64(0), 0, 0
    for i in range(out.size):
        while count < 8:
            code = np.int64(codes[at])
            held = held << width | code if high_first else held | code << count
            count += width
            at += 1
        count -= 8
        if high_first:
            out[i] = np.uint8(held >> count) ^ flip
            held &= (1 << count) - 1
        else:
            out[i] = np.uint8(held & 255) ^ flip
            held >>= 8


@compiled
def spread(per_block: Any, start: int, size: int, row: Any, spare: Any) -> None:
    """Give every column from `start` on the entry of its block of `size`."""
    whole = row.size == size * per_block.size
    if size == 1:
        row[:] = per_block[: row.size]
    elif size in (16, 32, 64) and whole:
        _repeat(per_block, size, row, spare.view(row.dtype))
    else:
        for b in range(per_block.size):
            first = (start // size + b) * size - start
            row[max(first, 0) : min(first + size, row.size)] = per_block[b]


@compiled
def _repeat(per_block: Any, size: int, row: Any, spare: Any) -> None:
    """Repeat entries four times, and again, as a compiler can vectorize it."""
    first, second = spare[: SPAN // 16], spare[SPAN // 16 : SPAN // 16 + SPAN // 4]
    x = per_block
    if size == 32:
        x = first[: 2 * per_block.size]
        for i in range(per_block.size):
            x[2 * i] = per_block[i]
            x[2 * i + 1] = per_block[i]
    elif size == 64:
        x = first[: 4 * per_block.size]
        _four(per_block, x)
    y = second[: 4 * x.size]
    _four(x, y)
    _four(y, row)


@compiled
def _four(x: Any, row: Any) -> None:
    for i in range(x.size):
        value = x[i]
        row[4 * i] = value
        row[4 * i + 1] = value
        row[4 * i + 2] = value
        row[4 * i + 3] = value
