"""GGUF files of arrays and quantized arrays: how both are described in one."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from quantarray import overrides
from quantarray.errors import QuantArrayError
from quantarray.io import files, gguf
from quantarray.io.gguf_types import parse_spec
from quantarray.io.gguf_values import Cursor, encoded, text
from quantarray.io.layout import Entry, Stored
from quantarray.scheme import Scheme

# The key under which a safetensors file holds the metadata of GGUF, with their types.
KEY = "gguf"


def entries(container: gguf.Container) -> dict[str, Entry]:
    """Describe the tensors of a file as its user sees them."""
    found = {}
    for name, spec in container.specs.items():
        if spec.record is None:
            found[name] = Entry(name, spec.dtype, spec.shape, None, {"": spec})
        else:
            scheme = overrides.scheme(f"gguf:{spec.dtype.lower()}")
            found[name] = Entry(name, "F32", spec.shape, scheme, {"data": spec}, alone=True)
    return found


def plain(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    """Describe a tensor stored as it is.

    Raises
    ------
    QuantArrayError
        GGUF has no such type, or no tensors of such a shape.
    """
    return Entry(name, dtype, shape, None, {"": _spec(dtype, shape)})


def quantized(name: str, scheme: Scheme, dtype: str, shape: tuple[int, ...]) -> Entry:
    """Describe a quantized tensor; the container forgets its original dtype.

    Raises
    ------
    QuantArrayError
        The scheme is none of ggml's types, or does not fit the shape.
    """
    if scheme.record is None:
        raise QuantArrayError(
            f"a GGUF file holds ggml's types, not {scheme.name}: "
            "expected a scheme gguf:..., such as gguf:q4_k"
        )
    spec = _spec(scheme.record.name, shape)
    return Entry(name, dtype, shape, scheme, {"data": spec}, alone=True)


def _spec(dtype: str, shape: tuple[int, ...]) -> gguf.Spec:
    try:
        return parse_spec(dtype, shape)
    except ValueError as error:
        raise QuantArrayError(f"{error}, in a GGUF file") from None


def write(
    path: files.Path,
    planned: Sequence[Entry],
    produce: Callable[[Entry], Mapping[str, Stored]],
    metadata: Mapping[str, Any],
    done: Callable[[Entry], None],
) -> None:
    """Write a file whose tensors are made one at a time; see `tensors.write`."""
    specs = {}
    for entry in planned:
        (spec,) = entry.parts.values()
        assert isinstance(spec, gguf.Spec)
        specs[entry.name] = spec
    if len(specs) < len(planned):
        raise QuantArrayError("two tensors have one name")

    def stored() -> Iterator[tuple[str, Stored]]:
        for entry in planned:
            yield entry.name, next(iter(produce(entry).values()))  # no name holds it then
            done(entry)

    gguf.write(path, metadata, specs, stored())


def to_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Give metadata of GGUF as one entry of text, from which `from_text` gives it back."""
    if not metadata:
        return {}
    pieces = b"".join(text(key) + encoded(value) for key, value in metadata.items())
    return {KEY: base64.b64encode(pieces).decode()}


def from_text(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Give text metadata as GGUF holds it: what `to_text` gave, and the rest as strings.

    Raises
    ------
    ValueError
        The entry of `to_text` is not what it gives.
    """
    found: dict[str, Any] = {}
    cursor = Cursor(memoryview(base64.b64decode(metadata.get(KEY, ""), validate=True)))
    while cursor.at < len(cursor.view):
        key = cursor.name()
        found[key] = cursor.value()
    return {**{key: value for key, value in metadata.items() if key != KEY}, **found}
