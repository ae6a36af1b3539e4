"""The table of peers: who else does what a case is about, and how they are called."""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import onnx_runtime
import packages
import plain
from plain import Array, Ways
from timing import Row, describe, timer


class Peer(NamedTuple):
    """A way of others to quantize."""

    who: str
    # As it is imported; a peer that is not installed is not there.
    package: str
    # Gives its operations on a matrix: "quantize", "dequantize", "dequantize out=".
    make: Callable[[Array], Ways]
    # What it does otherwise. Such a peer is measured, but is never the best one.
    near: str = ""


def _plain(
    quantize: Callable[..., plain.Stored], dequantize: Callable[..., Array]
) -> tuple[Peer, Peer]:
    ways = {"quantize": quantize, "dequantize": dequantize}
    return (
        Peer("NumPy formula", "numpy", partial(plain.numpy_ways, **ways)),
        Peer("jax.jit formula", "jax", partial(plain.jax_ways, **ways)),
    )


def _compiled(quantize: Callable[..., plain.Stored], dequantize: Callable[..., Array]) -> Peer:
    ways = {"quantize": quantize, "dequantize": dequantize}
    return Peer("torch.compile formula", "torch", partial(plain.torch_ways, **ways))


def _torchao(bits: int, signed: bool, block: tuple[int, int], near: str = "") -> Peer:
    make = partial(packages.torchao_affine, bits=bits, signed=signed, block=block)
    return Peer("torchao", "torchao", make, near)


def _microscaling(element: str) -> Peer:
    return Peer("torchao", "torchao", partial(packages.torchao_microscaling, element=element))


def _compressed_tensors(bits: int, symmetric: bool, group: int | None) -> Peer:
    choices = {"bits": bits, "symmetric": symmetric, "group": group}
    make = partial(packages.compressed_tensors_integer, **choices)
    return Peer("compressed-tensors", "compressed_tensors", make)


def _gguf(kind: str, near: str) -> Peer:
    return Peer(f"gguf-py {kind}", "gguf", partial(packages.gguf, kind=kind), near)


def _faiss(bits: int) -> Peer:
    near = "a range for each column"
    return Peer(f"faiss SQ{bits}", "faiss", partial(packages.faiss_scalar, bits=bits), near)


def _mlx(name: str, near: str = "", **choices: object) -> Peer:
    return Peer(f"mlx {name}", "mlx", partial(packages.mlx, **choices), near)


def _onnxruntime(kind: str, block: tuple[int, int]) -> tuple[Peer, Peer]:
    make = partial(onnx_runtime.linear, kind=kind, block=block)
    return (
        Peer("onnxruntime, NumPy scales", "onnxruntime", make),
        Peer(
            "onnxruntime, scales given",
            "onnxruntime",
            lambda x: {"quantize": make(x, given=True)["quantize"]},
            "derives no scales",
        ),
    )


UNPACKED = "a byte for each code"
PEERS: dict[str, tuple[Peer, ...]] = {
    "int8 per row": (
        *_plain(partial(plain.quantize_int8, axis=1), plain.dequantize_int8),
        _compiled(partial(plain.quantize_int8_torch, axis=(1,)), plain.dequantize_torch),
        Peer("torch per channel", "torch", packages.torch_per_channel),
        _torchao(8, True, (1, -1)),
        _compressed_tensors(8, True, None),
        Peer("bitsandbytes rows", "bitsandbytes", packages.bitsandbytes_rows),
        *_onnxruntime("INT8", (1, -1)),
        Peer("NumPy multiply, out=", "numpy", packages.numpy_int8_into),
        Peer("torch.mul, out=", "torch", packages.torch_int8_into),
        Peer("bitsandbytes 8-bit", "bitsandbytes", packages.bitsandbytes_8bit, "a table of values"),
        _gguf("Q8_0", "groups of 32"),
        _faiss(8),
        _mlx("affine8", "groups of 128", group=128, bits=8),
    ),
    "int8 per tensor": (
        *_plain(partial(plain.quantize_int8, axis=None), plain.dequantize_int8),
        _compiled(partial(plain.quantize_int8_torch, axis=(0, 1)), plain.dequantize_torch),
        Peer("torch per tensor", "torch", packages.torch_per_tensor),
        _torchao(8, True, (-1, -1)),
        *_onnxruntime("INT8", (-1, -1)),
    ),
    "int4 g128": (
        *_plain(plain.quantize_int4, plain.dequantize_int4),
        _compiled(plain.quantize_int4_torch, plain.dequantize_int4_torch),
        _compressed_tensors(4, True, 128),
        *_onnxruntime("INT4", (1, 128)),
        _torchao(4, True, (1, 128), UNPACKED),
        _gguf("Q4_0", "groups of 32"),
    ),
    "uint4 g128": (
        *_plain(plain.quantize_uint4, plain.dequantize_uint4),
        _compressed_tensors(4, False, 128),
        _mlx("affine4", group=128, bits=4),
        _torchao(4, False, (1, 128), UNPACKED),
        _gguf("Q4_1", "groups of 32"),
        _faiss(4),
    ),
    "nf4": (
        *_plain(plain.quantize_nf4, plain.dequantize_nf4),
        Peer("bitsandbytes", "bitsandbytes", packages.bitsandbytes_nf4),
    ),
    "mxfp4": (
        *_plain(plain.quantize_mxfp4, plain.dequantize_mxfp4),
        _microscaling("float4_e2m1fn_x2"),
        _mlx("mxfp4", group=32, bits=4, mode="mxfp4"),
        _gguf("MXFP4", "codes by distance"),
    ),
    "nvfp4": (
        *_plain(plain.quantize_nvfp4, plain.dequantize_nvfp4),
        Peer("torchao", "torchao", packages.torchao_nvfp4),
        _mlx("nvfp4", group=16, bits=4, mode="nvfp4", outer=True),
    ),
    "fp8_e4m3 per row": (
        *_plain(plain.quantize_fp8, plain.dequantize_int8),
        _compiled(plain.quantize_fp8_torch, plain.dequantize_torch),
        *_onnxruntime("FLOAT8E4M3FN", (1, -1)),
        Peer("ml_dtypes cast", "ml_dtypes", packages.ml_dtypes_cast, "no scales"),
        Peer("torch cast", "torch", packages.torch_cast, "no scales"),
    ),
    "mxfp8_e4m3": (
        *_plain(plain.quantize_mxfp8, plain.dequantize_mxfp8),
        _microscaling("float8_e4m3fn"),
        _mlx("mxfp8", group=32, bits=8, mode="mxfp8"),
    ),
}


def rows(x: Array, label: str, operations: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    """Give the rows of every installed peer, with their operation.

    One that cannot even be prepared is a row of each operation, with its error.
    """
    for peer in PEERS[label]:
        if importlib.util.find_spec(peer.package) is None:
            continue
        kind = "near" if peer.near else "peer"
        try:
            ways = peer.make(x)
        except Exception as failure:  # whatever a peer raises is a result, and not the end
            for operation in operations:
                failed = Row(peer.who, kind, float, peer.near, error=describe(failure))
                yield operation, failed
            continue
        for operation, function in ways.items():
            yield operation, Row(peer.who, kind, timer(function), peer.near)
