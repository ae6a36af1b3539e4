"""From scheme to scheme: the same codes, scales and zeros, or a refusal that says what is lost."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from helpers import ANY_SHAPE, assert_same_quantized, bits, dtypes_of, lacks, moved, to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import quantarray as qa
from quantarray import QuantArrayError, _xp, translate
from quantarray.blocks import from_end
from quantarray.formats import DTYPES, FORMATS, Float, Integer
from quantarray.scheme import Block, Packing, Scale, Scheme

only_numpy = pytest.mark.backend_independent
SHAPE = (32, 128)


def gaussian(shape=SHAPE, dtype=np.float32):
    return np.random.default_rng(11).standard_normal(shape).astype(dtype)


def full(name, shape=SHAPE, zero=None, scale=None, **options):
    """Give an array of every code, with random scales of few bits, and zero points."""
    scheme, rng = qa.scheme(name, **options), np.random.default_rng(12)
    element, kind = scheme.element, scheme.zero_kind
    least, most = element.codes if isinstance(element, Integer) else (0, (1 << element.bits) - 1)
    codes = rng.integers(least, most + 1, shape)
    scheme = replace(scheme, block=from_end("test", scheme.block, shape))
    grid = qa.quantize(np.ones(shape, np.float32), scheme).scale.shape
    scale = np.ldexp(rng.integers(1, 200, grid), -9) if scale is None else scale
    if kind == "point" and zero is None:
        zero = rng.integers(least, most + 1, grid)
    name = {"point": "zero_point", "offset": "offset"}.get(kind)
    return qa.from_codes(codes, scheme, scale=scale, **({name: zero} if name else {}))


def added(a, b):
    """Give what is added to codes, from the definition of their ranges."""
    if not isinstance(a, Integer):
        return 0
    return replace(b, narrow=False).codes[0] - replace(a, narrow=False).codes[0]


def real(q, at):
    """Give the real number that an element means."""
    element = q.scheme.element
    code = int(q.codes[at])
    block = tuple(i // e for i, e in zip(at, q.blocks.extents, strict=True))
    scale = Fraction(float(q.scale[block]))
    value = Fraction(code) - Fraction(element.origin)
    value -= int(q.zero_point[block]) if q.zero_point is not None else 0
    shift = Fraction(float(q.offset[block])) if q.offset is not None else 0
    return scale * value / Fraction(element.steps) + shift


def assert_repacked(q, r, target):
    """Assert what is true of every array that was repacked, of NumPy."""
    wanted = qa.scheme(target)
    assert r.scheme == replace(wanted, block=r.scheme.block)
    assert (r.shape, r.dtype_name) == (q.shape, q.dtype_name)
    assert qa.QuantizedArray.from_parts(r.parts(), r.scheme, r.shape, r.dtype_name)
    assert (bits(r.scale.ravel()) == bits(q.scale.ravel())).all()
    shift = added(q.scheme.element, r.scheme.element)
    assert (r.codes.astype(int) == q.codes.astype(int) + shift).all()
    if q.offset is None and r.offset is None:
        assert (bits(r.dequantize()) == bits(q.dequantize())).all()
    else:
        for at in np.ndindex(*q.shape):
            assert real(r, at) == real(q, at)
            if at[-1] > 3:
                break


SMALL = {"group_size": 16}
# (from, to): plain integers, with zero points of half the codes or none.
SYMMETRIC = [
    *(
        (a, b)
        for a in ("onnx:int4", "torchao:int4", "ct:int4")
        for b in ("uint4", "onnx:uint4", "torchao:uint4", "gptq:int4", "awq:int4", "ct:int4")
    ),
    ("int4", "torchao:int4"),
    ("int4", "ct:int4_asymmetric"),
    ("int4", "gptq:int4"),
    ("int4", "mlx:affine4"),
    ("int3", "gptq:int3"),
    ("ternary", "int2"),
    ("int2", "gptq:int2"),
    ("int8", "onnx:uint8"),
    ("int8", "mlx:affine8"),
    ("ct:int8", "gptq:int8"),
    ("onnx:int16", "onnx:uint16"),
]
ZERO_POINTS = [
    *((a, b) for a in ("uint4", "awq:int4") for b in ("ct:int4_asymmetric", "gptq:int4", "uint4")),
    ("gptq:int4", "awq:int4"),
    ("gptq:int8", "onnx:uint8"),
    ("torchao:uint4", "awq:int4"),
    ("ct:int8_asymmetric", "torchao:uint8"),
    ("awq:int4", "mlx:affine4"),
    ("gptq:int3", "mlx:affine3"),
    ("onnx:uint8", "mlx:affine8"),
    ("onnx:uint8", "st:int8"),
]
VALUES = [
    ("nf4", "nf4"),
    ("fp8_e4m3", "onnx:float8e4m3fn"),
    ("onnx:float8e5m2", "fp8_e5m2"),
    ("onnx:float4e2m1", "fp4_e2m1"),
    ("mxfp4", "torchao:mxfp4"),
    ("torchao:mxfp4", "mxfp4"),
    ("torchao:mxfp6_e2m3", "mxfp6_e2m3"),
    ("mxfp8_e5m2", "torchao:mxfp8_e5m2"),
    ("nvfp4", "torchao:nvfp4"),
    ("torchao:nvfp4", "nvfp4"),
    ("st:binary", "st:ubinary"),
]
OFFSETS = [("st:int8", "st:uint8"), ("st:uint8", "mlx:affine8"), ("st6:int8", "mlx:affine8")]


@only_numpy
@pytest.mark.parametrize(("source", "target"), [*SYMMETRIC, *ZERO_POINTS])
def test_integers(source, target):
    q = full(source, **SMALL)
    r = q.repack(target)
    assert_repacked(q, r, target)
    shift = added(q.scheme.element, r.scheme.element)
    zero = 0 if q.zero_point is None else q.zero_point.astype(int)
    if r.zero_point is not None:
        assert (r.zero_point.astype(int) == zero + shift).all()
    if r.offset is not None:
        point = zero + shift + q.scheme.element.origin - r.scheme.element.origin
        assert (r.offset == -(r.scale * point)).all()
    if r.zero_point is None and r.offset is None:
        assert np.all(zero + shift == 0)
    assert_same_quantized(r.repack(q.scheme), q, _xp.load("numpy"))


@only_numpy
@pytest.mark.parametrize(("source", "target"), [*VALUES, *OFFSETS])
def test_what_owners_quantized_alike(source, target):
    q = qa.quantize(gaussian(), source)
    r = q.repack(target)
    assert_repacked(q, r, target)
    assert_same_quantized(r.repack(q.scheme), q, _xp.load("numpy"))


@only_numpy
def test_no_pair_of_presets_gives_another_value():
    """Whatever is not refused is exact, there and back."""
    exact, schemes = 0, [qa.scheme(name) for name in ANY_SHAPE]
    for shape, options in ((SHAPE, {}), ((8, 20), {"block": (1, 8)}), ((8, 64), {"flat": 24})):
        for scheme in schemes:
            if scheme.packing.transpose != "no" and "flat" in options:
                continue
            q = qa.quantize(gaussian(shape), qa.scheme(scheme, **options))
            for target in schemes:
                try:
                    r = q.repack(target)
                except QuantArrayError:
                    continue
                exact += 1
                if r.scheme.block != q.scheme.block:
                    assert (q.scheme.block.flat, r.scheme.block.flat).count(None) == 1
                if q.scheme.scale.rule != "edge" or (q.scale > 0).all():
                    assert_repacked(q, r, target)
                levels = [s.scale.outer is None for s in (q.scheme, r.scheme)]
                if q.scheme.zero_kind == r.scheme.zero_kind and levels[0] == levels[1]:
                    assert_same_quantized(r.repack(q.scheme), q, _xp.load("numpy"))
    assert exact > 400


def held(name, format_):
    scheme = qa.scheme(name, group_size=16)
    return qa.scheme(scheme, scale=replace(scheme.scale, format=FORMATS.get(format_, format_)))


# (from, to, on which values it depends whether that is exact).
CASES = [
    ("int4", qa.scheme("gptq:int4"), None),
    ("awq:int4", qa.scheme("ct:int4_asymmetric"), None),
    ("onnx:int16", qa.scheme("onnx:uint16"), None),
    ("ct:int4", qa.scheme("ct:int4", packing=Packing(word=32, excess=True, dense=False)), None),
    ("gptq:int3", qa.scheme("mlx:affine3"), "scales"),
    ("int4", held("uint4", DTYPES["float16"]), "scales"),
    ("torchao:mxfp4", qa.scheme("fp4_e2m1"), "scales"),
]


@pytest.mark.parametrize(("source", "target", "looks"), CASES, ids=str)
def test_backends(source, target, looks, xp):
    if target.scale.format is not None and lacks(_xp.backend(xp), "float16"):
        pytest.skip("no float16")
    coded = qa.scheme(source).scale.coded
    q = full(source, (8, 32)) if coded is None else qa.quantize(gaussian((4, 64)), source)
    there, reference = moved(q, xp), q.repack(target)
    if looks and _xp.backend(xp) == "dask":
        with pytest.raises(QuantArrayError, match=f"depends on the {looks}, which traced and lazy"):
            there.repack(target)
        return
    dtypes = [name for name in dtypes_of(xp) if name != "float64"]
    assert_same_quantized(there.repack(target), reference, xp, dtypes=dtypes)
    if source == "onnx:int16":  # libraries have few operations on uint16
        back = there.repack(target).repack(qa.scheme("onnx:int16", zero="point"))
        assert (to_numpy(back.codes) == q.codes).all()


@pytest.mark.parametrize("name", ["bnb:nf4_nested", "nf4"])
def test_raveled_blocks_and_scales_of_scales(name, xp):
    q = qa.quantize(gaussian((6, 128)), name)
    if _xp.backend(xp) != "dask" or name == "nf4":
        r = moved(q, xp).repack("bnb:nf4")
        assert_same_quantized(r, q.repack("bnb:nf4"), xp, dtypes=["float32"])
        assert (to_numpy(r.scale_data) == q.scale.ravel()).all()
        assert r.scheme.block == Block(flat=64)


def negative(xp=None):
    """Give an array of MLX's with exact offsets, every second scale negative."""
    rng = np.random.default_rng(5)
    scale = np.ldexp(rng.integers(1, 60, (8, 4)), -6) * np.where(np.arange(4) % 2, 1, -1)
    zero = rng.integers(0, 16, (8, 4))
    codes = rng.integers(0, 16, (8, 30))  # the last block is a ragged one
    scheme = qa.scheme("mlx:affine4", group_size=8)
    return qa.from_codes(codes, scheme, scale=scale, offset=-scale * zero), zero


