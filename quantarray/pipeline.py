"""The pipeline: blocks, range to scale, values to codes, pack; and its mirror.

Everything is array-API code on whole arrays. NumPy arrays go through it in pieces that fit a
cache, so that no temporary reaches the array's size; the pieces change no bit of the result.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantarray import _xp, arguments, codec, counter, packing, scales
from quantarray._xp import Array, Namespace
from quantarray.blocks import Blocks, Part, Slices, pieces, whole
from quantarray.errors import QuantArrayError
from quantarray.formats import LARGEST, SMALLEST_NORMAL, Integer, NumberFormat
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
    def element(self) -> NumberFormat:
        """The element format."""
        return self.scheme.element

    @property
    def packed(self) -> bool:
        """Whether a code takes less than a byte."""
        return self.element.bits < 8

    @property
    def inside(self) -> bool:
        """Whether no quotient needs clipping.

        True where the scale is absmax / max: that and the quotient are rounded a few times, each to
        a relative 2**-21 at worst, which is far less than the half code that clipping could need.
        """
        rule, element = self.scheme.scale, self.element
        return (
            isinstance(element, Integer)
            and self.given is None
            and self.concrete
            and self.nonfinite == "raise"
            and self.key is None
            and (rule.rule, rule.divisor, rule.format) == ("absmax", element.max, None)
            and self.scheme.zero == "none"
        )

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
    """Stored codes, and the parameters of their blocks as they are stored."""

    data: Array
    scale: Array
    zero_point: Array | None = None
    offset: Array | None = None


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
        `data` of ``task.data_shape``, the others of ``task.blocks.grid``.

    Raises
    ------
    QuantArrayError
        If `x` is concrete, not finite, and the task says "raise".
    """
    if 0 in x.shape:
        return _empty(x, task)
    if not _in_pieces(task):
        everything = whole(x.shape)
        parameters = _parameters(x, [(everything, task.blocks)], task.given, task)
        data = _encode(x, everything, task.blocks, parameters, task)
        return _result(data, parameters, task)
    data = np.empty(task.data_shape(x.shape), _data_dtype(task))
    found = _ones(task, None)
    for blocks_at, parts in pieces(task.blocks, PIECE, 8):
        given = task.given and task.given.at(blocks_at)
        parameters = _parameters(x, parts, given, task)
        for name, array in vars(parameters).items():
            if array is not None:
                getattr(found, name)[blocks_at] = array
        for at, blocks in parts:
            data[task.data_where(at)] = _encode(x[at], at, blocks, parameters, task)
    return _result(data, found, task)


def _in_pieces(task: Task) -> bool:
    """Tell whether an array is large and its library computes each operation at once."""
    return _xp.backend(task.xp) == "numpy" and math.prod(task.blocks.shape) > PIECE


def _data_dtype(task: Task) -> str:
    return "uint8" if task.packed else codec.code_dtype(task.element)


def _result(data: Array, parameters: Parameters, task: Task) -> Result:
    zero = parameters.zero
    if zero is not None:
        zero = task.xp.astype(zero, _xp.dtype(task.xp, codec.code_dtype(task.element)))
    return Result(data, parameters.stored, zero, parameters.offset)


def _empty(x: Array, task: Task) -> Result:
    """Quantize an array without elements: there are no blocks unless they were given."""
    xp, place = task.xp, _xp.beside(x)
    data = xp.zeros(task.data_shape(x.shape), dtype=_xp.dtype(xp, _data_dtype(task)), device=place)
    return _result(data, task.given or _ones(task, place), task)


def _ones(task: Task, place: Any) -> Parameters:
    """Give parameters for every block, to be overwritten if there are any."""
    xp, dtype = task.xp, _xp.dtype(task.xp, task.arithmetic)
    scale = xp.ones(task.blocks.grid, dtype=dtype, device=place)
    stored = scales.as_stored(scale, task.scheme, task.arithmetic, xp)
    zero = scale * 0 if task.scheme.zero == "point" else None
    offset = scale * 0 if task.scheme.zero == "offset" else None
    return Parameters(scale, stored, zero, offset)


def _spread(parameters: Parameters, blocks: Blocks, xp: Namespace) -> Parameters:
    """View parameters so that they broadcast with a split array."""
    if blocks.grid == blocks.spread_view:
        return parameters
    return parameters.map(lambda array: blocks.spread(array, xp))


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
        values = _values(x if blocks.shape == x.shape else x[at], task)
        if saturate:
            values = _xp.where(xp.isfinite(values), values, 0.0, xp)
        ranges.append(scales.measure(values, blocks, xp))
    found = scales.join(ranges, xp)
    limit = scales.largest(task.scheme, task.arithmetic)
    finite: Array | None = found.within(limit, xp)
    if task.nonfinite == "raise" and task.concrete:
        if not bool(xp.all(finite)):
            arguments.check_finite("quantize", x, xp)
            raise QuantArrayError(
                f"quantize: x has elements beyond {limit:g}, which is all that the scales of "
                f"{task.scheme.name} can reach: expected smaller ones, or another scheme"
            )
        finite = None
    if given is None:
        return scales.derive(found, finite, task.scheme, xp)
    return scales.poison(given, finite, task.scheme, xp)


