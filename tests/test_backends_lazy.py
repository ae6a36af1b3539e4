"""Every public function of arrays runs under jax.jit and computes nothing on Dask.

`array_api_extra.testing` wraps the functions that are tagged here, in this module's globals, while
a test runs on JAX (jit, and what is no array is static) or on Dask (computing raises).
"""

import numpy as np
import pytest
from array_api_extra.testing import lazy_xp_function, patch_lazy_xp_functions
from corpus import OTHERS, corpus, poisoned, reached
from helpers import assert_same, assert_same_quantized, to_backend, to_numpy

import quantarray as qa
from quantarray import (
    QuantizedArray,
    _xp,
    decode,
    dequantize,
    dequantize_from_int4,
    dequantize_from_int8,
    encode,
    fake_quantize,
    from_codes,
    matmul,
    quantize,
    quantize_to_int4,
    quantize_to_int8,
)

TAGGED = (
    decode,
    dequantize,
    dequantize_from_int4,
    dequantize_from_int8,
    encode,
    fake_quantize,
    from_codes,
    matmul,
    quantize,
    quantize_to_int4,
    quantize_to_int8,
)
for function in TAGGED:
    lazy_xp_function(function)
lazy_xp_function((QuantizedArray, "dequantize"))
lazy_xp_function((QuantizedArray, "__getitem__"))

# They take arrays, but not lazily; or no arrays at all.
NOT_TAGGED = {
    "calculate_mean_squared_error": "gives a Python float",
    "compare": "gives Python floats",
    "error": "gives Python floats",
    "generate_random_matrix": "takes no array",
    "load": "takes no array",
    "save": "writes values to a file",
    "scheme": "takes no array",
    "schemes": "takes no array",
}
SCHEMES = ("int8", "uint3", "mxfp4", "nf4")


@pytest.fixture(autouse=True)
def lazily(request, xp):
    with patch_lazy_xp_functions(request, xp=xp):
        yield


def test_every_public_function_is_tagged_or_says_why(xp):
    functions = {name for name in qa.__all__ if callable(getattr(qa, name)) and name[0].islower()}
    assert functions == {f.__name__ for f in TAGGED} | set(NOT_TAGGED)


def test_wrapped_functions_cannot_look_at_values(xp):
    """Under jit and on Dask, NaN cannot raise: it is there only where values can be seen."""
    x = to_backend(poisoned(), xp)
    if _xp.backend(xp) in ("jax", "dask"):
        reference = qa.quantize(poisoned(), "int8", group_size=20, nonfinite="propagate")
        assert_same_quantized(quantize(x, "int8", group_size=20), reference, xp, dtypes=["float32"])
    else:
        with pytest.raises(qa.QuantArrayError, match="NaN or Inf"):
            quantize(x, "int8", group_size=20)


@pytest.mark.parametrize("nonfinite", ["raise", "propagate", "saturate"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantize_and_dequantize(xp, scheme, nonfinite):
    x = corpus() if nonfinite == "raise" else poisoned()
    options = {"group_size": 20, "nonfinite": nonfinite}
    q = quantize(to_backend(x, xp), scheme, **options)
    reference = qa.quantize(x, scheme, **options)
    assert_same_quantized(q, reference, xp, dtypes=["float32"])
    assert_same(dequantize(q), reference.dequantize(), xp)
    assert_same(q.dequantize("float32"), reference.dequantize("float32"), xp)
    assert_same_quantized(q[3], reference[3], xp, dtypes=["float32"])
    assert_same(fake_quantize(to_backend(x, xp), scheme, **options), reference.dequantize(), xp)


@pytest.mark.parametrize("scheme", OTHERS)
def test_every_way_to_derive(xp, scheme):
    q = quantize(to_backend(reached(scheme), xp), scheme, group_size=20)
    reference = qa.quantize(reached(scheme), scheme, group_size=20)
    assert_same_quantized(q, reference, xp, dtypes=["float32"])
    assert_same(dequantize(q), reference.dequantize(), xp)


def test_blocks_of_scales_without_a_nan_become_nan(xp):
    """The scales of bnb:nf4_nested have none, and a lazy array cannot be refused."""
    if _xp.backend(xp) not in ("jax", "dask"):
        with pytest.raises(qa.QuantArrayError, match="NaN or Inf"):
            quantize(to_backend(poisoned(), xp), "bnb:nf4_nested")
        return
    values = to_numpy(dequantize(quantize(to_backend(poisoned(), xp), "bnb:nf4_nested")))
    assert np.isnan(values[np.isnan(poisoned())]).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_given_parameters(xp, scheme):
    reference = qa.quantize(corpus(), scheme, group_size=20)
    given = {"scale": to_backend(reference.scale, xp)}
    if reference.zero_point is not None:
        given["zero_point"] = to_backend(reference.zero_point, xp)
    q = quantize(to_backend(corpus(), xp), scheme, group_size=20, **given)
    assert_same_quantized(q, reference, xp, dtypes=["float32"])
    codes = to_backend(reference.codes, xp)
    again = from_codes(codes, qa.scheme(scheme, group_size=20), **given)
    assert_same_quantized(again, reference, xp, dtypes=["float32"])


def test_stochastic_rounding(xp):
    scheme = qa.scheme("uint4", group_size=20, rounding="stochastic")
    q = quantize(to_backend(corpus(), xp), scheme, key=3)
    assert_same_quantized(q, qa.quantize(corpus(), scheme, key=3), xp, dtypes=["float32"])


@pytest.mark.parametrize("name", ["int4", "uint8"])
def test_encode_and_decode(xp, name):
    codes = encode(to_backend(poisoned(), xp), name)
    expected = qa.encode(poisoned(), name)
    assert_same(codes, expected, xp)
    assert_same(decode(codes, name), qa.decode(expected, name), xp)


def test_notebook(xp):
    x = corpus()[0]
    for there, back in (
        (quantize_to_int8, dequantize_from_int8),
        (quantize_to_int4, dequantize_from_int4),
    ):
        codes, scale = there(to_backend(x, xp))
        expected_codes, expected_scale = getattr(qa, there.__name__)(x)
        assert_same(codes, expected_codes, xp)
        assert_same(scale, expected_scale, xp)
        expected = getattr(qa, back.__name__)(expected_codes, expected_scale)
        assert_same(back(codes, scale), np.asarray(expected), xp)


def test_products_of_codes(xp):
    codes = np.random.default_rng(0).integers(-128, 128, (6, 40)).astype(np.int8)
    expected = codes.astype(np.int32) @ codes.T.astype(np.int32)
    x = to_backend(codes, xp)
    assert_same(matmul(x, to_backend(codes.T.copy(), xp)), expected, xp)
