"""Kernels for arrays in host memory of any library, which NumPy sees without a copy."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.kernels import cpu, memory, records
from quantarray.parameters import Outer, stored_dtype
from quantarray.records import Record
from quantarray.task import Result, Task

Numbers = np.ndarray[Any, Any]


def quantize(x: Array, task: Task, pipeline: Any) -> Result | None:
    """Quantize: see `kernels.quantize`."""
    if _xp.backend(task.xp) == "numpy":
        return cpu.quantize(x, task)
    given = () if task.given is None else tuple(vars(task.given).values())
    if not _are_seen(given, task) or stored_dtype(task.scheme, task.dtype) == "bfloat16":
        return None
    found = cpu.quantize(view(x, task.xp), _on_host(task))
    return found and _result(found, lambda array: home(array, x, task.xp))


def dequantize(
    stored: Result, task: Task, dtype: str, out: Array | None, decoder: Any
) -> Array | None:
    """Decode: see `kernels.dequantize`."""
    xp, name = task.xp, _xp.backend(task.xp)
    if name == "numpy":
        return cpu.dequantize(stored, task, dtype, out)
    if not _are_seen((stored.scale, stored.zero_point, stored.offset), task):
        return None
    host = _result(stored, lambda array: view(array, xp))
    if name == "jax":
        found = cpu.dequantize(host, _on_host(task), dtype, None)
        return None if found is None else home(found, stored.data, xp)
    if out is not None and _xp.in_order(out, xp):
        found = cpu.dequantize(host, _on_host(task), dtype, view(out, xp))
        return None if found is None else out
    # Not torch's own memory: NumPy asks for large pages, which are there five times as fast.
    room = memory.room(task.blocks.shape, "int16" if dtype == "bfloat16" else dtype)
    found = cpu.dequantize(host, _on_host(task), dtype, room)
    return None if found is None else home(room, stored.data, xp).view(_xp.dtype(xp, dtype))


def encode_rows(
    x: Array, importance: Array | None, record: Record, nonfinite: str, encode: Any, xp: Namespace
) -> Array | None:
    """Encode rows of blocks: see `kernels.encode_rows`. What is not finite is left to others."""
    if importance is not None and _xp.residence(importance, xp) != "host":
        return None
    weights = None if importance is None else view(importance, xp)
    found = records.encode(view(x, xp), record, weights, _xp.dtype_name(x.dtype))
    return found if found is None or _xp.backend(xp) == "numpy" else home(found, x, xp)


def decode_rows(
    data: Array, record: Record, dtype: str, out: Array | None, decode: Any, xp: Namespace
) -> Array:
    """Decode rows of blocks: see `kernels.decode_rows`."""
    name, target = _xp.backend(xp), None
    if out is not None and _xp.in_order(out, xp):
        target = view(out, xp)
        target = target.view(np.int16) if dtype == "bfloat16" else target
    found = records.decode(view(data, xp), record, dtype, target)
    if target is not None:
        return out
    if name == "numpy":
        return found.view(_xp.dtype(xp, dtype))
    found_at_home = home(found, data, xp)
    return found_at_home.view(_xp.dtype(xp, dtype)) if dtype == "bfloat16" else found_at_home


def _are_seen(parameters: tuple[Any, ...], task: Task) -> bool:
    """Tell whether NumPy can see parameters: not where they are traced, or of a dtype it lacks."""
    arrays = [array for array in parameters if array is not None and not isinstance(array, Outer)]
    return all(
        _xp.residence(array, task.xp) == "host" and _xp.dtype_name(array.dtype) != "bfloat16"
        for array in arrays
    )


def view(x: Array, xp: Namespace) -> Numbers:
    """See an array of a library that keeps it in host memory as one of NumPy's."""
    if _xp.backend(xp) == "torch":
        torch, x = sys.modules["torch"], x.resolve_neg()
        if x.dtype == torch.bfloat16:  # which NumPy lacks: kernels only want the bits
            x = x.view(torch.int16)
        return x.numpy()  # type: ignore[no-any-return]
    return np.asarray(x)


def home(x: Numbers, like: Array, xp: Namespace) -> Array:
    """Give an array of NumPy's to the library, and the device, of another."""
    if _xp.backend(xp) == "torch":
        return sys.modules["torch"].from_numpy(x)
    jax, device = sys.modules["jax"], next(iter(like.devices()))
    if like.committed:
        return jax.device_put(x, device)
    with jax.default_device(device):
        return jax.device_put(x)


def _on_host(task: Task) -> Task:
    """Give the task on NumPy's arrays."""
    given = task.given
    if given is not None:
        given = given.map(lambda array: view(array, task.xp))
    return replace(task, xp=_xp.load("numpy"), given=given)


def _result(result: Result, move: Any) -> Result:
    """Move the arrays of a result."""
    parts = {
        name: None if (part := getattr(result, name)) is None else move(part)
        for name in ("data", "scale", "zero_point", "offset")
    }
    outer = result.outer
    if outer is not None:
        offset = None if outer.offset is None else move(outer.offset)
        outer = Outer(move(outer.scale), offset)
    return Result(**parts, outer=outer)
