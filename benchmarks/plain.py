"""The formulas of the formats as a user would write them, in NumPy, JAX and PyTorch.

Each takes the namespace (NumPy's or JAX's), and gives the codes and what scales them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any
Stored = tuple[Array, ...]
Ways = dict[str, Callable[[], Any]]

FP4_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
NF4_MIDPOINTS = ((NF4[1:] + NF4[:-1]) / 2).tolist()


def _groups(x: Array, size: int) -> Array:
    return x.reshape(x.shape[0], -1, size)


def _pack(xp: Any, codes: Array) -> Array:
    codes = codes.astype(xp.uint8)
    return (codes[..., 0::2] & 15) | (codes[..., 1::2] << 4)


def _unpack(xp: Any, data: Array) -> Array:
    return xp.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)


def quantize_int8(xp: Any, x: Array, axis: int | None) -> Stored:
    """Symmetric, along an axis or all."""
    scale = xp.max(xp.abs(x), axis=axis, keepdims=True) / xp.float32(127)
    return xp.clip(xp.round(x / scale), -127, 127).astype(xp.int8), scale


def dequantize_int8(xp: Any, codes: Array, scale: Array) -> Array:
    """Multiply."""
    return codes.astype(xp.float32) * scale


def quantize_int4(xp: Any, x: Array) -> Stored:
    """Symmetric, packed."""
    g = _groups(x, 128)
    scale = xp.max(xp.abs(g), axis=-1, keepdims=True) / xp.float32(7)
    return _pack(xp, xp.clip(xp.round(g / scale), -7, 7).astype(xp.int8)), scale


def dequantize_int4(xp: Any, data: Array, scale: Array) -> Array:
    """Extend the signs, and multiply."""
    codes = _unpack(xp, data).astype(xp.int8)
    values = ((codes ^ 8) - 8).astype(xp.float32) * scale
    return values.reshape(data.shape[0], -1)


def quantize_uint4(xp: Any, x: Array) -> Stored:
    """Asymmetric with a zero point, packed."""
    g = _groups(x, 128)
    low = xp.minimum(xp.min(g, axis=-1, keepdims=True), 0)
    scale = (xp.maximum(xp.max(g, axis=-1, keepdims=True), 0) - low) / xp.float32(15)
    zero = xp.clip(xp.round(-low / scale), 0, 15)
    return _pack(xp, xp.clip(xp.round(g / scale) + zero, 0, 15)), scale, zero


def dequantize_uint4(xp: Any, data: Array, scale: Array, zero: Array) -> Array:
    """Subtract the zero point, and multiply."""
    values = (_unpack(xp, data).astype(xp.float32) - zero) * scale
    return values.reshape(data.shape[0], -1)


def quantize_nf4(xp: Any, x: Array) -> Stored:
    """Count the midpoints below each value: that vectorizes, where a search does not."""
    g = _groups(x, 64)
    scale = xp.max(xp.abs(g), axis=-1, keepdims=True)
    values = g / scale
    codes = sum((values > xp.float32(m)).astype(xp.uint8) for m in NF4_MIDPOINTS)
    return _pack(xp, codes), scale


def dequantize_nf4(xp: Any, data: Array, scale: Array) -> Array:
    """Look values up, and multiply."""
    return (xp.asarray(NF4)[_unpack(xp, data)] * scale).reshape(data.shape[0], -1)


def _fp4_codes(xp: Any, values: Array) -> Array:
    size = xp.abs(values)
    codes = xp.signbit(values).astype(xp.uint8) << 3
    for number, m in enumerate(FP4_MIDPOINTS):  # ties to even
        codes = codes + (size >= m if number % 2 else size > m).astype(xp.uint8)
    return codes


def _fp4_values(xp: Any, codes: Array) -> Array:
    return xp.asarray(np.concatenate([FP4, -FP4]))[codes]


def _power_of_two(xp: Any, largest: Array, exponent: int) -> Array:
    return xp.clip(xp.frexp(largest)[1] - 1 - exponent, -126, 127)


def quantize_mxfp4(xp: Any, x: Array) -> Stored:
    """Groups of 32, a power of two for each."""
    g = _groups(x, 32)
    power = _power_of_two(xp, xp.max(xp.abs(g), axis=-1, keepdims=True), 2)
    values = g * xp.ldexp(xp.float32(1), -power)
    return _pack(xp, _fp4_codes(xp, values)), (power + 127).astype(xp.uint8)


def dequantize_mxfp4(xp: Any, data: Array, scale: Array) -> Array:
    """Look values up, and scale."""
    factor = xp.ldexp(xp.float32(1), scale.astype(xp.int32) - 127)
    return (_fp4_values(xp, _unpack(xp, data)) * factor).reshape(data.shape[0], -1)


def quantize_nvfp4(xp: Any, x: Array) -> Stored:
    """Groups of 16, a float8 scale for each, and one for all."""
    g = _groups(x, 16)
    largest = xp.max(xp.abs(g), axis=-1, keepdims=True)
    outer = xp.max(largest) / xp.float32(448 * 6)
    scale = (largest / xp.float32(6) / outer).astype(_float8())
    return _pack(xp, _fp4_codes(xp, g / (scale.astype(xp.float32) * outer))), scale, outer


def dequantize_nvfp4(xp: Any, data: Array, scale: Array, outer: Array) -> Array:
    """Look values up, and multiply with both scales."""
    factor = scale.astype(xp.float32) * outer
    return (_fp4_values(xp, _unpack(xp, data)) * factor).reshape(data.shape[0], -1)


def _float8() -> Any:
    import ml_dtypes

    return ml_dtypes.float8_e4m3fn


def quantize_fp8(xp: Any, x: Array) -> Stored:
    """A scale for each row, and a cast."""
    scale = xp.max(xp.abs(x), axis=1, keepdims=True) / xp.float32(448)
    return xp.clip(x / scale, -448, 448).astype(_float8()), scale


def quantize_mxfp8(xp: Any, x: Array) -> Stored:
    """Groups of 32, a power of two for each, and a cast."""
    g = _groups(x, 32)
    power = _power_of_two(xp, xp.max(xp.abs(g), axis=-1, keepdims=True), 8)
    values = xp.clip(g * xp.ldexp(xp.float32(1), -power), -448, 448)
    return values.astype(_float8()), (power + 127).astype(xp.uint8)


def dequantize_mxfp8(xp: Any, codes: Array, scale: Array) -> Array:
    """Cast back, and scale."""
    factor = xp.ldexp(xp.float32(1), scale.astype(xp.int32) - 127)
    return (codes.astype(xp.float32) * factor).reshape(codes.shape[0], -1)


def quantize_int8_torch(x: Array, axis: tuple[int, ...]) -> Stored:
    """Symmetric, over some axes."""
    scale = x.abs().amax(axis, keepdim=True) / 127
    return (x / scale).round().clamp(-127, 127).char(), scale


def quantize_int4_torch(x: Array) -> Stored:
    """Symmetric, packed."""
    import torch

    g = x.unflatten(-1, (-1, 128))
    scale = g.abs().amax(-1, keepdim=True) / 7
    codes = (g / scale).round().clamp(-7, 7).char().view(torch.uint8)
    return (codes[..., 0::2] & 15) | (codes[..., 1::2] << 4), scale


def dequantize_int4_torch(data: Array, scale: Array) -> Array:
    """Extend the signs, and multiply."""
    import torch

    codes = torch.stack([data & 15, data >> 4], -1).flatten(-2)
    return (((codes.char() ^ 8) - 8).float() * scale).flatten(-2)


def quantize_fp8_torch(x: Array) -> Stored:
    """A scale for each row, and a cast."""
    import torch

    scale = x.abs().amax(1, keepdim=True) / 448
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale


def dequantize_torch(codes: Array, scale: Array) -> Array:
    """Multiply."""
    return codes.float() * scale


def numpy_ways(x: Array, quantize: Callable[..., Stored], dequantize: Callable[..., Array]) -> Ways:
    """Run formulas in NumPy."""
    stored = quantize(np, x)
    return {"quantize": lambda: quantize(np, x), "dequantize": lambda: dequantize(np, *stored)}


def jax_ways(x: Array, quantize: Callable[..., Stored], dequantize: Callable[..., Array]) -> Ways:
    """Compile formulas with JAX."""
    import jax
    import jax.numpy as jnp

    array, wait = jnp.asarray(x), jax.block_until_ready
    forth = jax.jit(lambda a: quantize(jnp, a))
    back = jax.jit(lambda *parts: dequantize(jnp, *parts))
    stored = forth(array)
    return {"quantize": lambda: wait(forth(array)), "dequantize": lambda: wait(back(*stored))}


def torch_ways(x: Array, quantize: Callable[..., Stored], dequantize: Callable[..., Array]) -> Ways:
    """Compile formulas with PyTorch."""
    import torch

    tensor = torch.from_numpy(x)
    forth, back = torch.compile(quantize), torch.compile(dequantize)
    stored = quantize(tensor)
    return {"quantize": lambda: forth(tensor), "dequantize": lambda: back(*stored)}
