"""Products with quantized weights, against the float32 product of the BLAS that NumPy has."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import generic
import numpy as np
import onnx_runtime
from cases import Case, installed, matrix
from timing import Row, describe, timer

import quantarray as qa

Array = Any
GROUP = 128
CASES = (
    "matmul int4 g128: W @ v",
    "matmul int4 g128: v @ W",
    "matmul int4 g128: W @ X",
    "matmul int8 @ int8",
    "matmul codes of int8",
)


def operands(size: int) -> tuple[Array, Array, Array]:
    """Give weights, a vector and a second matrix."""
    weights = matrix(size)
    return weights, weights[0].copy(), weights[::-1].copy()


def ours(size: int, name: str) -> Callable[[], Any]:
    """Give our product."""
    weights, v, other = operands(size)
    q = qa.quantize(weights, "int4", group_size=GROUP)
    rows = qa.quantize(weights, "int8", channel_axis=0)
    columns = qa.quantize(other, "int8", channel_axis=1)
    return {
        CASES[0]: lambda: qa.matmul(q, v),
        CASES[1]: lambda: qa.matmul(v, q),
        CASES[2]: lambda: qa.matmul(q, other),
        CASES[3]: lambda: qa.matmul(rows, columns),
        CASES[4]: lambda: qa.matmul(rows.codes, columns.codes),
    }[name]


def _torch_int4(weights: Array, others: Array) -> Callable[[], Any]:
    """The packed product of torch.compile's int4 weights: zero points of 8, as bfloat16."""
    import torch

    size = len(weights)
    groups = torch.from_numpy(weights).unflatten(-1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True) / 7
    codes = ((groups / scale).round().clamp(-7, 7) + 8).int().reshape(size, -1)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    pairs = torch.cat([scale, torch.zeros_like(scale)], -1).transpose(0, 1).contiguous().bfloat16()
    x = torch.from_numpy(np.atleast_2d(others)).bfloat16()
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, pairs)


def _codes(x: Array, axis: int) -> tuple[Array, Array]:
    scale = np.abs(x).max(axis=axis, keepdims=True) / np.float32(127)
    return np.rint(x / scale).astype(np.int8), scale


def _torch_int8(weights: Array, others: Array, scaled: bool) -> Callable[[], Any]:
    """Integers, then perhaps the scales of rows and columns."""
    import torch

    a, rows = map(torch.from_numpy, _codes(weights, 1))
    b, columns = map(torch.from_numpy, _codes(others, 0))
    if scaled:
        return lambda: torch._int_mm(a, b).float() * rows * columns
    return lambda: torch._int_mm(a, b)


def _onnxruntime_int8(weights: Array, others: Array) -> Callable[[], Any]:
    """MatMulInteger."""
    run = onnx_runtime.operator("MatMulInteger", ("INT8", "INT8"), "INT32")
    a, b = _codes(weights, 1)[0], _codes(others, 0)[0]
    return lambda: run(a, b)


def _onnxruntime_int4(weights: Array, others: Array) -> Callable[[], Any]:
    """MatMulNBits, with its products in float32."""
    groups = weights.reshape(len(weights), -1, GROUP)
    scale = np.abs(groups).max(axis=-1, keepdims=True) / np.float32(7)
    codes = (np.clip(np.rint(groups / scale), -7, 7) + 8).astype(np.uint8)
    data = codes[..., 0::2] | codes[..., 1::2] << 4
    run = onnx_runtime.operator(
        "MatMulNBits",
        ("FLOAT", "UINT8", "FLOAT"),
        "FLOAT",
        domain="com.microsoft",
        K=weights.shape[1],
        N=len(weights),
        bits=4,
        block_size=GROUP,
    )
    x = np.atleast_2d(others)
    return lambda: run(x, data, scale[..., 0])


def _mlx_int4(weights: Array, others: Array, transpose: bool = True) -> Callable[[], Any]:
    """quantized_matmul, of asymmetric weights."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    parts = mx.quantize(mx.array(weights), group_size=GROUP, bits=4)
    x = mx.array(np.atleast_2d(others))
    choices = {"group_size": GROUP, "bits": 4, "transpose": transpose}
    return lambda: mx.eval(mx.quantized_matmul(x, *parts, **choices))


# Of each case: the name, the package, and what takes W and the other operand. The peers multiply
# the rows of X with W transposed, which is W @ v for a vector, and as much work for a matrix.
INT4 = (
    ("torch int4pack, bfloat16", "torch", _torch_int4),
    ("onnxruntime MatMulNBits", "onnxruntime", _onnxruntime_int4),
    ("mlx quantized_matmul", "mlx", _mlx_int4),
)
PEERS: dict[str, tuple[tuple[str, str, Callable[..., Callable[[], Any]]], ...]] = {
    CASES[0]: INT4,
    CASES[1]: (("mlx quantized_matmul", "mlx", lambda w, v: _mlx_int4(w, v, transpose=False)),),
    CASES[2]: INT4,
    CASES[3]: (("torch._int_mm, scaled", "torch", partial(_torch_int8, scaled=True)),),
    CASES[4]: (
        ("torch._int_mm", "torch", partial(_torch_int8, scaled=False)),
        ("onnxruntime MatMulInteger", "onnxruntime", _onnxruntime_int8),
    ),
}


def products(size: int, only: str, with_generic: bool) -> Iterator[Case]:
    """Multiply; the first row is the float32 product of the same shapes."""
    weights, v, other = operands(size)
    for name in CASES:
        if only not in name:
            continue
        right = other if name in CASES[2:] else v
        left = weights
        if name == CASES[1]:
            left, right = v, weights
        rows = [
            Row("float32 product", "base", timer(lambda a=left, b=right: np.matmul(a, b))),
        ]
        if hasattr(qa, "matmul"):
            rows.append(_row("quantarray", "ours", lambda name=name: ours(size, name)))
            if with_generic:
                rows.append(generic.row("products", "ours", size, name))
        operand = v if name == CASES[1] else right
        rows += [
            _row(who, "peer", lambda make=make, operand=operand: make(weights, operand))
            for who, package, make in PEERS[name]
            if installed(package)
        ]
        yield Case("products", name, rows, _limit(weights, v) if right is v or left is v else None)


def _limit(weights: Array, v: Array) -> float:
    """Give the share of bytes that a product with a vector reads and writes."""
    q = qa.quantize(weights, "int4", group_size=GROUP)
    return (q.nbytes + 2 * v.nbytes) / (weights.nbytes + 2 * v.nbytes)


def _row(who: str, kind: str, make: Callable[[], Callable[[], Any]]) -> Row:
    try:
        return Row(who, kind, timer(make()))
    except Exception as failure:  # whatever a peer raises is a result, and not the end
        return Row(who, kind, float, error=describe(failure))
