"""Kernels for the block types of ggml: what is computed where, and what each thread does."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from quantarray.formats import Integer
from quantarray.kernels import memory, plans, record_decode, record_encode, threads
from quantarray.kernels.memory import Numbers
from quantarray.kernels.record_decode import (
    BASE,
    BITS,
    CODES,
    DIGIT_WORDS,
    DIGITS,
    FEW,
    MINS,
    OFFSET,
    SCALES,
    SIGNS,
    WORDS,
)
from quantarray.kernels.record_encode import ABSMAX, EDGE, EXPONENT, MEAN, MINMAX, QUARTERS
from quantarray.records import Record, Run, Runs

# Elements for which a second thread is not worth its start, and those that are laid out at a time
# where they cannot be worked on where they lie.
ALONE = 1 << 18
PIECE = 1 << 15


class Decoder(NamedTuple):
    """The numbers of a block type that `record_decode.decode` needs."""

    elements: int
    size: int
    group: int
    groups: int
    # Elements of an entry of a lattice, or 0.
    width: int
    looks_up: bool
    # A value is ``(code - zero) * step``.
    zero: int
    step: np.float32
    has_base: bool
    has_scales: bool
    has_offset: bool
    has_mins: bool


class Encoder(NamedTuple):
    """The numbers of a block type that `record_encode.encode` needs."""

    rule: int
    elements: int
    size: int
    # Where a scale, and an offset, begins in a block.
    scale_at: int
    offset_at: int
    # A block has two to the power of this many units.
    shift: int
    # What an extreme is divided by; and a quotient becomes a code by adding `more` and truncating,
    # or rounding and adding `plus`, up to `top`.
    divisor: np.float32
    more: np.float32
    plus: int
    top: int
    # Whether all codes are 0 where a scale has no reciprocal.
    lost: bool
    # The values of scale codes, and of codes.
    values: Numbers
    few: Numbers


# rule, divisor, more, plus, top, lost
_RULES: dict[str, tuple[int, float, float, int, int, bool]] = {
    "Q4_0": (EDGE, -8, 8.5, 0, 15, True),
    "Q5_0": (EDGE, -16, 16.5, 0, 31, True),
    "Q4_1": (MINMAX, 15, 0.5, 0, 15, False),
    "Q5_1": (MINMAX, 31, 0.5, 0, 31, False),
    "Q8_0": (ABSMAX, 127, 0, 0, 0, False),
    "TQ1_0": (ABSMAX, 1, 0, 1, 0, False),
    "TQ2_0": (ABSMAX, 1, 0, 1, 0, False),
    "Q2_0": (ABSMAX, 1, 0, 1, 0, True),
    "Q1_0": (MEAN, 1, 0, 0, 0, False),
    "MXFP4": (EXPONENT, 1, 0, 0, 0, False),
    "NVFP4": (QUARTERS, 1, 0, 0, 0, False),
}
# With importances, C sums over whole rows.
_WHOLE_ROWS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")


@functools.cache
def decoder(record: Record) -> tuple[Numbers, Numbers, tuple[Numbers, ...]]:
    """Give what `record_decode.decode` is to know: a plan, the runs of fields, and tables."""
    element, lattice = record.element, record.lattice
    plan = Decoder(
        elements=record.elements,
        size=record.size,
        group=record.group,
        groups=record.groups,
        width=lattice.width if lattice else 0,
        looks_up=not isinstance(element, Integer),
        zero=int(element.origin) if isinstance(element, Integer) else 0,
        step=np.float32(1 / element.steps if isinstance(element, Integer) else 1),
        has_base=bool(record.base),
        has_scales=bool(record.scales),
        has_offset=bool(record.offset),
        has_mins=bool(record.mins),
    )
    entries = record.elements // (lattice.width if lattice else 1)
    deltas = tuple(replace(run, left=_DELTA) for run in record.deltas)
    fields = [
        *_runs(CODES, record.codes + deltas, entries),
        *_runs(SIGNS, record.signs, record.elements // 8),
        *_runs(SCALES, record.scales, record.groups),
        *_runs(MINS, record.mins, record.groups),
        *_runs(BASE, record.base, 1),
        *_runs(OFFSET, record.offset, 1),
    ]
    tables = (
        _padded(record.scale_values, 256, np.float32),
        _padded(() if isinstance(element, Integer) else element.table, 16, np.uint8),
        _entries(record),
        _signs(record.sign_bits == "parity"),
    )
    return plans.record(plan), np.array(fields, _RUN), tables


# Where the bits that stand for deltas lie in the number of an entry.
_DELTA = 11
# A run as compiled loops read it: `records.Run`, and what follows from it.
_RUN = np.dtype(
    [
        (name, np.int64)
        for name in (
            "plane",
            "how",
            "start",
            "bits",
            "mask",
            "unit",
            "parts",
            "units",
            "stride",
            "right",
            "left",
            "first",
            "fields",
            "per_block",
            "alone",
        )
    ]
)


def _runs(which: int, runs: Runs, per_block: int) -> list[tuple[int, ...]]:
    """Describe runs, each of which has its fields to itself or adds bits to what others wrote."""
    found: list[tuple[int, ...]] = []
    written: set[tuple[int, int]] = set()
    for run in runs:
        plane, left = (which, run.left) if run.left < 8 else (which + 1, run.left - 8)
        places = {
            (plane, run.first + unit * run.fields + i)
            for unit in range(run.units)
            for i in range(run.unit * run.parts)
        }
        alone = written.isdisjoint(places)
        written |= places
        found.append(
            (
                plane,
                _how(run),
                run.start,
                run.bits,
                (1 << run.bits) - 1,
                run.unit,
                run.parts,
                run.units,
                run.stride,
                run.right,
                left,
                run.first,
                run.fields,
                per_block,
                alone,
            )
        )
    return found


def _how(run: Run) -> int:
    if run.base == 3:
        return DIGIT_WORDS if run.unit % 8 == 0 and run.parts == 5 else DIGITS
    if (run.bits, run.unit, run.parts, run.right) == (1, 1, 8, 0):
        return BITS
    return FEW if run.unit % 8 else WORDS


def _padded(values: Any, size: int, dtype: Any) -> Numbers:
    """Give a table of this many entries, the last ones 0."""
    found = np.zeros(size, dtype)
    found[: len(values)] = np.asarray(values, np.float64).astype(
        np.int8 if dtype == np.uint8 else dtype
    )
    return found


def _entries(record: Record) -> Numbers:
    """Give the entries of a lattice, eight bytes each; where deltas count, in eighths."""
    lattice = record.lattice
    if lattice is None:
        return np.zeros(1, np.uint64)
    table = lattice.table
    if record.deltas:
        table = np.concatenate([8 * table + 1, 8 * table - 1]).astype(np.int8)
    bytes_ = np.zeros((len(table), 8), np.int8)
    bytes_[:, : lattice.width] = table
    return bytes_.view(np.uint64).reshape(-1)


def _signs(parity: bool) -> Numbers:
    """Give a byte of ones for each bit that is set, and for the last where their number is odd."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    if parity:
        bits[:, 7] = bits[:, :7].sum(axis=1) % 2
    return (bits * np.uint8(255)).view(np.uint64).reshape(-1)


