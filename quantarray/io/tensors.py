"""Reading and writing files of tensors, quantized or plain, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantarray import _xp
from quantarray.array import QuantizedArray
from quantarray.errors import QuantArrayError
from quantarray.io import files, gguf, gguf_layout, gguf_types, layout, safetensors
from quantarray.io.dtypes import DTYPES, NUMPY_NAMES, Spec
from quantarray.io.escape import escape
from quantarray.io.files import Path
from quantarray.io.layout import KEY, Entry, Stored

_OURS = frozenset({KEY, safetensors.CHECKSUM})


@dataclass(frozen=True, eq=False)
class TensorFile(Mapping[str, "NDArray[Any] | QuantizedArray"]):
    """The tensors of a file by name; each is read, and its checksum compared, when asked for.

    Plain tensors are read-only NumPy arrays over the mapped file, quantized ones are
    `QuantizedArray`. `metadata` is the file's own, without the keys of this layout: text, or for a
    GGUF file values of the types that it states.
    """

    path: str
    metadata: Mapping[str, Any]
    entries: Mapping[str, Entry]
    container: safetensors.Container | gguf.Container
    checksums: Mapping[str, str]

    def __getitem__(self, name: str) -> NDArray[Any] | QuantizedArray:
        """Read one tensor.

        Raises
        ------
        KeyError
            The file has no such tensor.
        QuantArrayError
            Its bytes do not have the checksum the file states, or NumPy has no dtype for them.
        """
        entry = self.entries[name]
        self.raw(entry)
        arrays = {part: self.container.array(entry.stored(part)) for part in entry.parts}
        if entry.scheme is None:
            return arrays[""]
        dtype = NUMPY_NAMES[entry.dtype]
        return QuantizedArray.from_parts(arrays, entry.scheme, entry.shape, dtype)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in the order of the file's header."""
        return iter(self.entries)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.entries)

    def raw(self, entry: Entry) -> dict[str, memoryview]:
        """Return the stored bytes of a tensor by part, after comparing their checksums."""
        parts = {}
        for part in entry.parts:
            name = entry.stored(part)
            parts[part] = self.container.raw(name)
            stated = self.checksums.get(name)
            found = stated and safetensors.checksum(parts[part])
            if found != stated:
                raise self.container.error(name, f"checksum is {found}, the file says {stated}")
        return parts

    def release(self, entry: Entry) -> None:
        """Let the mapped pages of a tensor leave memory; they are read again when touched."""
        for part in entry.parts:
            self.container.release(entry.stored(part))


def load(path: Path) -> TensorFile:
    """Open a safetensors file, of quantarray's layout or plain, or a GGUF file.

    Parameters
    ----------
    path : str or os.PathLike
        The file. It stays mapped while the result, or an array from it, is alive; it may be
        replaced meanwhile (by `save` to the same path, say), but not truncated in place.

    Returns
    -------
    TensorFile
        A mapping from names to NumPy arrays and `QuantizedArray`, with ``.metadata``. Only the
        header is read now; each tensor is read when asked for. GGUF does not tell what dtype was
        quantized: it counts as float32.

    Raises
    ------
    QuantArrayError
        The file breaks the format; the message names the field and its byte offset.
    OSError
        The file cannot be opened.
    """
    file = files.open_mapped(path)
    if file.view[:4] == gguf_types.MAGIC:
        held = gguf.parse(file)
        return TensorFile(file.path, held.metadata, gguf_layout.entries(held), held, {})
    container = safetensors.parse(file)
    container.check_header()
    metadata = {key: value for key, value in container.metadata.items() if key not in _OURS}
    entries = {n: layout.plain(n, spec.dtype, spec.shape) for n, spec in container.specs.items()}
    checksums: dict[str, str] = {}
    if KEY in container.metadata:
        try:
            entries, checksums = layout.parse(container.metadata[KEY], container.specs)
        except ValueError as error:
            raise container.metadata_error(KEY, str(error)) from None
    return TensorFile(container.file.path, metadata, entries, container, checksums)


