"""Every backend gives the bits of the NumPy reference, for every preset, block, rounding and dtype.

The reference itself is held against an independent oracle in test_backends_oracle.py.
"""

import numpy as np
import pytest
from corpus import CHOICES, HELD, KINDS, OTHERS, SHAPES, corpus, poisoned, reached, shaped
from helpers import (
    ANY_SHAPE,
    DTYPES,
    LAYOUTS,
    assert_same,
    assert_same_quantized,
    device_of,
    lacks,
    lay_out,
    to_backend,
    to_numpy,
)

import quantarray as qa
from quantarray import _xp
from quantarray.codec import MODES
from quantarray.scheme import Rounding

FEW = ("int8", "int3", "uint4", "fp8_e4m3", "nf4")
# Its eight-bit exponents do not hold the corpus in float64.
MX = ("mxfp4",)
BLOCKS = ("case", "group", "ragged group", "flat")


def quantize(x, scheme, kind, **options):
    """Quantize in blocks of one of the corpus' kinds."""
    if kind == "flat":
        return qa.quantize(x, qa.scheme(scheme, flat=KINDS[kind]["flat"]), **options)
    return qa.quantize(x, scheme, **KINDS[kind], **options)


def check(x, xp, scheme, kind, dtypes=("float32",), **options):
    """Quantize on the backend and on NumPy, and compare every bit."""
    q = quantize(to_backend(x, xp), scheme, kind, **options)
    assert_same_quantized(q, quantize(x, scheme, kind, **options), xp, dtypes=dtypes)
    return q


@pytest.mark.parametrize("kind", ["own", "ragged group"])
@pytest.mark.parametrize("scheme", ANY_SHAPE)
def test_every_preset(xp, scheme, kind):
    check(reached(scheme), xp, scheme, kind)


