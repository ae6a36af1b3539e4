"""What quantizing the tensors of a file costs: sums over whole tensors, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantarray.array import QuantizedArray
from quantarray.parts import packed_axes

_PIECE = 1 << 20  # elements whose error is measured at a time, in float64


def powers(x: NDArray[Any], q: QuantizedArray) -> tuple[float, float]:
    """Sum the squares of an array and of its error in float64."""
    signal = noise = 0.0
    for piece, error in _errors(x, q):
        signal += float(np.vdot(piece, piece))
        noise += float(np.vdot(error, error))
    return signal, noise


def largest(x: NDArray[Any], q: QuantizedArray) -> float:
    """Give the largest magnitude of an array's error."""
    return max(
        (float(np.max(np.abs(error))) for _, error in _errors(x, q) if error.size), default=0
    )


def _errors(x: NDArray[Any], q: QuantizedArray) -> Iterable[tuple[NDArray[Any], NDArray[Any]]]:
    """Give some rows at a time, and their errors, in float64."""
    rows = max(1, _PIECE * len(x) // max(x.size, 1))
    extent = q.blocks.extents[0]
    # Rows of some layouts, and of blocks that do not follow them, are not to be had one by one.
    apart = q.scheme.block.flat is None and packed_axes(q.scheme) < q.ndim
    whole = None if apart and extent in (1, len(x)) else q.dequantize()
    for start in range(0, len(x), rows):
        some = slice(start, start + rows)
        piece = x[some].astype(np.float64)
        decoded = q[some].dequantize() if whole is None else whole[some]
        yield piece, piece - decoded.astype(np.float64)
