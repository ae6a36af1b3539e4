"""The functions of the notebook that quantarray grew from, on any backend."""

from typing import Any

import numpy as np

from quantarray import _xp
from quantarray._xp import Array
from quantarray.quantize import from_codes, quantize


def generate_random_matrix(rows: int, cols: int) -> np.ndarray[Any, Any]:
    """Draw a matrix from uniform(-1, 1) with NumPy's global generator.

    Parameters
    ----------
    rows, cols : int
        Its shape.

    Returns
    -------
    numpy.ndarray of float64, shape (rows, cols)
        ``np.random.seed(42)`` before the call gives the notebook's own matrix.
    """
    return np.random.uniform(-1, 1, (rows, cols))  # noqa: NPY002  (the notebook's generator)


def quantize_to_int8(matrix: Array) -> tuple[Array, Array]:
    """Quantize to -127..127 with one scale, absmax / 127.

    Parameters
    ----------
    matrix : array of a floating dtype
        Any shape, in any array library.

    Returns
    -------
    codes : array of int8, shape of matrix
        In the matrix' namespace.
    scale : array, shape ()
        float64 for float64 input, otherwise float32.

    Raises
    ------
    QuantArrayError
        As `quantize` does.
    """
    return _quantize(matrix, "int8")


def quantize_to_int4(matrix: Array) -> tuple[Array, Array]:
    """Quantize to -7..7 with one scale, absmax / 7; codes take a byte each, as in the notebook.

    Parameters
    ----------
    matrix : array of a floating dtype
        Any shape, in any array library.

    Returns
    -------
    codes : array of int8, shape of matrix
        In the matrix' namespace.
    scale : array, shape ()
        float64 for float64 input, otherwise float32.

    Raises
    ------
    QuantArrayError
        As `quantize` does.
    """
    return _quantize(matrix, "int4")


def dequantize_from_int8(codes: Array, scale: Array | float) -> Array:
    """Decode what `quantize_to_int8` gave: codes times scale.

    Parameters
    ----------
    codes : array of int8
        Codes in -127..127.
    scale : array of shape (), or float
        Their scale.

    Returns
    -------
    array of the scale's dtype, shape of codes
        float64 where the scale is a Python float, if the namespace has it.

    Raises
    ------
    QuantArrayError
        If codes or scale are not of these.
    """
    return _dequantize(codes, scale, "int8")


def dequantize_from_int4(codes: Array, scale: Array | float) -> Array:
    """Decode what `quantize_to_int4` gave: codes times scale.

    Parameters
    ----------
    codes : array of int8
        Codes in -7..7.
    scale : array of shape (), or float
        Their scale.

    Returns
    -------
    array of the scale's dtype, shape of codes
        float64 where the scale is a Python float, if the namespace has it.

    Raises
    ------
    QuantArrayError
        If codes or scale are not of these.
    """
    return _dequantize(codes, scale, "int4")


def calculate_mean_squared_error(original: Array, reconstructed: Array) -> float:
    """Give the mean of the squared differences.

    Parameters
    ----------
    original, reconstructed : array
        Of one shape. They are compared on the host, so that every backend gives the same figure.

    Returns
    -------
    float
    """
    return float(np.mean((_xp.to_numpy(original) - _xp.to_numpy(reconstructed)) ** 2))


def _quantize(matrix: Array, scheme: str) -> tuple[Array, Array]:
    q = quantize(matrix, scheme)
    xp = _xp.namespace(q.scale)
    scale = q.scale if q.size else xp.ones((1,), dtype=q.scale.dtype)
    return q.codes, xp.reshape(scale, ())


def _dequantize(codes: Array, scale: Array | float, scheme: str) -> Array:
    dtype = _xp.dtype_name(getattr(scale, "dtype", np.dtype("float64")))
    return from_codes(codes, scheme, scale=scale, dtype=dtype).dequantize()
