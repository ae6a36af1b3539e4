"""The metadata values of a GGUF file: read from hostile bytes, and written back as they were.

=================  ==========================================================================
in the file        here
=================  ==========================================================================
a number           a NumPy scalar of its type, `numpy.uint8` to `numpy.float64`
a bool             `bool`
a string           `str`; bytes that are not UTF-8 become lone surrogates (``surrogateescape``)
array of numbers   a read-only one-dimensional array of their dtype, also when it is empty
array of bools     the same, of dtype bool
array of strings   a `list` of `str`; an empty `list` is an empty array of strings
array of arrays    an `Arrays`, which is a `list`, so that an empty one keeps its type too
=================  ==========================================================================
"""

from __future__ import annotations

import struct
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

HEADER_CAP = 1 << 28  # bytes before the data; the largest vocabularies take a few percent of it
NAME_CAP = (1 << 16) - 1  # bytes of a key (the format's own limit) or of a tensor's name
DEPTH_CAP = 8  # arrays in arrays
ARRAYS_CAP = 1 << 14  # arrays that are elements of arrays, in a whole file

STRING, ARRAY = 8, 9
DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"),
    4: np.dtype("<u4"), 5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype(bool),
    10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8"),
}  # fmt: skip
"""NumPy's dtype by the format's number of a type, for numbers and bools."""

_KINDS = {dtype.str: kind for kind, dtype in DTYPES.items()}
_KIND = struct.Struct("<i")
_LENGTH = struct.Struct("<Q")
_ARRAY = struct.Struct("<iQ")  # type and number of elements

Value = np.generic | bool | str | NDArray[Any] | list[Any]
"""A value as it is read; the module says which is what."""


class Arrays(list[Any]):
    """An array of arrays, each an `numpy.ndarray`, a `list` of `str`, or an `Arrays`."""


