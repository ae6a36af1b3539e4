"""The arrays that a quantized array is stored as: their names, shapes and bytes."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from quantarray import _xp, codec, packing
from quantarray._xp import Array
from quantarray.arithmetic import working_dtype
from quantarray.blocks import resolve, work_shape
from quantarray.errors import QuantArrayError, short
from quantarray.formats import DTYPES
from quantarray.levels import outer_blocks
from quantarray.parameters import float_dtype, stored_dtype
from quantarray.records import Record
from quantarray.scheme import Scheme

# The stored arrays by the names files give them, in that order, and the container's fields.
PARTS = {
    "data": "data",
    "scale": "scale_data",
    "zero_point": "zero_point",
    "offset": "offset_data",
    "global_scale": "global_scale",
    "global_offset": "global_offset",
}
# What the fields have entries for: elements (0), their blocks (1), or blocks of scales (2).
LEVEL = dict(zip(PARTS.values(), (0, 1, 1, 1, 2, 2), strict=True))

# Part name to (shape, dtype name).
Specs = dict[str, tuple[tuple[int, ...], str]]


def packed_axes(scheme: Scheme) -> int:
    """Tell how many of the last axes of stored codes are not those of the array."""
    if not scheme.packed:
        return 0
    return 1 if scheme.packing.transpose == "no" else 2


def part_specs(scheme: Scheme, shape: tuple[int, ...], dtype_name: str) -> Specs:
    """Give the shape and dtype name of every stored array, before anything is quantized.

    Parameters
    ----------
    scheme : Scheme
        The scheme.
    shape : tuple of int
        The logical shape.
    dtype_name : str
        The dtype to be quantized.

    Returns
    -------
    dict
        Part name to (shape, dtype name), in the order of `PARTS`.

    Raises
    ------
    QuantArrayError
        If the scheme does not fit the shape, or the dtype is not floating.
    """
    if dtype_name not in DTYPES:
        raise QuantArrayError(
            f"QuantizedArray: dtype {short(dtype_name)}: expected {', '.join(DTYPES)}"
        )
    if scheme.record is not None:
        return {"data": (_record_shape(scheme.record, shape), "uint8")}
    element = scheme.element
    work = work_shape(scheme.block, shape)
    grid = resolve("QuantizedArray", scheme.block, shape).grid
    grid = grid if shape or scheme.block.flat is not None else ()
    data, dtype = shape, codec.code_dtype(element)
    if scheme.packed:
        data = packing.packed_shape(work, element.bits, scheme.packing)
        dtype = packing.word_dtype(scheme.packing)
    specs = {"data": (data, dtype), "scale": (grid, stored_dtype(scheme, dtype_name))}
    if scheme.zero_kind == "point":
        specs["zero_point"] = (grid, codec.code_dtype(element))
    if scheme.zero_kind == "offset":
        specs["offset"] = (grid, float_dtype(scheme, dtype_name))
    if scheme.scale.outer is not None:
        working = working_dtype(dtype_name)
        specs["global_scale"] = (outer_blocks(scheme, grid).grid, working)
        if scheme.scale.outer.zero == "mean":
            specs["global_offset"] = ((1,) * max(1, len(grid)), working)
    return specs


def _record_shape(record: Record, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not shape or shape[-1] % record.elements:
        raise QuantArrayError(
            f"QuantizedArray: shape {shape}: expected a last axis that is a multiple of "
            f"{record.elements}, the elements of a block of {record.name}"
        )
    return (*shape[:-1], record.row_bytes(shape[-1]))


def check(parts: Mapping[str, Array], specs: Specs) -> None:
    """Refuse arrays that are not the parts, or not of the shapes and dtypes, that are expected."""
    found = {k: (tuple(part.shape), _xp.dtype_name(part.dtype)) for k, part in parts.items()}
    for k in {**specs, **found}:
        if found.get(k) != specs.get(k):
            raise QuantArrayError(
                f"QuantizedArray: part {k!r}: {found.get(k)}: expected {specs.get(k)}"
            )


def to_bytes(parts: Mapping[str, Array]) -> bytes:
    """Give the bytes of arrays one after another: C order, little-endian."""
    return b"".join(_words(_xp.to_numpy(part)).tobytes() for part in parts.values())


def _words(host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give an array of any dtype as little-endian words; bfloat16 has no byte order of its own."""
    size = host.dtype.itemsize
    if not host.dtype.isnative:
        host = host.astype(host.dtype.newbyteorder("="))
    return np.ascontiguousarray(host).view(f"u{size}").astype(f"<u{size}", copy=False)


def from_bytes(data: Any, specs: Specs) -> dict[str, np.ndarray[Any, Any]]:
    """Undo `to_bytes`.

    Parameters
    ----------
    data : bytes-like
        The bytes of all parts.
    specs : dict
        What `part_specs` gives.

    Returns
    -------
    dict of str to numpy.ndarray
        The parts: copies.

    Raises
    ------
    QuantArrayError
        If the number of bytes is not that of the parts.
    """
    try:
        view = memoryview(data).cast("B")
    except (TypeError, ValueError):  # no buffer, or one with gaps
        raise QuantArrayError(
            f"from_bytes: data is a {type(data).__name__}: expected bytes"
        ) from None
    sizes = [math.prod(shape) * _xp.itemsize(dtype) for shape, dtype in specs.values()]
    if len(view) != sum(sizes):
        raise QuantArrayError(
            f"from_bytes: data has {len(view)} bytes: expected {sum(sizes)}, "
            f"for {', '.join(f'{name} {size}' for name, size in zip(specs, sizes, strict=True))}"
        )
    parts, start = {}, 0
    for (name, (shape, dtype)), size in zip(specs.items(), sizes, strict=True):
        width = _xp.itemsize(dtype)
        words = np.frombuffer(view[start : start + size], f"<u{width}").astype(f"=u{width}")
        parts[name] = words.view(_xp.dtype(np, dtype)).reshape(shape)
        start += size
    return parts
