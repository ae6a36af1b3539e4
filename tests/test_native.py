"""Codes in the dtypes that array libraries have of their own: the same bits, and what they mean."""

import sys

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same, moved, to_numpy

import quantarray as qa
from quantarray import QuantArrayError, _xp
from quantarray.formats import FORMATS, Float
from quantarray.scheme import Packing, Scale

only_numpy = pytest.mark.backend_independent
EIGHT = ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz")
DTYPE = {
    **{name: f"float8_{name}" for name in (*EIGHT, "e8m0fnu")},
    "e3m2fn": "float6_e3m2fn",
    "e2m3fn": "float6_e2m3fn",
    "e2m1fn": "float4_e2m1fn",
    **{name: name for name in ("int4", "uint4", "int2", "uint2")},
}
# The formats of which a library has a dtype, stored in our own packing.
HAS = {
    "numpy": {*DTYPE},
    "dask": {*DTYPE},
    "jax": {*DTYPE} - {"e3m2fn", "e2m3fn"},
    "torch": {*EIGHT, "e8m0fnu", "e2m1fn"},
    "array_api_strict": set(),
}


def stored(format_, shape=(3, 32), **choices):
    """Give an array of NumPy with every code of a format."""
    scheme = qa.scheme("fp8_e4m3", element=FORMATS[format_], **choices)
    bits = FORMATS[format_].bits
    codes = np.arange(np.prod(shape)).reshape(shape) % (1 << bits)
    if bits == 8:
        codes = np.arange(256).reshape(8, 32)
    if format_.startswith("int"):
        codes = codes - (1 << (bits - 1))
    return qa.from_codes(codes, scheme, scale=1.0)


def in_bytes(view):
    """Give the bytes of a torch tensor."""
    import torch

    return view.view(torch.uint8).numpy()


def values_of(view):
    """Give what a library takes the codes for."""
    name = _xp.backend(_xp.namespace(view))
    if name == "torch":
        import torch

        return view.to(torch.float32).numpy()
    return np.asarray(view.astype("float32"))


@pytest.mark.parametrize("name", DTYPE)
def test_values_are_those_of_the_library(name, xp):
    backend = _xp.backend(xp)
    if name == "e8m0fnu":  # a format of scales alone
        return
    reference = stored(name)
    q = moved(reference, xp)
    if name not in HAS[backend]:
        message = rf"view_native: data: {backend} \d[\w.+]* has no dtype for {name}.*: use \.codes"
        with pytest.raises(QuantArrayError, match=message):
            q.view_native()
        return
    view = q.view_native()
    expected = qa.decode(reference.codes, name, "float32")
    if backend == "torch" and name == "e2m1fn":
        assert str(view.dtype) == "torch.float4_e2m1fn_x2"
        assert tuple(view.shape) == (3, 16)
        assert (in_bytes(view) == reference.data).all()
        return
    assert _xp.dtype_name(view.dtype) == DTYPE[name]
    assert tuple(view.shape) == q.shape
    found = values_of(view)
    assert (np.isnan(found) == np.isnan(expected)).all()
    finite = ~np.isnan(expected)
    assert (found[finite].view(np.uint32) == expected[finite].view(np.uint32)).all()


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxfp4", "nvfp4", "onnx:float8e5m2", "ct:nvfp4"])
def test_scales(name, xp):
    x = np.random.default_rng(8).standard_normal((4, 64)).astype(np.float32)
    x[1] *= 1e-30
    reference = qa.quantize(x, name)
    q, coded = moved(reference, xp), reference.scheme.scale.coded
    if coded is None:
        assert_same(q.view_native("scale_data"), reference.scale_data, xp)
    elif _xp.backend(xp) == "array_api_strict":
        with pytest.raises(
            QuantArrayError, match=r"scale_data: .* has no dtype for e.*use \.scale"
        ):
            q.view_native("scale_data")
    else:
        view = q.view_native("scale_data")
        assert tuple(view.shape) == reference.scale_data.shape
        expected = np.asarray(coded.table, np.float32)[reference.scale_data]
        assert (values_of(view) == expected).all()


