"""What the packages that publish formats give, as NumPy arrays.

Each is imported where it is called. Parts are named as those of a QuantizedArray, and `decoded`.
"""

from collections.abc import Callable
from functools import cache

import ml_dtypes
import numpy as np

# As they are imported.
PACKAGES = ("bitsandbytes", "compressed_tensors", "faiss", "mlx", "onnx", "torchao")


def _tensor(x):
    import torch

    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(x.copy())


def _array(tensor):
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
        tensor = tensor.view(torch.uint8)
    return tensor.numpy()


def _arrays(**tensors):
    return {name: _array(tensor) for name, tensor in tensors.items()}


def torchao_affine(x, *, bits, signed, group_size=None):
    import torch
    from torchao.quantization import quant_primitives as ao

    kind = ao.MappingType.SYMMETRIC if signed else ao.MappingType.ASYMMETRIC
    dtype = torch.int8 if signed else torch.uint8
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    size = (1, group_size or (128 if bits < 8 else x.shape[-1]))
    x = _tensor(x)
    scale, zero = ao.choose_qparams_affine(x, kind, size, dtype, low, high)
    codes = ao.quantize_affine(x, size, scale, zero, dtype, low, high)
    decoded = ao.dequantize_affine(codes, size, scale, zero, dtype, low, high)
    parts = _arrays(codes=codes, scale=scale, decoded=decoded)
    return parts if signed else parts | _arrays(zero_point=zero)


def torchao_microscaling(x, *, element, scale_rule="floor"):
    import torch
    from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_dtype, to_mx

    element = getattr(torch, element, element)
    mode = ScaleCalculationMode[scale_rule.upper()]
    scale, data = to_mx(_tensor(x), element, 32, mode)
    decoded = to_dtype(data, scale, element, 32, torch.float32)
    stored = "data" if element == torch.float4_e2m1fn_x2 else "codes"
    return _arrays(scale=scale, decoded=decoded, **{stored: data})


def torchao_nvfp4(x):
    import torch
    from torchao.prototype.mx_formats import nvfp4_tensor as nvfp4

    x = _tensor(x)
    outer = nvfp4.per_tensor_amax_to_scale(x.abs().max())
    scale, data = nvfp4.nvfp4_quantize(x, per_tensor_scale=outer)
    decoded = nvfp4.NVFP4Tensor.to_nvfp4(x, per_tensor_scale=outer).dequantize(torch.float32)
    return _arrays(data=data, scale=scale, global_scale=outer, decoded=decoded)


def compressed_tensors_integer(x, *, bits, symmetric, group_size=None):
    import torch
    from compressed_tensors.compressors.pack_quantized import helpers
    from compressed_tensors.quantization import QuantizationArgs, utils
    from compressed_tensors.quantization.lifecycle import forward

    group_size = group_size or (128 if bits < 8 else None)
    by_group = {"strategy": "group", "group_size": group_size}
    strategy = by_group if group_size else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **strategy)
    x = _tensor(x)
    blocks = x.unflatten(-1, (-1, group_size)) if group_size else x.unsqueeze(1)
    scale, zero = utils.calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
    codes = forward.quantize(x, scale, zero, args, dtype=torch.int8)
    decoded = forward.dequantize(codes, scale, zero, args)
    parts = _arrays(codes=codes, scale=scale, decoded=decoded)
    if bits < 8:
        data = helpers.pack_to_int32(codes, bits)
        assert torch.equal(helpers.unpack_from_int32(data, bits, x.shape), codes)
        parts |= _arrays(data=data)
    return parts if symmetric else parts | _arrays(zero_point=zero)


def compressed_tensors_nvfp4(x):
    import torch
    from compressed_tensors.compressors.nvfp4 import helpers
    from compressed_tensors.quantization import QuantizationArgs, utils
    from compressed_tensors.quantization.lifecycle import forward

    args = QuantizationArgs(
        num_bits=4,
        type="float",
        symmetric=True,
        strategy="tensor_group",
        group_size=16,
        scale_dtype=torch.float8_e4m3fn,
    )
    x = _tensor(x)
    outer = utils.generate_gparam(x.amin(), x.amax())
    blocks = x.unflatten(-1, (-1, 16))
    scale, zero = utils.calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, outer)
    values = forward.quantize(x, scale, zero, args, global_scale=outer)
    decoded = forward.dequantize(values, scale, None, args, global_scale=outer)
    data = helpers.pack_fp4_to_uint8(values)
    scale = scale.to(args.scale_dtype)
    return _arrays(data=data, scale=scale, global_scale=outer, decoded=decoded)


def bitsandbytes_4bit(x, *, kind, flat=64, nested=False, mean=None):
    from bitsandbytes import functional

    data, state = functional.quantize_4bit(
        _tensor(x), blocksize=flat, quant_type=kind, compress_statistics=nested
    )
    if mean is not None:
        absmax = functional.quantize_4bit(_tensor(x), blocksize=flat, quant_type=kind)[1].absmax
        state.offset = _tensor(mean).reshape(())
        state.absmax, state.state2 = functional.quantize_blockwise(
            absmax - state.offset, blocksize=256
        )
    with _eager():
        decoded = functional.dequantize_4bit(data, state)
    parts = _arrays(data=data, scale=state.absmax, decoded=decoded)
    if nested:
        parts |= _arrays(global_scale=state.state2.absmax, global_offset=state.offset)
    return parts


