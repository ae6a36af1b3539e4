"""How the packages that quantize are called: each gives its operations on one float32 matrix.

What a caller prepares once (a tensor over the same memory, a session, an index) is prepared
outside the calls; what belongs to quantizing, as deriving scales, is inside.
"""

from typing import Any

import numpy as np
from plain import Array, Ways


def torch_per_channel(x: Array) -> Ways:
    """quantize_per_channel, with scales from the rows' ranges."""
    import torch

    tensor, zeros = torch.from_numpy(x), torch.zeros(len(x), dtype=torch.int64)

    def quantize() -> Any:
        low, high = torch.aminmax(tensor, dim=1)
        scale = torch.maximum(high, -low) / 127
        return torch.quantize_per_channel(tensor, scale, zeros, 0, torch.qint8)

    return {"quantize": quantize, "dequantize": quantize().dequantize}


def torch_per_tensor(x: Array) -> Ways:
    """quantize_per_tensor, with the scale from the range."""
    import torch

    tensor, zero = torch.from_numpy(x), torch.zeros((), dtype=torch.int64)

    def quantize() -> Any:
        low, high = torch.aminmax(tensor)
        return torch.quantize_per_tensor(tensor, max(high, -low) / 127, zero, torch.qint8)

    return {"quantize": quantize, "dequantize": quantize().dequantize}


def torch_int8_into(x: Array) -> Ways:
    """Decode into an existing tensor."""
    import torch

    tensor, out = torch.from_numpy(x), torch.empty(x.shape)
    scale = tensor.abs().amax(1, keepdim=True) / 127
    codes = (tensor / scale).round().char()
    return {"dequantize out=": lambda: torch.mul(codes, scale, out=out)}


def numpy_int8_into(x: Array) -> Ways:
    """Decode into an existing array."""
    scale, out = np.abs(x).max(axis=1, keepdims=True) / np.float32(127), np.empty_like(x)
    codes = np.rint(x / scale).astype(np.int8)
    return {"dequantize out=": lambda: np.multiply(codes, scale, out=out)}


def torch_cast(x: Array) -> Ways:
    """The bare cast."""
    import torch

    tensor = torch.from_numpy(x)
    codes = tensor.to(torch.float8_e4m3fn)
    return {
        "quantize": lambda: tensor.to(torch.float8_e4m3fn),
        "dequantize": lambda: codes.to(torch.float32),
    }


def ml_dtypes_cast(x: Array) -> Ways:
    """The bare cast."""
    from ml_dtypes import float8_e4m3fn

    codes = x.astype(float8_e4m3fn)
    return {
        "quantize": lambda: x.astype(float8_e4m3fn),
        "dequantize": lambda: codes.astype(np.float32),
    }


def torchao_affine(x: Array, bits: int, signed: bool, block: tuple[int, int]) -> Ways:
    """Scales and zero points, then codes, a byte for each."""
    import torch
    from torchao.quantization import quant_primitives as ao

    kind = ao.MappingType.SYMMETRIC if signed else ao.MappingType.ASYMMETRIC
    dtype = torch.int8 if signed else torch.uint8
    limits = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    tensor = torch.from_numpy(x)
    size = tuple(n if b == -1 else b for n, b in zip(x.shape, block, strict=True))

    def quantize() -> Any:
        scale, zero = ao.choose_qparams_affine(tensor, kind, size, dtype, *limits)
        return ao.quantize_affine(tensor, size, scale, zero, dtype, *limits), scale, zero

    codes, scale, zero = quantize()
    return {
        "quantize": quantize,
        "dequantize": lambda: ao.dequantize_affine(codes, size, scale, zero, dtype, *limits),
    }


def torchao_microscaling(x: Array, element: str) -> Ways:
    """to_mx."""
    import torch
    from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_dtype, to_mx

    kind, mode, tensor = getattr(torch, element), ScaleCalculationMode.FLOOR, torch.from_numpy(x)
    scale, data = to_mx(tensor, kind, 32, mode)
    return {
        "quantize": lambda: to_mx(tensor, kind, 32, mode),
        "dequantize": lambda: to_dtype(data, scale, kind, 32, torch.float32),
    }


