"""The pipeline: blocks, range to scale, values to codes, pack; and its mirror.

Everything is array-API code on whole arrays. NumPy arrays go through it in pieces that fit a
cache, so that no temporary reaches the array's size; the pieces change no bit of the result.
"""

import math
from dataclasses import dataclass

import numpy as np

from quantarray import _xp, codec, counter, packing, scales
from quantarray._xp import Array, Namespace
from quantarray.blocks import Blocks, Part, Slices, pieces, whole
from quantarray.formats import LARGEST, SMALLEST_NORMAL, Integer
from quantarray.scales import Parameters
from quantarray.scheme import Scheme

# Elements of a piece: its float32 temporaries are 1 MiB each.
PIECE = 1 << 18


@dataclass(frozen=True)
class Task:
    """All that the pipeline needs to know besides the values."""

    blocks: Blocks
    scheme: Scheme
    xp: Namespace
    # The dtype arithmetic is done in: "float32" or "float64".
    arithmetic: str
    # "raise", "propagate" or "saturate".
    nonfinite: str = "raise"
    key: int | None = None
    given: Parameters | None = None
    # Whether values can be looked at: not while traced, compiled, or lazy.
    concrete: bool = True

    @property
    def element(self) -> Integer:
        """The element format."""
        assert isinstance(self.scheme.element, Integer)
        return self.scheme.element

    @property
    def packed(self) -> bool:
        """Whether a code takes less than a byte."""
        return self.element.bits < 8

    @property
    def zero(self) -> bool:
        """Whether blocks have a zero point."""
        return self.scheme.zero == "point"

    def data_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Give the shape of the stored codes of an array of this shape."""
        if not self.packed:
            return shape
        return (*shape[:-1], packing.packed_length(shape[-1], self.element.bits))

    def data_where(self, where: Slices) -> Slices:
        """Give where the stored codes of a piece lie."""
        if not self.packed:
            return where
        row = where[-1]
        stop = packing.packed_length(row.stop, self.element.bits)
        return (*where[:-1], slice(row.start * self.element.bits // 8, stop))


@dataclass(frozen=True)
class Result:
    """Stored codes, and the parameters of their blocks."""

    data: Array
    scale: Array
    zero_point: Array | None


def quantize(x: Array, task: Task) -> Result:
    """Quantize an array.

    Parameters
    ----------
    x : array of a floating dtype, shape ``task.blocks.shape``
        At least 1-d.
    task : Task
        What to do.

    Returns
    -------
    Result
        `data` of ``task.data_shape``, `scale` and `zero_point` of ``task.blocks.grid``.

    Raises
    ------
    QuantArrayError
        If `x` is concrete, not finite, and the task says "raise".
    """
    grid = task.blocks.grid
    if 0 in x.shape:
        return _empty(x, task)
    if not _in_pieces(task):
        everything = whole(x.shape)
        parameters = _parameters(x, [(everything, task.blocks)], task.given, task)
        data = _encode(x, everything, task.blocks, parameters, task)
        return Result(data, parameters.scale, _zero_point(parameters, task))
    data = np.empty(task.data_shape(x.shape), _data_dtype(task))
    scale = np.empty(grid, task.arithmetic)
    zero = np.empty(grid, task.arithmetic) if task.zero else None
    for blocks_at, parts in pieces(task.blocks, PIECE, 8):
        given = task.given and _at(task.given, blocks_at)
        parameters = _parameters(x, parts, given, task)
        scale[blocks_at] = parameters.scale
        if zero is not None:
            zero[blocks_at] = parameters.zero
        for at, blocks in parts:
            data[task.data_where(at)] = _encode(x[at], at, blocks, parameters, task)
    return Result(data, scale, _zero_point(Parameters(scale, zero), task))


def _in_pieces(task: Task) -> bool:
    """Tell whether an array is large and its library computes each operation at once."""
    return _xp.backend(task.xp) == "numpy" and math.prod(task.blocks.shape) > PIECE


def _data_dtype(task: Task) -> str:
    return "uint8" if task.packed else codec.code_dtype(task.element)


def _empty(x: Array, task: Task) -> Result:
    """Quantize an array without elements: there are no blocks unless they were given."""
    xp, place = task.xp, _xp.device(x)
    data = xp.zeros(task.data_shape(x.shape), dtype=_xp.dtype(xp, _data_dtype(task)), device=place)
    ones = xp.ones(task.blocks.grid, dtype=_xp.dtype(xp, task.arithmetic), device=place)
    parameters = task.given or Parameters(ones, ones * 0 if task.zero else None)
    return Result(data, parameters.scale, _zero_point(parameters, task))


def _at(parameters: Parameters, blocks_at: Slices) -> Parameters:
    zero = parameters.zero
    return Parameters(parameters.scale[blocks_at], None if zero is None else zero[blocks_at])


def _zero_point(parameters: Parameters, task: Task) -> Array | None:
    if parameters.zero is None:
        return None
    return task.xp.astype(parameters.zero, _xp.dtype(task.xp, codec.code_dtype(task.element)))


def _values(x: Array, task: Task) -> Array:
    """Give the values that arithmetic is done on."""
    if _xp.dtype_name(x.dtype) == task.arithmetic:
        return x
    return task.xp.astype(x, _xp.dtype(task.xp, task.arithmetic))


def _parameters(x: Array, parts: list[Part], given: Parameters | None, task: Task) -> Parameters:
    """Find the parameters of blocks, each of which lies in one part or is cut into all of them."""
    xp = task.xp
    saturate = task.nonfinite == "saturate"
    if given is not None and saturate:
        return given
    ranges = []
    for at, blocks in parts:
        values = _values(x[at] if len(parts) > 1 or at != whole(x.shape) else x, task)
        if saturate:
            values = _xp.where(xp.isfinite(values), values, 0.0, xp)
        ranges.append(scales.measure(values, blocks, xp))
    found = scales.join(ranges, xp)
    finite: Array | None = found.finite(xp)
    if task.nonfinite == "raise" and task.concrete:
        if not bool(xp.all(finite)):
            codec.check_finite("quantize", x, xp)
        finite = None
    if given is None:
        return scales.derive(found, finite, task.scheme, xp)
    return scales.poison(given, finite, xp)


def _encode(x: Array, at: Slices, blocks: Blocks, parameters: Parameters, task: Task) -> Array:
    """Encode and pack one part, whose place in the whole array is `at`."""
    xp = task.xp
    values = _values(x, task)
    tiny = SMALLEST_NORMAL[task.arithmetic]
    # A subnormal element can reach half a code only where the scale is this small.
    if not (task.concrete and bool(xp.min(parameters.scale) >= 2 * tiny)):
        values = _xp.flush(values, tiny, xp)
    noise = None
    if task.key is not None:
        noise = blocks.split(counter.uniform(task.key, task.blocks.shape, at, values, xp), xp)
    rounded = _round(blocks.split(values, xp), blocks, parameters, noise, task)
    return _pack(blocks.merge(codec.to_codes(rounded, task.element, xp), xp), task)


def _pack(codes: Array, task: Task) -> Array:
    if not task.packed:
        return codes
    bits = task.element.bits
    unsigned = task.xp.astype(codes & ((1 << bits) - 1), task.xp.uint8, copy=False)
    return packing.pack(unsigned, bits, task.scheme.packing.order, task.xp)


def store(codes: Array, task: Task) -> Result:
    """Store codes that exist already, with the parameters the task was given.

    Parameters
    ----------
    codes : array of integers, shape ``task.blocks.shape``
        Codes of the element format.
    task : Task
        With `given`.

    Returns
    -------
    Result
    """
    assert task.given is not None
    codes = task.xp.astype(codes, _xp.dtype(task.xp, codec.code_dtype(task.element)))
    return Result(_pack(codes, task), task.given.scale, _zero_point(task.given, task))


def _round(
    view: Array, blocks: Blocks, parameters: Parameters, noise: Array | None, task: Task
) -> Array:
    """Divide by the scale, round, and add the zero point, in the order the scheme says."""
    xp, rounding = task.xp, task.scheme.rounding
    quotient = _quotient(view, blocks.spread(parameters.scale, xp), task)
    if parameters.zero is None:
        return codec.round_to_integer(quotient, rounding.mode, noise, xp)
    zero = blocks.spread(parameters.zero, xp)
    if rounding.zero_added == "before":
        return codec.round_to_integer(quotient + zero, rounding.mode, noise, xp)
    return codec.round_to_integer(quotient, rounding.mode, noise, xp) + zero


def _quotient(view: Array, scale: Array, task: Task) -> Array:
    xp = task.xp
    if task.given is None and task.concrete and task.nonfinite == "raise":
        return _divide(view, scale, task)  # known to be finite, and to stay in the element's range
    # Inf, and what would overflow, must not meet the division; NaN is the code of 0.
    beyond = xp.abs(view) * (1 / codec.BEYOND) > scale
    quotient = _divide(_xp.where(beyond, 0.0, view, xp), scale, task)
    quotient = _xp.where(xp.isnan(quotient), 0.0, quotient, xp)
    return _xp.where(beyond, xp.copysign(xp.full_like(view, codec.BEYOND), view), quotient, xp)


def _divide(view: Array, scale: Array, task: Task) -> Array:
    if task.scheme.rounding.quotient == "divide":
        return _xp.divide(view, scale, task.xp)
    return _xp.multiply(view, _xp.divide(task.xp.ones_like(scale), scale, task.xp), task.xp)


def unpack(data: Array, count: int, task: Task) -> Array:
    """Give the codes of stored data.

    Parameters
    ----------
    data : array of uint8 if packed, or of the code dtype
        Stored codes.
    count : int
        Codes in a row.
    task : Task
        Whose scheme is theirs.

    Returns
    -------
    array of the code dtype, shape (..., count)
    """
    if not task.packed:
        return data
    xp, element = task.xp, task.element
    codes = packing.unpack(data, element.bits, task.scheme.packing.order, count, xp)
    if not element.signed:
        return codes
    half = 1 << (element.bits - 1)
    return (xp.astype(codes, xp.int8) ^ half) - half


def dequantize(stored: Result, task: Task, dtype: str) -> Array:
    """Decode stored codes.

    Parameters
    ----------
    stored : Result
        What `quantize` gave.
    task : Task
        Its blocks and scheme; arithmetic is done in the scale's dtype.
    dtype : str
        The floating dtype of the values.

    Returns
    -------
    array of dtype, shape ``task.blocks.shape``
        ``scale * (code - zero_point)``. A finite value beyond what `dtype` holds is clipped.
    """
    xp, blocks = task.xp, task.blocks
    zero = None if stored.zero_point is None else _values(stored.zero_point, task)
    parameters = Parameters(stored.scale, zero)
    if 0 in blocks.shape or not _in_pieces(task):
        return _decode(stored.data, blocks, parameters, task, dtype)
    out = np.empty(blocks.shape, _xp.dtype(xp, dtype))
    for blocks_at, parts in pieces(blocks, PIECE, 8):
        here = _at(parameters, blocks_at)
        for at, part in parts:
            out[at] = _decode(stored.data[task.data_where(at)], part, here, task, dtype)
    return out


def _decode(data: Array, blocks: Blocks, parameters: Parameters, task: Task, dtype: str) -> Array:
    xp, element = task.xp, task.element
    if 0 in blocks.shape:
        return xp.zeros(blocks.shape, dtype=_xp.dtype(xp, dtype), device=_xp.device(data))
    view = blocks.split(_values(unpack(data, blocks.shape[-1], task), task), xp)
    steps = float(max(element.max, -element.min))
    if parameters.zero is not None:
        view = view - blocks.spread(parameters.zero, xp)
        steps = float(element.max - element.min)
    scale = blocks.spread(parameters.scale, xp)
    limit = min(LARGEST[task.arithmetic], LARGEST[dtype])
    if task.concrete and bool(xp.max(xp.abs(parameters.scale)) < limit / steps * 0.5):
        values = view * scale
    else:
        # The largest code times its scale can overflow by an ulp. Half of it cannot.
        large = xp.abs(scale) > 1 / codec.BEYOND
        half = _xp.where(large, scale * 0.5, scale, xp)
        values = _xp.clip(view * half, -limit / 2, limit / 2, xp)
        values = values * _xp.where(large, xp.full_like(scale, 2.0), 1.0, xp)
    return xp.astype(blocks.merge(values, xp), _xp.dtype(xp, dtype), copy=False)
