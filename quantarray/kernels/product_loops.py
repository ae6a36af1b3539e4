"""The loops of products, with the codes decoded in registers.

The order in which products of floats are summed is no part of any contract, so that those sums may
be reordered.
"""

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int32, types, uint32
from numba.extending import intrinsic

from quantarray.kernels.compiling import entry

exact = entry
reordered = functools.partial(entry, fastmath={"reassoc", "contract"})

# Numba computes with 64 bits unless each step is cast, and checks indices for negative ones unless
# a loop starts at 0: hence slices. Where `table` or `high` is None, it leaves their branches out.
LANES = 16


_CODE, _INDEX, _NUMBER = (
    ir.VectorType(kind, LANES) for kind in (ir.IntType(8), ir.IntType(32), ir.FloatType())
)


class _Lanes:
    """LLVM's vectors of 16 elements of the arrays that an intrinsic is called with."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self.context, self.builder = context, builder
        self.types, self.arguments = signature.args, arguments

    def pointer(self, which: int, kind: Any, start: Any) -> Any:
        array = self.context.make_array(self.types[which])(
            self.context, self.builder, self.arguments[which]
        )
        return self.builder.bitcast(self.builder.gep(array.data, [start]), kind.as_pointer())

    def load(self, which: int, kind: Any, start: Any) -> Any:
        align = 1 if kind is _CODE else 4
        return self.builder.load(self.pointer(which, kind, start), align=align)

    def spread(self, which: int, kind: Any) -> Any:
        """Give a scalar argument in every lane."""
        first = self.builder.insert_element(
            ir.Constant(kind, ir.Undefined), self.arguments[which], ir.Constant(ir.IntType(32), 0)
        )
        everywhere = ir.Constant(_INDEX, [0] * LANES)
        return self.builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), everywhere)

    def halves(self, codes: Any) -> tuple[Any, Any]:
        """Take bytes apart into their low and high bits."""
        low = self.builder.and_(codes, ir.Constant(_CODE, [15] * LANES))
        return low, self.builder.lshr(codes, ir.Constant(_CODE, [4] * LANES))

    def look_up(self, codes: Any, which: int) -> Any:
        """Take entries of a table of 16.

        A table that is a vector to LLVM stays in a register where the processor can permute one, as
        AVX-512 does, in a quarter of the time of the loads that it makes of ``table[code]``.
        """
        builder, start = self.builder, ir.Constant(ir.IntType(64), 0)
        table, indices = self.load(which, _NUMBER, start), builder.zext(codes, _INDEX)
        found = ir.Constant(_NUMBER, ir.Undefined)
        for k in range(LANES):
            lane = ir.Constant(ir.IntType(32), k)
            value = builder.extract_element(table, builder.extract_element(indices, lane))
            found = builder.insert_element(found, value, lane)
        return found


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def _look_up_lanes(
    typingctx: Any, codes: Any, at: Any, table: Any, low: Any, high: Any
) -> tuple[Any, Any]:
    """Look up the codes of 16 bytes from `at` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, at = _Lanes(context, builder, signature, arguments), arguments[1]
        for which, fields in zip((3, 4), lanes.halves(lanes.load(0, _CODE, at)), strict=True):
            values = lanes.look_up(fields, 2)
            builder.store(values, lanes.pointer(which, _NUMBER, at), align=4)
        return context.get_dummy_value()

    return types.void(codes, types.intp, table, low, high), generate


# What `_add_lanes` and `_dot_lanes` take: codes of 16 bytes from `start` on; a factor; and elements
# from `at` on for those in low bits, and, unless `high` is None, for those in high bits.
_TYPES = (types.intp, types.intp, types.int32, types.uint8)


