"""Encoders of IQ1_S and IQ1_M, block by block: `ggml-quants.c` of llama.cpp."""

from typing import Any

import numpy as np

from quantarray.kernels.compiling import compiled, entry
from quantarray.kernels.lattice_loops import entry_of, half, pack, settle, share, take

_LARGEST = np.float32(np.finfo(np.float32).max)
_EIGHTH = np.float32(0.125)


@compiled
def _sort(x: Any, order: Any) -> None:
    """Order elements, equal ones as they come."""
    for i in range(x.size):
        k = i
        while k > 0 and x[order[k - 1]] > x[i]:
            order[k] = order[k - 1]
            k -= 1
        order[k] = i


@compiled
def _split_one(x: Any, weights: Any, order: Any, sums: Any, scale: Any) -> Any:
    """Find the best split of a group with one delta: scale, two places, and which delta."""
    zero, count = np.float32(0), x.size
    sums[0, 0] = sums[1, 0] = zero
    for j in range(count):
        i = order[j]
        sums[0, j + 1] = sums[0, j] + weights[i] * x[i]
        sums[1, j + 1] = sums[1, j] + weights[i]
    all_x, all_w = sums[0, count], sums[1, count]
    best, one, two, which = -_LARGEST, -1, -1, 0
    for i in range(count + 1):
        for j in range(i, count + 1):
            low, middle, high = sums[0, i], sums[0, j] - sums[0, i], all_x - sums[0, j]
            less, mid, more = sums[1, i], sums[1, j] - sums[1, i], all_w - sums[1, j]
            for k in range(2):
                delta = _EIGHTH if k == 0 else -_EIGHTH
                a, b, c = np.float32(-1) + delta, delta, np.float32(1) + delta
                product = low * a + middle * b + high * c
                square = less * a * a + mid * b * b + more * c * c
                if square > zero and product * product > best * square:
                    scale = product / square
                    best = scale * product
                    one, two, which = i, j, k
    return scale, one, two, which


@compiled
def _split_two(x: Any, weights: Any, order: Any, sums: Any, scale: Any) -> Any:
    """Find the best split of a group whose halves have a delta each."""
    zero, count = np.float32(0), x.size
    for row in range(4):
        sums[row, 0] = zero
    for j in range(count):
        i = order[j]
        for row in range(4):
            sums[row, j + 1] = sums[row, j]
        part = 0 if i < count // 2 else 1
        sums[part, j + 1] = sums[part, j] + weights[i] * x[i]
        sums[2 + part, j + 1] = sums[2 + part, j] + weights[i]
    found = np.empty((2, 2, 2), np.float32)  # products and squares, of parts, with deltas
    best, one, two, which = -_LARGEST, -1, -1, 0
    for i in range(count + 1):
        for j in range(i, count + 1):
            for part in range(2):
                both = sums[part, i] + sums[part, j]
                first, second = sums[2 + part, i], sums[2 + part, j]
                for k in range(2):
                    delta = _EIGHTH if k == 0 else -_EIGHTH
                    a, b, c = np.float32(-1) + delta, delta, np.float32(1) + delta
                    found[0, part, k] = sums[part, count] * c - both
                    found[1, part, k] = (
                        sums[2 + part, count] * c * c
                        + first * (a * a - b * b)
                        + second * (b * b - c * c)
                    )
            for k in range(4):
                product = found[0, 0, k >> 1] + found[0, 1, k & 1]
                square = found[1, 0, k >> 1] + found[1, 1, k & 1]
                if square > zero and product * product > best * square:
                    scale = product / square
                    best = scale * product
                    one, two, which = i, j, k
    return scale, one, two, which


@compiled
def _again(p: Any, near: Any, x: Any, weights: Any, values: Any, fields: Any, codes: Any) -> Any:
    """Sum, over a block, what its elements' values and weights make of its scale."""
    points, deltas = p.size // p.width, p.groups * (p.size // p.width)
    product = square = np.float32(0)
    for i in range(p.elements):
        point = i // p.width
        place = near[0][fields[point], i % p.width] - (i % p.width) * p.levels
        value = values[fields[deltas + point], place]
        value = value * np.float32(2 * codes[point // points] + 1)
        product = product + weights[i] * value * x[i]
        square = square + weights[i] * value * value
    return product, square


@entry
def encode_ternary(plan: Any, near: Any, given: Any, importance: Any, first: int, out: Any) -> bool:
    """Encode blocks; parameters and result are those of `lattice_loops.encode_signed`."""
    p = plan[0]
    zero, points = np.float32(0), p.size // p.width
    x, weights = np.empty(p.elements, np.float32), np.empty(p.elements, np.float32)
    order, digits = np.empty(p.size, np.int64), np.empty(p.size, np.int32)
    sums, terms = np.empty((4, p.size + 1), np.float32), np.empty(p.width * p.levels, np.float32)
    values = np.empty((2, 3), np.float32)
    for k in range(3):
        values[0, k] = np.float32(k - 1) + _EIGHTH
        values[1, k] = np.float32(k - 1) - _EIGHTH
    scales, codes = np.empty(p.groups, np.float32), np.empty(p.groups, np.int32)
    fields = np.empty(p.fields, np.int32)
    deltas = p.groups * points
    for block in range(out.shape[0]):
        elements = given[block * p.elements : (block + 1) * p.elements]
        start = (first + block * p.elements) % max(importance.size, 1)
        if not take(p, elements, importance[start : start + p.elements], x, weights):
            return False
        fields[:] = 0
        for g in range(p.groups):
            at = slice(g * p.size, (g + 1) * p.size)
            some, weight, largest = x[at], weights[at], zero
            scales[g] = zero
            for i in range(p.size):
                largest = max(largest, abs(some[i]))
            if largest < p.least:
                continue
            _sort(some, order)
            if p.parts == 1:
                scale, one, two, which = _split_one(some, weight, order, sums, largest)
            else:
                scale, one, two, which = _split_two(some, weight, order, sums, largest)
            if one < 0:
                continue
            for j in range(p.size):
                digits[order[j]] = np.int32(j >= one) + np.int32(j >= two)
            if scale < zero:
                scale, which = -scale, 2**p.parts - 1 - which
                for j in range(p.size):
                    digits[j] = 2 - digits[j]
            product = square = zero
            on = True
            for k in range(points):
                part = k * p.parts // points
                minus = (which >> (p.parts - 1 - part)) & 1
                eight = slice(k * p.width, (k + 1) * p.width)
                here = settle(
                    near, digits[eight], some[eight], weight[eight], scale, values[minus], terms
                )
                on = on and here
                fields[g * points + k] = entry_of(near, digits[eight], p.levels)
                fields[deltas + g * points + k] = minus
                for i in range(k * p.width, (k + 1) * p.width):
                    value = values[minus, digits[i]]
                    product = product + weight[i] * value * some[i]
                    square = square + weight[i] * value * value
            if not on and product > zero and square > zero:
                scale = product / square
            if scale != scale:  # C makes an end of the process
                return False
            scales[g] = scale
        base = share(p, scales, codes)
        if scales.max() == zero:
            fields[deltas : 2 * deltas] = 0
        elif p.parts == 2:
            product, square = _again(p, near, x, weights, values, fields, codes)
            if square > zero:
                base = product / square
        for g in range(p.groups):
            fields[2 * deltas + g] = codes[g]
        bits_of_base = half(base * p.times)
        if (bits_of_base & np.int32(0x7C00)) == np.int32(0x7C00):
            return False
        fields[p.fields - 1] = bits_of_base
        pack(p.runs, fields, out[block])
    return True
