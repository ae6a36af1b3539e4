"""The dtypes of the safetensors container and their NumPy counterparts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from quantarray.errors import QuantArrayError

NDIM_CAP = 64  # NumPy's own
SIZE_CAP = 2**63 - 1  # bytes of one tensor, zero extents left out, as NumPy counts

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits of one element by the container's name of its dtype."""

NUMPY_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16",
    "F32": "float32", "F64": "float64", "C64": "complex64", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
"""NumPy's (or ml_dtypes') dtype by the container's; what is not here is only copied as bytes."""

DTYPES = {name: code for code, name in NUMPY_NAMES.items()}
"""The container's dtype by NumPy's name."""


@dataclass(frozen=True, slots=True)
class Spec:
    """Dtype (the container's name) and shape of one stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def parse_spec(dtype: object, shape: object) -> Spec:
    """Check a dtype and shape from a hostile file: the one place where a stated size is believed.

    Raises
    ------
    ValueError
        The dtype is unknown, the shape is no list of natural numbers, or no array can have it.
    """
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"dtype {dtype!r} is unknown")
    if not naturals(shape) or len(shape) > NDIM_CAP:
        raise ValueError(f"shape must be a list of at most {NDIM_CAP} integers >= 0, got {shape!r}")
    bits = math.prod(n or 1 for n in shape) * BITS[dtype]
    if bits > 8 * SIZE_CAP or math.prod(shape) * BITS[dtype] % 8:
        raise ValueError(f"shape {shape!r} of {dtype} is not a possible number of bytes")
    return Spec(dtype, tuple(shape))


def naturals(value: object) -> TypeGuard[list[int]]:
    """Tell whether a JSON value is a list of integers from 0 to `SIZE_CAP`; true is no integer."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= SIZE_CAP for n in value)


def numpy_dtype(code: str) -> np.dtype[Any]:
    """Return the little-endian NumPy dtype of a container's dtype.

    Raises
    ------
    QuantArrayError
        NumPy has none, or the package that has it (ml_dtypes) is not installed.
    """
    name = NUMPY_NAMES.get(code)
    if name is None:
        raise QuantArrayError(f"NumPy has no dtype for {code}; it can only be copied as bytes")
    if hasattr(np, name):
        return np.dtype(name).newbyteorder("<")
    try:
        import ml_dtypes
    except ImportError:
        raise QuantArrayError(f"dtype {name} needs ml_dtypes: pip install quantarray[io]") from None
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype
