"""ggml's block types under jax.jit, and on Dask without computing: the bits of NumPy.

As in test_backends_lazy.py, the functions that are tagged here are wrapped while a test runs.
"""

import numpy as np
import pytest
from array_api_extra.testing import lazy_xp_function, patch_lazy_xp_functions
from gguf_corpus import ENCODED, NEEDED, NO_NAN, PLAIN, SEARCHED, any_bytes, importance, rows
from helpers import SESSION, assert_same, assert_same_quantized, moved, to_backend, to_numpy

import quantarray as qa
from quantarray import QuantizedArray, _xp, fake_quantize, gguf, quantize
from quantarray.gguf import decode, encode, parts
from quantarray.records import RECORDS

for function in (decode, encode, fake_quantize, parts, quantize):
    lazy_xp_function(function)
lazy_xp_function((QuantizedArray, "dequantize"))
lazy_xp_function((QuantizedArray, "__getitem__"))

LAZY = ("jax", "dask")
# Of each way to search, one: JAX compiles each in several seconds.
ONE = ("Q4_0", "Q5_1", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ2_XXS", "IQ3_S", "IQ1_S")
WEIGHTED = ONE if SESSION == "jax" else SEARCHED
SLOW = ("IQ1_M", "IQ2_S", "IQ3_XXS") if SESSION == "jax" else ()
SCHEMES = ("gguf:q5_1", "gguf:q6_k", "gguf:mxfp4")


@pytest.fixture(autouse=True)
def lazily(request, xp):
    with patch_lazy_xp_functions(request, xp=xp):
        yield


def test_wrapped_functions_cannot_look_at_values(xp):
    x = rows().copy()
    x[3, 5] = np.nan
    there = to_backend(x, xp)
    if _xp.backend(xp) in LAZY:
        assert_same(encode(there, "Q8_0"), gguf.encode(x, "Q8_0", nonfinite="propagate"), xp)
        return
    with pytest.raises(qa.QuantArrayError, match="NaN or Inf"):
        encode(there, "Q8_0")


@pytest.mark.parametrize("name", [name for name in (*ENCODED, *PLAIN) if name not in NEEDED + SLOW])
def test_encoding(xp, name):
    assert_same(encode(to_backend(rows(), xp), name), gguf.encode(rows(), name), xp)


@pytest.mark.parametrize("name", WEIGHTED)
def test_encoding_with_importance(xp, name):
    x, weights = rows(), importance()
    found = encode(to_backend(x, xp), name, to_backend(weights, xp))
    assert_same(found, gguf.encode(x, name, weights), xp)


@pytest.mark.parametrize("name", RECORDS)
def test_decoding(xp, name):
    data = any_bytes(name)
    assert_same(decode(to_backend(data, xp), name), gguf.decode(data, name), xp)


@pytest.mark.parametrize("name", ["Q4_K", "IQ2_XS", "TQ1_0"])
def test_parts(xp, name):
    data = gguf.encode(rows(), name, importance())
    found = parts(to_backend(data, xp), name)
    expected = gguf.parts(data, name)
    assert set(found) == set(expected)
    for part, array in expected.items():
        assert_same(found[part], array, xp)


@pytest.mark.parametrize("nonfinite", ["propagate", "saturate"])
@pytest.mark.parametrize("name", ["Q5_0", "Q4_K", "MXFP4"])
def test_what_is_not_finite(xp, name, nonfinite):
    x = rows().copy()
    x[0, 5], x[1, 511], x[3, 300] = np.nan, np.inf, -np.inf
    found = encode(to_backend(x, xp), name, nonfinite=nonfinite)
    assert_same(found, gguf.encode(x, name, nonfinite=nonfinite), xp)
    values = to_numpy(decode(found, name))
    assert np.isnan(values).any() == (nonfinite == "propagate" and name not in NO_NAN)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantized_arrays(xp, scheme):
    x, there = rows(), to_backend(rows(), xp)
    q, reference = quantize(there, scheme), qa.quantize(x, scheme)
    assert_same_quantized(q, reference, xp, dtypes=["float32"])
    assert_same(q.dequantize(), reference.dequantize(), xp)
    assert_same(q[2].dequantize(), reference[2].dequantize(), xp)
    assert_same(fake_quantize(there, scheme), reference.dequantize(), xp)
    if reference.offset is not None:
        assert_same(q.offset, reference.offset, xp)


@pytest.mark.parametrize("chunks", [(12, 512), (5, 256), ((1, 11), (100, 412)), (1, 32)], ids=str)
def test_chunks_change_no_byte(xp, chunks):
    if _xp.backend(xp) != "dask":
        pytest.skip("arrays in one piece")
    x = xp.asarray(rows(), chunks=chunks)
    weights = xp.asarray(importance(), chunks=chunks[1])
    for name in ("Q4_0", "Q4_K", "IQ3_S"):
        data, expected = encode(x, name), gguf.encode(rows(), name)
        assert_same(data, expected, xp)
        assert_same(encode(x, name, weights), gguf.encode(rows(), name, importance()), xp)
        assert_same(decode(data, name), gguf.decode(expected, name), xp)
        cut = xp.asarray(expected, chunks=(7, 33))
        assert_same(decode(cut, name), gguf.decode(expected, name), xp)


def test_pytree_and_vmap(xp):
    if _xp.backend(xp) != "jax":
        pytest.skip("transformations of JAX")
    import jax

    x = rows().reshape(12, 1, 512)
    for scheme in ("gguf:q4_1", "gguf:iq4_xs"):
        reference = qa.quantize(x, scheme)
        by_row = jax.vmap(lambda row, scheme=scheme: qa.quantize(row, scheme))
        q = jax.jit(by_row)(to_backend(x, xp))
        assert_same_quantized(q, reference, xp, dtypes=["float32"])
        assert [leaf.shape for leaf in jax.tree.leaves(q)] == [reference.data.shape]
        assert jax.tree.structure(q) == jax.tree.structure(moved(reference, xp))
        assert_same_quantized(jax.jit(lambda q: q)(q), reference, xp, dtypes=["float32"])
        values = jax.jit(jax.vmap(lambda part: part.dequantize()))(q)
        assert_same(values, reference.dequantize(), xp)
        shapes = jax.eval_shape(qa.dequantize, q)
        assert (shapes.shape, shapes.dtype) == (x.shape, x.dtype)
