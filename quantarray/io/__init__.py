"""Files: reading and writing arrays and quantized arrays."""

from quantarray.io.convert import Conversion, Converted, dequantize_file, quantize_file
from quantarray.io.tensors import TensorFile, load, save, verify

__all__ = [
    "Conversion",
    "Converted",
    "TensorFile",
    "dequantize_file",
    "load",
    "quantize_file",
    "save",
    "verify",
]
