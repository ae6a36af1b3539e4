"""What the tests of every backend share: arrays in, and one comparison that asserts bits."""

import os

import array_api_compat
import numpy as np
import pytest

from quantarray import QuantizedArray, _xp, scheme, schemes

# The backend of this session, or None: every CPU backend that is installed here.
SESSION = os.environ.get("QUANTARRAY_BACKEND") or None
CPU = tuple(name for name in _xp.BACKENDS if name != "cupy")
BACKENDS = (SESSION,) if SESSION else tuple(name for name in CPU if name in _xp.installed())
DTYPES = ("float16", "bfloat16", "float32", "float64")
# Presets for any shape and any blocks: those of ggml need whole blocks of their own.
ANY_SHAPE = tuple(name for name in schemes() if scheme(name).record is None)


def lacks(backend, dtype):
    """Say why a backend has no arrays of a dtype, or give None."""
    if backend == "array_api_strict" and dtype in ("float16", "bfloat16"):
        return f"array-api-strict has no {dtype}"
    if backend == "jax" and dtype == "float64" and not _jax_x64():
        return "JAX has no float64 while jax_enable_x64 is off"
    return None


def _jax_x64():
    import jax

    return jax.config.jax_enable_x64


def dtypes_of(xp):
    """Give the floating dtypes of a namespace that `lacks` has nothing to say about."""
    return [dtype for dtype in DTYPES if not lacks(_xp.backend(xp), dtype)]


def session_of(backend):
    """Load the backend of a module of tests, or skip the module: it is another session's."""
    if SESSION not in (None, backend):
        pytest.skip(
            f"tests of {backend}: this is the session of {SESSION}", allow_module_level=True
        )
    if SESSION is None and backend not in _xp.installed():
        pytest.skip(f"tests of {backend}: it is not installed", allow_module_level=True)
    return _xp.load(backend)


def device_of(xp):
    """Give the device the tests use: not the default one, where a backend has others."""
    if _xp.backend(xp) == "array_api_strict":
        return xp.Device("device1")
    return _xp.device(xp.empty(0))


def to_backend(x, xp):
    """Copy a NumPy array to the tests' device; under NumPy it is read-only."""
    name = _xp.backend(xp)
    if name == "numpy":
        x = np.array(x, copy=True, order="C")
        x.flags.writeable = False
        return x
    if name == "array_api_strict":
        return xp.asarray(x, device=device_of(xp))
    return _xp.from_numpy(np.asarray(x), xp)


def moved(q, xp):
    """Copy a quantized array of NumPy to a backend."""
    parts = {name: to_backend(part, xp) for name, part in q.parts().items()}
    return QuantizedArray.from_parts(parts, q.scheme, q.shape, q.dtype_name)


def to_numpy(*arrays):
    """Copy arrays of any backend and device to NumPy; what Dask has in common is computed once."""
    name = _xp.backend(_xp.namespace(arrays[0]))
    if name == "array_api_strict":
        import array_api_strict

        host = array_api_strict.Device("CPU_DEVICE")
        arrays = [array_api_compat.to_device(x, host) for x in arrays]
    if name == "dask":
        import dask

        arrays = dask.compute(*arrays, scheduler="synchronous")
    found = [_xp.to_numpy(x) for x in arrays]
    return found if len(found) > 1 else found[0]


def lay_out(x, layout):
    """Give a read-only NumPy array equal to x that lies in memory in another way."""
    x = np.asarray(x)
    if layout == "fortran":
        x = np.array(x, order="F")
    elif layout == "strided":
        wide = np.full((*x.shape, 2), 77, dtype=x.dtype)
        wide[..., 0] = x
        x = wide[..., 0]
    elif layout == "reversed":
        backwards = (slice(None, None, -1),) * x.ndim
        x = np.array(x[backwards], order="C")[backwards]
    else:
        assert layout == "plain"
        x = np.array(x, order="C")
    x.flags.writeable = False
    return x


LAYOUTS = ("plain", "fortran", "strided", "reversed")


def bits(x):
    """Give the bits of a NumPy array, with one pattern for every NaN."""
    if x.dtype.kind in "iub":
        return x
    words = np.ascontiguousarray(x).reshape(x.shape).view(f"u{x.dtype.itemsize}")
    return np.where(np.isnan(x), np.iinfo(words.dtype).max, words)


def assert_same(actual, expected, xp, device=None):
    """Assert that an array is of a namespace, and bit for bit the NumPy array `expected`.

    The sign of zero counts, the payload of a NaN does not. `device` is by default the tests'.
    """
    expected = np.asarray(expected)
    _assert_kind(actual, expected, xp, device)
    _assert_bits(to_numpy(actual), expected)


def assert_same_quantized(q, reference, xp, device=None, dtypes=None):
    """Assert that q is the QuantizedArray `reference` of NumPy: every part, and what it decodes to.

    `dtypes` are those to decode to, by default all that the namespace has.
    """
    assert q.scheme == reference.scheme
    assert q.shape == reference.shape
    assert q.dtype_name == reference.dtype_name
    assert _xp.dtype_name(q.dtype) == reference.dtype_name
    assert list(q.parts()) == list(reference.parts())
    assert (q.size, q.nbytes) == (reference.size, reference.nbytes)
    found, expected = (
        _everything(one, dtypes_of(xp) if dtypes is None else dtypes) for one in (q, reference)
    )
    for name, array in found.items():
        _named(name, _assert_kind, array, expected[name], xp, device)
    for name, host in zip(found, to_numpy(*found.values()), strict=True):
        _named(name, _assert_bits, host, expected[name])


def _everything(q, dtypes):
    decoded = {f"decoded {dtype}": q.dequantize(dtype) for dtype in dtypes}
    return {**q.parts(), "values of scale": q.scale, "codes": q.codes, **decoded}


def _assert_kind(actual, expected, xp, device):
    namespace = array_api_compat.array_namespace(actual)
    assert namespace is xp, f"namespace {namespace.__name__}, expected {xp.__name__}"
    found = _xp.dtype_name(actual.dtype)
    assert found == expected.dtype.name, f"dtype {found}, expected {expected.dtype.name}"
    assert tuple(actual.shape) == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    where, place = array_api_compat.device(actual), device_of(xp) if device is None else device
    assert where == place, f"device {where}, expected {place}"


def _assert_bits(host, expected):
    assert host.dtype == expected.dtype, f"dtype {host.dtype} on the host"
    assert host.shape == expected.shape, f"shape {host.shape} on the host"
    wrong = np.nonzero(np.atleast_1d(bits(host) != bits(expected)))
    if len(wrong[0]):
        first = tuple(int(axis[0]) for axis in wrong)
        one, other = (np.atleast_1d(a)[first] for a in (host, expected))
        raise AssertionError(
            f"{len(wrong[0])} of {host.size} differ; {first}: {one!r}, not {other!r}"
        )


def _named(what, check, *arguments):
    try:
        check(*arguments)
    except AssertionError as failure:
        raise AssertionError(f"{what}: {failure}") from None