@only_numpy
def test_the_smallest_scale_of_e8m0():
    """2**-127, which is subnormal in float32, is code 0."""
    q = qa.quantize(np.zeros((1, 32), np.float32), "torchao:mxfp4")
    assert q.scale_data.item() == 0
    assert float(q.view_native("scale_data").item()) == 2.0**-127


@pytest.mark.parametrize("name", ["int8", "uint8", "onnx:int16", "onnx:uint16", "gptq:int8"])
def test_integers_of_whole_bytes_are_their_codes(name, xp):
    reference = qa.quantize(np.linspace(-1, 2, 64, dtype=np.float32).reshape(4, 16), name)
    assert_same(moved(reference, xp).view_native(), reference.codes, xp)


@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (0, 4), (2, 3, 9)])
@pytest.mark.parametrize("name", ["int4", "uint2", "fp4_e2m1", "fp8_e5m2"])
def test_shapes(name, shape, xp):
    backend = _xp.backend(xp)
    x = np.random.default_rng(8).standard_normal(shape).astype(np.float32)
    reference = qa.quantize(x, name)
    q, odd = moved(reference, xp), shape != (0, 4)
    format_ = {"fp4_e2m1": "e2m1fn", "fp8_e5m2": "e5m2"}.get(name, name)
    if format_ not in HAS[backend] or (backend == "torch" and format_ == "e2m1fn" and odd):
        with pytest.raises(QuantArrayError, match=f"has no dtype for {format_}"):
            q.view_native()
        return
    view = q.view_native()
    if backend == "torch" and format_ == "e2m1fn":
        assert tuple(view.shape) == (0, 2)
        return
    assert tuple(view.shape) == shape
    expected = qa.decode(reference.codes, format_, "float32")
    assert (values_of(view) == expected).all()


# Four bits that do not lie as those of torch and JAX do: both halves of a byte tell.
OTHER = [
    qa.scheme("fp4_e2m1", packing=Packing("msb")),
    qa.scheme("fp4_e2m1", packing=Packing(word=32)),
    qa.scheme("fp4_e2m1", packing=Packing(transpose="words")),
    qa.scheme("int4", packing=Packing(word=32, excess=True)),
    qa.scheme("uint4", packing=Packing(centred=True)),
    qa.scheme("fp8_e4m3", packing=Packing(word=32)),
    qa.scheme("fp4_e2m1", flat=6),
]


@pytest.mark.parametrize("scheme", OTHER, ids=lambda s: f"{s.name} {s.packing.order} {s.packing}")
def test_other_packings_are_unpacked_or_refused(scheme, xp):
    backend = _xp.backend(xp)
    x = np.random.default_rng(8).standard_normal((4, 12)).astype(np.float32)
    reference = qa.quantize(x, scheme)
    q, eight = moved(reference, xp), scheme.element.bits == 8
    flat = scheme.block.flat is not None
    if backend == "array_api_strict" or (backend == "torch" and not (eight or flat)):
        with pytest.raises(QuantArrayError, match=r"\(packed rows of \d+\): use .codes"):
            q.view_native()
        return
    view = q.view_native()
    if backend == "torch" and flat:
        assert (in_bytes(view) == reference.data).all()
        return
    assert tuple(view.shape) == (4, 12)
    format_ = {"fp4_e2m1": "e2m1fn", "fp8_e4m3": "e4m3fn"}.get(scheme.name, scheme.name)
    assert (values_of(view) == qa.decode(reference.codes, format_, "float32")).all()


NONE = [
    (qa.scheme("nf4"), "data: .* has no dtype for nf4"),
    (qa.scheme("int3"), r"data: .* has no dtype for int3 \(packed rows of 64\): use \.codes"),
    (qa.scheme("mxint8"), "has no dtype for mxint8: use .codes"),
    (qa.scheme("st:int8"), "has no dtype for Integer"),
    (qa.scheme("faiss:sq8"), "has no dtype for Integer.*middle=True"),
    (qa.scheme("st:ubinary"), "has no dtype for sign"),
]


@pytest.mark.parametrize(("scheme", "message"), NONE)
def test_formats_of_nobody_are_refused(scheme, message, xp):
    q = moved(qa.quantize(np.ones((2, 64), np.float32), scheme), xp)
    with pytest.raises(QuantArrayError, match=f"view_native: .*{message}"):
        q.view_native()


