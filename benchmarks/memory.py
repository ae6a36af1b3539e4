"""Peak memory of an operation on a float32 matrix, each in a fresh process.

    python benchmarks/memory.py [--size 4096] [--only SUBSTRING] [--json FILE]

The highest resident memory during the call, less that before it, and less the result. Imports and
kernels are warmed up on a small array first. Linux only: elsewhere a process cannot set its peak
back.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cases
import machine
import numpy as np

import quantarray as qa
from quantarray.tables import table

MB = 1 << 20
SMALL = 256
# What a call may take beyond its result.
CLAIM = 16
LIBRARIES = ("NumPy", "torch", "JAX", "jax.jit")
STATUS = Path("/proc/self/status")


def operations() -> Iterator[tuple[str, str, str]]:
    """Give library, operation and format of all that is measured."""
    for library in LIBRARIES:
        if library != "NumPy" and not cases.installed(library.split(".")[0].lower()):
            continue
        for operation in cases.OPERATIONS:
            if operation == "dequantize out=" and library not in ("NumPy", "torch"):
                continue
            for label in cases.FORMATS:
                yield library, operation, label


def status(field: str) -> int:
    """Read a line of /proc/self/status, in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def prepare(library: str, operation: str, label: str, x: Any) -> tuple[Callable[[], Any], int]:
    """Give the call on an array, and the bytes of its result."""
    scheme, block = cases.FORMATS[label]
    wait: Callable[[Any], Any] = _same
    forth: Callable[[Any], Any] = partial(qa.quantize, scheme=scheme, **block)
    back: Callable[[Any], Any] = qa.dequantize
    if library == "torch":
        import torch

        x = torch.from_numpy(x)
    elif library != "NumPy":
        import jax

        x, wait = jax.numpy.asarray(x), jax.block_until_ready
        if library == "jax.jit":
            # Compiled for this shape outside the call: compiling takes memory too.
            forth = jax.jit(forth).lower(x).compile()
    if operation == "quantize":
        size = _stored_bytes(x, scheme, block)
        return lambda: wait(forth(x)), size
    q = wait(forth(x))
    if operation == "dequantize out=":
        out = np.ones_like(x) if library == "NumPy" else torch.ones_like(x)
        return lambda: qa.dequantize(q, out=out), 0
    if library == "jax.jit":
        back = jax.jit(back).lower(q).compile()
    return lambda: wait(back(q)), 4 * q.size


def _same(result: Any) -> Any:
    return result


def _stored_bytes(x: Any, scheme: str, block: dict[str, Any]) -> int:
    """Count the bytes of a result without making it: from that of a few rows of the same length."""
    rows = 8
    part = qa.quantize(x[:rows], scheme, **block)
    return part.nbytes * x.shape[0] // rows


def measure(library: str, operation: str, label: str, size: int) -> dict[str, int]:
    """Run an operation here, once."""
    prepare(library, operation, label, cases.matrix(SMALL))[0]()
    call, result = prepare(library, operation, label, cases.matrix(size))
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what there is now
    before = status("VmRSS")
    kept = call()
    extra = status("VmHWM") - before
    del kept
    return {"extra": extra, "result": result}


def fresh(library: str, operation: str, label: str, size: int) -> dict[str, Any]:
    """Run an operation in a fresh process."""
    found: dict[str, Any] = {"library": library, "operation": operation, "format": label}
    what = json.dumps([library, operation, label, size])
    process = subprocess.run(
        [sys.executable, __file__, "--measure", what],
        capture_output=True,
        text=True,
        check=False,
        env=machine.subprocess_environment(),
    )
    if process.returncode:
        error = process.stderr.strip().splitlines() or ["no message"]
        return found | {"error": error[-1][:120]}
    return found | json.loads(process.stdout.splitlines()[-1])


def measure_all(size: int, only: str) -> list[dict[str, Any]]:
    """Give the figures of all operations whose name holds `only`."""
    if not STATUS.exists():
        return []
    return [
        fresh(library, operation, label, size)
        for library, operation, label in operations()
        if only in f"memory {library} {operation} {label}"
    ]


def report(figures: list[dict[str, Any]], size: int) -> str:
    """Lay out what each library took beyond the result."""
    libraries = [name for name in LIBRARIES if any(f["library"] == name for f in figures)]
    lines: dict[str, dict[str, str]] = {}
    beyond, errors = [], []
    for found in figures:
        name = f"{found['operation']} {found['format']}"
        line = lines.setdefault(name, {})
        if "error" in found:
            errors.append(f"{found['library']} {name}: {found['error']}")
            continue
        beyond.append((found["extra"] - found["result"]) / MB)
        line["result"] = f"{found['result'] / MB:.1f}"
        line[found["library"]] = f"{max(beyond[-1], 0):.1f}"
    header = ["result", *libraries]
    rows = [[name, *(line.get(title, "-") for title in header)] for name, line in lines.items()]
    over = sum(value > CLAIM for value in beyond)
    return "\n".join(
        [
            f"peak memory beyond the result, MiB: float32 {size}x{size} is {4 * size**2 / MB:.0f}",
            table(rows, ["", *header]),
            f"{over} of {len(beyond)} took more than {CLAIM} MiB beyond the result",
            *errors,
        ]
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the matrix")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="of the names")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    if not STATUS.exists():
        raise SystemExit("peak memory is measured on Linux only")
    figures = measure_all(arguments.size, arguments.only)
    print(report(figures, arguments.size))
    if arguments.json:
        content = machine.describe() | {"size": arguments.size, "memory": figures}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
