"""Encoding blocks of ggml whose scale follows from their extremes, and not from a search.

Some blocks are encoded at a time, each step over all of them, in memory that stays in a cache. What
the steps compute is float32 in the order of `ggml-quants.c`, whose bytes these are.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quantarray.kernels.bits import as_bits, as_float, magnitude, ordered, widened
from quantarray.kernels.compiling import compiled, entry, inlined
from quantarray.kernels.decode import narrowed
from quantarray.kernels.record_fields import address, write
from quantarray.kernels.record_plans import (
    ABSMAX,
    EDGE,
    EXPONENT,
    MEAN,
    MINMAX,
    QUARTER,
    QUARTERS,
    SPAN,
    UNIT,
)

# Larger ones would be Inf as float16.
_LARGEST = np.float32(65520.0)
# Less than a half, so that a sum that rounds up does not count as one more.
_HALF = np.float32(0.49999997)


def _reduction(name: str, size: int, mask: int = -1) -> Any:
    """Give a function for the largest of integers from one on, some bits of each cleared.

    A compiler makes a loop over so few into one that takes four times as long.
    """

    def largest(typingctx: Any, data: Any, at: Any) -> tuple[Any, Any]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            word, lanes = ir.IntType(32), ir.VectorType(ir.IntType(32), size)
            data, at = arguments
            place = address(context, builder, signature.args[0], data, at, lanes)
            values = builder.load(place, align=4)
            if mask != -1:
                values = builder.and_(values, ir.Constant(lanes, [mask] * size))
            kind = ir.FunctionType(word, [lanes])
            full = f"llvm.vector.reduce.{name}.v{size}i32"
            return builder.call(builder.module.declare_intrinsic(full, fnty=kind), [values])

        return types.int32(data, types.intp), generate

    return intrinsic(largest)


# The bits of the largest float, if one is positive; of the least, if one is negative; and of the
# distance from 0 of the farthest.
_highest = _reduction("smax", UNIT)
_lowest = _reduction("umax", UNIT)
_farthest = _reduction("smax", UNIT, 0x7FFFFFFF)
_farthest_of_few = _reduction("smax", QUARTER, 0x7FFFFFFF)


@compiled
def _measure(p: Any, bits: Any, low: Any, high: Any) -> Any:
    """Find the extremes of units, or their distance from 0; tell whether all are within reach."""
    most, rule = np.int32(0), p.rule
    if rule in (EDGE, MINMAX):
        for u in range(high.size):
            top, bottom = _highest(bits, u * UNIT), _lowest(bits, u * UNIT)
            most = max(most, top, magnitude(bottom))
            if rule == MINMAX and (top < 0 or bottom >= 0):  # all have one sign
                top, bottom = _extremes(bits[u * UNIT : (u + 1) * UNIT])
            high[u] = as_float(top) if top >= 0 or rule == MINMAX else np.float32(0)
            low[u] = as_float(bottom) if bottom < 0 or rule == MINMAX else np.float32(0)
    elif rule == QUARTERS:
        for u in range(high.size):
            size = _farthest_of_few(bits, u * QUARTER)
            most, high[u] = max(most, size), as_float(size)
    else:
        for u in range(high.size):
            size = _farthest(bits, u * UNIT)
            most, high[u] = max(most, size), as_float(size)
    return most <= p.reach


@compiled
def _extremes(bits: Any) -> Any:
    least = most = ordered(bits[0])
    for i in range(bits.size):
        key = ordered(bits[i])
        least, most = min(least, key), max(most, key)
    return ordered(most), ordered(least)


@compiled
def _join(parts: int, high: Any) -> None:
    """Join the extremes of the units of each block, in place."""
    for b in range(high.size // parts):
        most = high[b * parts]
        for k in range(1, parts):
            most = max(most, high[b * parts + k])
        high[b] = most


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
def _e4m3(x: Any) -> Any:
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


@compiled
def _nearest(x: Any, by: Any, codes: Any) -> None:
    """Find the nearest values of E2M1, the smaller one of two, by what lies between them."""
    a, b, c = by * np.float32(0.5), by * np.float32(1.5), by * np.float32(2.5)
    d, e = by * np.float32(3.5), by * np.float32(5)
    f, g = by * np.float32(7), by * np.float32(10)
    for i in range(codes.size):
        y = x[i]
        z = abs(y)
        half = z > d
        quarter = z > (f if half else b)
        last = z > ((g if quarter else e) if half else (c if quarter else a))
        code = np.int32(4 if half else 0) | np.int32(2 if quarter else 0)
        sign = np.int32(8 if y < -a else 0)
        codes[i] = np.uint8(code | np.int32(1 if last else 0) | sign)


@compiled
def _compare(p: Any, x: Any, factor: Any, codes: Any) -> None:
    size = UNIT if p.rule == EXPONENT else QUARTER
    for u in range(factor.size):
        some, found = x[u * size : (u + 1) * size], codes[u * size : (u + 1) * size]
        by = factor[u] if factor[u] > 0 else np.float32(np.inf)
        _nearest(some, by, found)


@compiled
def _lose(elements: int, high: Any, factor: Any, codes: Any) -> None:
    """Give code 0 to blocks whose scale has no reciprocal: C casts Inf, or NaN."""
    for b in range(factor.size):
        if factor[b] == 0 and high[b] != 0:
            codes[b * elements : (b + 1) * elements] = 0


@entry
def encode(plan: Any, runs: Any, nearly: Any, x: Any, out: Any) -> bool:
    """Encode blocks, or give False where an element is beyond reach, or a float16 is not finite.

    Parameters
    ----------
    plan, runs : array
        Of `record_plans.encoder`.
    nearly : array of int32
        The least fraction with which a number counts as the next power of two, by exponent.
    x : array of float32, shape (blocks * elements,)
    out : array of uint8, shape (blocks * size,)
    """
    p = plan[0]
    rule, elements, size = p.rule, p.elements, p.size
    unit = QUARTER if rule == QUARTERS else UNIT
    room = min(SPAN, x.size)
    low, high = np.zeros(room // unit, np.float32), np.empty(room // unit, np.float32)
    factor, codes = np.empty(room // unit, np.float32), np.empty(room, np.uint8)
    for start in range(0, x.size, SPAN):
        some = x[start : start + SPAN]
        count, units = some.size // elements, some.size // unit
        target = out[start // elements * size : (start // elements + count) * size]
        if not _measure(p, some.view(np.int32), low[:units], high[:units]):
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
            _compare(p, some, by, codes)
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
            write(runs[i], size, codes, count, target)
    return True


@entry
def widen(elements: Any, out: Any) -> None:
    """Give the float32 that elements hold, as their bits: float64 is rounded."""
    for i in range(out.size):
        out[i] = as_float(widened(elements[i]))
