"""Encoding blocks of ggml whose scale follows from their extremes, and not from a search.

Some blocks are encoded at a time, each step over all of them, in memory that stays in a cache. What
the steps compute is float32 in the order of `ggml-quants.c`, whose bytes these are.
"""

from typing import Any

import numpy as np

from quantarray.kernels.bits import as_bits, as_float, magnitude, ordered, widened
from quantarray.kernels.compiling import compiled, entry, inlined
from quantarray.kernels.decode import narrowed
from quantarray.kernels.record_decode import (
    BITS,
    DIGIT_WORDS,
    DIGITS,
    SPAN,
    WORDS,
    put_word,
    word_at,
)

# What a block's scale is made of: its element farthest from 0, or the distance of that; its least
# and largest; the distance's exponent; the distance alone in parts of 16; or the mean distance.
EDGE, ABSMAX, MINMAX, EXPONENT, QUARTERS, MEAN = range(6)
# Elements of which extremes are found, and which are rounded, in one go.
UNIT, QUARTER = 32, 16

_ONES = np.uint64(0x0101010101010101)
_GATHER = np.uint64(0x0102040810204080)
_INF = np.int32(0x7F800000)
# Larger ones would be Inf as float16.
_LARGEST = np.float32(65520.0)
# Less than a half, so that a sum that rounds up does not count as one more.
_HALF = np.float32(0.49999997)


@inlined
def _extremes(bits: Any, first: int, size: int) -> Any:
    least, most = ordered(bits[first]), ordered(bits[first])
    for i in range(size):
        key = ordered(bits[first + i])
        least, most = min(least, key), max(most, key)
    return least, most


@inlined
def _farthest(bits: Any, first: int, size: int) -> Any:
    most = np.int32(0)
    for i in range(size):
        most = max(most, magnitude(bits[first + i]))
    return most


@compiled
def _measure(rule: int, bits: Any, low: Any, high: Any) -> bool:
    """Find the extremes of units, or their distance from 0; tell whether all are finite."""
    most = np.int32(0)
    if rule in (EDGE, MINMAX):
        for u in range(high.size):
            least, largest = _extremes(bits, u * UNIT, UNIT)
            low[u], high[u] = as_float(ordered(least)), as_float(ordered(largest))
            most = max(most, magnitude(ordered(least)), magnitude(ordered(largest)))
    elif rule == QUARTERS:
        for u in range(high.size):
            size = _farthest(bits, u * QUARTER, QUARTER)
            most, high[u] = max(most, size), as_float(size)
    else:
        for u in range(high.size):
            size = _farthest(bits, u * UNIT, UNIT)
            most, high[u] = max(most, size), as_float(size)
    return most < _INF


@compiled
def _edge(x: Any, low: Any, high: Any) -> Any:
    """Give the element farthest from 0, the first one of two."""
    if high > -low:
        return high
    if high < -low:
        return low
    if high == 0:
        return high + np.float32(0.0)  # never -0
    for i in range(x.size):
        if abs(x[i]) == high:
            return x[i]
    return high


@compiled
def _first_of(x: Any, value: Any) -> Any:
    """Give the first element that equals a number, which for 0 has either sign."""
    for i in range(x.size):
        if x[i] == value:
            return x[i]
    return value


@compiled
def _means(x: Any, size: int, high: Any) -> None:
    """Find the mean distances of blocks from 0, with the sums in order, four blocks at a time."""
    last = high.size - 1
    for b in range(0, high.size, 4):
        i, j = b * size, min(b + 1, last) * size
        k, m = min(b + 2, last) * size, min(b + 3, last) * size
        s = t = u = v = np.float32(0)
        for _ in range(size):
            s, t, u, v = s + abs(x[i]), t + abs(x[j]), u + abs(x[k]), v + abs(x[m])
            i, j, k, m = i + 1, j + 1, k + 1, m + 1
        high[b], high[min(b + 1, last)] = s / np.float32(size), t / np.float32(size)
        high[min(b + 2, last)], high[min(b + 3, last)] = u / np.float32(size), v / np.float32(size)


