"""Products that are traced, compiled or lazy give what eager calls do."""

import sys

import numpy as np
import pytest
from helpers import BACKENDS, assert_same, to_backend, to_numpy
from test_products import assert_close, codes, exact, normal

import quantarray as qa
from quantarray import _xp
from quantarray.products import matmul


def not_here(backend):
    """Skip what another session tests."""
    if backend not in BACKENDS:
        pytest.skip(f"tests of {backend}: this is the session of {', '.join(BACKENDS)}")


def test_traced_products():
    """jax.jit gives what eager calls do."""
    not_here("jax")
    xp, jax = _xp.load("jax"), pytest.importorskip("jax")
    w, x = to_backend(normal(8, 64), xp), to_backend(normal(64), xp)
    for scheme in ("int4", "nf4", "uint8"):
        q = qa.quantize(w, scheme, group_size=32)
        decoded = to_numpy(q.dequantize()).astype(np.float64)
        assert_close(jax.jit(matmul)(q, x), decoded, to_numpy(x).astype(np.float64), xp)
        gradient = jax.grad(lambda x, q=q: matmul(q, x).sum())(x)
        assert_close(gradient, np.ones(8), decoded, xp)
    a, b = codes("int8", 4, 3000), codes("uint8", 3000, 5)
    assert_same(jax.jit(matmul)(to_backend(a, xp), to_backend(b, xp)), exact(a, b), xp)
    p = qa.quantize(to_backend(normal(5, 64), xp), "int8", channel_axis=0)
    q = qa.quantize(w.T, "int8", channel_axis=1)
    assert_same(jax.jit(matmul)(p, q), to_numpy(matmul(p, q)), xp)
    many = jax.vmap(lambda x: matmul(q, x), in_axes=1, out_axes=1)(w)
    decoded = to_numpy(q.dequantize()).astype(np.float64)
    assert_close(many, decoded, to_numpy(w).astype(np.float64), xp)


def test_dask_stays_lazy():
    not_here("dask")
    xp = _xp.load("dask")
    dask = sys.modules["dask"]

    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    a, b = codes("int8", 6, 3000), codes("int8", 3000, 5)
    w, x = normal(6, 64), normal(64)
    lazy_a, lazy_b = xp.asarray(a, chunks=(4, 700)), xp.asarray(b, chunks=(1100, 5))
    q = qa.quantize(xp.asarray(w, chunks=(4, 40)), "int4", group_size=32)
    p = qa.quantize(xp.asarray(w.T.copy(), chunks=(30, 4)), "int8")
    with dask.config.set(scheduler=refuse):
        products = [matmul(lazy_a, lazy_b), matmul(q, xp.asarray(x)), matmul(q, p)]
    assert_same(products[0], exact(a, b), xp)
    decoded = to_numpy(q.dequantize()).astype(np.float64)
    assert_close(products[1], decoded, x.astype(np.float64), xp)
    assert_close(products[2], decoded, to_numpy(p.dequantize()).astype(np.float64), xp)


@pytest.fixture
def fresh_compiler():
    """Forget what torch.compile compiled: all of it shares one limit."""
    not_here("torch")
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    return torch


def test_torch_compiles_in_one_graph(fresh_compiler):
    torch, xp = fresh_compiler, _xp.load("torch")
    compiled = torch.compile(matmul, fullgraph=True, backend="eager")
    w, x = to_backend(normal(8, 64), xp), to_backend(normal(64), xp)
    for scheme in ("int4", "nf4", "uint8"):
        q = qa.quantize(w, scheme, group_size=32)
        decoded = to_numpy(q.dequantize()).astype(np.float64)
        assert_close(compiled(q, x), decoded, to_numpy(x).astype(np.float64), xp)
    a, b = codes("int8", 4, 3000), codes("uint8", 3000, 5)
    assert_same(compiled(to_backend(a, xp), to_backend(b, xp)), exact(a, b), xp)
    q = qa.quantize(w, "int8", channel_axis=0)
    p = qa.quantize(w.T.contiguous(), "int8")
    assert_same(compiled(q, p), to_numpy(matmul(q, p)), xp)


def test_torch_inductor_compiles_too(fresh_compiler):
    torch, xp = fresh_compiler, _xp.load("torch")
    w, x = to_backend(normal(8, 64), xp), to_backend(normal(64), xp)
    q = qa.quantize(w, "int4", group_size=32)
    found = torch.compile(matmul, fullgraph=True)(q, x)
    decoded = to_numpy(q.dequantize()).astype(np.float64)
    assert_close(found, decoded, to_numpy(x).astype(np.float64), xp)


def test_torch_gradients_flow_to_the_floating_array(fresh_compiler):
    torch, xp = fresh_compiler, _xp.load("torch")
    q = qa.quantize(to_backend(normal(8, 64), xp), "int4", group_size=32)
    x = torch.ones(64, requires_grad=True)
    matmul(q, x).sum().backward()
    assert_close(x.grad, np.ones(8), to_numpy(q.dequantize()).astype(np.float64), xp)
