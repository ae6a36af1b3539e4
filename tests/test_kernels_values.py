"""Fused kernels on numbers that need care: not finite, subnormal, huge, ties, given scales."""

import subprocess
import sys

import numpy as np
import pytest
from corpus import KINDS, corpus, poisoned
from fused import (
    NUMPY,
    TAME,
    TRANSPOSED,
    assert_decoded,
    assert_fused,
    assert_quantized,
    cpu,
    is_fused,
    normal,
    numba,
    task_of,
)
from helpers import ANY_SHAPE, assert_same, assert_same_quantized
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import quantarray as qa
from quantarray import _xp, pipeline
from quantarray.kernels import bits, decode
from quantarray.parameters import Parameters
from quantarray.scheme import Scale

pytestmark = pytest.mark.backend_independent

FEW = ("int8", "int3", "uint4", "fp8_e4m3", "nf4", "mxfp4", "nvfp4", "mlx:affine4", "faiss:sq4")
OFFSET = qa.scheme("uint4", zero="offset", scale=Scale("range", divisor=15.0))


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    monkeypatch.setenv("QUANTARRAY_KERNELS", "fused")


def both_ways(monkeypatch, function, *arguments, **options):
    """Give what a call gives, or the message of its error, with and without kernels."""
    found = []
    for way in ("fused", "generic"):
        monkeypatch.setenv("QUANTARRAY_KERNELS", way)
        try:
            found.append(function(*arguments, **options))
        except qa.QuantArrayError as error:
            found.append(str(error))
    return found


def assert_both_ways(monkeypatch, x, *arguments, **options):
    found, expected = both_ways(monkeypatch, qa.quantize, x, *arguments, **options)
    if isinstance(expected, str):
        assert found == expected
    else:
        assert_same_quantized(found, expected, NUMPY)
    return expected


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_no_place_hides_what_is_not_finite(dtype, value):
    for scheme in ("int8", "uint4", "fp8_e4m3", "mxfp4", "st:int8"):
        for options in ({}, {"group_size": 16}, {"group_size": 20}, {"channel_axis": 1}):
            for place in ((0, 0), (0, 15), (2, 16), (3, 41), (4, 69)):
                x = normal(5, 70, dtype=dtype)
                x[place] = value
                assert cpu.quantize(*task_of(x, scheme, **options)) is None
                x[place] = 1
                assert cpu.quantize(*task_of(x, scheme, **options)) is not None


@pytest.mark.parametrize("place", [0, 4095, 4096, 8191, 9000, 9999])
def test_nor_in_long_rows_that_threads_share(place, monkeypatch):
    monkeypatch.setattr(cpu, "ALONE", 0)
    monkeypatch.setattr(cpu, "LARGE", 100)
    monkeypatch.setenv("QUANTARRAY_THREADS", "3")
    for scheme in ("int8", "uint4"):
        for options in ({}, {"group_size": 64}, {"group_size": 1000}):
            x = normal(2, 5000)
            x.reshape(-1)[place] = np.nan
            assert cpu.quantize(*task_of(x, scheme, **options)) is None


# The generic path warns where numbers that it then drops overflow.
overflows = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")


@overflows
@pytest.mark.parametrize("nonfinite", ["raise", "propagate", "saturate"])
@pytest.mark.parametrize("scheme", FEW)
def test_nonfinite(scheme, nonfinite, monkeypatch):
    for kind in ("own", "case", "column", "ragged group", "tile"):
        for x in (poisoned()[TAME], corpus()[TAME], corpus()):
            assert_both_ways(monkeypatch, x, scheme, nonfinite=nonfinite, **KINDS[kind])


def test_the_message_of_what_is_refused(monkeypatch):
    x = normal(5, 70)
    x[3, 5] = np.nan
    message = assert_both_ways(monkeypatch, x)
    assert "1 NaN or Inf of 350 elements, the first at (3, 5)" in message
    x[3, 5] = 3e38
    x[3, 6] = -3e38
    message = assert_both_ways(monkeypatch, x, "mlx:affine4")
    assert "beyond" in message


GIVEN = [
    ("int8", {"scale": 0.05}),
    ("int8", {"scale": 1e-3}),
    ("int8", {"scale": 2.0**-126}),
    ("int8", {"scale": 3e38}),
    ("int8", {"scale": 0.05, "zero_point": 3}),
    ("uint3", {"scale": 0.3, "zero_point": 7}),
    ("uint4", {"scale": 0.3, "offset": -2.5}),
    ("faiss:sq4", {"scale": 0.3, "offset": -2.5}),
    ("faiss:sq4", {"scale": 0.3, "offset": 3e38}),
    ("fp8_e4m3", {"scale": 0.01}),
    ("mxfp4", {"scale": 0.25}),
    ("mlx:affine4", {"scale": -0.25, "offset": 2.0}),
    ("nf4", {"scale": 2.5}),
    ("bnb:nf4", {"scale": 2.5}),
]


