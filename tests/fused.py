"""What tests of the fused kernels share: the generic path beside them, and tables of what is fused.

`_generic` is asked for directly, so that nothing in the environment can make both paths one.
"""

import numpy as np
import pytest
from helpers import ANY_SHAPE, SESSION, assert_same

import quantarray as qa
from quantarray import _xp, decoder, pipeline
from quantarray.quantize import _blocks
from quantarray.task import Task

if SESSION is None:  # a session of nox has Numba, or fails
    pytest.importorskip("numba")
import numba as numba

from quantarray.kernels import cpu

NUMPY = _xp.load("numpy")
# Cases of the corpus that no block is too large in.
TAME = slice(0, 7)
TRANSPOSED = ("gptq:int2", "gptq:int3", "gptq:int4", "gptq:int8", "awq:int4")

NEVER = frozenset({"ternary", "binary", "onnx:int16", "onnx:uint16", "mlx:nvfp4_global"})
# Schemes that round each step, or what they store, to the dtype of the input.
OF_THE_INPUT = frozenset(
    name
    for name in ANY_SHAPE
    if name.startswith(("torchao:int", "torchao:uint", "ct:int", "mlx:affine"))
)
NEVER_DECODED = frozenset({"onnx:int16", "onnx:uint16"})
DECODED = {
    "float16": ("float16", "bfloat16", "float32"),
    "bfloat16": ("float16", "bfloat16", "float32"),
    "float32": ("float16", "bfloat16", "float32"),
    "float64": ("float64",),
}


def is_fused(name, dtype):
    """Tell whether a kernel quantizes arrays of a dtype in a preset."""
    return name not in NEVER and not (name in OF_THE_INPUT and dtype in ("float16", "bfloat16"))


def is_decoded(name, dtype, to):
    """Tell whether a kernel decodes what was an array of a dtype."""
    rounds = name.startswith("mlx:affine") and dtype in ("float16", "bfloat16")
    return name not in NEVER_DECODED and to in DECODED[dtype] and not rounds


def task_of(x, scheme="int8", *, given=None, nonfinite="raise", key=None, **options):
    """Give the task of `qa.quantize`, and the array in the shape it is worked on."""
    chosen, blocks = _blocks("quantize", qa.scheme(scheme, **options), x.shape)
    task = Task(blocks, chosen, NUMPY, _xp.dtype_name(x.dtype), nonfinite, key, given)
    return x.reshape(blocks.shape), task


def assert_result(found, expected):
    """Assert that a kernel gave every part as the generic path did."""
    for name in ("data", "scale", "zero_point", "offset"):
        _assert_part(name, getattr(found, name), getattr(expected, name))
    assert (found.outer is None) == (expected.outer is None)
    if expected.outer is not None:
        _assert_part("outer scale", found.outer.scale, expected.outer.scale)
        _assert_part("outer offset", found.outer.offset, expected.outer.offset)


def _assert_part(name, found, expected):
    assert (found is None) == (expected is None), name
    if expected is not None:
        try:
            assert_same(found, expected, NUMPY)
        except AssertionError as failure:
            raise AssertionError(f"{name}: {failure}") from None


def assert_quantized(x, scheme="int8", *, fused=True, **options):
    """Compare both ways to quantize, and give the result; `fused` None: if there are two."""
    work, task = task_of(x, scheme, **options)
    expected, found = pipeline._generic(work, task), cpu.quantize(work, task)
    assert fused is None or (found is not None) == fused, "fused" if found else "not fused"
    if found is not None:
        assert_result(found, expected)
    return expected, task


def assert_decoded(stored, task, dtype="float32", *, fused=True):
    """Compare both ways to decode; `fused` as above."""
    found = cpu.dequantize(stored, task, dtype, None)
    assert fused is None or (found is not None) == fused, "fused" if found is not None else "not"
    if found is not None:
        _assert_part(f"decoded {dtype}", found, decoder._generic(stored, task, dtype))


def assert_fused(x, scheme="int8", dtypes=("float32",), **options):
    """Assert that kernels quantize and decode an array, to the bits of the generic path."""
    stored, task = assert_quantized(x, scheme, **options)
    for dtype in dtypes:
        assert_decoded(stored, task, dtype)
    return stored


def normal(*shape, dtype="float32", seed=0):
    """Give normal numbers."""
    kind = _xp.dtype(NUMPY, dtype)
    return np.random.default_rng(seed).standard_normal(shape).astype(kind)
