"""The GGUF container: a strict reader and a streaming writer.

A file is the magic, a version, the metadata, a description of each tensor, and, at the next
multiple of the alignment, the tensors' bytes, each padded to that alignment:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader takes versions 2 and 3,
little-endian, and trusts nothing it has not checked against the file's size. It takes what ggml's
own reader takes and gguf-py's writer makes, but for

- more bytes after the last tensor than pad it, and bools that are neither 0 nor 1;
- keys and tensor names that are not UTF-8, or hold a null character, where C sees their end;
- what is past a limit: `NAME_CAP`, `HEADER_CAP`, `DEPTH_CAP` and `ARRAYS_CAP` of `gguf_values`,
  `TENSORS_CAP`, `KEYS_CAP` and `ALIGNMENT_CAP` of `gguf_types`;
- empty tensors whose other extents multiply to more than NumPy counts;
- types that ggml has for its products only (Q8_1 and Q8_K).

Like ggml it wants each tensor where the one before it ends, so that none overlap. Unlike ggml it
takes long tensor names (other programs write them) and arrays in arrays (gguf-py writes them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantarray.errors import QuantArrayError
from quantarray.io import files
from quantarray.io.dtypes import numpy_dtype
from quantarray.io.escape import escape
from quantarray.io.gguf_types import (
    ALIGNMENT,
    COUNTS,
    KEY_SIZE,
    KEYS_CAP,
    MAGIC,
    NAMES,
    NDIM,
    NDIM_CAP,
    REFUSED,
    REST,
    START,
    TENSOR_SIZE,
    TENSORS_CAP,
    VERSION,
    Spec,
    alignment_of,
    parse_spec,
)
from quantarray.io.gguf_values import Cursor, MalformedError, Value, text
from quantarray.io.gguf_writer import write

__all__ = ["Container", "Spec", "parse", "read", "write"]


@dataclass(frozen=True)
class Container:
    """An open file: what its header says, checked, and its bytes, mapped.

    `metadata` is in the file's order; `gguf_values` says which types its values have.
    """

    file: files.Mapped
    specs: Mapping[str, Spec]
    starts: Mapping[str, int]
    metadata: dict[str, Value]
    header_size: int
    version: int
    alignment: int

    def raw(self, name: str) -> memoryview:
        """Return the stored bytes of a tensor, read-only and without a copy."""
        return self.file.view[self.starts[name] : self.starts[name] + self.specs[name].nbytes]

    def array(self, name: str) -> NDArray[Any]:
        """Return what is stored of a tensor, read-only, over the mapped file.

        Parameters
        ----------
        name : str
            The tensor.

        Returns
        -------
        numpy.ndarray
            For a plain type its values (copied where the file's alignment is not enough for
            them). For a block type the bytes of its rows, uint8 of shape ``(..., row bytes)``.

        Raises
        ------
        QuantArrayError
            The package that has the dtype (ml_dtypes) is not installed.
        """
        spec = self.specs[name]
        try:
            dtype = np.dtype(np.uint8) if spec.record else numpy_dtype(spec.dtype)
        except QuantArrayError as error:
            raise self.error(name, str(error)) from None
        array = np.frombuffer(self.raw(name), dtype).reshape(spec.stored)
        if not array.flags.aligned:
            array = array.copy()
            array.flags.writeable = False
        return array

    def release(self, name: str) -> None:
        """Let the mapped pages of a tensor leave memory."""
        self.file.release(self.starts[name], self.starts[name] + self.specs[name].nbytes)

    def error(self, name: str, message: str) -> QuantArrayError:
        """Return the error that names the file, a tensor and where its bytes begin."""
        return _error(self.file.path, ("tensor", name), message, self.starts[name])

    def metadata_error(self, key: str, message: str) -> QuantArrayError:
        """Return the error that names the file, a metadata key and where it stands."""
        header = bytes(self.file.view[: self.header_size])
        offset = max(header.find(text(key)), 0)
        return _error(self.file.path, ("metadata", key), message, offset)


def read(path: files.Path) -> Container:
    """Open a GGUF file and check its whole header; no tensor is read.

    Parameters
    ----------
    path : str or os.PathLike
        The file. It stays mapped while the result, or an array from it, is alive.

    Returns
    -------
    Container
        Its metadata, the tensors' types and shapes, and access to their bytes.

    Raises
    ------
    QuantArrayError
        The file breaks the format; the message names the field and its byte offset.
    OSError
        The file cannot be opened.
    """
    return parse(files.open_mapped(path))


def parse(file: files.Mapped) -> Container:
    """Check the header of a mapped file, as `read` does."""
    reader = _Reader(file)
    try:
        return reader.container()
    except MalformedError as error:
        raise _error(file.path, reader.field, str(error), error.offset) from None


class _Reader:
    """One reading of a header; `field` is what is being read, for the message of an error."""

    def __init__(self, file: files.Mapped) -> None:
        self.file = file
        self.cursor = Cursor(file.view)
        self.field: tuple[str, str | int | None] = ("magic", None)

    def container(self) -> Container:
        version, tensors, keys = self._start()
        metadata = self._metadata(keys)
        alignment = alignment_of(metadata)
        specs, offsets = self._tensors(tensors, alignment)
        size = self.cursor.at
        base = size + -size % alignment if specs else size
        starts = {name: base + offset for name, offset in offsets.items()}
        self._check_data(specs, starts, alignment)
        return Container(self.file, specs, starts, metadata, size, version, alignment)

    def _start(self) -> tuple[int, int, int]:
        """Read what comes before the metadata: version and counts."""
        cursor = self.cursor
        magic, version = cursor.take(START)
        if magic != MAGIC:
            raise MalformedError(f"{magic!r} is not {MAGIC!r}: not a GGUF file", 0)
        self.field = ("version", None)
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version == 1:
            raise MalformedError("1, a format no longer in use, is not supported", 4)
        if version not in (2, VERSION):
            big = swapped in (1, 2, VERSION)
            why = "the file is big-endian, which is not supported" if big else "only 2 and 3 are"
            raise MalformedError(f"{version} is not supported: {why}", 4)
        self.field = ("counts", None)
        tensors, keys = cursor.take(COUNTS)
        for field, count, cap, size, at in (
            ("tensor count", tensors, TENSORS_CAP, TENSOR_SIZE, 8),
            ("metadata count", keys, KEYS_CAP, KEY_SIZE, 16),
        ):
            self.field = (field, None)
            if count > cap:
                raise MalformedError(f"{count} is above the limit of {cap}", at)
            cursor.need(count, size, at)
        return version, tensors, keys

    def _metadata(self, count: int) -> dict[str, Value]:
        cursor = self.cursor
        metadata: dict[str, Value] = {}
        for i in range(count):
            start = cursor.at
            self.field = ("metadata key", i)
            key = cursor.name()
            if not key:
                raise MalformedError("it is empty", start)
            self.field = ("metadata", key)
            if key in metadata:
                raise MalformedError("the key appears twice", start)
            at = cursor.at
            metadata[key] = cursor.value()
            if key == ALIGNMENT:
                try:
                    alignment_of(metadata)
                except ValueError as error:
                    raise MalformedError(str(error), at) from None
        return metadata

    def _tensors(self, count: int, alignment: int) -> tuple[dict[str, Spec], dict[str, int]]:
        cursor = self.cursor
        specs: dict[str, Spec] = {}
        offsets: dict[str, int] = {}
        end = 0
        for i in range(count):
            start = cursor.at
            self.field = ("tensor name", i)
            name = cursor.name()
            self.field = ("tensor", name)
            if name in specs:
                raise MalformedError("the name appears twice", start)
            (ndim,) = cursor.take(NDIM)
            at = cursor.at
            if ndim > NDIM_CAP:
                raise MalformedError(f"{ndim} axes are above the limit of {NDIM_CAP}", at - 4)
            *extents, number, offset = cursor.take(REST[ndim])
            dtype = NAMES.get(number)
            if dtype is None:
                what = REFUSED.get(number, "unknown")
                raise MalformedError(f"ggml type {number} is {what}", cursor.at - 12)
            try:
                spec = specs[name] = parse_spec(dtype, tuple(extents[::-1]))
            except ValueError as error:
                raise MalformedError(str(error), at) from None
            if offset != end:
                raise MalformedError(_misplaced(offset, end, alignment), cursor.at - 8)
            offsets[name] = offset
            end += spec.nbytes
            end += -end % alignment
        return specs, offsets

    def _check_data(
        self, specs: Mapping[str, Spec], starts: Mapping[str, int], alignment: int
    ) -> None:
        """Compare where the tensors lie to the file's size."""
        end, size = self.cursor.at, self.file.size
        for name, start in starts.items():
            end = start + specs[name].nbytes
            if end > size:
                self.field = ("tensor", name)
                message = f"its {specs[name].nbytes} bytes end at {end}, the file at {size}"
                raise MalformedError(message, start)
        padded = end + -end % alignment
        if size > padded:
            self.field = ("data", None)
            raise MalformedError(f"{size - padded} bytes after the last tensor", padded)


def _misplaced(offset: int, end: int, alignment: int) -> str:
    """Say why a tensor cannot lie at `offset` when the one before it ends at `end`, padded."""
    if offset % alignment:
        return f"offset {offset} is not a multiple of the alignment {alignment}"
    what = "overlaps another tensor" if offset < end else "leaves a gap before it"
    return f"offset {offset} {what}, expected {end}"


def _error(
    path: str, field: tuple[str, str | int | None], message: str, offset: int
) -> QuantArrayError:
    what, item = field
    if item is not None:
        what += f" '{escape(item)}'" if isinstance(item, str) else f" {item}"
    place = f"{escape(path, None)}: {what}"
    return QuantArrayError(f"{place}: {escape(message, 400)} (at byte {offset})")
