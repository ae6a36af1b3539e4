"""Products with codes that are decoded in registers, or a panel at a time."""

import functools
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantarray import _xp, codec, storage
from quantarray.blocks import Blocks
from quantarray.formats import Integer
from quantarray.kernels import product_loops as loops
from quantarray.kernels import threads
from quantarray.scheme import Packing, Scheme

Numbers = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float32]]
FLOAT = "float32"
# Codes from which on threads are worth starting.
PARALLEL = 1_000_000
# Elements of a decoded panel.
PANEL = 1 << 20
# Rows from which on it pays to treat a row of blocks by itself.
LEAST = 16
# Vectors of codes up to which no library multiplies floats faster.
FEW_ROWS, FEW_COLUMNS = 8, 16


@dataclass(frozen=True)
class Weights:
    """A matrix of codes and what they mean: ``scale * (code - zero)``, or ``scale * table[code]``.

    The codes lie in bytes of their own, or in twos from the lowest bits of a byte on.
    """

    # C order, a row for each of the matrix.
    data: Numbers
    shape: tuple[int, int]
    # Rows and columns of a block, and its parameters.
    extents: tuple[int, int]
    scale: Floats
    zero: np.ndarray[Any, np.dtype[np.int32]]
    table: Floats | None
    # Codes in a byte; which of its bits are inverted first; whether its high bits come first.
    per_byte: int
    flip: int
    high_first: bool
    # What columns are multiplied with besides, for each row of blocks.
    each: Floats | None

    @property
    def few(self) -> int:
        """Vectors up to which each reads all codes by itself, and no panel is decoded."""
        if self.extents[1] < min(loops.LANES * self.per_byte, self.shape[1]):
            return 0  # blocks are too narrow for vectors of the processor
        return 2 if self.table is not None and self.per_byte == 1 else 4

    def bands(self) -> Iterator[tuple[slice, "Weights", Floats]]:
        """Give each row of blocks: where it is, its codes, and what columns are multiplied with."""
        assert self.each is not None
        height = self.extents[0]
        for i, factors in enumerate(self.each):
            at, one = slice(i * height, min(i * height + height, self.shape[0])), slice(i, i + 1)
            part = replace(
                self,
                data=self.data[at],
                shape=(at.stop - at.start, self.shape[1]),
                scale=self.scale[one],
                zero=self.zero[one],
                each=None,
            )
            yield at, part, factors


