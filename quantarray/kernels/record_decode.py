"""Decoding blocks of ggml: fields of a few bits to bytes, these to values, times their scales.

What the fields mean is data: see `quantarray.records`. Some blocks are decoded at a time, each step
over all of them, in memory that stays in a cache.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quantarray.kernels.bits import as_float, widened
from quantarray.kernels.compiling import compiled, entry
from quantarray.kernels.decode import narrowed

# Elements that are worked on at once: a multiple of those of every block.
SPAN = 4096
# How the fields of a run are read: eight bytes at a time; eight bits of a byte at once; or one by
# one; and the same for digits of base 3.
WORDS, BITS, FEW, DIGIT_WORDS, DIGITS = range(5)
# What a run's fields are, each in a plane of bytes; those of more than eight bits have two.
CODES, SIGNS, SCALES, MINS, BASE, OFFSET = range(0, 12, 2)
PLANES = 12

_ONES = np.uint64(0x0101010101010101)
_EVEN = np.uint64(0x00FF00FF00FF00FF)
_ODD = np.uint64(0xFF00FF00FF00FF00)
_BITS = np.uint64(0x8040201008040201)
_LOW = np.uint64(0x7F7F7F7F7F7F7F7F)
_LANES = 16


def _address(context: Any, builder: Any, array: Any, value: Any, at: Any, kind: Any) -> Any:
    """Give a pointer to what lies in an array from an element on."""
    data = context.make_array(array)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [at]), kind.as_pointer())


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def word_at(typingctx: Any, data: Any, at: Any) -> tuple[Any, Any]:
    """Read eight bytes from any byte on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _address(context, builder, signature.args[0], *arguments, ir.IntType(64))
        return builder.load(place, align=1)

    return types.uint64(data, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def put_word(typingctx: Any, data: Any, at: Any, word: Any) -> tuple[Any, Any]:
    """Write eight bytes from any byte on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, at, word = arguments
        place = _address(context, builder, signature.args[0], data, at, ir.IntType(64))
        builder.store(word, place, align=1)
        return context.get_dummy_value()

    return types.void(data, types.intp, types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def _scale_lanes(
    typingctx: Any, codes: Any, at: Any, zero: Any, step: Any, scale: Any, offset: Any, out: Any
) -> tuple[Any, Any]:
    """Write ``(code - zero) * step * scale + offset`` for 16 signed bytes from `at` on.

    A loop would do the same, but first ask, at the cost of a block, whether its arrays overlap.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes, at, zero, step, scale, offset, out = arguments
        byte, index, number = (
            ir.VectorType(kind, _LANES) for kind in (ir.IntType(8), ir.IntType(32), ir.FloatType())
        )

        def spread(scalar: Any, kind: Any) -> Any:
            nothing = ir.Constant(kind, ir.Undefined)
            first = builder.insert_element(nothing, scalar, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(first, nothing, ir.Constant(index, [0] * _LANES))

        source = _address(context, builder, signature.args[0], codes, at, byte)
        target = _address(context, builder, signature.args[6], out, at, number)
        wide = builder.sext(builder.load(source, align=1), index)
        values = builder.sitofp(builder.sub(wide, spread(zero, index)), number)
        values = builder.fmul(values, spread(step, number))
        values = builder.fmul(values, spread(scale, number))
        builder.store(builder.fadd(values, spread(offset, number)), target, align=4)
        return context.get_dummy_value()

    numbers = types.int32, types.float32, types.float32, types.float32
    return types.void(codes, types.intp, *numbers, out), generate


@compiled
def _read(run: Any, size: int, data: Any, count: int, plane: Any) -> None:
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
    shift, mask, left = np.uint64(how[0]), np.uint64(how[1]) * _ONES, np.uint64(how[2])
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
        bits = np.uint64(data[np.uintp(at + block * size)]) * _ONES & _BITS
        fields = (((bits & _LOW) + _LOW | bits) >> np.uint64(7) & _ONES) << np.uint64(left)
        place = to + block * per_block
        if not alone:
            fields |= word_at(plane, place)
        put_word(plane, place, fields)


@compiled
def _look_up(few: Any, codes: Any) -> None:
    """Take entries of a table of 16 by its halves, which a compiler can vectorize."""
    a, b, c, d, e, f, g, h = few[0], few[1], few[2], few[3], few[4], few[5], few[6], few[7]
    i, j, k, m, n, o, p, q = few[8], few[9], few[10], few[11], few[12], few[13], few[14], few[15]
    for at in range(codes.size):
        code = codes[at]
        one, two, four = code & 1 != 0, code & 2 != 0, code & 4 != 0
        low = (
            ((h if one else g) if two else (f if one else e))
            if four
            else ((d if one else c) if two else (b if one else a))
        )
        high = (
            ((q if one else p) if two else (o if one else n))
            if four
            else ((m if one else k) if two else (j if one else i))
        )
        codes[at] = high if code & 8 != 0 else low


@compiled
def _look_up_entries(p: Any, planes: Any, lattice: Any, signs: Any, values: Any) -> None:
    """Look up the values of eight elements at once, and negate those whose sign is set.

    As none is 0, a negated byte does not carry into the next.
    """
    codes, more, flags = planes[CODES], planes[CODES + 1], planes[SIGNS]
    double = p.width == 4
    for at in range(values.size // 8):
        if double:
            one = np.int64(codes[2 * at]) | np.int64(more[2 * at]) << 8
            two = np.int64(codes[2 * at + 1]) | np.int64(more[2 * at + 1]) << 8
            word = lattice[one] | lattice[two] << np.uint64(32)
        else:
            word = lattice[np.int64(codes[at]) | np.int64(more[at]) << 8]
        sign = signs[flags[at]]
        put_word(values, 8 * at, (word ^ sign) + (sign & _ONES))


@compiled
def _halves(planes: Any, which: int, numbers: Any) -> None:
    """Read float16."""
    low, high = planes[which], planes[which + 1]
    for block in range(numbers.size):
        bits = np.int16(np.uint16(low[block]) | np.uint16(high[block]) << np.uint16(8))
        numbers[block] = as_float(widened(bits))


@compiled
def _factors(p: Any, planes: Any, table: Any, base: Any, scale: Any, offset: Any) -> None:
    """Derive the scales and offsets of groups."""
    groups, count = p.groups, scale.size // p.groups
    codes, mins = planes[SCALES], planes[MINS]
    if p.has_base:
        _halves(planes, BASE, base[:count])
    for block in range(count):
        for at in range(block * groups, (block + 1) * groups):
            scale[at] = base[block] * table[codes[at]] if p.has_scales else base[block]
    if p.has_offset:
        offsets = np.empty(count, np.float32)
        _halves(planes, OFFSET, offsets)
        for block in range(count):
            for at in range(block * groups, (block + 1) * groups):
                times = -np.float32(mins[at]) if p.has_mins else np.float32(1)
                offset[at] = offsets[block] * times


@entry
def decode(plan: Any, runs: Any, tables: Any, data: Any, out: Any) -> None:
    """Decode blocks to float32.

    Parameters
    ----------
    plan, runs : array
        Of `records.decoder`.
    tables : tuple of array
        The values of scale codes, of codes, and of entries and signs, eight bytes each.
    data : array of uint8, shape (blocks * size,)
    out : array of float32, shape (blocks * elements,)
    """
    p, (scale_values, few, lattice, signs) = plan[0], tables
    elements, size, group = p.elements, p.size, p.group
    planes, spare = np.zeros((PLANES, SPAN), np.uint8), np.empty(SPAN, np.uint8)
    most = SPAN // group
    scale, offset = np.empty(most, np.float32), np.full(most, np.float32(-0.0))
    base = np.ones(most, np.float32)
    zero, step = np.int32(p.zero), np.float32(p.step)
    for start in range(0, out.size, SPAN):
        target = out[start : start + SPAN]
        count = target.size // elements
        for i in range(runs.size):
            _read(runs[i], size, data[start // elements * size :], count, planes[runs[i].plane])
        values = planes[CODES][: target.size]
        if p.width:
            values = spare[: target.size]
            _look_up_entries(p, planes, lattice, signs, values)
        elif p.looks_up:
            _look_up(few, values)
        groups = count * p.groups
        _factors(p, planes, scale_values, base, scale[:groups], offset[:groups])
        for g in range(groups):
            for at in range(g * group, (g + 1) * group, _LANES):
                _scale_lanes(values, at, zero, step, scale[g], offset[g], target)


@entry
def narrow(values: Any, largest: Any, out: Any) -> None:
    """Round float32 to the floats that an array holds, as their bits; finite to finite ones."""
    for i in range(out.size):
        value = values[i]
        if abs(value) < np.inf:
            value = min(max(value, -largest), largest)
        out[i] = narrowed(value, out[0])