def bitsandbytes_8bit(x, *, flat=4096):
    from bitsandbytes import functional

    codes, state = functional.quantize_blockwise(_tensor(x), blocksize=flat)
    decoded = functional.dequantize_blockwise(codes, state)
    return _arrays(codes=codes, scale=state.absmax, decoded=decoded)


def bitsandbytes_rows(x):
    from bitsandbytes import functional

    codes, absmax, _ = functional.int8_vectorwise_quant(_tensor(x))
    decoded = functional.int8_vectorwise_dequant(codes, absmax)
    return _arrays(codes=codes, scale=absmax, decoded=decoded)


def _eager():
    """Let nothing be compiled: that takes seconds for each shape."""
    import torch

    return torch.compiler.set_stance("force_eager")


def mlx_affine(x, *, bits, group_size=64):
    import mlx.core as mx

    def array(a):
        if a.dtype == mx.bfloat16:
            return np.array(a.view(mx.uint16)).view(ml_dtypes.bfloat16)
        return np.array(a)

    x = mx.array(x.astype(np.float32)).astype(getattr(mx, x.dtype.name))
    size = {"group_size": group_size, "bits": bits}
    data, scales, biases = mx.quantize(x, **size)
    decoded = mx.dequantize(data, scales, biases, **size)
    parts = {"data": data, "scale": scales, "offset": biases, "decoded": decoded}
    return {name: array(part) for name, part in parts.items()}


def mlx_float(x, *, mode, bits, group_size, known):
    import mlx.core as mx

    choices = {"group_size": group_size, "bits": bits, "mode": mode}
    parts = {}
    if known:
        parts["global_scale"] = np.abs(x).max()
        choices["global_scale"] = mx.array(parts["global_scale"])
    data, scale = mx.quantize(mx.array(x), **choices)
    decoded = mx.dequantize(data, scale, dtype=mx.float32, **choices)
    return parts | {"data": np.array(data), "scale": np.array(scale), "decoded": np.array(decoded)}


def faiss_scalar(x, *, bits):
    import faiss

    kind = getattr(faiss.ScalarQuantizer, f"QT_{bits}bit")
    index = faiss.IndexScalarQuantizer(x.shape[1], kind)
    index.train(x)
    offset, scale = np.split(faiss.vector_to_array(index.sq.trained), 2)
    offset = offset + np.float32(0)  # which zero is the smallest depends on the order
    data = index.sa_encode(x)
    return {"data": data, "scale": scale, "offset": offset, "decoded": index.sa_decode(data)}


def onnx_linear(x, *, kind):
    """QuantizeLinear and DequantizeLinear, for uint8 with the scale of DynamicQuantizeLinear."""
    from onnx import TensorProto, helper

    element = np.dtype(helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind.upper())))
    limits = ml_dtypes.finfo(element) if kind.startswith("float") else ml_dtypes.iinfo(element)
    span = np.float32(limits.max)
    if kind == "uint8":
        codes, scale, zero = _onnx("DynamicQuantizeLinear", kind)(x)
    else:
        low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
        extent = high - low if kind.startswith("uint") else max(high, -low)
        scale = extent / span or np.float32(1) / (span if kind.startswith("uint") else 1)
        zero = np.clip(np.rint(-low / scale), 0, span) if kind.startswith("uint") else 0.0
        zero = np.asarray(zero).astype(np.int32).astype(element)
        (codes,) = _onnx("QuantizeLinear", kind)(x, scale, zero)
    (decoded,) = _onnx("DequantizeLinear", kind)(codes, scale, zero)
    codes = codes.view(np.uint8) if kind.startswith("float") else codes.astype(np.int32)
    parts = {"codes": codes, "scale": np.asarray(scale), "decoded": decoded}
    return parts | ({"zero_point": zero.astype(np.int32)} if kind.startswith("uint") else {})


@cache
def _onnx(operator: str, kind: str) -> Callable[..., list[np.ndarray]]:
    """Give a function that runs one operator of the ONNX reference."""
    from onnx import TensorProto, helper, reference

    number, element = TensorProto.FLOAT, getattr(TensorProto, kind.upper())
    inputs = {"x": number, "scale": number, "zero_point": element}
    outputs = {"y": element}
    if operator == "DynamicQuantizeLinear":
        inputs, outputs = {"x": number}, outputs | {"scale": number, "zero_point": element}
    if operator == "DequantizeLinear":
        inputs["x"], outputs = element, {"y": number}
    node = helper.make_node(operator, list(inputs), list(outputs))
    values = (
        [helper.make_tensor_value_info(name, dtype, None) for name, dtype in side.items()]
        for side in (inputs, outputs)
    )
    graph = helper.make_graph([node], operator, *values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])
    evaluator = reference.ReferenceEvaluator(model)
    return lambda *arrays: evaluator.run(None, dict(zip(inputs, arrays, strict=True)))
