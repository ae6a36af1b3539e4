"""The public functions of the pipeline: they check arguments, and hand the work on."""

import math
from dataclasses import replace
from typing import Any

from quantarray import _xp, arguments, blocks, overrides, pipeline, scales
from quantarray._xp import Array, Namespace
from quantarray.array import QuantizedArray, make
from quantarray.blocks import Blocks
from quantarray.errors import QuantArrayError, choice, short
from quantarray.formats import LARGEST, SMALLEST_NORMAL, Integer
from quantarray.parameters import Parameters, nan_of
from quantarray.scheme import Scheme
from quantarray.task import Result, Task


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
    offset: Array | float | None = None,
    nonfinite: str = "raise",
    key: int | None = None,
) -> QuantizedArray:
    """Quantize an array. No gradient flows through it.

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
        Give every tile of this shape its own scale: an extent for each axis, -1 the whole axis. At
        most one of `channel_axis`, `group_size` and `block` may be given. A last block may be
        smaller.
    scale : float or array, optional
        Use this scale instead of deriving it: one for all, one for each block (the shape of the
        result's `scale`), or 1-d where blocks differ along one axis only.
    zero_point : int or array of integers, optional
        The zero point that belongs to `scale`.
    offset : float or array, optional
        The float offset that belongs to `scale`: values decode to ``scale * code + offset``.
    nonfinite : {"raise", "propagate", "saturate"}
        "raise": NaN and Inf are refused; where values cannot be looked at (traced or lazy arrays),
        as "propagate". "propagate": a block that holds any gets a NaN scale and the codes 0, so
        that it decodes to NaN. "saturate": the scale comes from the finite elements, Inf takes the
        extreme code, NaN the code of 0. No other block is touched.
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
    shape, dtype_name = tuple(x.shape), _xp.dtype_name(x.dtype)
    axes = channel_axis, group_size, group_axis, block
    task = _task(scheme, axes, nonfinite, shape, dtype_name, xp, _xp.is_concrete(x, xp))
    key = arguments.check_key("quantize", task.scheme.rounding.mode, key)
    if key is not None:
        task = replace(task, key=key)
    if scale is not None or zero_point is not None or offset is not None:
        task = _with_given("quantize", task, scale, zero_point, offset, x)
    work = task.blocks.shape
    stored = pipeline.quantize(x if shape == work else xp.reshape(x, work), task)
    return _contain(stored, task, shape, dtype_name)


@_xp.cached
def _task(
    scheme: str | Scheme,
    axes: tuple[Any, Any, Any, Any],
    nonfinite: str,
    shape: tuple[int, ...],
    dtype: str,
    xp: Namespace,
    concrete: bool,
) -> Task:
    """Check what says how arrays of a shape and dtype are quantized."""
    chosen, (channel_axis, group_size, group_axis, block) = overrides.scheme(scheme), axes
    override = overrides.make_block(
        "quantize",
        channel_axis=channel_axis,
        group_size=group_size,
        group_axis=group_axis,
        block=block,
    )
    if override is not None:
        if isinstance(block, tuple | list) and len(block) != len(shape):
            raise QuantArrayError(
                f"quantize: block={block}: x has shape {shape}: expected an extent for each axis"
            )
        chosen = replace(chosen, block=override)
    choice("quantize", "nonfinite", nonfinite, arguments.NONFINITE)
    _check_scheme(chosen, nonfinite)
    chosen, found = _blocks("quantize", chosen, shape)
    return Task(found, chosen, xp, dtype, nonfinite, concrete=concrete)


def _check_scheme(scheme: Scheme, nonfinite: str) -> None:
    if scheme.zero == "mean":
        raise QuantArrayError(
            f"quantize: scheme {scheme.name}: zero='mean' is for arrays of scales: "
            "expected 'offset', or none"
        )
    if nonfinite == "propagate" and nan_of(scheme) is None:
        raise QuantArrayError(
            f"quantize: nonfinite='propagate': {scheme.name} stores no NaN for a scale: "
            "expected 'raise' or 'saturate'"
        )


def _blocks(operation: str, scheme: Scheme, shape: tuple[int, ...]) -> tuple[Scheme, Blocks]:
    """Fit a scheme to a shape: count its axes from the end, and find its blocks."""
    block = blocks.from_end(operation, scheme.block, shape)
    found = blocks.resolve(operation, block, shape)
    return scheme if block is scheme.block else replace(scheme, block=block), found


def _contain(stored: Result, task: Task, shape: tuple[int, ...], dtype_name: str) -> QuantizedArray:
    """Shape what the pipeline gave as the container holds it."""
    xp = task.xp
    if shape == task.blocks.shape:
        return make(stored, task.scheme, shape, dtype_name)
    grid = task.blocks.grid if shape or task.scheme.block.flat is not None else ()
    data = stored.data if task.scheme.packed else xp.reshape(stored.data, shape)
    stored = replace(stored.with_grid(grid, xp), data=data)
    return make(stored, task.scheme, shape, dtype_name)


def _with_given(
    operation: str, task: Task, scale: Any, zero_point: Any, offset: Any, x: Array
) -> Task:
    """Check the parameters a caller gave, and add them to the task."""
    zero_names = {"point": "zero_point", "offset": "offset"}
    zeros = {"point": zero_point, "offset": offset}
    given = [kind for kind, value in zeros.items() if value is not None]
    if scale is None:
        raise QuantArrayError(
            f"{operation}: {zero_names[given[0]]} needs the scale it belongs to: give scale too"
            if given
            else f"{operation}: scale=None: expected a number or an array"
        )
    if len(given) > 1:
        raise QuantArrayError(f"{operation}: zero_point and offset exclude one another: give one")
    kind, rule = task.scheme.zero_kind, task.scheme.scale
    if task.scheme.record is not None:
        raise QuantArrayError(
            f"{operation}: scale: blocks of {task.scheme.name} hold the scales that their encoder "
            "finds: expected none; QuantizedArray.from_bytes takes blocks"
        )
    if rule.outer is not None:
        raise QuantArrayError(
            f"{operation}: scale: {task.scheme.name} has two levels of scales: expected none; "
            "QuantizedArray.from_parts takes both"
        )
    if kind is not None and given != [kind]:
        needed = zero_names[kind]
        raise QuantArrayError(
            f"{operation}: scheme {task.scheme.name} needs its {needed}: give {needed} with scale"
        )
    largest = LARGEST[task.arithmetic.dtype]
    least = SMALLEST_NORMAL[task.arithmetic.dtype] if rule.least is None else 0.0
    limits = -largest if rule.rule == "edge" else least, largest
    values = _per_block(operation, "scale", scale, limits, task, x)
    stored = _stored_scale(operation, values, task)
    if not given:
        return replace(task, given=Parameters(values, stored))
    if given == ["point"]:
        if not isinstance(task.element, Integer):
            raise QuantArrayError(
                f"{operation}: zero_point: {task.scheme.name} has no integer codes: expected none"
            )
        scheme = task.scheme if kind else replace(task.scheme, zero="point")
        low, high = task.element.codes
        limits = float(low), float(high)
        zero = _per_block(operation, "zero_point", zero_point, limits, task, x)
        return replace(task, scheme=scheme, given=Parameters(values, stored, zero))
    scheme = task.scheme
    if kind is None:
        scheme = replace(scheme, zero="offset", scale=replace(rule, rule="range"))
    shift = _per_block(operation, "offset", offset, (-largest, largest), task, x)
    return replace(task, scheme=scheme, given=Parameters(values, stored, offset=shift))


def _stored_scale(operation: str, scale: Array, task: Task) -> Array:
    """Give the form in which a scheme stores scales, refusing what that does not hold."""
    xp = task.xp
    stored = scales.as_stored(scale, task.scheme, task.dtype, xp)
    held = scales.as_values(stored, task.scheme, task.arithmetic.dtype, xp)
    if task.concrete and _xp.is_concrete(scale, xp) and not bool(xp.all(held == scale)):
        raise QuantArrayError(
            f"{operation}: scale has values that {task.scheme.name} cannot store: "
            f"expected those of {task.scheme.scale.format}"
        )
    return stored


def _per_block(
    operation: str, argument: str, value: Any, limits: tuple[float, float], task: Task, x: Array
) -> Array:
    """Give a parameter one entry per block, in the arithmetic's dtype."""
    xp, grid = task.xp, task.blocks.grid
    kinds = ("int", "uint") if argument == "zero_point" else ("int", "uint", "float", "bfloat")
    name = _xp.dtype_name(value.dtype) if hasattr(value, "dtype") else type(value).__name__
    if not name.startswith(kinds):
        raise QuantArrayError(
            f"{operation}: {argument}={short(value)} is {name}: expected {', '.join(kinds)}"
        )
    low, high = limits
    if hasattr(value, "dtype"):
        try:
            value = xp.asarray(value, device=_xp.beside(x))
        except Exception as failure:  # each library has its own, for what it cannot take
            raise QuantArrayError(
                f"{operation}: {argument}={short(value)}: expected a number or an array of "
                f"{_xp.backend(xp)}, like x"
            ) from failure
        known = _xp.is_concrete(value, xp) and 0 not in value.shape
        least, most = (float(xp.min(value)), float(xp.max(value))) if known else (low, high)
    else:
        least = most = value
    if not low <= least <= most <= high:
        raise QuantArrayError(
            f"{operation}: {argument} lies in {short(least)}..{short(most)}: "
            f"expected {low:g} to {high:g}"
        )
    array = xp.asarray(value, dtype=_xp.dtype(xp, task.arithmetic.dtype), device=_xp.beside(x))
    shape = tuple(array.shape)
    if math.prod(shape) == 1:
        return xp.broadcast_to(xp.reshape(array, (1,) * len(grid)), grid)
    if [size for size in shape if size != 1] == [size for size in grid if size != 1]:
        return xp.reshape(array, grid)
    if 0 in grid:  # frozen parameters of an empty batch
        return xp.zeros(grid, dtype=array.dtype, device=_xp.beside(x))
    raise QuantArrayError(
        f"{operation}: {argument} has shape {shape}: expected one entry per block, shape {grid}"
    )


