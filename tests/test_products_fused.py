"""The compiled kernels of products: as close as the generic form, and for any shape and layout."""

import numpy as np
import pytest
from helpers import LAYOUTS, assert_same, lay_out
from test_products import assert_close, codes, exact, normal

import quantarray as qa
from quantarray import _xp
from quantarray.products import matmul

pytestmark = pytest.mark.backend_independent
kernels = pytest.importorskip("quantarray.kernels.products")

# Schemes that the compiled kernels read, and what is left to the generic form.
FUSED = [
    ("int8", {}),
    ("int8", {"channel_axis": 0}),
    ("int8", {"channel_axis": 1}),
    ("int8", {"group_size": 5}),
    ("int8", {"block": (3, 7)}),
    ("int4", {}),
    ("int4", {"group_size": 16}),
    ("int4", {"block": (5, 6)}),
    ("int4", {"channel_axis": 1}),
    ("nf4", {"group_size": 16, "group_axis": 0}),
    ("uint4", {"group_size": 16}),
    ("uint8", {"group_size": 24}),
    ("nf4", {"group_size": 8}),
    ("nf4", {"group_size": 50}),
    ("fp4_bnb", {"group_size": 32}),
    ("mxfp4", {}),
    ("nvfp4", {}),
    ("mxfp8_e4m3", {}),
    ("mxint8", {}),
    ("fp8_e5m2", {"channel_axis": 0}),
    ("bnb:int8_rows", {}),
    ("ct:int4", {"group_size": 32}),
    ("ct:int4_asymmetric", {"group_size": 32}),
    ("torchao:uint4", {"group_size": 32}),
    ("onnx:int4", {"channel_axis": 0}),
]
NOT_FUSED = [
    ("int3", {}),
    ("int4", {"group_size": 5}),
    ("int4", {"group_size": 8, "group_axis": 0}),
    ("uint4", {"channel_axis": 1}),
    ("gptq:int4", {"group_size": 32}),
    ("awq:int4", {"group_size": 32}),
    ("mlx:affine4", {}),
    ("faiss:sq8", {}),
]
xp = _xp.load("numpy")


def kernels_of(q):
    return kernels.weights(q.data, q.scale, q.zero_point, q.blocks, q.shape, q.scheme)


@pytest.mark.parametrize("shape", [(1, 1), (5, 64), (37, 70), (11, 33), (4, 1), (1, 96)])
@pytest.mark.parametrize(("scheme", "options"), FUSED)
def test_fused_products(scheme, options, shape):
    """Vectors, few vectors, and matrices, which are multiplied in three ways."""
    q = qa.quantize(normal(*shape), scheme, **options)
    assert kernels_of(q) is not None
    w = q.dequantize("float64")
    for more in ((), (3,), (9,), (2, 3)):
        x = normal(*more, shape[0])
        assert_close(matmul(x, q), x.astype(np.float64), w, xp)
        x = normal(*more[:-1], shape[1], *more[-1:])
        assert_close(matmul(q, x), w, x.astype(np.float64), xp)


@pytest.mark.parametrize(("scheme", "options"), NOT_FUSED)
def test_other_schemes_take_the_generic_form(scheme, options):
    assert kernels_of(qa.quantize(normal(32, 64), scheme, **options)) is None


@pytest.mark.parametrize("columns", [64, 128, 96, 63])
@pytest.mark.parametrize("scheme", ["bnb:nf4", "int4"])
def test_flat_blocks(scheme, columns):
    q = qa.quantize(normal(6, columns), qa.scheme(scheme, flat=64 if columns != 63 else 63))
    assert (kernels_of(q) is None) == (columns in (96, 63))
    x = normal(columns)
    product = matmul(q, x)
    assert_close(product, q.dequantize("float64"), x.astype(np.float64), xp)


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("scheme", ["int4", "uint8", "nf4"])
def test_products_that_take_threads(scheme, threads, monkeypatch):
    monkeypatch.setenv("QUANTARRAY_THREADS", threads)
    q = qa.quantize(normal(1030, 1100), scheme, group_size=64)
    assert kernels_of(q) is not None
    w = q.dequantize("float64")
    for x in (normal(1030), normal(5, 1030)):
        assert_close(matmul(x, q), x.astype(np.float64), w, xp)
    for x in (normal(1100), normal(1100, 5)):
        assert_close(matmul(q, x), w, x.astype(np.float64), xp)
    a, b = codes("int8", 1030, 1100), codes("uint8", 1100)
    assert_same(matmul(a, b), exact(a, b), xp)
    assert_same(matmul(b[:1030], a), exact(b[:1030], a), xp)


def test_without_kernels(monkeypatch):
    """What is installed changes no more than the order of sums."""
    q, x = qa.quantize(normal(40, 70), "int4", group_size=16), normal(70)
    a, b = codes("int8", 7, 3000), codes("uint8", 3000)
    monkeypatch.setenv("QUANTARRAY_KERNELS", "generic")
    monkeypatch.setattr(kernels, "weights", None)
    monkeypatch.setattr(kernels, "integers", None)
    assert_close(matmul(q, x), q.dequantize("float64"), x.astype(np.float64), xp)
    assert_same(matmul(a, b), exact(a, b), xp)


@pytest.mark.parametrize("scheme", ["int8", "int4", "nf4"])
def test_what_overflows_on_the_way_is_decoded(scheme):
    """A code times a large element, or a scale times it, can exceed float32 by itself."""
    w = np.ones((4, 64), np.float32)
    w[:, 1:] = 0
    for size, of_x in ((1e-20, 3e38), (1e30, 1e20)):
        q = qa.quantize(np.float32(size) * w, scheme, group_size=64)
        x = np.zeros(64, np.float32)
        x[0 if size < 1 else 1] = of_x
        assert_close(matmul(q, x), q.dequantize("float64"), x.astype(np.float64), xp)
    q = qa.quantize(np.float32(1e30) * w, scheme, group_size=64)
    x = np.zeros(4, np.float32)
    assert np.isfinite(matmul(x, q)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_byte_orders(layout):
    x, w = normal(70), qa.quantize(normal(40, 70), "int4", group_size=16)
    q = qa.QuantizedArray.from_parts(
        {name: lay_out(part, layout) for name, part in w.parts().items()},
        w.scheme,
        w.shape,
        w.dtype_name,
    )
    decoded = w.dequantize("float64")
    assert_close(matmul(q, lay_out(x, layout)), decoded, x.astype(np.float64), xp)
    assert_close(matmul(q, x.astype(">f4")), decoded, x.astype(np.float64), xp)
    assert_close(matmul(q, x.astype(">f8")), decoded, x.astype(np.float64), xp, 2.0**-23)
    a, b = codes("int8", 6, 70), codes("int8", 70)
    assert_same(matmul(lay_out(a, layout), lay_out(b, layout)), exact(a, b), xp)
    assert_same(matmul(lay_out(b, layout), lay_out(a.T, layout)), exact(b, a.T), xp)
