"""Arrays to rows of blocks and back: the checks, and the choice between a kernel and the array API.

What is not finite never reaches another block. A block that holds NaN or Inf and is not refused,
or whose scale float16 does not hold, has a NaN for its scale where it has a float16 at all, and
zeros elsewhere.
"""

import math
from typing import Any

import numpy as np

from quantarray import _xp, arguments, kernels
from quantarray._xp import Array, Namespace
from quantarray.errors import QuantArrayError, short
from quantarray.formats import LARGEST
from quantarray.gguf import fields, generic, plain, values
from quantarray.records import RECORDS, Record
from quantarray.task import in_pieces

# The dtypes of the types of plain floats.
_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# How the names of dtypes of real numbers begin.
_REAL = ("bool", "int", "uint", "float", "bfloat")
# Bytes that NumPy decodes at a time.
_PIECE = 1 << 16


def find(operation: str, name: Any) -> Record | str:
    """Give a block type, or the name of a type of plain floats, by its name in any case."""
    upper = name.upper() if isinstance(name, str) else ""
    if upper not in RECORDS and upper not in plain.WIDTHS:
        known = ", ".join((*RECORDS, *plain.WIDTHS))
        raise QuantArrayError(f"{operation}: type={short(name)}: expected one of {known}")
    return RECORDS.get(upper, upper)


def encode_plain(operation: str, x: Array, name: str, nonfinite: str, xp: Namespace) -> Array:
    """Give the bytes of numbers of a type of plain floats: (..., elements * width)."""
    if not x.shape:
        raise QuantArrayError(f"{operation}: x has no axes: expected one at least")
    checked = nonfinite == "raise" and _xp.is_concrete(x, xp)
    if checked:
        arguments.check_finite(operation, x, xp)
    limit = LARGEST[_PLAIN[name]]
    with _xp.quietly(xp):
        if nonfinite == "saturate":
            x = _xp.cast(x, "float32", xp)
            x = _xp.clip(_xp.where(xp.isnan(x), 0.0, x, xp), -limit, limit, xp)
        data, over = plain.encode(x, name, xp)
    if checked and bool(xp.any(over)):
        raise QuantArrayError(
            f"{operation}: {int(xp.sum(xp.astype(over, xp.int32)))} elements of x are more than "
            f"{name} holds: expected up to {limit:g}"
        )
    return data


def encode(
    operation: str, x: Array, record: Record, importance: Any, nonfinite: str, xp: Namespace
) -> Array:
    """Encode an array along its last axis.

    Parameters
    ----------
    operation : str
        Who asks, for messages.
    x : array of a floating dtype
        Its last axis holds whole blocks.
    record : Record
        The type to encode to.
    importance : array or None
        What the error of each element counts, in a shape that broadcasts to that of `x`.
    nonfinite : {"raise", "propagate", "saturate"}
        As for `quantize`; Inf saturates to the largest finite magnitude of its block.
    xp : namespace
        Of `x`.

    Returns
    -------
    array of uint8, shape (..., row bytes)
    """
    shape = tuple(x.shape)
    _check(operation, shape, record)
    size = (*shape[:-1], record.row_bytes(shape[-1]))
    weights = None
    if importance is not None:
        weights = _importance(operation, importance, x, xp)
    elif record.importance == "needed":
        raise QuantArrayError(
            f"{operation}: importance=None: {record.name} is encoded with importances only: "
            "expected real numbers, such as those of an importance matrix"
        )
    if 0 in shape:
        return xp.zeros(size, dtype=xp.uint8, device=_xp.beside(x))
    rows = xp.reshape(x, (math.prod(shape[:-1]), shape[-1]))
    weights = None if record.importance == "ignored" else weights
    return xp.reshape(_encode(rows, weights, record, nonfinite, xp, operation, shape), size)


def _check(operation: str, shape: tuple[int, ...], record: Record) -> None:
    if not shape or shape[-1] % record.elements:
        raise QuantArrayError(
            f"{operation}: x has shape {shape}: expected a last axis that is a multiple of "
            f"{record.elements}, the elements of a block of {record.name}"
        )


def _importance(operation: str, importance: Any, x: Array, xp: Namespace) -> Array:
    """Check importances, and view them as float32 of shape (1 or rows, elements)."""
    shape = tuple(x.shape)
    try:
        found = xp.asarray(importance, device=_xp.beside(x))
        rows = found.ndim > 1 and math.prod(found.shape[:-1]) > 1
        target = shape if rows else (1, shape[-1])
        if not _xp.dtype_name(found.dtype).startswith(_REAL):
            raise TypeError("no real numbers")
        with _xp.quietly(xp):  # what is more than float32 holds is refused as Inf
            found = xp.broadcast_to(xp.astype(found, xp.float32), target)
    except Exception as failure:  # each library has its own, for what it cannot take
        raise QuantArrayError(
            f"{operation}: importance={short(importance)}: expected real numbers of a shape that "
            f"broadcasts to {shape}"
        ) from failure
    if 0 in found.shape:
        return found
    if _xp.is_concrete(found, xp) and not bool(xp.all(xp.isfinite(found) & (found >= 0))):
        raise QuantArrayError(
            f"{operation}: importance has negative elements, or NaN or Inf: expected 0 or more"
        )
    return xp.reshape(found, (-1, shape[-1]))


