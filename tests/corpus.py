"""Arrays that can tell one rounding, division or block rule from another."""

import functools

import ml_dtypes
import numpy as np

import quantarray as qa
from quantarray import scales
from quantarray.formats import BFLOAT16, FLOAT16
from quantarray.scheme import Packing, Scale

ROWS, COLUMNS = 8, 96
# The largest code of each integer preset: one row of ties for each.
QMAX = (127, 63, 31, 15, 7, 3, 1, 255)


def _random():
    return np.random.default_rng(20240229)


def _gaussian(dtype):
    return _random().standard_normal((ROWS, COLUMNS)).astype(dtype)


def _heavy_tailed(dtype):
    return np.clip(_random().standard_t(1.5, (ROWS, COLUMNS)), -3e4, 3e4).astype(dtype)


def _bfloat16_valued(dtype):
    return (_gaussian(np.float32) * 3).astype(ml_dtypes.bfloat16).astype(dtype)


def _ties(dtype):
    """Half-integers times a scale: a power of two, then the largest power times 1.1."""
    rows = []
    for i, qmax in enumerate(QMAX):
        halves = (np.arange(COLUMNS) * 7 % qmax) + 0.5
        halves[1::2] *= 1 if qmax == 255 else -1
        halves[::16] = qmax  # each group has the largest code, so that the quotients are the halves
        rows.append(halves * (0.125 if i % 2 else 1.1))
    return np.asarray(rows).astype(dtype)


def _zeros(dtype):
    x = _gaussian(dtype)
    x[1], x[2] = 0.0, -0.0
    x[:, 32:64] = 0.0
    x[:, 40:50] = -0.0
    x[:, ::5] = -0.0
    return x


def _subnormal_blocks(dtype):
    tiny = float(ml_dtypes.finfo(dtype).smallest_normal)
    x = (_random().uniform(-1, 1, (ROWS, COLUMNS)) * tiny).astype(dtype)
    x[2, 0] = x[3, 50] = tiny  # the smallest block that is not a block of zeros
    x[4] = _gaussian(dtype)[4]
    x[5, :32] = np.abs(x[5, :32])
    return x


def _tiny_blocks(dtype):
    """Blocks whose scale is near the smallest normal, with subnormal elements."""
    tiny = float(ml_dtypes.finfo(dtype).smallest_normal)
    reach = 2.0 ** np.arange(0, 16, 2)[:, None]
    return (_random().uniform(-1, 1, (ROWS, COLUMNS)) * reach * tiny).astype(dtype)


def _near_largest(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    x = (_random().uniform(-1, 1, (ROWS, COLUMNS)) * largest).astype(dtype)
    x[0, 0], x[0, 1], x[3, 40], x[4, 90] = largest, -largest, largest, -largest
    x[6] = np.abs(x[6])
    return x


def _wide(dtype):
    power = 2 if np.dtype(dtype) == np.float16 else 30
    x = _random().standard_normal((ROWS, COLUMNS))
    return (x * 10.0 ** _random().integers(-power, power + 1, x.shape)).astype(dtype)


CASES = (
    _gaussian,
    _heavy_tailed,
    _bfloat16_valued,
    _ties,
    _zeros,
    _subnormal_blocks,
    _tiny_blocks,
    _near_largest,
    _wide,
)
NAMES = tuple(case.__name__[1:] for case in CASES)

# What shares a scale, in the corpus: (case, row, column).
KINDS = {
    "own": {},
    "case": {"channel_axis": 0},
    "column": {"channel_axis": -1},
    "column of case": {"block": (1, -1, 1)},
    "group": {"group_size": 32},
    "ragged group": {"group_size": 20},
    "group of rows": {"group_size": 3, "group_axis": 1},
    "tile": {"block": (1, 3, 40)},
    "whole tile": {"block": (2, -1, 7)},
    "flat": {"flat": 100},
}


@functools.cache
def corpus(dtype="float32"):
    """Give the cases as one read-only array of shape (case, row, column)."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    x = np.stack([case(kind.type) for case in CASES])
    x.flags.writeable = False
    return x


# One of each way to derive scales, zeros and codes that the first native presets have not.
OTHERS = (
    *("ternary", "binary", "nvfp4", "onnx:float4e2m1", "torchao:uint4", "torchao:mxfp4"),
    *("torchao:nvfp4", "ct:int4_asymmetric", "ct:nvfp4", "bnb:fp4", "bnb:nf4_nested", "bnb:int8"),
    *("bnb:int8_rows", "mlx:affine3", "mlx:nvfp4", "mlx:nvfp4_global", "st:int8", "st:binary"),
    "faiss:sq4",
)


def reached(scheme):
    """Give the cases of the corpus whose elements the scales of a preset can reach."""
    x = corpus()
    return x[np.abs(x).max((1, 2)) <= scales.largest(qa.scheme(scheme), "float32")]


@functools.cache
def poisoned(dtype="float32"):
    """Give the corpus with NaN and Inf in some blocks of every kind."""
    x = corpus(dtype).copy()
    x[0, 0, 0], x[2, 7, 95], x[3, 4, 30] = np.nan, np.inf, -np.inf
    x[4, 1, 33:40] = np.nan
    x.flags.writeable = False
    return x


# Choices of a scheme that no native preset makes, in groups of 20.
CHOICES = {
    "offset": qa.scheme("uint4", zero="offset", scale=Scale("range", divisor=15.0), group_size=20),
    "offset of a byte": qa.scheme(
        "uint8", zero="offset", scale=Scale("range", divisor=255.0), group_size=20
    ),
    "float16 scale": qa.scheme("int8", scale=Scale("absmax", 127.0, FLOAT16), group_size=20),
    "bfloat16 scale": qa.scheme("int5", scale=Scale("absmax", 15.0, BFLOAT16), group_size=20),
    "high bits first": qa.scheme("uint3", packing=Packing("msb"), group_size=20),
}
# A float16 scale does not hold the last cases.
HELD = slice(0, 3)


SHAPES = ((), (1,), (70,), (3, 5), (2, 3, 33), (2, 1, 3, 17), (0,), (0, 64), (64, 0), (2, 0, 3))


def shaped(shape, dtype="float32"):
    """Give an array of a shape, from the start of the corpus."""
    x = corpus(dtype)[2].reshape(-1)
    return np.resize(x, shape) if 0 not in shape else np.zeros(shape, x.dtype)
