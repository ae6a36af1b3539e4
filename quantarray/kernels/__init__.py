"""Fused versions of whole pipelines, beside the generic array-API path and with the same bytes.

Kernels are chosen by where an array lives, not by its library. They are an offer: where there is
none, or one declines, the generic path does the work. ``QUANTARRAY_KERNELS=generic`` in the
environment turns all of them off.
"""

import importlib
import os
from collections.abc import Callable

from quantarray import _xp
from quantarray._xp import Array
from quantarray.errors import QuantArrayError, short
from quantarray.task import Result, Task

# Where an array lives: the module with `quantize` and `dequantize` for it, and what that needs.
KERNELS = {
    "host": ("quantarray.kernels.host", "numba"),
    "chunks": ("quantarray.kernels.chunks", "dask"),
}

Quantize = Callable[[Array, Task], Result]
Dequantize = Callable[[Result, Task, str, Array | None], Array]


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
    name = _xp.residence(x, task.xp)
    if name is None or not enabled() or not _xp.is_installed(KERNELS[name][1]):
        return None
    found: Result | None = importlib.import_module(KERNELS[name][0]).quantize(x, task, pipeline)
    return found


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
    name = _xp.residence(stored.data, task.xp)
    if name is None or not enabled() or not _xp.is_installed(KERNELS[name][1]):
        return None
    kernel = importlib.import_module(KERNELS[name][0])
    return kernel.dequantize(stored, task, dtype, out, decoder)
