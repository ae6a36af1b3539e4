"""Tensors of torch and arrays of JAX in host memory reach the kernels, without a copy."""

import functools

import ml_dtypes
import numpy as np
import pytest
from corpus import CHOICES, KINDS, corpus, poisoned
from helpers import SESSION, assert_same, assert_same_quantized, lacks, moved, to_backend, to_numpy

import quantarray as qa
from quantarray import _xp

if SESSION not in (None, "torch", "jax"):
    pytest.skip(f"this is the session of {SESSION}", allow_module_level=True)
if SESSION is None:  # a session of nox has Numba, or fails
    pytest.importorskip("numba")
from quantarray.kernels import cpu, memory

SCHEMES = ("int8", "uint3", "fp8_e4m3", "nf4", "mxfp4", "nvfp4", "mlx:affine4", "gptq:int4")
DTYPES = ("float16", "bfloat16", "float32", "float64")
X = corpus()[:5]


def library(name):
    """Load a library, or skip: it is another session's."""
    if name not in ("torch", "jax") or SESSION not in (None, name) or name not in _xp.installed():
        pytest.skip(f"tests of {name}")
    return _xp.load(name)


@pytest.fixture
def torch():
    library("torch")
    import torch

    return torch


@pytest.fixture
def jax():
    library("jax")
    import jax

    return jax


@pytest.fixture(autouse=True)
def in_host_memory(request):
    if "xp" in request.fixturenames:
        library(_xp.backend(request.getfixturevalue("xp")))


@pytest.fixture(autouse=True)
def seen(monkeypatch):
    """List what the kernels answered: whether each call was fused."""
    answers = []

    def listening(function):
        def call(*arguments):
            found = function(*arguments)
            answers.append(found is not None)
            return found

        return call

    monkeypatch.setenv("QUANTARRAY_KERNELS", "fused")
    for name in ("quantize", "dequantize"):
        monkeypatch.setattr(cpu, name, listening(getattr(cpu, name)))
    return answers


def generic(monkeypatch, function, *arguments, **options):
    with monkeypatch.context() as patch:
        patch.setenv("QUANTARRAY_KERNELS", "generic")
        return function(*arguments, **options)


