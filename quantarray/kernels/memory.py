"""An array as rows in memory: where each begins, and which rows share their blocks."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

Numbers = np.ndarray[Any, Any]


# Arrays of more rows are laid out anew each time: what that takes is much memory, and little time.
REMEMBERED = 1 << 12


class Rows(NamedTuple):
    """An array seen as rows whose columns lie `step` elements apart in memory.

    Row r begins ``first + offsets[r]`` elements into memory. Blocks are `size` columns wide, and as
    many rows high as a band has. Trailing axes become one where neither blocks nor packed words can
    tell, so that rows are long.
    """

    first: int
    offsets: Numbers
    step: int
    columns: int
    size: int
    # Bytes of a row of results.
    row_bytes: int


class Bands(NamedTuple):
    """Row ``order[i]``, ``starts[b] <= i < starts[b + 1]``, has the blocks of row b of the grid."""

    order: Numbers
    starts: Numbers
    # The most rows of a band.
    height: int


class Memory:
    """What NumPy needs to see the memory of an array as something else, as long as that lives."""

    def __init__(self, owner: Numbers, address: int, size: int, letters: str) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "typestr": letters,
            "shape": (size,),
        }


# Integers that stand for the floats whose bits they hold: see `loops.widened`.
_LETTERS = {"float64": "<u8", "float32": "<u4", "bfloat16": "<u2", "float16": "<i2"}


def window(x: Numbers, dtype: str) -> tuple[Numbers, int]:
    """See all memory that an array spans as one 1-d array of integers, and find its first element.

    It can be written to even where `x` cannot, so that compiled loops need not tell them apart.
    """
    if x.flags.c_contiguous and x.flags.writeable:
        return x.reshape(-1).view(_LETTERS[dtype]), 0
    steps = [
        stride // x.itemsize for size, stride in zip(x.shape, x.strides, strict=True) if size > 1
    ]
    sizes = [size for size in x.shape if size > 1]
    before = -sum(step * (size - 1) for step, size in zip(steps, sizes, strict=True) if step < 0)
    span = 1 + sum(abs(step) * (size - 1) for step, size in zip(steps, sizes, strict=True))
    address = x.__array_interface__["data"][0] - before * x.itemsize
    return np.asarray(Memory(x, address, span, _LETTERS[dtype])), before


def flat(x: Numbers) -> Numbers:
    """See an array as one of 1-d in C order, copied if it is not; as `window` does, writable."""
    x = np.ascontiguousarray(x, x.dtype.newbyteorder("=")).reshape(-1)
    if x.flags.writeable:
        return x
    return np.asarray(Memory(x, x.__array_interface__["data"][0], x.size, x.dtype.str))


def room(shape: tuple[int, ...], dtype: Any) -> Numbers:
    """Make an array that begins at a multiple of 64 bytes, as JAX wants those it does not copy."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    raw = np.empty(size + 64, np.uint8)
    first = -raw.__array_interface__["data"][0] % 64
    found: Numbers = raw[first : first + size].view(kind).reshape(shape)
    return found


def aligned(x: Numbers) -> Numbers:
    """Copy an array whose elements do not lie whole elements apart."""
    if x.flags.aligned and not any(stride % x.itemsize for stride in x.strides):
        return x
    return x.copy()


def rows_of(
    strides: tuple[int, ...],
    shape: tuple[int, ...],
    extents: tuple[int, ...],
    multiple: int,
    width: int,
    word: int,
) -> tuple[Rows, Bands]:
    """Lay out an array in rows, the first of which begins at 0.

    Parameters
    ----------
    strides : tuple of int
        In elements.
    shape, extents : tuple of int
        Of its blocks; not empty.
    multiple : int
        The codes after which packed words may be cut.
    width : int
        Bits of a code in memory.
    word : int
        Bits of a word.

    Returns
    -------
    Rows, Bands
    """
    many = math.prod(shape[:-1]) > REMEMBERED
    layout = _rows_of.__wrapped__ if many else _rows_of
    found: tuple[Rows, Bands] = layout(strides, shape, extents, multiple, width, word)
    return found


@functools.lru_cache
def _rows_of(
    strides: tuple[int, ...],
    shape: tuple[int, ...],
    extents: tuple[int, ...],
    multiple: int,
    width: int,
    word: int,
) -> tuple[Rows, Bands]:
    outer, heights = list(shape), list(extents)
    columns, size, step = outer.pop(), heights.pop(), strides[-1]
    while outer and columns % multiple == 0:
        count, extent, stride = outer[-1], heights[-1], strides[len(outer) - 1]
        if count > 1 and columns > 1 and stride != step * columns:
            break
        if size >= columns:
            size = extent * columns
        elif extent != 1 or columns % size:
            break
        step = stride if columns == 1 and count > 1 else step
        columns *= count
        outer.pop(), heights.pop()
    words = -(-columns * width // word)
    offsets, bands = _lattice(outer, strides[: len(outer)]), _bands(outer, heights)
    step = step if columns > 1 else 1
    return Rows(0, offsets, step, columns, size, words * word // 8), bands


def _lattice(shape: list[int], strides: tuple[int, ...]) -> Numbers:
    """Give the sums of multiples of strides, in C order."""
    found = np.zeros(1, np.int64)
    for size, stride in zip(shape, strides, strict=True):
        found = (found[:, None] + np.arange(size) * stride).reshape(-1)
    return found


def _bands(shape: list[int], extents: list[int]) -> Bands:
    count = math.prod(shape)
    if all(extent == 1 for extent in extents):
        return Bands(np.arange(count), np.arange(count + 1), 1)
    band = np.zeros(1, np.int64)
    for size, extent in zip(shape, extents, strict=True):
        band = (band[:, None] * -(-size // extent) + np.arange(size) // extent).reshape(-1)
    order = np.argsort(band, kind="stable")
    starts = np.searchsorted(band[order], np.arange(band[-1] + 2))
    return Bands(order, starts, math.prod(extents))
