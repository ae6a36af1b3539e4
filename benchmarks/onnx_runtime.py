"""Operators in ONNX Runtime, one at a time."""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from plain import Array, Ways


def linear(x: Array, kind: str, block: tuple[int, int], given: bool = False) -> Ways:
    """QuantizeLinear and DequantizeLinear; scales from NumPy, or given."""
    import onnxruntime

    highest = np.float32({"INT8": 127, "INT4": 7, "FLOAT8E4M3FN": 448}[kind])
    choices: dict[str, Any] = {"axis": 0}
    if block[1] != -1:
        choices = {"axis": 1, "block_size": block[1]}

    def scales() -> Array:
        if block == (-1, -1):
            return np.asarray(max(x.max(), -x.min()) / highest)
        groups = x.reshape(len(x), -1, x.shape[1] if block[1] == -1 else block[1])
        scale = np.maximum(groups.max(axis=-1), -groups.min(axis=-1)) / highest
        return scale[:, 0] if block[1] == -1 else scale

    into = onnxruntime.OrtValue.ortvalue_from_shape_and_type(x.shape, np.float32)
    known = scales()
    forth = operator("QuantizeLinear", ("FLOAT", "FLOAT"), kind, **choices)
    back = operator("DequantizeLinear", (kind, "FLOAT"), "FLOAT", **choices)
    codes = forth(x, known)
    return {
        "quantize": (lambda: forth(x, known)) if given else lambda: forth(x, scales()),
        "dequantize": lambda: back(codes, known),
        "dequantize out=": lambda: back(codes, known, into=into),
    }


@cache
def operator(
    name: str, kinds: tuple[str, ...], result: str, domain: str = "", **attributes: Any
) -> Callable[..., Any]:
    """Give a function that runs one operator in ONNX Runtime; its results stay there."""
    import onnxruntime
    from onnx import TensorProto, helper

    def described(names: list[str], types: tuple[str, ...]) -> list[Any]:
        pairs = zip(names, types, strict=True)
        return [helper.make_tensor_value_info(n, getattr(TensorProto, t), None) for n, t in pairs]

    names = [f"x{number}" for number in range(len(kinds))]
    if name == "QuantizeLinear":
        attributes["output_dtype"] = getattr(TensorProto, result)
    node = helper.make_node(name, names, ["y"], domain=domain, **attributes)
    graph = helper.make_graph([node], name, described(names, kinds), described(["y"], (result,)))
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)

    def run(*inputs: Any, into: Any = None) -> Any:
        binding = session.io_binding()
        for input_name, value in zip(names, inputs, strict=True):
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(input_name, value)
            else:
                binding.bind_ortvalue_input(input_name, value)
        if into is None:
            binding.bind_output("y", "cpu")
        else:
            binding.bind_ortvalue_output("y", into)
        session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    return run
