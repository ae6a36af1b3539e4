"""Files: reading and writing arrays and quantized arrays."""

from quantarray.io.convert import Conversion, Converted, dequantize_file, quantize_file
from quantarray.io.layouts.folder import LayoutFolder, load_layout, save_layout
from quantarray.io.tensors import TensorFile, load, save, verify

__all__ = [
    "Conversion",
    "Converted",
    "LayoutFolder",
    "TensorFile",
    "dequantize_file",
    "load",
    "load_layout",
    "quantize_file",
    "save",
    "save_layout",
    "verify",
]
