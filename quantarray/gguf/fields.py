"""Blocks of bytes to fields of a few bits, and back, as the runs of a record say."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.records import Run, Runs

Numbers = np.ndarray[Any, Any]


def read(blocks: Array, runs: Runs, xp: Namespace) -> Array:
    """Take fields out of blocks.

    Parameters
    ----------
    blocks : array of uint8, shape (..., size)
        Bytes of blocks.
    runs : tuple of Run
        Where the bits of the fields lie.
    xp : namespace
        The array's.

    Returns
    -------
    array of int32, shape (..., fields)
    """
    fields, table = None, xp.asarray(_reading(runs), device=_xp.beside(blocks))
    for i in range(table.shape[0]):
        byte, times, right, mask, left = (table[i, j, :] for j in range(5))
        piece = xp.astype(xp.take(blocks, byte, axis=-1), xp.int32)
        if runs[0].base == 3:  # the digit, as a fraction of 256, is thrice its byte's fraction
            return (((piece * times) & 255) * 3) >> 8
        piece = (piece >> right) & mask
        piece = piece << left if any(run.left for run in runs) else piece
        fields = piece if fields is None else fields | piece
    return fields


def write(fields: Sequence[tuple[Array, Runs]], size: int, xp: Namespace) -> Array:
    """Put fields into blocks.

    Parameters
    ----------
    fields : sequence of (array of int32 of shape (..., fields), tuple of Run)
        Fields, not negative, and where their bits lie.
    size : int
        Bytes of a block.
    xp : namespace
        The arrays'.

    Returns
    -------
    array of uint8, shape (..., size)
    """
    blocks = None
    for values, runs in fields:
        digits, table = None, xp.asarray(_writing(runs, size), device=_xp.beside(values))
        for i in range(table.shape[0]):
            index, times, left, mask, right = (table[i, j, :] for j in range(5))
            piece = xp.take(values, index, axis=-1)
            if runs[0].base == 3:
                piece = piece * times
                digits = piece if digits is None else digits + piece
                continue
            piece = ((piece >> left) & mask) << right
            blocks = piece if blocks is None else blocks | piece
        if digits is not None:  # as a fraction of 256, rounded up
            digits = (digits * 256 + 242) // 243
            blocks = digits if blocks is None else blocks | digits
    return xp.astype(blocks, xp.uint8)


def _pieces(run: Run) -> list[tuple[int, int, int, int, int, int]]:
    """Give each field of a run: its index, byte, factor, shift to the right, mask, and left."""
    return [
        (
            run.first + k * run.fields + part * run.unit + b,
            run.start + k * run.stride + b,
            3**part,
            run.right + part * run.bits if run.base == 2 else 0,
            (1 << run.bits) - 1,
            run.left,
        )
        for k in range(run.units)
        for part in range(run.parts)
        for b in range(run.unit)
    ]


def _stack(rows: list[list[tuple[int, ...]]]) -> Numbers:
    """Turn the pieces of each place into tables: the first of every place, the second, and so on.

    A place with fewer gets nothing: a mask of 0.
    """
    most = max(map(len, rows))
    filled = [row + [(0,) * 5] * (most - len(row)) for row in rows]
    table = np.asarray(filled, np.int32)  # place, piece, entry
    return np.ascontiguousarray(np.permute_dims(table, (1, 2, 0)))


@_xp.constant
def _reading(runs: Runs) -> Numbers:
    pieces = [piece for run in runs for piece in _pieces(run)]
    rows: list[list[tuple[int, ...]]] = [[] for _ in range(1 + max(piece[0] for piece in pieces))]
    for index, byte, times, right, mask, left in pieces:
        rows[index].append((byte, times, right, mask, left))
    return _stack(rows)


@_xp.constant
def _writing(runs: Runs, size: int) -> Numbers:
    rows: list[list[tuple[int, ...]]] = [[] for _ in range(size)]
    for run in runs:
        for index, byte, times, right, mask, left in _pieces(run):
            # The first digit of base 3 is worth 81, however many there are.
            rows[byte].append((index, 81 // times, left, mask, right))
    return _stack(rows)


def half_to_value(codes: Array, xp: Namespace) -> Array:
    """Give the float32 values of the bits of float16 numbers."""
    table = xp.asarray(_halves(), device=_xp.beside(codes))
    return _xp.lookup(table, codes, xp)


@_xp.constant
def _halves() -> Numbers:
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def value_to_half(x: Array, xp: Namespace) -> Array:
    """Give the bits of float32 numbers rounded to float16, ties to even, as int32.

    NaN becomes the quiet NaN without a payload, of its sign.
    """
    magnitude = xp.abs(x)
    bits = _xp.float_bits(magnitude, xp)
    normal = ((bits + 0xFFF + ((bits >> 13) & 1)) >> 13) - (112 << 10)
    normal = _xp.where(magnitude < 65520.0, normal, xp.full_like(normal, 0x7C00), xp)
    low = magnitude < 2.0**-14
    steps = xp.astype(xp.round(_xp.where(low, magnitude, 0.0, xp) * 2.0**24), xp.int32)
    half = _xp.where(low, steps, normal, xp)
    half = _xp.where(xp.isnan(x), xp.full_like(half, 0x7E00), half, xp)
    return half + xp.astype(xp.signbit(x), xp.int32) * 0x8000
