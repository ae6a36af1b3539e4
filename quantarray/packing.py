"""Codes to bytes and back: where the bits of codes narrower than a byte lie.

Rows (the last axis) are padded with zero bits to whole bytes. Eight over gcd(8, bits) codes fill
bits over gcd(8, bits) bytes exactly; every function works on such units.
"""

from collections.abc import Iterator
from typing import Literal

from quantarray import _xp
from quantarray._xp import Array, Namespace

Order = Literal["lsb", "msb"]


def packed_length(count: int, bits: int) -> int:
    """Give the bytes of a row of `count` codes of `bits` bits each."""
    return -(-count * bits // 8)


def pack(codes: Array, bits: int, order: Order, xp: Namespace) -> Array:
    """Pack the codes of each row.

    Parameters
    ----------
    codes : array of uint8, shape (..., n)
        Each below ``2**bits``.
    bits : int
        1 to 7.
    order : {"lsb", "msb"}
        Whether the first code takes the lowest or the highest bits of the first byte.
    xp : namespace
        The array's.

    Returns
    -------
    array of uint8, shape (..., ceil(n * bits / 8))
    """
    count = codes.shape[-1]
    if 0 in codes.shape:
        return _zeros(codes, packed_length(count, bits), xp)
    units, codes_per_unit, bytes_per_unit = _units(count, bits)
    columns = _columns(codes, units, codes_per_unit, xp)
    parts: list[Array | None] = [None] * bytes_per_unit
    for code, byte, shift in _overlaps(codes_per_unit, bits, order):
        piece = _shift(columns[..., code], shift)
        part = parts[byte]
        parts[byte] = piece if part is None else part | piece
    return _interleave(parts, packed_length(count, bits), xp)


def unpack(data: Array, bits: int, order: Order, count: int, xp: Namespace) -> Array:
    """Undo `pack`.

    Parameters
    ----------
    data : array of uint8, shape (..., ceil(count * bits / 8))
        Packed rows.
    bits, order
        As in `pack`.
    count : int
        Codes in a row.
    xp : namespace
        The array's.

    Returns
    -------
    array of uint8, shape (..., count)
    """
    if 0 in data.shape:
        return _zeros(data, count, xp)
    units, codes_per_unit, bytes_per_unit = _units(count, bits)
    columns = _columns(data, units, bytes_per_unit, xp)
    parts: list[Array | None] = [None] * codes_per_unit
    for code, byte, shift in _overlaps(codes_per_unit, bits, order):
        piece = _shift(columns[..., byte], -shift)
        part = parts[code]
        parts[code] = piece if part is None else part | piece
    return _interleave([part & ((1 << bits) - 1) for part in parts if part is not None], count, xp)


def _units(count: int, bits: int) -> tuple[int, int, int]:
    common = bits & -bits  # gcd(8, bits), as torch.compile can trace it
    return -(-count * common // 8), 8 // common, bits // common


def _overlaps(codes: int, bits: int, order: Order) -> Iterator[tuple[int, int, int]]:
    """Give (code, byte, left shift of the code in the byte) for each pair that shares bits."""
    for code in range(codes):
        first = code * bits
        for byte in range(first // 8, (first + bits - 1) // 8 + 1):
            low = first - 8 * byte
            yield code, byte, low if order == "lsb" else 8 - bits - low


def _shift(x: Array, left: int) -> Array:
    if left == 0:
        return x
    return x << left if left > 0 else x >> -left


def _columns(x: Array, units: int, size: int, xp: Namespace) -> Array:
    """Pad rows to whole units and view them as (..., units, size).

    A strided slice of the row would do too, but JAX gathers it, and loses the array's sharding.
    """
    missing = units * size - x.shape[-1]
    if missing:
        x = xp.concat([x, _zeros(x, missing, xp)], axis=-1)
    return xp.reshape(x, (*x.shape[:-1], units, size))


def _zeros(like: Array, count: int, xp: Namespace) -> Array:
    return xp.zeros((*like.shape[:-1], count), dtype=like.dtype, device=_xp.beside(like))


def _interleave(parts: list[Array], count: int, xp: Namespace) -> Array:
    if len(parts) == 1:
        whole = parts[0]
    else:
        *rows, units = parts[0].shape
        whole = xp.reshape(xp.stack(parts, axis=-1), (*rows, units * len(parts)))
    return whole if whole.shape[-1] == count else whole[..., :count]
