"""What quantizing the tensors of a file costs: sums over whole tensors, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantarray.array import QuantizedArray
from quantarray.parts import packed_axes

_PIECE = 1 << 20  # elements whose error is measured at a time, in float64


def powers(x: NDArray[Any], q: QuantizedArray | NDArray[Any]) -> tuple[float, float]:
    """Sum the squares of an array and of its error, quantized or cast, in float64."""
    signal = noise = 0.0
    for piece, error in _errors(x, q):
        signal += float(np.vdot(piece, piece))
        noise += float(np.vdot(error, error))
    return signal, noise


def largest(x: NDArray[Any], q: QuantizedArray | NDArray[Any]) -> float:
    """Give the largest magnitude of an array's error."""
    return max(
        (float(np.max(np.abs(error))) for _, error in _errors(x, q) if error.size), default=0
    )


def _errors(
    x: NDArray[Any], q: QuantizedArray | NDArray[Any]
) -> Iterable[tuple[NDArray[Any], NDArray[Any]]]:
    """Give some rows at a time, and their errors, in float64."""
    if isinstance(q, QuantizedArray) and not _has_rows(q):
        q = q.dequantize()
    if not isinstance(q, QuantizedArray):
        x, q = np.atleast_1d(x), np.atleast_1d(q)
    rows = max(1, _PIECE * len(x) // max(x.size, 1))
    for start in range(0, len(x), rows):
        some = q[start : start + rows]
        piece = x[start : start + rows].astype(np.float64)
        decoded = some.dequantize() if isinstance(some, QuantizedArray) else some
        yield piece, piece - decoded.astype(np.float64)


def _has_rows(q: QuantizedArray) -> bool:
    """Tell whether rows can be had one by one: not of some layouts, or of blocks across them."""
    apart = q.scheme.block.flat is None and packed_axes(q.scheme) < q.ndim
    return apart and q.blocks.extents[0] in (1, q.shape[0])
