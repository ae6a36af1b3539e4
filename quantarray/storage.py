"""The form in which codes are stored: as they are, or packed."""

from quantarray import _xp, codec, packing
from quantarray._xp import Array, Namespace
from quantarray.formats import Integer, NumberFormat
from quantarray.scheme import Packing
from quantarray.task import Task


def to_rows(codes: Array, task: Task) -> Array:
    """Store the codes of a piece as far as that can be done piece by piece.

    Parameters
    ----------
    codes : array of the code dtype, shape (..., n)
        Codes of a piece.
    task : Task
        Whose scheme is theirs.

    Returns
    -------
    array of `row_dtype`
        Packed rows; what is to be packed, if that is not row by row; or the codes.
    """
    if not task.scheme.packed:
        return codes
    xp, bits = task.xp, task.element.bits
    fields = to_fields(codes, bits, task.scheme.packing, xp)
    if task.scheme.packing.padding == "value":
        fields = _fill_up(fields, task)
    return packing.pack(fields, bits, task.scheme.packing, xp) if task.in_rows else fields


def to_fields(codes: Array, bits: int, how: Packing, xp: Namespace) -> Array:
    """Give the bits of codes that are to be packed, as uint8."""
    wide = xp.astype(codes, xp.int16) if bits == 8 else codes
    fields = wide & ((1 << bits) - 1)
    if how.excess:
        fields = fields ^ (1 << (bits - 1))
    return xp.astype(fields, xp.uint8, copy=False)


def from_fields(fields: Array, element: NumberFormat, how: Packing, xp: Namespace) -> Array:
    """Give the codes of an element whose bits these are."""
    half = 1 << (element.bits - 1)
    if how.excess:
        fields = fields ^ half
    if not isinstance(element, Integer) or not element.signed:
        return fields
    wide = xp.astype(fields, xp.int8 if element.bits < 8 else xp.int16)
    return xp.astype((wide ^ half) - half, xp.int8, copy=False)


def _fill_up(fields: Array, task: Task) -> Array:
    """Add codes of the value 0 up to whole words."""
    xp, missing = task.xp, -fields.shape[-1] % task.multiple
    if not missing:
        return fields
    zero = codec.to_codes(
        xp.zeros((*fields.shape[:-1], missing), dtype=xp.float32, device=_xp.beside(fields)),
        task.element,
        "half_even",
        None,
        xp,
    )
    return xp.concat([fields, xp.astype(zero, xp.uint8, copy=False)], axis=-1)


def row_dtype(task: Task) -> str:
    """Name the dtype of what `to_rows` gives."""
    if task.in_rows:
        return packing.word_dtype(task.scheme.packing)
    return "uint8" if task.scheme.packed else codec.code_dtype(task.element)


def from_rows(data: Array, task: Task) -> Array:
    """Store what `to_rows` gave for the whole array."""
    if task.in_rows or not task.scheme.packed:
        return data
    return packing.pack(data, task.element.bits, task.scheme.packing, task.xp)


def unpack(data: Array, shape: tuple[int, ...], task: Task) -> Array:
    """Give the codes of stored data.

    Parameters
    ----------
    data : array, of ``task.data_shape``
        Stored codes.
    shape : tuple of int
        Of the codes.
    task : Task
        Whose scheme is theirs.

    Returns
    -------
    array of the code dtype
    """
    if not task.scheme.packed:
        return data
    xp, element = task.xp, task.element
    count = shape[-2 if task.scheme.packing.transpose in ("codes", "both") else -1]
    fields = packing.unpack(data, element.bits, task.scheme.packing, count, xp)
    return from_fields(fields, element, task.scheme.packing, xp)
