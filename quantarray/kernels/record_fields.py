"""The fields of blocks of ggml: from a few bits each to a byte each, and back.

A field, or the same eight fields, of many blocks after another: what a run says is read once.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quantarray.kernels.compiling import compiled, inlined
from quantarray.kernels.record_plans import BITS, DIGIT_WORDS, DIGITS, WORDS

ONES = np.uint64(0x0101010101010101)
_EVEN = np.uint64(0x00FF00FF00FF00FF)
_ODD = np.uint64(0xFF00FF00FF00FF00)
_BITS = np.uint64(0x8040201008040201)
_LOW = np.uint64(0x7F7F7F7F7F7F7F7F)
_GATHER = np.uint64(0x0102040810204080)


def address(context: Any, builder: Any, array: Any, value: Any, at: Any, kind: Any) -> Any:
    """Give a pointer to what lies in an array from an element on."""
    data = context.make_array(array)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [at]), kind.as_pointer())


def _word_at(typingctx: Any, data: Any, at: Any) -> tuple[Any, Any]:
    """Read eight bytes from any byte on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, at = arguments
        place = address(context, builder, signature.args[0], data, at, ir.IntType(64))
        return builder.load(place, align=1)

    return types.uint64(data, types.intp), generate


def _put_word(typingctx: Any, data: Any, at: Any, word: Any) -> tuple[Any, Any]:
    """Write eight bytes from any byte on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, at, word = arguments
        place = address(context, builder, signature.args[0], data, at, ir.IntType(64))
        builder.store(word, place, align=1)
        return context.get_dummy_value()

    return types.void(data, types.intp, types.uint64), generate


# What Numba says of their types is that of the functions above, with one argument more.
word_at: Any = intrinsic(_word_at)
put_word: Any = intrinsic(_put_word)


@compiled
def read(run: Any, size: int, data: Any, count: int, plane: Any) -> None:
    """Read the fields of a run in `count` blocks into a plane of bytes, one field at a time."""
    how, unit, parts, per_block = run.how, run.unit, run.parts, run.per_block
    bits, mask, right, left, alone = run.bits, run.mask, run.right, run.left, run.alone
    for u in range(run.units):
        at, to = run.start + u * run.stride, run.first + u * run.fields
        if how == BITS:
            _read_bits(data, at, size, left, alone, plane, to, per_block, count)
            continue
        power = 1
        for part in range(parts):
            shift = right + part * bits
            if how == WORDS:
                for i in range(0, unit, 8):
                    how_to = shift, mask, left, alone
                    _read_words(data, at + i, size, how_to, plane, to + i, per_block, count)
            elif how == DIGIT_WORDS:
                for i in range(0, unit, 8):
                    _read_digits(data, at + i, size, power, plane, to + i, per_block, count)
            elif how == DIGITS:
                for i in range(unit):
                    for block in range(count):
                        digits = np.int64(data[np.uintp(at + i + block * size)]) * power & 255
                        plane[np.uintp(to + i + block * per_block)] = np.uint8(digits * 3 >> 8)
            else:
                for i in range(unit):
                    how_to = shift, mask, left, alone
                    _read_bytes(data, at + i, size, how_to, plane, to + i, per_block, count)
            power, to = power * 3, to + unit


@compiled
def _read_words(
    data: Any, at: int, size: int, how: Any, plane: Any, to: int, per_block: int, count: int
) -> None:
    """Read fields of eight neighbouring bytes at once."""
    shift, mask, left = np.uint64(how[0]), np.uint64(how[1]) * ONES, np.uint64(how[2])
    if how[3]:
        for block in range(count):
            fields = (word_at(data, at + block * size) >> shift & mask) << left
            put_word(plane, to + block * per_block, fields)
    else:
        for block in range(count):
            fields = (word_at(data, at + block * size) >> shift & mask) << left
            place = to + block * per_block
            put_word(plane, place, word_at(plane, place) | fields)


@compiled
def _read_digits(
    data: Any, at: int, size: int, power: int, plane: Any, to: int, per_block: int, count: int
) -> None:
    """Read digits of base 3 of eight neighbouring bytes, in lanes of 16 bits."""
    three, eight, times = np.uint64(3), np.uint64(8), np.uint64(power)
    for block in range(count):
        word = word_at(data, at + block * size)
        even = (word & _EVEN) * times & _EVEN
        odd = (word >> eight & _EVEN) * times & _EVEN
        fields = (even * three >> eight & _EVEN) | (odd * three & _ODD)
        put_word(plane, to + block * per_block, fields)


@compiled
def _read_bytes(
    data: Any, at: int, size: int, how: Any, plane: Any, to: int, per_block: int, count: int
) -> None:
    shift, mask, left = how[:3]
    if how[3]:
        for block in range(count):
            field = np.int64(data[np.uintp(at + block * size)]) >> shift & mask
            plane[np.uintp(to + block * per_block)] = np.uint8(field << left)
    else:
        for block in range(count):
            field = np.int64(data[np.uintp(at + block * size)]) >> shift & mask
            plane[np.uintp(to + block * per_block)] |= np.uint8(field << left)


@compiled
def _read_bits(
    data: Any,
    at: int,
    size: int,
    left: int,
    alone: bool,
    plane: Any,
    to: int,
    per_block: int,
    count: int,
) -> None:
    """Read the eight bits of a byte at once."""
    for block in range(count):
        bits = np.uint64(data[np.uintp(at + block * size)]) * ONES & _BITS
        fields = (((bits & _LOW) + _LOW | bits) >> np.uint64(7) & ONES) << np.uint64(left)
        place = to + block * per_block
        if not alone:
            fields |= word_at(plane, place)
        put_word(plane, place, fields)


@compiled
def write(run: Any, size: int, codes: Any, count: int, out: Any) -> None:
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
        elif how == DIGITS:
            for i in range(unit):
                _write_few(codes, place + i, per_block, unit, parts, out, at + i, size, count)
        else:
            for part in range(parts):
                how_to = left, mask, right + part * bits, part == 0
                first = place + part * unit
                for i in range(0, unit, 8 if how == WORDS else 1):
                    if how == WORDS:
                        _write_words(codes, first + i, per_block, how_to, out, at + i, size, count)
                    else:
                        _write_bytes(codes, first + i, per_block, how_to, out, at + i, size, count)


@compiled
def _write_words(
    codes: Any, first: int, per_block: int, how: Any, out: Any, at: int, size: int, count: int
) -> None:
    left, mask, right = np.uint64(how[0]), np.uint64(how[1]) * ONES, np.uint64(how[2])
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
def _write_bytes(
    codes: Any, first: int, per_block: int, how: Any, out: Any, at: int, size: int, count: int
) -> None:
    left, mask, right, alone = how
    for block in range(count):
        field = (np.int64(codes[np.uintp(first + block * per_block)]) >> left & mask) << right
        before = np.int64(0) if alone else np.int64(out[np.uintp(at + block * size)])
        out[np.uintp(at + block * size)] = np.uint8(before | field)


@compiled
def _write_bits(
    codes: Any, first: int, per_block: int, left: int, out: Any, at: int, size: int, count: int
) -> None:
    """Write bits of eight neighbouring fields as a byte."""
    for block in range(count):
        fields = word_at(codes, first + block * per_block) >> np.uint64(left) & ONES
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
            out[np.uintp(i)] = _fraction(np.uint32(out[np.uintp(i)]))


@compiled
def _write_few(
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
    """Write fewer than five digits of base 3 to a byte."""
    for block in range(count):
        digits = np.int64(0)
        for part in range(5):
            place = first + part * unit + block * per_block
            digits = digits * 3 + (np.int64(codes[place]) if part < parts else 0)
        out[at + block * size] = _fraction(np.uint32(digits))


@inlined
def _fraction(digits: Any) -> Any:
    """Give five digits as a fraction of 256, rounded up: ``(digits * 256 + 242) // 243``."""
    return np.uint8(
        np.uint32(np.uint32(digits * np.uint32(256) + np.uint32(242)) * np.uint32(17261)) >> 22
    )
