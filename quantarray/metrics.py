"""What quantization cost in accuracy."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from quantarray import _xp
from quantarray._xp import Array
from quantarray.array import QuantizedArray
from quantarray.blocks import pieces
from quantarray.errors import QuantArrayError, short
from quantarray.quantize import quantize
from quantarray.scheme import Scheme
from quantarray.tables import table
from quantarray.task import PIECE

_COLUMNS = (
    "scheme",
    "bits/element",
    "SQNR dB",
    "MSE",
    "RMSE",
    "max error",
    "cosine",
    "worst block",
)


@dataclass(frozen=True)
class ErrorReport:
    """How far decoded values are from the original ones.

    Attributes
    ----------
    scheme : str
        The scheme, in words.
    mse, rmse, max_abs : float
        Mean squared error, its root, and the largest absolute error.
    sqnr_db : float
        Signal to quantization noise: ``10 log10(sum x**2 / sum (x - y)**2)``; Inf without noise.
    cosine : float
        Cosine of the angle between original and decoded values; NaN if either is all zero.
    bits_per_element : float
        All stored bits over the number of elements.
    worst_block : tuple of int
        Where in the grid of scales the largest absolute error lies.
    """

    scheme: str
    mse: float
    rmse: float
    max_abs: float
    sqnr_db: float
    cosine: float
    bits_per_element: float
    worst_block: tuple[int, ...]

    def __str__(self) -> str:
        return table([self._row()], _COLUMNS)

    def _row(self) -> tuple[str, ...]:
        figures = (self.mse, self.rmse, self.max_abs)
        return (
            self.scheme,
            f"{self.bits_per_element:.3f}",
            f"{self.sqnr_db:.2f}",
            *(f"{figure:.4g}" for figure in figures),
            f"{self.cosine:.6f}",
            str(self.worst_block),
        )


class Comparison(list[ErrorReport]):
    """A list of error reports that prints as one table."""

    def __str__(self) -> str:
        return table([report._row() for report in self], _COLUMNS)


def error(x: Array, q: QuantizedArray) -> ErrorReport:
    """Measure what quantization cost.

    Parameters
    ----------
    x : array
        What was quantized: finite, of q's shape, in q's namespace.
    q : QuantizedArray
        Its codes.

    Returns
    -------
    ErrorReport
        Sums are taken in float64 on the host, a piece at a time, so that the figures are the same
        on every backend.

    Raises
    ------
    QuantArrayError
        If the shapes differ or there are no elements.
    """
    x, _ = _xp.as_array("error", x)
    if not isinstance(q, QuantizedArray):
        raise QuantArrayError(f"error: q is a {type(q).__name__}: expected a QuantizedArray")
    if tuple(x.shape) != q.shape or not q.size:
        raise QuantArrayError(
            f"error: x has shape {tuple(x.shape)}, q {q.shape}: expected the same, not empty"
        )
    original, decoded = (_xp.to_numpy(a).reshape(q.blocks.shape) for a in (x, q.dequantize()))
    noise = signal = power = product = worst = 0.0
    worst_block = (0,) * len(q.blocks.grid)
    for grid, parts in pieces(q.blocks, PIECE):
        for at, part in parts:
            a, b = original[at].astype(np.float64), decoded[at].astype(np.float64)
            with np.errstate(over="ignore"):  # the square of 1e200 is Inf, and so is the mean
                noise += float(np.sum((a - b) ** 2))
                signal += float(np.sum(a * a))
                power += float(np.sum(b * b))
                product += float(np.sum(a * b))
            largest = np.max(part.split(abs(a - b), np), axis=part.axes).reshape(part.grid)
            here = np.unravel_index(np.argmax(largest), part.grid)  # NaN counts as the largest
            if not math.isnan(worst) and not largest[here] <= worst:
                worst = float(largest[here])
                worst_block = tuple(g.start + int(i) for g, i in zip(grid, here, strict=True))
    return ErrorReport(
        scheme=str(q.scheme),
        mse=noise / q.size,
        rmse=math.sqrt(noise / q.size),
        max_abs=worst,
        sqnr_db=_decibels(signal, noise),
        cosine=product / math.sqrt(signal) / math.sqrt(power) if signal and power else math.nan,
        bits_per_element=q.bits_per_element,
        worst_block=worst_block,
    )


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def compare(x: Array, schemes: Iterable[str | Scheme]) -> Comparison:
    """Measure what several schemes cost on one array.

    Parameters
    ----------
    x : array
        As for `quantize`.
    schemes : iterable of str or Scheme
        As for `quantize`.

    Returns
    -------
    Comparison
        A list with an `ErrorReport` for each, which prints as a table.

    Raises
    ------
    QuantArrayError
        As `quantize` and `error` do.
    """
    if isinstance(schemes, str) or not isinstance(schemes, Iterable):
        raise QuantArrayError(
            f"compare: schemes={short(schemes)}: expected several, such as ['int8', 'int4']"
        )
    return Comparison(error(x, quantize(x, scheme)) for scheme in schemes)