@pytest.mark.parametrize("kind", ["own", "ragged group", "column", "tile"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_bytes_of_numpy(xp, scheme, kind, seen, monkeypatch):
    reference = generic(monkeypatch, qa.quantize, X, scheme, **KINDS[kind])
    decoded = {to: reference.dequantize(to) for to in ("float16", "bfloat16", "float32")}
    assert all(seen)
    seen.clear()
    q = qa.quantize(to_backend(X, xp), scheme, **KINDS[kind])
    assert_same(q.data, reference.data, xp)
    assert seen == [True]
    for to, expected in decoded.items():
        assert_same(q.dequantize(_xp.dtype(xp, to)), expected, xp)
    assert seen == [True] * 4
    for name, part in reference.parts().items():
        assert_same(q.parts()[name], part, xp)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_dtype(xp, scheme, dtype, seen):
    if lacks(_xp.backend(xp), dtype):
        pytest.skip(lacks(_xp.backend(xp), dtype))
    x = corpus(dtype)[:4]
    q = qa.quantize(to_backend(x, xp), scheme)
    rounds = scheme == "mlx:affine4" and dtype in ("float16", "bfloat16")
    assert seen in ([], [False]) if rounds else seen == [True]
    assert_same_quantized(q, qa.quantize(x, scheme), xp, dtypes=[dtype])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("scheme", ["ct:int4_asymmetric", "torchao:int8", "ct:int8"])
def test_parameters_of_a_dtype_numpy_lacks(xp, scheme, dtype):
    x = corpus(dtype)[:4]
    q, reference = qa.quantize(to_backend(x, xp), scheme), qa.quantize(x, scheme)
    assert_same_quantized(q, reference, xp, dtypes=["float32", dtype])


@pytest.mark.parametrize("choice", CHOICES)
def test_every_other_choice(xp, choice):
    q = qa.quantize(to_backend(corpus()[:3], xp), CHOICES[choice])
    assert_same_quantized(q, qa.quantize(corpus()[:3], CHOICES[choice]), xp, dtypes=["float32"])


@pytest.mark.parametrize("nonfinite", ["propagate", "saturate"])
def test_what_is_not_finite(xp, nonfinite, seen):
    q = qa.quantize(to_backend(poisoned(), xp), "uint4", group_size=20, nonfinite=nonfinite)
    assert seen == [False]
    reference = qa.quantize(poisoned(), "uint4", group_size=20, nonfinite=nonfinite)
    assert_same_quantized(q, reference, xp, dtypes=["float32"])
    with pytest.raises(qa.QuantArrayError, match="NaN or Inf of"):
        qa.quantize(to_backend(poisoned(), xp), "uint4", group_size=20)


def test_given_parameters(xp, seen):
    first = qa.quantize(X, "uint4", group_size=32)
    parts = {"scale": first.scale, "zero_point": first.zero_point}
    there = {name: to_backend(part, xp) for name, part in parts.items()}
    seen.clear()
    q = qa.quantize(to_backend(X, xp), "uint4", group_size=32, **there)
    assert seen == [True]
    assert_same_quantized(q, first, xp, dtypes=["float32"])
    for scheme, options in (("int8", {"scale": 0.25}), ("uint4", {"scale": 0.25, "zero_point": 3})):
        q = qa.quantize(to_backend(X, xp), scheme, **options)
        assert_same_quantized(q, qa.quantize(X, scheme, **options), xp, dtypes=["float32"])


def test_shapes_without_axes_or_elements(xp):
    for shape in ((), (1,), (0,), (0, 64), (3, 0)):
        x = np.resize(X, shape) if 0 not in shape else np.zeros(shape, np.float32)
        for scheme in ("int8", "uint3"):
            q = qa.quantize(to_backend(x, xp), scheme)
            assert_same_quantized(q, qa.quantize(x, scheme), xp, dtypes=["float32"])


def addresses(monkeypatch):
    """List the address of each array the kernels read or write."""
    found, window = [], memory.window

    def listening(x, dtype):
        found.append(x.__array_interface__["data"][0])
        return window(x, dtype)

    monkeypatch.setattr(memory, "window", listening)
    return found


def test_the_array_is_not_copied(xp, monkeypatch):
    for dtype in ("float16", "bfloat16", "float32"):
        x = to_backend(corpus(dtype)[:4], xp)
        there = x.data_ptr() if _xp.backend(xp) == "torch" else x.unsafe_buffer_pointer()
        found = addresses(monkeypatch)
        q = qa.quantize(x, "int8", group_size=32)
        assert set(found) == {there}
        found.clear()
        y = q.dequantize()
        there = y.data_ptr() if _xp.backend(xp) == "torch" else y.unsafe_buffer_pointer()
        assert set(found) == {there}
        monkeypatch.undo()
        monkeypatch.setenv("QUANTARRAY_KERNELS", "fused")


def test_the_codes_are_not_copied(xp, monkeypatch):
    rooms, room = [], memory.room

    def listening(shape, dtype):
        found = room(shape, dtype)
        rooms.append(found.__array_interface__["data"][0])
        return found

    monkeypatch.setattr(memory, "room", listening)
    q = qa.quantize(to_backend(np.ones((512, 512), np.float32), xp), "int8", group_size=32)
    data = q.data
    there = data.data_ptr() if _xp.backend(xp) == "torch" else data.unsafe_buffer_pointer()
    assert rooms == [there]


def test_results_do_not_change_with_later_calls(xp):
    x = to_backend(X, xp)
    q = qa.quantize(x, "int8", group_size=32)
    parts = {name: to_numpy(part).copy() for name, part in q.parts().items()}
    for _ in range(5):
        qa.quantize(to_backend(X[::-1].copy(), xp), "int8", group_size=32).dequantize()
    for name, part in q.parts().items():
        assert_same(part, parts[name], xp)


def test_strides_of_torch(torch, seen):
    x = to_backend(X[0], _xp.load("torch"))
    wide = torch.zeros((8, 96, 3))
    wide[..., 1] = x
    for given, like in [
        (x.T, X[0].T),
        (x[::2, 1::3], X[0][::2, 1::3]),
        (wide[..., 1], X[0]),
        (x[:, 5:6].expand(8, 96), np.broadcast_to(X[0][:, 5:6], (8, 96))),
        (x[0].expand(8, 96), np.broadcast_to(X[0][0], (8, 96))),
        (x.T.contiguous().T, X[0]),
        (torch.flip(x, (1,)), X[0][:, ::-1]),
    ]:
        for dtype in ("float16", "bfloat16", "float32", "float64"):
            kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
            seen.clear()
            cast = given if dtype == "float32" else given.to(getattr(torch, dtype))
            q = qa.quantize(cast, "int4", group_size=16)
            assert seen == [True]
            reference = qa.quantize(like.astype(kind), "int4", group_size=16)
            assert_same_quantized(q, reference, _xp.load("torch"), dtypes=[dtype])


def test_lazy_signs_of_torch(torch):
    """The imaginary part of a conjugate is negated when it is read."""
    z = torch.complex(to_backend(X[0], _xp.load("torch")), to_backend(X[0], _xp.load("torch")))
    x = z.conj().imag
    assert x.is_neg()
    q = qa.quantize(x, "int8", group_size=32)
    reference = qa.quantize(-X[0], "int8", group_size=32)
    assert_same_quantized(q, reference, _xp.load("torch"), dtypes=["float32"])
    out = torch.complex(torch.zeros(8, 96), torch.zeros(8, 96)).conj().imag
    assert q.dequantize(out=out) is out
    assert_same(out.resolve_neg(), to_numpy(q.dequantize()), _xp.load("torch"))


def test_gradients_of_torch(torch, seen):
    x = to_backend(X, _xp.load("torch")).requires_grad_()
    q = qa.quantize(x, "int8", group_size=32)
    reference = qa.quantize(X, "int8", group_size=32)
    assert not q.scale_data.requires_grad
    assert_same_quantized(q, reference, _xp.load("torch"), dtypes=["float32"])
    seen.clear()
    parts = {"data": q.data, "scale": q.scale_data.clone().requires_grad_()}
    learnt = qa.QuantizedArray.from_parts(parts, q.scheme, q.shape, q.dtype_name)
    y = learnt.dequantize()
    assert y.requires_grad
    assert seen == []
    y.sum().backward()
    sums = reference.codes.astype(np.float32).reshape(*q.scale_data.shape, 32).sum(-1)
    assert_same(learnt.scale_data.grad, sums, _xp.load("torch"))


def test_what_torch_has_no_values_of(torch, seen):
    q = qa.quantize(torch.zeros((8, 96), device="meta"), "int8", group_size=32)
    assert q.data.device.type == "meta"
    assert q.dequantize().device.type == "meta"
    assert seen == []


def test_vmap_of_torch(torch, seen):
    x = to_backend(X, _xp.load("torch"))
    y = torch.func.vmap(lambda x: qa.fake_quantize(x, "int8", group_size=32))(x)
    assert seen == []
    assert_same(y, qa.fake_quantize(X, "int8", group_size=32), _xp.load("torch"))


def test_inference_mode_of_torch(torch, seen):
    with torch.inference_mode():
        q = qa.quantize(to_backend(X, _xp.load("torch")), "int8", group_size=32)
        y = q.dequantize()
    assert seen == [True, True]
    assert_same(y, qa.fake_quantize(X, "int8", group_size=32), _xp.load("torch"))


def test_out_of_torch(torch, seen, monkeypatch):
    xp = _xp.load("torch")
    for dtype in DTYPES:
        x = corpus(dtype)[:4]
        q = qa.quantize(to_backend(x, xp), "int8", group_size=32)
        out = torch.empty(x.shape, dtype=getattr(torch, dtype))
        found = addresses(monkeypatch)
        seen.clear()
        assert q.dequantize(out=out) is out
        assert seen == [True]
        assert set(found) == {out.data_ptr()}
        assert_same(out, qa.quantize(x, "int8", group_size=32).dequantize(), xp)


def test_out_that_learns(torch):
    q = qa.quantize(to_backend(X, _xp.load("torch")), "int8")
    out = torch.zeros(X.shape, requires_grad=True)
    with pytest.raises((qa.QuantArrayError, RuntimeError), match=r"grad|cannot be written to"):
        q.dequantize(out=out)
    with torch.no_grad():
        assert q.dequantize(out=out) is out
    assert_same(out.detach(), qa.fake_quantize(X, "int8"), _xp.load("torch"))


def test_devices_of_jax(jax, seen):
    jnp, devices = _xp.load("jax"), jax.devices()
    reference = qa.quantize(X, "uint4", group_size=32)
    for device in (devices[0], devices[-1]):
        x = jax.device_put(X, device)
        assert x.committed
        seen.clear()
        q = qa.quantize(x, "uint4", group_size=32)
        y = q.dequantize()
        assert seen == [True, True]
        for part in (*q.parts().values(), y):
            assert part.committed
            assert part.devices() == {device}
        assert_same_quantized(q, reference, jnp, device=device, dtypes=["float32"])


def test_arrays_of_jax_on_no_device_in_particular(jax, seen):
    q = qa.quantize(jax.numpy.asarray(X), "uint4", group_size=32)
    for part in (*q.parts().values(), q.dequantize()):
        assert not part.committed
    assert seen == [True, True]
    there = jax.device_put(np.ones(1, np.float32), jax.devices()[-1])
    assert (there + q.scale_data).devices() == there.devices()


def test_default_device_of_jax(jax):
    with jax.default_device(jax.devices()[-1]):
        x = jax.numpy.asarray(X)
        q = qa.quantize(x, "int8", group_size=32)
        assert q.data.devices() == q.dequantize().devices() == {jax.devices()[-1]}
    y = q.dequantize()
    assert y.devices() == q.data.devices()
    assert not y.committed


def test_sharded_arrays_of_jax(jax, seen):
    from jax.sharding import NamedSharding, PartitionSpec

    if len(jax.devices()) < 8:
        pytest.skip("one device")
    x = np.resize(X, (8, 96))
    sharding = NamedSharding(jax.make_mesh((8,), ("rows",)), PartitionSpec("rows"))
    q = qa.quantize(jax.device_put(x, sharding), "int8", group_size=32)
    assert seen == []
    assert q.data.sharding.is_equivalent_to(sharding, 2)
    assert q.dequantize().sharding.is_equivalent_to(sharding, 2)
    assert (to_numpy(q.data) == qa.quantize(x, "int8", group_size=32).data).all()


def test_transformations_of_jax(jax, seen):
    jnp, x = _xp.load("jax"), jax.numpy.asarray(X)
    fake = functools.partial(qa.fake_quantize, scheme="int8", group_size=32)
    expected = qa.fake_quantize(X, "int8", group_size=32)
    seen.clear()
    assert_same(jax.jit(fake)(x), expected, jnp)
    assert_same(jax.vmap(fake)(x), expected, jnp)
    assert seen == []
    assert_same(jax.grad(lambda x: (fake(x) * x).sum())(x), expected, jnp)


def test_gradients_of_parameters_of_jax(jax, seen):
    jnp, reference = _xp.load("jax"), qa.quantize(X, "int8", group_size=32)
    q = moved(reference, jnp)

    def decode(scale):
        parts = {"data": q.data, "scale": scale}
        return qa.QuantizedArray.from_parts(parts, q.scheme, q.shape, q.dtype_name).dequantize()

    seen.clear()
    found = jax.grad(lambda scale: decode(scale).sum())(q.scale_data)
    sums = reference.codes.astype(np.float32).reshape(*found.shape, 32).sum(-1)
    assert_same(found, sums, jnp)
    assert seen == []
