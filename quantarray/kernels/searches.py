"""Which search encodes which type of block, and the numbers it takes: `ggml-quants.c` as data."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from quantarray.kernels import memory
from quantarray.kernels.plans import Numbers
from quantarray.kernels.plans import record as as_record
from quantarray.kernels.search_affine import encode_nested, encode_offset
from quantarray.kernels.search_lanes import LANES
from quantarray.kernels.search_loops import (
    ABS,
    IMPORTANCE,
    MEAN,
    PLAIN,
    SQUARE,
    add_squares,
    gather,
)
from quantarray.kernels.search_signed import encode_scaled, encode_single
from quantarray.kernels.search_values import encode_values
from quantarray.records import IQ4_NL, Record, Run

# Elements that one call encodes: with their weights these stay in the cache of a core.
_SHARE = 1 << 16
# The sizes of tables, which are the same for all, so that loops are compiled once.
_TRIALS, _SCALE_TRIALS, _RUNS = 37, 19, 12

# How `search_loops.gather` takes elements.
_MEMORY = {
    "float16": np.int16,
    "bfloat16": np.uint16,
    "float32": np.uint32,
    "float64": np.float64,
}


class Trials(NamedTuple):
    """The factors that a search tries, for numbers up to 1: ``start + step * k + top``."""

    start: float = 0.0
    step: float = 0.0
    ks: tuple[int, ...] = ()

    def factors(self, top: float) -> Numbers:
        """Give the factors, rounded to float32 after each step."""
        ks = np.asarray(self.ks, np.float32)
        return (np.float32(self.start) + np.float32(self.step) * ks) + np.float32(top)


# Around the factor that takes the largest number for the largest code, which is tried first.
_AROUND = Trials(0.0, 0.1, (0, *range(-9, 0), *range(1, 10)))
_NEAR = Trials(0.0, 0.1, (*range(-4, 0), *range(1, 5)))
_FINE = Trials(-0.9, 0.05, tuple(range(37)))
_WHOLE = Trials(0.0, 1.0, (0, *range(-7, 8)))


class Kind(NamedTuple):
    """How a type of block is encoded: what `Search` does not take from its layout."""

    encode: Callable[..., bool]
    top: int  # the largest code, or half their number, or the least value
    trials: Trials
    weights: int
    # What the mean square of the elements is multiplied with: see `search_loops.weigh`.
    sigma: float = 0.0
    # That mean is of a row, so that only whole rows can be encoded.
    rows: bool = False
    # The error is a sum of magnitudes, not of squares.
    absolute: bool = False
    # The codes of groups are improved one by one.
    greedy: bool = False
    # The largest code of the scales of groups, or half their number, and how those are found: no
    # trials means that the largest gets the largest code.
    scale_top: int = 0
    scale_trials: Trials = Trials()
    # Codes of scales above the largest become that.
    limited: bool = False


_KINDS = {
    ("Q4_0", True): Kind(encode_single, 8, _AROUND, IMPORTANCE, rows=True),
    ("Q5_0", True): Kind(encode_single, 16, _AROUND, IMPORTANCE, rows=True),
    ("Q4_1", True): Kind(encode_offset, 15, _FINE, IMPORTANCE, rows=True),
    ("Q5_1", True): Kind(encode_offset, 31, _FINE, IMPORTANCE, rows=True),
    ("Q2_K", False): Kind(
        encode_nested, 3, Trials(-0.5, 0.1, tuple(range(16))), ABS, absolute=True, scale_top=15
    ),
    ("Q2_K", True): Kind(
        encode_nested, 3, _FINE, IMPORTANCE, sigma=1, scale_top=15, scale_trials=_NEAR
    ),
    ("Q3_K", False): Kind(encode_scaled, 4, Trials(), SQUARE, greedy=True, scale_top=32),
    ("Q3_K", True): Kind(
        encode_scaled, 4, _AROUND, IMPORTANCE, sigma=2, scale_top=32, scale_trials=_AROUND
    ),
    ("Q4_K", False): Kind(
        encode_nested, 15, Trials(-1.0, 0.1, tuple(range(21))), MEAN, scale_top=63, limited=True
    ),
    ("Q4_K", True): Kind(
        encode_nested, 15, _FINE, IMPORTANCE, sigma=2, scale_top=63, scale_trials=_NEAR
    ),
    ("Q5_K", False): Kind(
        encode_nested, 31, Trials(-0.5, 0.1, tuple(range(16))), MEAN, scale_top=63, limited=True
    ),
    ("Q5_K", True): Kind(
        encode_nested,
        31,
        _FINE,
        IMPORTANCE,
        sigma=2,
        scale_top=63,
        scale_trials=_NEAR,
        limited=True,
    ),
    ("Q6_K", False): Kind(encode_scaled, 32, _AROUND, SQUARE, scale_top=128),
    ("Q6_K", True): Kind(encode_scaled, 32, _AROUND, PLAIN, scale_top=128),
    ("IQ4_NL", False): Kind(encode_values, -127, _WHOLE, SQUARE),
    ("IQ4_NL", True): Kind(encode_values, -127, _WHOLE, IMPORTANCE, sigma=2),
    ("IQ4_XS", False): Kind(encode_values, -127, _WHOLE, SQUARE, scale_top=32),
    ("IQ4_XS", True): Kind(encode_values, -127, _WHOLE, IMPORTANCE, sigma=2, scale_top=32),
}


class Search(NamedTuple):
    """A type of block for compiled loops: see `Kind`; every array has one size."""

    elements: int
    groups: int
    size: int
    fields: int
    bytes: int
    # What `search_loops.pack` takes, for codes, scales, offsets, the float16 scale and offset.
    runs: Numbers
    top: Any
    steps: int
    factors: Numbers
    weights: int
    important: bool
    sigma: Any
    absolute: bool
    greedy: bool
    scale_top: Any
    scale_steps: int
    scale_factors: Numbers
    limited: bool
    # A scale and an offset share a byte.
    nibbles: bool
    # Codes of scales are signed bytes.
    scales_are_bytes: bool
    values: Numbers
    # Half way from each value to the next one.
    ends: Numbers


def is_searched(record: Record, important: bool) -> bool:
    """Tell whether `encode_rows` encodes a type of block, with or without importances."""
    return (record.name, important) in _KINDS


def needs_rows(record: Record, important: bool) -> bool:
    """Tell whether a range of blocks must be one of whole rows."""
    return _KINDS[record.name, important].rows


@functools.lru_cache
def _plan(record: Record, important: bool) -> Numbers:
    kind = _KINDS[record.name, important]
    signed = kind.encode in (encode_scaled, encode_single)
    factors = kind.trials.factors(kind.top) * np.float32(-1 if signed else 1)
    scale_factors = kind.scale_trials.factors(kind.scale_top)
    scale_factors = scale_factors * np.float32(-1 if signed else 1)
    values = np.asarray(IQ4_NL.table, np.float32)
    return as_record(
        Search(
            elements=record.elements,
            groups=record.groups,
            size=record.group,
            fields=record.elements + 2 * record.groups + 2,
            bytes=record.size,
            runs=_padded(np.asarray(list(_runs(record)), np.int64), _RUNS),
            top=np.float32(kind.top),
            steps=factors.size,
            factors=_padded(factors, _TRIALS),
            weights=kind.weights,
            important=important,
            sigma=np.float32(kind.sigma),
            absolute=kind.absolute,
            greedy=kind.greedy,
            scale_top=np.float32(kind.scale_top),
            scale_steps=scale_factors.size,
            scale_factors=_padded(scale_factors, _SCALE_TRIALS),
            limited=kind.limited,
            nibbles=kind.scale_top == 15,
            scales_are_bytes=kind.scale_top == 128,
            values=values,
            ends=(values[1:] + values[:-1]) / np.float32(2),
        )
    )


def _padded(numbers: Numbers, size: int) -> Numbers:
    found = np.zeros((size, *numbers.shape[1:]), numbers.dtype)
    found[: len(numbers)] = numbers
    return found


def _runs(record: Record) -> Iterator[tuple[int, ...]]:
    """Give the numbers of all runs, with their fields one after another."""
    at = record.elements, record.groups, record.groups, 1, 1
    fields = record.codes, record.scales, record.mins, record.base, record.offset
    first = 0
    for count, runs in zip(at, fields, strict=True):
        for run in runs:
            yield _numbers(run, first)
        first += count


def _numbers(run: Run, first: int) -> tuple[int, ...]:
    return (
        *(run.start, run.bits, run.unit, run.parts, run.units, run.stride),
        *(run.right, run.left, first + run.first, run.fields),
    )


def encode_rows(
    x: Any, dtype: str, importance: Any, record: Record, out: Any, first: int, last: int
) -> bool:
    """Encode some blocks of rows as C does, byte by byte.

    Parameters
    ----------
    x : numpy.ndarray
        C-contiguous (rows, n); the bits of bfloat16 as int16.
    dtype : {"float16", "bfloat16", "float32", "float64"}
        What `x` holds. float64 is rounded to float32.
    importance : numpy.ndarray or None
        C-contiguous float32 (rows, n), or (1, n) for all rows.
    record : Record
        The type of block, for which `is_searched`.
    out : numpy.ndarray
        C-contiguous uint8 (rows, n // record.elements * record.size).
    first, last : int
        The blocks to write, counted over all rows; of whole rows where `needs_rows`.

    Returns
    -------
    bool
        False if an element is not finite, or a float16 in a block would not be: that range of
        `out` then holds nothing of use.
    """
    kind, plan = _KINDS[record.name, importance is not None], _plan(record, importance is not None)
    columns, size = x.shape[1], record.elements
    if first >= last:
        return True
    elements, blocks = memory.flat(x).view(_MEMORY[dtype]), out.reshape(-1, record.size)
    weights = None if importance is None else memory.flat(importance).view(np.uint32)
    sigma = _mean_squares(elements, columns, size, first, last) if kind.rows else None
    most = -(-min(_SHARE // size, last - first) // LANES)
    tiles = np.empty((most, size, LANES), np.float32)
    weight_tiles = np.empty((0 if weights is None else most, size, LANES), np.float32)
    for start in range(first, last, _SHARE // size):
        stop = min(start + _SHARE // size, last)
        count = -(-(stop - start) // LANES)
        starts = np.arange(start, stop) * size
        if not gather(elements, starts, tiles[:count]):
            return False
        if weights is not None:
            gather(weights, starts % weights.size, weight_tiles[:count])
        sums = np.zeros((count, LANES), np.float32)
        if sigma is not None:
            sums.reshape(-1)[: stop - start] = sigma[start - first : stop - first]
        if not kind.encode(plan, tiles[:count], weight_tiles[:count], sums, blocks[start:stop]):
            return False
    return True


def _mean_squares(elements: Numbers, columns: int, size: int, first: int, last: int) -> Numbers:
    """Give the mean square of the row of each block: a sum in order of the elements."""
    rows = np.arange(first * size // columns, last * size // columns)
    found = np.empty(rows.size, np.float32)
    width = min(_SHARE // LANES, columns)
    share = _SHARE // (LANES * width) * LANES
    for start in range(0, rows.size, share):
        some = rows[start : start + share]
        sums = np.zeros((-(-some.size // LANES), LANES), np.float32)
        for column in range(0, columns, width):
            tiles = np.empty((len(sums), min(width, columns - column), LANES), np.float32)
            gather(elements, some * columns + column, tiles)
            add_squares(tiles, sums)
        found[start : start + share] = sums.reshape(-1)[: some.size]
    return np.repeat(found / np.float32(columns), columns // size)