@pytest.mark.parametrize("kind", ["column of case", "flat"])
@pytest.mark.parametrize("scheme", OTHERS)
def test_other_presets_in_other_blocks(xp, scheme, kind):
    check(reached(scheme), xp, scheme, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", FEW + MX)
def test_every_block(xp, scheme, kind):
    check(corpus(), xp, scheme, kind)


@pytest.mark.parametrize("scheme", ["torchao:int8", "ct:int4_asymmetric", "mlx:affine4"])
def test_arithmetic_in_the_dtype_of_the_input(xp, float_dtype, scheme):
    x = corpus(float_dtype)[:7]  # what the scales reach
    q = qa.quantize(to_backend(x, xp), scheme, group_size=20)
    assert_same_quantized(q, qa.quantize(x, scheme, group_size=20), xp, dtypes=[float_dtype])
    assert _xp.dtype_name(q.scale_data.dtype) == float_dtype


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("scheme", FEW)
def test_every_dtype(xp, float_dtype, scheme, kind):
    q = check(corpus(float_dtype), xp, scheme, kind, dtypes=[float_dtype])
    assert _xp.dtype_name(q.dtype) == float_dtype


@pytest.mark.parametrize("scheme", FEW)
def test_decoding_to_every_dtype(xp, float_dtype, scheme):
    q = quantize(to_backend(corpus(float_dtype), xp), scheme, "ragged group")
    assert_same_quantized(q, quantize(corpus(float_dtype), scheme, "ragged group"), xp)


@pytest.mark.parametrize("case", range(len(corpus())))
@pytest.mark.parametrize("scheme", ["int8", "uint5"])
def test_one_scale_for_a_whole_matrix(xp, scheme, case):
    check(corpus()[case], xp, scheme, "own")


@pytest.mark.parametrize("quotient", ["divide", "reciprocal"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scheme", ["int8", "uint4", "fp8_e4m3", "mxfp4"])
def test_every_rounding(xp, scheme, mode, quotient):
    key = 2**40 + 7 if mode == "stochastic" else None
    for added in ("after", "before") if scheme == "uint4" else ("after",):
        chosen = qa.scheme(scheme, rounding=Rounding(mode, quotient, added))
        check(corpus(), xp, chosen, "ragged group", key=key)


@pytest.mark.parametrize("rule", ["floor", "ceil", "even", "rceil"])
@pytest.mark.parametrize("scheme", ["mxfp8_e4m3", "mxfp4"])
def test_every_rule_of_a_power_of_two(xp, scheme, rule):
    check(corpus(), xp, qa.scheme(scheme, scale_rule=rule), "ragged group")


@pytest.mark.parametrize("choice", CHOICES)
def test_every_other_choice(xp, choice):
    dtype = choice.removesuffix(" scale")
    if dtype in DTYPES and lacks(_xp.backend(xp), dtype):
        with pytest.raises(qa.QuantArrayError, match=f"dtype {dtype}: .* has none"):
            qa.quantize(to_backend(corpus()[HELD], xp), CHOICES[choice])
        return
    x = corpus()[HELD] if dtype == "float16" else corpus()
    poison = np.where(np.isnan(poisoned()[: len(x)]), poisoned()[: len(x)], x)
    for values, nonfinite in ((x, "raise"), (poison, "propagate"), (poison, "saturate")):
        q = qa.quantize(to_backend(values, xp), CHOICES[choice], nonfinite=nonfinite)
        reference = qa.quantize(values, CHOICES[choice], nonfinite=nonfinite)
        assert_same_quantized(q, reference, xp, dtypes=["float32"])


@pytest.mark.parametrize("kind", ["column", "flat"])
def test_stochastic_rounding_counts_elements_in_every_block(xp, kind):
    check(corpus(), xp, qa.scheme("int4", rounding="stochastic"), kind, key=0)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("nonfinite", ["propagate", "saturate"])
@pytest.mark.parametrize("scheme", FEW + MX)
def test_nonfinite_elements_reach_their_own_block_only(xp, scheme, nonfinite, kind):
    x, clean = poisoned(), corpus()
    q = check(x, xp, scheme, kind, nonfinite=nonfinite)
    reference = quantize(clean, scheme, kind)
    bad = np.isnan(quantize(x, scheme, kind, nonfinite="propagate").scale)
    assert 0 < bad.sum() < bad.size
    blocks, values = q.blocks, to_numpy(q.dequantize())
    member = np.broadcast_to(
        blocks.spread(bad, np), blocks.split(values.reshape(blocks.shape), np).shape
    )
    untouched = ~blocks.merge(member, np).reshape(values.shape)
    numpy = _xp.load("numpy")
    assert_same(values[untouched], reference.dequantize()[untouched], numpy)
    if nonfinite == "propagate":
        assert np.isnan(values[~untouched]).all()
    else:
        assert np.isfinite(values).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_elements_are_refused(xp, value):
    x = corpus()[0].copy()
    x[3, 5] = x[4, 6] = value
    if _xp.backend(xp) == "dask":  # cannot be looked at
        assert_same_quantized(
            qa.quantize(to_backend(x, xp), "int8"),
            qa.quantize(x, "int8", nonfinite="propagate"),
            xp,
        )
        return
    with pytest.raises(qa.QuantArrayError, match=r"2 NaN or Inf of 768 elements, .* \(3, 5\)"):
        qa.quantize(to_backend(x, xp), "int8")


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("nonfinite", ["propagate", "saturate"])
def test_given_parameters(xp, nonfinite, kind):
    reference = quantize(corpus(), "uint4", kind)
    given = {"scale": reference.scale, "zero_point": reference.zero_point}
    expected = quantize(poisoned(), "uint4", kind, nonfinite=nonfinite, **given)
    there = {name: to_backend(part, xp) for name, part in given.items()}
    q = quantize(to_backend(poisoned(), xp), "uint4", kind, nonfinite=nonfinite, **there)
    assert_same_quantized(q, expected, xp, dtypes=["float32"])


@pytest.mark.parametrize("scale", [2.0**-126, 1e-30, 0.1, 3e38])
def test_one_given_scale_of_any_magnitude(xp, scale):
    check(corpus(), xp, "int8", "own", scale=scale)
    check(corpus(), xp, "int8", "own", scale=scale, zero_point=-127)
    check(corpus(), xp, "uint3", "own", scale=scale, zero_point=7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(xp, shape):
    axes = [{"group_size": 5}, {"channel_axis": 0}] if shape else []
    for scheme, options in [("int8", {}), ("uint3", {}), *(("uint3", option) for option in axes)]:
        q = qa.quantize(to_backend(shaped(shape), xp), scheme, **options)
        assert_same_quantized(
            q, qa.quantize(shaped(shape), scheme, **options), xp, dtypes=["float32"]
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_of_numpy_changes_a_bit(layout):
    xp = _xp.load("numpy")
    for scheme in FEW + MX:
        for kind in ("own", *BLOCKS):
            q = quantize(lay_out(corpus(), layout), scheme, kind)
            assert_same_quantized(q, quantize(corpus(), scheme, kind), xp, dtypes=["float32"])


def test_the_input_is_not_changed(xp):
    x = to_backend(poisoned(), xp)
    for nonfinite in ("propagate", "saturate"):
        quantize(x, "uint4", "group", nonfinite=nonfinite).dequantize()
    assert_same(x, poisoned(), xp)


def test_fake_quantize_and_from_codes(xp):
    x = to_backend(corpus(), xp)
    for scheme in FEW:
        reference = quantize(corpus(), scheme, "group")
        assert_same(qa.fake_quantize(x, scheme, group_size=32), reference.dequantize(), xp)
        parts = {"scale": reference.scale, "zero_point": reference.zero_point}
        there = {name: to_backend(part, xp) for name, part in parts.items() if part is not None}
        codes = to_backend(reference.codes, xp)
        q = qa.from_codes(codes, qa.scheme(scheme, group_size=32), **there)
        assert_same(q.data, reference.data, xp)
        assert_same(qa.dequantize(q), reference.dequantize(), xp)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["int4", "uint8", "int16"])
def test_encode_and_decode(xp, name, mode):
    key = 5 if mode == "stochastic" else None
    x = np.concatenate([poisoned().reshape(-1), np.arange(-20, 20, 0.5, dtype=np.float32)])
    codes = qa.encode(to_backend(x, xp), name, rounding=mode, key=key)
    expected = qa.encode(x, name, rounding=mode, key=key)
    assert_same(codes, expected, xp)
    assert_same(qa.decode(codes, name), qa.decode(expected, name), xp)


@pytest.mark.parametrize("kind", ["own", "column", *BLOCKS])
@pytest.mark.parametrize("scheme", ["int8", "uint3"])
def test_array_of_several_pieces(xp, scheme, kind):
    """NumPy works in pieces of 65536 elements, the others on the whole array."""
    x = np.random.default_rng(1).standard_normal((3, 190, 210)).astype(np.float32)
    check(x, xp, scheme, kind)


def test_indexing(xp):
    reference = quantize(corpus(), "int4", "group")
    q = quantize(to_backend(corpus(), xp), "int4", "group")
    for key in (3, (3, 5), slice(2, 4), (slice(None, None, 3), -1)):
        assert_same_quantized(q[key], reference[key], xp, dtypes=["float32"])


def test_metrics_are_the_same_figures(xp):
    x = to_backend(corpus()[0], xp)
    assert qa.error(x, qa.quantize(x)) == qa.error(corpus()[0], qa.quantize(corpus()[0]))
    assert qa.compare(x, ["int8", "uint4"]) == qa.compare(corpus()[0], ["int8", "uint4"])


def test_to_device_and_back(xp):
    q = quantize(to_backend(corpus(), xp), "uint4", "group")
    moved = q.to_device(device_of(xp))
    assert_same_quantized(moved, quantize(corpus(), "uint4", "group"), xp, dtypes=["float32"])
