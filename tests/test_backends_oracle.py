"""The NumPy reference against an independent oracle: loops over blocks, written from the design.

Nothing of quantarray takes part in what is expected here.
"""

import itertools
import math
import re

import ml_dtypes
import numpy as np
import pytest
from corpus import KINDS, SHAPES, corpus, poisoned, shaped
from helpers import DTYPES, assert_same

import quantarray as qa
from quantarray import _xp, pipeline

pytestmark = pytest.mark.backend_independent
NUMPY = _xp.load("numpy")

MINIFLOATS = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "fp8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}


# The exponent of the largest power of two that each element format holds.
MICROSCALING = {
    "mxfp8_e4m3": ("fp8_e4m3", 8),
    "mxfp8_e5m2": ("fp8_e5m2", 15),
    "mxfp6_e3m2": ("fp6_e3m2", 4),
    "mxfp6_e2m3": ("fp6_e2m3", 2),
    "mxfp4": ("fp4_e2m1", 2),
}


class Native:
    """A native scheme by its name: integers, symmetric or with a zero point, or a minifloat."""

    def __init__(self, name):
        element, self.power = MICROSCALING.get(name, (name, None))
        match = re.fullmatch(r"(u?)int(\d)", element)
        self.zero = bool(match and match[1])
        self.bits = int(match[2]) if match else int(element[2])
        self.minifloat = MINIFLOATS.get(element)
        if self.minifloat:
            self.top = float(ml_dtypes.finfo(self.minifloat).max)
            codes = np.arange(2 ** (self.bits - 1), dtype=np.uint8)
            values = codes.view(self.minifloat).astype(np.float64)
            self.values = values[np.isfinite(values)]
        else:
            self.top = float(2**self.bits - 1 if self.zero else 2 ** (self.bits - 1) - 1)

    def scale(self, x, tiny):
        """Give the scale and the zero point of the finite elements of a block."""
        kind = x.dtype.type
        low, high = (min(x.min(), 0), max(x.max(), 0)) if self.zero else (0, np.abs(x).max())
        low, high = (kind(0) if abs(v) < tiny else kind(v) for v in (low, high))
        if low == high == 0:
            return kind(1), 0
        if self.power is not None:
            exponent = math.frexp(high)[1] - 1 - self.power
            return kind(2.0 ** max(exponent, -126)), 0
        with np.errstate(over="ignore"):
            span = high - low
        if np.isinf(span):
            scale = (high / 4 - low / 4) / kind(self.top) * 4
        else:
            scale = span / kind(self.top)
        scale = max(scale, kind(tiny))
        return scale, int(np.clip(np.rint(-low / scale), 0, self.top)) if self.zero else 0

    def encode(self, x, scale, zero, tiny):
        """Give the codes of a block; Inf takes an extreme code and NaN that of 0."""
        x = np.where(np.isnan(x), x.dtype.type(0), x)
        x = np.where(np.abs(x) < tiny, np.copysign(x.dtype.type(0), x), x)
        with np.errstate(over="ignore"):
            quotient = x / scale
        if self.minifloat:
            return self.nearest(quotient)
        lowest = 0 if self.zero else -self.top
        quotient = np.clip(quotient, -1e6, 1e6)
        return np.clip(np.rint(quotient) + zero, lowest, self.top)

    def nearest(self, quotient):
        """Give the minifloat codes by comparing with every midpoint; ties go to the even code."""
        magnitude, values = np.abs(quotient).astype(np.float64), self.values
        middle = (values[1:] + values[:-1]) / 2
        codes = np.searchsorted(middle, magnitude, side="right")
        tie = (codes > 0) & (magnitude == middle[np.maximum(codes, 1) - 1])
        codes = np.where(tie & (codes % 2 == 1), codes - 1, codes)
        sign = np.signbit(quotient)
        if "fnuz" in self.minifloat.__name__:
            sign &= codes > 0
        return codes + (sign << (self.bits - 1))

    def decode(self, codes, scale, zero, dtype):
        """Give the values of the codes of a block, clipped to what the dtype holds."""
        kind = type(scale)
        values = codes - zero
        if self.minifloat:
            values = codes.astype(np.uint8).view(self.minifloat).astype(kind)
        with np.errstate(over="ignore"):
            values = values.astype(kind) * scale
        tiny = np.finfo(kind).smallest_normal
        values = np.where(np.abs(values) < tiny, np.copysign(kind(0), values), values)
        # The arithmetic's own largest value, where a wider dtype is asked for.
        top = min(float(ml_dtypes.finfo(t).max) for t in (dtype, kind))
        return np.clip(values, -kind(top), kind(top)).astype(dtype)


