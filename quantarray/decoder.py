"""The pipeline's mirror: unpack, codes to values, times the scale."""

from dataclasses import replace

import numpy as np

from quantarray import _xp, codec, kernels, scales, storage
from quantarray._xp import Array
from quantarray.arithmetic import Arithmetic
from quantarray.blocks import Blocks, pieces
from quantarray.formats import LARGEST, Float, Integer, NumberFormat
from quantarray.gguf import rows
from quantarray.parameters import Parameters, float_dtype
from quantarray.task import PIECE, Result, Task


def dequantize(stored: Result, task: Task, dtype: str, out: Array | None = None) -> Array:
    """Decode stored codes.

    Parameters
    ----------
    stored : Result
        What `quantize` gave.
    task : Task
        Its blocks and scheme.
    dtype : str
        The floating dtype of the values.
    out : array of dtype, shape ``task.blocks.shape``, or None
        Where they may go: if the result is another array, they are not there.

    Returns
    -------
    array of dtype, shape ``task.blocks.shape``
        ``scale * (code - zero_point)``. A finite value beyond what `dtype` holds is clipped.
    """
    record = task.scheme.record
    if record is not None:
        return rows.decode(stored.data, record, dtype, out, task.xp)
    found = kernels.dequantize(stored, task, dtype, out, dequantize)
    return _generic(stored, task, dtype) if found is None else found


def _generic(stored: Result, task: Task, dtype: str) -> Array:
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
    xp, element, rounding = task.xp, task.element, task.scheme.rounding
    factor = 1.0
    if isinstance(element, Integer) and rounding.quotient == "reciprocal":
        # The mirror of x * (steps * (1 / s)).
        element, factor = replace(element, steps=1.0), 1 / element.steps
    view = blocks.split(codec.to_values(codes, element, task.arithmetic.dtype, xp), xp)
    spread = parameters.spread(blocks, xp)
    if spread.zero is not None:
        view = view - spread.zero
    coded = task.scheme.scale.coded
    if isinstance(coded, Float) and 0 < coded.min < task.arithmetic.tiny:
        # 2**-127, the smallest scale of e8m0, is subnormal, which some libraries take for 0.
        low = spread.scale < task.arithmetic.tiny
        view = _xp.where(low, view * (coded.min / task.arithmetic.tiny), view, xp)
        spread = replace(spread, scale=_xp.where(low, task.arithmetic.tiny, spread.scale, xp))
    values = blocks.merge(_scaled(view, element, factor, spread, task, dtype), xp)
    return xp.astype(values, _xp.dtype(xp, dtype), copy=False)


def _scaled(
    view: Array,
    element: NumberFormat,
    factor: float,
    parameters: Parameters,
    task: Task,
    dtype: str,
) -> Array:
    """Multiply by the scale and add the offset, clipping to what `dtype` holds."""
    xp, scale, offset = task.xp, parameters.scale, parameters.offset
    working, stored = task.arithmetic.dtype, float_dtype(task.scheme, task.dtype)
    math_ = Arithmetic(working, stored if offset is not None else working, xp)
    limit = min(LARGEST[working], LARGEST[dtype])
    least, most, resolution = codec.limits_of(element)
    safe = limit / 8 / (most - min(least, 0.0))
    # No product is subnormal.
    held = task.concrete and bool(xp.min(xp.abs(scale)) * (resolution * factor) >= math_.tiny)
    near = task.concrete and bool(xp.max(xp.abs(scale)) < safe)
    if near and (offset is None or bool(xp.max(xp.abs(offset)) < limit / 2)):
        values = math_.multiply(view, scale)
        values = values if factor == 1 else math_.multiply(values, factor)
        if offset is not None:
            values = math_.add(values if held else math_.flush(values), offset)
    else:
        # The largest code times its scale, or the sum, can overflow. A part of them cannot.
        small = 0.25 if factor == 1 else 2.0**-9
        part = _xp.where(xp.abs(scale) < safe, xp.full_like(scale, 1.0), small, xp)
        values = math_.multiply(view, scale * part)
        values = values if factor == 1 else math_.multiply(values, factor)
        if offset is not None:
            shift = math_.flush(_xp.multiply(offset, part, xp))
            values = math_.add(math_.flush(values), shift)
        values = xp.minimum(xp.maximum(values, -limit * part), limit * part) / part
    units = isinstance(element, Integer) and element.steps * factor == 1
    whole = units and task.scheme.scale.least is None
    return values if (whole or held) and offset is None else math_.flush(values)