def torchao_nvfp4(x: Array) -> Ways:
    """NVFP4Tensor, with its scale of the tensor."""
    import torch
    from torchao.prototype.mx_formats import nvfp4_tensor as nvfp4

    tensor = torch.from_numpy(x)

    def quantize() -> Any:
        outer = nvfp4.per_tensor_amax_to_scale(tensor.abs().max())
        return nvfp4.NVFP4Tensor.to_nvfp4(tensor, per_tensor_scale=outer)

    q = quantize()
    return {"quantize": quantize, "dequantize": lambda: q.dequantize(torch.float32)}


def compressed_tensors_integer(x: Array, bits: int, symmetric: bool, group: int | None) -> Ways:
    """Scales, codes, and words of 32 bits."""
    import torch
    from compressed_tensors.compressors.pack_quantized import helpers
    from compressed_tensors.quantization import QuantizationArgs, utils
    from compressed_tensors.quantization.lifecycle import forward

    strategy: dict[str, Any] = {"strategy": "channel"}
    if group:
        strategy = {"strategy": "group", "group_size": group}
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **strategy)
    tensor = torch.from_numpy(x)
    blocks = tensor.unflatten(-1, (-1, group)) if group else tensor.unsqueeze(1)

    def quantize() -> Any:
        scale, zero = utils.calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
        codes = forward.quantize(tensor, scale, zero, args, dtype=torch.int8)
        return helpers.pack_to_int32(codes, bits) if bits < 8 else codes, scale, zero

    data, scale, zero = quantize()

    def dequantize() -> Any:
        codes = helpers.unpack_from_int32(data, bits, tensor.shape) if bits < 8 else data
        return forward.dequantize(codes, scale, zero, args)

    return {"quantize": quantize, "dequantize": dequantize}


def bitsandbytes_nf4(x: Array) -> Ways:
    """Blocks of 64, packed."""
    import torch
    from bitsandbytes import functional

    tensor = torch.from_numpy(x)
    data, state = functional.quantize_4bit(tensor, blocksize=64, quant_type="nf4")
    return {
        "quantize": lambda: functional.quantize_4bit(tensor, blocksize=64, quant_type="nf4"),
        "dequantize": lambda: functional.dequantize_4bit(data, state),
    }


def bitsandbytes_8bit(x: Array) -> Ways:
    """Blocks of 4096, a table of 256 values."""
    import torch
    from bitsandbytes import functional

    tensor = torch.from_numpy(x)
    data, state = functional.quantize_blockwise(tensor)
    return {
        "quantize": lambda: functional.quantize_blockwise(tensor),
        "dequantize": lambda: functional.dequantize_blockwise(data, state),
    }


def bitsandbytes_rows(x: Array) -> Ways:
    """int8_vectorwise_quant."""
    import torch
    from bitsandbytes import functional

    tensor = torch.from_numpy(x)
    codes, absmax, _ = functional.int8_vectorwise_quant(tensor)
    return {
        "quantize": lambda: functional.int8_vectorwise_quant(tensor),
        "dequantize": lambda: functional.int8_vectorwise_dequant(codes, absmax),
    }


def gguf(x: Array, kind: str) -> Ways:
    """gguf-py."""
    from gguf import GGMLQuantizationType, quants

    chosen = GGMLQuantizationType[kind]
    data = quants.quantize(x, chosen)
    return {
        "quantize": lambda: quants.quantize(x, chosen),
        "dequantize": lambda: quants.dequantize(data, chosen),
    }


def faiss_scalar(x: Array, bits: int) -> Ways:
    """A scalar quantizer of an index."""
    import faiss

    kind = getattr(faiss.ScalarQuantizer, f"QT_{bits}bit")
    index = faiss.IndexScalarQuantizer(x.shape[1], kind)

    def quantize() -> Any:
        index.train(x)
        return index.sa_encode(x)

    data = quantize()
    return {"quantize": quantize, "dequantize": lambda: index.sa_decode(data)}


def mlx(x: Array, group: int, bits: int, mode: str = "affine", outer: bool = False) -> Ways:
    """mx.quantize, on the CPU."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    array, choices = mx.array(x), {"group_size": group, "bits": bits, "mode": mode}

    def quantize() -> Any:
        known = {"global_scale": mx.max(mx.abs(array))} if outer else {}
        parts = mx.quantize(array, **choices, **known)
        mx.eval(parts)
        return parts, known

    parts, known = quantize()

    def dequantize() -> Any:
        decoded = mx.dequantize(*parts, dtype=mx.float32, **choices, **known)
        mx.eval(decoded)
        return decoded

    return {"quantize": quantize, "dequantize": dequantize}
