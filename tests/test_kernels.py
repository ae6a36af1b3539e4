"""Fused kernels give the bytes of the generic path, for every preset, block, dtype and rounding."""

import numpy as np
import pytest
from corpus import CHOICES, KINDS, corpus, reached
from fused import (
    DECODED,
    TAME,
    TRANSPOSED,
    assert_decoded,
    assert_fused,
    assert_quantized,
    is_decoded,
    is_fused,
    normal,
)
from helpers import ANY_SHAPE, DTYPES

import quantarray as qa
from quantarray.codec import MODES
from quantarray.kernels import encoders
from quantarray.scheme import Rounding

pytestmark = pytest.mark.backend_independent

FEW_KINDS = ("own", "column", "ragged group", "group of rows")
# Of each way to compute, a preset for the wider sweeps.
FEW = ("int8", "int3", "uint4", "fp8_e4m3", "nf4", "mxfp4", "nvfp4", "mlx:affine4", "mlx:nvfp4")
# Kinds that cut blocks short at the end of another axis than the last, which matters to these.
CUT_SHORT = ("group of rows", "tile", "whole tile")
MINDS_TAILS = ("bnb:nf4", "bnb:fp4", "bnb:nf4_nested")


def minds(scheme, kind):
    return scheme in MINDS_TAILS and kind in CUT_SHORT


def kinds_of(scheme, kinds=KINDS):
    return [kind for kind in kinds if not (kind == "flat" and scheme in TRANSPOSED)]


@pytest.mark.parametrize("scheme", ANY_SHAPE)
def test_every_preset_in_every_block(scheme):
    """What the scales reach is fused where it is tame, and right where that is left open."""
    for kind in kinds_of(scheme):
        for cases, sure in ((TAME, True), (slice(7, None), False)):
            x, options = reached(scheme)[cases], KINDS[kind]
            if x.size == 0 or (not sure and scheme == "bnb:nf4_nested"):
                continue  # its scales would be Inf
            fused = is_fused(scheme, "float32") and not minds(scheme, kind) if sure else None
            stored, task = assert_quantized(x, scheme, fused=fused, **options)
            for to in DTYPES:
                held = sure and not (to == "float16" and "e5m2" in scheme)
                fused = is_decoded(scheme, "float32", to) if held else None
                assert_decoded(stored, task, to, fused=fused)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("scheme", ANY_SHAPE)
def test_every_preset_in_every_other_dtype(scheme, dtype):
    x = corpus(dtype)[:4]
    for kind in kinds_of(scheme, FEW_KINDS):
        fused = is_fused(scheme, dtype) and not minds(scheme, kind)
        stored, task = assert_quantized(x, scheme, fused=fused, **KINDS[kind])
        for to in DTYPES:
            assert_decoded(stored, task, to, fused=is_decoded(scheme, dtype, to))


# Of what a scheme says of rounding, what the loops do: the rest is None.
INTEGER_MODES = ("half_even", "toward_zero")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("quotient", ["divide", "reciprocal", "but_tail"])
def test_every_rounding_of_integers(dtype, quotient, mode):
    key = 5 if mode == "stochastic" else None
    for scheme in ("int8", "int3", "uint4", "mlx:affine4", "mxint8"):
        for added in ("after", "before"):
            if (dtype, scheme) == ("bfloat16", "mlx:affine4"):
                continue
            chosen = qa.scheme(scheme, rounding=Rounding(mode, quotient, added))
            for kind in ("ragged group", "case", "flat"):
                assert_quantized(
                    corpus(dtype)[TAME], chosen, fused=mode in INTEGER_MODES, key=key, **KINDS[kind]
                )


TAILS = [
    ({"flat": 64}, (3, 50), True),
    ({"group_size": 20}, (3, 8, 50), True),
    ({"block": (1, 8, 20)}, (3, 8, 50), True),
    ({"flat": 64}, (40,), False),
    ({"block": (1, 3, 40)}, (3, 8, 96), False),
    ({"block": (2, -1, 7)}, (3, 8, 96), False),
    ({"group_size": 3, "group_axis": 1}, (3, 8, 96), False),
]


@pytest.mark.parametrize(("options", "shape", "fused"), TAILS)
def test_blocks_cut_short_are_divided(options, shape, fused):
    """Ties between two codes, where dividing and multiplying with the reciprocal part ways."""
    random, differ = np.random.default_rng(0), 0
    for scheme, largest in (("int8", 127), ("int4", 7)):
        tail, whole = (
            qa.scheme(scheme, rounding=Rounding(quotient=quotient), **options)
            for quotient in ("but_tail", "reciprocal")
        )
        for size in random.uniform(0.1, 3, 20).astype(np.float32):
            ties = random.integers(1 - largest, largest - 1, shape) + np.float32(0.5)
            x = (ties * (size / np.float32(largest))).astype(np.float32)
            x[random.random(shape) < 1 / 3] = size
            stored, _ = assert_quantized(x, tail, fused=fused)
            differ += not np.array_equal(stored.data, assert_quantized(x, whole)[0].data)
    assert differ


