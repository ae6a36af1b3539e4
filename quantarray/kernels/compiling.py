"""How loops are compiled, and where that is kept on disk.

Numba looks for what it has compiled by one file of source, and reads lists that name the classes of
arguments. So every state of these sources has a folder of its own: what an older one left is never
read.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

# Loops that others call: compiled into those.
compiled = numba.njit(nogil=True, error_model="numpy")
inlined = numba.njit(nogil=True, error_model="numpy", forceinline=True)


def entry(function: Callable[..., Any], **options: Any) -> Any:
    """Compile a function that Python calls when it is first called, and keep that on disk."""
    settings: Any = numba.config
    before, settings.CACHE_DIR = settings.CACHE_DIR, _folder(settings.CACHE_DIR)
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True, **options)(function)
    except RuntimeError:  # no folder can be written to
        return numba.njit(nogil=True, error_model="numpy", **options)(function)
    finally:
        settings.CACHE_DIR = before


@functools.cache
def _folder(base: str) -> str:
    """Name the folder, where Numba was told to keep things or else beside these sources."""
    here = Path(__file__).parent
    state = hashlib.sha256()
    for source in sorted(here.glob("*.py")):
        state.update(source.name.encode() + source.read_bytes())
    name = f"quantarray-{state.hexdigest()[:16]}"
    return str((Path(base) if base else here / "__pycache__") / name)
