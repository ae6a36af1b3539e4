"""Encoders of ggml's IQ2 and IQ3 types, block by block: `ggml-quants.c` of llama.cpp.

Every step is rounded to float32 where C does: sums in order of the elements, products from left to
right. What all lattices share comes first.
"""

import math
from typing import Any

import numpy as np

from quantarray.kernels.bits import as_bits
from quantarray.kernels.compiling import compiled, entry, inlined
from quantarray.kernels.decode import narrowed
from quantarray.kernels.search_loops import WILD

# Which points are rounded again with the scale found: `lattice_tables.Search.again`.
OFF, ANY_OFF, ALL = range(3)

_LARGEST = np.float32(np.finfo(np.float32).max)
_NOTHING = np.float32(1e-15)


@inlined
def nearest(x: Any) -> Any:
    """Round to whole numbers, half to even, as C does: garbage from 2**22 on."""
    return np.int32((as_bits(x + np.float32(12582912)) & np.int32(0x7FFFFF)) - np.int32(0x400000))


@inlined
def clamped(x: Any, top: Any) -> Any:
    """Give the code of an odd number, from 0 to `top`."""
    return min(max(nearest(np.float32(0.5) * (x - np.float32(1))), np.int32(0)), np.int32(top))


@compiled
def take(p: Any, given: Any, importance: Any, x: Any, weights: Any) -> bool:
    """Copy the elements of a block, and find what they count; tell whether they are tame."""
    total, worst = np.float32(0), np.int32(0)
    for i in range(x.size):
        x[i] = given[i]
        worst = max(worst, as_bits(x[i]) & np.int32(0x7FFFFFFF))
        total = total + x[i] * x[i]
    energy = p.energy * total / np.float32(x.size)
    if p.important:
        for i in range(x.size):
            weights[i] = importance[i] * math.sqrt(energy + x[i] * x[i])
    else:
        typical = p.typical * energy
        for i in range(x.size):
            weights[i] = x[i] * x[i]
            if p.typical != np.float32(0):
                weights[i] = typical + weights[i]
    return bool(worst <= WILD)


@compiled
def settle(
    near: Any, digits: Any, x: Any, weights: Any, scale: Any, values: Any, terms: Any
) -> Any:
    """Move a point to the lattice, and tell whether it was there: `iq2_find_best_neighbour`.

    Parameters
    ----------
    near : tuple of numpy.ndarray
        `gguf.lattice_tables.Neighbours`, but for its number of levels; the digits of entries are
        places in `terms`, int16 (entries, width).
    digits, x, weights : numpy.ndarray
        The point, which is changed, what it stands for, and what errors count.
    scale : float
        What values are multiplied by.
    values : numpy.ndarray
        Of the digits.
    terms : numpy.ndarray
        Room for float32 (width * levels).
    """
    places, entries, starts, counts, table = near
    width, levels = digits.size, values.size
    point = np.int64(0)
    for i in range(width):
        point = point * levels + np.int64(digits[width - 1 - i])
    if entries[point] >= 0:
        return True
    for i in range(width):
        for level in range(levels):
            difference = scale * values[level] - x[i]
            terms[i * levels + level] = weights[i] * difference * difference
    least, start = _LARGEST, starts[point]
    best = np.int64(table[start])
    for k in range(start, start + counts[point]):
        candidate = np.int64(table[k])
        error = np.float32(0)
        for i in range(width):
            error = error + terms[places[candidate, i]]
        if error < least:
            least, best = error, candidate
    for i in range(width):
        digits[i] = places[best, i] - i * levels
    return False


@compiled
def entry_of(near: Any, digits: Any, levels: int) -> Any:
    """Give the entry that a point is."""
    point = np.int64(0)
    for i in range(digits.size):
        point = point * levels + np.int64(digits[digits.size - 1 - i])
    return near[1][point]


@compiled
def pack(runs: Any, fields: Any, block: Any) -> None:
    """Put fields into the bytes of a block: rows of `runs` have the numbers of `records.Run`s."""
    for i in range(block.size):
        block[i] = np.uint8(0)
    for k in range(runs.shape[0]):
        r = runs[k]
        start, bits, width, parts, units = r[0], r[1], r[2], r[3], r[4]
        step, right, left, first, each = r[5], r[6], r[7], r[8], r[9]
        mask = (1 << bits) - 1
        for unit in range(units):
            for byte in range(width):
                at, field = start + unit * step + byte, first + unit * each + byte
                found = np.int64(block[at])
                for part in range(parts):
                    code = (np.int64(fields[field + part * width]) >> left) & mask
                    found = found | (code << (right + part * bits))
                block[at] = np.uint8(found)


@compiled
def share(p: Any, scales: Any, codes: Any) -> Any:
    """Find the codes of scales, and give the scale of the block."""
    largest = np.float32(0)
    for g in range(scales.size):
        largest = max(largest, scales[g])
        codes[g] = 0
    if largest == np.float32(0):
        return np.float32(0)
    base = largest / p.most
    inverse = np.float32(1) / base
    for g in range(scales.size):
        codes[g] = clamped(inverse * scales[g], p.top)
    return base


@inlined
def half(x: Any) -> Any:
    """Round to float16, as its bits."""
    return np.int32(narrowed(x, np.int16(0))) & np.int32(0xFFFF)


@compiled
def _positive(x: Any, weights: Any, most: Any) -> Any:
    """Find a scale of codes from 0 to `most`: `make_qp_quants`."""
    high, top = np.float32(0), np.float32(most)
    for i in range(x.size):
        high = max(high, x[i])
    if high < _NOTHING:
        return np.float32(0)
    codes = np.empty(x.size, np.uint8)
    inverse = top / high
    best = np.float32(0)
    for step in range(-5, 5):
        if step == 0:
            continue
        # The first is the one of the largest element, whose codes are not limited.
        first = step == -5
        tried = inverse if first else (np.float32(0.1) * np.float32(step) + top) / high
        scale, error = np.float32(1) / tried, np.float32(0)
        for i in range(x.size):
            code = nearest(tried * x[i])
            code = np.int32(np.uint8(code)) if first else min(code, np.int32(most))
            difference = x[i] - scale * np.float32(code)
            error = error + weights[i] * difference * difference
        if first:
            best = error
        elif error < best:
            best, inverse = error, tried
    product = square = np.float32(0)
    for i in range(x.size):
        whole = min(nearest(inverse * x[i]), np.int32(most))
        codes[i] = np.uint8(whole)
        code = np.float32(whole)
        product = product + weights[i] * x[i] * code
        square = square + weights[i] * code * code
    for _ in range(5):
        changed = False
        for i in range(x.size):
            weight, code = weights[i], np.float32(codes[i])
            less = product - weight * x[i] * code
            fewer = square - weight * code * code
            if not (less > np.float32(0) and fewer > np.float32(0)):
                continue
            whole = min(nearest(x[i] * fewer / less), np.int32(most))
            if whole == np.int32(codes[i]):
                continue
            code = np.float32(whole)
            less = less + weight * x[i] * code
            fewer = fewer + weight * code * code
            if less * less * square > product * product * fewer:
                codes[i], product, square, changed = np.uint8(whole), less, fewer, True
        if not changed:
            break
    return product / square if square > np.float32(0) else np.float32(0)


@compiled
def _unsign(x: Any, weights: Any, parity: bool) -> Any:
    """Take the signs of eight elements away, and give them as bits."""
    bits = odd = np.int32(0)
    for i in range(8):
        if x[i] < np.float32(0):
            bits, odd = bits | (np.int32(1) << np.int32(i)), odd ^ np.int32(1)
    if parity and odd:
        place, least = 0, weights[0] * x[0] * x[0]
        for i in range(1, 8):
            found = weights[i] * x[i] * x[i]
            if found < least:
                place, least = i, found
        bits = bits ^ (np.int32(1) << np.int32(place))
    for i in range(8):
        if (bits >> np.int32(i)) & np.int32(1):
            x[i] = -x[i]
    return bits & np.int32(127) if parity else bits


@compiled
def _fit(x: Any, weights: Any, digits: Any) -> Any:
    product = square = np.float32(0)
    for i in range(x.size):
        value = np.float32(2 * digits[i] + 1)
        product = product + weights[i] * x[i] * value
        square = square + weights[i] * value * value
    return product, square


