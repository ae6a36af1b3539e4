"""Zero points in words, beside packers written from those of the owners, one code at a time."""

import numpy as np
import pytest
from helpers import SESSION, assert_same, moved, to_backend

import quantarray as qa
from quantarray import QuantArrayError
from quantarray.formats import Integer
from quantarray.scheme import Packing
from quantarray.zero_points import LAYOUTS, pack_zero_points, unpack_zero_points

GROUPS = 3
# JAX compiles anew for every width.
WIDTHS = (3, 4) if SESSION == "jax" else range(2, 9)
GPTQ_WIDTHS = sorted({2, 3, 4, 8} & {*WIDTHS})


def quantized(bits, out, *, signed=False, like="gptq:int4", low=None):
    """Give an array of random codes and zero points."""
    scheme = qa.scheme(like, element=Integer(bits, signed=signed), packing=Packing(), zero="point")
    scheme = qa.scheme(scheme, group_size=8)
    rng, (least, most) = np.random.default_rng(bits * 100 + out), scheme.element.codes
    codes = rng.integers(least, most + 1, (out, 8 * GROUPS))
    low = least if low is None else low
    zero = rng.integers(low, most + 1, (out, GROUPS))
    return qa.from_codes(codes, scheme, scale=0.5, zero_point=zero)


