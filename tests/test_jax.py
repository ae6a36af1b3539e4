"""JAX: traced, vectorised, scanned and sharded arrays give the bits of NumPy."""

import functools
import subprocess
import sys

import numpy as np
import pytest
from corpus import CHOICES, HELD, KINDS, corpus, poisoned
from helpers import assert_same, assert_same_quantized, session_of, to_numpy

import quantarray as qa
from quantarray.arithmetic import Arithmetic

jnp = session_of("jax")
import jax  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

FEW = ("int8", "int3", "uint4", "fp8_e4m3", "mxfp4", "nf4")
X = jnp.asarray(corpus())


def group(scheme, size=20):
    return qa.scheme(scheme, group_size=size)


@pytest.mark.parametrize("kind", ["case", "column of case", "ragged group", "tile"])
@pytest.mark.parametrize("scheme", FEW)
def test_jit(scheme, kind):
    options = KINDS[kind]
    q = jax.jit(lambda x: qa.quantize(x, scheme, **options))(X)
    reference = qa.quantize(corpus(), scheme, **options)
    assert_same_quantized(q, reference, jnp, dtypes=["float32"])
    assert_same(jax.jit(qa.dequantize)(q), reference.dequantize(), jnp)
    together = jax.jit(lambda x: qa.fake_quantize(x, scheme, **options))(X)
    assert_same(together, reference.dequantize(), jnp)


@pytest.mark.parametrize("mode", ["half_away", "toward_zero", "stochastic"])
def test_jit_of_every_rounding(mode):
    key = 2**63 + 5 if mode == "stochastic" else None
    for scheme in ("int8", "uint4"):
        chosen = qa.scheme(scheme, group_size=32, rounding=mode)
        q = jax.jit(lambda x, chosen=chosen: qa.quantize(x, chosen, key=key))(X)
        assert_same_quantized(q, qa.quantize(corpus(), chosen, key=key), jnp, dtypes=["float32"])


@pytest.mark.parametrize("choice", CHOICES)
def test_jit_of_every_other_choice(choice):
    """An offset that XLA fused into the product would round once, where others round twice."""
    x = corpus()[HELD] if "float16" in choice else corpus()
    scheme = CHOICES[choice]
    q = jax.jit(lambda x: qa.quantize(x, scheme))(x)
    reference = qa.quantize(x, scheme)
    assert_same_quantized(q, reference, jnp, dtypes=["float32"])
    assert_same(jax.jit(qa.dequantize)(q), reference.dequantize(), jnp)
    together = jax.jit(lambda x: qa.fake_quantize(x, scheme))(x)
    assert_same(together, reference.dequantize(), jnp)


@pytest.mark.parametrize("nonfinite", ["raise", "propagate", "saturate"])
def test_jit_cannot_raise(nonfinite):
    """Values cannot be looked at while they are traced: "raise" does as "propagate"."""
    q = jax.jit(lambda x: qa.quantize(x, group("uint4"), nonfinite=nonfinite))(poisoned())
    seen = "propagate" if nonfinite == "raise" else nonfinite
    reference = qa.quantize(poisoned(), group("uint4"), nonfinite=seen)
    assert_same_quantized(q, reference, jnp, dtypes=["float32"])


def test_nan_anywhere_in_a_large_array_is_refused():
    """XLA's reductions lose NaN where they are vectorised."""
    for at in ((0, 0), (215, 31), (100, 7)):
        x = np.ones((216, 32), np.float32)
        x[at] = np.nan
        for options in ({}, {"group_size": 32}, {"channel_axis": 1}):
            with pytest.raises(qa.QuantArrayError, match="1 NaN or Inf"):
                qa.quantize(jnp.asarray(x), "int8", **options)


def test_reciprocals_of_quotients_are_rounded_twice():
    """XLA would make b / a of 1 / (a / b)."""
    x = np.random.default_rng(0).uniform(0.1, 9, 1000).astype(np.float32)
    math_ = Arithmetic("float32", "float32", jnp)
    found = jax.jit(lambda x: math_.reciprocal(math_.divide(jnp.full_like(x, 31.0), x)))(x)
    assert_same(found, np.float32(1) / (np.float32(31) / x), jnp)
    assert (to_numpy(found) != x / np.float32(31)).any()


def test_given_parameters_may_be_traced():
    reference = qa.quantize(corpus(), group("uint8"))
    given = (jnp.asarray(reference.scale), jnp.asarray(reference.zero_point))
    q = jax.jit(lambda x, s, z: qa.quantize(x, group("uint8"), scale=s, zero_point=z))(X, *given)
    assert_same_quantized(q, reference, jnp, dtypes=["float32"])


