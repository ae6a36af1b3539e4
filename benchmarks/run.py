"""Time quantarray against what bounds it, side by side in one process.

    python benchmarks/run.py [--size 4096] [--repeat 15] [--json FILE]

Two tables. The first times whole-array operations against `np.copyto` of the same float32 matrix;
the second times the call on a 100x100 matrix against the NumPy lines of the notebook that
quantarray grew from. Every row of a table is measured in turn, again and again, and the medians are
compared, so that a slow moment of the machine meets all of them.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import quantarray as qa
from quantarray.tables import table

Timed = dict[str, Callable[[], Any]]


def medians(timed: Timed, repeat: int, inner: int = 1) -> dict[str, float]:
    """Give the median seconds of each function over interleaved runs."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for run in range(repeat + 1):  # the first warms up
        for name, function in timed.items():
            start = time.perf_counter()
            for _ in range(inner):
                function()
            if run:
                seconds[name].append((time.perf_counter() - start) / inner)
    return {name: statistics.median(all_runs) for name, all_runs in seconds.items()}


def whole_arrays(size: int) -> Timed:
    """Quantize and decode a float32 matrix; the first row is what bounds the others."""
    x = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    copy = np.empty_like(x)
    timed: Timed = {"np.copyto": lambda: np.copyto(copy, x), "x.copy()": x.copy}
    cases: dict[str, tuple[str, dict[str, int]]] = {
        "int8 per row": ("int8", {"channel_axis": 0}),
        "int8 per tensor": ("int8", {}),
        "int4 g128, packed": ("int4", {"group_size": 128}),
        "uint4 g128, packed": ("uint4", {"group_size": 128}),
    }
    for label, (scheme, block) in cases.items():
        q = qa.quantize(x, scheme, **block)  # type: ignore[arg-type]
        timed[f"quantize {label}"] = lambda s=scheme, b=block: qa.quantize(x, s, **b)
        timed[f"dequantize {label}"] = q.dequantize
    return timed


def small_arrays() -> Timed:
    """Quantize a 100x100 matrix; the first row is the notebook's own code."""
    matrix = np.random.default_rng(0).uniform(-1, 1, (100, 100))

    def notebook() -> tuple[Any, Any]:
        scale = np.max(np.abs(matrix)) / 127
        return np.clip(np.round(matrix / scale), -127, 127).astype(np.int8), scale

    q = qa.quantize(matrix, "int8")
    return {
        "the notebook's lines": notebook,
        "quantize int8": lambda: qa.quantize(matrix, "int8"),
        "quantize int4 g32": lambda: qa.quantize(matrix, "int4", group_size=32),
        "dequantize int8": q.dequantize,
    }


def report(title: str, seconds: dict[str, float], unit: float) -> str:
    """Lay out times, and their ratios to the first row."""
    base = next(iter(seconds.values()))
    rows = [[name, f"{s / unit:.2f}", f"{s / base:.2f}"] for name, s in seconds.items()]
    return table(rows, [title, "ms" if unit == 1e-3 else "us", "ratio"])


def main() -> None:
    """Run the benchmarks and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the matrix")
    parser.add_argument("--repeat", type=int, default=15, help="interleaved runs")
    parser.add_argument("--json", type=Path, help="write the medians here too")
    arguments = parser.parse_args()
    large = medians(whole_arrays(arguments.size), arguments.repeat)
    small = medians(small_arrays(), 10 * arguments.repeat, inner=20)
    print(report(f"float32 {arguments.size}x{arguments.size}", large, 1e-3))
    print()
    print(report("float64 100x100", small, 1e-6))
    if arguments.json:
        machine = {"machine": platform.processor() or platform.machine(), "numpy": np.__version__}
        seconds = {"large": large, "small": small}
        arguments.json.write_text(json.dumps(machine | {"seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
