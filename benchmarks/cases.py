"""What is measured: every format, by ours in each library and by its peers, against a copy."""

import importlib.util
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import generic
import numpy as np
import peers
from timing import Row, timer

import quantarray as qa

Array = Any
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "int8 per row": ("int8", {"channel_axis": 0}),
    "int8 per tensor": ("int8", {}),
    "int4 g128": ("int4", {"group_size": 128}),
    "uint4 g128": ("uint4", {"group_size": 128}),
    "nf4": ("nf4", {}),
    "mxfp4": ("mxfp4", {}),
    "nvfp4": ("nvfp4", {}),
    "fp8_e4m3 per row": ("fp8_e4m3", {"channel_axis": 0}),
    "mxfp8_e4m3": ("mxfp8_e4m3", {}),
}
# Released versions have no `out`.
INTO = ("dequantize out=",) if "out" in inspect.signature(qa.dequantize).parameters else ()
OPERATIONS = ("quantize", "dequantize", *INTO)


@dataclass
class Case:
    """One operation: the rows of a table, the first of which is what they are compared with."""

    section: str
    name: str
    rows: list[Row]
    # The bytes that have to be read and written, over those of the first row.
    limit: float | None = None


def matrix(size: int) -> Array:
    """Give the Gaussian matrix of all cases."""
    return np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)


def installed(package: str) -> bool:
    """Tell whether a library can be imported."""
    return importlib.util.find_spec(package) is not None


def libraries(x: Array) -> Iterator[tuple[str, Array, Callable[[Any], Any]]]:
    """Give the array in each library on this machine, and how to wait for a result of its."""
    yield "quantarray", x, lambda result: result
    if installed("torch"):
        import torch

        yield "quantarray, torch", torch.from_numpy(x), lambda result: result
    if installed("jax"):
        import jax

        yield "quantarray, JAX", jax.numpy.asarray(x), jax.block_until_ready


def ours(x: Array, scheme: str, block: dict[str, Any]) -> Iterator[tuple[str, Row]]:
    """Give our rows for a format, with their operation."""

    def forth(a: Array) -> qa.QuantizedArray:
        return qa.quantize(a, scheme, **block)

    note = ""

    def row(who: str, function: Callable[[], Any]) -> Row:
        return Row(who, "ours", timer(function), note)

    for who, array, wait in libraries(x):
        q = forth(array)
        note = "" if array.dtype.itemsize == x.itemsize else f"{array.dtype}"  # JAX has no float64
        yield "quantize", row(who, lambda a=array, w=wait: w(forth(a)))
        yield "dequantize", row(who, lambda q=q, w=wait: w(qa.dequantize(q)))
        if INTO and not who.endswith("JAX"):  # its arrays cannot be written to
            out = array.copy() if array is x else array.clone()
            yield "dequantize out=", row(who, lambda q=q, out=out: qa.dequantize(q, out=out))
    if installed("jax"):
        import jax

        wait = jax.block_until_ready
        jitted, back, array = jax.jit(forth), jax.jit(qa.dequantize), jax.numpy.asarray(x)
        q = jitted(array)
        yield "quantize", row("jax.jit of quantarray", lambda: wait(jitted(array)))
        yield "dequantize", row("jax.jit of quantarray", lambda: wait(back(q)))


def whole_arrays(size: int, only: str, with_generic: bool) -> Iterator[Case]:
    """Quantize and decode a float32 matrix in every format."""
    x = matrix(size)
    copy = np.empty_like(x)
    for label, (scheme, block) in FORMATS.items():
        wanted = tuple(op for op in OPERATIONS if only in f"{op} {label}")
        if not wanted:
            continue
        found = [*ours(x, scheme, block), *peers.rows(x, label, wanted)]
        limit = (x.nbytes + qa.quantize(x, scheme, **block).nbytes) / (2 * x.nbytes)
        for operation in wanted:
            rows = [
                Row("np.copyto", "base", timer(lambda: np.copyto(copy, x))),
                Row("x.copy()", "copy", timer(x.copy)),
                *(row for op, row in found if op == operation),
            ]
            if with_generic:
                rows.insert(3, generic.row("cases", "generic_call", size, label, operation))
            yield Case("arrays", f"{operation} {label}", rows, limit)


def generic_call(size: int, label: str, operation: str) -> Callable[[], Any]:
    """Give our call on NumPy arrays, for the process without kernels."""
    scheme, block = FORMATS[label]
    x = matrix(size)
    q = qa.quantize(x, scheme, **block)
    out = np.empty_like(x)
    return {
        "quantize": lambda: qa.quantize(x, scheme, **block),
        "dequantize": lambda: qa.dequantize(q),
        "dequantize out=": lambda: qa.dequantize(q, out=out),
    }[operation]


def small_arrays(only: str) -> Iterator[Case]:
    """Quantize a 100x100 matrix; the first row is the notebook's own code."""
    matrix = np.random.default_rng(0).uniform(-1, 1, (100, 100))

    def notebook() -> tuple[Any, Any]:
        scale = np.max(np.abs(matrix)) / 127
        return np.clip(np.round(matrix / scale), -127, 127).astype(np.int8), scale

    codes, scale = notebook()

    def notebook_back() -> Array:
        return codes.astype(np.float64) * scale

    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "int8": ("int8", {}),
        "int4 g32": ("int4", {"group_size": 32}),
    }
    for label, (scheme, block) in cases.items():
        found = list(ours(matrix, scheme, block))
        for operation in OPERATIONS:
            name = f"100x100 {operation} {label}"
            if only not in name:
                continue
            base = notebook if operation == "quantize" else notebook_back
            rows = [Row("the notebook's lines", "base", timer(base))]
            rows += [row for op, row in found if op == operation]
            yield Case("small", name, rows)
