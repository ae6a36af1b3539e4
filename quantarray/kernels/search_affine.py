"""Scales and offsets by search: ``x = scale * code - offset``, for Q2_K, Q4_K, Q5_K, Q4_1, Q5_1."""

from typing import Any

import numpy as np

from quantarray.kernels.compiling import compiled, entry
from quantarray.kernels.search_lanes import (
    LANES,
    choose,
    least,
    load,
    most,
    size_of,
    some,
    spread,
    store,
    to_floats,
)
from quantarray.kernels.search_loops import (
    NOTHING,
    clamped,
    from_half,
    is_infinite,
    nearest,
    pack,
    round_off_above,
    sum_squares,
    to_half,
    weigh,
    write,
)


@compiled
def search(p: Any, x: Any, at: int, weights: Any, spare: Any) -> Any:
    """Fit a scale and an offset to a group: `make_qkx2_quants`, `make_qkx3_quants`.

    Parameters
    ----------
    p : record
        `searches.Search`.
    x : numpy.ndarray
        Elements of 16 blocks, float32 (elements, 16).
    at : int
        Where the group begins.
    weights, spare : numpy.ndarray
        Float32 (size of a group, 16): the weights, and room for codes.

    Returns
    -------
    scale, offset, factor, low : FLOATS
        The codes are those of ``factor * (x - low)``.
    """
    size, top, code_max = p.size, p.top, np.int32(p.top)
    low = high = load(x, at)
    sum_w = load(weights, 0)
    sum_x = sum_w * low
    for i in range(1, size):
        number, weight = load(x, at + i), load(weights, i)
        low = choose(number < low, number, low)
        high = choose(number > high, number, high)
        sum_w = sum_w + weight
        sum_x = sum_x + weight * number
    low = choose(low > np.float32(0), np.float32(0), low)
    flat, factor = high == low, top / (high - low)
    scale, code_low, best = np.float32(1) / factor, low, spread(np.float32(0))
    for i in range(size):
        number = load(x, at + i)
        code = clamped(factor * (number - low), np.int32(0), code_max)
        off = scale * code + low - number
        best = best + load(weights, i) * (size_of(off) if p.absolute else off * off)
    for step in range(p.steps):
        # The range that is divided starts at the best offset so far.
        trial = p.factors[step] / (high - low)
        sum_c = sum_cc = sum_cx = spread(np.float32(0))
        for i in range(size):
            number = load(x, at + i)
            code = clamped(trial * (number - low), np.int32(0), code_max)
            store(spare, i, code)
            weighted = load(weights, i) * code
            sum_c = sum_c + weighted
            sum_cc = sum_cc + weighted * code
            sum_cx = sum_cx + weighted * number
        variance = sum_w * sum_cc - sum_c * sum_c
        new_scale = (sum_w * sum_cx - sum_x * sum_c) / variance
        new_low = (sum_cc * sum_x - sum_c * sum_cx) / variance
        above = new_low > np.float32(0)
        new_scale = choose(above, sum_cx / sum_cc, new_scale)
        new_low = choose(above, np.float32(0), new_low)
        error = spread(np.float32(0))
        for i in range(size):
            off = new_scale * load(spare, i) + new_low - load(x, at + i)
            error = error + load(weights, i) * (size_of(off) if p.absolute else off * off)
        better = (variance > np.float32(0)) & (error < best)
        best = choose(better, error, best)
        scale = choose(better, new_scale, scale)
        factor = choose(better, trial, factor)
        code_low = choose(better, low, code_low)
        low = choose(better, new_low, low)
    scale, factor = choose(flat, np.float32(0), scale), choose(flat, np.float32(0), factor)
    return scale, -low, factor, code_low


@compiled
def search_codes(factor: Any, low: Any, top: Any, x: Any, at: int, size: int, codes: Any) -> None:
    """Give the codes that a search found its scale with."""
    # A factor of 0 may meet an infinity.
    flat = factor == np.float32(0)
    for i in range(at, at + size):
        code = nearest(factor * (load(x, i) - low))
        store(codes, i, choose(flat, np.int32(0), least(most(code, np.int32(0)), np.int32(top))))


