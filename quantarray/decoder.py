"""The pipeline's mirror: unpack, codes to values, times the scale."""

import numpy as np

from quantarray import _xp, codec, scales, storage
from quantarray._xp import Array
from quantarray.blocks import Blocks, pieces
from quantarray.formats import LARGEST, SMALLEST_NORMAL, Integer
from quantarray.parameters import Parameters
from quantarray.task import PIECE, Result, Task


def dequantize(stored: Result, task: Task, dtype: str) -> Array:
    """Decode stored codes.

    Parameters
    ----------
    stored : Result
        What `quantize` gave.
    task : Task
        Its blocks and scheme.
    dtype : str
        The floating dtype of the values.

    Returns
    -------
    array of dtype, shape ``task.blocks.shape``
        ``scale * (code - zero_point)``. A finite value beyond what `dtype` holds is clipped.
    """
    xp, blocks = task.xp, task.blocks
    zero = None if stored.zero_point is None else task.working(stored.zero_point)
    offset = None if stored.offset is None else task.working(stored.offset)
    working = task.arithmetic.dtype
    scale = scales.as_values(stored.scale, task.scheme, working, xp, stored.outer)
    parameters = Parameters(scale, stored.scale, zero, offset)
    if 0 in blocks.shape:
        return xp.zeros(blocks.shape, dtype=_xp.dtype(xp, dtype), device=_xp.beside(stored.data))
    if not task.in_pieces:
        return _decode(
            storage.unpack(stored.data, blocks.shape, task), blocks, parameters, task, dtype
        )
    data = stored.data if task.in_rows else storage.unpack(stored.data, blocks.shape, task)
    out = np.empty(blocks.shape, _xp.dtype(xp, dtype))
    for blocks_at, parts in pieces(blocks, PIECE, task.multiple):
        here = parameters.at(blocks_at)
        for at, part in parts:
            codes = data[task.rows_where(at)]
            codes = storage.unpack(codes, part.shape, task) if task.in_rows else codes
            out[at] = _decode(codes, part, here, task, dtype)
    return out


def _decode(codes: Array, blocks: Blocks, parameters: Parameters, task: Task, dtype: str) -> Array:
    xp, math_ = task.xp, task.arithmetic
    view = blocks.split(codec.to_values(codes, task.element, math_.dtype, xp), xp)
    spread = parameters.spread(blocks, xp)
    if spread.zero is not None:
        view = view - spread.zero
    values = blocks.merge(_scaled(view, spread, task, dtype), xp)
    return xp.astype(values, _xp.dtype(xp, dtype), copy=False)


def _scaled(view: Array, parameters: Parameters, task: Task, dtype: str) -> Array:
    """Multiply by the scale and add the offset, clipping to what `dtype` holds."""
    xp, element, scale, offset = task.xp, task.element, parameters.scale, parameters.offset
    tiny = SMALLEST_NORMAL[task.arithmetic.dtype]
    limit = min(LARGEST[task.arithmetic.dtype], LARGEST[dtype])
    least, most, resolution = codec.limits_of(element)
    safe = limit / 8 / (most - min(least, 0.0))
    near = task.concrete and bool(xp.max(xp.abs(scale)) < safe)
    if near and (offset is None or bool(xp.max(xp.abs(offset)) < limit / 2)):
        values = _xp.multiply(view, scale, xp)
        values = values if offset is None else values + offset
    else:
        # The largest code times its scale, or the sum, can overflow. A quarter of them cannot.
        part = _xp.where(xp.abs(scale) < safe, xp.full_like(scale, 1.0), 0.25, xp)
        values = _xp.multiply(view, scale * part, xp)
        if offset is not None:
            values = values + _xp.flush(_xp.multiply(offset, part, xp), tiny, xp)
        values = xp.minimum(xp.maximum(values, -limit * part), limit * part) / part
    exact = (isinstance(element, Integer) and task.scheme.scale.least is None) or (
        task.concrete and bool(xp.min(xp.abs(scale)) * resolution >= tiny)
    )
    return values if exact and offset is None else _xp.flush(values, tiny, xp)
