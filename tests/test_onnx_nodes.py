"""The node tests that ONNX publishes for its quantization operators, and ragged blocks."""

import os
import warnings

import ml_dtypes
import numpy as np
import pytest

if not os.environ.get("QUANTARRAY_ORACLES"):
    pytest.skip("owners' packages: run by `nox -s oracles`", allow_module_level=True)

from helpers import bits
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator

import quantarray as qa

pytestmark = pytest.mark.backend_independent

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # computing the data of other nodes overflows
    NODES = {test.name: test for test in load_model_tests(kind="node") if "quantizel" in test.name}
QUANTIZE, DEQUANTIZE, DYNAMIC = (
    tuple(name for name in NODES if name.startswith(f"test_{operator}"))
    for operator in ("quantizelinear", "dequantizelinear", "dynamicquantizelinear")
)


def test_no_node_is_left_out():
    assert (len(QUANTIZE), len(DEQUANTIZE), len(DYNAMIC)) == (13, 14, 6)
    assert len(NODES) == 33
    # The expanded ones are other graphs with the same data.
    assert sum(name.endswith("_expanded") for name in NODES) == 3
    assert all(len(test.data_sets) == 1 for test in NODES.values())


def array_of(value):
    """Give an array; types without one in NumPy come as a protocol buffer."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.item()
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def data_of(name):
    """Give the inputs and the outputs of a node."""
    return ([array_of(value) for value in side] for side in NODES[name].data_sets[0])


def options_of(name):
    """Give the attributes of a node."""
    node = NODES[name].model.graph.node[0]
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def codes_of(array):
    """Give what quantarray calls the codes of an array of one of ONNX's types."""
    name = array.dtype.name
    if name.startswith("float"):
        return array.view(np.uint8)
    narrow = "uint8" if name.startswith("uint") else "int8"
    return array if array.dtype.itemsize > 1 else array.astype(narrow)


def preset_of(dtype):
    """Name the preset of an element type."""
    return f"onnx:{np.dtype(dtype).name.replace('_', '').replace('float4e2m1fn', 'float4e2m1')}"


def scheme_of(dtype, shape, scale, axis=1, block_size=0, **ignored):
    """Give the scheme in which a scale of that shape belongs to the blocks it does in ONNX."""
    if scale.size == 1:
        return qa.scheme(preset_of(dtype))
    if not block_size:
        return qa.scheme(preset_of(dtype), channel_axis=axis)
    extents = [1] * len(shape)
    extents[axis] = block_size
    return qa.scheme(preset_of(dtype), block=tuple(extents))


def zero_of(arrays):
    """Give the zero point; that of a float type only names the type."""
    if not arrays or arrays[0].dtype.name.startswith("float"):
        assert not arrays or not arrays[0].astype(np.float32).any()
        return {}
    return {"zero_point": codes_of(arrays[0])}


def check_quantize(inputs, expected, options):
    """Quantize, and compare the codes and their dtype."""
    x, scale, *zero = inputs
    scheme = scheme_of(expected.dtype, x.shape, scale, **options)
    q = qa.quantize(x, scheme, scale=scale, **zero_of(zero))
    np.testing.assert_array_equal(q.codes, codes_of(expected), strict=True)


def check_dequantize(inputs, expected, options):
    """Decode codes, and compare the bits of the values."""
    codes, scale, *zero = inputs
    scheme = scheme_of(codes.dtype, codes.shape, scale, **options)
    dtype = expected.dtype.name
    q = qa.from_codes(codes_of(codes), scheme, scale=scale, dtype=dtype, **zero_of(zero))
    assert q.dequantize().dtype == expected.dtype
    np.testing.assert_array_equal(bits(q.dequantize()), bits(expected))


@pytest.mark.parametrize("name", QUANTIZE)
def test_quantize_linear(name):
    inputs, (expected,) = data_of(name)
    check_quantize(inputs, expected, options_of(name))


@pytest.mark.parametrize("name", DEQUANTIZE)
def test_dequantize_linear(name):
    inputs, (expected,) = data_of(name)
    check_dequantize(inputs, expected, options_of(name))


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_quantize_linear(name):
    (x,), (codes, scale, zero) = data_of(name)
    q = qa.quantize(x, "onnx:uint8")
    np.testing.assert_array_equal(q.codes, codes, strict=True)
    np.testing.assert_array_equal(q.scale.reshape(()), scale, strict=True)
    np.testing.assert_array_equal(q.zero_point.reshape(()), zero, strict=True)


RAGGED = [("int4", 0, 3), ("uint8", 1, 5), ("int16", 2, 4), ("uint2", 1, 2), ("float8e5m2", 2, 3)]


@pytest.mark.parametrize(("kind", "axis", "size"), RAGGED)
def test_ragged_blocks(kind, axis, size):
    """The last block is shorter; of this ONNX has no node test, but its reference."""
    random = np.random.default_rng(5)
    x = random.standard_normal((4, 9, 7)).astype(np.float32)
    shape = list(x.shape)
    shape[axis] = -(-shape[axis] // size)
    scale = random.uniform(0.05, 0.5, shape).astype(np.float32)
    number = getattr(TensorProto, kind.upper())
    element = helper.tensor_dtype_to_np_dtype(number)
    zero = np.zeros(shape, np.int8)
    if "int" in kind:
        limits = ml_dtypes.iinfo(element)
        zero = random.integers(max(limits.min, -20), min(limits.max, 20), shape, endpoint=True)
    zero = zero.astype(element)
    options = {"axis": axis, "block_size": size}

    def run(operator, first, source, result):
        node = helper.make_node(operator, ["x", "scale", "zero"], ["y"], **options)
        kinds = {"x": source, "scale": TensorProto.FLOAT, "zero": number}
        values = [helper.make_tensor_value_info(k, dtype, None) for k, dtype in kinds.items()]
        output = [helper.make_tensor_value_info("y", result, None)]
        graph = helper.make_graph([node], operator, values, output)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])
        return ReferenceEvaluator(model).run(None, {"x": first, "scale": scale, "zero": zero})[0]

    codes = run("QuantizeLinear", x, TensorProto.FLOAT, number)
    decoded = run("DequantizeLinear", codes, number, TensorProto.FLOAT)
    check_quantize([x, scale, zero], codes, options)
    check_dequantize([codes, scale, zero], decoded, options)
