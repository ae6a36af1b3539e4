"""Arrays to blocks of bytes, in the array API."""

import numpy as np

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import Arithmetic
from quantarray.gguf import fields
from quantarray.gguf.block import Blocks, Fields
from quantarray.gguf.encoders import ENCODERS
from quantarray.records import Record, Runs
from quantarray.task import in_pieces

# Elements that NumPy works on at a time.
PIECE = 1 << 16
# The bits of a float16 NaN.
_NAN = 0x7E00


def encode(x: Array, importance: Array | None, record: Record, xp: Namespace) -> Array:
    """Encode rows.

    Parameters
    ----------
    x : array of a floating dtype, shape (rows, elements)
        Whole blocks, at least one; rounded to float32 first.
    importance : array of float32, shape (1 or rows, elements), or None
        What the error of each element counts.
    record : Record
        The type to encode to.
    xp : namespace
        The arrays'.

    Returns
    -------
    array of uint8, shape (rows, row bytes)
        A block with an element that is not finite, or beyond the type's reach, or whose scale
        float16 does not hold, has a NaN there where it has a float16, and zeros in its other bytes.
    """
    rows, count = x.shape
    if not in_pieces(xp, rows * count, PIECE):
        return _encode(x, importance, record, xp)
    step = max(1, PIECE // count)
    # Whole rows where a row's mean square is asked for.
    wide = count if step > 1 or importance is not None else PIECE
    out = np.empty((rows, record.row_bytes(count)), np.uint8)
    for row in range(0, rows, step):
        for column in range(0, count, wide):
            at = slice(row, row + step), slice(column, column + wide)
            weights = None
            if importance is not None:
                weights = importance[at[0] if len(importance) > 1 else slice(None), at[1]]
            begin = record.row_bytes(column)
            piece = _encode(x[at], weights, record, xp)
            out[at[0], begin : begin + piece.shape[1]] = piece
    return out


def _encode(x: Array, importance: Array | None, record: Record, xp: Namespace) -> Array:
    rows, count = x.shape
    x = _xp.cast(x, "float32", xp)
    math_ = Arithmetic("float32", "float32", xp)
    plain, weighted = ENCODERS[record.name]
    finite = _by_block(xp.abs(x) <= record.reach, record, xp)
    elements = _by_block(x, record, xp)
    x = _xp.where(finite, elements, 0.0, xp)
    weights = energy = None
    if importance is not None and weighted is not None:
        weights = _by_block(xp.broadcast_to(importance, (rows, count)), record, xp)
        energy = _mean_square(x, rows, math_)
    encoder = plain if weights is None else weighted
    assert encoder is not None
    found = encoder(Blocks(x, weights, energy, record, math_))
    data = _pack(found, xp.all(finite, axis=0), record, xp)
    return xp.reshape(data, (rows, record.row_bytes(count)))


def _mean_square(x: Array, rows: int, math_: Arithmetic) -> Array:
    """Give the mean square of the row of each block: (blocks,)."""
    xp, (elements, blocks) = math_.xp, x.shape
    shape = (elements, rows, blocks // rows)
    by_row = xp.permute_dims(xp.reshape(x, shape), (2, 0, 1))
    by_row = xp.reshape(by_row, (-1, rows))
    squares = _xp.ordered_sum(math_.multiply(by_row, by_row), xp)
    mean = math_.divide(squares, xp.full_like(squares, float(by_row.shape[0])))
    return xp.reshape(xp.broadcast_to(xp.expand_dims(mean, -1), shape[1:]), (-1,))


def _by_block(x: Array, record: Record, xp: Namespace) -> Array:
    """View rows as (elements, blocks)."""
    return xp.permute_dims(xp.reshape(x, (-1, record.elements)), (1, 0))


def _pack(found: Fields, finite: Array, record: Record, xp: Namespace) -> Array:
    """Put fields into blocks of bytes: (blocks, size)."""
    parts = []
    for part, runs in (
        (found.codes, record.codes),
        (found.signs, record.signs),
        (found.deltas, record.deltas),
    ):
        if part is not None:
            groups = xp.permute_dims(part, (2, 1, 0))
            parts.append((xp.reshape(groups, (groups.shape[0], -1)), runs))
    if found.scales is not None:
        parts.append((xp.permute_dims(found.scales, (1, 0)), record.scales))
    if found.mins is not None:
        parts.append((xp.permute_dims(found.mins, (1, 0)), record.mins))
    written = [(xp.astype(part, xp.int32), runs) for part, runs in parts]
    for number, runs in ((found.base, record.base), (found.offset, record.offset)):
        if number is not None:
            half = fields.value_to_half(number, xp)
            finite = finite & ((half & 0x7FFF) < 0x7C00)
            written.append((xp.expand_dims(half, -1), runs))
    keep = xp.expand_dims(xp.astype(finite, xp.int32), -1)
    data = fields.write([(part * keep, runs) for part, runs in written], record.size, xp)
    if not record.base:
        return data
    poison = xp.asarray(poisoned(record.base, record.size), device=_xp.beside(data))
    return data | (poison * xp.astype(1 - keep, xp.uint8))


@_xp.constant
def poisoned(base: Runs, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Give a block whose base is NaN and whose other bytes are 0."""
    nan = np.full((1,), _NAN, np.int32)
    block: np.ndarray[tuple[int], np.dtype[np.uint8]] = fields.write([(nan, base)], size, np)
    return block