def test_pytree():
    q = qa.quantize(X, group("uint4"))
    leaves, structure = jax.tree.flatten(q)
    assert [leaf.shape for leaf in leaves] == [part.shape for part in q.parts().values()]
    assert_same_quantized(jax.tree.unflatten(structure, leaves), to_reference(q), jnp)
    assert structure == jax.tree.structure(qa.quantize(X + 1, group("uint4")))
    assert structure != jax.tree.structure(qa.quantize(X, group("uint8")))
    assert len(jax.tree.leaves(qa.quantize(X, group("int4")))) == 2
    shapes = jax.tree.map(lambda leaf: leaf.shape, q)
    assert shapes.scheme == q.scheme
    assert shapes.scale_data == q.scale.shape


def to_reference(q):
    """Give the NumPy array of the same parts."""
    parts = {name: to_numpy(part) for name, part in q.parts().items()}
    return qa.QuantizedArray.from_parts(parts, q.scheme, q.shape, q.dtype_name)


def test_argument_and_result_of_jit():
    q = qa.quantize(X, group("uint4"))
    same = jax.jit(lambda q: q)(q)
    assert_same_quantized(same, to_reference(q), jnp)
    part = jax.jit(lambda q: q[2])(q)
    assert_same_quantized(part, to_reference(q)[2], jnp)


def test_abstract_evaluation():
    q = jax.eval_shape(lambda x: qa.quantize(x, group("uint4")), X)
    assert q.data.shape == qa.quantize(corpus(), group("uint4")).data.shape
    y = jax.eval_shape(qa.dequantize, q)
    assert (y.shape, y.dtype) == (X.shape, X.dtype)


@pytest.mark.parametrize("scheme", FEW)
@pytest.mark.parametrize("options", [{}, {"channel_axis": -1}, {"group_size": 20}], ids=str)
def test_vmap(scheme, options):
    """Each case has its own scales, which are those of the case alone."""
    quantize = functools.partial(qa.quantize, scheme=scheme, **options)
    q = jax.vmap(quantize)(X)
    alone = [quantize(case) for case in corpus()]
    for name, part in q.parts().items():
        assert_same(part, np.stack([one.parts()[name] for one in alone]), jnp)
    assert_same(jax.vmap(qa.dequantize)(q), np.stack([one.dequantize() for one in alone]), jnp)
    third = jax.tree.map(lambda part: part[3], q)
    assert_same_quantized(third, alone[3], jnp, dtypes=["float32"])


def test_vmap_over_another_axis_inside_jit():
    q = jax.jit(jax.vmap(lambda x: qa.quantize(x, "uint4", group_size=20), in_axes=1))(X)
    reference = qa.quantize(np.swapaxes(corpus(), 0, 1), "uint4", group_size=20)
    for part, array in reference.parts().items():
        assert_same(q.parts()[part], array, jnp)


@pytest.mark.parametrize("options", [{"channel_axis": 1}, {"group_size": 20}], ids=str)
@pytest.mark.parametrize("scheme", ["int8", "uint4"])
def test_scan_over_layers(scheme, options):
    """Layers quantized as one stack are sliced by scan, and decode to the stack's values."""
    whole = {"block": (1, 1, -1)} if "channel_axis" in options else options
    q = qa.quantize(X, scheme, **whole)

    def layer(carry, q):
        values = qa.dequantize(q)
        return carry + 1, values

    steps, values = jax.lax.scan(layer, 0, q)
    assert int(steps) == len(X)
    assert_same(values, qa.quantize(corpus(), scheme, **whole).dequantize(), jnp)


def test_scan_quantizes_each_layer():
    _, q = jax.lax.scan(lambda carry, x: (carry, qa.quantize(x, "int8", channel_axis=0)), 0, X)
    reference = qa.quantize(corpus(), "int8", block=(1, 1, -1))
    assert_same(q.data, reference.data, jnp)
    assert_same(q.scale, reference.scale, jnp)


def test_gradient_of_what_is_beside_a_quantized_array():
    x = corpus()[0]
    q = qa.quantize(jnp.asarray(x), group("int8"))
    gradient = jax.grad(lambda v: (qa.dequantize(q) @ v).sum())(jnp.ones(x.shape[1]))
    expected = to_numpy(qa.dequantize(q)).sum(0)
    np.testing.assert_allclose(to_numpy(gradient), expected, rtol=1e-4)


def test_no_gradient_flows_through_quantization():
    gradient = jax.grad(lambda x: (qa.fake_quantize(x, "int8") + 2 * x).sum())(X[0])
    assert_same(gradient, np.full(X[0].shape, 2, np.float32), jnp)


def test_gradient_with_respect_to_the_scale():
    q = qa.quantize(jnp.asarray(corpus()[0]), "int8")

    def total(scale):
        return qa.from_codes(q.codes, "int8", scale=scale).dequantize().sum()

    np.testing.assert_allclose(float(jax.grad(total)(q.scale).sum()), to_numpy(q.codes).sum())


def test_float64_needs_x64():
    moderate = corpus("float64")[:5]
    x = jnp.asarray(moderate)
    q = qa.quantize(x, group("int8"))
    expected = moderate if jax.config.jax_enable_x64 else to_numpy(x)
    assert_same_quantized(q, qa.quantize(expected, group("int8")), jnp)
    assert q.dtype_name == ("float64" if jax.config.jax_enable_x64 else "float32")