def _encode(x: Array, at: Slices, blocks: Blocks, parameters: Parameters, task: Task) -> Array:
    """Encode and pack one part, whose place in the whole array is `at`."""
    xp = task.xp
    spread = _spread(parameters, blocks, xp)
    values = _values(x, task)
    noise = None
    if task.key is not None:
        noise = blocks.split(counter.uniform(task.key, task.blocks.shape, at, values, xp), xp)
    view = blocks.split(values, xp)
    tiny = SMALLEST_NORMAL[task.arithmetic]
    # A subnormal number can be more than the code of zero only where the scale is this small.
    _, _, resolution = codec.limits_of(task.element)
    small = not (task.concrete and bool(xp.min(spread.scale) >= tiny / resolution))
    if small:
        view = _xp.flush(view, tiny, xp)
    if spread.offset is not None:
        view, spread = _shift(view, spread, small, task)
    return _pack(blocks.merge(_codes(view, spread, noise, task), xp), task)


def _shift(
    view: Array, parameters: Parameters, small: bool, task: Task
) -> tuple[Array, Parameters]:
    """Subtract the offset, halving all where the difference could overflow."""
    xp, scale = task.xp, parameters.scale
    large = scale > LARGEST[task.arithmetic] / 4 / task.scheme.scale.divisor
    half = _xp.where(large, xp.full_like(scale, 0.5), 1.0, xp)
    difference = _xp.multiply(view, half, xp) - _xp.multiply(parameters.offset, half, xp)
    if small:
        difference = _xp.flush(difference, SMALLEST_NORMAL[task.arithmetic], xp)
    return difference, replace(parameters, scale=scale * half)


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
    return _result(_pack(codes, task), task.given, task)


def _codes(view: Array, parameters: Parameters, noise: Array | None, task: Task) -> Array:
    """Divide by the scale, round, and add the zero point, in the order the scheme says."""
    xp, element, rounding = task.xp, task.element, task.scheme.rounding
    quotient, zero = _quotient(view, parameters.scale, task), parameters.zero
    if task.inside:
        rounded = codec.round_to_integer(quotient, rounding.mode, noise, xp)
        return xp.astype(rounded, _xp.dtype(xp, codec.code_dtype(element)))
    if zero is None:
        return codec.to_codes(quotient, element, rounding.mode, noise, xp)
    if rounding.zero_added == "before":
        return codec.to_codes(quotient + zero, element, rounding.mode, noise, xp)
    assert isinstance(element, Integer)
    rounded = codec.round_to_integer(quotient, rounding.mode, noise, xp)
    return codec.clip_to_codes(rounded + zero, element, xp)


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
    if not isinstance(element, Integer) or not element.signed:
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
    scale = scales.as_values(stored.scale, task.scheme, task.arithmetic, xp)
    parameters = Parameters(scale, stored.scale, zero, stored.offset)
    if 0 in blocks.shape or not _in_pieces(task):
        return _decode(stored.data, blocks, parameters, task, dtype)
    out = np.empty(blocks.shape, _xp.dtype(xp, dtype))
    for blocks_at, parts in pieces(blocks, PIECE, 8):
        here = parameters.at(blocks_at)
        for at, part in parts:
            out[at] = _decode(stored.data[task.data_where(at)], part, here, task, dtype)
    return out


def _decode(data: Array, blocks: Blocks, parameters: Parameters, task: Task, dtype: str) -> Array:
    xp, element = task.xp, task.element
    if 0 in blocks.shape:
        return xp.zeros(blocks.shape, dtype=_xp.dtype(xp, dtype), device=_xp.beside(data))
    codes = unpack(data, blocks.shape[-1], task)
    view = blocks.split(codec.to_values(codes, element, task.arithmetic, xp), xp)
    spread = _spread(parameters, blocks, xp)
    if spread.zero is not None:
        view = view - spread.zero
    values = blocks.merge(_scaled(view, spread, task, dtype), xp)
    return xp.astype(values, _xp.dtype(xp, dtype), copy=False)


def _scaled(view: Array, parameters: Parameters, task: Task, dtype: str) -> Array:
    """Multiply by the scale and add the offset, clipping to what `dtype` holds."""
    xp, element, scale, offset = task.xp, task.element, parameters.scale, parameters.offset
    tiny = SMALLEST_NORMAL[task.arithmetic]
    limit = min(LARGEST[task.arithmetic], LARGEST[dtype])
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
    exact = isinstance(element, Integer) or (
        task.concrete and bool(xp.min(scale) >= tiny / resolution)
    )
    return values if exact and offset is None else _xp.flush(values, tiny, xp)
