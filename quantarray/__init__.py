"""Quantize any array, in any array library, to any published format."""

from quantarray.array import QuantizedArray
from quantarray.codec import decode, encode
from quantarray.errors import QuantArrayError
from quantarray.presets import scheme, schemes
from quantarray.quantize import dequantize, fake_quantize, from_codes, quantize
from quantarray.scheme import Scheme

__version__ = "0.1.0"

__all__ = [
    "QuantArrayError",
    "QuantizedArray",
    "Scheme",
    "decode",
    "dequantize",
    "encode",
    "fake_quantize",
    "from_codes",
    "quantize",
    "scheme",
    "schemes",
]