def test_negative_scales_turn_codes_around(xp):
    q, zero = negative()
    if _xp.backend(xp) == "dask":
        with pytest.raises(QuantArrayError, match="depends on the scales, which traced and lazy"):
            moved(q, xp).repack("uint4")
        return
    for target in ("uint4", "ct:int4_asymmetric", "awq:int4"):
        r = q.repack(target)
        assert_same_quantized(moved(q, xp).repack(target), r, xp, dtypes=["float32"])
        shift = added(q.scheme.element, r.scheme.element)
        turned = np.repeat(q.scale < 0, 8, axis=1)[:, :30]
        assert (r.codes.astype(int) - shift == np.where(turned, 15 - q.codes, q.codes)).all()
        assert (r.scale == np.abs(q.scale)).all()
        assert (r.zero_point.astype(int) - shift == np.where(q.scale < 0, 15 - zero, zero)).all()
        assert all(real(r, at) == real(q, at) for at in np.ndindex(*q.shape))


@only_numpy
def test_offsets_that_are_refused():
    q = full("awq:int4", scale=np.float32(1) / 3, group_size=16)
    count = int((q.zero_point.astype(int) & (q.zero_point.astype(int) - 1) != 0).sum())
    inexact = sum(
        Fraction(float(np.float32(q.scale[i] * np.float32(q.zero_point[i]))))
        != Fraction(float(q.scale[i])) * int(q.zero_point[i])
        for i in np.ndindex(*q.zero_point.shape)
    )
    assert 0 < inexact <= count
    message = f"awq:int4 to mlx:affine4: {inexact} of 256 offsets are not exact in float32"
    with pytest.raises(QuantArrayError, match=message):
        q.repack("mlx:affine4")
    q = qa.quantize(gaussian(), "mlx:affine4")
    with pytest.raises(QuantArrayError, match=r"of 64 offsets are no whole number of scales"):
        q.repack("uint4")
    # Six scales from zero is no code of the 4-bit range; 20 is none either.
    q = qa.from_codes(np.ones((2, 4), int), "mlx:affine4", scale=1.0, offset=20.0)
    with pytest.raises(QuantArrayError, match=r"2 of 2 zero points are beyond 0\.\.15"):
        q.repack("uint4")
    with pytest.raises(QuantArrayError, match="32 of 64 scales are negative"):
        full("mlx:affine8", scale=np.tile([1.0, -1.0], (32, 1)), zero=0.0).repack("st:uint8")


