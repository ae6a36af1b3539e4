"""Quantize any array, in any array library, to any published format."""

from quantarray import gguf as gguf
from quantarray.array import QuantizedArray
from quantarray.cast import decode, encode
from quantarray.errors import QuantArrayError
from quantarray.io import load, save
from quantarray.metrics import Comparison, ErrorReport, compare, error
from quantarray.notebook import (
    calculate_mean_squared_error,
    dequantize_from_int4,
    dequantize_from_int8,
    generate_random_matrix,
    quantize_to_int4,
    quantize_to_int8,
)
from quantarray.overrides import scheme, schemes
from quantarray.products import matmul
from quantarray.quantize import dequantize, fake_quantize, from_codes, quantize
from quantarray.scheme import Scheme

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "ErrorReport",
    "QuantArrayError",
    "QuantizedArray",
    "Scheme",
    "calculate_mean_squared_error",
    "compare",
    "decode",
    "dequantize",
    "dequantize_from_int4",
    "dequantize_from_int8",
    "encode",
    "error",
    "fake_quantize",
    "from_codes",
    "generate_random_matrix",
    "load",
    "matmul",
    "quantize",
    "quantize_to_int4",
    "quantize_to_int8",
    "save",
    "scheme",
    "schemes",
]