@functools.cache
def encoder(record: Record) -> tuple[Numbers, Numbers]:
    """Give what `record_encode.encode` is to know: a plan, and the runs of fields."""
    rule, divisor, more, plus, top, lost = _RULES[record.name]
    where = record.base or record.scales
    few = () if isinstance(record.element, Integer) else record.element.table
    plan = Encoder(
        rule=rule,
        elements=record.elements,
        size=record.size,
        scale_at=where[0].start,
        offset_at=record.offset[0].start if record.offset else 0,
        shift=0 if rule == QUARTERS else (record.elements // record_encode.UNIT).bit_length() - 1,
        divisor=np.float32(divisor),
        more=np.float32(more),
        plus=plus,
        top=top,
        lost=lost,
        values=_padded(record.scale_values, 256, np.float32),
        few=_padded(few, 16, np.float32),
    )
    fields = np.array(_runs(CODES, record.codes, record.elements), _RUN)
    return plans.record(plan), fields


@functools.cache
def nearly() -> Numbers:
    """Give where `log2f` of a number below a power of two is that of the power, by exponent.

    The least fraction, of 23 bits, for exponents from -149 on.
    """
    found = np.full(277, 1 << 23, np.int32)
    for at, power in enumerate(range(-149, 128)):
        fraction = (1 << 23) - 1
        while np.float32(math.log2(1 + fraction / 2**23) + power) == power + 1:
            found[at] = fraction
            fraction -= 1
    return found


def encode(
    x: Numbers, record: Record, importance: Numbers | None = None, dtype: str | None = None
) -> Numbers | None:
    """Encode rows, or give None where there is no kernel, or C would store Inf or NaN.

    Parameters
    ----------
    x : array of a floating dtype, or of int16 for bfloat16; shape (rows, n)
        Any strides. n is a multiple of ``record.elements``.
    record : Record
        The block type.
    importance : array of float32, shape (1, n) or (rows, n), or None
        How much each element matters.
    dtype : str, optional
        The dtype of `x`, if that is not its own.

    Returns
    -------
    array of uint8, shape (rows, bytes of a row), or None
    """
    dtype = dtype or x.dtype.name
    rows, blocks = x.shape[0], x.shape[1] // record.elements
    out = memory.room((rows, blocks * record.size), np.uint8)
    used = importance if record.importance == "used" else None
    kernel = _kernel(record, used)
    if kernel is None:
        return None
    cut = blocks if used is not None and record.name in _WHOLE_ROWS else 1
    done: list[bool] = []

    def one(first: int, last: int) -> None:
        done.append(kernel(x, dtype, used, record, out, first, last))

    threads.run(one, _shares(rows * blocks, cut, x.size))
    return out if all(done) else None


def decode(data: Numbers, record: Record, dtype: str, out: Numbers | None = None) -> Numbers:
    """Decode rows of bytes.

    Parameters
    ----------
    data : array of uint8, shape (rows, bytes of a row)
        Any strides.
    record : Record
        The block type.
    dtype : str
        The floating dtype of the values. What is finite stays so.
    out : array of that dtype, or of int16 for bfloat16; shape (rows, n), optional
        Where they go. C-contiguous.

    Returns
    -------
    array, shape (rows, n)
        `out`, if there is one.
    """
    rows, blocks = data.shape[0], data.shape[1] // record.size
    if out is None:
        kind = "int16" if dtype == "bfloat16" else dtype
        out = memory.room((rows, blocks * record.elements), kind)
    plan, runs, tables = decoder(record)
    values = out.reshape(-1)

    def one(first: int, last: int) -> None:
        whole = PIECE // record.elements if dtype != "float32" else last - first
        for begin, some in _pieces(data, record.size, whole, first, last, PIECE):
            start = begin * record.elements
            target = values[start : start + some.size // record.size * record.elements]
            found = target if dtype == "float32" else np.empty(target.size, np.float32)
            record_decode.decode(plan, runs, tables, memory.flat(some), found)
            _narrow(found, dtype, target)

    threads.run(one, _shares(rows * blocks, 1, values.size))
    return out


def _narrow(values: Numbers, dtype: str, out: Numbers) -> None:
    if dtype == "float64":
        out[:] = values
    elif dtype != "float32":
        half = dtype == "float16"
        largest = np.float32(65504 if half else 3.3895313892515355e38)
        record_decode.narrow(values, largest, out.view(np.int16 if half else np.uint16))


def _shares(count: int, cut: int, elements: int) -> list[tuple[int, int]]:
    """Share blocks among threads, cut at multiples of `cut`."""
    workers = threads.count() if elements > ALONE else 1
    ends = [count // cut * i // workers * cut for i in range(workers + 1)]
    found = [(first, last) for first, last in itertools.pairwise(ends) if first < last]
    return found or [(0, 0)]


def _pieces(
    x: Numbers, unit: int, whole: int, first: int, last: int, most: int
) -> Iterator[tuple[int, Numbers]]:
    """Give some blocks of an array of rows at a time, each in C order, and which is the first.

    Parameters
    ----------
    x : array, shape (rows, blocks * unit)
    unit : int
        Columns of a block.
    whole : int
        Blocks at a time of an array that is in C order.
    first, last : int
        Blocks, counted over all rows.
    most : int
        Elements at a time of one that is not.
    """
    columns = x.shape[1] // unit
    if x.flags.c_contiguous:
        flat = x.reshape(-1)
        for begin in range(first, last, max(whole, 1)):
            yield begin, flat[begin * unit : min(begin + whole, last) * unit]
        return
    begin = first
    while begin < last:
        row, column = divmod(begin, columns)
        rows = min(last // columns - row, most // (columns * unit)) if column == 0 else 0
        if rows > 0:
            yield begin, np.ascontiguousarray(x[row : row + rows]).reshape(-1)
            begin += rows * columns
        else:
            count = min(last - begin, columns - column, max(most // unit, 1))
            yield begin, np.ascontiguousarray(x[row, column * unit : (column + count) * unit])
            begin += count


Kernel = Callable[[Numbers, str, Numbers | None, Record, Numbers, int, int], bool]


def _kernel(record: Record, importance: Numbers | None) -> Kernel | None:
    """Give what encodes a share of the blocks, if there is anything."""
    if record.importance == "decode only":
        return None
    if record.name in _RULES and importance is None:
        return _encode_rows
    return _search_rows


def _encode_rows(
    x: Numbers,
    dtype: str,
    importance: Numbers | None,
    record: Record,
    out: Numbers,
    first: int,
    last: int,
) -> bool:
    plan, runs = encoder(record)
    data, same = out.reshape(-1), dtype == "float32"
    whole = last - first if same else PIECE // record.elements
    for begin, some in _pieces(x, record.elements, whole, first, last, PIECE):
        elements = memory.flat(some)
        if not same:
            wide = np.empty(some.size, np.float32)
            record_encode.widen(elements.view(_BITS_OF[dtype]), wide)
            elements = wide
        start = begin * record.size
        target = data[start : start + some.size // record.elements * record.size]
        if not record_encode.encode(plan, runs, nearly(), elements, target):
            return False
    return True


# Integers that stand for the floats whose bits they hold: see `bits.widened`.
_BITS_OF = {"float64": np.uint64, "bfloat16": np.uint16, "float16": np.int16}


def _search_rows(
    x: Numbers,
    dtype: str,
    importance: Numbers | None,
    record: Record,
    out: Numbers,
    first: int,
    last: int,
) -> bool:
    from quantarray.kernels import searches

    if x.flags.c_contiguous:
        return bool(searches.encode_rows(x, dtype, importance, record, out, first, last))
    columns = x.shape[1] // record.elements
    begin = first
    cut = importance is not None and record.name in _WHOLE_ROWS
    most = max(PIECE, x.shape[1]) if cut else PIECE
    for begin, some in _pieces(x, record.elements, 0, first, last, most):
        count = some.size // record.elements
        (row, column), rows = divmod(begin, columns), -(-count // columns)
        weights = importance
        if weights is not None:
            weights = weights[row : row + rows] if weights.shape[0] > 1 else weights
            start = column * record.elements
            weights = weights[:, start : start + some.size // rows]
        target = out[row : row + rows, column * record.size :][:, : count // rows * record.size]
        piece = some.reshape(rows, -1)
        if not searches.encode_rows(piece, dtype, weights, record, target, 0, count):
            return False
    return True
