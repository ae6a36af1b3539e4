"""Quantarray's own layout on safetensors: how quantized tensors are named and described in a file.

A quantized tensor ``w`` is stored as its parts, ``w.data``, ``w.scale`` and so on. The metadata key
``quantarray`` holds, as JSON, each one's scheme, shape and original dtype, and a checksum of every
stored tensor. Any safetensors reader can read the file; it sees the parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from quantarray.blocks import from_end
from quantarray.io import gguf_types
from quantarray.io.dtypes import DTYPES, NUMPY_NAMES, Spec, parse_spec
from quantarray.io.escape import escape
from quantarray.io.safetensors import loads
from quantarray.parts import part_specs
from quantarray.scheme import Scheme

KEY = "quantarray"
VERSION = 1
_CHECKSUM = re.compile("[0-9a-f]{8}")


Stored = NDArray[Any] | memoryview


@dataclass(frozen=True)
class Entry:
    """One tensor as its user sees it.

    `parts` is what is stored of it: under the part's name for a quantized tensor, under the empty
    name for a plain one. `dtype` is the container's name of the original dtype.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scheme: Scheme | None
    parts: Mapping[str, Spec | gguf_types.Spec]
    # Whether its only part has the tensor's own name in the file.
    alone: bool = False

    @property
    def nbytes(self) -> int:
        """Stored bytes of all parts."""
        return sum(spec.nbytes for spec in self.parts.values())

    def stored(self, part: str) -> str:
        """Return the name a part has in the file."""
        return f"{self.name}.{part}" if part and not self.alone else self.name


def plain(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    """Describe a tensor stored as it is."""
    return Entry(name, dtype, shape, None, {"": Spec(dtype, shape)})


def quantized(name: str, scheme: Scheme, dtype: str, shape: tuple[int, ...]) -> Entry:
    """Describe a quantized tensor; `dtype` is the container's name of the original dtype.

    Raises
    ------
    QuantArrayError
        The scheme does not fit the shape or dtype.
    """
    # A scheme counts axes from the end once it belongs to an array.
    scheme = replace(scheme, block=from_end("file", scheme.block, shape))
    parts = part_specs(scheme, shape, NUMPY_NAMES[dtype])
    specs = {part: Spec(DTYPES[stored], size) for part, (size, stored) in parts.items()}
    return Entry(name, dtype, shape, scheme, specs)


def describe(entries: Iterable[Entry], checksums: Mapping[str, str]) -> str:
    """Return the layout's metadata: what `parse` needs to find the entries again."""
    tensors = {
        entry.name: {
            "scheme": entry.scheme.to_dict(),
            "shape": entry.shape,
            "dtype": NUMPY_NAMES[entry.dtype],
        }
        for entry in entries
        if entry.scheme is not None
    }
    own = {"version": VERSION, "tensors": tensors, "crc32": checksums}
    return json.dumps(own, ensure_ascii=False, separators=(",", ":"))


def parse(text: str, specs: Mapping[str, Spec]) -> tuple[dict[str, Entry], dict[str, str]]:
    """Read the layout's metadata from a hostile file.

    Parameters
    ----------
    text : str
        The metadata.
    specs : Mapping
        What is stored in the file, in header order.

    Returns
    -------
    tuple of two dict
        The entries by name, in header order, and every stored tensor's checksum.

    Raises
    ------
    ValueError
        It is no such metadata, or what it describes is not what is stored.
    """
    own = loads(text.encode())
    version = own.get("version")
    if type(version) is not int or version < 1:
        raise ValueError(f"version must be a positive integer, got {version!r}")
    if version > VERSION:
        raise ValueError(f"version {version} is newer than {VERSION}, the last this release reads")
    if own.keys() != {"version", "tensors", "crc32"}:
        raise ValueError("must hold version, tensors and crc32, nothing else")
    checksums, records = own["crc32"], own["tensors"]
    if not isinstance(checksums, dict) or checksums.keys() != specs.keys():
        raise ValueError("crc32 must name every stored tensor and no other")
    if not all(isinstance(v, str) and _CHECKSUM.fullmatch(v) for v in checksums.values()):
        raise ValueError("crc32 must hold 8 hexadecimal digits for each tensor")
    if not isinstance(records, dict):
        raise ValueError("tensors must be an object")
    owners: dict[str, Entry] = {}
    for name, record in records.items():
        try:
            entry = _quantized(name, record)
            owners |= {entry.stored(part): entry for part in _found(entry, specs)}
        except ValueError as error:
            raise ValueError(f"tensor '{escape(name)}': {error}") from None
    entries: dict[str, Entry] = {}
    for name, spec in specs.items():
        entry = owners.get(name) or plain(name, spec.dtype, spec.shape)
        if entries.setdefault(entry.name, entry) is not entry:
            raise ValueError(f"tensor '{escape(entry.name)}' is stored both plain and quantized")
    return entries, checksums


def _quantized(name: str, record: object) -> Entry:
    """Read the record of one quantized tensor from a hostile file."""
    if not isinstance(record, dict) or record.keys() != {"scheme", "shape", "dtype"}:
        raise ValueError("must be an object of scheme, shape and dtype, nothing else")
    dtype = record["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown")
    spec = parse_spec(DTYPES[dtype], record["shape"])
    return quantized(name, Scheme.from_dict(record["scheme"]), spec.dtype, spec.shape)


def _found(entry: Entry, specs: Mapping[str, Spec]) -> Iterable[str]:
    """Return the names of the entry's parts, each found in the file as the scheme says."""
    for part, spec in entry.parts.items():
        found = specs.get(entry.stored(part))
        if found is None:
            raise ValueError(f"its part '{part}' is missing")
        if found != spec:
            raise ValueError(
                f"its part '{part}' is {found.dtype}{list(found.shape)}, "
                f"its scheme takes {spec.dtype}{list(spec.shape)}"
            )
    return entry.parts