class MalformedError(ValueError):
    """What is wrong with a file, and at which byte."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class Cursor:
    """Reads a header from its first byte on; nothing is read past the end, or made for it.

    Attributes
    ----------
    view : memoryview
        The file, at most `HEADER_CAP` bytes of it.
    at : int
        The next byte.
    """

    __slots__ = ("arrays", "at", "capped", "view")

    def __init__(self, view: memoryview) -> None:
        self.capped = len(view) > HEADER_CAP
        self.view = view[:HEADER_CAP]
        self.at = 0
        self.arrays = 0

    def take(self, fields: struct.Struct) -> tuple[Any, ...]:
        """Read some numbers of fixed size."""
        try:
            values = fields.unpack_from(self.view, self.at)
        except struct.error:
            self._short(fields.size, self.at)
        self.at += fields.size
        return values

    def need(self, count: int, size: int, offset: int) -> None:
        """Check that `count` elements of `size` bytes or more can follow; `offset` stated them."""
        if count * size > len(self.view) - self.at:
            self._short(count * size, offset, f"{count} elements take ")

    def name(self) -> str:
        """Read the name of a key or tensor: UTF-8 of at most `NAME_CAP` bytes, none of them 0."""
        start = self.at
        (size,) = self.take(_LENGTH)
        if size > NAME_CAP:
            raise MalformedError(f"its length {size} is above the limit of {NAME_CAP}", start)
        self.need(size, 1, start)
        self.at += size
        try:
            name = str(self.view[start + 8 : self.at], "utf-8")
        except UnicodeDecodeError as error:
            raise MalformedError(f"not UTF-8: {error.reason}", start + 8 + error.start) from None
        if "\0" in name:
            raise MalformedError("it holds a null character", start)
        return name

    def value(self) -> Value:
        """Read a value and its type before it.

        Raises
        ------
        MalformedError
            The type is unknown, or what it takes is not there.
        """
        (kind,) = self.take(_KIND)
        if kind == STRING:
            return self._strings(1)[0]
        if kind == ARRAY:
            return self._array(1)
        value: np.generic = self._numbers(kind, 1, self.at - 4)[0]
        return bool(value) if isinstance(value, np.bool_) else value

    def _array(self, depth: int) -> NDArray[Any] | list[Any]:
        start = self.at
        kind, count = self.take(_ARRAY)
        if kind == STRING:
            self.need(count, _LENGTH.size, start + 4)
            return self._strings(count)
        if kind != ARRAY:
            return self._numbers(kind, count, start)
        if depth == DEPTH_CAP:
            raise MalformedError(f"arrays are nested deeper than the limit of {DEPTH_CAP}", start)
        self.need(count, _ARRAY.size, start + 4)
        self.arrays += count
        if self.arrays > ARRAYS_CAP:
            raise MalformedError(f"more than {ARRAYS_CAP} arrays in arrays, the limit", start + 4)
        return Arrays([self._array(depth + 1) for _ in range(count)])

    def _numbers(self, kind: int, count: int, offset: int) -> NDArray[Any]:
        dtype = DTYPES.get(kind)
        if dtype is None:
            raise MalformedError(f"value type {kind} is unknown", offset)
        self.need(count, dtype.itemsize, offset + 4)
        start, self.at = self.at, self.at + count * dtype.itemsize
        raw = self.view[start : self.at]
        if dtype.kind == "b" and count and np.frombuffer(raw, np.uint8).max() > 1:
            raise MalformedError("a bool is neither 0 nor 1", start)
        values = np.frombuffer(raw, dtype).copy()
        values.flags.writeable = False
        return values

    def _strings(self, count: int) -> list[str]:
        view, at, end = self.view, self.at, len(self.view)
        strings = []
        for _ in range(count):
            start = at + 8
            if start > end:
                self.at = at
                self._short(8, at)
            (size,) = _LENGTH.unpack_from(view, at)
            if size > end - start:
                self.at = start
                self._short(size, at, f"a string of {size} bytes takes ")
            at = start + size
            strings.append(str(view[start:at], "utf-8", "surrogateescape"))
        self.at = at
        return strings

    def _short(self, size: int, offset: int, what: str = "it takes ") -> NoReturn:
        left = len(self.view) - self.at
        limit = f" of the {HEADER_CAP} a header may take" if self.capped else ""
        raise MalformedError(f"{what}{size} bytes where {max(left, 0)}{limit} are left", offset)


def encoded(value: object) -> bytes:
    """Return a value as a file holds it, with its type before it.

    Raises
    ------
    ValueError
        No type of the format is the value's.
    """
    if isinstance(value, str):
        return _KIND.pack(STRING) + text(value)
    if isinstance(value, list | np.ndarray):
        return _KIND.pack(ARRAY) + _encoded_array(value, 1)
    if isinstance(value, bool | np.generic):
        kind, raw = _encoded_numbers(np.asarray(value))
        return _KIND.pack(kind) + raw
    raise ValueError(
        f"a value of type {type(value).__name__} does not say its type in the file: "
        "give a bool, str, list, NumPy array or NumPy scalar, such as numpy.uint32(1)"
    )


def text(value: str, errors: str = "surrogateescape") -> bytes:
    """Return a string as a file holds it: its length, then UTF-8.

    Raises
    ------
    ValueError
        It holds half a surrogate pair that stands for no byte.
    """
    raw = value.encode("utf-8", errors)
    return _LENGTH.pack(len(raw)) + raw


def _encoded_array(value: object, depth: int) -> bytes:
    if isinstance(value, np.ndarray):
        if value.ndim != 1:
            raise ValueError(f"an array must have one axis, this one has {value.ndim}")
        kind, raw = _encoded_numbers(value)
        return _ARRAY.pack(kind, len(value)) + raw
    if not isinstance(value, list):
        raise ValueError(f"an array of arrays cannot hold {type(value).__name__}")
    if not isinstance(value, Arrays) and all(isinstance(item, str) for item in value):
        return _ARRAY.pack(STRING, len(value)) + b"".join(map(text, value))
    if depth == DEPTH_CAP:
        raise ValueError(f"arrays are nested deeper than the limit of {DEPTH_CAP}")
    items = b"".join(_encoded_array(item, depth + 1) for item in value)
    return _ARRAY.pack(ARRAY, len(value)) + items


def _encoded_numbers(values: NDArray[Any]) -> tuple[int, bytes]:
    little = values.dtype.newbyteorder("<")
    kind = _KINDS.get(little.str)
    if kind is None:
        raise ValueError(f"dtype {values.dtype} is not one of the format's")
    return kind, values.astype(little).tobytes()
