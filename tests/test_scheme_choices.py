"""Choices of a scheme that no preset makes yet: float offsets, 16-bit scales, other roundings."""

import ml_dtypes
import numpy as np
import pytest
from helpers import lacks, to_backend

import quantarray as qa
from quantarray import _xp
from quantarray.formats import BFLOAT16, FLOAT16, FORMATS
from quantarray.scheme import Packing, Rounding, Scale

AFFINE = qa.scheme("uint4", zero="offset", scale=Scale("range", divisor=15.0), group_size=16)


def host(array):
    return None if array is None else _xp.to_numpy(array)


def groups(seed=0, rows=12, columns=64):
    x = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    x[0] += 100
    x[1] *= np.float32(1e-37)
    x[2] *= np.float32(1e30)
    x[3] = 2.5
    x[4, :2] = -3.4e38, 3.4e38
    return x


def test_offset_is_the_smallest_element(xp):
    """x = s * c + m with m = min, s = (max - min) / 15: no zero is forced into the range."""
    x = groups()
    q = qa.quantize(to_backend(x, xp), AFFINE)
    blocks = x.reshape(12, 4, 16)
    low, high = blocks.min(axis=-1), blocks.max(axis=-1)
    low = np.where(np.abs(low) < 2.0**-126, 0, low)
    np.testing.assert_array_equal(host(q.offset), low)
    ordinary = np.ones((12, 4), bool)
    ordinary[[1, 3]] = ordinary[4, 0] = False
    with np.errstate(over="ignore"):
        scale = (high - low) / np.float32(15)
    np.testing.assert_array_equal(host(q.scale)[ordinary], scale[ordinary])
    assert (host(q.scale)[3] == 1).all()  # constant blocks decode exactly
    shifted = (blocks[ordinary] - low[ordinary][:, None]) / scale[ordinary][:, None]
    codes = np.clip(np.rint(shifted), 0, 15).astype(np.uint8)
    np.testing.assert_array_equal(host(q.codes).reshape(12, 4, 16)[ordinary], codes)
    decoded = host(q.dequantize()).reshape(12, 4, 16)
    expected = scale[ordinary][:, None] * codes.astype(np.float32) + low[ordinary][:, None]
    np.testing.assert_array_equal(decoded[ordinary], expected)
    assert (decoded[3] == 2.5).all()
    assert np.isfinite(decoded).all()


def test_offset_spans_twice_the_largest_float(xp):
    x = np.zeros((1, 16), np.float32)
    x[0, :3] = -3.4e38, 3.4e38, 1.7e38
    q = qa.quantize(to_backend(x, xp), AFFINE)
    assert host(q.codes)[0, :4].tolist() == [0, 15, 11, 8]
    np.testing.assert_allclose(host(q.dequantize())[0, :2], [-3.4e38, 3.4e38], rtol=1e-6)


def test_given_offset(xp):
    x = to_backend(np.array([[-1.0, 0.0, 0.25, 9.0]], np.float32), xp)
    q = qa.quantize(x, qa.scheme(AFFINE, group_size=4), scale=0.25, offset=-1.0)
    assert host(q.codes).tolist() == [[0, 4, 5, 15]]
    assert host(q.dequantize()).tolist() == [[-1.0, 0.0, 0.25, 2.75]]
    built = qa.from_codes(q.codes, qa.scheme(AFFINE, group_size=4), scale=0.25, offset=-1.0)
    assert host(built.dequantize()).tolist() == [[-1.0, 0.0, 0.25, 2.75]]
    assert (host(built.data) == host(q.data)).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"offset": 1.0}, "offset needs the scale it belongs to"),
        ({"scale": 1.0}, "scheme uint4 needs its offset: give offset with scale"),
        ({"scale": 1.0, "zero_point": 1}, "needs its offset: give offset"),
        ({"scale": 1.0, "zero_point": 1, "offset": 1.0}, "exclude one another"),
        ({"scale": 1.0, "offset": float("nan")}, "offset lies in nan..nan"),
        ({"scale": 1.0, "offset": "1"}, "offset='1' is str"),
    ],
)
def test_wrong_offsets_are_refused(given, message, xp):
    with pytest.raises(qa.QuantArrayError, match=message):
        qa.quantize(xp.zeros((2, 16), dtype=xp.float32), AFFINE, **given)


