"""Decoding in one pass: bytes to values, times the scale of their block.

What is computed, and how it rounds, is defined by `decoder`.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from quantarray.kernels.bits import as_bits, fit, flushed, magnitude
from quantarray.kernels.compiling import compiled, entry
from quantarray.kernels.loops import SPAN, spread
from quantarray.kernels.plans import SIGNED, TABLE, UNSIGNED


def narrowed(x: Any, like: Any) -> Any:
    """Round a float to what an array in memory holds: see `loops.widened`."""


@overload(narrowed, strict=False)
def _narrowed(x: Any, like: Any) -> Any:
    if like in (types.uint64, types.uint32):
        return lambda x, like: as_bits(x)

    def to_bfloat16(x: Any, like: Any) -> Any:
        bits = as_bits(x)
        if x != x:
            return np.uint16(((bits >> 16) & 0x8000) | 0x7FC0)
        return np.uint16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)

    def to_float16(x: Any, like: Any) -> Any:
        bits = as_bits(x)
        size = magnitude(bits)
        sign = (bits >> 16) & -0x8000
        if x != x:
            return np.int16(sign | 0x7E00)
        # Below the smallest normal number, the last bits of |x| + 0.5 are those of the result.
        low = as_bits(np.float32(abs(x) + np.float32(0.5))) - 0x3F000000
        high = (size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13
        return np.int16(sign | (low if size < 0x38800000 else min(high, 0x7C00)))

    return to_bfloat16 if like == types.uint16 else to_float16


@compiled
def unpack(p: Any, data: Any, first: int, work: Any) -> None:
    """Give the values of codes, the first of which is bit `first` of the data."""
    if p.kind == TABLE:
        per_byte = 8 // p.width
        _look_up(p.table, per_byte, data[first // 8 :], work)
    elif p.kind == SIGNED:
        codes = data[first // 8 : first // 8 + work.size].view(np.int8)
        for i in range(work.size):
            work[i] = codes[i]
    elif p.kind == UNSIGNED:
        bytes_ = data[first // 8 : first // 8 + work.size]
        for i in range(work.size):
            work[i] = bytes_[i]
    else:
        _read_bits(p, data, first, work)


@compiled
def _look_up(table: Any, per_byte: int, data: Any, work: Any) -> None:
    """Look up the values of all codes of a byte at once."""
    if per_byte == 2:
        for i in range(work.size // 2):
            both = 2 * np.int64(data[i])
            work[2 * i] = table[both]
            work[2 * i + 1] = table[both + 1]
        if work.size % 2:
            work[work.size - 1] = table[2 * np.int64(data[work.size // 2])]
    elif per_byte == 1:
        for i in range(work.size):
            work[i] = table[data[i]]
    else:
        for i in range(work.size):
            work[i] = table[per_byte * np.int64(data[i // per_byte]) + i % per_byte]


@compiled
def _read_bits(p: Any, data: Any, first: int, work: Any) -> None:
    table, width, mask, high_first, flip = (
        p.table,
        p.width,
        (1 << p.width) - 1,
        p.high_first,
        p.flip,
    )
    for i in range(work.size):
        bit = first + i * width
        at, shift = bit // 8, bit % 8
        one = np.int64(data[at] ^ flip)
        two = np.int64(data[at + 1] ^ flip) if shift + width > 8 else 0
        if high_first:
            code = ((one << 8 | two) >> (16 - shift - width)) & mask
        else:
            code = ((one | two << 8) >> shift) & mask
        work[i] = table[code]


@compiled
def _scale_bytes(signed: bool, codes: Any, scale: Any, values: Any) -> None:
    """Multiply codes that are their values by the scale of their block."""
    if signed:
        numbers = codes.view(np.int8)
        for i in range(values.size):
            values[i] = fit(numbers[i], scale[i]) * scale[i]
    else:
        for i in range(values.size):
            values[i] = fit(codes[i], scale[i]) * scale[i]


@entry
def dequantize(
    plan: Any, data: Any, rows: Any, share: Any, found: Any, out: Any, work: Any
) -> bool:
    """Decode a share of the rows and columns of an array.

    Gives False, with some results not written, where a block needs the care of the generic path.
    """
    p, dtype, size, columns = plan[0], work.dtype, rows.size, rows.columns
    grid = (columns - 1) // size + 1
    most = SPAN // size + 2
    scale, zero, offset = np.empty(most, dtype), np.empty(most, dtype), np.empty(most, dtype)
    scale_row, zero_row = np.empty(SPAN, dtype), np.empty(SPAN, dtype)
    offset_row, spare = np.empty(SPAN, dtype), np.empty(2 * SPAN, dtype)
    direct = out.itemsize == work.itemsize
    for band in range(share.starts.size - 1):
        members = share.order[share.starts[band] : share.starts[band + 1]]
        for left in range(share.start, share.stop, SPAN):
            right = min(left + SPAN, share.stop)
            n = (right - 1) // size - left // size + 1
            at = (share.band + band) * grid + left // size
            if not _parameters(p, found, at, scale[:n], zero[:n], offset[:n]):
                return False
            small = _has_small(p, scale[:n])
            spread(scale[:n], left, size, scale_row[: right - left], spare)
            if p.has_point:
                spread(zero[:n], left, size, zero_row[: right - left], spare)
            if p.has_offset:
                spread(offset[:n], left, size, offset_row[: right - left], spare)
            for row in members:
                first = rows.first + rows.offsets[row] + left
                target = out[first : first + right - left]
                values = target.view(dtype) if direct else work[: right - left]
                bit = 8 * row * rows.row_bytes + left * p.width
                if p.simple and not small:
                    codes = data[bit // 8 : bit // 8 + right - left]
                    _scale_bytes(p.kind == SIGNED, codes, scale_row, values)
                else:
                    unpack(p, data, bit, values)
                    _scale(p, values, scale_row, zero_row, offset_row, small)
                if not direct:
                    for i in range(target.size):
                        target[i] = narrowed(values[i], target[0])
    return True


@compiled
def _parameters(p: Any, found: Any, at: int, scale: Any, zero: Any, offset: Any) -> bool:
    """Read the parameters of blocks; tell whether none of their values can overflow."""
    safe, beyond = p.safe, False
    for k in range(scale.size):
        if found.code.size:
            scale[k] = found.scale[found.code[at + k]]
        else:
            scale[k] = found.scale[at + k]
        beyond |= abs(scale[k]) >= safe
    if p.has_point:
        for k in range(scale.size):
            point = np.int64(found.point[at + k])
            zero[k] = point - 256 if p.signed_point and point > 127 else point
    if p.has_offset:
        for k in range(scale.size):
            offset[k] = found.zero[at + k]
            beyond |= not abs(offset[k]) < p.largest_offset
    return not beyond


@compiled
def _has_small(p: Any, scale: Any) -> bool:
    """Tell whether a product can be subnormal."""
    resolution, tiny, small = p.resolution, p.tiny, False
    for k in range(scale.size):
        small |= abs(scale[k]) * resolution < tiny
    return small


@compiled
def _scale(p: Any, values: Any, scale: Any, zero: Any, offset: Any, small: bool) -> None:
    """Turn the values of codes into those of elements, in place."""
    factor, tiny = p.factor, p.tiny
    if p.has_point:
        for i in range(values.size):
            values[i] = (values[i] - zero[i]) * scale[i]
    else:
        for i in range(values.size):
            values[i] = values[i] * scale[i]
    if factor != 1:
        for i in range(values.size):
            values[i] = values[i] * factor
    if small:
        for i in range(values.size):
            values[i] = flushed(values[i], tiny)
    if p.has_offset:
        for i in range(values.size):
            values[i] = flushed(values[i] + offset[i], tiny)