def autogptq(zeros, bits):
    """Pack as AutoGPTQ's QuantLinear.pack does: zeros are (groups, out)."""
    zeros = (zeros.astype(np.int64) - 1).astype(np.uint32)
    qzeros = np.zeros((zeros.shape[0], zeros.shape[1] // 32 * bits), dtype=np.uint32)
    i = column = 0
    while column < qzeros.shape[1]:
        if bits in (2, 4, 8):
            for j in range(i, i + 32 // bits):
                qzeros[:, column] |= zeros[:, j] << np.uint32(bits * (j - i))
            i += 32 // bits
            column += 1
            continue
        for j in range(i, i + 10):
            qzeros[:, column] |= zeros[:, j] << np.uint32(3 * (j - i))
        i += 10
        qzeros[:, column] |= zeros[:, i] << np.uint32(30)
        column += 1
        qzeros[:, column] |= (zeros[:, i] >> np.uint32(2)) & np.uint32(1)
        i += 1
        for j in range(i, i + 10):
            qzeros[:, column] |= zeros[:, j] << np.uint32(3 * (j - i) + 1)
        i += 10
        qzeros[:, column] |= zeros[:, i] << np.uint32(31)
        column += 1
        qzeros[:, column] |= (zeros[:, i] >> np.uint32(1)) & np.uint32(3)
        i += 1
        for j in range(i, i + 10):
            qzeros[:, column] |= zeros[:, j] << np.uint32(3 * (j - i) + 2)
        i += 10
        column += 1
    return qzeros.view(np.int32)


def autoawq(zeros):
    """Pack as AutoAWQ's WQLinear_GEMM.from_linear does."""
    words = np.zeros((zeros.shape[0], zeros.shape[1] // 8), np.uint32)
    for column in range(words.shape[1]):
        for i, j in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            words[:, column] |= zeros[:, column * 8 + j].astype(np.uint32) << np.uint32(4 * i)
    return words.view(np.int32)


def bit_by_bit(zeros, bits, *, dense):
    """Pack along axis 0, as compressed-tensors does: all releases, or those before June 2026."""
    out, groups = zeros.shape
    fields = zeros.astype(np.int64) + (1 << (bits - 1))
    per_word = 32 // bits
    words = np.zeros((-(-out * bits // 32) if dense else -(-out // per_word), groups), np.uint32)
    for i in range(out):
        first = i * bits if dense else i // per_word * 32 + i % per_word * bits
        for bit in range(bits):
            word, shift = divmod(first + bit, 32)
            words[word] |= ((fields[i] >> bit & 1) << shift).astype(np.uint32)
    return words.view(np.int32)


def assert_both_ways(q, layout, words, xp):
    there = moved(q, xp)
    assert_same(pack_zero_points(there, layout), words, xp)
    back = unpack_zero_points(to_backend(words, xp), layout, q.scheme, q.shape[-2])
    assert_same(back, q.zero_point, xp)


@pytest.mark.parametrize("bits", GPTQ_WIDTHS)
def test_gptq_stores_one_less(bits, xp):
    q = quantized(bits, 64, low=1)  # AutoGPTQ's own packer spills the bits of 0 - 1
    assert_both_ways(q, "gptq_v1", autogptq(q.zero_point.T, bits), xp)
    assert_both_ways(q, "gptq_v2", autogptq(q.zero_point.T.astype(np.int64) + 1, bits), xp)


@pytest.mark.parametrize("bits", GPTQ_WIDTHS)
def test_zero_less_one_is_the_largest_code(bits, xp):
    q = quantized(bits, 64)
    q = qa.from_codes(q.codes, q.scheme, scale=0.5, zero_point=np.zeros((64, GROUPS), np.uint8))
    words = np.full((GROUPS, 2 * bits), -1, np.int32)
    assert_both_ways(q, "gptq_v1", words, xp)
    assert_both_ways(q, "gptq_v2", np.zeros_like(words), xp)


def test_awq_interleaves_and_stores_zero_points_as_they_are(xp):
    q = quantized(4, 32)
    assert_both_ways(q, "awq", autoawq(q.zero_point.T), xp)


@pytest.mark.parametrize("out", [32, 45])
@pytest.mark.parametrize("bits", WIDTHS)
def test_compressed_tensors_packs_along_the_first_axis(bits, out, xp):
    q = quantized(bits, out, signed=True)
    assert_both_ways(q, "ct", bit_by_bit(q.zero_point, bits, dense=True), xp)
    assert_both_ways(q, "ct_sparse", bit_by_bit(q.zero_point, bits, dense=False), xp)


def test_leading_axes(xp):
    one, other = quantized(4, 32), quantized(4, 32, low=2)
    q = qa.from_codes(
        np.stack([one.codes, other.codes]),
        one.scheme,
        scale=0.5,
        zero_point=np.stack([one.zero_point, other.zero_point]),
    )
    for layout in LAYOUTS:
        words = np.stack([pack_zero_points(one, layout), pack_zero_points(other, layout)])
        assert_both_ways(q, layout, words, xp)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out", [1, 7, 8, 40])
def test_any_number_of_rows(layout, out):
    q = quantized(4, out, signed=layout.startswith("ct"))
    words = pack_zero_points(q, layout)
    assert (unpack_zero_points(words, layout, q.scheme, out) == q.zero_point).all()


def test_a_layer_of_a_gptq_file():
    """As a reader of files builds an array: from `qweight`, `scales` and `qzeros`."""
    x = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    q = qa.quantize(x, "gptq:int4")
    file = {"qweight": q.data, "scales": q.scale_data.T, "qzeros": pack_zero_points(q, "gptq_v1")}
    assert (file["qweight"].shape, file["qzeros"].shape) == ((32, 64), (2, 8))
    assert (file["qzeros"] == np.int32(0x77777777)).all()
    parts = {
        "data": file["qweight"],
        "scale": file["scales"].T,
        "zero_point": unpack_zero_points(file["qzeros"], "gptq_v1", "gptq:int4", 64),
    }
    again = qa.QuantizedArray.from_parts(parts, q.scheme, (64, 256), "float32")
    assert (again.dequantize() == q.dequantize()).all()


Q = quantized(4, 32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_zero_points(Q, "gptq"), "pack_zero_points: layout='gptq': expected one of"),
        (lambda: pack_zero_points(Q[0], "awq"), "expected zero points, and 2 axes or more"),
        (
            lambda: pack_zero_points(qa.quantize(np.ones((8, 8)), "int4"), "ct"),
            "pack_zero_points: scheme int4: expected one with zero points of 8 bits or less",
        ),
        (lambda: pack_zero_points(quantized(3, 32), "awq"), "interleave=.* codes of 3 bits"),
        (
            lambda: unpack_zero_points(np.zeros((3, 4), np.int32), "awq", "onnx:uint16", 32),
            "unpack_zero_points: scheme onnx:uint16: expected one with zero points of 8 bits",
        ),
        (
            lambda: unpack_zero_points(np.zeros((3, 4), np.int64), "awq", "awq:int4", 32),
            r"data has shape \(3, 4\), int64: expected 2 axes or more, 4 words of int32 along",
        ),
        (
            lambda: unpack_zero_points(np.zeros((3, 4), np.int32), "awq", "awq:int4", 33),
            r"data has shape \(3, 4\), int32: .* 5 words of int32 along axis -1",
        ),
        (
            lambda: unpack_zero_points(np.zeros((3, 4), np.int32), "ct", "awq:int4", 32),
            "4 words of int32 along axis -2",
        ),
        (
            lambda: unpack_zero_points(np.zeros((3, 4), np.int32), "ct", "awq:int4", -1),
            "unpack_zero_points: count=-1: expected an integer",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(QuantArrayError, match=message):
        call()