@pytest.mark.parametrize("size", [1, 15, 63, 64, 65, 128, 200])
def test_tails_of_presets(size):
    for scheme in ("bnb:nf4", "bnb:fp4"):
        assert_quantized(normal(size), scheme, fused=size >= 64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scheme", ["fp4_e2m1", "mxfp4", "fp6_e3m2", "fp8_e4m3", "fp8_e5m2fnuz"])
def test_every_rounding_of_floats(scheme, mode):
    """Tables of 16 values are compared with as a whole, in any mode; others are rounded in bits."""
    key = 5 if mode == "stochastic" else None
    few = scheme in ("fp4_e2m1", "mxfp4")
    fused = mode == "half_even" or (few and mode != "stochastic")
    for quotient in ("divide", "reciprocal"):
        for negative_zero in ("kept", "rounded", "never"):
            for zero_scale in ("nearest", "first"):
                rounding = Rounding(mode, quotient, "after", negative_zero, zero_scale)
                chosen = qa.scheme(scheme, rounding=rounding)
                for kind in ("ragged group", "case"):
                    assert_quantized(corpus()[TAME], chosen, fused=fused, key=key, **KINDS[kind])


@pytest.mark.parametrize("choice", CHOICES)
def test_every_other_choice(choice):
    for kind in FEW_KINDS:
        assert_fused(corpus()[:3], CHOICES[choice], DECODED["float32"], **KINDS[kind])


@pytest.mark.parametrize("rule", ["floor", "ceil", "even", "rceil"])
@pytest.mark.parametrize("scheme", ["mxfp8_e4m3", "mxfp4"])
def test_every_rule_of_a_power_of_two(scheme, rule):
    for kind in FEW_KINDS:
        assert_fused(corpus()[TAME], qa.scheme(scheme, scale_rule=rule), **KINDS[kind])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zero_scales(dtype):
    """A block whose scale is stored as 0: half a smallest value is 0, a little more is not."""
    x = np.zeros((6, 64), dtype)
    least = 2.0**-10 * 6
    x[1, ::3], x[2, ::3] = 1e-30, np.finfo(dtype).smallest_normal / 2
    x[3, 5], x[4, 6], x[5, ::2] = least, np.nextafter(np.asarray(least, dtype), 1), -least
    for scheme in ("mlx:nvfp4", "nvfp4", "torchao:nvfp4", "ct:nvfp4", "mlx:mxfp4", "mlx:affine4"):
        for size in (16, 32, 20, 64):
            assert_fused(x, scheme, (dtype,), group_size=size)


@pytest.mark.parametrize("scheme", FEW)
def test_large_arrays_in_pieces(scheme):
    """The generic path takes 2**18 elements at a time."""
    x = normal(5, 130, 420)
    for kind in ("own", "column", "ragged group", "group of rows", "tile"):
        assert_fused(x, scheme, **KINDS[kind])


@pytest.mark.parametrize(
    ("scheme", "field", "factor"),
    [
        ("int8", "divisor", 1.01),
        ("int8", "highest", 0.9),
        ("int8", "lowest", 0.9),
        ("awq:int4", "mask", 3),
        ("ct:int4", "excess", 2),
        ("uint4", "least", 2.0**120),
        ("nvfp4", "scale_values", 2),
        ("nvfp4", "scale_ends", 1.1),
        ("mlx:mxfp4", "ends", 1.1),
        ("fp8_e4m3", "float_max", 0.9),
        ("nf4", "ends", 0.9),
        ("fp8_e4m3", "sign", 0),
        ("faiss:sq8", "divisor", 1.01),
        ("mlx:affine4", "highest", 0.5),
    ],
)
def test_a_wrong_constant_is_seen(scheme, field, factor, monkeypatch):
    genuine = encoders.encoder

    def wrong(*arguments):
        plan, record = genuine(*arguments)
        record = record.copy()
        record[field] = record[field] * factor
        return plan, record

    monkeypatch.setattr(encoders, "encoder", wrong)
    with pytest.raises(AssertionError, match=r"\d+ of \d+ differ"):
        assert_fused(corpus()[TAME], scheme, group_size=32)