@only_numpy
def test_offsets_of_narrow_dtypes():
    x = gaussian((4, 64), np.float16)
    q = qa.quantize(x, "mlx:affine4")
    assert q.offset.dtype == np.float16
    wide = qa.scheme("mlx:affine4", scale=replace(q.scheme.scale, width="arithmetic"))
    r = q.repack(wide)
    assert (r.offset.dtype, r.scale_data.dtype) == (np.float32, np.float32)
    assert (r.offset == q.offset).all()
    assert (r.repack(q.scheme).offset == q.offset).all()
    off = replace(r, offset_data=r.offset + np.float32(2**-20))
    with pytest.raises(QuantArrayError, match="4 of 4 offsets are none of float16"):
        off.repack(q.scheme)
    # A float16 scale times a code has more bits than float16, but not than float32.
    q = qa.quantize(x, "torchao:uint4", group_size=16)
    with pytest.raises(QuantArrayError, match=r"\d+ of 16 offsets are not exact in float16"):
        q.repack("mlx:affine4")
    r = q.repack(wide)
    assert all(real(r, at) == real(q, at) for at in np.ndindex(4, 64))


UINT4, MLX = full("uint4", **SMALL), qa.quantize(gaussian(), "mlx:affine4")
REFUSED = [
    (full("onnx:int4", **SMALL), "int4", r"\d+ of 4096 codes are beyond -7\.\.7"),
    (full("onnx:uint4", zero=np.full((1, 1), 8)), "int4", r"\d+ of 4096 codes are beyond 1\.\.15"),
    (UINT4, "torchao:int4", r"\d+ of 256 blocks have another zero than 8, and it has no zero"),
    (UINT4, "uint8", "its codes mean other values"),
    (UINT4, "nf4", "its codes mean other values"),
    (full("st:uint8", zero=1.0, scale=0.375), "onnx:int8", "128 of 128 offsets are no whole"),
    (full("st:uint8", zero=0.0), "int8", "codes are beyond"),
    (qa.quantize(gaussian(), "faiss:sq8"), "st:uint8", "its codes mean other values"),
    (qa.quantize(gaussian(), "mxint8"), "int8", "its codes mean other values"),
    (qa.quantize(gaussian(), "nf4"), "bnb:fp4", "its codes mean other values"),
    (qa.quantize(gaussian(), "fp8_e4m3"), "fp8_e4m3fnuz", "its codes mean other values"),
    (qa.quantize(gaussian(), "int4"), Scheme("bare", Integer(4, signed=False)),
     "it has no zero points, and its codes would need 8"),
    (qa.quantize(gaussian(), "st:uint8"),
     Scheme("o", Integer(8, signed=False, origin=-3.0), scale=Scale("range", 255.0), zero="offset"),
     "its codes would change all offsets, by 3 scales"),
    (full("uint4", zero=np.full((1, 1), 0)),
     qa.scheme("int4", zero="point", element=Integer(4, narrow=True)),
     r"\d+ of 4096 codes are beyond 1\.\.15"),
    (qa.quantize(gaussian(), "fp4_e2m1"), "mxfp4", "1 of 1 scales are none of e8m0fnu"),
    (qa.quantize(gaussian(), "fp4_e2m1"), "nvfp4", "it has two levels of scales: expected"),
    (qa.quantize(gaussian(), "nvfp4"), "mxfp4", r"\d+ of 256 scales are none of e8m0fnu"),
    (qa.quantize(gaussian(), "nf4"), "bnb:nf4_nested", "it has two levels of scales"),
    (qa.quantize(gaussian(), "int8"), held("int8", DTYPES["float16"]),
     "1 of 1 scales are none of float16"),
    (qa.quantize(gaussian(), "int8"), held("int8", "e4m3fn"), "1 of 1 scales are none of e4m3fn"),
    (qa.quantize(gaussian(), "binary"), "st:binary", "1 of 1 scales are not 1"),
    (full("ct:int8", scale=1e-39), "int8", r"codes are beyond|32 of 32 scales are less than"),
    (full("ct:int8", scale=1e-39), "onnx:int8", r"32 of 32 scales are less than 1\.17549e-38"),
    (qa.quantize(gaussian((64,)), "int4"), "gptq:int4",
     r"it exchanges axes, and the shape is \(64,\): expected 2 axes or more"),
    (qa.quantize(gaussian((4, 96)), "nf4"), "bnb:nf4",
     r"blocks \(blocks of 64 along axis -1\) of the shape \(4, 96\) cannot be counted as flat 64"),
    (qa.quantize(gaussian((4, 96)), "bnb:nf4"), "nf4", r"blocks \(flat 64\) of the shape"),
    (qa.quantize(gaussian((4, 96)), "nf4", block=(2, 32)), "bnb:nf4", "cannot be counted"),
    (qa.quantize(gaussian((4, 96)), qa.scheme("int4", flat=64)), "gptq:int4", "cannot be counted"),
]  # fmt: skip


