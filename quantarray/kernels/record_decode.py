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
from quantarray.kernels.record_fields import ONES, address, put_word, read
from quantarray.kernels.record_plans import BASE, CODES, MINS, OFFSET, PLANES, SCALES, SIGNS, SPAN

_LANES = 16


def _lanes_scaled(
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

        source = address(context, builder, signature.args[0], codes, at, byte)
        target = address(context, builder, signature.args[6], out, at, number)
        wide = builder.sext(builder.load(source, align=1), index)
        values = builder.sitofp(builder.sub(wide, spread(zero, index)), number)
        values = builder.fmul(values, spread(step, number))
        values = builder.fmul(values, spread(scale, number))
        builder.store(builder.fadd(values, spread(offset, number)), target, align=4)
        return context.get_dummy_value()

    numbers = types.int32, types.float32, types.float32, types.float32
    return types.void(codes, types.intp, *numbers, out), generate


def _lanes_looked_up(typingctx: Any, table: Any, codes: Any, at: Any) -> tuple[Any, Any]:
    """Take entries of a table of 16 bytes for 16 codes from `at` on, in place.

    A table that is a vector to LLVM stays in a register where the processor can permute one.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        table, codes, at = arguments
        kind, index = (ir.VectorType(ir.IntType(bits), _LANES) for bits in (8, 32))
        start = ir.Constant(ir.IntType(64), 0)
        entries = builder.load(
            address(context, builder, signature.args[0], table, start, kind), align=1
        )
        place = address(context, builder, signature.args[1], codes, at, kind)
        # With the mask a compiler knows that no index is beyond the table.
        few = builder.and_(builder.load(place, align=1), ir.Constant(kind, [15] * _LANES))
        indices, found = builder.zext(few, index), ir.Constant(kind, ir.Undefined)
        for k in range(_LANES):
            lane = ir.Constant(ir.IntType(32), k)
            entry = builder.extract_element(entries, builder.extract_element(indices, lane))
            found = builder.insert_element(found, entry, lane)
        builder.store(found, place, align=1)
        return context.get_dummy_value()

    return types.void(table, codes, types.intp), generate


_scale_lanes: Any = intrinsic(_lanes_scaled)
_look_up_lanes: Any = intrinsic(_lanes_looked_up)


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
        put_word(values, 8 * at, (word ^ sign) + (sign & ONES))


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
        Of `record_plans.decoder`.
    tables : tuple of array
        The values of scale codes, of codes, and of entries and signs, eight bytes each.
    data : array of uint8, shape (blocks * size,)
    out : array of float32, shape (blocks * elements,)
    """
    p, (scale_values, few, lattice, signs) = plan[0], tables
    elements, size, group = p.elements, p.size, p.group
    room = min(SPAN, out.size)
    planes, spare, most = (
        np.zeros((PLANES, room), np.uint8),
        np.empty(room, np.uint8),
        room // group,
    )
    scale, offset = np.empty(most, np.float32), np.full(most, np.float32(-0.0))
    base = np.ones(most, np.float32)
    zero, step = np.int32(p.zero), np.float32(p.step)
    for start in range(0, out.size, SPAN):
        target = out[start : start + SPAN]
        count = target.size // elements
        for i in range(runs.size):
            read(runs[i], size, data[start // elements * size :], count, planes[runs[i].plane])
        values = planes[CODES][: target.size]
        if p.width:
            values = spare[: target.size]
            _look_up_entries(p, planes, lattice, signs, values)
        elif p.looks_up:
            for at in range(0, values.size, _LANES):
                _look_up_lanes(few, values, at)
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
