"""Whole files quantized and dequantized, one tensor in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantarray.array import QuantizedArray
from quantarray.errors import QuantArrayError
from quantarray.formats import DTYPES as FLOATS
from quantarray.io import layout, tensors
from quantarray.io.dtypes import NUMPY_NAMES, Spec
from quantarray.io.escape import escape
from quantarray.io.files import Path
from quantarray.io.layout import Entry
from quantarray.io.tensors import Stored, TensorFile
from quantarray.parts import packed_axes
from quantarray.quantize import quantize
from quantarray.scheme import Scheme

_PIECE = 1 << 20  # elements whose error is measured at a time, in float64

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


@dataclass(frozen=True)
class Conversion:
    """What became of a file: its tensors in order, and the sizes of both files in bytes."""

    size_in: int
    size_out: int
    tensors: list[Converted] = field(default_factory=list)


def quantize_file(
    source: Path,
    target: Path,
    scheme: Scheme,
    progress: Progress = _silent,
) -> Conversion:
    """Quantize the floating tensors of two axes or more in a file; copy all others bit for bit.

    Parameters
    ----------
    source, target : str or os.PathLike
        Safetensors files; they may be the same one. `target` appears whole or not at all.
    scheme : Scheme
        How to quantize.
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
    file = tensors.load(source)
    entries = [_planned(entry, scheme) for entry in file.entries.values()]
    converted = []

    def produce(entry: Entry) -> Mapping[str, Stored]:
        before = file.entries[entry.name]
        if entry is before:
            converted.append(Converted(before, before))
            return file.raw(before)
        x = file[entry.name]
        assert isinstance(x, np.ndarray)
        with _naming(entry.name):
            q = quantize(x, scheme)
        converted.append(Converted(before, entry, *_powers(x, q)))
        return q.parts()

    _convert(file, target, entries, produce, progress)
    return Conversion(file.container.file.size, os.path.getsize(target), converted)


def dequantize_file(source: Path, target: Path, progress: Progress = _silent) -> Conversion:
    """Turn the quantized tensors of a file back into plain ones of their original dtypes.

    Parameters, results and errors are those of `quantize_file`.
    """
    file = tensors.load(source)
    entries = [_restored(entry) for entry in file.entries.values()]
    converted = []

    def produce(entry: Entry) -> Mapping[str, Stored]:
        before = file.entries[entry.name]
        converted.append(Converted(before, entry))
        if entry is before:
            return file.raw(before)
        q = file[entry.name]
        assert isinstance(q, QuantizedArray)
        with _naming(entry.name):
            return {"": q.dequantize()}

    _convert(file, target, entries, produce, progress)
    return Conversion(file.container.file.size, os.path.getsize(target), converted)


def _restored(entry: Entry) -> Entry:
    if entry.scheme is None:
        return entry
    return layout.plain(entry.name, Spec(entry.dtype, entry.shape))


def _planned(entry: Entry, scheme: Scheme) -> Entry:
    floating = NUMPY_NAMES.get(entry.dtype) in FLOATS
    if entry.scheme is not None or not floating or len(entry.shape) < 2:
        return entry
    with _naming(entry.name):
        return layout.quantized(entry.name, scheme, entry.dtype, entry.shape)


def _convert(
    file: TensorFile,
    target: Path,
    entries: list[Entry],
    produce: Callable[[Entry], Mapping[str, Stored]],
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

    tensors.write(target, entries, produce, file.metadata, release)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say which tensor an error is about."""
    try:
        yield
    except QuantArrayError as error:
        raise QuantArrayError(f"tensor '{escape(name)}': {error}") from None


def _powers(x: NDArray[Any], q: QuantizedArray) -> tuple[float, float]:
    """Sum the squares of an array and of its error in float64, a few rows at a time."""
    signal = noise = 0.0
    rows = max(1, _PIECE * len(x) // max(x.size, 1))
    extent = q.blocks.extents[0]
    # Rows of some layouts, and of blocks that do not follow them, are not to be had one by one.
    apart = q.scheme.block.flat is None and packed_axes(q.scheme) < q.ndim
    whole = None if apart and extent in (1, len(x)) else q.dequantize()
    for start in range(0, len(x), rows):
        some = slice(start, start + rows)
        piece = x[some].astype(np.float64)
        decoded = q[some].dequantize() if whole is None else whole[some]
        error = piece - decoded.astype(np.float64)
        signal += float(np.vdot(piece, piece))
        noise += float(np.vdot(error, error))
    return signal, noise
