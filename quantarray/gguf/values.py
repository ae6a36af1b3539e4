"""What blocks of bytes mean: codes, scales, offsets, and the values they decode to."""

import numpy as np

from quantarray import _xp, codec, storage
from quantarray._xp import Array, Namespace
from quantarray.gguf import fields
from quantarray.records import Record
from quantarray.scheme import Packing

_PLAIN = Packing()


def blocks_of(data: Array, record: Record, xp: Namespace) -> Array:
    """View rows of bytes, shape (..., row bytes), as blocks: (..., blocks, bytes of a block)."""
    *head, size = data.shape
    return xp.reshape(data, (*head, size // record.size, record.size))


def scales(blocks: Array, record: Record, xp: Namespace) -> Array:
    """Give the scale of every group: float32, shape (..., blocks, groups)."""
    found = None
    if record.scales:
        table = xp.asarray(record.scale_values, dtype=xp.float32, device=_xp.beside(blocks))
        found = _xp.lookup(table, fields.read(blocks, record.scales, xp), xp)
    if record.base:
        base = fields.half_to_value(fields.read(blocks, record.base, xp), xp)
        with _xp.quietly(xp):  # Inf times 0
            found = base if found is None else _xp.multiply(base, found, xp)
    return found


def offsets(blocks: Array, record: Record, xp: Namespace) -> Array | None:
    """Give what is added to every group, or None: float32, shape (..., blocks, groups)."""
    if not record.offset:
        return None
    base = fields.half_to_value(fields.read(blocks, record.offset, xp), xp)
    if not record.mins:
        return base
    mins = xp.astype(fields.read(blocks, record.mins, xp), xp.float32)
    with _xp.quietly(xp):
        return -_xp.multiply(base, mins, xp)


def codes(blocks: Array, record: Record, xp: Namespace) -> Array:
    """Give the codes: int8 or uint8, shape (..., blocks, elements)."""
    found = fields.read(blocks, record.codes, xp)
    if record.lattice is None:
        return storage.from_fields(xp.astype(found, xp.uint8), record.element, _PLAIN, xp)
    lattice = record.lattice
    # Index by index, because a lookup takes tables of one axis.
    place = xp.expand_dims(found, -1) * lattice.width
    place = place + xp.arange(lattice.width, dtype=xp.int32, device=_xp.beside(blocks))
    # torch warns of arrays that cannot be written to.
    flat = xp.asarray(np.array(lattice.table).reshape(-1), device=_xp.beside(blocks))
    values = xp.astype(_xp.lookup(flat, place, xp), xp.int32)
    if record.signs:
        values = values * _signs(blocks, record, xp)
    if record.deltas:
        minus = fields.read(blocks, record.deltas, xp)
        values = values * 8 + xp.expand_dims(1 - 2 * minus, -1)
    shape = (*blocks.shape[:-1], record.elements)
    return xp.reshape(xp.astype(values, xp.int8), shape)


def _signs(blocks: Array, record: Record, xp: Namespace) -> Array:
    """Give 1 or -1 for the elements of each entry of the lattice."""
    assert record.lattice is not None
    bits = fields.read(blocks, record.signs, xp)
    one_by_one = xp.arange(8, dtype=xp.int32, device=_xp.beside(blocks))
    if record.sign_bits == "parity":
        odd = bits ^ (bits >> 4)
        odd = odd ^ (odd >> 2)
        bits = bits | (((odd ^ (odd >> 1)) & 1) << 7)
    negative = (xp.expand_dims(bits, -1) >> one_by_one) & 1
    entries = record.elements // record.lattice.width
    return 1 - 2 * xp.reshape(negative, (*blocks.shape[:-1], entries, record.lattice.width))


def decode(data: Array, record: Record, xp: Namespace) -> Array:
    """Decode rows of bytes.

    Parameters
    ----------
    data : array of uint8, shape (..., row bytes)
        Whole blocks.
    record : Record
        Their type.
    xp : namespace
        The array's.

    Returns
    -------
    array of float32, shape (..., elements)
        What ggml's own decoder gives: Inf and NaN where the scales are such.
    """
    blocks = blocks_of(data, record, xp)
    shape = (*blocks.shape[:-1], record.groups, record.group)
    found = xp.reshape(codes(blocks, record, xp), shape)
    values = codec.to_values(found, record.element, "float32", xp)
    scale = xp.expand_dims(scales(blocks, record, xp), -1)
    values = _xp.multiply(scale, values, xp)
    offset = offsets(blocks, record, xp)
    if offset is not None:
        values = values + xp.expand_dims(offset, -1)
    *head, count = data.shape
    return xp.reshape(values, (*head, count // record.size * record.elements))