@inlined
def _put_half(x: Any, out: Any, at: int) -> None:
    bits = np.int64(narrowed(x, np.int16(0)))
    out[at] = np.uint8(bits & 255)
    out[at + 1] = np.uint8(bits >> 8 & 255)


@compiled
def _derive(p: Any, x: Any, low: Any, high: Any, factor: Any, out: Any) -> bool:
    """Turn extremes of blocks into what their elements are multiplied with, and store scales.

    A scale too small to have a reciprocal gives the factor 0, and nothing else does but 0.
    """
    rule, divisor, size, elements = p.rule, p.divisor, p.size, p.elements
    scale_at, offset_at, fits = p.scale_at, p.offset_at, True
    for b in range(factor.size):
        edge = high[b]
        if rule == EDGE:
            edge = _edge(x[b * elements : (b + 1) * elements], low[b], high[b])
        elif rule == MINMAX:
            if low[b] == 0:
                low[b] = _first_of(x[b * elements : (b + 1) * elements], low[b])
            edge = high[b] - low[b]
            fits &= abs(low[b]) < _LARGEST
            _put_half(low[b], out, b * size + offset_at)
        scale = edge / divisor
        fits &= abs(scale) < _LARGEST
        _put_half(scale, out, b * size + scale_at)
        by = np.float32(1) / scale
        factor[b] = by if abs(by) < np.inf else np.float32(0)
        high[b] = scale
        if rule != MINMAX:
            low[b] = 0
    return fits


@compiled
def _exponents(p: Any, nearly: Any, high: Any, factor: Any, out: Any) -> None:
    """Give half of a power of two to each block, as C's `log2f` and its cast to a byte do.

    The logarithm of a number a little below a power of two is rounded up to that of the power.
    """
    for b in range(factor.size):
        code = np.int64(0)
        if high[b] > 0:
            tiny = high[b] < np.float32(2.0**-126)
            bits = np.int64(as_bits(high[b] * np.float32(2.0**32) if tiny else high[b]))
            power = (bits >> 23) - (127 + 32 if tiny else 127)
            power += np.int64(bits & 0x7FFFFF >= nearly[power + 149])
            code = power - 2 + 127 & 255
        factor[b] = p.values[code]
        out[b * p.size + p.scale_at] = np.uint8(code)


@compiled
def _e4m3(x: Any) -> int:
    """Round to a float of E4M3 as ggml does: half away from 0, and from 256 on to the largest."""
    bits = np.int64(as_bits(min(x, np.float32(448))))
    power = (bits >> 23) - 127 + 7
    if power <= 0:
        return min(np.int64(np.int32(x * np.float32(512) + np.float32(0.5))), 7)
    code = ((power << 4 | bits >> 19 & 15) + 1) >> 1
    return code if code < 0x78 else 0x7E