def dequantize(q: QuantizedArray, dtype: Any = None, *, out: Array | None = None) -> Array:
    """Decode a quantized array; the same as ``q.dequantize(dtype, out=out)``.

    Parameters
    ----------
    q : QuantizedArray
        Codes and what they mean.
    dtype : dtype or str, optional
        A floating dtype; that of `out`, or else of the array that was quantized, by default.
    out : array of dtype, shape of q, optional
        Where to write the values, in libraries whose arrays can be written to.

    Returns
    -------
    array of dtype, shape of q

    Raises
    ------
    QuantArrayError
        If `q` is not quantized, `dtype` is not floating, or `out` is not of these.
    """
    if not isinstance(q, QuantizedArray):
        raise QuantArrayError(f"dequantize: q is a {type(q).__name__}: expected a QuantizedArray")
    return q.dequantize(dtype, out=out)


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
    offset: Array | float | None = None,
    shape: Any = None,
    dtype: Any = "float32",
) -> QuantizedArray:
    """Build a quantized array from existing codes and parameters.

    Parameters
    ----------
    codes : array of integers
        Unpacked codes of the scheme's element format.
    scheme : str or Scheme
        What they mean.
    scale, zero_point, offset
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
    chosen = overrides.scheme(scheme)
    xp = arguments.check_codes("from_codes", codes, chosen.element)
    if shape is not None:
        shape = arguments.shape("from_codes", shape)
        if math.prod(shape) != math.prod(codes.shape):
            raise QuantArrayError(
                f"from_codes: shape={shape}: codes has shape {tuple(codes.shape)}"
            )
        codes = xp.reshape(codes, shape)
    dtype_name = _xp.dtype_name(arguments.float_dtype("from_codes", dtype, xp))
    chosen, found = _blocks("from_codes", chosen, tuple(codes.shape))
    task = Task(found, chosen, xp, dtype_name, concrete=_xp.is_concrete(codes, xp))
    task = _with_given("from_codes", task, scale, zero_point, offset, codes)
    stored = pipeline.store(xp.reshape(codes, found.shape), task)
    return _contain(stored, task, tuple(codes.shape), dtype_name)
