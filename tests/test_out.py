"""Decoding into an array that exists: `out` is filled, and given back."""

import numpy as np
import pytest
from corpus import corpus
from helpers import assert_same, dtypes_of, lay_out, moved, to_backend, to_numpy

import quantarray as qa
from quantarray import QuantArrayError, _xp

SCHEMES = {
    "int8": qa.scheme("int8"),
    "groups": qa.scheme("uint4", group_size=20),
    "columns": qa.scheme("int3", channel_axis=-1),
    "flat": qa.scheme("nf4", flat=100),
    "two levels": qa.scheme("nvfp4"),
    "not fused": qa.scheme("onnx:int16"),
}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=list(SCHEMES))
WRITABLE = ("numpy", "torch", "array_api_strict")
X = corpus()[:7]


@pytest.fixture(params=["fused", "generic"], autouse=True)
def kernels(request, monkeypatch):
    monkeypatch.setenv("QUANTARRAY_KERNELS", request.param)


@pytest.fixture
def writable(xp):
    if _xp.backend(xp) not in WRITABLE:
        pytest.skip(f"arrays of {_xp.backend(xp)} cannot be written to")
    return xp


def empty(xp, shape, dtype="float32"):
    """Give an array on the tests' device, full of what no test expects."""
    return xp.full(shape, 77.0, dtype=_xp.dtype(xp, dtype), device=_xp.device(to_backend(X, xp)))


@every_scheme
def test_out_is_filled_and_given_back(writable, scheme):
    q = qa.quantize(X, scheme)
    there = moved(q, writable)
    for dtype in dtypes_of(writable):
        expected = q.dequantize(dtype)
        for decode in (there.dequantize, lambda out, **options: qa.dequantize(there, out=out)):
            out = empty(writable, X.shape, dtype)
            assert decode(out=out) is out
            assert_same(out, expected, writable)
        out = empty(writable, X.shape, dtype)
        assert there.dequantize(_xp.dtype(writable, dtype), out=out) is out
        assert_same(out, expected, writable)


@every_scheme
def test_out_may_lie_in_memory_in_any_way(writable, scheme):
    q = qa.quantize(X, scheme)
    there, expected = moved(q, writable), q.dequantize()
    n, rows, columns = X.shape
    wide = empty(writable, (n, rows, 2 * columns))
    out = wide[:, :, ::2]
    assert there.dequantize(out=out) is out
    assert_same(out, expected, writable)
    assert (to_numpy(wide)[:, :, 1::2] == 77).all()
    turned = empty(writable, (columns, rows, n))
    out = writable.permute_dims(turned, (2, 1, 0))
    assert there.dequantize(out=out) is out
    assert_same(out, expected, writable)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (5, 0), (3, 1, 5)], ids=str)
def test_out_of_every_shape(writable, shape):
    x = np.resize(X, shape) if 0 not in shape else np.zeros(shape, np.float32)
    for scheme in ("int8", "uint3", qa.scheme("int4", flat=3)):
        q = qa.quantize(x, scheme)
        out = empty(writable, shape)
        assert moved(q, writable).dequantize(out=out) is out
        assert_same(out, q.dequantize(), writable)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_out_where_a_block_needs_care(writable):
    """What a kernel has written before it leaves the work to others is written again."""
    scale = np.ones((7, 1, 1), np.float32)
    scale[5], scale[6] = np.nan, 3e38
    parts = {"data": np.full(X.shape, 100, np.int8), "scale": scale}
    q = qa.QuantizedArray.from_parts(
        parts, qa.quantize(X, channel_axis=0).scheme, X.shape, "float32"
    )
    out = empty(writable, q.shape)
    assert moved(q, writable).dequantize(out=out) is out
    assert_same(out, q.dequantize(), writable)
    assert np.isnan(to_numpy(out)[5]).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_out_of_another_byte_order(dtype):
    for scheme in SCHEMES.values():
        q = qa.quantize(X, scheme)
        out = np.full(X.shape, 77, np.dtype(dtype).newbyteorder("S"))
        assert q.dequantize(out=out) is out
        assert_same(out.astype(dtype), q.dequantize(dtype), _xp.load("numpy"))


@pytest.mark.parametrize("layout", ["fortran", "strided", "reversed"])
def test_out_of_other_layouts_of_numpy(layout):
    for scheme in SCHEMES.values():
        q = qa.quantize(X, scheme)
        out = lay_out(np.full(X.shape, 77, np.float32), layout)
        out = out.copy(order="F") if layout == "fortran" else out
        out.flags.writeable = True
        assert q.dequantize(out=out) is out
        assert_same(out, q.dequantize(), _xp.load("numpy"))
    raw = np.zeros(X.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(X.shape)
    assert q.dequantize(out=raw) is raw
    assert_same(raw.copy(), q.dequantize(), _xp.load("numpy"))


def test_out_that_cannot_be_written_to(xp):
    q = moved(qa.quantize(X), xp)
    if _xp.backend(xp) in WRITABLE:
        if _xp.backend(xp) != "numpy":
            return
        out = np.zeros(X.shape, np.float32)
        out.flags.writeable = False
    else:
        out = to_backend(X, xp)
    message = f"out: this array of {_xp.backend(xp)} cannot be written to: expected None"
    with pytest.raises(QuantArrayError, match=message):
        q.dequantize(out=out)


def test_out_of_another_library(xp):
    q = moved(qa.quantize(X), xp)
    others = [[0.0], 1.0, "out", object()]
    if _xp.backend(xp) != "numpy":
        others.append(np.zeros(X.shape, np.float32))
    for out in others:
        message = rf"dequantize: out is a \w+: expected an array of {_xp.backend(xp)}"
        with pytest.raises(QuantArrayError, match=message):
            q.dequantize(out=out)


def test_out_of_another_shape_or_dtype(writable):
    q = moved(qa.quantize(X), writable)
    cases = [((7, 8, 95), "float32"), ((7, 768), "float32"), ((8, 96), "float32")]
    for shape, dtype in [*cases, (X.shape, "int32"), (X.shape, "uint8")]:
        out = writable.zeros(shape, dtype=_xp.dtype(writable, dtype), device=q.device)
        message = r"dequantize: out has shape \(.*\) and dtype \w+: expected shape \(7, 8, 96\) and"
        with pytest.raises(QuantArrayError, match=message):
            q.dequantize(out=out)
    out = empty(writable, X.shape)
    with pytest.raises(QuantArrayError, match="out has dtype float32: expected float64"):
        q.dequantize("float64", out=out)
    assert (to_numpy(out) == 77).all()