def blocks_of(shape, kind):
    """Give lists of (indices into the raveled array, position in the grid), block by block."""
    index = np.arange(math.prod(shape)).reshape(shape)
    extents = list(shape)
    if "channel_axis" in kind:
        extents[kind["channel_axis"]] = 1
    if "group_size" in kind:
        extents = [1] * len(shape)
        extents[kind.get("group_axis", -1)] = kind["group_size"]
    if "block" in kind:
        extents = [n if e == -1 else e for e, n in zip(kind["block"], shape, strict=True)]
    if "flat" in kind:
        index, extents = index.reshape(-1), [kind["flat"]]
    counts = [math.ceil(n / e) if n else 0 for n, e in zip(index.shape, extents, strict=True)]
    for at in itertools.product(*map(range, counts)):
        cut = tuple(slice(i * e, (i + 1) * e) for i, e in zip(at, extents, strict=True))
        yield index[cut].reshape(-1), at


def oracle(x, name, kind, nonfinite="raise", decoded="float32"):
    """Give codes, scales, zero points and decoded values, each by block."""
    scheme = Native(name)
    work = np.float64 if x.dtype == np.float64 else np.float32
    tiny = np.finfo(work).smallest_normal
    flat, dtype = x.reshape(-1).astype(work), np.dtype(getattr(ml_dtypes, decoded, decoded))
    codes, values = np.zeros(flat.shape), np.zeros(flat.shape, dtype)
    scales, zeros = {}, {}
    for index, at in blocks_of(x.shape, kind):
        block = flat[index]
        finite = np.isfinite(block)
        if nonfinite == "propagate" and not finite.all():
            scales[at], zeros[at], values[index] = np.nan, 0, np.nan
            continue
        scale, zero = scheme.scale(np.where(finite, block, work(0)), tiny)
        codes[index] = scheme.encode(block, scale, zero, tiny)
        values[index] = scheme.decode(codes[index], scale, zero, dtype)
        scales[at], zeros[at] = scale, zero
    signed = not (scheme.zero or scheme.minifloat)
    return {
        "codes": codes.reshape(x.shape).astype("int8" if signed else "uint8"),
        "scale": np.asarray(list(scales.values()), work),
        "zero_point": np.asarray(list(zeros.values()), "uint8") if scheme.zero else None,
        "values": values.reshape(x.shape),
    }


def pack(codes, bits):
    """Pack the rows of codes: the first code in the lowest bits of the first byte."""
    *rows, count = codes.shape
    padded = math.ceil(count * bits / 8) * 8
    places = np.zeros((*rows, padded), np.uint8)
    for bit in range(bits):
        places[..., bit : count * bits : bits] = codes.astype(np.uint8) >> bit & 1
    return np.packbits(places, axis=-1, bitorder="little")


def check(x, name, kind, nonfinite="raise", decoded="float32"):
    """Assert that NumPy's codes, scales, bytes and decoded values are those of the oracle."""
    if name in MICROSCALING and not kind:
        kind = {"group_size": 32}
    if name in MICROSCALING and x.dtype == np.float64:
        return  # an eight-bit exponent holds no such corpus
    expected = oracle(x, name, kind, nonfinite, decoded)
    blocks = {key: value for key, value in kind.items() if key != "flat"}
    chosen = qa.scheme(name, flat=kind["flat"]) if "flat" in kind else name
    q = qa.quantize(x, chosen, nonfinite=nonfinite, **blocks)
    assert_same(q.scale.reshape(-1), expected["scale"], NUMPY)
    assert (q.zero_point is None) == (expected["zero_point"] is None)
    if q.zero_point is not None:
        assert_same(q.zero_point.reshape(-1), expected["zero_point"], NUMPY)
    assert_same(q.codes, expected["codes"], NUMPY)
    assert_same(q.dequantize(decoded), expected["values"], NUMPY)
    bits = Native(name).bits
    if bits < 8:
        codes = expected["codes"].reshape(-1) if "flat" in kind else expected["codes"]
        stored = pack(np.atleast_1d(codes), bits)
        assert_same(q.data.reshape(stored.shape), stored, NUMPY)
    else:
        assert_same(q.data, expected["codes"], NUMPY)


INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in range(2, 9))
NATIVE = (*INTEGERS, *MINIFLOATS, *MICROSCALING)
FEW = ("int8", "int3", "uint8", "uint5", "fp8_e4m3", "fp4_e2m1", "mxfp8_e4m3", "mxfp6_e3m2")


def test_every_oracle_is_of_a_preset():
    assert set(NATIVE) <= set(qa.schemes())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FEW)
def test_every_block(name, kind):
    check(corpus(), name, KINDS[kind])


@pytest.mark.parametrize("name", NATIVE)
def test_every_preset(name):
    check(corpus(), name, KINDS["ragged group"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FEW)
def test_every_dtype(name, dtype):
    for kind in ("group", "case"):
        check(corpus(dtype), name, KINDS[kind], decoded=dtype)


@pytest.mark.parametrize("decoded", DTYPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_decoding_to_every_dtype(dtype, decoded):
    for name in FEW:
        check(corpus(dtype), name, KINDS["ragged group"], decoded=decoded)


@pytest.mark.parametrize("nonfinite", ["propagate", "saturate"])
@pytest.mark.parametrize("name", FEW)
def test_nonfinite(name, nonfinite):
    for kind in ("group", "column of case", "flat"):
        check(poisoned(), name, KINDS[kind], nonfinite)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape], ids=str)
@pytest.mark.parametrize("name", FEW)
def test_every_shape(name, shape):
    for kind in ({"group_size": 5}, {"flat": 7}, {"block": tuple(range(2, 2 + len(shape)))}):
        check(shaped(shape), name, kind)


@pytest.mark.parametrize("piece", [1, 8, 100, 1 << 40])
@pytest.mark.parametrize("name", FEW)
def test_pieces_of_any_size_change_no_bit(monkeypatch, name, piece):
    for kind in KINDS.values():
        blocks = {key: value for key, value in kind.items() if key != "flat"}
        chosen = qa.scheme(name, flat=kind["flat"]) if "flat" in kind else name
        expected = qa.quantize(poisoned()[:5], chosen, nonfinite="propagate", **blocks)
        values = expected.dequantize()
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "PIECE", piece)
            q = qa.quantize(poisoned()[:5], chosen, nonfinite="propagate", **blocks)
            for part, array in expected.parts().items():
                assert_same(q.parts()[part], array, NUMPY)
            assert_same(q.dequantize(), values, NUMPY)


@pytest.mark.parametrize("piece", [8, 1 << 40])
def test_pieces_count_elements_for_stochastic_rounding(monkeypatch, piece):
    for kind in ("own", "column", "ragged group"):
        scheme = qa.scheme("int3", rounding="stochastic")
        expected = qa.quantize(corpus()[:5], scheme, key=9, **KINDS[kind])
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "PIECE", piece)
            q = qa.quantize(corpus()[:5], scheme, key=9, **KINDS[kind])
        assert_same(q.data, expected.data, NUMPY)


def test_the_oracle_can_tell():
    """Half-even, division and the flush of subnormals each decide codes of this corpus."""
    x = corpus()
    rows = x.reshape(-1, x.shape[-1])
    scale = np.maximum(np.abs(rows).max(1, keepdims=True) / np.float32(127), 2.0**-126)
    scale = scale.astype(np.float32)
    right = np.rint(rows / scale)
    assert (np.floor(rows / scale + 0.5) != right).any()
    assert (np.rint(rows * (1 / scale)) != right).any()
    tiny = np.abs(rows) < np.finfo(np.float32).smallest_normal
    assert (right[tiny] != 0).any()
