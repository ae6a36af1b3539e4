"""The notebook's own functions give the notebook's own figures, on every backend."""

import numpy as np
import pytest
from helpers import assert_same, dtypes_of, to_backend, to_numpy

import quantarray as qa
from quantarray import QuantArrayError, _xp

INT8 = (qa.quantize_to_int8, qa.dequantize_from_int8, 127)
INT4 = (qa.quantize_to_int4, qa.dequantize_from_int4, 7)


@pytest.fixture
def matrix():
    state = np.random.get_state()  # noqa: NPY002  (the notebook's generator)
    np.random.seed(42)  # noqa: NPY002
    yield qa.generate_random_matrix(100, 100)
    np.random.set_state(state)  # noqa: NPY002


def test_the_matrix(matrix):
    assert (matrix.shape, matrix.dtype) == ((100, 100), np.float64)
    assert matrix[0, :3].tolist() == [-0.250919762305275, 0.9014286128198323, 0.4639878836228102]


@pytest.mark.parametrize(
    ("functions", "figure"), [(INT8, 5.1724704854865734e-06), (INT4, 0.0017039919225166954)]
)
def test_mean_squared_errors(functions, figure, matrix, xp):
    if "float64" not in dtypes_of(xp):
        pytest.skip("JAX has no float64 while jax_enable_x64 is off")
    quantize, dequantize, _ = functions
    x = to_backend(matrix, xp)
    decoded = dequantize(*quantize(x))
    assert qa.calculate_mean_squared_error(x, decoded) == figure
    assert qa.calculate_mean_squared_error(matrix, to_numpy(decoded)) == figure
    codes, scale = quantize(x)
    assert_same(dequantize(codes, float(to_numpy(scale))), to_numpy(decoded), xp)


def test_the_first_row_of_int8_codes(matrix, xp):
    x = matrix if "float64" in dtypes_of(xp) else matrix.astype(np.float32)
    row = to_numpy(qa.quantize_to_int8(to_backend(x, xp))[0])[0]
    assert row[:3].tolist() == [-32, 114, 59]
    assert row[-3:].tolist() == [-18, -121, -100]


@pytest.mark.parametrize("functions", [INT8, INT4])
def test_codes_and_scale_are_the_notebooks(functions, matrix, xp, float_dtype):
    quantize, dequantize, largest = functions
    x = xp.astype(to_backend(matrix.astype(np.float32), xp), _xp.dtype(xp, float_dtype))
    values = to_numpy(x)
    arithmetic = np.float64 if float_dtype == "float64" else np.float32
    values = values.astype(arithmetic)
    scale = np.max(np.abs(values)) / arithmetic(largest)
    codes = np.clip(np.round(values / scale), -largest, largest).astype(np.int8)
    found = quantize(x)
    assert_same(found[0], codes, xp)
    assert_same(found[1], scale, xp)
    assert_same(dequantize(*found), codes.astype(arithmetic) * scale, xp)


@pytest.mark.parametrize("shape", [(), (2, 3, 4), (0, 3)])
def test_any_shape(shape, xp):
    codes, scale = qa.quantize_to_int4(to_backend(np.full(shape, -0.5, np.float32), xp))
    assert tuple(scale.shape) == ()
    assert_same(codes, np.full(shape, -7, np.int8), xp)
    assert tuple(qa.dequantize_from_int4(codes, scale).shape) == shape


def test_all_zeros(xp):
    x = np.zeros((4, 4), np.float32)
    for quantize, dequantize, _ in (INT8, INT4):
        assert_same(dequantize(*quantize(to_backend(x, xp))), x, xp)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: qa.quantize_to_int8([[1.0]]), "x is a list: expected an array"),
        (lambda x: qa.quantize_to_int4(x.astype(np.int32)), "x has dtype int32: expected"),
        (lambda x: qa.quantize_to_int8(x * np.nan), "x has 6 NaN or Inf of 6 elements"),
        (lambda x: qa.dequantize_from_int8(x, 0.1), "codes has dtype float32: expected integers"),
        (lambda x: qa.dequantize_from_int4(np.int8([8]), 0.1), r"codes lie in 8\.\.8: expected"),
        (lambda x: qa.dequantize_from_int8(np.int8([1]), 0.0), r"scale lies in 0\.0\.\.0\.0"),
        (lambda x: qa.dequantize_from_int8(np.int8([1]), "a"), "scale='a'.*: expected"),
    ],
)
@pytest.mark.backend_independent
def test_bad_input_is_refused(call, message):
    with pytest.raises(QuantArrayError, match=message):
        call(np.ones((2, 3), np.float32))


@pytest.mark.backend_independent
def test_mean_squared_error():
    a, b = np.float64([1, 2, 4]), np.float64([1, 0, 1])
    assert qa.calculate_mean_squared_error(a, b) == (4 + 9) / 3
    assert isinstance(qa.calculate_mean_squared_error(a, b), float)
