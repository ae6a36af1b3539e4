"""Scales and zero points against exact rational arithmetic, rounded where the contract says."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from helpers import SESSION, assert_same, bits, to_backend, to_numpy

import quantarray as qa
from quantarray import _xp

ROW, ROWS = 8, 24  # elements of a block; blocks: one shape, for JAX compiles each

NAMES = ["int8", "uint4", "int3", "uint8", "int2", "uint3", "uint2"]
if SESSION == "jax":  # each compiles for seconds
    NAMES = ["int8", "uint4", "uint3"]


def nearest(exact, dtype):
    """Round a fraction to a float of dtype, half to even, without trusting any division."""
    guess = dtype(float(exact))
    with np.errstate(over="ignore"):
        near = [np.nextafter(guess, dtype(side)) for side in (-np.inf, np.inf)]
    candidates = [c for c in (guess, *near) if np.isfinite(c)]
    even = lambda c: int(bits(np.array(c))) & 1  # noqa: E731
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - exact), even(c)))


def expected_parameters(row, scheme):
    """Derive the scale and zero point of one block of finite values."""
    dtype = np.float64 if row.dtype == np.float64 else np.float32
    tiny, element = np.finfo(dtype).smallest_normal, scheme.element
    row = row.astype(dtype)
    if np.abs(row).max() < tiny:
        return dtype(1), element.min if scheme.zero == "point" else None
    if scheme.zero == "none":
        scale = nearest(Fraction(float(np.abs(row).max())) / element.max, dtype)
        return max(scale, tiny), None
    row = np.where(np.abs(row) < tiny, 0, row)
    low, high = Fraction(float(min(row.min(), 0))), Fraction(float(max(row.max(), 0)))
    half = 2 if high - low > Fraction(float(np.finfo(dtype).max)) else 1
    scale = nearest(
        Fraction(float(nearest((high - low) / half, dtype))) * half / element.max, dtype
    )
    scale = max(scale, tiny)
    zero = round(Fraction(float(nearest(-low / Fraction(float(scale)), dtype))))
    return scale, min(max(zero, element.min), element.max)


def check(x, name, xp):
    """Quantize each row as a block, and compare its parameters with the expected ones."""
    scheme = qa.scheme(name, group_size=ROW)
    q = qa.quantize(to_backend(x, xp), scheme)
    scales, zeros = zip(*(expected_parameters(row, scheme) for row in x), strict=True)
    assert_same(q.scale, np.array(scales)[:, None], xp)
    if scheme.zero == "none":
        assert q.zero_point is None
    else:
        assert_same(q.zero_point, np.array(zeros, np.uint8)[:, None], xp)
    return q


def random_rows(dtype, rows=ROWS):
    rng = np.random.default_rng(11)
    x = rng.standard_normal((rows, ROW)) * 2.0 ** rng.integers(-8, 8, (rows, 1))
    x[rows // 2 :] += 3 * np.abs(x[rows // 2 :]).max(axis=1, keepdims=True)  # one-sided
    x[-8:] *= -1
    return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


@pytest.mark.parametrize("name", NAMES)
def test_scales_are_the_correctly_rounded_quotients(name, xp, float_dtype):
    check(random_rows(float_dtype), name, xp)


BIG, TINY = float(np.finfo(np.float32).max), float(np.finfo(np.float32).smallest_normal)
EXTREMES = np.resize(
    np.float32(
        [
            [0] * ROW,
            [-0.0] * ROW,
            [1e-40] * ROW,
            [-1e-40, 1e-40, 0, 0, 0, 0, 0, 0],
            [TINY] * ROW,
            [-TINY * 100] * ROW,
            [TINY * 200, 1e-39] * 4,
            [3.0] * ROW,
            [-3.0] * ROW,
            [1.0, *[0.0] * 7],
            [-1.0, *[0.0] * 7],
            [BIG] * ROW,
            [-BIG] * ROW,
            [BIG, -BIG] * 4,
            [3.4e38, -3.4e38] * 4,
            [BIG, -1.0] * 4,
            [BIG / 2, -BIG / 2] * 4,
            [1.0, -1e-40] * 4,
            [-1.0, 1e-40] * 4,
        ]
    ),
    (ROWS, ROW),
)


@pytest.mark.parametrize("name", NAMES[::2])
def test_scales_of_extreme_blocks(name, xp):
    q = check(EXTREMES, name, xp)
    scales = to_numpy(q.scale)
    assert (scales >= TINY).all()
    assert np.isfinite(scales).all()
    assert np.isfinite(to_numpy(q.dequantize())).all()


@pytest.mark.parametrize("name", NAMES)
def test_zero_blocks_decode_to_zeros(name, xp):
    x = np.resize(EXTREMES[:4], (ROWS, ROW))
    q = qa.quantize(to_backend(x, xp), name, group_size=ROW)
    assert_same(q.scale, np.ones((ROWS, 1), np.float32), xp)
    assert (to_numpy(q.codes) == 0).all()
    assert (to_numpy(q.dequantize()) == 0).all()


@pytest.mark.parametrize(("name", "codes"), [("int8", [50, 0, 0, 1]), ("uint8", [50, 0, 0, 1])])
def test_subnormal_elements_of_a_normal_block_count_as_zeros(name, codes, xp):
    x = np.resize(np.float32([TINY * 50, TINY * 0.9, -TINY * 0.9, TINY]), (ROWS, ROW))
    q = qa.quantize(to_backend(x, xp), name, group_size=ROW)
    assert (to_numpy(q.scale) == TINY).all()
    assert (to_numpy(q.codes) == np.resize(codes, (ROWS, ROW))).all()
    given = qa.quantize(to_backend(x, xp), "int8", scale=TINY)
    assert (to_numpy(given.codes) == np.resize([50, 0, 0, 1], (ROWS, ROW))).all()


def test_constant_blocks_are_exact_at_their_ends(xp):
    x = np.repeat(np.float32([[3.0], [-3.0], [0.1], [-1e-30]] * 6), ROW, axis=1)
    for name in ("int8", "uint8"):
        q = qa.quantize(to_backend(x, xp), name, group_size=ROW)
        decoded = to_numpy(q.dequantize())
        assert np.abs(decoded - x).max(axis=1).tolist() == pytest.approx([0] * ROWS, abs=3e-7)
        assert (np.abs(decoded - x) <= np.abs(np.spacing(x))).all()


@pytest.mark.parametrize("name", ["int8", "uint4"])
def test_float64_scales_are_float64(name, xp, float_dtype):
    x = random_rows(float_dtype)
    q = qa.quantize(to_backend(x, xp), name, group_size=ROW)
    assert _xp.dtype_name(q.scale.dtype) == ("float64" if float_dtype == "float64" else "float32")
    assert q.dtype_name == float_dtype


@pytest.mark.parametrize("nonfinite", ["propagate", "saturate"])
@pytest.mark.parametrize("name", NAMES[::2])
def test_what_is_not_finite_touches_its_block_only(name, nonfinite, xp):
    x = random_rows("float32")
    clean = qa.quantize(x, name, group_size=ROW)
    poisoned = x.copy()
    poisoned[1, 3], poisoned[3, 0], poisoned[4, 7] = np.nan, np.inf, -np.inf
    q = qa.quantize(to_backend(poisoned, xp), name, group_size=ROW, nonfinite=nonfinite)
    others = np.delete(np.arange(ROWS), [1, 3, 4])
    for part in clean.parts():
        found = to_numpy(q.parts()[part])
        assert found[others].tobytes() == clean.parts()[part][others].tobytes()
    decoded, scale = to_numpy(q.dequantize()), to_numpy(q.scale)
    codes, element = to_numpy(q.codes), q.scheme.element
    if nonfinite == "propagate":
        for block in (1, 3, 4):
            assert np.isnan(scale[block]).all()
            assert np.isnan(decoded[block]).all()
            assert (codes[block] == 0).all()
        assert q.zero_point is None or (to_numpy(q.zero_point)[[1, 3, 4]] == 0).all()
        return
    finite = np.where(np.isfinite(poisoned), poisoned, 0)
    reference = qa.quantize(finite, name, group_size=ROW)
    assert scale.tobytes() == reference.scale.tobytes()
    keep = np.isfinite(poisoned) | np.isnan(poisoned)
    assert (codes[keep] == reference.codes[keep]).all()
    assert (codes[3, 0], codes[4, 7]) == (element.max, element.min)
    assert np.isfinite(decoded).all()
    zero = 0 if q.zero_point is None else to_numpy(q.zero_point)[1, 0]
    assert codes[1, 3] == zero
    assert decoded[1, 3] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_array_of_nothing_finite(value, xp):
    x = to_backend(np.full((ROWS, ROW), value, np.float32), xp)
    q = qa.quantize(x, "int8", group_size=ROW, nonfinite="propagate")
    assert np.isnan(to_numpy(q.dequantize())).all()
    q = qa.quantize(x, "int8", group_size=ROW, nonfinite="saturate")
    assert_same(q.scale, np.ones((ROWS, 1), np.float32), xp)
    expected = 0 if np.isnan(value) else 127
    assert_same(q.codes, np.full((ROWS, ROW), expected, np.int8), xp)