@only_numpy
@pytest.mark.parametrize(("q", "target", "message"), REFUSED)
def test_refusals(q, target, message):
    start = f"^repack: {q.scheme.name} to {qa.scheme(target).name}: "
    with pytest.raises(QuantArrayError, match=f"{start}.*(?:{message})"):
        q.repack(target)


@only_numpy
def test_schemes_that_are_no_presets():
    offsets = Scheme("o", Integer(8, signed=False), scale=Scale("range", 255.0), zero="offset")
    assert_repacked(full("onnx:int8"), full("onnx:int8").repack(offsets), offsets)
    points = qa.scheme("int4", zero="point")
    r = full("int4").repack(points)
    assert_repacked(full("int4"), r, points)
    assert (r.zero_point == 0).all()
    assert (r.repack("mlx:affine4").offset == -8 * r.scale).all()


@only_numpy
def test_unknown_schemes_are_refused():
    with pytest.raises(QuantArrayError, match="scheme: 'int44' is not known"):
        UINT4.repack("int44")


@only_numpy
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_inverse_of_a_global_scale(dtype):
    x = gaussian(SHAPE, dtype)
    for absmax in (2688.0, 2688.0 * 2.0**-12, 2688.0 * 2.0**30):
        x = x / np.abs(x).max() * dtype(absmax)
        q = qa.quantize(x, "nvfp4")
        r = q.repack("ct:nvfp4")
        assert (r.global_scale == 1 / q.global_scale).all()
        assert (r.scale == q.scale).all()
        assert (r.dequantize() == q.dequantize()).all()
        assert (r.repack("nvfp4").global_scale == q.global_scale).all()
    q = qa.quantize(gaussian(SHAPE, dtype) * dtype(1.1), "nvfp4")
    values = np.asarray(FORMATS["e4m3fn"].table, dtype)[q.scale_data]
    lost = int((values * q.global_scale != values / (dtype(1) / q.global_scale)).sum())
    assert 0 < lost < 256
    with pytest.raises(QuantArrayError, match=f"{lost} of 256 scales would change, as the other"):
        q.repack("ct:nvfp4")


