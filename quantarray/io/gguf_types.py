"""What both the reader and the writer of GGUF files know: limits, types, and a tensor's size."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantarray.io.dtypes import BITS, SIZE_CAP
from quantarray.records import RECORDS, Record

MAGIC = b"GGUF"
VERSION = 3  # what is written; 2 differs in nothing that a little-endian file shows
ALIGNMENT = "general.alignment"  # metadata key, of a uint32
DEFAULT_ALIGNMENT = 32
ALIGNMENT_CAP = 1 << 20
NDIM_CAP = 4
TENSORS_CAP = 1 << 14  # ggml joins the experts of a layer: no model comes near
KEYS_CAP = 1 << 14

_PLAIN = {
    "F32": 0, "F16": 1, "I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28, "BF16": 30
}  # fmt: skip
TYPES = {name: (number, 1, BITS[name] // 8) for name, number in _PLAIN.items()} | {
    name: (record.number, record.elements, record.size) for name, record in RECORDS.items()
}
"""The number of each type, the elements of its blocks and their bytes."""

NAMES = {number: name for name, (number, _, _) in TYPES.items()}
REFUSED = {
    4: "Q4_2, which ggml has removed", 5: "Q4_3, which ggml has removed",
    9: "Q8_1, which is not for files", 15: "Q8_K, which is not for files",
    31: "Q4_0_4_4, which ggml has removed", 32: "Q4_0_4_8, which ggml has removed",
    33: "Q4_0_8_8, which ggml has removed", 36: "IQ4_NL_4_4, which ggml has removed",
    37: "IQ4_NL_4_8, which ggml has removed", 38: "IQ4_NL_8_8, which ggml has removed",
}  # fmt: skip

START = struct.Struct("<4sI")  # magic, version
COUNTS = struct.Struct("<QQ")  # tensors, keys
NDIM = struct.Struct("<I")
REST = tuple(struct.Struct(f"<{ndim}qiQ") for ndim in range(NDIM_CAP + 1))  # ne, type, offset
KEY_SIZE = 8 + 1 + 4 + 1  # bytes of the shortest key with its value
TENSOR_SIZE = 8 + 4 + 4 + 8  # bytes of the shortest description of a tensor


@dataclass(frozen=True, slots=True)
class Spec:
    """Type (ggml's name, such as ``"F32"`` or ``"Q4_K"``) and shape, outermost axis first."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def record(self) -> Record | None:
        """The block type; None for a plain one."""
        return RECORDS.get(self.dtype)

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape of what is stored: for a block type its last axis counts the bytes of a row."""
        _, elements, size = TYPES[self.dtype]
        if self.dtype in _PLAIN:
            return self.shape
        return (*self.shape[:-1], self.shape[-1] // elements * size)

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        _, elements, size = TYPES[self.dtype]
        return math.prod(self.shape) // elements * size


def parse_spec(dtype: str, shape: tuple[int, ...]) -> Spec:
    """Check a type and a shape: the one place where a stated size is believed.

    Raises
    ------
    ValueError
        The type is unknown, a row is not whole blocks, or no array can have the shape.
    """
    if dtype not in TYPES:
        raise ValueError(f"type {dtype!r} is unknown")
    if len(shape) > NDIM_CAP:
        raise ValueError(f"{len(shape)} axes are above the limit of {NDIM_CAP}")
    if shape and min(shape) < 0:
        raise ValueError(f"shape {list(shape)} has a negative extent")
    _, elements, size = TYPES[dtype]
    row = shape[-1] if shape else 1
    if row % elements:
        raise ValueError(f"a row of {row} elements is not whole blocks of {elements} ({dtype})")
    count = math.prod([n or 1 for n in shape])
    if count > SIZE_CAP or count // elements * size > SIZE_CAP:
        raise ValueError(f"shape {list(shape)} of {dtype} is not a possible number of bytes")
    return Spec(dtype, shape)


def alignment_of(metadata: Mapping[str, object]) -> int:
    """Return the number of bytes of which every tensor's place is a multiple.

    Raises
    ------
    ValueError
        The metadata states an impossible one.
    """
    value = metadata.get(ALIGNMENT, np.uint32(DEFAULT_ALIGNMENT))
    if not isinstance(value, np.uint32):
        raise ValueError(f"must be of type uint32, got {type(value).__name__}")
    alignment = int(value)
    if not alignment or alignment & (alignment - 1) or alignment > ALIGNMENT_CAP:
        raise ValueError(f"must be a power of 2 up to {ALIGNMENT_CAP}, got {alignment}")
    return alignment
