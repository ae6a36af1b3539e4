"""What the encoders of ggml's blocks share: elements to lanes, weights, float16, lanes to bytes.

Every step is one of `ggml-quants.c` of llama.cpp, rounded to float32 where C does: sums in order of
the elements, products from left to right.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from quantarray.kernels.bits import as_bits, as_float, widened
from quantarray.kernels.compiling import compiled, entry, inlined
from quantarray.kernels.search_lanes import (
    LANES,
    as_floats,
    as_wholes,
    choose,
    least,
    load,
    most,
    root,
    size_of,
    spread,
    store,
    to_floats,
)
from quantarray.runs import REACH

# What the weights of a group are: see `weigh`.
ABS, MEAN, SQUARE, PLAIN, IMPORTANCE = range(5)

# The bits of the largest elements of a block that is encoded.
WILD = np.float32(REACH).view(np.int32)
# Groups whose largest element is below this are zero.
NOTHING = np.float32(1e-15)


def _number(x: Any) -> Any:
    """Give the float32 of an element in memory."""


@overload(_number, strict=False)
def _number_of(x: Any) -> Any:
    def rounded(x: Any) -> Any:
        return np.float32(x)

    def exact(x: Any) -> Any:
        return as_float(widened(x))

    return rounded if x == types.float64 else exact


@entry
def gather(memory: Any, starts: Any, tiles: Any) -> bool:
    """Copy elements so that those of 16 blocks lie side by side; tell whether all are tame.

    Those are finite, and at most 2**40: no scale of float16 holds larger ones.

    Parameters
    ----------
    memory : numpy.ndarray
        1-D: float64, or the bits of floats as `widened` takes them.
    starts : numpy.ndarray
        Where each block begins.
    tiles : numpy.ndarray
        Where they go: float32 (tiles, elements, 16). Lanes without a block become 0.
    """
    size, worst = tiles.shape[1], np.int32(0)
    row = np.empty(size, np.float32)
    for k in range(tiles.shape[0] * LANES):
        tile, lane = tiles[k // LANES], k % LANES
        if k >= starts.size:
            for i in range(size):
                tile[i, lane] = np.float32(0)
            continue
        block = memory[starts[k] : starts[k] + size]
        for i in range(size):
            row[i] = _number(block[i])
        for i in range(size):
            worst = max(worst, np.int32(as_bits(row[i]) & np.int32(0x7FFFFFFF)))
        for i in range(size):
            tile[i, lane] = row[i]
    return bool(worst <= WILD)


@entry
def add_squares(tiles: Any, sums: Any) -> None:
    """Add the squares of elements to the sums of their lanes, float32 (tiles, 16)."""
    for k in range(tiles.shape[0]):
        store(sums, k, sum_squares(tiles[k], 0, tiles.shape[1], load(sums, k)))


@inlined
def sum_squares(x: Any, at: int, count: int, total: Any) -> Any:
    """Add the squares of elements to a sum."""
    for i in range(at, at + count):
        number = load(x, i)
        total = total + number * number
    return total


@inlined
def nearest(x: Any) -> Any:
    """Round to whole numbers, half to even, as C does: garbage from 2**22 on, and 0 for NaN."""
    return (as_wholes(x + np.float32(12582912)) & 0x7FFFFF) - 0x400000


@inlined
def clamped(x: Any, low: Any, high: Any) -> Any:
    """Round to whole numbers between two, as floats: `nearest` without a conversion."""
    # The bits of 12582912 plus the whole number; or, where those above the last 23 are others, plus
    # the garbage that C has.
    code = (as_wholes(x + np.float32(12582912)) & 0x7FFFFF) | 0x4B000000
    code = least(most(code, low + np.int32(0x4B400000)), high + np.int32(0x4B400000))
    return as_floats(code) - np.float32(12582912)


@inlined
def inverse(x: Any) -> Any:
    """Give 1 / x, and 0 for 0."""
    return choose(x != np.float32(0), np.float32(1) / x, np.float32(0))


@inlined
def to_half(x: Any) -> Any:
    """Round floats to float16, half to even; NaN becomes an infinity."""
    bits = as_wholes(x)
    size = bits & 0x7FFFFFFF
    normal = ((size - 0x38000000) + 0xFFF + ((size >> 13) & 1)) >> 13
    small = as_wholes(as_floats(size) + np.float32(0.5)) - 0x3F000000
    found = choose(size < 0x38800000, small, least(normal, 0x7C00))
    return found | ((bits >> 16) & 0x8000)


@inlined
def from_half(bits: Any) -> Any:
    """Give the floats of float16 that are finite."""
    size = bits & 0x7FFF
    small = to_floats(size) * np.float32(2.0**-24)
    found = choose(size < 0x400, small, as_floats((size << 13) + 0x38000000))
    return choose((bits & 0x8000) != 0, -found, found)


@inlined
def is_infinite(half: Any) -> Any:
    """Tell of float16 which are not finite."""
    return (half & 0x7C00) == 0x7C00


@compiled
def weigh(kind: int, x: Any, importance: Any, at: int, size: int, sigma: Any, weights: Any) -> Any:
    """Find the weights of the elements of a group, and their sum.

    Parameters
    ----------
    kind : int
        ``ABS: abs(x)``, ``MEAN: sqrt(mean(x**2)) + abs(x)``, ``SQUARE: x**2``, ``PLAIN:
        importance``, ``IMPORTANCE: importance * sqrt(sigma + x**2)``.
    x, importance : numpy.ndarray
        Elements of blocks, float32 (elements, 16).
    at, size : int
        Where the group begins, and its size.
    sigma : FLOATS
        The variance of a block's elements, as the type of block defines it.
    weights : numpy.ndarray
        The result, float32 (size, 16).
    """
    total, mean = spread(np.float32(0)), spread(np.float32(0))
    if kind == MEAN:
        mean = root(sum_squares(x, at, size, mean) / np.float32(size))
    for i in range(size):
        number = load(x, at + i)
        if kind == SQUARE:
            weight = number * number
        elif kind == PLAIN:
            weight = load(importance, at + i)
        elif kind == IMPORTANCE:
            weight = load(importance, at + i) * root(sigma + number * number)
        else:
            # A mean of 0 changes no sign: abs(x) is not -0.
            weight = mean + size_of(number)
        store(weights, i, weight)
        total = total + weight
    return total


@compiled
def round_off(scale: Any, low: Any, high: Any, x: Any, at: int, size: int, codes: Any) -> None:
    """Encode a group from code `low` on with its scale as stored, but where that is 0."""
    keep, low_code, high_code = scale == np.float32(0), np.int32(low), np.int32(high)
    for i in range(at, at + size):
        code = least(most(nearest(load(x, i) / scale), low_code), high_code)
        store(codes, i, choose(keep, load(codes, i), code - low_code))


@compiled
def round_off_above(
    scale: Any, offset: Any, high: Any, x: Any, at: int, size: int, codes: Any
) -> None:
    """Encode a group with its scale and offset as stored, but where the scale is 0."""
    keep, high_code = scale == np.float32(0), np.int32(high)
    for i in range(at, at + size):
        code = least(most(nearest((load(x, i) + offset) / scale), np.int32(0)), high_code)
        store(codes, i, choose(keep, load(codes, i), code))


@compiled
def pack(runs: Any, fields: Any, bytes_: Any) -> None:
    """Put fields into bytes: whole numbers (n, 16), and (size of a block, 16).

    Each row of `runs` has the numbers of a `records.Run`, in their order.
    """
    for i in range(bytes_.shape[0]):
        store(bytes_, i, np.int32(0))
    for k in range(runs.shape[0]):
        r = runs[k]
        start, bits, width, parts, units = r[0], r[1], r[2], r[3], r[4]
        step, right, left, first, each = r[5], r[6], r[7], r[8], r[9]
        mask = np.int32((1 << bits) - 1)
        for unit in range(units):
            for byte in range(width):
                at, field = start + unit * step + byte, first + unit * each + byte
                found = load(bytes_, at)
                for part in range(parts):
                    code = (load(fields, field + part * width) >> left) & mask
                    found = found | (code << np.int32(right + part * bits))
                store(bytes_, at, found)


@compiled
def write(bytes_: Any, out: Any) -> None:
    """Copy the bytes of up to 16 blocks to where they belong."""
    for lane in range(min(LANES, out.shape[0])):
        block = out[lane]
        for i in range(block.size):
            block[i] = np.uint8(bytes_[i, lane])