def weights(
    data: Numbers,
    scale: Numbers,
    zero: Numbers | None,
    blocks: Blocks,
    shape: tuple[int, ...],
    scheme: Scheme,
) -> Weights | None:
    """Find how to read stored codes.

    Parameters
    ----------
    data, scale, zero : array
        Stored codes; values of scales, and zero points or None, one entry per block.
    blocks : Blocks
        As the scheme counts them.
    shape : tuple of int
        The logical shape.
    scheme : Scheme
        What the codes mean.

    Returns
    -------
    Weights or None
        None if they are not a matrix of codes of 4 or 8 bits that these kernels read.
    """
    element, how = scheme.element, scheme.packing
    per_byte = 8 // element.bits if element.bits in (4, 8) else 0
    if len(shape) != 2 or 0 in shape or scale.dtype != np.float32 or not per_byte:
        return None
    if scheme.zero_kind == "offset" or (scheme.packed and not _in_bytes(element.bits, how)):
        return None
    each = None
    if len(blocks.shape) == 2 and blocks.extents[1] == 1 < shape[1]:
        if zero is not None or blocks.extents[0] < min(shape[0], LEAST):
            return None
        blocks, each = Blocks(blocks.shape, (blocks.extents[0], shape[1])), _plain(scale)
        scale = np.ones((len(each), 1), np.float32)
    extents = _extents(blocks, shape, per_byte)
    if extents is None:
        return None
    grid = (-(-shape[0] // extents[0]), -(-shape[1] // extents[1]))
    half, table, code = 0, None, "uint8"
    if not isinstance(element, Integer) or not element.plain:
        fields = np.arange(1 << element.bits, dtype=np.uint8)
        xp = _xp.namespace(fields)
        table = codec.to_values(storage.from_fields(fields, element, how, xp), element, FLOAT, xp)
    elif element.signed and per_byte == 2:
        half = 8
    elif element.signed:
        code = "int8"
    zeros = np.zeros(grid, np.int32) if zero is None else zero.astype(np.int32).reshape(grid)
    return Weights(
        data=_bytes(data, shape, per_byte).view(code),
        shape=(shape[0], shape[1]),
        extents=extents,
        scale=_plain(scale).reshape(grid),
        zero=zeros + np.int32(half),
        table=table,
        per_byte=per_byte,
        flip=0 if how.excess else half * 17,
        high_first=how.order == "msb",
        each=each,
    )


def _in_bytes(bits: int, how: Packing) -> bool:
    """Tell whether codes of 4 bits follow one another in bytes."""
    plain = replace(how, order="lsb", word=8, excess=False, padding="bits", dense=True)
    return bits == 4 and plain == Packing() and (how.word == 8 or how.order == "lsb")


def _extents(blocks: Blocks, shape: tuple[int, ...], per_byte: int) -> tuple[int, int] | None:
    """Give the extents of blocks of rows and columns; None if a byte may have codes of two."""
    if len(blocks.shape) == 2:
        height, width = blocks.extents
        return (height, width) if width % per_byte == 0 or width == shape[1] else None
    size = blocks.extents[0]  # of flat blocks
    return (1, size) if shape[1] % size == 0 and size % per_byte == 0 else None


def _bytes(data: Numbers, shape: tuple[int, ...], per_byte: int) -> Numbers:
    """Give the bytes of each row without those that fill its last word, or the array's."""
    size = -(-shape[1] // per_byte)
    stored = _plain(data.astype(data.dtype.newbyteorder("<"), copy=False)).view(np.uint8)
    if stored.ndim == 1:
        return stored[: shape[0] * size].reshape(shape[0], size)
    return _plain(stored[:, :size])


def times_columns(w: Weights, x: Floats) -> Floats:
    """Multiply a matrix of codes with a vector, or with matrices, of float32."""
    rows, columns = w.shape
    if w.each is not None:
        deep = (slice(None), None)[: x.ndim]
        parts = [times_columns(part, x * factors[deep]) for _, part, factors in w.bands()]
        return np.concatenate(parts, axis=-min(2, x.ndim))
    if x.ndim == 1:
        return _dots(w, x) if w.few else times_columns(w, x[:, None])[:, 0]
    if x.ndim == 2 and x.shape[1] <= w.few:
        return np.stack([_dots(w, x[:, i]) for i in range(x.shape[1])], axis=-1)
    out = np.empty((*x.shape[:-2], rows, x.shape[-1]), np.float32)
    step = max(1, PANEL // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        panel = _decoded(w, (start, stop), (0, w.data.shape[1]))[:, :columns]
        out[..., start:stop, :] = panel @ x
    return out


def rows_times(x: Floats, w: Weights) -> Floats:
    """Multiply a vector, or matrices, of float32 with a matrix of codes."""
    rows, columns = w.shape
    if w.each is not None:
        bands = (rows_times(x[..., at], part) * factors for at, part, factors in w.bands())
        return functools.reduce(operator.add, bands)
    if x.size <= w.few * rows:
        flat = _plain(x).reshape(-1, rows)
        sums = [_sums(v, w) for v in flat]
        return np.stack(sums).reshape(*x.shape[:-1], columns)
    out = np.empty((*x.shape[:-1], columns), np.float32)
    bytes_ = w.data.shape[1]
    step = max(1, PANEL // rows // w.per_byte)
    for start in range(0, bytes_, step):
        stop = min(start + step, bytes_)
        first, last = start * w.per_byte, min(stop * w.per_byte, columns)
        out[..., first:last] = x @ _decoded(w, (0, rows), (start, stop))[:, : last - first]
    return out


def integers(a: Numbers, b: Numbers) -> Numbers | None:
    """Multiply codes of 8 bits, whose sums int32 holds; None if floats do so faster."""
    if a.ndim > 2 or b.ndim > 2:
        return None
    shape = (*a.shape[:-1], *b.shape[1:])
    rows, columns = (
        _plain(x.reshape(s)) for x, s in ((a, (-1, b.shape[0])), (b, (b.shape[0], -1)))
    )
    if columns.shape[1] <= FEW_COLUMNS:
        out = np.empty((rows.shape[0], columns.shape[1]), np.int32)
        fixed = (rows, _plain(columns.T), out)
        threads.run(loops.exact_dots, [(*fixed, *s) for s in _shares(rows.shape[0], rows.size)])
    elif rows.shape[0] <= FEW_ROWS:
        shares = _shares(columns.shape[0], columns.size)
        parts = np.zeros((len(shares), rows.shape[0], columns.shape[1]), np.int32)
        threads.run(
            loops.exact_sums,
            [(rows, columns, part, *share) for part, share in zip(parts, shares, strict=True)],
        )
        out = parts.sum(axis=0, dtype=np.int32)
    else:
        return None
    return out.reshape(shape)


class _Writable:
    """What NumPy needs to see an array that is read-only as one that is not."""

    def __init__(self, x: Numbers) -> None:
        self.owner = x
        interface = x.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _plain(x: Numbers) -> Numbers:
    """Give an array in C order, and so that compiled loops need not tell read-only ones apart."""
    x = np.ascontiguousarray(x)
    return x if x.flags.writeable else np.asarray(_Writable(x))


def _shares(size: int, work: int) -> list[tuple[int, int]]:
    """Cut a range in parts of nearly one size, for as many threads as the work is worth."""
    count = min(size, threads.count()) if work >= PARALLEL else 1
    return [(size * i // count, size * (i + 1) // count) for i in range(count)]


def _apart(v: Floats, w: Weights) -> tuple[Floats, Floats | None]:
    """Give the elements of a vector that belong to the codes in low bits, and in high bits."""
    if w.per_byte == 1:
        return _plain(v), None
    halves = np.zeros((2, w.data.shape[1]), np.float32)
    halves[0, :], halves[1, : v.size // 2] = v[0::2], v[1::2]
    low = int(w.high_first)
    return halves[low], halves[1 - low]


def _together(low: Floats, high: Floats | None, w: Weights) -> Floats:
    """Undo `_apart`."""
    if high is None:
        return low
    halves = (high, low) if w.high_first else (low, high)
    return np.stack(halves, axis=-1).reshape(-1)[: w.shape[1]]


def _dots(w: Weights, v: Floats) -> Floats:
    low, high = _apart(v, w)
    out = np.empty(w.shape[0], np.float32)
    step = -(-w.extents[1] // w.per_byte)
    flip, table = np.uint8(w.flip), w.table
    fixed = (w.data, w.scale, w.zero, w.extents[0], step, low, high, flip, table, out)
    shares = _shares(w.shape[0], w.data.size * w.per_byte)
    threads.run(loops.dots, [(*fixed, start, stop) for start, stop in shares])
    return out


def _sums(v: Floats, w: Weights) -> Floats:
    # Each thread has sums of its own: half of every row each would be slower than all by one.
    shares = _shares(w.shape[0], w.data.size * w.per_byte)
    low = np.zeros((len(shares), w.data.shape[1]), np.float32)
    high = np.zeros_like(low) if w.per_byte == 2 else None
    step = -(-w.extents[1] // w.per_byte)
    fixed = (w.data, w.scale, w.zero, w.extents[0], step, v, np.uint8(w.flip), w.table)
    halves = [(low[i], None if high is None else high[i]) for i in range(len(shares))]
    threads.run(loops.sums, [(*fixed, *h, *s) for h, s in zip(halves, shares, strict=True)])
    return _together(low.sum(axis=0), None if high is None else high.sum(axis=0), w)


def _decoded(w: Weights, rows: tuple[int, int], bytes_: tuple[int, int]) -> Floats:
    """Decode a panel; a last byte may hold a code too many."""
    out = np.empty((rows[1] - rows[0], (bytes_[1] - bytes_[0]) * w.per_byte), np.float32)
    shifts = None if w.per_byte == 1 else (4, 0) if w.high_first else (0, 4)
    step = -(-w.extents[1] // w.per_byte)
    flip, table = np.uint8(w.flip), w.table
    fixed = (w.data, w.scale, w.zero, w.extents[0], step, shifts, flip, table)
    threads.run(
        loops.decode,
        [
            (*fixed, bytes_[0], bytes_[1], rows[0] + start, out[start:stop])
            for start, stop in _shares(out.shape[0], out.size)
        ],
    )
    return out
