"""What the commands say: each report is plain data, printed as JSON or as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from quantarray.io.compare import Cost, decibels
from quantarray.io.convert import Conversion, Converted
from quantarray.io.dtypes import NUMPY_NAMES
from quantarray.io.escape import escape
from quantarray.io.layout import Entry
from quantarray.io.tensors import TensorFile
from quantarray.tables import table

Report = dict[str, Any]


def converted(conversion: Conversion) -> Report:
    """Report on a file that was quantized or dequantized."""
    items = conversion.tensors
    totals = {
        "tensors": len(items),
        "copied": sum(item.copied for item in items),
        "bytes_in": conversion.size_in,
        "bytes_out": conversion.size_out,
        "ratio": conversion.size_in / conversion.size_out,
        "bits_per_element": _bits(item.after for item in items),
        "sqnr_db": _sqnr(items),
    }
    return {"tensors": [_converted(item) for item in items], "totals": totals}


def converted_text(report: Report) -> str:
    """Lay out what `converted` reports."""
    rows = [
        [
            escape(tensor["name"]),
            _shape(tensor["shape"]),
            escape(tensor["scheme"] or "copied"),
            _number(tensor["bits_per_element"]),
            _number(tensor["sqnr_db"]),
        ]
        for tensor in report["tensors"]
    ]
    totals = report["totals"]
    lines = [
        table(rows, ["name", "shape", "scheme", "bits/element", "SQNR dB"]),
        "",
        f"{totals['tensors']} tensors, {totals['copied']} of them copied",
        f"{totals['bytes_in']:,} -> {totals['bytes_out']:,} bytes, ratio {totals['ratio']:.3f}",
        f"{_number(totals['bits_per_element'])} bits per element",
    ]
    if totals["sqnr_db"] is not None:
        lines.append(f"SQNR {_number(totals['sqnr_db'])} dB over the quantized elements")
    return "\n".join(lines)


def compared(costs: Iterable[Cost]) -> Report:
    """Report on what schemes cost on the tensors of a file."""
    return {
        "schemes": [
            {
                "scheme": cost.scheme,
                "tensors": cost.tensors,
                "bits_per_element": 8 * cost.nbytes / cost.elements if cost.elements else None,
                "sqnr_db": decibels(cost.signal, cost.noise) if cost.elements else None,
                "max_error": cost.max_error,
                "worst_tensor": cost.worst,
                "worst_sqnr_db": cost.worst_db,
            }
            for cost in costs
        ]
    }


def compared_text(report: Report) -> str:
    """Lay out what `compared` reports."""
    rows = [
        [
            item["scheme"],
            str(item["tensors"]),
            _number(item["bits_per_element"]),
            _number(item["sqnr_db"]),
            f"{item['max_error']:.4g}",
            escape(item["worst_tensor"]) or "-",
            _number(item["worst_sqnr_db"]),
        ]
        for item in report["schemes"]
    ]
    heads = ["scheme", "tensors", "bits/element", "SQNR dB", "max error", "worst tensor", "its dB"]
    return table(rows, heads)


def inspected(file: TensorFile) -> Report:
    """Report on what a file holds."""
    tensors = [
        {
            "name": entry.name,
            "dtype": _dtype(entry),
            "shape": entry.shape,
            "scheme": entry.scheme and str(entry.scheme),
            "bits_per_element": _bits([entry]),
            "bytes": entry.nbytes,
        }
        for entry in file.entries.values()
    ]
    return {"tensors": tensors, "metadata": {k: _shown(v) for k, v in file.metadata.items()}}


def inspected_text(report: Report) -> str:
    """Lay out what `inspected` reports."""
    rows = [
        [
            escape(tensor["name"]),
            tensor["dtype"],
            _shape(tensor["shape"]),
            escape(tensor["scheme"] or "-"),
            _number(tensor["bits_per_element"]),
            f"{tensor['bytes']:,}",
        ]
        for tensor in report["tensors"]
    ]
    text = table(rows, ["name", "dtype", "shape", "scheme", "bits/element", "bytes"])
    keys = ", ".join(escape(key) for key in report["metadata"])
    return f"{text}\n\nmetadata keys: {keys or 'none'}"


def _shown(value: Any) -> Any:
    """Give a value of metadata as JSON has it."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return [_shown(item) for item in value] if isinstance(value, list) else value


def as_json(report: Report) -> str:
    """Print a report as JSON; a figure that is no finite number becomes null."""
    return json.dumps(_finite(report), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _converted(item: Converted) -> Report:
    scheme = item.after.scheme or item.before.scheme
    return {
        "name": item.after.name,
        "dtype": _dtype(item.after),
        "shape": item.after.shape,
        "scheme": None if item.copied else str(scheme) if scheme else _dtype(item.after),
        "bits_per_element": _bits([item.after]),
        "sqnr_db": _sqnr([item]),
    }


def _dtype(entry: Entry) -> str:
    return NUMPY_NAMES.get(entry.dtype, entry.dtype)


def _bits(entries: Iterable[Entry]) -> float | None:
    """All stored bits over all elements; None where there are no elements."""
    sizes = [(entry.nbytes, math.prod(entry.shape)) for entry in entries]
    elements = sum(size for _, size in sizes)
    return 8 * sum(nbytes for nbytes, _ in sizes) / elements if elements else None


def _sqnr(items: Iterable[Converted]) -> float | None:
    """Signal over quantization noise in decibels; None where no element was quantized."""
    measured = [(item.signal, item.noise) for item in items if math.prod(item.after.shape)]
    powers = [(s, n) for s, n in measured if s is not None and n is not None]
    if not powers:
        return None
    signal, noise = map(sum, zip(*powers, strict=True))
    return decibels(signal, noise)


def _shape(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
