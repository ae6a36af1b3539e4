"""The bytes of a quantized array: of its parts, one after another, little-endian."""

import ml_dtypes
import numpy as np
import pytest
from helpers import DTYPES, SESSION, assert_same_quantized, lacks, moved

import quantarray as qa
from quantarray import QuantArrayError, _xp
from quantarray.parts import PARTS, part_specs

numpy = _xp.load("numpy")
only_numpy = pytest.mark.backend_independent
ELSEWHERE = ("uint4", "gptq:int4", "bnb:nf4_nested", "mlx:affine4", "onnx:int16", "gguf:q4_k")
NAMES = qa.schemes() if SESSION in (None, "numpy") else ELSEWHERE


def quantized(name, dtype="float32", shape=(6, 256)):
    x = np.random.default_rng(3).standard_normal(shape).astype(numpy.dtype(_xp.dtype(numpy, dtype)))
    return qa.quantize(x, name)


def expected(q):
    """Give the bytes of the parts in the order in which files name them."""
    words = (np.asarray(part) for part in q.parts().values())
    return b"".join(w.view(f"u{w.itemsize}").astype(f"<u{w.itemsize}").tobytes() for w in words)


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name, xp):
    reference = quantized(name)
    data = moved(reference, xp).to_bytes()
    assert data == expected(reference)
    assert len(data) == reference.nbytes
    again = qa.QuantizedArray.from_bytes(data, name, reference.shape)
    assert_same_quantized(again, reference, numpy)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["mlx:affine4", "torchao:uint8", "nvfp4", "gguf:q5_1"])
def test_parts_of_every_dtype(name, dtype, xp):
    if reason := lacks(_xp.backend(xp), dtype):
        pytest.skip(reason)
    reference = quantized(name, dtype)
    data = moved(reference, xp).to_bytes()
    assert data == expected(reference)
    again = qa.QuantizedArray.from_bytes(data, reference.scheme, reference.shape, dtype)
    assert_same_quantized(again, reference, numpy)


@only_numpy
def test_the_bytes_are_those_of_the_parts():
    q = qa.from_codes(np.asarray([[1, 2, -3]]), "int4", scale=1.5)
    assert q.to_bytes() == bytes([0x21, 0x0D]) + np.float32(1.5).tobytes()
    assert np.float32(1.5).tobytes() == b"\x00\x00\xc0\x3f"  # on a little-endian machine
    x = np.asarray([0.0, 15.0], ml_dtypes.bfloat16)
    q = qa.quantize(x, "torchao:uint4")
    assert q.to_bytes() == b"\xf0" + b"\x80\x3f" + b"\x00"  # 0x3f80 is 1 in bfloat16
    assert list(q.parts()) == ["data", "scale", "zero_point"]


@only_numpy
@pytest.mark.parametrize("name", qa.schemes())
def test_parts_are_announced_in_their_order(name):
    q = quantized(name)
    assert list(q.parts()) == list(part_specs(q.scheme, q.shape, "float32"))
    assert list(q.parts()) == [part for part in PARTS if part in q.parts()]


@only_numpy
@pytest.mark.parametrize("shape", [(), (5,), (0, 8), (2, 3, 8)])
@pytest.mark.parametrize("name", ["int8", "int4", "uint3", "nvfp4", "nf4"])
def test_any_shape(name, shape):
    scheme = qa.scheme(name, channel_axis=0) if name == "int8" and shape else qa.scheme(name)
    if not shape and scheme.block.axes:
        return
    q = quantized(scheme, shape=shape)
    again = qa.QuantizedArray.from_bytes(q.to_bytes(), scheme, list(shape), np.float32)
    assert_same_quantized(again, q, numpy)


@only_numpy
@pytest.mark.parametrize("kind", [bytearray, memoryview, lambda d: np.frombuffer(d, np.uint8)])
def test_any_buffer_is_read_and_copied(kind):
    q = quantized("uint4")
    data = kind(q.to_bytes())
    again = qa.QuantizedArray.from_bytes(data, "uint4", q.shape)
    assert_same_quantized(again, q, numpy)
    assert all(part.flags.owndata or part.base.flags.owndata for part in again.parts().values())
    assert all(part.flags.aligned and part.flags.writeable for part in again.parts().values())


@only_numpy
def test_arrays_that_are_not_contiguous():
    q = quantized("uint8")
    turned = {name: np.asfortranarray(part) for name, part in q.parts().items()}
    strided = qa.QuantizedArray.from_parts(turned, q.scheme, q.shape, "float32")
    assert strided.to_bytes() == q.to_bytes()
    assert q[1:5:2].to_bytes() != q.to_bytes()


@only_numpy
@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (
            bytes(391),
            ("uint4", (6, 128)),
            "data has 391 bytes: expected 389, for data 384, scale 4",
        ),
        (b"", ("uint4", (6, 128)), "data has 0 bytes: expected 389"),
        (bytes(4), ("int8", (1 << 40, 1 << 20)), "data has 4 bytes: expected 1152921504606846980"),
        ("text", ("int8", (4,)), "data is a str: expected bytes"),
        (np.zeros((4, 4))[:, ::2], ("int8", (4,)), "data is a ndarray: expected bytes"),
        (b"", ("int8", (-1,)), "shape=-1: expected an integer, 0 to"),
        (b"", ("int8", (2.0,)), r"shape=2\.0: expected an integer"),
        (b"", ("int8", (4,), "int8"), "dtype='int8': expected float16, bfloat16"),
        (b"", (qa.scheme("int8", channel_axis=3), (4, 4)), "axis 3 of the scheme's block"),
        (b"", ("int44", (4,)), "scheme: 'int44' is not known"),
        (b"", ("gptq:int4", (256,)), "transpose='words': .*at least 2 axes"),
    ],
)
def test_refusals(data, arguments, message):
    with pytest.raises(QuantArrayError, match=message):
        qa.QuantizedArray.from_bytes(data, *arguments)


@only_numpy
def test_arrays_of_the_other_byte_order():
    q = quantized("uint4")
    swapped = q.scale_data.astype(q.scale_data.dtype.newbyteorder())
    parts = {**q.parts(), "scale": swapped}
    other = qa.QuantizedArray.from_parts(parts, q.scheme, q.shape, "float32")
    assert other.to_bytes() == q.to_bytes()
