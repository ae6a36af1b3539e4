"""What becomes of each tensor of a file that is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantarray import overrides
from quantarray.errors import QuantArrayError, short
from quantarray.formats import DTYPES as FLOATS
from quantarray.io import llama
from quantarray.io.dtypes import NUMPY_NAMES, numpy_dtype
from quantarray.io.layout import Entry
from quantarray.scheme import Scheme

# What a tensor is stored as: quantized by a scheme, or cast to a dtype, by the container's name.
Target = Scheme | str
_CAST = {"gguf:f32": "F32", "gguf:f16": "F16", "gguf:bf16": "BF16"}


def target(name: str, **sizes: int) -> Target:
    """Give what a tensor is stored as, by the name of a scheme, or of a dtype of GGUF."""
    return _CAST[name] if name in _CAST and not sizes else overrides.scheme(name, **sizes)


@dataclass(frozen=True)
class Plan:
    """Which tensors are quantized, and how.

    Those are the floating tensors of two axes or more, in a GGUF file without those that
    llama.cpp leaves alone, whose names match a glob of `include`, if there is any, and none of
    `exclude`. A glob of `schemes` that matches comes before all else.
    """

    target: Target
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    schemes: tuple[tuple[str, Target], ...] = ()
    # By tensor: what the error of each element of a row counts; a row each for stacked matrices.
    importance: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def chosen(self, entry: Entry, *, to_gguf: bool, architecture: object = None) -> Target | None:
        """Give what a tensor, of a model of an architecture, is to be stored as; None: as it is.

        Raises
        ------
        QuantArrayError
            It is quantized already, in another way, and would be quantized again.
        """
        if NUMPY_NAMES.get(entry.dtype) not in FLOATS:
            return None
        mapped = next((to for glob, to in self.schemes if fnmatchcase(entry.name, glob)), None)
        found = mapped or (self.target if self._takes(entry, to_gguf, architecture) else None)
        if found is None or not to_gguf:
            return None if entry.scheme is not None else found
        name = llama.fitting(type_name(found), entry.shape)
        if entry.scheme is not None:
            held = entry.scheme.record
            if held is None or held.name != name:
                raise QuantArrayError(
                    f"it is quantized already, as {entry.scheme.name}: "
                    "dequantize the file first, or exclude the tensor"
                )
            return None
        return target(f"gguf:{name.lower()}")

    def _takes(self, entry: Entry, to_gguf: bool, architecture: object) -> bool:
        kept = len(entry.shape) < 2
        if to_gguf:
            kept = llama.is_kept(entry.name, entry.shape, architecture)
        wanted = not self.include or any(fnmatchcase(entry.name, g) for g in self.include)
        return not kept and wanted and not any(fnmatchcase(entry.name, g) for g in self.exclude)

    def weights(self, name: str, shape: tuple[int, ...]) -> NDArray[Any] | None:
        """Give the importances of a tensor in a shape that broadcasts to its own.

        Raises
        ------
        QuantArrayError
            Their number is not that of its rows' elements.
        """
        found = self.importance.get(name)
        if found is None:
            return None
        if found.size == shape[-1]:
            return found.reshape(shape[-1])
        if len(shape) > 2 and found.size == shape[-1] * int(np.prod(shape[:-2])):
            return found.reshape(*shape[:-2], 1, shape[-1])
        if name in llama.EMBEDDINGS:  # which llama.cpp forgives, too
            return None
        raise QuantArrayError(
            f"its shape is {shape}, and it has {found.size} importances: expected {shape[-1]}"
        )


def type_name(to: Target) -> str:
    """Name the ggml type that a tensor is to be stored as."""
    if isinstance(to, str):
        return to
    if to.record is None:
        raise QuantArrayError(
            f"a GGUF file holds ggml's types, not {short(to.name)}: expected a scheme gguf:..., "
            "such as gguf:q4_k"
        )
    return to.record.name


def cast(x: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Round an array to a dtype of the container's name.

    Raises
    ------
    QuantArrayError
        A finite element is more than the dtype holds.
    """
    with np.errstate(over="ignore"):
        found = x.astype(numpy_dtype(dtype))
    if not np.array_equal(np.isfinite(found), np.isfinite(x)):
        raise QuantArrayError(f"it has elements that {NUMPY_NAMES[dtype]} does not hold")
    return found