def test_poisoned_blocks_with_offsets(xp):
    x = groups()[5:7]
    clean = host(qa.quantize(to_backend(x, xp), AFFINE).dequantize()).copy()
    x[0, 20] = np.inf
    decoded = host(qa.quantize(to_backend(x, xp), AFFINE, nonfinite="propagate").dequantize())
    assert np.isnan(decoded[0, 16:32]).all()
    clean[0, 16:32] = decoded[0, 16:32]
    np.testing.assert_array_equal(decoded, clean)


@pytest.mark.parametrize(
    ("number", "dtype"), [(FLOAT16, np.float16), (BFLOAT16, ml_dtypes.bfloat16)]
)
def test_sixteen_bit_scales(number, dtype, xp):
    """Codes come from the scale as stored."""
    if lacks(_xp.backend(xp), np.dtype(dtype).name):
        pytest.skip(f"{_xp.backend(xp)} has no such dtype")
    scheme = qa.scheme("int4", scale=Scale("absmax", 7.0, number), group_size=16)
    x = groups(1)[5:]
    q = qa.quantize(to_backend(x, xp), scheme)
    absmax = np.abs(x.reshape(7, 4, 16)).max(axis=-1)
    stored = (absmax / np.float32(7)).astype(dtype)
    assert host(q.scale_data).dtype == dtype
    np.testing.assert_array_equal(host(q.scale_data), stored)
    np.testing.assert_array_equal(host(q.scale), stored.astype(np.float32))
    quotient = x.reshape(7, 4, 16) / stored.astype(np.float32)[..., None]
    codes = np.clip(np.rint(quotient), -7, 7).reshape(7, 64)
    np.testing.assert_array_equal(host(q.codes), codes)
    assert q.bits_per_element == 4 + 16 / 16


def test_sixteen_bit_scales_neither_vanish_nor_overflow(xp):
    if lacks(_xp.backend(xp), "float16"):
        pytest.skip("array-api-strict has no float16")
    scheme = qa.scheme("int4", scale=Scale("absmax", 7.0, FLOAT16), group_size=16)
    small = qa.quantize(to_backend(np.full((1, 16), 1e-9, np.float32), xp), scheme)
    assert host(small.scale_data).tolist() == [[2.0**-24]]
    if _xp.backend(xp) != "dask":
        with pytest.raises(qa.QuantArrayError, match="beyond 458528"):
            qa.quantize(to_backend(np.full((1, 16), 1e6, np.float32), xp), scheme)


def test_reciprocal_quotients_and_zero_added_before(xp):
    x = np.random.default_rng(2).standard_normal((40, 33)).astype(np.float32)
    scheme = qa.scheme("uint8", rounding=Rounding("half_away", "reciprocal", "before"))
    q = qa.quantize(to_backend(x, xp), scheme, channel_axis=0)
    scale, zero = host(q.scale), host(q.zero_point).astype(np.float32)
    shifted = x * (np.float32(1) / scale) + zero
    away = np.floor(np.abs(shifted).astype(np.float64) + 0.5) * np.sign(shifted)
    np.testing.assert_array_equal(host(q.codes), np.clip(away, 0, 255))


def test_ternary_of_the_largest_magnitude_is_int2(xp):
    x = to_backend(groups(3), xp)
    q, r = (
        qa.quantize(x, qa.scheme("ternary", scale_rule="absmax"), group_size=16),
        qa.quantize(x, "int2", group_size=16),
    )
    for name, part in q.parts().items():
        np.testing.assert_array_equal(host(part), host(r.parts()[name]))
    with pytest.raises(qa.QuantArrayError, match="scale_rule='floor': expected one of 'absmax'"):
        qa.scheme("ternary", scale_rule="floor")


def test_msb_packing_is_the_other_nibble_first(xp):
    x = to_backend(np.array([[1, 2, 3, -7]], np.float32), xp)
    q = qa.quantize(x, qa.scheme("int4", packing=Packing("msb")))
    assert host(q.data).tolist() == [[0x12, 0x39]]
    assert host(qa.quantize(x, "int4").data).tolist() == [[0x21, 0x93]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"zero": "offset"}, "zero='offset' needs the scale rule 'range'"),
        ({"zero": "none", "scale": Scale("range", 15.0)}, "needs a zero point or an offset"),
        ({"element": qa.scheme("nf4").element}, "only plain integer elements"),
    ],
)
def test_choices_that_do_not_fit(overrides, message):
    with pytest.raises(qa.QuantArrayError, match=message):
        qa.scheme("uint4", **overrides)


def test_scale_formats_without_nan_are_refused():
    with pytest.raises(qa.QuantArrayError, match="expected one with a NaN"):
        Scale("absmax", 7.0, FORMATS["e2m1fn"])
