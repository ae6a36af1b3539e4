"""The streaming writer of GGUF files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantarray.errors import QuantArrayError
from quantarray.io import files
from quantarray.io.dtypes import DTYPES
from quantarray.io.escape import escape
from quantarray.io.gguf_types import (
    ALIGNMENT,
    COUNTS,
    KEYS_CAP,
    MAGIC,
    NDIM,
    REST,
    START,
    TENSORS_CAP,
    TYPES,
    VERSION,
    Spec,
    alignment_of,
    parse_spec,
)
from quantarray.io.gguf_values import HEADER_CAP, NAME_CAP, encoded, text


def write(
    path: files.Path,
    metadata: Mapping[str, Any],
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, NDArray[Any] | memoryview | bytes]],
) -> None:
    """Write a GGUF file of version 3, taking its tensors one at a time.

    Parameters
    ----------
    path : str or os.PathLike
        The file, replaced whole when all is written.
    metadata : Mapping
        Keys and values, in order, of the types that `gguf_values` tells of. The key
        ``general.alignment``, of type `numpy.uint32`, sets the alignment.
    specs : Mapping
        Every tensor's type and shape, in the order in which the file holds them.
    tensors : Iterable
        Pairs of name and data, each name once; those in the order of `specs` are written from
        the file's start to its end. For a plain type an array of its dtype and shape, of any
        memory layout; for a block type a uint8 array of shape ``spec.stored``; for either the
        very bytes.

    Raises
    ------
    QuantArrayError
        A key, value or spec cannot be stored, or a tensor is missing, unknown, given twice, or
        differs from its spec.
    OSError
        As the operating system says; the target is then untouched.
    """
    try:
        alignment = alignment_of(metadata)
    except ValueError as error:
        raise QuantArrayError(f"metadata '{ALIGNMENT}': {error}") from None
    header, offsets = _header(metadata, specs, alignment)
    missing = dict.fromkeys(specs)
    with files.atomic_writer(path) as output:
        output.write_at(0, header)
        for name, value in tensors:
            if name not in missing:
                raise QuantArrayError(f"tensor '{escape(name)}' is not in the plan, or came twice")
            del missing[name]
            data = _stored(name, specs[name], value)
            start = len(header) + offsets[name]
            output.write_at(start, data)
            output.write_at(start + len(data), bytes(-len(data) % alignment))
            del value, data  # before the next one is made
        if missing:
            raise QuantArrayError(f"tensor '{escape(next(iter(missing)))}' was not given")


def _header(
    metadata: Mapping[str, Any], specs: Mapping[str, Spec], alignment: int
) -> tuple[bytes, dict[str, int]]:
    """Return the padded header, and where each tensor lies after it."""
    for what, given, cap in (("tensors", specs, TENSORS_CAP), ("keys", metadata, KEYS_CAP)):
        if len(given) > cap:
            raise QuantArrayError(f"{len(given)} {what} are above the limit of {cap}")
    pieces = [START.pack(MAGIC, VERSION), COUNTS.pack(len(specs), len(metadata))]
    for key, value in metadata.items():
        try:
            pieces += [_name(key), encoded(value)]
            if not key:
                raise ValueError("it is empty")
        except ValueError as error:
            raise QuantArrayError(f"metadata '{escape(str(key))}': {error}") from None
    offsets, end = {}, 0
    for name, spec in specs.items():
        try:
            pieces.append(_name(name))
            spec = parse_spec(spec.dtype, spec.shape)  # noqa: PLW2901
        except ValueError as error:
            raise QuantArrayError(f"tensor '{escape(str(name))}': {error}") from None
        ndim = len(spec.shape)
        rest = REST[ndim].pack(*spec.shape[::-1], TYPES[spec.dtype][0], end)
        pieces += [NDIM.pack(ndim), rest]
        offsets[name] = end
        end += spec.nbytes
        end += -end % alignment
    header = b"".join(pieces)
    if len(header) > HEADER_CAP:
        raise QuantArrayError(f"the header takes {len(header)} bytes, the limit is {HEADER_CAP}")
    return header + bytes(-len(header) % alignment), offsets


def _name(name: object) -> bytes:
    if not isinstance(name, str):
        raise ValueError(f"must be str, got {type(name).__name__}")
    if "\0" in name:
        raise ValueError("it holds a null character")
    raw = text(name, "strict")
    if len(raw) > 8 + NAME_CAP:
        raise ValueError(f"its length {len(raw) - 8} is above the limit of {NAME_CAP}")
    return raw


def _stored(name: str, spec: Spec, value: NDArray[Any] | memoryview | bytes) -> memoryview:
    """Return the bytes of a tensor as the file holds them, checked against the plan."""
    if isinstance(value, memoryview | bytes):
        view = memoryview(value)
        data = view.cast("B") if view.nbytes else memoryview(b"")
        if data.nbytes != spec.nbytes:
            raise QuantArrayError(
                f"tensor '{escape(name)}' has {data.nbytes} bytes, planned {spec.nbytes}"
            )
        return data
    dtype = "U8" if spec.record else spec.dtype
    if value.shape != spec.stored or DTYPES.get(value.dtype.name) != dtype:
        raise QuantArrayError(
            f"tensor '{escape(name)}' is {value.dtype}{list(value.shape)}, "
            f"planned {dtype}{list(spec.stored)}"
        )
    little = np.asarray(value, dtype=value.dtype.newbyteorder("<"), order="C")
    return little.reshape(-1).view(np.uint8).data