def _encode(
    x: Array,
    importance: Array | None,
    record: Record,
    nonfinite: str,
    xp: Namespace,
    operation: str = "encode",
    shape: tuple[int, ...] | None = None,
) -> Array:
    """Encode rows, shape (rows, elements), with a kernel if there is one.

    `operation` and `shape` are those of messages.
    """
    found = kernels.encode_rows(x, importance, record, nonfinite, _encode, xp)
    if found is not None:
        return found
    seen = _xp.is_concrete(x, xp)
    if seen and nonfinite == "raise":
        arguments.check_finite(operation, x if shape is None else xp.reshape(x, shape), xp)
        _check_reach(operation, x, record, xp)
    with _xp.quietly(xp):  # what is not finite is looked for in the result
        if nonfinite == "saturate":
            x = _saturated(_xp.cast(x, "float32", xp), record, xp)
        data = generic.encode(x, importance, record, xp)
    if seen and nonfinite != "propagate" and record.base:
        blocks = values.blocks_of(data, record, xp)
        poisoned = (fields.read(blocks, record.base, xp) & 0x7FFF) > 0x7C00
        if bool(xp.any(poisoned)):
            raise QuantArrayError(
                f"{operation}: {int(xp.sum(xp.astype(poisoned, xp.int32)))} blocks of x have a "
                f"scale that float16, in which {record.name} stores it, does not hold: expected "
                "smaller elements"
            )
    return data


def _check_reach(operation: str, x: Array, record: Record, xp: Namespace) -> None:
    limit = record.reach
    if limit > LARGEST[_xp.dtype_name(x.dtype)]:
        return
    over = int(xp.sum(xp.astype(xp.abs(x) > limit, xp.int32)))
    if over:
        raise QuantArrayError(
            f"{operation}: {over} of {math.prod(x.shape)} elements of x are far more than a scale "
            f"of {record.name} holds: expected up to {limit:g}"
        )


def _saturated(x: Array, record: Record, xp: Namespace) -> Array:
    """Give 0 for NaN, and for Inf the largest finite magnitude of its block, within reach."""
    blocks = xp.reshape(x, (-1, record.elements))
    finite = xp.isfinite(blocks)
    kept = _xp.where(finite, blocks, 0.0, xp)
    largest = xp.max(xp.abs(kept), axis=-1, keepdims=True)
    infinite = xp.copysign(xp.broadcast_to(largest, blocks.shape), blocks)
    settled = _xp.where(xp.isinf(blocks), infinite, kept, xp)
    return xp.reshape(_xp.clip(settled, -record.reach, record.reach, xp), x.shape)


def decode(data: Array, record: Record, dtype: str, out: Array | None, xp: Namespace) -> Array:
    """Decode rows of blocks.

    Parameters
    ----------
    data : array of uint8, shape (..., row bytes)
        Whole blocks.
    record : Record
        Their type.
    dtype : str
        The floating dtype of the values.
    out : array of dtype, shape (..., elements), or None
        Where they may go: if the result is another array, they are not there.
    xp : namespace
        Of `data`.

    Returns
    -------
    array of dtype, shape (..., elements)
        A finite value beyond what `dtype` holds is clipped.
    """
    *head, size = data.shape
    count = size // record.size * record.elements
    shape = (*head, count)
    if 0 in shape:
        return xp.zeros(shape, dtype=_xp.dtype(xp, dtype), device=_xp.beside(data))
    rows = xp.reshape(data, (-1, size))
    out = out if out is not None and tuple(out.shape) == (rows.shape[0], count) else None
    found = _decode(rows, record, dtype, out, xp)
    return found if found is out else xp.reshape(found, shape)


def _decode(rows: Array, record: Record, dtype: str, out: Array | None, xp: Namespace) -> Array:
    """Decode rows, shape (rows, row bytes), with a kernel if there is one."""
    found = kernels.decode_rows(rows, record, dtype, out, _decode, xp)
    if found is not None:
        return found
    count, size = rows.shape
    if not in_pieces(xp, count * size, _PIECE):
        return _values(rows, record, dtype, xp)
    decoded = np.empty((count, size // record.size * record.elements), _xp.dtype(xp, dtype))
    step = max(1, _PIECE // size)
    wide = size if step > 1 else max(1, _PIECE // record.size) * record.size
    for row in range(0, count, step):
        for column in range(0, size, wide):
            piece = _values(rows[row : row + step, column : column + wide], record, dtype, xp)
            begin = column // record.size * record.elements
            decoded[row : row + step, begin : begin + piece.shape[1]] = piece
    return decoded


def _values(rows: Array, record: Record, dtype: str, xp: Namespace) -> Array:
    with _xp.quietly(xp):  # hostile scales
        return narrowed(values.decode(rows, record, xp), dtype, xp)


def narrowed(x: Array, dtype: str, xp: Namespace) -> Array:
    """Give float32 numbers in a dtype, clipping those that are finite and more than it holds."""
    limit = LARGEST[dtype]
    if limit < LARGEST["float32"]:
        x = _xp.where(xp.isinf(x), x, _xp.clip(x, -limit, limit, xp), xp)
    return xp.astype(x, _xp.dtype(xp, dtype), copy=False)