@only_numpy
@pytest.mark.parametrize("scale", [0.0, np.inf, np.nan])
def test_global_scales_without_an_inverse(scale):
    q = qa.quantize(gaussian(), "nvfp4")
    q = replace(q, global_scale=np.full_like(q.global_scale, scale))
    if np.isnan(scale):
        assert np.isnan(q.repack("ct:nvfp4").scale).all()
    else:
        with np.errstate(invalid="ignore"), pytest.raises(QuantArrayError, match="would change"):
            q.repack("ct:nvfp4")


@only_numpy
def test_scales_decoded_from_two_levels_are_exact():
    for name, target in (("bnb:nf4_nested", "bnb:nf4"), ("ct:nvfp4", "fp4_e2m1")):
        q = qa.quantize(gaussian(), name)
        r = q.repack(target)
        assert r.global_scale is None
        assert r.global_offset is None
        assert (r.scale_data == q.scale).all()
        assert (bits(r.dequantize()) == bits(q.dequantize())).all()


@only_numpy
def test_raveled_blocks_are_groups_where_rows_hold_whole_ones():
    x = gaussian((3, 5, 128))
    groups, flat = qa.quantize(x, "nf4"), qa.quantize(x, "bnb:nf4")
    assert flat.repack("nf4").scheme == groups.scheme
    r = groups.repack("bnb:nf4")
    assert r.scheme == flat.scheme
    assert r.data.shape == flat.data.shape
    assert (bits(r.dequantize()) == bits(groups.dequantize())).all()
    assert_same_quantized(r.repack("nf4"), groups, _xp.load("numpy"))
    nested = qa.quantize(x, "bnb:nf4_nested")
    grouped = nested.repack(replace(nested.scheme, block=Block.group(64)))
    assert grouped.scale.shape == (3, 5, 2)
    assert (bits(grouped.dequantize()) == bits(nested.dequantize())).all()
    assert_same_quantized(grouped.repack("bnb:nf4_nested"), nested, _xp.load("numpy"))
    rows = qa.quantize(x, qa.scheme("int8", block=(1, 1, -1))).repack(qa.scheme("int8", flat=9))
    assert rows.scheme.block == Block(flat=128)
    # A scheme with one block for all says nothing of blocks.
    assert qa.quantize(x, qa.scheme("int8", flat=24)).repack("onnx:int8").scheme.block.flat == 24


