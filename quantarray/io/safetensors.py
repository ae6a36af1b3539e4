"""The safetensors container: a strict reader and a streaming writer.

A file is 8 bytes of header length (little-endian), a JSON header, and the tensors' bytes without
gaps: https://huggingface.co/docs/safetensors. The reader trusts nothing it has not checked against
the file's size. The writer holds one tensor at a time.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from quantarray.errors import QuantArrayError
from quantarray.io import files
from quantarray.io.dtypes import BITS, DTYPES, Spec, naturals, numpy_dtype, parse_spec
from quantarray.io.escape import escape

HEADER_CAP = 100_000_000  # bytes, as in the reference implementation
METADATA = "__metadata__"
CHECKSUM = "quantarray.header_crc32"  # metadata key of the header's own checksum
_NO_CHECKSUM = "00000000"
# A quote inside a JSON string is escaped, so no name or value in a header can look like this mark.
_MARK = f'"{CHECKSUM}":"'.encode()
_PIECE = 1 << 24  # bytes checked and written at a time, so that a large tensor streams


@dataclass(frozen=True)
class Container:
    """An open file: what its header says, checked, and its bytes, mapped."""

    file: files.Mapped
    specs: Mapping[str, Spec]
    starts: Mapping[str, int]
    metadata: Mapping[str, str]
    header_size: int

    def raw(self, name: str) -> memoryview:
        """Return the stored bytes of a tensor, read-only and without a copy."""
        return self.file.view[self.starts[name] : self.starts[name] + self.specs[name].nbytes]

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor as a read-only array over the mapped file (copied where misaligned)."""
        spec, raw = self.specs[name], self.raw(name)
        if spec.dtype == "BOOL" and spec.nbytes and np.frombuffer(raw, np.uint8).max() > 1:
            raise self.error(name, "a BOOL byte is neither 0 nor 1")
        try:
            array = np.frombuffer(raw, numpy_dtype(spec.dtype)).reshape(spec.shape)
        except QuantArrayError as error:
            raise self.error(name, str(error)) from None
        if not array.flags.aligned:  # another writer's order; not every library takes such arrays
            array = array.copy()
            array.flags.writeable = False
        return array

    def release(self, name: str) -> None:
        """Let the mapped pages of a tensor leave memory."""
        self.file.release(self.starts[name], self.starts[name] + self.specs[name].nbytes)

    def error(self, name: str, message: str) -> QuantArrayError:
        """Return the error that names the file, a tensor and where its bytes begin."""
        return _error(self.file.path, f"tensor '{escape(name)}'", message, self.starts[name])

    def metadata_error(self, key: str, message: str) -> QuantArrayError:
        """Return the error that names the file and a metadata key."""
        offset = _offset(bytes(self.file.view[8 : self.header_size]), key)
        return _error(self.file.path, f"metadata '{escape(key)}'", message, offset)

    def check_header(self) -> None:
        """Compare the header to the checksum it holds, where it holds one.

        Raises
        ------
        QuantArrayError
            They differ.
        """
        stated = self.metadata.get(CHECKSUM)
        if stated is None:
            return
        header = bytes(self.file.view[: self.header_size])
        blank = header.replace(_MARK + stated.encode(), _MARK + _NO_CHECKSUM.encode())
        if stated != checksum(blank):
            message = f"its checksum is {checksum(blank)}, the file says '{escape(stated)}'"
            raise _error(self.file.path, "header", message, 8)


def checksum(data: bytes | memoryview, start: str = _NO_CHECKSUM) -> str:
    """Return the CRC-32 of bytes in 8 hexadecimal digits, continuing from `start`."""
    return f"{zlib.crc32(data, int(start, 16)):08x}"


