"""The comparison helper can fail, and the arrays of the tests are what they say."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from helpers import (
    BACKENDS,
    LAYOUTS,
    SESSION,
    assert_same,
    assert_same_quantized,
    device_of,
    dtypes_of,
    lay_out,
    to_backend,
    to_numpy,
)

import quantarray as qa
from quantarray import _xp

X = np.float32([[1.5, -0.0, np.nan], [3e38, 1e-30, -np.inf]])


def changed(position, value):
    x = X.copy()
    x[position] = value
    return x


def test_same_array_passes(xp):
    assert_same(to_backend(X, xp), X, xp)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (X.astype(np.float64), "dtype float32, expected float64"),
        (X.reshape(3, 2), "shape"),
        (X[None], "shape"),
        (changed((0, 0), np.nextafter(np.float32(1.5), 2)), "1 of 6 differ"),
        (changed((0, 1), 0.0), "1 of 6 differ"),
        (changed((0, 2), 0.0), "1 of 6 differ"),
        (changed((1, 2), np.nan), "1 of 6 differ"),
    ],
    ids=["dtype", "shape", "ndim", "ulp", "sign of zero", "NaN expected", "Inf expected"],
)
def test_difference_fails(xp, other, message):
    with pytest.raises(AssertionError, match=message):
        assert_same(to_backend(X, xp), other, xp)


def test_payload_of_nan_is_not_compared(xp):
    payload = np.uint32([0xFFC00001]).view(np.float32)
    assert_same(to_backend(payload, xp), np.float32([np.nan]), xp)


def test_other_namespace_fails(xp):
    strange = to_backend(X, _xp.load("numpy"))
    if _xp.backend(xp) == "numpy":
        import array_api_strict

        strange = array_api_strict.asarray(X)
    with pytest.raises(AssertionError, match="namespace"):
        assert_same(strange, X, xp)


def test_other_device_fails(xp):
    with pytest.raises(AssertionError, match="device"):
        assert_same(to_backend(X, xp), X, xp, device="another")


def test_every_part_of_a_quantized_array_counts(xp):
    x = np.linspace(-1, 3, 32, dtype=np.float32).reshape(2, 16)
    reference = qa.quantize(x, "uint4", group_size=8)
    q = qa.quantize(to_backend(x, xp), "uint4", group_size=8)
    assert_same_quantized(q, reference, xp)
    for name, part in reference.parts().items():
        wrong = part.copy()
        wrong[0, 0] = wrong[0, 0] + 1
        parts = {**reference.parts(), name: wrong}
        other = qa.QuantizedArray.from_parts(parts, reference.scheme, x.shape, "float32")
        with pytest.raises(AssertionError, match=name):
            assert_same_quantized(q, other, xp)
    for field, value in {"scheme": qa.scheme("uint4"), "dtype_name": "float64"}.items():
        with pytest.raises(AssertionError):
            assert_same_quantized(q, dataclasses.replace(reference, **{field: value}), xp)


def test_every_dtype_reaches_every_backend(xp):
    assert {"float32"} <= set(dtypes_of(xp))
    for name in dtypes_of(xp):
        x = np.arange(-4, 4).astype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        assert_same(to_backend(x, xp), x, xp)


def test_arrays_of_the_tests_are_on_the_tests_device(xp):
    assert _xp.device(to_backend(X, xp)) == device_of(xp)


@pytest.mark.backend_independent
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_equal_read_only_and_different(layout):
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    laid_out = lay_out(x, layout)
    assert_same(laid_out, x, _xp.load("numpy"))
    assert not laid_out.flags.writeable
    assert laid_out.flags.c_contiguous == (layout == "plain")


def test_read_only_numpy():
    assert not to_backend(X, _xp.load("numpy")).flags.writeable


def test_the_session_runs_its_backend_only(request):
    assert ((SESSION,) if SESSION else BACKENDS) == BACKENDS
    assert set(BACKENDS) <= set(_xp.installed())
    assert to_numpy(to_backend(X, _xp.load(BACKENDS[0]))).tobytes() == X.tobytes()
