"""Fused kernels on numbers that need care: not finite, subnormal, huge, ties, given scales."""

import builtins
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from corpus import KINDS, corpus, poisoned
from fused import (
    NUMPY,
    TAME,
    assert_decoded,
    assert_fused,
    assert_quantized,
    assert_result,
    cpu,
    normal,
    task_of,
)
from helpers import assert_same, assert_same_quantized, bits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import quantarray as qa
from quantarray import _xp, pipeline
from quantarray.kernels import decode
from quantarray.kernels import bits as loops
from quantarray.parameters import Parameters
from quantarray.scheme import Scale
import numba

pytestmark = pytest.mark.backend_independent

FEW = ("int8", "int3", "uint4", "fp8_e4m3", "nf4", "mxfp4", "nvfp4", "mlx:affine4", "faiss:sq4")
OFFSET = qa.scheme("uint4", zero="offset", scale=Scale("range", divisor=15.0))


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    monkeypatch.setenv("QUANTARRAY_KERNELS", "fused")


def both_ways(monkeypatch, call):
    """Give what a call gives, or the message of its error, with and without kernels."""
    found = []
    for way in ("fused", "generic"):
        monkeypatch.setenv("QUANTARRAY_KERNELS", way)
        try:
            found.append(call())
        except qa.QuantArrayError as error:
            found.append(str(error))
    return found


def assert_both_ways(monkeypatch, call):
    found, expected = both_ways(monkeypatch, call)
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


@pytest.mark.parametrize("nonfinite", ["raise", "propagate", "saturate"])
@pytest.mark.parametrize("scheme", FEW)
def test_nonfinite(scheme, nonfinite, monkeypatch):
    for kind in ("own", "case", "column", "ragged group", "tile"):
        for x in (poisoned()[TAME], corpus()[TAME], corpus()):
            assert_both_ways(
                monkeypatch, lambda: qa.quantize(x, scheme, nonfinite=nonfinite, **KINDS[kind])
            )


def test_the_message_of_what_is_refused(monkeypatch):
    x = normal(5, 70)
    x[3, 5] = np.nan
    message = assert_both_ways(monkeypatch, lambda: qa.quantize(x))
    assert "1 NaN or Inf of 350 elements, the first at (3, 5)" in message
    x[3, 5] = 3e38
    x[3, 6] = -3e38
    message = assert_both_ways(monkeypatch, lambda: qa.quantize(x, "mlx:affine4"))
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


@pytest.mark.parametrize("nonfinite", ["raise", "propagate", "saturate"])
@pytest.mark.parametrize(("scheme", "given_"), GIVEN)
def test_given_parameters(scheme, given_, nonfinite, monkeypatch):
    for kind in ("own", "case", "ragged group"):
        for x in (corpus()[TAME], poisoned(), normal(3, 8, 96)):
            assert_both_ways(
                monkeypatch,
                lambda: qa.quantize(x, scheme, nonfinite=nonfinite, **given_, **KINDS[kind]),
            )


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
        found, expected = both_ways(monkeypatch, lambda: q.dequantize(dtype))
        assert_same(found, expected, NUMPY)
        assert np.isnan(found).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_decoding_scales_of_any_size(dtype):
    """Products that are subnormal, or too large, in what is decoded to."""
    powers = 2.0 ** np.arange(-126, 128, 2, dtype=np.float32)[:, None]
    codes = np.broadcast_to(np.arange(-127, 128, dtype=np.int8), (len(powers), 255))
    for scheme in ("int8", "mxint8"):
        for factor in (1, 1.7):
            scale = powers * np.float32(factor if scheme == "int8" else 1)
            q = qa.from_codes(codes, qa.scheme(scheme, channel_axis=0), scale=scale)
            task = q._task(NUMPY)
            stored = pipeline.Result(q.data, q.scale_data)
            assert_decoded(stored, task, dtype, fused=None)
            held = slice(0, 60)
            some = qa.from_codes(codes[held], q.scheme, scale=scale[held])
            assert_decoded(pipeline.Result(some.data, some.scale_data), some._task(NUMPY), dtype)


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
        found[i] = loops.widened(x[i])
    return found


STAND_INS = {"float16": np.int16, "bfloat16": np.uint16}


@pytest.mark.parametrize("dtype", STAND_INS)
def test_every_number_of_16_bits(dtype):
    """And what lies between two of them, and the next above and below that."""
    kind = _xp.dtype(NUMPY, dtype)
    every = np.arange(1 << 16, dtype=np.uint16).view(kind)
    with np.errstate(invalid="ignore"):
        wide = every.astype(np.float32)
    assert_same(widen(every.view(STAND_INS[dtype])).view(np.float32), bits_of_nan(wide), NUMPY)
    positive = np.sort(np.abs(wide[np.isfinite(wide)].astype(np.float64)))
    largest = positive[-1]
    positive = np.append(positive, largest + (largest - positive[-3]))
    between = ((positive[1:] + positive[:-1]) / 2).astype(np.float32)
    edges = [between, np.nextafter(between, np.float32(0)), np.nextafter(between, np.float32(1e39))]
    all_ = np.concatenate([wide, *edges, positive.astype(np.float32)])
    all_ = np.concatenate([all_, -all_, [np.float32(np.finfo(np.float32).max)]]).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = all_.astype(kind)
    assert_same(narrow(all_, np.zeros(1, STAND_INS[dtype])).view(kind), expected, NUMPY)


def bits_of_nan(x):
    return x
