"""What a fresh process waits for: the import, and the first call, against the second.

    python benchmarks/first_call.py [--size 4096]

Compiled kernels are cached on disk; a process before the measured ones fills the cache.
"""

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

import machine

from quantarray.tables import table

PROCESSES = 5
SCHEMES = {"int8 per row": ("int8", {"channel_axis": 0}), "nf4": ("nf4", {})}
PROGRAM = """
import json, sys, time
import numpy as np
size, scheme, block = json.loads(sys.argv[1])
x = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
times = [time.perf_counter()]
import quantarray as qa
times.append(time.perf_counter())
qa.quantize(x, scheme, **block)
times.append(time.perf_counter())
qa.quantize(x, scheme, **block)
times.append(time.perf_counter())
print(json.dumps([b - a for a, b in zip(times, times[1:])]))
"""


def measure_all(size: int, only: str) -> list[dict[str, Any]]:
    """Give the median seconds of the import, the first and the second call."""
    figures = []
    for label, choice in SCHEMES.items():
        if only not in f"first call {label}":
            continue
        runs = [_fresh(json.dumps([size, *choice])) for _ in range(PROCESSES + 1)][1:]
        import_, first, second = map(statistics.median, zip(*runs, strict=True))
        figures.append({"format": label, "import": import_, "first": first, "second": second})
    return figures


def _fresh(what: str) -> list[float]:
    command = [sys.executable, "-c", PROGRAM, what]
    environment = machine.subprocess_environment()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def report(figures: list[dict[str, Any]], size: int) -> str:
    """Lay the figures out."""
    parts = ("import", "first", "second")
    rows = [[found["format"], *(f"{1e3 * found[part]:.1f}" for part in parts)] for found in figures]
    header = ["quantize", "import quantarray", "first call", "second call"]
    return f"ms in a fresh process, NumPy imported: float32 {size}x{size}\n" + table(rows, header)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the matrix")
    size = parser.parse_args().size
    print(report(measure_all(size, ""), size))


if __name__ == "__main__":
    main()
