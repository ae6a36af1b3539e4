"""ggml's own encoders and decoders, in C: the library that a package brings along."""

import ctypes
import functools
import importlib.util
from pathlib import Path

import numpy as np

# As they are imported, newest ggml first, and where a library lies beside one.
FOLDERS = {"llama_cpp": ("lib",), "_pywhispercpp": ("pywhispercpp.libs", ".")}


@functools.cache
def library():
    """Load libggml-base and name its package; None where no package has it."""
    for package, folders in FOLDERS.items():
        found = importlib.util.find_spec(package)
        for folder in folders if found is not None and found.origin else ():
            here = Path(found.origin).parent / folder
            # Needed by those of a wheel, whose names carry a hash, and found by no search.
            for other in sorted(here.glob("libgomp*.so*")):
                ctypes.CDLL(str(other), mode=ctypes.RTLD_GLOBAL)
            for path in sorted(here.glob("libggml-base*"), key=lambda path: len(path.name)):
                if path.suffix == ".dylib" or ".so" in path.name:
                    return package, _typed(ctypes.CDLL(str(path)))
    return None


def _typed(lib):
    integer, address = ctypes.c_int64, ctypes.c_void_p
    lib.ggml_version.restype = ctypes.c_char_p
    lib.ggml_version.argtypes = ()
    lib.ggml_type_name.restype = ctypes.c_char_p
    lib.ggml_type_name.argtypes = (ctypes.c_int,)
    lib.ggml_blck_size.restype = integer
    lib.ggml_blck_size.argtypes = (ctypes.c_int,)
    lib.ggml_type_size.restype = ctypes.c_size_t
    lib.ggml_type_size.argtypes = (ctypes.c_int,)
    lib.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    lib.ggml_quantize_requires_imatrix.argtypes = (ctypes.c_int,)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,
        address,
        address,
        integer,
        integer,
        integer,
        address,
    )
    return lib


def package():
    """Name the package whose library it is."""
    return library()[0]


def version():
    """Give the version of ggml."""
    return library()[1].ggml_version().decode()


def _name(record):
    """Give a type's name in C: q4_K, but iq4_xs and q4_0."""
    return record.name.lower().replace("_k", "_K")


def has(record):
    """Tell whether this ggml has a type: it ends the process where it is asked to encode others."""
    _, lib = library()
    # The name of a number past the last one is not there to be read, so its functions come first.
    if not hasattr(lib, f"dequantize_row_{_name(record)}"):
        return False
    return lib.ggml_type_name(record.number) == _name(record).encode()


def sizes(record):
    """Give the elements and the bytes of a block."""
    _, lib = library()
    return lib.ggml_blck_size(record.number), lib.ggml_type_size(record.number)


def quantize(x, record, importance=None):
    """Encode rows of float32 as C does: `importance` is one vector for all rows, or None."""
    x = np.ascontiguousarray(x, np.float32)
    rows, columns = x.shape
    _require(record, columns % record.elements == 0)
    out = np.zeros((rows, columns // record.elements * record.size), np.uint8)
    weights = None
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        assert importance.shape == (columns,)
        weights = importance.ctypes.data
    _, lib = library()
    assert weights is not None or not lib.ggml_quantize_requires_imatrix(record.number)
    written = lib.ggml_quantize_chunk(
        record.number, x.ctypes.data, out.ctypes.data, 0, rows, columns, weights
    )
    assert written == out.nbytes
    return out


def dequantize(data, record):
    """Decode rows of bytes as C does."""
    data = np.ascontiguousarray(data, np.uint8)
    rows, size = data.shape
    _require(record, size % record.size == 0)
    out = np.empty((rows, size // record.size * record.elements), np.float32)
    function = getattr(library()[1], f"dequantize_row_{_name(record)}")
    function.restype = None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    function(data.ctypes.data, out.ctypes.data, out.size)
    return out


def _require(record, divides):
    """Raise for what C would answer by ending the process, or by writing past an array."""
    assert has(record), f"ggml {version()} has no {record.name}"
    assert sizes(record) == (record.elements, record.size)
    assert divides, f"{record.name}: no whole blocks"
