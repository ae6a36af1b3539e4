"""Importance matrices of llama.cpp: how much each input of each weight matters.

``llama-imatrix`` writes a GGUF file. For the tensor ``w`` it holds ``w.in_sum2``, the sums of the
squared activations, float32 of shape ``(n,)`` or ``(experts, n)``, and ``w.counts``, how many there
were, float32 with one count an expert. The importances are, as in ``llama-quantize``::

    count = float32(round(counts))       # halves away from zero
    values = in_sum2 / count             # in float32
    values = 1 where count is 0          # an expert that no token came to

Source: `common_imatrix_load` in ``common/imatrix-loader.cpp`` and `load_imatrix` in
``tools/quantize/quantize.cpp`` of llama.cpp.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantarray.errors import QuantArrayError
from quantarray.io import files, gguf
from quantarray.io.escape import escape
from quantarray.io.gguf_types import MAGIC

TYPE = "general.type"  # metadata key
SUMS, COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: files.Path) -> dict[str, NDArray[np.float32]]:
    """Read an importance matrix in GGUF form.

    Parameters
    ----------
    path : str or os.PathLike
        The file that ``llama-imatrix`` wrote.

    Returns
    -------
    dict of str to numpy.ndarray
        For each tensor's name its importances, float32: of shape ``(n,)`` where the file holds one
        count, ``(experts, n)`` where it holds more. A stack of matrices that all tokens pass has
        one count, and its importances after one another in one axis. Tensors of other names are
        left out.

    Raises
    ------
    QuantArrayError
        The file breaks the format, is no importance matrix, or one of its numbers is negative, NaN
        or infinite.
    OSError
        The file cannot be opened.
    """
    file = files.open_mapped(path)
    if file.view[:4] != MAGIC:
        raise QuantArrayError(
            f"{escape(file.path, None)}: not a GGUF file (at byte 0); "
            "an older importance matrix becomes one by llama-imatrix --in-file OLD -o NEW.gguf"
        )
    container = gguf.parse(file)
    if TYPE not in container.metadata:
        raise QuantArrayError(
            f"{escape(file.path, None)}: it has no metadata '{TYPE}', an importance matrix has"
        )
    kind = container.metadata[TYPE]
    if not isinstance(kind, str) or kind != "imatrix":
        raise container.metadata_error(TYPE, f"must be 'imatrix', got {kind!r}")
    found = {}
    for name in container.specs:
        stem, suffix = _split(name)
        if not suffix:
            continue
        other = stem + (COUNTS if suffix == SUMS else SUMS)
        if other not in container.specs:
            raise container.error(name, f"there is no '{escape(other)}' beside it")
        if suffix == SUMS:
            found[stem] = _importances(container, name, other)
            container.release(name)
    if not found:
        raise QuantArrayError(f"{escape(file.path, None)}: it holds no importances")
    return found


def _split(name: str) -> tuple[str, str]:
    """Return a tensor's name without its suffix, and that suffix, empty if there is none."""
    for suffix in (SUMS, COUNTS):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def _importances(container: gguf.Container, sums: str, counts: str) -> NDArray[np.float32]:
    total, rows = _checked(container, sums), _checked(container, counts).reshape(-1, 1)
    experts = math.prod(total.shape[:-1])
    if experts != len(rows):
        message = f"shape {list(total.shape)} has {experts} rows, '{escape(counts)}' {len(rows)}"
        raise container.error(sums, message)
    count = np.floor(rows.astype(np.float64) + 0.5).astype(np.float32)
    values = np.ones((experts, total.shape[-1]), np.float32)
    np.divide(total.reshape(values.shape), count, out=values, where=count > 0)
    return values[0] if experts == 1 else values


def _checked(container: gguf.Container, name: str) -> NDArray[Any]:
    """Return the numbers of a tensor that can be sums of squares, or counts."""
    spec = container.specs[name]
    if spec.dtype != "F32":
        raise container.error(name, f"must be of type F32, got {spec.dtype}")
    values = container.array(name)
    if not values.size or not values.ndim:
        raise container.error(name, f"shape {list(spec.shape)} holds no row of numbers")
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        index = int(wrong.argmax())
        message = f"number {index} is {values.flat[index]}, must be finite and not negative"
        raise container.error(name, message)
    return values