def _values_of_lanes(lanes: _Lanes, data: Any, table: Any, high: Any) -> list[Any]:
    """Decode the codes of 16 bytes in low bits, and in high bits if there are two in each."""
    builder, codes = lanes.builder, lanes.load(0, _CODE, lanes.arguments[1])
    fields = [codes]
    if not isinstance(high, types.NoneType):
        fields = list(lanes.halves(builder.xor(codes, lanes.spread(4, _CODE))))
    if not isinstance(table, types.NoneType):
        return [lanes.look_up(field, 5) for field in fields]
    widen, zero = builder.sext if data.dtype.signed else builder.zext, lanes.spread(3, _INDEX)
    return [builder.sitofp(builder.sub(widen(field, _INDEX), zero), _NUMBER) for field in fields]


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def _add_lanes(
    typingctx: Any,
    data: Any,
    start: Any,
    at: Any,
    zero: Any,
    flip: Any,
    table: Any,
    factor: Any,
    low: Any,
    high: Any,
) -> tuple[Any, Any]:
    """Add values, times a factor, to sums.

    A loop would do the same, but first ask, at the cost of a block, whether its arrays overlap.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, at = _Lanes(context, builder, signature, arguments), arguments[2]
        factor = lanes.spread(6, _NUMBER)
        for which, values in enumerate(_values_of_lanes(lanes, data, table, high), 7):
            product = builder.fmul(values, factor, flags=("contract",))
            total = builder.fadd(lanes.load(which, _NUMBER, at), product, flags=("contract",))
            builder.store(total, lanes.pointer(which, _NUMBER, at), align=4)
        return context.get_dummy_value()

    return types.void(data, *_TYPES, table, types.float32, low, high), generate


@intrinsic  # type: ignore[untyped-decorator,unused-ignore]
def _dot_lanes(
    typingctx: Any,
    data: Any,
    start: Any,
    at: Any,
    zero: Any,
    flip: Any,
    table: Any,
    factor: Any,
    low: Any,
    high: Any,
    total: Any,
    where: Any,
) -> tuple[Any, Any]:
    """Add the products of values and elements, times a factor, to 16 sums from `where` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes, at = _Lanes(context, builder, signature, arguments), arguments[2]
        flags, sums = ("contract",), None
        for which, values in enumerate(_values_of_lanes(lanes, data, table, high), 7):
            product = builder.fmul(values, lanes.load(which, _NUMBER, at), flags=flags)
            sums = product if sums is None else builder.fadd(sums, product, flags=flags)
        scaled = builder.fmul(sums, lanes.spread(6, _NUMBER), flags=flags)
        place = lanes.pointer(9, _NUMBER, arguments[10])
        builder.store(
            builder.fadd(builder.load(place, align=4), scaled, flags=flags), place, align=4
        )
        return context.get_dummy_value()

    return types.void(data, *_TYPES, table, types.float32, low, high, total, types.intp), generate


@exact
def _look_up(codes: Any, table: Any, low: Any, high: Any) -> None:
    """Decode the low and the high bits of bytes."""
    whole = codes.size // LANES * LANES
    for at in range(0, whole, LANES):
        _look_up_lanes(codes, at, table, low, high)  # type: ignore[call-arg,unused-ignore]
    for j in range(whole, codes.size):
        low[j], high[j] = table[codes[j] & 15], table[codes[j] >> 4]


@reordered
def _value(code: Any, zero: Any, table: Any) -> Any:
    if table is None:
        return float32(int32(code - zero))
    return table[uint32(code)]


@reordered
def _dot(codes: Any, low: Any, high: Any, zero: Any, flip: Any, table: Any) -> Any:
    """Sum the products of the codes of a block's row."""
    total = float32(0)
    for j in range(codes.size):
        if high is None:
            total += _value(int32(codes[j]), zero, table) * low[j]
        else:
            both = int32(codes[j] ^ flip)
            total += _value(int32(both & 15), zero, table) * low[j]
            total += _value(int32(both >> 4), zero, table) * high[j]
    return total


@reordered
def dots(
    data: Any,
    scale: Any,
    zero: Any,
    rows: int,
    step: int,
    low: Any,
    high: Any,
    flip: Any,
    table: Any,
    out: Any,
    start: int,
    stop: int,
) -> None:
    """Multiply rows `start` to `stop` with a vector; a block has `rows` rows of `step` bytes."""
    size = data.shape[1]
    # In turn, since each addition waits for the one before it.
    lanes = np.empty(4 * LANES, np.float32)
    for r in range(start, stop):
        i = r // rows
        lanes[:] = 0
        total = float32(0)
        for g in range(scale.shape[1]):
            a, b = g * step, min(g * step + step, size)
            factor = scale[i, g]
            if high is not None:  # bytes are widened as fast by a loop
                for at in range(a, b - LANES + 1, LANES):
                    z, where = zero[i, g], at % (4 * LANES) // LANES * LANES
                    _dot_lanes(  # type: ignore[call-arg,unused-ignore]
                        data, r * size + at, at, z, flip, table, factor, low, high, lanes, where
                    )
                a += (b - a) // LANES * LANES
            if a < b:
                part = None if high is None else high[a:b]
                total += factor * _dot(data[r, a:b], low[a:b], part, zero[i, g], flip, table)
        for lane in lanes:
            total += lane
        out[r] = total


@reordered
def _add(codes: Any, zero: Any, flip: Any, table: Any, factor: Any, low: Any, high: Any) -> None:
    """Add the multiples of a few codes."""
    for j in range(low.size):
        if high is None:
            low[j] += _value(int32(codes[j]), zero, table) * factor
        else:
            both = int32(codes[j] ^ flip)
            low[j] += _value(int32(both & 15), zero, table) * factor
            high[j] += _value(int32(both >> 4), zero, table) * factor