@compiled
def positive(x: Any, count: int, top: Any, factors: Any, weights: Any, codes: Any, at: int) -> Any:
    """Fit a scale to the scales, or offsets, of a block's groups: `make_qp_quants`.

    Parameters
    ----------
    x, weights : numpy.ndarray
        Float32 (groups, 16).
    count : int
        How many groups there are.
    top : float
        The largest code.
    factors : numpy.ndarray
        The factors that are tried, for numbers up to 1.
    codes : numpy.ndarray
        Whole numbers: the codes are written from `at` on. They may be wrapped negative ones.
    at : int
        Where these begin.

    Returns
    -------
    FLOATS
        The scale.
    """
    zero, most_code = np.float32(0), np.int32(top)
    high = spread(zero)
    for i in range(count):
        number = load(x, i)
        high = choose(high > number, high, number)
    empty = high < NOTHING
    factor = top / high
    scale, best = np.float32(1) / factor, spread(zero)
    for i in range(count):
        number = load(x, i)
        off = number - scale * to_floats(nearest(factor * number) & 255)
        best = best + load(weights, i) * off * off
    for step in range(factors.size):
        trial = factors[step] / high
        scale, error = np.float32(1) / trial, spread(zero)
        for i in range(count):
            number = load(x, i)
            off = number - scale * to_floats(least(nearest(trial * number), most_code))
            error = error + load(weights, i) * off * off
        better = error < best
        best = choose(better, error, best)
        factor = choose(better, trial, factor)
    sum_cx = sum_cc = spread(zero)
    for i in range(count):
        number, weight = load(x, i), load(weights, i)
        code = least(nearest(factor * number), most_code)
        store(codes, at + i, code & 255)
        sum_cx = sum_cx + weight * number * to_floats(code)
        sum_cc = sum_cc + weight * to_floats(code) * to_floats(code)
    for _ in range(5):
        changed = empty & ~empty
        for i in range(count):
            number, weight, old = load(x, i), load(weights, i), load(codes, at + i)
            code = to_floats(old)
            rest_cx = sum_cx - weight * number * code
            rest_cc = sum_cc - weight * code * code
            able = (rest_cx > zero) & (rest_cc > zero)
            new = least(nearest(number * rest_cc / rest_cx), most_code)
            code = to_floats(new)
            rest_cx = rest_cx + weight * number * code
            rest_cc = rest_cc + weight * code * code
            better = rest_cx * rest_cx * sum_cc > sum_cx * sum_cx * rest_cc
            better = better & able & (new != old)
            store(codes, at + i, choose(better, new & 255, old))
            sum_cx, sum_cc = choose(better, rest_cx, sum_cx), choose(better, rest_cc, sum_cc)
            changed = changed | better
        # A lane where nothing changed stays as it is in another round.
        if not some(changed):
            break
    for i in range(count):
        store(codes, at + i, choose(empty, np.int32(0), load(codes, at + i)))
    found = choose(sum_cc > zero, sum_cx / sum_cc, zero)
    return choose(empty, zero, found)


@compiled
def _largest(p: Any, x: Any, codes: Any, at: int) -> Any:
    """Take the largest scale for the largest code."""
    zero, top = np.float32(0), p.scale_top
    high = spread(zero)
    for i in range(p.groups):
        number = load(x, i)
        high = choose(number > high, number, high)
    factor = choose(high > zero, top / high, zero)
    for i in range(p.groups):
        store(codes, at + i, nearest(factor * load(x, i)) & 255)
    return high / top


@compiled
def _settle(p: Any, fields: Any) -> None:
    """Give codes of scales as they will be read: bits that do not fit fall on other fields."""
    first = p.elements
    for i in range(p.groups):
        scale, offset = load(fields, first + i), load(fields, first + p.groups + i)
        if p.limited:
            scale, offset = least(scale, np.int32(63)), least(offset, np.int32(63))
        if p.nibbles:
            offset = offset | (scale >> 4)
            scale, offset = scale & 15, offset & 15
        store(fields, first + i, scale)
        store(fields, first + p.groups + i, offset)
    if p.nibbles:
        return
    # Bits 4 and 5 of the last four lie above the six bits of the first four, from which eight
    # bits were written.
    for at in range(first, first + 2 * p.groups, p.groups):
        for i in range(at, at + 4):
            early, late = load(fields, i), load(fields, i + 4)
            store(fields, i + 4, (late & 63) | ((early >> 2) & 48))
            store(fields, i, early & 63)