@only_numpy
@pytest.mark.parametrize("bits_", [3, 4, 5, 7])
def test_words_with_and_without_gaps(bits_):
    """Both layouts that compressed-tensors has had, as their packers write them."""
    dense = qa.scheme("ct:int4", element=Integer(bits_), group_size=16)
    gaps = qa.scheme(dense, packing=Packing(word=32, excess=True, dense=False))
    q = full(dense)
    r = q.repack(gaps)
    per_word = 32 // bits_
    fields = q.codes.astype(np.int64) + (1 << (bits_ - 1))
    fields = np.pad(fields, ((0, 0), (0, -fields.shape[1] % per_word)))
    words = fields.reshape(len(fields), -1, per_word) << (np.arange(per_word) * bits_)
    assert (r.data.view(np.uint32) == words.sum(axis=-1)).all()
    assert_same_quantized(r.repack(dense), q, _xp.load("numpy"))


@only_numpy
def test_what_stays_as_it_is_is_not_copied():
    q = qa.quantize(gaussian(), "mxfp4")
    r = q.repack("torchao:mxfp4")
    assert r.data is q.data
    assert r.scale_data is q.scale_data
    assert full("int4").repack("onnx:int4").data is not None


@only_numpy
@pytest.mark.parametrize("shape", [(), (7,), (0, 64), (3, 0)])
def test_other_shapes(shape):
    q = qa.quantize(gaussian(shape), "int8")
    for target in ("onnx:int8", "uint8", "torchao:uint8", "mlx:affine8", "st:uint8"):
        r = q.repack(target)
        parts = {n: (p.shape, p.dtype) for n, p in r.parts().items() if n != "data"}
        assert all(part[0] == q.scale.shape for part in parts.values())
        assert (r.dequantize() == q.dequantize()).all() or r.offset is not None
        assert_same_quantized(r.repack("int8"), q, _xp.load("numpy"))
    if 0 in shape:
        q = qa.quantize(gaussian(shape), "nvfp4")
        assert q.repack("ct:nvfp4").shape == shape


