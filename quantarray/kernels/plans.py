"""How the numbers of a scheme reach compiled loops."""

import functools
from typing import Any, NamedTuple

import numpy as np

from quantarray.scheme import Scheme

# How a block's extremes become its scale; how a quotient becomes a code.
ABSMAX, MINMAX, RANGE, EDGE, ONE = range(5)
INTEGER, FLOAT, MAGNITUDES, VALUES, MANY = range(5)

# How bytes become values: each is a signed or unsigned number, or several entries of a table, or
# codes lie across bytes.
SIGNED, UNSIGNED, TABLE, BITS = range(4)
# The thresholds of a table of 16 values, which are compared with all at once.
FEW = 15

Numbers = np.ndarray[Any, Any]


def record(plan: NamedTuple) -> Numbers:
    """Give a plan as an array of one record, which costs a compiled function one argument."""
    fields = {name: np.asarray(value) for name, value in plan._asdict().items()}
    kinds = tuple((name, value.dtype.str, value.shape) for name, value in fields.items())
    return np.array([tuple(fields.values())], _record(kinds))


@functools.cache
def _record(kinds: tuple[Any, ...]) -> np.dtype[Any]:
    """Make a dtype only once: Numba takes long to see that two are equal."""
    return np.dtype(list(kinds))


@functools.lru_cache
def packs(scheme: Scheme) -> bool:
    """Tell whether a row of packed words is one sequence of codes in bytes."""
    how, bits = scheme.packing, scheme.element.bits
    rows = how.transpose == "no" and not how.strided and not how.interleave
    whole = how.dense or how.word % bits == 0
    return scheme.packed and rows and whole and (how.word == 8 or how.order == "lsb")
