"""The public functions of the pipeline: they check arguments, and hand the work on."""

import math
from dataclasses import replace
from typing import Any

from quantarray import _xp, blocks, codec, pipeline, presets
from quantarray._xp import Array, Namespace
from quantarray.array import QuantizedArray, make, work_shape
from quantarray.blocks import Blocks
from quantarray.errors import QuantArrayError
from quantarray.formats import DTYPES, Integer
from quantarray.pipeline import Result, Task
from quantarray.scales import Parameters
from quantarray.scheme import Scheme


def quantize(
    x: Array,
    scheme: str | Scheme = "int8",
    *,
    channel_axis: int | None = None,
    group_size: int | None = None,
    group_axis: int = -1,
    block: tuple[int, ...] | None = None,
    scale: Array | float | None = None,
    zero_point: Array | int | None = None,
    nonfinite: str = "raise",
    key: int | None = None,
) -> QuantizedArray:
    """Quantize an array.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64
        Any shape, in any array library; it is not changed.
    scheme : str or Scheme
        A name that `schemes()` lists, or what `scheme()` made of one.
    channel_axis : int, optional
        Give every index of this axis its own scale.
    group_size : int, optional
        Give every `group_size` consecutive elements along `group_axis` their own scale.
    group_axis : int
        The last axis by default.
    block : tuple of int, optional
        Give every tile of this shape its own scale: an extent for each axis, -1 the whole axis. At most one
        of `channel_axis`, `group_size` and `block` may be given. A last block may be smaller.
    scale : float or array, optional
        Use this scale instead of deriving it: one for all, one for each block (the shape of the
        result's `scale`), or 1-d where blocks differ along one axis only.
    zero_point : int or array of integers, optional
        The zero point that belongs to `scale`.
    nonfinite : {"raise", "propagate", "saturate"}
        "raise": NaN and Inf are refused; where values cannot be looked at (traced or lazy arrays), as
        "propagate". "propagate": a block that holds any gets a NaN scale and the codes 0, so that it
        decodes to NaN. "saturate": the scale comes from the finite elements, Inf takes the extreme
        code, NaN the code of 0. No other block is touched.
    key : int, optional
        0 to 2**64 - 1, for stochastic rounding.

    Returns
    -------
    QuantizedArray
        In the namespace and on the device of `x`.

    Raises
    ------
    QuantArrayError
        If an argument is not of these, naming it and what would be right.
    """
    x, xp = _xp.as_array("quantize", x)
    chosen = presets.scheme(scheme)
    override = presets.make_block(
        channel_axis=channel_axis, group_size=group_size, group_axis=group_axis, block=block
    )
    if override is not None:
        if isinstance(block, tuple | list) and len(block) != x.ndim:
            raise QuantArrayError(f"quantize: block={block}: x has shape {x.shape}: expected an extent for each axis")
        chosen = replace(chosen, block=override)
    codec.check_choice("quantize", "nonfinite", nonfinite, codec.NONFINITE)
    codec.check_key("quantize", chosen.rounding.mode, key)
    dtype_name = _xp.dtype_name(x.dtype)
    chosen, found = _blocks(chosen, tuple(x.shape))
    task = Task(
        blocks=found,
        scheme=chosen,
        xp=xp,
        arithmetic=codec.arithmetic(dtype_name),
        nonfinite=nonfinite,
        key=key,
        concrete=_xp.is_concrete(x, xp),
    )
    if scale is not None or zero_point is not None:
        task = _with_given(task, scale, zero_point, x)
    return _contain(pipeline.quantize(xp.reshape(x, found.shape), task), task, tuple(x.shape), dtype_name)


def _blocks(scheme: Scheme, shape: tuple[int, ...]) -> tuple[Scheme, Blocks]:
    """Fit a scheme to a shape: its axes counted from the end, and its blocks as the pipeline sees them."""
    block = blocks.from_end("quantize", scheme.block, shape)
    found = blocks.resolve("quantize", block, work_shape(block, shape) if not shape else shape)
    return scheme if block is scheme.block else replace(scheme, block=block), found


def _contain(stored: Result, task: Task, shape: tuple[int, ...], dtype_name: str) -> QuantizedArray:
    """Shape what the pipeline gave as the container holds it."""
    xp = task.xp
    q: QuantizedArray
    if task.packed and shape:
        return make(stored, task.scheme, shape, dtype_name)
    grid = task.blocks.grid if shape or task.scheme.block.flat is not None else ()
    data = stored.data if task.packed else xp.reshape(stored.data, shape)
    zero = None if stored.zero_point is None else xp.reshape(stored.zero_point, grid)
    q = make(Result(data, xp.reshape(stored.scale, grid), zero), task.scheme, shape, dtype_name)
    return q


def _with_given(task: Task, scale: Any, zero_point: Any, x: Array) -> Task:
    """Check the parameters a caller gave, and add them to the task."""
    if scale is None:
        raise QuantArrayError("quantize: zero_point needs the scale it belongs to: give scale too")
    xp, element = task.xp, task.element
    if task.zero and zero_point is None:
        raise QuantArrayError(f"quantize: scheme {task.scheme.name} has a zero point: give zero_point with scale")
    given_scale = _per_block("scale", scale, task, x)
    number = DTYPES[task.arithmetic]
    _check_given("scale", given_scale, number.smallest_normal, number.max, task)
    if zero_point is None:
        return replace(task, given=Parameters(given_scale, None))
    _check_integers(zero_point)
    given_zero = _per_block("zero_point", zero_point, task, x)
    _check_given("zero_point", given_zero, element.min, element.max, task)
    scheme = replace(task.scheme, zero="point")
    return replace(task, scheme=scheme, given=Parameters(given_scale, given_zero))