@only_numpy
def test_poisoned_blocks_stay_poisoned():
    x = gaussian()
    x[3, 5] = np.nan
    q = qa.quantize(x, "int4", group_size=32, nonfinite="propagate")
    for target in ("gptq:int4", "awq:int4", "torchao:int4", "mlx:affine4"):
        r = q.repack(target)
        assert np.isnan(r.dequantize()[3, :32]).all()
        assert np.isnan(r.dequantize()).sum() == 32
        back = r.repack("torchao:int4")
        assert (bits(back.dequantize()) == bits(q.dequantize())).all()
    q = qa.quantize(x, "awq:int4", group_size=32, nonfinite="propagate")
    assert (bits(q.repack("uint4").dequantize()) == bits(q.dequantize())).all()
    for name, target in (("mxfp4", "torchao:mxfp4"), ("mxfp4", "fp4_e2m1"), ("nvfp4", "fp4_e2m1")):
        q = qa.quantize(x, name, nonfinite="propagate")
        assert (bits(q.repack(target).dequantize()) == bits(q.dequantize())).all()
    q = qa.quantize(x, qa.scheme("fp4_e2m1", group_size=32), nonfinite="propagate")
    q = replace(q, scale_data=np.exp2(np.round(np.log2(q.scale_data))).astype(np.float32))
    r = q.repack("mxfp4")
    assert r.scale_data[3, 0] == 255
    assert (bits(r.dequantize()) == bits(q.dequantize())).all()


@only_numpy
def test_zero_points_that_are_no_codes_do_not_wrap():
    q = full("uint4")
    q = replace(q, zero_point=np.full_like(q.zero_point, 200))
    with pytest.raises(QuantArrayError, match=r"1 of 1 zero points are beyond -8\.\.7"):
        q.repack("ct:int4_asymmetric")


# Of schemes whose exactness is known without any value, and of others.
FREE = [("int4", "gptq:int4"), ("uint4", "awq:int4"), ("mxfp4", "torchao:mxfp4")]
LOOKING = [("onnx:int4", "int4", "codes"), ("gptq:int4", "onnx:int4", "zeros"),
           ("awq:int4", "mlx:affine4", "scales"), ("mlx:affine4", "uint4", "scales"),
           ("nvfp4", "ct:nvfp4", "scales"), ("fp4_e2m1", "mxfp4", "scales")]  # fmt: skip


