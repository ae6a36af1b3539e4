"""Scales by search: ``x = scale * code``, for Q3_K, Q6_K, Q4_0, Q5_0."""

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
    IMPORTANCE,
    NOTHING,
    clamped,
    from_half,
    is_infinite,
    nearest,
    pack,
    round_off,
    sum_squares,
    to_half,
    weigh,
    write,
)


@compiled
def edge_of(x: Any, at: int, size: int) -> Any:
    """Give the first element of the largest magnitude, and whether all are zero."""
    edge = largest = spread(np.float32(0))
    for i in range(at, at + size):
        number = load(x, i)
        magnitude = size_of(number)
        larger = magnitude > largest
        largest, edge = choose(larger, magnitude, largest), choose(larger, number, edge)
    return edge, largest < NOTHING


@compiled
def search(factors: Any, top: Any, x: Any, at: int, size: int, weights: Any) -> Any:
    """Fit a scale to numbers: `make_qx_quants`.

    Parameters
    ----------
    factors : numpy.ndarray
        The factors that are tried, for numbers up to 1.
    top : float
        Codes are from -top to top - 1.
    x, weights : numpy.ndarray
        Float32 (elements, 16), and (size, 16).
    at, size : int
        Where the numbers begin, and how many there are.

    Returns
    -------
    scale, factor : FLOATS
        The codes are those of ``factor * x``. Where all are zero, that is NaN.
    """
    zero, low, high = np.float32(0), -np.int32(top), np.int32(top) - np.int32(1)
    edge, empty = edge_of(x, at, size)
    factor = scale = best = spread(zero)
    for step in range(factors.size):
        trial = factors[step] / edge
        sum_cx = sum_cc = spread(zero)
        for i in range(size):
            number, weight = load(x, at + i), load(weights, i)
            code = clamped(trial * number, low, high)
            sum_cx = sum_cx + weight * number * code
            sum_cc = sum_cc + weight * code * code
        found = sum_cx / sum_cc
        if step == 0:
            scale = choose(sum_cc != zero, found, zero)
            best, factor = scale * sum_cx, trial
        else:
            better = (sum_cc > zero) & (sum_cx * sum_cx > best * sum_cc)
            scale, factor = choose(better, found, scale), choose(better, trial, factor)
            best = choose(better, found * sum_cx, best)
    return choose(empty, zero, scale), choose(empty, np.float32(np.nan), factor)


@compiled
def search_codes(factor: Any, top: Any, x: Any, at: int, size: int, codes: Any, to: int) -> None:
    """Give the codes that a search found its scale with: from 0, and 0 where all are zero."""
    empty, top_code = factor != factor, np.int32(top)
    for i in range(size):
        code = most(least(nearest(factor * load(x, at + i)), top_code - np.int32(1)), -top_code)
        store(codes, to + i, choose(empty, np.int32(0), code + top_code))


@compiled
def _greedy(p: Any, x: Any, codes: Any, sums: Any, scales: Any) -> None:
    """Fit the scales of the groups of a block, code by code: `make_q3_quants`.

    A code waits for the one before it in its group. So groups take turns.

    Parameters
    ----------
    p : record
        `searches.Search`.
    x : numpy.ndarray
        Elements of 16 blocks, float32 (elements, 16).
    codes, scales : numpy.ndarray
        The results: whole numbers (elements, 16) from 0 on, and float32 (groups, 16).
    sums : numpy.ndarray
        Room for float32 (2, groups, 16).
    """
    zero, top, size, groups = np.float32(0), np.int32(p.top), p.size, p.groups
    low, high = -top, top - np.int32(1)
    sums_cx, sums_cc = sums[0], sums[1]
    for j in range(groups):
        edge, empty = edge_of(x, j * size, size)
        factor = -p.top / edge
        sum_cx = sum_cc = spread(zero)
        for i in range(j * size, (j + 1) * size):
            number = load(x, i)
            whole = least(most(nearest(factor * number), low), high)
            code, weight = to_floats(whole), number * number
            store(codes, i, whole)
            sum_cx = sum_cx + weight * number * code
            sum_cc = sum_cc + weight * code * code
        store(sums_cx, j, sum_cx)
        store(sums_cc, j, sum_cc)
    # Groups without a change in the last round would have none in another.
    active, moved, count = np.arange(groups), np.zeros(groups, np.bool_), groups
    for _ in range(5):
        for first in range(size):
            for j in active[:count]:
                i, sum_cx, sum_cc = j * size + first, load(sums_cx, j), load(sums_cc, j)
                number, old = load(x, i), load(codes, i)
                weight, code = number * number, to_floats(old)
                rest_cx = sum_cx - weight * number * code
                rest_cc = sum_cc - weight * code * code
                able = rest_cx > zero
                new = least(most(nearest(number * rest_cc / rest_cx), low), high)
                code = to_floats(new)
                rest_cx = rest_cx + weight * number * code
                rest_cc = rest_cc + weight * code * code
                better = rest_cx * rest_cx * sum_cc > sum_cx * sum_cx * rest_cc
                better = better & able & (new != old) & (rest_cc > zero)
                store(codes, i, choose(better, new, old))
                store(sums_cx, j, choose(better, rest_cx, sum_cx))
                store(sums_cc, j, choose(better, rest_cc, sum_cc))
                moved[j] |= some(better)
        still = 0
        for j in active[:count]:
            if moved[j]:
                active[still], moved[j] = j, False
                still += 1
        count = still
    for j in range(groups):
        edge, empty = edge_of(x, j * size, size)
        sum_cx, sum_cc = load(sums_cx, j), load(sums_cc, j)
        store(scales, j, choose(empty | ~(sum_cc > zero), zero, sum_cx / sum_cc))
        for i in range(j * size, (j + 1) * size):
            store(codes, i, choose(empty, np.int32(0), load(codes, i) + top))


