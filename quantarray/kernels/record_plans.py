"""How the block types of ggml reach compiled loops: the numbers, runs and tables of each."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from quantarray.formats import Integer
from quantarray.kernels import plans
from quantarray.kernels.memory import Numbers
from quantarray.records import Record, Run, Runs

# Elements that are worked on at once: a multiple of those of every block.
SPAN = 16384
# How the fields of a run are read: eight bytes at a time; eight bits of a byte at once; or one by
# one; and the same for digits of base 3.
WORDS, BITS, FEW, DIGIT_WORDS, DIGITS = range(5)
# What a run's fields are, each in a plane of bytes; those of more than eight bits have two.
CODES, SIGNS, SCALES, MINS, BASE, OFFSET = range(0, 12, 2)
PLANES = 12

# What a block's scale is made of: its element farthest from 0, or the distance of that; its least
# and largest; the distance's exponent; the distance alone in parts of 16; or the mean distance.
EDGE, ABSMAX, MINMAX, EXPONENT, QUARTERS, MEAN = range(6)
# Elements of which extremes are found, and which are rounded, in one go.
UNIT, QUARTER = 32, 16


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
    # The values of scale codes.
    values: Numbers
    # The bits of the largest element.
    reach: np.int32


# rule, divisor, more, plus, top, lost
RULES: dict[str, tuple[int, float, float, int, int, bool]] = {
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
    deltas = tuple(run._replace(left=_DELTA) for run in record.deltas)
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
    rule, divisor, more, plus, top, lost = RULES[record.name]
    where = record.base or record.scales
    plan = Encoder(
        rule=rule,
        elements=record.elements,
        size=record.size,
        scale_at=where[0].start,
        offset_at=record.offset[0].start if record.offset else 0,
        shift=0 if rule == QUARTERS else (record.elements // UNIT).bit_length() - 1,
        divisor=np.float32(divisor),
        more=np.float32(more),
        plus=plus,
        top=top,
        lost=lost,
        values=_padded(record.scale_values, 256, np.float32),
        reach=np.float32(record.reach).view(np.int32),
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
