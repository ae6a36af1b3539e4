"""Scales by search: ``x = scale * values[code]``, for IQ4_NL and IQ4_XS."""

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
    inverse,
    is_infinite,
    nearest,
    pack,
    sum_squares,
    to_half,
    weigh,
    write,
)
from quantarray.kernels.search_signed import edge_of


@compiled
def _values(values: Any, ends: Any, x: Any, y: Any) -> Any:
    """Give the value next to each number, the larger one of two: `best_index_int8`.

    C compares differences to two values; these are exact where they could be equal. Two vectors at
    once, since more constants are needed than there are registers.
    """
    found = other = spread(values[0])
    for k in range(15):
        found = choose(x < ends[k], found, values[k + 1])
        other = choose(y < ends[k], other, values[k + 1])
    return found, other


@compiled
def _codes(ends: Any, factor: Any, x: Any, at: int, size: int, codes: Any) -> None:
    """Give the codes of those values; NaN has the last one."""
    for i in range(at, at + size):
        number = factor * load(x, i)
        code = choose(number < ends[0], np.int32(0), np.int32(1))
        for k in range(1, 15):
            code = choose(number < ends[k], code, np.int32(k + 1))
        store(codes, i, code)


@compiled
def _search(p: Any, x: Any, at: int, weights: Any) -> Any:
    """Fit a scale to a group."""
    zero, values, ends = np.float32(0), p.values, p.ends
    edge, empty = edge_of(x, at, p.size)
    scale = best = spread(zero)
    for step in range(p.steps):
        trial = p.factors[step] / edge
        if step == 0:
            trial = np.float32(1) / (-edge / values[0])
        sum_vx = sum_vv = spread(zero)
        for i in range(0, p.size, 2):
            number, other = load(x, at + i), load(x, at + i + 1)
            value, next_value = _values(values, ends, trial * number, trial * other)
            weighted, next_weighted = load(weights, i) * value, load(weights, i + 1) * next_value
            sum_vx = sum_vx + weighted * number + next_weighted * other
            sum_vv = sum_vv + weighted * value + next_weighted * next_value
        found, able = sum_vx / sum_vv, sum_vv > zero
        if step == 0:
            scale = choose(able, found, zero)
            best = scale * sum_vx
        else:
            better = able & (sum_vx * sum_vx > best * sum_vv)
            scale, best = choose(better, found, scale), choose(better, found * sum_vx, best)
    return choose(empty, zero, scale)


@compiled
def _nest(p: Any, scales: Any, codes: Any, at: int) -> Any:
    """Make the scales of groups multiples of one, which is returned."""
    zero = np.float32(0)
    edge = largest = spread(zero)
    for i in range(p.groups):
        scale = load(scales, i)
        magnitude = size_of(scale)
        larger = magnitude > largest
        largest, edge = choose(larger, magnitude, largest), choose(larger, scale, edge)
    base = -edge / p.scale_top
    factor = inverse(base)
    low = -np.int32(p.scale_top)
    for i in range(p.groups):
        code = most(least(nearest(factor * load(scales, i)), -low - np.int32(1)), low)
        store(scales, i, base * to_floats(code))
        store(codes, at + i, code - low)
    return base


@entry
def encode_values(plan: Any, x: Any, importance: Any, sums: Any, out: Any) -> bool:
    """Encode IQ4_NL and IQ4_XS.

    The arguments, and the result, are those of `search_affine.encode_nested`.
    """
    p = plan[0]
    size, groups, elements = p.size, p.groups, p.elements
    fields, bytes_ = np.empty((p.fields, LANES), np.int32), np.empty((p.bytes, LANES), np.int32)
    weights, scales = np.empty((size, LANES), np.float32), np.empty((groups, LANES), np.float32)
    for k in range(x.shape[0]):
        tile = x[k]
        told = importance[k] if p.important else tile
        sigma = spread(np.float32(0))
        if p.important:
            sigma = sum_squares(tile, 0, elements, sigma) * (p.sigma / np.float32(elements))
        for j in range(groups):
            weigh(p.weights, tile, told, j * size, size, sigma, weights)
            store(scales, j, _search(p, tile, j * size, weights))
        base = _nest(p, scales, fields, elements) if groups > 1 else load(scales, 0)
        for j in range(groups):
            _codes(p.ends, inverse(load(scales, j)), tile, j * size, size, fields)
        half = to_half(base)
        if some(is_infinite(half)):
            return False
        store(fields, elements + 2 * groups, half)
        pack(p.runs, fields, bytes_)
        write(bytes_, out[k * LANES :])
    return True