def _per_block(argument: str, value: Any, task: Task, x: Array) -> Array:
    """Give a parameter one entry per block, in the arithmetic's dtype."""
    xp, grid = task.xp, task.blocks.grid
    dtype = _xp.dtype(xp, task.arithmetic)
    try:
        _xp.namespace(value)
        array = xp.astype(xp.asarray(value, device=_xp.device(x)), dtype)
    except TypeError:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise QuantArrayError(f"quantize: {argument}={value!r:.80}: expected a number or an array") from None
        array = xp.asarray(float(value), dtype=dtype, device=_xp.device(x))
    shape = tuple(array.shape)
    if math.prod(shape) == 1:
        return xp.broadcast_to(xp.reshape(array, (1,) * len(grid)), grid)
    if shape == grid or (len(shape) == 1 and max(grid) == math.prod(grid) == shape[0]):
        return xp.reshape(array, grid)
    raise QuantArrayError(f"quantize: {argument} has shape {shape}: expected one entry per block, shape {grid}")


def _check_integers(zero_point: Any) -> None:
    dtype = getattr(zero_point, "dtype", None)
    integral = isinstance(zero_point, int) if dtype is None else _xp.dtype_name(dtype).lstrip("u").startswith("int")
    if not integral or isinstance(zero_point, bool):
        raise QuantArrayError(f"quantize: zero_point={zero_point!r:.80}: expected integers")


def _check_given(argument: str, value: Array, low: float, high: float, task: Task) -> None:
    if not task.concrete or not _xp.is_concrete(value, task.xp) or 0 in value.shape:
        return
    xp = task.xp
    if not bool(xp.all((value >= low) & (value <= high))):
        raise QuantArrayError(
            f"quantize: {argument} lies in {float(xp.min(value))}..{float(xp.max(value))}: "
            f"expected {low:g} to {high:g}"
        )


def dequantize(q: QuantizedArray, dtype: Any = None) -> Array:
    """Decode a quantized array; the same as ``q.dequantize(dtype)``.

    Parameters
    ----------
    q : QuantizedArray
        Codes and what they mean.
    dtype : dtype or str, optional
        A floating dtype; that of the array that was quantized by default.

    Returns
    -------
    array of dtype, shape of q

    Raises
    ------
    QuantArrayError
        If `q` is not a QuantizedArray or `dtype` is not floating.
    """
    if not isinstance(q, QuantizedArray):
        raise QuantArrayError(f"dequantize: q is a {type(q).__name__}: expected a QuantizedArray")
    return q.dequantize(dtype)


def fake_quantize(x: Array, scheme: str | Scheme = "int8", **options: Any) -> Array:
    """Quantize and decode at once, to see what a scheme does to values.

    Parameters
    ----------
    x : array
        As for `quantize`.
    scheme : str or Scheme
        As for `quantize`.
    **options
        The keyword arguments of `quantize`.

    Returns
    -------
    array, shape and dtype of x

    Raises
    ------
    QuantArrayError
        As `quantize` does.
    """
    return quantize(x, scheme, **options).dequantize()


def from_codes(
    codes: Array,
    scheme: str | Scheme,
    *,
    scale: Array | float,
    zero_point: Array | int | None = None,
    shape: tuple[int, ...] | None = None,
    dtype: Any = "float32",
) -> QuantizedArray:
    """Build a quantized array from existing codes and parameters.

    Parameters
    ----------
    codes : array of integers
        Unpacked codes of the scheme's element format.
    scheme : str or Scheme
        What they mean.
    scale, zero_point
        As for `quantize`.
    shape : tuple of int, optional
        The logical shape, if it is not that of `codes`.
    dtype : dtype or str
        The dtype that `dequantize` gives by default.

    Returns
    -------
    QuantizedArray
        In the namespace and on the device of `codes`.

    Raises
    ------
    QuantArrayError
        If an argument is not of these, or a code is none of the format's.
    """
    chosen = presets.scheme(scheme)
    assert isinstance(chosen.element, Integer)
    xp = codec.check_codes("from_codes", codes, chosen.element)
    if shape is not None:
        if math.prod(shape) != math.prod(codes.shape):
            raise QuantArrayError(f"from_codes: shape={shape}: codes has shape {codes.shape}")
        codes = xp.reshape(codes, tuple(shape))
    dtype_name = _xp.dtype_name(codec.float_dtype("from_codes", dtype, xp))
    chosen, found = _blocks(chosen, tuple(codes.shape))
    task = Task(found, chosen, xp, codec.arithmetic(dtype_name), concrete=_xp.is_concrete(codes, xp))
    task = _with_given(task, scale, zero_point, codes)
    stored = pipeline.store(xp.reshape(codes, found.shape), task)
    return _contain(stored, task, tuple(codes.shape), dtype_name)