def test_x64_may_be_turned_on_later():
    with jax.enable_x64(not jax.config.jax_enable_x64):
        q = qa.quantize(X, group("uint4"))
        assert_same_quantized(q, qa.quantize(corpus(), group("uint4")), jnp, dtypes=["float32"])


def test_numpy_result_from_before_jax_was_imported_is_a_pytree_later():
    program = """
import numpy as np, sys, quantarray as qa
q = qa.quantize(np.arange(8, dtype="float32"), "uint4")
assert "jax" not in sys.modules
import jax
new = qa.quantize(jax.numpy.arange(8, dtype="float32"), "uint4")
assert len(jax.tree.leaves(new)) == len(jax.tree.leaves(q)) == 3
assert (jax.jit(qa.dequantize)(q) == q.dequantize()).all()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


devices = pytest.mark.skipif(
    len(jax.devices()) < 8,
    reason="8 devices need XLA_FLAGS=--xla_force_host_platform_device_count=8",
)
AXIS_TYPES = ("Auto", "Explicit")


def mesh(axis_type):
    types = (getattr(jax.sharding.AxisType, axis_type),)
    return jax.make_mesh((8,), ("shards",), axis_types=types)


@devices
@pytest.mark.parametrize("axis_type", AXIS_TYPES)
@pytest.mark.parametrize("spec", [("shards", None), (None, "shards")], ids=["rows", "columns"])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_sharding_is_kept(jit, spec, axis_type):
    """Groups inside a shard: codes and scales lie where the values are."""
    x = np.random.default_rng(5).standard_normal((16, 512)).astype(np.float32)
    sharding = NamedSharding(mesh(axis_type), PartitionSpec(*spec))
    sharded = jax.device_put(jnp.asarray(x), sharding)
    for scheme in ("int8", "uint4", "mxfp4") if jit else ("mxfp4",):
        quantize = functools.partial(qa.quantize, scheme=scheme, group_size=32)
        q = (jax.jit(quantize) if jit else quantize)(sharded)
        reference = qa.quantize(x, scheme, group_size=32)
        for name, part in q.parts().items():
            assert part.sharding.is_equivalent_to(sharding, 2), (name, part.sharding)
            assert_same(part, reference.parts()[name], jnp, device=part.sharding)
        decoded = (jax.jit(qa.dequantize) if jit else qa.dequantize)(q)
        assert decoded.sharding.is_equivalent_to(sharding, 2)
        assert_same(decoded, reference.dequantize(), jnp, device=decoded.sharding)


@devices
@pytest.mark.parametrize("axis_type", AXIS_TYPES)
@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (("shards", None), {}),
        (("shards", None), {"channel_axis": 1}),
        ((None, "shards"), {"channel_axis": 0}),
    ],
    ids=str,
)
def test_blocks_across_shards_give_the_same_bits(spec, options, axis_type):
    x = np.random.default_rng(6).standard_normal((16, 512)).astype(np.float32)
    sharded = jax.device_put(x, NamedSharding(mesh(axis_type), PartitionSpec(*spec)))
    q = jax.jit(lambda x: qa.quantize(x, "int4", **options))(sharded)
    reference = qa.quantize(x, "int4", **options)
    for name, part in reference.parts().items():
        assert_same(q.parts()[name], part, jnp, device=q.parts()[name].sharding)
    values = jax.jit(qa.dequantize)(q)
    assert_same(values, reference.dequantize(), jnp, device=values.sharding)


@devices
@pytest.mark.parametrize("size", [48, 128])
def test_groups_that_shards_cut(size):
    """JAX communicates on an Auto axis, and on an Explicit one says that it would have to."""
    x = np.random.default_rng(6).standard_normal((16, 512)).astype(np.float32)
    spec = PartitionSpec(None, "shards")
    quantize = jax.jit(lambda x: qa.quantize(x, "int4", group_size=size))
    q = quantize(jax.device_put(x, NamedSharding(mesh("Auto"), spec)))
    reference = qa.quantize(x, "int4", group_size=size)
    for name, part in reference.parts().items():
        assert_same(q.parts()[name], part, jnp, device=q.parts()[name].sharding)
    with pytest.raises(Exception, match="shard") as failure:
        quantize(jax.device_put(x, NamedSharding(mesh("Explicit"), spec)))
    assert type(failure.value).__name__ == "ShardingTypeError"


@devices
def test_another_device():
    there = jax.devices()[3]
    q = qa.quantize(jax.device_put(X, there), group("uint4"))
    reference = qa.quantize(corpus(), group("uint4"))
    assert_same_quantized(q, reference, jnp, device=there, dtypes=["float32"])
    assert_same_quantized(
        q.to_device(jax.devices()[1]), reference, jnp, device=jax.devices()[1], dtypes=["float32"]
    )
