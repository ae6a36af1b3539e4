"""Kernels for the block types of ggml: what is computed where, and what each thread does."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from quantarray.kernels import memory, record_decode, record_encode, threads
from quantarray.kernels.memory import Numbers
from quantarray.kernels.record_plans import RULES, decoder, encoder, nearly
from quantarray.records import Record

# Elements for which a second thread is not worth its start, and those that are laid out at a time
# where they cannot be worked on where they lie.
ALONE = 1 << 18
PIECE = 1 << 15
# With importances, C sums over whole rows.
_WHOLE_ROWS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
# Integers that stand for the floats whose bits they hold: see `bits.widened`.
_BITS_OF = {"float64": np.uint64, "bfloat16": np.uint16, "float16": np.int16}


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
    used = None
    if importance is not None and record.importance in ("used", "needed"):
        used = np.ascontiguousarray(importance, np.float32)
    kernel = _kernel(record, used)
    if kernel is None:
        return None
    out = memory.room((rows, blocks * record.size), np.uint8)
    if out.size == 0:
        return out
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
        Where they go: at once, if it is in C order.

    Returns
    -------
    array, shape (rows, n)
        `out`, if there is one.
    """
    rows, blocks = data.shape[0], data.shape[1] // record.size
    if out is not None and not _is_plain(out):
        np.copyto(out, decode(data, record, dtype))
        return out
    if out is None:
        kind = "int16" if dtype == "bfloat16" else dtype
        out = memory.room((rows, blocks * record.elements), kind)
    if out.size == 0:
        return out
    plan, runs, tables = decoder(record)
    values = out.reshape(-1)

    def one(first: int, last: int) -> None:
        whole = PIECE // record.elements if dtype != "float32" else last - first
        for begin, some in _pieces(data, record.size, whole, first, last, PIECE):
            start = begin * record.elements
            target = values[start : start + some.size // record.size * record.elements]
            found = target if dtype == "float32" else np.empty(target.size, np.float32)
            record_decode.decode(plan, runs, tables, some, found)
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
    return [(first, last) for first, last in itertools.pairwise(ends) if first < last]


def _is_plain(x: Numbers) -> bool:
    """Tell whether loops can work on an array where it lies."""
    return x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative


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
    columns, native = x.shape[1] // unit, x.dtype.newbyteorder("=")
    if _is_plain(x):
        flat = memory.flat(x)
        for begin in range(first, last, max(whole, 1)):
            yield begin, flat[begin * unit : min(begin + whole, last) * unit]
        return
    begin = first
    while begin < last:
        row, column = divmod(begin, columns)
        rows = min(last // columns - row, most // (columns * unit)) if column == 0 else 0
        if rows > 0:
            yield begin, np.array(x[row : row + rows], native, order="C").reshape(-1)
            begin += rows * columns
        else:
            count = min(last - begin, columns - column, max(most // unit, 1))
            yield begin, np.array(x[row, column * unit : (column + count) * unit], native)
            begin += count


Kernel = Callable[[Numbers, str, Numbers | None, Record, Numbers, int, int], bool]


def _kernel(record: Record, importance: Numbers | None) -> Kernel | None:
    """Give what encodes a share of the blocks, if there is anything."""
    if record.importance == "needed" and importance is None:
        return None
    if record.lattice is not None:
        return _encode_lattice
    if record.name in RULES and importance is None:
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
        elements = some
        if not same:
            elements = np.empty(some.size, np.float32)
            record_encode.widen(some.view(_BITS_OF[dtype]), elements)
        start = begin * record.size
        target = data[start : start + some.size // record.elements * record.size]
        if not record_encode.encode(plan, runs, nearly(), elements, target):
            return False
    return True


def _encode_lattice(
    x: Numbers,
    dtype: str,
    importance: Numbers | None,
    record: Record,
    out: Numbers,
    first: int,
    last: int,
) -> bool:
    from quantarray.kernels import lattice_plans

    loop, plan, near = lattice_plans.encoder(record, importance is not None)
    weights = np.empty(0, np.float32) if importance is None else memory.flat(importance)
    data, whole = out.reshape(-1, record.size), PIECE // record.elements
    for begin, some in _pieces(x, record.elements, whole, first, last, PIECE):
        elements = some
        if dtype != "float32":
            elements = np.empty(some.size, np.float32)
            record_encode.widen(some.view(_BITS_OF[dtype]), elements)
        end = begin + some.size // record.elements
        if not loop(plan, near, elements, weights, begin * record.elements, data[begin:end]):
            return False
    return True


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

    if _is_plain(x):
        x = memory.flat(x).reshape(x.shape)
        return searches.encode_rows(x, dtype, importance, record, out, first, last)
    columns, weights = x.shape[1] // record.elements, importance
    whole = weights is not None and record.name in _WHOLE_ROWS
    for begin, some in _pieces(x, record.elements, 0, first, last, x.shape[1] if whole else PIECE):
        row, column = divmod(begin, columns)
        piece = some.reshape(-1, min(some.size, x.shape[1]))
        rows, width = piece.shape
        if importance is not None:
            start, every = column * record.elements, importance.shape[0] > 1
            weights = importance[row : row + rows] if every else importance
            weights = np.ascontiguousarray(weights[:, start : start + width])
        start, count = column * record.size, width // record.elements
        target = out[row : row + rows, start : start + count * record.size]
        if not searches.encode_rows(piece, dtype, weights, record, target, 0, rows * count):
            return False
    return True