@entry
def encode_nested(plan: Any, x: Any, importance: Any, sums: Any, out: Any) -> bool:
    """Encode Q2_K, Q4_K, Q5_K: scales and offsets of groups are multiples of two float16.

    Parameters
    ----------
    plan : numpy.ndarray
        One `Search`.
    x, importance : numpy.ndarray
        Elements as `gather` lays them out; `importance` has no tiles where there is none.
    sums : numpy.ndarray
        Not used.
    out : numpy.ndarray
        The blocks, uint8 (blocks, bytes).

    Returns
    -------
    bool
        False where a float16 would not be finite.
    """
    p = plan[0]
    size, groups, elements = p.size, p.groups, p.elements
    fields, bytes_ = np.empty((p.fields, LANES), np.int32), np.empty((p.bytes, LANES), np.int32)
    weights, spare = np.empty((size, LANES), np.float32), np.empty((size, LANES), np.float32)
    found = np.empty((5, groups, LANES), np.float32)
    scales, offsets, factors, lows, totals = found[0], found[1], found[2], found[3], found[4]
    for k in range(x.shape[0]):
        tile = x[k]
        told = importance[k] if p.important else tile
        sigma = spread(np.float32(0))
        if p.important:
            sigma = p.sigma * sum_squares(tile, 0, elements, sigma) / np.float32(elements)
        for j in range(groups):
            total = weigh(p.weights, tile, told, j * size, size, sigma, weights)
            scale, offset, factor, low = search(p, tile, j * size, weights, spare)
            store(totals, j, total)
            store(scales, j, scale)
            store(offsets, j, offset)
            store(factors, j, factor)
            store(lows, j, low)
        if p.important:
            tried = p.scale_factors[: p.scale_steps]
            base = positive(scales, groups, p.scale_top, tried, totals, fields, elements)
            under = positive(offsets, groups, p.scale_top, tried, totals, fields, elements + groups)
        else:
            base = _largest(p, scales, fields, elements)
            under = _largest(p, offsets, fields, elements + groups)
        _settle(p, fields)
        base_half, under_half = to_half(base), to_half(under)
        if some(is_infinite(base_half) | is_infinite(under_half)):
            return False
        store(fields, elements + 2 * groups, base_half)
        store(fields, elements + 2 * groups + 1, under_half)
        base, under = from_half(base_half), from_half(under_half)
        for j in range(groups):
            scale = base * to_floats(load(fields, elements + j))
            offset = under * to_floats(load(fields, elements + groups + j))
            if some(scale == np.float32(0)):
                search_codes(load(factors, j), load(lows, j), p.top, tile, j * size, size, fields)
            round_off_above(scale, offset, p.top, tile, j * size, size, fields)
        pack(p.runs, fields, bytes_)
        write(bytes_, out[k * LANES :])
    return True


@entry
def encode_offset(plan: Any, x: Any, importance: Any, sums: Any, out: Any) -> bool:
    """Encode Q4_1, Q5_1: a float16 scale and offset; `sums` has the variances of the rows."""
    p = plan[0]
    size = p.size
    fields, bytes_ = np.empty((p.fields, LANES), np.int32), np.empty((p.bytes, LANES), np.int32)
    weights, spare = np.empty((size, LANES), np.float32), np.empty((size, LANES), np.float32)
    for k in range(x.shape[0]):
        tile = x[k]
        weigh(p.weights, tile, importance[k], 0, size, load(sums, k), weights)
        scale, offset, factor, low = search(p, tile, 0, weights, spare)
        search_codes(factor, low, p.top, tile, 0, size, fields)
        base_half, under_half = to_half(scale), to_half(-offset)
        if some(is_infinite(base_half) | is_infinite(under_half)):
            return False
        store(fields, size + 2, base_half)
        store(fields, size + 3, under_half)
        pack(p.runs, fields, bytes_)
        write(bytes_, out[k * LANES :])
    return True
