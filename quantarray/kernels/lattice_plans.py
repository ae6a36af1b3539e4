"""How ggml's lattice types reach compiled loops: the numbers and tables of each."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from quantarray.kernels import lattice_loops
from quantarray.kernels.lattice_ternary import encode_ternary
from quantarray.kernels.plans import Numbers
from quantarray.kernels.plans import record as as_record
from quantarray.lattice_tables import SEARCHES, TERNARY, factors, neighbours
from quantarray.records import Record, Run

# The sizes of tables, which are the same for all, so that loops are compiled once.
_TRIES, _RUNS = 31, 16
_AGAIN = {"off": lattice_loops.OFF, "any off": lattice_loops.ANY_OFF, "all": lattice_loops.ALL}


class Plan(NamedTuple):
    """A type of block for compiled loops: see `lattice_tables.Search`."""

    elements: int
    groups: int
    size: int
    width: int
    levels: int
    # Of a block, and what `lattice_loops.pack` takes: for entries, signs or deltas, scales, and the
    # float16 scale.
    fields: int
    runs: Numbers
    important: bool
    energy: Any
    typical: Any
    least: Any
    times: Any
    # What the largest scale becomes, and the largest code of one.
    most: Any
    top: int
    # IQ2 and IQ3.
    steps: int = 0
    factors: Numbers = np.zeros(_TRIES, np.float32)
    again: int = 0
    positive: bool = False
    parity: bool = False
    cleared: bool = False
    crowded: bool = False
    # IQ1: the parts of a group, which have a delta each.
    parts: int = 0


Loop = Callable[..., bool]


@functools.cache
def encoder(record: Record, important: bool) -> tuple[Loop, Numbers, tuple[Numbers, ...]]:
    """Give the loop that encodes a type, its plan, and what `lattice_loops.settle` takes."""
    assert record.lattice is not None
    f, lattice = np.float32, record.lattice
    width, levels = lattice.width, len(lattice.values)
    signs = record.groups * record.group // 8 if record.signs else 0
    entries = record.elements // width
    first, runs = 0, []
    counts = entries, signs or entries, record.groups, 1
    fields = record.codes, record.signs or record.deltas, record.scales, record.base
    for count, some in zip(counts, fields, strict=True):
        runs += [_numbers(run, first) for run in some]
        first += count
    common: dict[str, Any] = {
        "elements": record.elements,
        "groups": record.groups,
        "size": record.group,
        "width": width,
        "levels": levels,
        "fields": first,
        "runs": _padded(np.asarray(runs, np.int64), _RUNS),
        "important": important,
    }
    if record.name in TERNARY:
        ternary = TERNARY[record.name]
        distances, loop = 3, encode_ternary
        plan = Plan(
            **common,
            energy=f(2),
            typical=f(0),
            least=f(ternary.least),
            times=f(ternary.times),
            most=f(15),
            top=7,
            parts=ternary.parts,
        )
    else:
        how = SEARCHES[record.name]
        distances, loop = how.distances, lattice_loops.encode_signed
        tried = factors(how, levels)
        plan = Plan(
            **common,
            energy=f(how.energy),
            typical=f(how.typical),
            least=f(how.least),
            times=f(how.times),
            most=f(31),
            top=15,
            steps=tried.size,
            factors=_padded(tried, _TRIES),
            again=_AGAIN[how.again],
            positive=how.positive,
            parity=record.sign_bits == "parity",
            cleared=how.cleared,
            crowded=how.crowded,
        )
    near = neighbours(lattice, distances)
    places = np.ascontiguousarray(near.digits.T + np.arange(width) * levels, np.int16)
    tables = places, near.entries, near.starts, near.counts, near.near.astype(np.int16)
    return loop, as_record(plan), tables


def _numbers(run: Run, first: int) -> tuple[int, ...]:
    return (
        *(run.start, run.bits, run.unit, run.parts, run.units, run.stride),
        *(run.right, run.left, first + run.first, run.fields),
    )


def _padded(numbers: Numbers, size: int) -> Numbers:
    found = np.zeros((size, *numbers.shape[1:]), numbers.dtype)
    found[: len(numbers)] = numbers
    return found
