"""What the figures were measured on, and on how many of its cores."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

# JAX would place its arrays on a GPU; all that is compared here is on the CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A package of ours is measured in this checkout, whatever else is installed.
ROOT = Path(__file__).parents[1]

THREADS = (
    "QUANTARRAY_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)
PACKAGES = (
    "bitsandbytes",
    "compressed-tensors",
    "faiss-cpu",
    "gguf",
    "jax",
    "ml_dtypes",
    "mlx",
    "numba",
    "numpy",
    "onnxruntime",
    "torch",
    "torchao",
)


def limit_threads(threads: int) -> None:
    """Run on so many cores: every library gets as many threads.

    Most read their number when they are imported, so this process starts anew.
    """
    if hasattr(os, "sched_setaffinity"):  # what JAX goes by
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    wanted = dict.fromkeys(THREADS, str(threads))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Name the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """Give the machine and the versions of all that is compared."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found = {"processor": processor(), "cores": cores(), "versions": versions}
    if hasattr(os, "getloadavg"):  # what else ran
        found["load"] = os.getloadavg()[0]
    return found


def subprocess_environment() -> dict[str, str]:
    """Give the environment in which a fresh process finds this checkout."""
    paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
