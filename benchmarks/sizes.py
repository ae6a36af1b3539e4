"""Time against the size of an array: that it grows with it, and what a call costs at the small end.

    python benchmarks/sizes.py [--largest 1e9] [--repeat 9] [--plot FILE.svg] [--json FILE]
    python benchmarks/sizes.py --read FILE --plot FILE.svg

Float32 matrices of 1024 columns, from one row on. All rows of a size are measured in turn, as in
run.py. Sizes stop where the memory of this machine does; peers stop at 1e8.
"""

import argparse
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cases
import machine
import numpy as np
import peers
import sizes_plot
from timing import Row, interleave, timer

import quantarray as qa
from quantarray.tables import table

COLUMNS = 1024
SMALLEST = 1 << 10
STEP = 4
# The matrix, what np.copyto writes, codes, a decoded result, and as much for the libraries.
BYTES_PER_ELEMENT = 16
PEERS_LARGEST = 10**8
PEERS = (("int8 per row", "jax.jit formula"), ("nf4", "bitsandbytes"))
SCHEMES = ("int8 per row", "int4 g128", "nf4")
BUDGET = 10.0


def matrix(size: int) -> Any:
    """Give a Gaussian matrix; it repeats itself beyond a million elements."""
    part = min(size, 1 << 20)
    values = np.random.default_rng(0).standard_normal(part, dtype=np.float32)
    x = np.empty((size // part, part), np.float32)
    x[:] = values
    return x.reshape(-1, COLUMNS)


def rows(x: Any) -> Iterator[Row]:
    """Give what is measured on a matrix."""
    copy = np.empty_like(x)
    np.copyto(copy, x)  # the pages of the result are there, as in run.py
    yield Row("np.copyto", "base", timer(lambda: np.copyto(copy, x)))
    for label in SCHEMES:
        yield Row(f"quantize {label}", "ours", timer(_quantize(x, label)))
    q = _quantize(x, "int8 per row")()
    yield Row("dequantize int8 per row", "ours", timer(lambda: qa.dequantize(q)))
    if x.size > PEERS_LARGEST:
        return
    for label, who in PEERS:
        peer = next(peer for peer in peers.PEERS[label] if peer.who == who)
        if cases.installed(peer.package):
            yield Row(f"{who}, {label}", "peer", timer(peer.make(x)["quantize"]))


def _quantize(x: Any, label: str) -> Callable[[], qa.QuantizedArray]:
    scheme, block = cases.FORMATS[label]
    return lambda: qa.quantize(x, scheme, **block)


def available() -> int:
    """Give the bytes of memory that are free, or that there are."""
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":") for line in info.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def measure_size(size: int, repeat: int) -> dict[str, float]:
    """Give the median seconds of each name."""
    found = list(rows(matrix(size)))
    interleave(found, repeat, BUDGET)
    for row in found:
        if row.error:
            print(f"{size:,} {row.who}: {row.error}")
    return {row.who: row.seconds for row in found if row.seconds is not None}


def measure(largest: float, repeat: int) -> dict[str, list[tuple[int, float]]]:
    """Give, for each name, sizes and median seconds."""
    times: dict[str, list[tuple[int, float]]] = {}
    size, limit = SMALLEST, min(1.1 * largest, available() / BYTES_PER_ELEMENT)
    while size <= limit:
        for who, seconds in measure_size(size, repeat).items():
            times.setdefault(who, []).append((size, seconds))
        print(f"{size:,} elements", flush=True)
        size *= STEP
    return times


def report(times: dict[str, list[tuple[int, float]]]) -> str:
    """Lay out the milliseconds, a column for each name."""
    sizes = [size for size, _ in times["np.copyto"]]
    by_name = {name: dict(pairs) for name, pairs in times.items()}
    lines = []
    for size in sizes:
        cells = [by_name[name].get(size) for name in times]
        lines.append([f"{size:,}", *("-" if s is None else f"{1e3 * s:.3f}" for s in cells)])
    return table(lines, ["elements", *times])


def main() -> None:
    """Measure or read, print, and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=float, default=1e9, help="elements")
    parser.add_argument("--repeat", type=int, default=9, help="interleaved runs")
    parser.add_argument("--threads", type=int, help="cores for all; each library's own by default")
    parser.add_argument("--plot", type=Path, help="draw the figures here: .svg or .png")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--read", type=Path, help="take the figures from here: measure nothing")
    arguments = parser.parse_args()
    if arguments.threads:
        machine.limit_threads(arguments.threads)
    warnings.simplefilter("ignore")  # peers use what their dependencies deprecate
    if arguments.read:
        times = json.loads(arguments.read.read_text())["seconds"]
    else:
        times = measure(arguments.largest, arguments.repeat)
    print(report(times))
    if arguments.json:
        content = machine.describe() | {"threads": arguments.threads, "seconds": times}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.plot:
        sizes_plot.draw(times, arguments.plot)


if __name__ == "__main__":
    main()
