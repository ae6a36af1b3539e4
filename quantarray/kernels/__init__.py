"""Fused versions of whole pipelines, beside the generic array-API path and with the same bytes.

Kernels are chosen by where an array lives, not by its library. They are an offer: where there is
none, or one declines, the generic path does the work. ``QUANTARRAY_KERNELS=generic`` in the
environment turns all of them off.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.errors import QuantArrayError, short
from quantarray.records import Record
from quantarray.task import Result, Task

# Where an array lives: the module with the four functions below for it, and what that needs.
KERNELS = {
    "host": ("quantarray.kernels.host", "numba"),
    "chunks": ("quantarray.kernels.chunks", "dask"),
}

Quantize = Callable[[Array, Task], Result]
Dequantize = Callable[[Result, Task, str, Array | None], Array]
EncodeRows = Callable[[Array, Array | None, Record, str, Namespace], Array]
DecodeRows = Callable[[Array, Record, str, Array | None, Namespace], Array]


def enabled() -> bool:
    """Tell whether kernels are used.

    Raises
    ------
    QuantArrayError
        If QUANTARRAY_KERNELS is neither "fused" nor "generic".
    """
    wanted = os.environ.get("QUANTARRAY_KERNELS", "fused")
    if wanted not in ("fused", "generic"):
        raise QuantArrayError(f"QUANTARRAY_KERNELS={short(wanted)}: expected fused or generic")
    return wanted == "fused"


def quantize(x: Array, task: Task, pipeline: Quantize) -> Result | None:
    """Quantize an array in one pass, if there is a kernel that does.

    Parameters
    ----------
    x : array of a floating dtype, shape ``task.blocks.shape``
        At least 1-d.
    task : Task
        What to do.
    pipeline : callable
        The pipeline, for kernels that hand on parts of the work.

    Returns
    -------
    Result or None
        What the generic path would give; None if that is to do it.
    """
    kernel = _kernel(x, task.xp)
    return None if kernel is None else kernel.quantize(x, task, pipeline)


def dequantize(
    stored: Result, task: Task, dtype: str, out: Array | None, decoder: Dequantize
) -> Array | None:
    """Decode in one pass, if there is a kernel that does.

    Parameters
    ----------
    stored : Result
        What `quantize` gave.
    task : Task
        Its blocks and scheme.
    dtype : str
        The floating dtype of the values.
    out : array of dtype, or None
        Where they go, if the kernel can write there.
    decoder : callable
        The decoder, for kernels that hand on parts of the work.

    Returns
    -------
    array of dtype, or None
        What the generic path would give; None if that is to do it.
    """
    kernel = _kernel(stored.data, task.xp)
    return None if kernel is None else kernel.dequantize(stored, task, dtype, out, decoder)


def encode_rows(
    x: Array,
    importance: Array | None,
    record: Record,
    nonfinite: str,
    encode: EncodeRows,
    xp: Namespace,
) -> Array | None:
    """Encode rows of blocks of ggml in one pass, if there is a kernel that does.

    Parameters
    ----------
    x : array of a floating dtype, shape (rows, elements)
        Whole blocks, at least one.
    importance : array of float32, shape (1 or rows, elements), or None
        What the error of each element counts.
    record : Record
        The type to encode to.
    nonfinite : str
        What becomes of NaN and Inf.
    encode : callable
        Encodes rows, for kernels that hand on parts of the work.
    xp : namespace
        Of `x`.

    Returns
    -------
    array of uint8, shape (rows, row bytes), or None
        None if the generic path is to do it.
    """
    kernel = _kernel(x, xp)
    found: Array | None = None
    if kernel is not None:
        found = kernel.encode_rows(x, importance, record, nonfinite, encode, xp)
    return found


def decode_rows(
    data: Array, record: Record, dtype: str, out: Array | None, decode: DecodeRows, xp: Namespace
) -> Array | None:
    """Decode rows of blocks of ggml in one pass, if there is a kernel that does.

    Parameters
    ----------
    data : array of uint8, shape (rows, row bytes)
        Whole blocks, at least one.
    record : Record
        Their type.
    dtype : str
        The floating dtype of the values.
    out : array of dtype, shape (rows, elements), or None
        Where they go, if the kernel can write there.
    decode : callable
        Decodes rows, for kernels that hand on parts of the work.
    xp : namespace
        Of `data`.

    Returns
    -------
    array of dtype, shape (rows, elements), or None
        None if the generic path is to do it.
    """
    kernel = _kernel(data, xp)
    return None if kernel is None else kernel.decode_rows(data, record, dtype, out, decode, xp)


def _kernel(x: Array, xp: Namespace) -> Any:
    """Give the module of kernels for an array, or None."""
    name = _xp.residence(x, xp)
    if name is None or not enabled() or not _xp.is_installed(KERNELS[name][1]):
        return None
    return importlib.import_module(KERNELS[name][0])