def save(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
    """Write arrays and quantized arrays to a file.

    Parameters
    ----------
    path : str or os.PathLike
        The file: GGUF if its name ends in ".gguf", otherwise safetensors. It appears whole when all
        is written, or not at all; it may be the file that `tensors` are being read from.
    tensors : Mapping
        Names to arrays of any array library, or `QuantizedArray`. They are brought to host memory
        one at a time.
    metadata : Mapping of str to str, optional
        Kept beside the tensors. In a GGUF file values may also be NumPy scalars and arrays, bool,
        and lists of str.

    Raises
    ------
    QuantArrayError
        Two tensors would be stored under one name, a dtype cannot be stored, a name or metadata
        entry is not text, or the folder does not exist.
    OSError
        As the operating system says, for example when the disk is full.
    """

    def produce(entry: Entry) -> Mapping[str, Stored]:
        value = tensors[entry.name]
        parts = value.parts() if isinstance(value, QuantizedArray) else {"": value}
        return {part: _xp.to_numpy(array) for part, array in parts.items()}

    planned = [_entry(name, tensors[name], layout_of(path)) for name in tensors]
    write(path, planned, produce, metadata or {})


def verify(path: Path) -> None:
    """Compare every byte of a file that quantarray wrote to the file's checksums.

    Raises
    ------
    QuantArrayError
        A checksum differs, the file breaks the format, or it holds no checksums.
    OSError
        The file cannot be opened.
    """
    tensors = load(path)
    if not tensors.container.metadata.keys() >= _OURS:
        raise QuantArrayError(f"{escape(tensors.path, None)}: it holds no checksums to verify")
    for entry in tensors.entries.values():
        tensors.raw(entry)
        tensors.release(entry)


def write(
    path: Path,
    entries: Sequence[Entry],
    produce: Callable[[Entry], Mapping[str, Stored]],
    metadata: Mapping[str, str],
    done: Callable[[Entry], None] = lambda entry: None,
) -> None:
    """Write a file whose tensors are made one at a time.

    Parameters
    ----------
    path : str or os.PathLike
        The file, replaced whole when all is written.
    entries : Sequence of Entry
        What the file will hold, in order.
    produce : Callable
        Gives an entry's parts, each as an array or as the very bytes to store. It is called once
        for each entry, in order.
    metadata : Mapping of str to str
        The file's own metadata.
    done : Callable
        Called with each entry when its parts are written.

    Raises
    ------
    QuantArrayError, OSError
        As `save`, and whatever `produce` raises.
    """
    if layout_of(path) is gguf_layout:
        gguf_layout.write(path, entries, produce, metadata, done)
        return
    specs: dict[str, Spec] = {}
    for entry in entries:
        for part, spec in entry.parts.items():
            assert isinstance(spec, Spec)
            name = entry.stored(part)
            if name in specs:
                raise QuantArrayError(f"two tensors would be stored as '{escape(name)}'")
            specs[name] = spec
    _check_metadata(metadata)

    def own(checksums: Mapping[str, str]) -> dict[str, str]:
        return {**metadata, KEY: layout.describe(entries, checksums)}

    def stored() -> Iterator[tuple[str, Stored]]:
        for entry in entries:
            yield from ((entry.stored(part), value) for part, value in produce(entry).items())
            done(entry)

    safetensors.write(path, specs, stored(), own)


def layout_of(path: Path) -> ModuleType:
    """Give the module that describes tensors as a file to be written holds them."""
    return gguf_layout if files.checked(path).lower().endswith(".gguf") else layout


def _check_metadata(metadata: Mapping[Any, Any]) -> None:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise QuantArrayError(f"metadata entry {escape(repr(key))}: expected text for text")
        if key in _OURS:
            raise QuantArrayError(f"metadata key '{key}' is the layout's own")


def _entry(name: object, value: Any, how: ModuleType) -> Entry:
    """Describe a value given to `save`."""
    if not isinstance(name, str):
        raise QuantArrayError(f"tensor name {escape(repr(name))} must be str")
    try:
        if isinstance(value, QuantizedArray):
            dtype = DTYPES[_xp.dtype_name(value.dtype)]
            found: Entry = how.quantized(name, value.scheme, dtype, tuple(value.shape))
            return found
        if isinstance(value, np.ma.MaskedArray):
            raise QuantArrayError("a masked array has no place to store its mask: fill it first")
        dtype = _xp.dtype_name(value.dtype)
        if dtype not in DTYPES:
            raise QuantArrayError(f"dtype {dtype} cannot be stored")
        found = how.plain(name, DTYPES[dtype], tuple(map(int, value.shape)))
        return found
    except QuantArrayError as error:
        raise QuantArrayError(f"tensor '{escape(name)}': {error}") from None
    except (AttributeError, TypeError, ValueError):
        text = f"tensor '{escape(name)}' is a {type(value).__name__}, not an array of known shape"
        raise QuantArrayError(text) from None