@compiled
def _quarters(p: Any, high: Any, factor: Any, out: Any) -> None:
    for g in range(factor.size):
        code = _e4m3(high[g] / np.float32(6))
        factor[g] = p.values[code]
        out[g // 4 * p.size + p.scale_at + g % 4] = np.uint8(code)


@compiled
def _truncate(p: Any, x: Any, low: Any, factor: Any, codes: Any) -> None:
    """Round towards 0 after something was added."""
    shift, more, top = p.shift, p.more, np.int32(p.top)
    for u in range(codes.size // UNIT):
        by, zero = factor[u >> shift], low[u >> shift]
        for i in range(UNIT):
            number = np.int32((x[u * UNIT + i] - zero) * by + more)
            codes[u * UNIT + i] = np.uint8(min(number, top))


@compiled
def _round(p: Any, x: Any, factor: Any, codes: Any) -> None:
    """Round to the nearest integer, half away from 0."""
    shift, plus = p.shift, np.int32(p.plus)
    for u in range(codes.size // UNIT):
        by = factor[u >> shift]
        for i in range(UNIT):
            number = x[u * UNIT + i] * by
            code = np.int32(number + np.copysign(_HALF, number)) + plus
            codes[u * UNIT + i] = np.uint8(code)


@inlined
def _nearest(x: Any, first: int, size: int, by: Any, codes: Any) -> None:
    """Find the nearest values of E2M1, the smaller one of two, by what lies between them."""
    a, b, c = by * np.float32(0.5), by * np.float32(1.5), by * np.float32(2.5)
    d, e = by * np.float32(3.5), by * np.float32(5)
    f, g = by * np.float32(7), by * np.float32(10)
    for i in range(size):
        y = x[first + i]
        z = abs(y)
        half = z > d
        quarter = z > (f if half else b)
        last = z > ((g if quarter else e) if half else (c if quarter else a))
        code = np.int32(4 if half else 0) | np.int32(2 if quarter else 0) | np.int32(last)
        codes[first + i] = np.uint8(code | np.int32(8 if y < -a else 0))


@compiled
def _compare(p: Any, x: Any, high: Any, factor: Any, codes: Any) -> None:
    if p.rule == EXPONENT:
        for u in range(factor.size):
            _nearest(x, u * UNIT, UNIT, factor[u], codes)
    else:
        for u in range(factor.size):
            by = factor[u] if factor[u] > 0 else np.float32(np.inf)
            _nearest(x, u * QUARTER, QUARTER, by, codes)
            if high[u] > np.float32(24) * by:
                _compare_all(x, u * QUARTER, QUARTER, by, p.few, codes)


@compiled
def _compare_all(x: Any, first: int, size: int, by: Any, few: Any, codes: Any) -> None:
    """Find the first of the values whose rounded distance is least.

    From far away they all are equally far.
    """
    for i in range(first, first + size):
        best, least = 0, abs(few[0] * by - x[i])
        for k in range(1, few.size):
            error = abs(few[k] * by - x[i])
            if error < least:
                best, least = k, error
        codes[i] = np.uint8(best)


@compiled
def _write(run: Any, size: int, codes: Any, count: int, out: Any) -> None:
    """Write the fields of a run in `count` blocks, one byte or eight at a time."""
    how, unit, parts, per_block = run.how, run.unit, run.parts, run.per_block
    bits, mask, right, left = run.bits, run.mask, run.right, run.left
    for u in range(run.units):
        at, place = run.start + u * run.stride, run.first + u * run.fields
        if how == BITS:
            _write_bits(codes, place, per_block, left, out, at, size, count)
        elif how == DIGIT_WORDS:
            for i in range(0, unit, 8):
                _write_digits(codes, place + i, per_block, unit, parts, out, at + i, size, count)
        elif how == WORDS:
            for part in range(parts):
                how_to = left, mask, right + part * bits, part == 0
                for i in range(0, unit, 8):
                    first = place + part * unit + i
                    _write_words(codes, first, per_block, how_to, out, at + i, size, count)
        else:
            base = 3 if how == DIGITS else 0
            for i in range(unit):
                for block in range(count):
                    first = place + i + block * per_block
                    byte = _joined(codes, first, unit, parts, base, left, mask, bits)
                    out[np.uintp(at + i + block * size)] = np.uint8(byte << (0 if base else right))


@compiled
def _write_words(
    codes: Any, first: int, per_block: int, how: Any, out: Any, at: int, size: int, count: int
) -> None:
    left, mask, right = np.uint64(how[0]), np.uint64(how[1]) * _ONES, np.uint64(how[2])
    if how[3]:
        for block in range(count):
            fields = (word_at(codes, first + block * per_block) >> left & mask) << right
            put_word(out, at + block * size, fields)
    else:
        for block in range(count):
            fields = (word_at(codes, first + block * per_block) >> left & mask) << right
            place = at + block * size
            put_word(out, place, word_at(out, place) | fields)


@compiled
def _write_bits(
    codes: Any, first: int, per_block: int, left: int, out: Any, at: int, size: int, count: int
) -> None:
    """Write bits of eight neighbouring fields as a byte."""
    for block in range(count):
        fields = word_at(codes, first + block * per_block) >> np.uint64(left) & _ONES
        out[np.uintp(at + block * size)] = np.uint8(fields * _GATHER >> np.uint64(56))


@compiled
def _write_digits(
    codes: Any,
    first: int,
    per_block: int,
    unit: int,
    parts: int,
    out: Any,
    at: int,
    size: int,
    count: int,
) -> None:
    """Write digits of base 3 to eight neighbouring bytes."""
    for block in range(count):
        word = np.uint64(0)
        for part in range(parts):
            place = first + part * unit + block * per_block
            word = word * np.uint64(3) + word_at(codes, place)
        put_word(out, at + block * size, word)
        for i in range(at + block * size, at + block * size + 8):
            out[i] = np.uint8(_fraction(np.int64(out[i])))


@inlined
def _fraction(digits: Any) -> Any:
    """Give five digits as a fraction of 256, rounded up."""
    return (digits * 256 + 242) // 243


@inlined
def _joined(
    codes: Any, first: int, unit: int, parts: int, base: int, left: int, mask: int, bits: int
) -> Any:
    """Join the fields of a byte."""
    byte = np.int64(0)
    if base:
        for part in range(parts):
            byte = byte * base + np.int64(codes[first + part * unit])
        return _fraction(byte * base ** (5 - parts))
    for part in range(parts):
        byte |= (np.int64(codes[first + part * unit]) >> left & mask) << (part * bits)
    return byte


@entry
def encode(plan: Any, runs: Any, nearly: Any, x: Any, out: Any) -> bool:
    """Encode blocks, or give False where an element, or its scale as float16, is not finite.

    Parameters
    ----------
    plan, runs : array
        Of `records.encoder`.
    nearly : array of int32
        The least fraction with which a number counts as the next power of two, by exponent.
    x : array of float32, shape (blocks * elements,)
    out : array of uint8, shape (blocks * size,)
    """
    p = plan[0]
    rule, elements, size = p.rule, p.elements, p.size
    unit = QUARTER if rule == QUARTERS else UNIT
    low, high = np.zeros(SPAN // unit, np.float32), np.empty(SPAN // unit, np.float32)
    factor, codes = np.empty(SPAN // unit, np.float32), np.empty(SPAN, np.uint8)
    for start in range(0, x.size, SPAN):
        some = x[start : start + SPAN]
        count, units = some.size // elements, some.size // unit
        target = out[start // elements * size : (start // elements + count) * size]
        if not _measure(rule, some.view(np.int32), low[:units], high[:units]):
            return False
        if rule == MEAN:
            _means(some, elements, high[:count])
        elif p.shift:
            _join(1 << p.shift, high[:units])
        by = factor[:count]
        if rule == EXPONENT:
            _exponents(p, nearly, high, by, target)
        elif rule == QUARTERS:
            by = factor[:units]
            _quarters(p, high, by, target)
        elif not _derive(p, some, low, high, by, target):
            return False
        if rule in (EXPONENT, QUARTERS):
            _compare(p, some, high, by, codes)
        elif rule == MEAN:
            for i in range(some.size):
                codes[i] = np.uint8(some[i] >= 0)
        elif rule == ABSMAX:
            _round(p, some, by, codes[: some.size])
        else:
            _truncate(p, some, low, by, codes[: some.size])
        if p.lost:
            _lose(elements, high, by, codes)
        for i in range(runs.size):
            _write(runs[i], size, codes, count, target)
    return True


@compiled
def _join(parts: int, high: Any) -> None:
    """Join the extremes of the units of each block, in place."""
    for b in range(high.size // parts):
        most = high[b * parts]
        for k in range(1, parts):
            most = max(most, high[b * parts + k])
        high[b] = most


@compiled
def _lose(elements: int, high: Any, factor: Any, codes: Any) -> None:
    """Give code 0 to blocks whose scale has no reciprocal: C casts Inf, or NaN."""
    for b in range(factor.size):
        if factor[b] == 0 and high[b] != 0:
            codes[b * elements : (b + 1) * elements] = 0


@entry
def widen(elements: Any, out: Any) -> None:
    """Give the float32 that elements hold, as their bits: float64 is rounded."""
    for i in range(out.size):
        out[i] = as_float(widened(elements[i]))
