"""Whole files quantized and dequantized, one tensor in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantarray import gguf
from quantarray.array import QuantizedArray
from quantarray.errors import QuantArrayError
from quantarray.io import gguf_layout, llama, tensors
from quantarray.io.escape import escape
from quantarray.io.files import Path
from quantarray.io.gguf import Container
from quantarray.io.layout import Entry, Stored
from quantarray.io.measure import powers
from quantarray.io.plan import Plan, Target, cast, type_name
from quantarray.io.tensors import TensorFile
from quantarray.quantize import quantize
from quantarray.scheme import Scheme

Progress = Callable[[int, int], None]


def _silent(read: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Converted:
    """One tensor as it was and as written, and what that cost: sums of squares in float64.

    `signal` is the sum of x squared and `noise` of the error squared; None where nothing was
    quantized.
    """

    before: Entry
    after: Entry
    signal: float | None = None
    noise: float | None = None

    @property
    def copied(self) -> bool:
        """Whether what is stored is what was."""
        return _same(self.before, self.after)


@dataclass(frozen=True)
class Conversion:
    """What became of a file: its tensors in order, and the sizes of both files in bytes."""

    size_in: int
    size_out: int
    tensors: list[Converted] = field(default_factory=list)


def quantize_file(
    source: Path,
    target: Path,
    plan: Plan | Scheme,
    progress: Progress = _silent,
) -> Conversion:
    """Quantize tensors of a file; copy all others bit for bit.

    Parameters
    ----------
    source, target : str or os.PathLike
        Safetensors or GGUF files; they may be the same one. `target` is GGUF if its name ends in
        ".gguf", and appears whole or not at all.
    plan : Plan or Scheme
        Which tensors to quantize, and how; a scheme is for all that `Plan` takes by default.
    progress : Callable
        Called after each tensor with the bytes of input that are done and those there are.

    Returns
    -------
    Conversion
        Every tensor's stored form and error.

    Raises
    ------
    QuantArrayError
        `source` breaks its format or a checksum, or a tensor cannot be quantized so.
    OSError
        As the operating system says.
    """
    plan = Plan(plan) if isinstance(plan, Scheme) else plan
    file, how = tensors.load(source), tensors.layout_of(target)
    to_gguf, metadata = how is gguf_layout, _metadata(file, how)
    architecture = metadata.get(llama.ARCHITECTURE)
    entries = []
    for entry in file.entries.values():
        with naming(entry.name):
            to = plan.chosen(entry, to_gguf=to_gguf, architecture=architecture)
            entries.append(planned(entry, to, how))
    converted = []

    def produce(entry: Entry) -> Mapping[str, Stored]:
        before = file.entries[entry.name]
        if _same(before, entry):
            converted.append(Converted(before, entry))
            return file.raw(before)
        x = file[entry.name]
        assert isinstance(x, np.ndarray)
        with naming(entry.name):
            if entry.scheme is None:
                converted.append(Converted(before, entry))
                return {"": cast(x, entry.dtype)}
            q = quantized(x, entry, plan)
        converted.append(Converted(before, entry, *powers(x, q)))
        return q.parts()

    if to_gguf and file.container.specs and architecture is not None:
        metadata = llama.described(metadata, type_name(plan.target))
    _convert(file, target, entries, produce, metadata, progress)
    return Conversion(file.container.file.size, os.path.getsize(target), converted)


def dequantize_file(source: Path, target: Path, progress: Progress = _silent) -> Conversion:
    """Turn the quantized tensors of a file back into plain ones of their original dtypes.

    Parameters, results and errors are those of `quantize_file`. Tensors of GGUF become float32.
    """
    file, how = tensors.load(source), tensors.layout_of(target)
    entries = []
    for entry in file.entries.values():
        with naming(entry.name):
            entries.append(how.plain(entry.name, entry.dtype, entry.shape))
    converted = []

    def produce(entry: Entry) -> Mapping[str, Stored]:
        before = file.entries[entry.name]
        converted.append(Converted(before, entry))
        if _same(before, entry):
            return file.raw(before)
        q = file[entry.name]
        assert isinstance(q, QuantizedArray)
        with naming(entry.name):
            return {"": q.dequantize()}

    metadata = _metadata(file, how)
    if how is gguf_layout and "general.file_type" in metadata:
        metadata = llama.described(metadata, "F32")
    _convert(file, target, entries, produce, metadata, progress)
    return Conversion(file.container.file.size, os.path.getsize(target), converted)


def _same(before: Entry, after: Entry) -> bool:
    return (before.scheme, before.dtype) == (after.scheme, after.dtype)


def planned(entry: Entry, to: Target | None, how: ModuleType) -> Entry:
    """Describe a tensor as it is to be stored."""
    name, dtype, shape = entry.name, entry.dtype, entry.shape
    if isinstance(to, str):
        found: Entry = how.plain(name, to, shape)
    elif to is not None or entry.scheme is not None:
        found = how.quantized(name, to or entry.scheme, dtype, shape)
    else:
        found = how.plain(name, dtype, shape)
    return found


def quantized(x: NDArray[Any], entry: Entry, plan: Plan) -> QuantizedArray:
    """Quantize a tensor as an entry of a plan says."""
    assert entry.scheme is not None
    record, weights = entry.scheme.record, plan.weights(entry.name, entry.shape)
    if record is None or weights is None:
        return quantize(x, entry.scheme)
    data = gguf.encode(x, record.name, weights)
    return QuantizedArray.from_parts({"data": data}, entry.scheme, entry.shape, x.dtype.name)


def _metadata(file: TensorFile, how: ModuleType) -> Mapping[str, Any]:
    """Give a file's metadata in the form that another holds."""
    from_gguf = isinstance(file.container, Container)
    if from_gguf == (how is gguf_layout):
        return file.metadata
    if from_gguf:
        return gguf_layout.to_text(file.metadata)
    try:
        return gguf_layout.from_text(file.metadata)
    except ValueError as error:
        raise file.container.metadata_error(gguf_layout.KEY, str(error)) from None


def _convert(
    file: TensorFile,
    target: Path,
    entries: list[Entry],
    produce: Callable[[Entry], Mapping[str, Stored]],
    metadata: Mapping[str, Any],
    progress: Progress,
) -> None:
    total = sum(entry.nbytes for entry in file.entries.values())
    read = 0

    def release(entry: Entry) -> None:
        nonlocal read
        original = file.entries[entry.name]
        file.release(original)
        read += original.nbytes
        progress(read, total)

    tensors.write(target, entries, produce, metadata, release)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say which tensor an error is about."""
    try:
        yield
    except QuantArrayError as error:
        raise QuantArrayError(f"tensor '{escape(name)}': {error}") from None