@compiled
def _largest(p: Any, scales: Any, codes: Any, at: int) -> Any:
    """Take the scale of the largest magnitude for the least code.

    Returns
    -------
    scale, empty : FLOATS, FLAGS
        The scale of the codes; the blocks whose scales are all zero.
    """
    zero = np.float32(0)
    edge = largest = spread(zero)
    for i in range(p.groups):
        scale = load(scales, i)
        magnitude = size_of(scale)
        larger = magnitude > largest
        largest, edge = choose(larger, magnitude, largest), choose(larger, scale, edge)
    empty = edge == zero
    if p.scales_are_bytes:
        empty = largest < NOTHING
    factor = -p.scale_top / edge
    low = -np.int32(p.scale_top)
    high = -low - np.int32(1)
    for i in range(p.groups):
        code = nearest(factor * load(scales, i))
        if p.scales_are_bytes:
            code = (least(code, high) << 24) >> 24
            code = choose(empty, np.int32(0), code)
        else:
            # C first stores it in eight bits.
            code = most(least((code << 24) >> 24, high), low)
            code = choose(empty, low, code)
        store(codes, at + i, code)
    return choose(empty, zero, np.float32(1) / factor), empty


@entry
def encode_scaled(plan: Any, x: Any, importance: Any, sums: Any, out: Any) -> bool:
    """Encode Q3_K, Q6_K: scales of groups are multiples of one float16.

    The arguments, and the result, are those of `search_affine.encode_nested`.
    """
    p = plan[0]
    size, groups, elements, top = p.size, p.groups, p.elements, p.top
    fields, bytes_ = np.empty((p.fields, LANES), np.int32), np.empty((p.bytes, LANES), np.int32)
    weights = np.empty((size, LANES), np.float32)
    found = np.empty((3, groups, LANES), np.float32)
    scales, factors, totals = found[0], found[1], found[2]
    trials, scale_trials = p.factors[: p.steps], p.scale_factors[: p.scale_steps]
    for k in range(x.shape[0]):
        tile = x[k]
        told = importance[k] if p.important else tile
        sigma = spread(np.float32(0))
        if p.weights == IMPORTANCE:
            sigma = p.sigma * sum_squares(tile, 0, elements, sigma) / np.float32(elements)
        if p.greedy:
            _greedy(p, tile, fields, found[1:], scales)
        for j in range(0 if p.greedy else groups):
            total = weigh(p.weights, tile, told, j * size, size, sigma, weights)
            scale, factor = search(trials, top, tile, j * size, size, weights)
            store(totals, j, total)
            store(scales, j, scale)
            store(factors, j, factor)
        empty = spread(np.float32(0)) > np.float32(0)
        if p.scale_steps:
            base, factor = search(scale_trials, p.scale_top, scales, 0, groups, totals)
            search_codes(factor, p.scale_top, scales, 0, groups, fields, elements)
            for i in range(elements, elements + groups):
                store(fields, i, load(fields, i) - np.int32(p.scale_top))
        else:
            base, empty = _largest(p, scales, fields, elements)
        half = to_half(base)
        if some(is_infinite(half)):
            return False
        store(fields, elements + 2 * groups, half)
        base = from_half(half)
        for j in range(groups):
            scale = base * to_floats(load(fields, elements + j))
            if not p.greedy and some(scale == np.float32(0)):
                factor = load(factors, j)
                if p.scales_are_bytes:
                    factor = choose(empty, np.float32(np.nan), factor)
                search_codes(factor, top, tile, j * size, size, fields, j * size)
            round_off(scale, -top, top - np.float32(1), tile, j * size, size, fields)
        if not p.scales_are_bytes:
            for i in range(elements, elements + groups):
                store(fields, i, load(fields, i) + np.int32(p.scale_top))
        pack(p.runs, fields, bytes_)
        write(bytes_, out[k * LANES :])
    return True


@entry
def encode_single(plan: Any, x: Any, importance: Any, sums: Any, out: Any) -> bool:
    """Encode Q4_0, Q5_0: a float16 scale; `sums` has the variances of the rows."""
    p = plan[0]
    size = p.size
    fields, bytes_ = np.empty((p.fields, LANES), np.int32), np.empty((p.bytes, LANES), np.int32)
    weights = np.empty((size, LANES), np.float32)
    for k in range(x.shape[0]):
        tile = x[k]
        weigh(p.weights, tile, importance[k], 0, size, load(sums, k), weights)
        scale, factor = search(p.factors[: p.steps], p.top, tile, 0, size, weights)
        search_codes(factor, p.top, tile, 0, size, fields, 0)
        half = to_half(scale)
        if some(is_infinite(half)):
            return False
        store(fields, size + 2, half)
        pack(p.runs, fields, bytes_)
        write(bytes_, out[k * LANES :])
    return True