@compiled
def _search(
    p: Any, near: Any, values: Any, x: Any, weights: Any, roots: Any, digits: Any, room: Any
) -> Any:
    """Find the scale and the digits of a group, and whether C takes it for zeros."""
    tried, terms, on, on_tried = room
    size, width, top = x.size, p.width, np.int32(p.levels - 1)
    largest, nothing, one = np.float32(0), np.float32(0), np.float32(1)
    for i in range(size):
        largest = max(largest, x[i])
        digits[i] = 0
    if largest < p.least or largest == nothing:
        return nothing, True
    scale = largest / np.float32(2 * top + 1)
    if p.positive:
        scale = _positive(x, weights, p.levels + 1)
        largest = scale * np.float32(p.levels)
        if largest <= nothing:
            return nothing, True
    best = nothing
    on[:] = p.again != ANY_OFF
    for step in range(p.steps):
        inverse = p.factors[step] / largest
        here = one / inverse
        for i in range(size):
            tried[i] = clamped(inverse * x[i], top)
        for k in range(on.size):
            at = slice(k * width, (k + 1) * width)
            on_tried[k] = settle(near, tried[at], x[at], roots[at], here, values, terms)
        product, square = _fit(x, weights, tried)
        if square > nothing and product * product > best * square:
            scale = product / square
            best = scale * product
            digits[:] = tried
            on[:] = on_tried
    again = p.again == ALL or not on.all()
    if again and scale > nothing:
        inverse = one / scale
        for k in range(on.size):
            if p.again == OFF and on[k]:
                continue
            at = slice(k * width, (k + 1) * width)
            for i in range(k * width, (k + 1) * width):
                digits[i] = clamped(inverse * x[i], top)
            settle(near, digits[at], x[at], roots[at], scale, values, terms)
        product, square = _fit(x, weights, digits)
        if square > nothing:
            scale = product / square
    return scale, False


@entry
def encode_signed(plan: Any, near: Any, given: Any, importance: Any, first: int, out: Any) -> bool:
    """Encode blocks of IQ2 and IQ3.

    Parameters
    ----------
    plan : numpy.ndarray
        A `lattice_plans.Plan`.
    near : tuple of numpy.ndarray
        What `settle` takes.
    given : numpy.ndarray
        Elements, float32.
    importance : numpy.ndarray
        What they count, float32, over and over again; or nothing where the plan says so.
    first : int
        The place of the first of the elements in `importance`.
    out : numpy.ndarray
        uint8 (blocks, size).

    Returns
    -------
    bool
        False where an element is not finite, or a scale is NaN or more than float16 holds.
    """
    p = plan[0]
    x, weights = np.empty(p.elements, np.float32), np.empty(p.elements, np.float32)
    roots, digits = np.empty(p.size, np.float32), np.empty(p.size, np.int32)
    points = p.size // p.width
    room = (
        np.empty(p.size, np.int32),
        np.empty(p.width * p.levels, np.float32),
        np.empty(points, np.bool_),
        np.empty(points, np.bool_),
    )
    values = np.empty(p.levels, np.float32)
    for level in range(p.levels):
        values[level] = np.float32(2 * level + 1)
    scales, codes = np.empty(p.groups, np.float32), np.empty(p.groups, np.int32)
    signs, flip = p.size // 8, np.int32(127 if p.parity else 255)
    first_sign = p.groups * points
    first_code = first_sign + p.groups * signs
    fields = np.empty(p.fields, np.int32)
    for block in range(out.shape[0]):
        elements = given[block * p.elements : (block + 1) * p.elements]
        start = (first + block * p.elements) % max(importance.size, 1)
        if not take(p, elements, importance[start : start + p.elements], x, weights):
            return False
        fields[:] = 0
        to = 0  # the group whose place is next
        for g in range(p.groups):
            at = g * p.size
            some, weight = x[at : at + p.size], weights[at : at + p.size]
            for i in range(p.size):
                roots[i] = math.sqrt(weight[i])
            bits = fields[first_sign + to * signs : first_sign + (to + 1) * signs]
            for k in range(signs):
                eight = slice(8 * k, 8 * k + 8)
                bits[k] = _unsign(some[eight], weight[eight], p.parity)
            scale, empty = _search(p, near, values, some, weight, roots, digits, room)
            if empty:
                bits[:] = 0
                scales[g] = np.float32(0)
                to += 0 if p.crowded else 1
                continue
            if scale < np.float32(0):
                scale = -scale
                for k in range(signs):
                    bits[k] ^= flip
            if scale != scale:  # C makes an end of the process
                return False
            for k in range(points):
                found = entry_of(near, digits[k * p.width : (k + 1) * p.width], p.levels)
                fields[to * points + k] |= found & np.int32(255)
                fields[g * points + k] |= found & np.int32(~255)
            scales[g] = scale
            to += 1
        base = share(p, scales, codes)
        if p.cleared and base == np.float32(0) and scales.max() == np.float32(0):
            fields[:] = 0
        for g in range(p.groups):
            fields[first_code + g] = codes[g]
        bits_of_base = half(base * p.times)
        if (bits_of_base & np.int32(0x7C00)) == np.int32(0x7C00):
            return False
        fields[p.fields - 1] = bits_of_base
        pack(p.runs, fields, out[block])
    return True