@overflows
@pytest.mark.parametrize("nonfinite", ["raise", "propagate", "saturate"])
@pytest.mark.parametrize(("scheme", "given_"), GIVEN)
def test_given_parameters(scheme, given_, nonfinite, monkeypatch):
    for kind in ("own", "case", "ragged group"):
        for x in (corpus()[TAME], poisoned(), normal(3, 8, 96)):
            options = {"nonfinite": nonfinite, **given_, **KINDS[kind]}
            assert_both_ways(monkeypatch, x, scheme, **options)


@pytest.mark.parametrize("scheme", ["int8", "uint4", "fp8_e4m3", "nf4", OFFSET])
def test_given_parameters_of_each_block_are_fused(scheme):
    x = normal(8, 96)
    for options in ({}, {"channel_axis": 0}, {"channel_axis": 1}, {"group_size": 20}):
        work, task = task_of(x, scheme, **options)
        first = pipeline._generic(work, task)
        zero = None if first.zero_point is None else first.zero_point.astype(np.float32)
        there = Parameters(first.scale, first.scale, zero, first.offset)
        assert_quantized(1.3 * x, scheme, given=there, **options)
        half = Parameters(first.scale / 2, first.scale / 2, zero, first.offset)
        assert_quantized(x, scheme, given=half, **options)


@pytest.mark.parametrize("scheme", ["int8", "uint4", "nf4", OFFSET])
def test_a_given_nan_is_left_to_the_generic_path(scheme):
    x = normal(4, 64)
    work, task = task_of(x, scheme, channel_axis=0)
    first = pipeline._generic(work, task)
    zero = None if first.zero_point is None else first.zero_point.astype(np.float32)
    scale = first.scale.copy()
    scale[2] = np.nan
    there = Parameters(scale, scale, zero, first.offset)
    assert_quantized(x, scheme, fused=False, given=there, channel_axis=0, nonfinite="propagate")


@pytest.mark.parametrize("scheme", ["int8", "fp8_e4m3", "uint4", "mxfp4", "nvfp4", OFFSET])
def test_decoding_what_was_poisoned(scheme, monkeypatch):
    q = qa.quantize(poisoned()[TAME], scheme, group_size=20, nonfinite="propagate")
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        found, expected = both_ways(monkeypatch, q.dequantize, dtype)
        assert_same(found, expected, NUMPY)
        assert np.isnan(found).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_decoding_scales_of_any_size(dtype):
    """Products that are subnormal, or too large, in what is decoded to."""
    powers = 2.0 ** np.arange(-126, 128, 2, dtype=np.float32)[:, None]
    codes = np.broadcast_to(np.arange(-127, 128, dtype=np.int8), (len(powers), 255))
    for factor in (1, 1.7):
        scale = powers * np.float32(factor)
        for rows, fused in ((slice(0, 128), None), (slice(0, 60), True)):
            q = qa.from_codes(codes[rows], qa.scheme("int8", channel_axis=0), scale=scale[rows])
            assert_decoded(
                pipeline.Result(q.data, q.scale_data), q._task(NUMPY), dtype, fused=fused
            )


@pytest.mark.parametrize("scheme", ["mxint8", "bnb:int8_rows"])
def test_subnormal_products_of_codes_with_steps(scheme):
    codes = np.arange(-127, 128, dtype=np.int8)[None]
    q = qa.from_codes(codes, scheme, scale=2.0**-124)
    assert_decoded(pipeline.Result(q.data, q.scale_data), q._task(NUMPY))


@numba.njit(error_model="numpy")
def narrow(x, like):
    found = np.empty(x.size, like.dtype)
    for i in range(x.size):
        found[i] = decode.narrowed(x[i], like[0])
    return found


@numba.njit(error_model="numpy")
def widen(x):
    found = np.empty(x.size, np.int32)
    for i in range(x.size):
        found[i] = bits.widened(x[i])
    return found


STAND_INS = {"float16": np.int16, "bfloat16": np.uint16}


@pytest.mark.parametrize("dtype", STAND_INS)
def test_every_number_of_16_bits(dtype):
    """And what lies between two of them, and the next above and below that."""
    kind, stand_in = _xp.dtype(NUMPY, dtype), STAND_INS[dtype]
    every = np.arange(1 << 16, dtype=np.uint16)
    wide = every.view(kind).astype(np.float32)
    assert_same(widen(every.view(stand_in)).view(np.float32), wide, NUMPY)
    steps = np.unique(np.abs(wide[np.isfinite(wide)])).astype(np.float64)
    steps = np.append(steps, 2 * steps[-1] - steps[-2])
    between = ((steps[1:] + steps[:-1]) / 2).astype(np.float32)
    low, high = (np.nextafter(between, np.float32(end)) for end in (0, np.inf))
    x = np.concatenate([wide, between, low, high, -between, -low, -high])
    x = np.append(x, np.float32([np.finfo(np.float32).max, 1e-45, -1e-45]))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(kind)
    assert_same(narrow(x, np.zeros(1, stand_in)).view(kind), expected, NUMPY)


number = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-8, 8, width=32),
    st.integers(-300, 300).map(lambda n: n / 2),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1.1e-38, 1.2e-38, 3.4e38, -3.4e38, 1e38]),
)


DRAWN = [name for name in ANY_SHAPE if is_fused(name, "float32")]


@st.composite
def cases(draw):
    """Draw an array, a preset, and what shares a scale in it."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    elements = draw(st.sampled_from([number, st.floats(-8, 8, width=32)]))
    x = draw(arrays(np.float32, shape, elements=elements))
    scheme = draw(st.sampled_from(DRAWN))
    if scheme in TRANSPOSED and len(shape) < 2:
        scheme = "int4"
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    options = draw(
        st.sampled_from(
            [
                {},
                {"channel_axis": axis},
                {"group_size": draw(st.integers(1, 40)), "group_axis": axis},
                {"block": tuple(draw(st.integers(1, 5)) for _ in shape)},
                {"flat": draw(st.integers(1, 40))} if scheme not in TRANSPOSED else {},
            ]
        )
    )
    return x, scheme, options


@overflows
@settings(deadline=None, max_examples=300)
@given(case=cases())
def test_whatever_is_fused_is_right(case):
    x, scheme, options = case
    try:
        stored, task = assert_quantized(x, scheme, fused=None, **options)
    except qa.QuantArrayError:  # beyond what the scheme reaches
        assert cpu.quantize(*task_of(x, scheme, **options)) is None
        return
    for dtype in ("float16", "bfloat16", "float32"):
        assert_decoded(stored, task, dtype, fused=None)


@settings(deadline=None, max_examples=100)
@given(x=arrays(np.float32, (3, 40), elements=st.floats(-1000, 1000, width=32)))
def test_tame_numbers_are_fused(x):
    for scheme in FEW:
        assert_fused(x, scheme, group_size=16)


def refuse(*arguments):
    raise AssertionError("a kernel was called")


def test_kernels_can_be_turned_off(monkeypatch):
    x = normal(4, 64)
    q = qa.quantize(x)
    monkeypatch.setattr(cpu, "quantize", refuse)
    monkeypatch.setattr(cpu, "dequantize", refuse)
    with pytest.raises(AssertionError, match="a kernel was called"):
        qa.quantize(x)
    with pytest.raises(AssertionError, match="a kernel was called"):
        q.dequantize()
    monkeypatch.setenv("QUANTARRAY_KERNELS", "generic")
    assert_same_quantized(qa.quantize(x), q, NUMPY)


def test_kernels_are_on_by_default(monkeypatch):
    monkeypatch.delenv("QUANTARRAY_KERNELS")
    monkeypatch.setattr(cpu, "quantize", refuse)
    with pytest.raises(AssertionError, match="a kernel was called"):
        qa.quantize(normal(4, 64))


@pytest.mark.parametrize("value", ["", "off", "FUSED", "x" * 9999])
def test_other_values_of_the_switch_are_refused(value, monkeypatch):
    q = qa.quantize(normal(4, 64))
    monkeypatch.setenv("QUANTARRAY_KERNELS", value)
    message = r"QUANTARRAY_KERNELS=.{0,200}: expected fused or generic$"
    with pytest.raises(qa.QuantArrayError, match=message):
        qa.quantize(normal(4, 64))
    with pytest.raises(qa.QuantArrayError, match=message):
        q.dequantize()


def test_without_numba_the_generic_path_is_taken(monkeypatch):
    x = normal(4, 64)
    q = qa.quantize(x)
    installed = _xp.is_installed
    monkeypatch.setattr(_xp, "is_installed", lambda name: name != "numba" and installed(name))
    monkeypatch.setattr(cpu, "quantize", refuse)
    monkeypatch.setattr(cpu, "dequantize", refuse)
    assert_same_quantized(qa.quantize(x), q, NUMPY)


def test_numba_is_not_imported_before_it_is_used():
    program = """
import sys, numpy as np, quantarray as qa
assert "numba" not in sys.modules
import os
os.environ["QUANTARRAY_KERNELS"] = "generic"
qa.quantize(np.ones((4, 64), np.float32)).dequantize()
assert "numba" not in sys.modules
os.environ["QUANTARRAY_KERNELS"] = "fused"
qa.quantize(np.zeros((0, 3), np.float32)).dequantize()
qa.quantize(np.ones((4, 64), np.float32)).dequantize()
assert "numba" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