@reordered
def sums(
    data: Any,
    scale: Any,
    zero: Any,
    rows: int,
    step: int,
    x: Any,
    flip: Any,
    table: Any,
    low: Any,
    high: Any,
    start: int,
    stop: int,
) -> None:
    """Add up the rows `start` to `stop`, each times an element of `x`."""
    size = data.shape[1]
    for r in range(start, stop):
        i = r // rows
        for g in range(scale.shape[1]):
            a, b = g * step, min(g * step + step, size)
            factor = x[r] * scale[i, g]
            if table is None or high is not None:
                for at in range(a, b - LANES + 1, LANES):
                    z = zero[i, g]
                    _add_lanes(  # type: ignore[call-arg,unused-ignore]
                        data, r * size + at, at, z, flip, table, factor, low, high
                    )
                a += (b - a) // LANES * LANES
            if a < b:
                part = None if high is None else high[a:b]
                _add(data[r, a:b], zero[i, g], flip, table, factor, low[a:b], part)


@exact
def _decode(
    codes: Any, scale: Any, zero: Any, shifts: Any, flip: Any, table: Any, out: Any
) -> None:
    if shifts is None:
        for j in range(codes.size):
            out[j] = _value(int32(codes[j]), zero, table) * scale
    else:
        first, second = int32(shifts[0]), int32(shifts[1])
        for j in range(codes.size):
            both = int32(codes[j] ^ flip)
            out[2 * j] = _value(int32(int32(both >> first) & 15), zero, None) * scale
            out[2 * j + 1] = _value(int32(int32(both >> second) & 15), zero, None) * scale


@exact
def _scale_values(first: Any, second: Any, scale: Any, out: Any) -> None:
    for j in range(first.size):
        out[2 * j] = first[j] * scale
        out[2 * j + 1] = second[j] * scale


@exact
def decode(
    data: Any,
    scale: Any,
    zero: Any,
    rows: int,
    step: int,
    shifts: Any,
    flip: Any,
    table: Any,
    start: int,
    stop: int,
    row: int,
    out: Any,
) -> None:
    """Decode the bytes `start` to `stop` of rows from `row` on."""
    codes_in_byte = out.shape[1] // (stop - start)
    values = np.empty((2, stop - start), np.float32)
    for n in range(out.shape[0]):
        r = row + n
        i = r // rows
        if table is not None and shifts is not None:
            low = 0 if shifts[0] == 0 else 1
            _look_up(data[r, start:stop], table, values[low], values[1 - low])
        for g in range(start // step, (stop + step - 1) // step):
            a, b = max(g * step, start), min(g * step + step, stop)
            part = out[n, (a - start) * codes_in_byte : (b - start) * codes_in_byte]
            if table is not None and shifts is not None:
                at = slice(a - start, b - start)
                _scale_values(values[0, at], values[1, at], scale[i, g], part)
            else:
                _decode(data[r, a:b], scale[i, g], zero[i, g], shifts, flip, table, part)


@exact
def _exact_dot(a: Any, b: Any) -> Any:
    total = int32(0)
    for j in range(a.size):
        total = int32(total + int32(int32(a[j]) * int32(b[j])))
    return total


@exact
def exact_dots(a: Any, b: Any, out: Any, start: int, stop: int) -> None:
    """Multiply rows `start` to `stop` of codes with each row of `b`."""
    for i in range(start, stop):
        for j in range(b.shape[0]):
            out[i, j] = _exact_dot(a[i], b[j])


@exact
def _exact_add(p: Any, q: Any, r: Any, s: Any, factors: Any, out: Any) -> None:
    a, b, c, d = factors
    for j in range(out.size):
        first = int32(int32(int32(p[j]) * a) + int32(int32(q[j]) * b))
        second = int32(int32(int32(r[j]) * c) + int32(int32(s[j]) * d))
        out[j] = int32(out[j] + int32(first + second))


@exact
def exact_sums(a: Any, b: Any, out: Any, start: int, stop: int) -> None:
    """Multiply rows of codes with the rows `start` to `stop` of `b`, each of which one scales."""
    last = stop - 1
    for i in range(a.shape[0]):
        for r in range(start, stop, 4):
            # Beyond the end, the last row again, times 0.
            q, s, t = min(r + 1, last), min(r + 2, last), min(r + 3, last)
            factors = (
                int32(a[i, r]),
                int32(a[i, q]) if r + 1 == q else int32(0),
                int32(a[i, s]) if r + 2 == s else int32(0),
                int32(a[i, t]) if r + 3 == t else int32(0),
            )
            _exact_add(b[r], b[q], b[s], b[t], factors, out[i])