def test_scales_of_nobody_are_refused(xp):
    q = moved(qa.quantize(np.ones((2, 64), np.float32), "bnb:nf4_nested"), xp)
    with pytest.raises(QuantArrayError, match=r"scale_data: .* no dtype for dynamic8: use \.scale"):
        q.view_native("scale_data")
    with pytest.raises(QuantArrayError, match="view_native: part='scale': expected one of 'data'"):
        q.view_native("scale")


def test_small_formats_of_scales(xp):
    """Stored one in a byte, which only NumPy's own dtypes are."""
    small = Float(4, 1, 7, "nan", signed=False)
    scheme = qa.scheme("int8", group_size=8, scale=Scale(format=small))
    q = moved(qa.quantize(np.ones((2, 16), np.float32), scheme), xp)
    with pytest.raises(QuantArrayError, match="no dtype for Float"):
        q.view_native("scale_data")


@only_numpy
def test_views_share_memory_where_they_can():
    for name in ("fp8_e4m3", "mxfp8_e5m2", "int8"):
        q = qa.quantize(np.ones((4, 64), np.float32), name)
        assert np.shares_memory(q.view_native(), q.data)
    q = qa.quantize(np.ones((4, 64), np.float32), "mxfp4")
    assert np.shares_memory(q.view_native("scale_data"), q.scale_data)


@only_numpy
def test_packed_bytes_are_never_taken_for_codes():
    """NumPy would: it reads the low half of each byte, and forgets the high one."""
    q = qa.from_codes(np.asarray([[1, 15]], np.uint8), "fp4_e2m1", scale=1.0)
    assert q.data.view(ml_dtypes.float4_e2m1fn).shape == (1, 1)
    assert q.view_native().shape == (1, 2)
    assert (q.view_native().astype(np.float32) == [[0.5, -6.0]]).all()


@only_numpy
def test_without_ml_dtypes(monkeypatch):
    q = qa.quantize(np.ones((2, 32), np.float32), "fp8_e4m3")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(
        QuantArrayError, match=r"dtype float8_e4m3fn: NumPy has none without ml_dty"
    ):
        q.view_native()


def traced_by_jax(xp):
    import jax

    for name in ("mxfp4", "mxfp8_e4m3", "int4"):
        q = moved(qa.quantize(np.linspace(-3, 3, 99, dtype=np.float32).reshape(3, 33), name), xp)
        for part in ("data", "scale_data"):
            traced = jax.jit(lambda q, part=part: q.view_native(part).astype("float32"))(q)
            assert_same(traced, values_of(q.view_native(part)), xp)
    q = qa.quantize(xp.linspace(-3, 3, 99).reshape(3, 33), "int4", channel_axis=0)
    rows = jax.vmap(lambda q: q.view_native().astype("float32"))(q)
    assert_same(rows, values_of(q.view_native()), xp)


def compiled_by_torch(xp):
    import torch

    torch.compiler.reset()
    q = moved(qa.quantize(np.linspace(-3, 3, 96, dtype=np.float32).reshape(3, 32), "mxfp4"), xp)
    for part, dtype in (("data", torch.float4_e2m1fn_x2), ("scale_data", torch.float8_e8m0fnu)):
        see = torch.compile(lambda q, p=part: q.view_native(p), fullgraph=True, backend="eager")
        view = see(q)
        assert view.dtype == dtype
        assert view.data_ptr() == getattr(q, part).data_ptr()


def forbidden(*arguments, **options):
    raise AssertionError("something was computed")


def lazy_on_dask(xp):
    import dask

    x = xp.from_array(np.ones((4, 64), np.float32), chunks=(2, 64))
    with dask.config.set(scheduler=forbidden):
        q = qa.quantize(x, "mxfp4")
        view = q.view_native()
    assert view.chunks == q.codes.chunks
    assert (to_numpy(view).view(np.uint8) == to_numpy(q.codes)).all()


def test_traced_and_lazy_arrays(xp):
    ways = {"jax": traced_by_jax, "torch": compiled_by_torch, "dask": lazy_on_dask}
    if way := ways.get(_xp.backend(xp)):
        way(xp)
