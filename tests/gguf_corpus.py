"""Arrays and bytes for tests of ggml's block types, one of each for all types."""

import functools
import zlib

import ml_dtypes
import numpy as np
from helpers import SESSION

import quantarray as qa
from quantarray import QuantizedArray, gguf
from quantarray.records import RECORDS

COLUMNS = 512
# Block types that can be encoded, and those whose encoders look at importances, or need them.
ENCODED = tuple(name for name in gguf.TYPES if name in RECORDS)
SEARCHED = tuple(name for name in ENCODED if RECORDS[name].importance in ("used", "needed"))
NEEDED = tuple(name for name in ENCODED if RECORDS[name].importance == "needed")
# Of each way to encode, one; and what JAX is tried on, which compiles every operation of the others
# anew: all types are under jax.jit in test_gguf_lazy.py.
FEW = ("Q8_0", "Q4_1", "Q3_K", "Q4_K", "IQ4_XS", "NVFP4")
TRIED = ("Q8_0", "Q4_1", "Q4_K", "NVFP4") if SESSION == "jax" else ENCODED
TAKEN_APART = (*FEW, "TQ1_0", "MXFP4", "IQ3_XXS", "IQ1_M") if SESSION == "jax" else tuple(RECORDS)
# Those without a float16 that could be NaN.
NO_NAN = ("MXFP4", "NVFP4")
SCHEMES = tuple(f"gguf:{name.lower()}" for name in RECORDS)
PRESETS = tuple(name for name in qa.schemes() if qa.scheme(name).record is not None)
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _ties(random):
    """Multiples of half a step, where the largest element makes the step a power of two."""
    ends = np.resize([127, 15, 8, 7, 32, 3, 1, 16], COLUMNS // 16).repeat(16)
    x = random.integers(-2 * ends, 2 * ends + 1) / 2
    x[::16] = -ends[::16]
    return x


def _zeros_among_others(random):
    x = random.standard_normal(COLUMNS)
    x[::3], x[1::7], x[256:300] = 0.0, -0.0, 0.0
    return x


def _outlier(random):
    x = random.standard_normal(COLUMNS) * 1e-3
    x[77] = -80
    return x


ROWS = {
    "gaussian": lambda random: random.standard_normal(COLUMNS),
    "heavy tailed": lambda random: np.clip(random.standard_t(1.5, COLUMNS), -3e4, 3e4),
    "bfloat16": lambda random: (3 * random.standard_normal(COLUMNS)).astype(ml_dtypes.bfloat16),
    "ties": _ties,
    "zeros": lambda random: np.where(np.arange(COLUMNS) < 256, 0.0, -0.0),
    "zeros among others": _zeros_among_others,
    "constant": lambda random: np.where(np.arange(COLUMNS) < 256, 3.3, -0.07),
    "outlier": _outlier,
    "tiny": lambda random: 1e-7 * random.standard_normal(COLUMNS),
    "offset": lambda random: 1000 + 1e-4 * random.standard_normal(COLUMNS),
    "positive": lambda random: np.abs(random.standard_normal(COLUMNS)) + 0.1,
    "negative": lambda random: -(np.abs(random.standard_normal(COLUMNS)) ** 3),
}


@functools.cache
def rows(dtype="float32"):
    """Give every row as one read-only array of shape (row, column)."""
    random = np.random.default_rng(20240229)
    x = np.stack([np.asarray(make(random), np.float64) for make in ROWS.values()])
    x = x.astype(np.float32).astype(getattr(ml_dtypes, dtype, dtype))
    x.flags.writeable = False
    return x


@functools.cache
def importance():
    """Give what the elements of a column count: of all magnitudes, and nothing."""
    random = np.random.default_rng(1)
    weights = np.exp(2 * random.standard_normal(COLUMNS)).astype(np.float32)
    weights[random.random(COLUMNS) < 0.1] = 0.0
    weights.flags.writeable = False
    return weights


def needed(name):
    """Give the importances without which a type is not encoded, or None."""
    return importance() if name in NEEDED else None


@functools.cache
def any_bytes(name):
    """Give random bytes, as many as `rows` takes in a block type."""
    record = RECORDS[name]
    random = np.random.default_rng(zlib.crc32(name.encode()))
    shape = len(ROWS), COLUMNS // record.elements, record.size
    data = random.integers(0, 256, shape, np.uint8)
    if name == "MXFP4" and SESSION == "jax":
        data[..., 0] |= 2  # it takes subnormal scales, those of codes 0 and 1, for 0
    return data.reshape(len(ROWS), -1)


def blocks_of(data, name):
    """View bytes of NumPy as blocks: (row, block, bytes)."""
    return data.reshape(len(data), -1, RECORDS[name].size)


def decoded(name):
    """Give an array of any bytes, of NumPy."""
    return QuantizedArray.from_parts(
        {"data": any_bytes(name)}, qa.scheme(f"gguf:{name.lower()}"), rows().shape, "float32"
    )