def test_traced_and_lazy_arrays(xp):
    name, x = _xp.backend(xp), gaussian((4, 64))
    cases = [(a, b, None) for a, b in FREE] + LOOKING
    for source, target, what in cases:
        q = qa.quantize(x, source)
        if name == "jax":
            import jax

            repack = jax.jit(lambda q, target=target: q.repack(target))
        elif name == "torch":
            import torch

            torch.compiler.reset()
            repack = torch.compile(lambda q, t=target: q.repack(t), backend="eager")
        elif name == "dask":
            repack = _undisturbed(lambda q, target=target: q.repack(target))
        else:
            continue
        if what is None:
            expected = q.repack(target)
            assert_same_quantized(repack(moved(q, xp)), expected, xp, dtypes=["float32"])
        else:
            message = f"{source} to {target}: whether it is exact depends on the {what}, which"
            with pytest.raises(QuantArrayError, match=message):
                repack(moved(q, xp))


def _undisturbed(function):
    """Forbid Dask to compute anything."""
    import dask

    def scheduler(*arguments, **options):
        raise AssertionError("something was computed")

    def call(q):
        with dask.config.set(scheduler=scheduler):
            return function(q)

    return call


@only_numpy
@settings(deadline=None)
@given(
    st.floats(2.0**-100, 2.0**100),
    st.integers(-(1 << 17), 1 << 17),
    st.integers(-1, 1),
    st.integers(1, 53),
)
def test_products_are_told_apart_exactly(scale, whole, ulps, kept):
    mantissa, exponent = np.frexp(scale)
    scale = np.ldexp(np.floor(np.ldexp(mantissa, kept)), int(exponent) - kept)
    product = np.float64(scale) * whole
    for _ in range(abs(ulps)):
        product = np.nextafter(product, np.inf * ulps)
    expected = Fraction(float(product)) == Fraction(float(scale)) * whole
    assert bool(translate._is_product(product, np.float64(scale), np.float64(whole))) == expected


@only_numpy
def test_a_format_includes_another_if_it_has_all_its_values():
    small = {n: f for n, f in FORMATS.items() if isinstance(f, Float)}
    for wide in small.values():
        for narrow in small.values():
            values = set(wide.table) | {-0.0}
            held = all(v in values or not np.isfinite(v) for v in narrow.table)
            assert translate._includes(wide, narrow) <= held
            if held:  # those of the same values but for their specials are not looked for
                assert translate._includes(wide, narrow) or wide.max < narrow.max
    assert translate._includes(DTYPES["float32"], FORMATS["e8m0fnu"])
    assert not translate._includes(DTYPES["float16"], FORMATS["e8m0fnu"])
    assert not translate._includes(DTYPES["bfloat16"], DTYPES["float16"])


@only_numpy
@settings(deadline=None)
@given(st.data())
def test_codes_of_any_integers(data):
    """Nothing but the sign changes, and what has no exact result is refused."""
    bits_ = data.draw(st.integers(2, 8))
    a = Integer(bits_, signed=data.draw(st.booleans()))
    b = Integer(bits_, signed=data.draw(st.booleans()))
    zeros = st.sampled_from(["none", "point"])
    source = qa.scheme("int8", element=a, zero=data.draw(zeros), group_size=3)
    target = qa.scheme("int8", element=b, zero=data.draw(zeros), packing=Packing("msb"))
    codes = data.draw(st.lists(st.integers(*a.codes), min_size=7, max_size=7))
    points = data.draw(st.lists(st.integers(*a.codes), min_size=3, max_size=3))
    given_ = {"zero_point": np.asarray(points)} if source.zero == "point" else {}
    q = qa.from_codes(np.asarray(codes), source, scale=0.3, **given_)
    zero = 0 if q.zero_point is None else q.zero_point.astype(int)
    if target.zero == "none" and np.any(zero + added(a, b)):
        with pytest.raises(QuantArrayError, match="has no zero points"):
            q.repack(target)
    else:
        r = q.repack(target)
        assert (bits(r.dequantize()) == bits(q.dequantize())).all()
        assert (r.repack(source).codes == q.codes).all()