def read(path: files.Path) -> Container:
    """Open a safetensors file and check its whole header; no tensor is read.

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

    def fail(field: str, message: str, offset: int) -> NoReturn:
        raise _error(file.path, field, message, offset)

    if file.size < 8:
        fail("header length", f"the file has {file.size} bytes, fewer than the 8 it takes", 0)
    length = int.from_bytes(file.view[:8], "little")
    if length > HEADER_CAP:
        fail("header length", f"{length} is above the limit of {HEADER_CAP}", 0)
    base = 8 + length
    if base > file.size:
        fail("header length", f"{length} is past the end of the file ({file.size} bytes)", 0)
    raw = bytes(file.view[8:base])
    if not raw.startswith(b"{"):
        fail("header", "not a JSON object, it does not begin with '{'", 8)
    try:
        header = loads(raw)
    except ValueError as error:
        fail("header", f"not a JSON object: {error}", 8 + getattr(error, "start", 0))
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        fail(METADATA, "must map strings to strings", _offset(raw, METADATA))
    spans: dict[str, tuple[int, int]] = {}
    specs: dict[str, Spec] = {}
    for name, entry in header.items():
        try:
            specs[name], spans[name] = _entry(entry, file.size - base)
        except ValueError as error:
            fail(f"tensor '{escape(name)}'", str(error), _offset(raw, name))
    end = 0
    for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if start != end:
            what = "overlaps another tensor" if start < end else "leaves a gap before it"
            fail(f"tensor '{escape(name)}'", f"data_offsets [{start}, {stop}] {what}", base + end)
        end = stop
    if base + end != file.size:
        fail("data", f"{file.size - base - end} bytes after the last tensor", base + end)
    starts = {name: base + start for name, (start, _) in spans.items()}
    return Container(file, specs, starts, metadata, base)


def write(
    path: files.Path,
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, NDArray[Any] | memoryview]],
    metadata: Callable[[Mapping[str, str]], Mapping[str, str]],
) -> None:
    """Write a safetensors file, taking its tensors one at a time.

    Parameters
    ----------
    path : str or os.PathLike
        The file, replaced whole when all is written.
    specs : Mapping
        Every tensor's dtype and shape, in the order the header lists them.
    tensors : Iterable
        Pairs of name and data, in any order, each name once. Arrays of any memory layout are
        written in C order, little-endian; memoryviews as they are.
    metadata : Callable
        Gives the file's metadata from each tensor's checksum (8 hexadecimal digits). It is also
        called before the data, with zeros, so the length of its text must not depend on them.

    Raises
    ------
    QuantArrayError
        A tensor is missing, unknown, given twice, or differs from its spec.
    """
    offsets = _offsets(specs)
    sums = dict.fromkeys(specs, _NO_CHECKSUM)
    base = len(_header(specs, offsets, metadata(sums)))
    missing = set(specs)
    with files.atomic_writer(path) as output:
        for name, value in tensors:
            if name not in missing:
                raise QuantArrayError(f"tensor '{escape(name)}' is not in the plan, or came twice")
            missing.remove(name)
            data = _stored(name, specs[name], value)
            for at in range(0, len(data), _PIECE):
                piece = data[at : at + _PIECE]
                sums[name] = checksum(piece, sums[name])
                output.write_at(base + offsets[name] + at, piece)
                del piece
            del value, data  # before the next one is made
        if missing:
            raise QuantArrayError(f"tensor '{escape(min(missing))}' was not given")
        header = _header(specs, offsets, metadata(sums))
        if len(header) != base:
            raise QuantArrayError("the metadata changed its length while the file was written")
        output.write_at(0, header)


def loads(text: bytes) -> dict[str, Any]:
    """Parse a JSON object from a hostile source.

    Raises
    ------
    ValueError
        Not one object, a key twice, NaN, text that is not Unicode, or nested too deeply.
    """
    try:
        parsed = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refused)
        if b"\\u" in text:  # an escape can smuggle in half a surrogate pair, which no one can write
            json.dumps(parsed, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("it is not an object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key '{escape(twice)}' appears twice")
    return parsed


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _entry(entry: object, room: int) -> tuple[Spec, tuple[int, int]]:
    """Check a tensor's header entry against the bytes there are; ValueError says what is wrong."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("must be an object of dtype, shape and data_offsets, nothing else")
    spec, span = parse_spec(entry["dtype"], entry["shape"]), entry["data_offsets"]
    if not naturals(span) or len(span) != 2 or not span[0] <= span[1] <= room:
        raise ValueError(f"data_offsets must be [start, stop] within {room} bytes, got {span!r}")
    if spec.nbytes != span[1] - span[0]:
        raise ValueError(
            f"data_offsets {span!r} hold {span[1] - span[0]} bytes, "
            f"shape {list(spec.shape)} of {spec.dtype} takes {spec.nbytes}"
        )
    return spec, (span[0], span[1])


def _error(path: str, field: str, message: str, offset: int) -> QuantArrayError:
    text = f"{escape(path, None)}: {field}: {escape(message, 400)} (at byte {offset})"
    return QuantArrayError(text)


def _offset(raw: bytes, name: str) -> int:
    """Return where in the file a header key stands; the header's start if it is spelled oddly."""
    return 8 + max(raw.find(json.dumps(name, ensure_ascii=False).encode()), 0)


def _offsets(specs: Mapping[str, Spec]) -> dict[str, int]:
    """Place tensors after one another, wide dtypes first, so that every one of them is aligned."""
    offsets, end = {}, 0
    for name in sorted(specs, key=lambda name: -BITS[specs[name].dtype]):
        offsets[name] = end
        end += specs[name].nbytes
    return offsets


def _header(
    specs: Mapping[str, Spec], offsets: Mapping[str, int], metadata: Mapping[str, str]
) -> bytes:
    """Return the header with its length, padded so that the data begins at a multiple of 8."""
    if METADATA in specs:
        raise QuantArrayError(f"a tensor cannot be called '{METADATA}'")
    entries: dict[str, object] = {METADATA: {**metadata, CHECKSUM: _NO_CHECKSUM}}
    for name, spec in specs.items():
        span = [offsets[name], offsets[name] + spec.nbytes]
        entries[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": span}
    try:
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise QuantArrayError(f"a name or metadata entry is not Unicode text: {error}") from None
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_CAP:
        raise QuantArrayError(f"the header takes {len(text)} bytes, the limit is {HEADER_CAP}")
    header = len(text).to_bytes(8, "little") + text
    return header.replace(_MARK + _NO_CHECKSUM.encode(), _MARK + checksum(header).encode())


def _stored(name: str, spec: Spec, value: NDArray[Any] | memoryview) -> memoryview:
    """Return the bytes of a tensor as the file holds them, checked against the plan."""
    if isinstance(value, memoryview):
        data = value.cast("B") if value.nbytes else memoryview(b"")
        if data.nbytes != spec.nbytes:
            raise QuantArrayError(
                f"tensor '{escape(name)}' has {data.nbytes} bytes, planned {spec.nbytes}"
            )
        return data
    if value.shape != spec.shape or DTYPES.get(value.dtype.name) != spec.dtype:
        raise QuantArrayError(
            f"tensor '{escape(name)}' is {value.dtype}{list(value.shape)}, "
            f"planned {spec.dtype}{list(spec.shape)}"
        )
    little = np.asarray(value, dtype=value.dtype.newbyteorder("<"), order="C")
    return little.reshape(-1).view(np.uint8).data
