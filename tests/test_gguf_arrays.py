"""Quantized arrays of ggml's block types: what the container gives, takes and refuses."""

import copy
import pickle

import numpy as np
import pytest
from gguf_corpus import FEW, PRESETS, ROWS, TAKEN_APART, any_bytes, decoded, importance, rows
from helpers import (
    SESSION,
    assert_same,
    assert_same_quantized,
    device_of,
    dtypes_of,
    lacks,
    lay_out,
    moved,
    to_backend,
    to_numpy,
)

import quantarray as qa
from quantarray import QuantArrayError, QuantizedArray, _xp
from quantarray.formats import Integer
from quantarray.parts import part_specs
from quantarray.records import RECORDS

only_numpy = pytest.mark.backend_independent
NUMPY = _xp.load("numpy")
# JAX compiles anew for every shape.
some = slice(None, None, 2 if SESSION == "jax" else 1)
SOME = tuple(f"gguf:{name.lower()}" for name in (FEW[1:4] if SESSION == "jax" else FEW))


def values_of(element, codes):
    """Give the values of codes, from what their format says of them."""
    if isinstance(element, Integer):
        return ((codes.astype(np.float32) - element.origin) / element.steps).astype(np.float32)
    return np.asarray(element.table, np.float32)[codes]


@pytest.mark.parametrize("scheme", SOME)
def test_quantize_and_dequantize(xp, scheme):
    q, reference = qa.quantize(to_backend(rows(), xp), scheme), qa.quantize(rows(), scheme)
    assert_same_quantized(q, reference, xp)
    data = qa.gguf.encode(rows(), q.scheme.packing.record)
    assert_same(q.data, data, xp)
    assert_same(q.dequantize(), qa.gguf.decode(data, q.scheme.packing.record), xp)
    assert_same(qa.fake_quantize(to_backend(rows(), xp), scheme), reference.dequantize(), xp)


@only_numpy
@pytest.mark.parametrize("scheme", PRESETS)
def test_every_preset(scheme):
    x = rows().reshape(3, 4, -1)
    q = qa.quantize(x, scheme)
    record = q.scheme.record
    assert list(q.parts()) == ["data"]
    assert (q.scale_data, q.zero_point, q.offset_data, q.global_scale) == (None,) * 4
    assert {"data": (q.data.shape, "uint8")} == part_specs(q.scheme, x.shape, "float32")
    assert_same(q.data, qa.gguf.encode(x, record.name), NUMPY)
    assert (q.shape, q.ndim, q.size, q.dtype_name) == (x.shape, 3, x.size, "float32")
    assert q.nbytes == q.data.nbytes == x.size // record.elements * record.size
    assert q.bits_per_element == record.bits
    assert repr(q) == (
        f"QuantizedArray({scheme} (blocks of {record.group} along axis -1), shape=(3, 4, 512), "
        f"dtype=float32, {record.bits:.4g} bits per element, numpy, cpu)"
    )


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # Dask computes elsewhere
@pytest.mark.parametrize("name", TAKEN_APART)
def test_scales_offsets_and_codes_give_the_values(xp, name):
    """``s * v + m``, each step rounded to float32, is what is decoded to, for any bytes."""
    record, reference = RECORDS[name], decoded(name)
    q = moved(reference, xp)
    grid = (len(ROWS), rows().shape[1] // record.group)
    scale, codes = to_numpy(q.scale), to_numpy(q.codes)
    assert (scale.shape, scale.dtype) == (grid, np.float32)
    assert codes.shape == rows().shape
    signed = isinstance(record.element, Integer) and record.element.signed
    assert codes.dtype == (np.int8 if signed else np.uint8)
    with np.errstate(all="ignore"):
        values = np.repeat(scale, record.group, axis=1) * values_of(record.element, codes)
        if record.offset:
            offset = to_numpy(q.offset)
            assert (offset.shape, offset.dtype) == (grid, np.float32)
            values = values + np.repeat(offset, record.group, axis=1)
        else:
            assert q.offset is None
    assert_same(q.dequantize(), values, xp)
    assert q.blocks.grid == grid
    parts = qa.gguf.parts(reference.data, name)
    assert_same(parts["scale"].reshape(grid), scale, NUMPY)


@pytest.mark.parametrize("scheme", SOME)
def test_decoding_to_every_dtype(xp, float_dtype, scheme):
    x = rows(float_dtype)
    q, reference = qa.quantize(to_backend(x, xp), scheme), qa.quantize(x, scheme)
    assert q.dtype_name == float_dtype
    assert_same_quantized(q, reference, xp, dtypes=[float_dtype])
    assert_same(q.data, qa.quantize(x.astype(np.float32), scheme).data, xp)
    assert_same(q.dequantize(), reference.dequantize(), xp)


@pytest.mark.parametrize("scheme", ["gguf:q4_0", "gguf:mxfp4", "gguf:q4_k"][some])
def test_empty_arrays(xp, scheme):
    for shape in ((0, 256), (3, 0), (0,), (2, 0, 256)):
        q = qa.quantize(to_backend(np.zeros(shape, np.float32), xp), scheme)
        assert (q.shape, q.nbytes) == (shape, 0)
        assert np.isnan(q.bits_per_element)
        assert tuple(q.dequantize().shape) == tuple(q.codes.shape) == shape
        assert tuple(q.scale.shape) == (*shape[:-1], shape[-1] // q.scheme.record.group)


@pytest.mark.parametrize("scheme", ["gguf:q5_1", "gguf:q6_k"][some])
def test_indexing(xp, scheme):
    reference = qa.quantize(rows().reshape(3, 4, 512), scheme)
    q = moved(reference, xp)
    for key in (1, (2, -1), slice(1, 3), (slice(None), slice(None, None, 3)), ...)[some]:
        assert_same_quantized(q[key], reference[key], xp, dtypes=["float32"])
        assert_same(q[key].dequantize(), reference.dequantize()[key], xp)
    assert [part.shape for part in q] == [(4, 512)] * 3
    assert len(q) == 3
    for key in ((0, 0, 0), (slice(None), slice(None), slice(0, 256))):
        with pytest.raises(QuantArrayError, match=r"the last axis .* is packed"):
            q[key]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # Dask computes elsewhere
@pytest.mark.parametrize("scheme", ["gguf:q4_0", "gguf:q2_k", "gguf:iq1_s"])
def test_bytes_and_parts(xp, scheme):
    name = scheme.removeprefix("gguf:").upper()
    reference = decoded(name)
    q = moved(reference, xp)
    assert q.to_bytes() == any_bytes(name).tobytes()
    again = QuantizedArray.from_bytes(q.to_bytes(), scheme, q.shape)
    assert_same_quantized(again, reference, NUMPY)
    assert_same_quantized(q.to_device(device_of(xp)), reference, xp, dtypes=["float32"])
    rest = q.scheme, q.shape, "float32"
    for parts, message in (
        ({}, "part 'data': None: expected"),
        ({"data": q.data[:, 1:]}, "part 'data': .*: expected"),
        ({"data": q.data, "scale": q.scale}, "part 'scale': .*: expected None"),
        ({"data": q.dequantize()}, "part 'data': .*float32.*: expected .*uint8"),
    ):
        with pytest.raises(QuantArrayError, match=message):
            QuantizedArray.from_parts(parts, *rest)


@only_numpy
@pytest.mark.parametrize("scheme", ["gguf:q4_0", "gguf:q4_k"])
def test_shapes_that_hold_no_whole_blocks(scheme):
    elements = qa.scheme(scheme).record.elements
    for shape in ((2, elements - 1), (elements, 8)):
        message = rf"last axis that is a multiple of {elements}"
        with pytest.raises(QuantArrayError, match=message):
            QuantizedArray.from_bytes(b"", scheme, shape)
        with pytest.raises(QuantArrayError, match=f"quantize: x has shape .*{message}"):
            qa.quantize(np.zeros(shape, np.float32), scheme)
    for call in (
        lambda: QuantizedArray.from_bytes(b"", scheme, ()),
        lambda: qa.quantize(np.float32(1), scheme),
    ):
        with pytest.raises(QuantArrayError, match=r"shape \(\)"):
            call()
    with pytest.raises(QuantArrayError, match="from_bytes: data has 3 bytes: expected"):
        QuantizedArray.from_bytes(b"abc", scheme, (2, elements))


@only_numpy
def test_copies_and_pickles():
    for name in ("Q4_K", "IQ2_XXS"):
        q = decoded(name)
        for copied in (copy.copy(q), copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
            assert_same_quantized(copied, q, NUMPY)


@pytest.mark.parametrize("scheme", ["gguf:q5_0", "gguf:q4_k"])
def test_out(xp, scheme):
    if _xp.backend(xp) not in ("numpy", "torch", "array_api_strict"):
        pytest.skip("arrays that cannot be written to")
    reference = qa.quantize(rows(), scheme)
    q = moved(reference, xp)
    for dtype in dtypes_of(xp):
        kind = _xp.dtype(xp, dtype)
        for shape, view in (((12, 512), lambda a: a), ((12, 1024), lambda a: a[:, ::2])):
            out = view(xp.full(shape, 77.0, dtype=kind, device=device_of(xp)))
            assert q.dequantize(out=out) is out
            assert_same(out, reference.dequantize(dtype), xp)
        turned = xp.permute_dims(xp.full((512, 12), 77.0, dtype=kind, device=device_of(xp)), (1, 0))
        assert qa.dequantize(q, out=turned) is turned
        assert_same(turned, reference.dequantize(dtype), xp)


def test_files(tmp_path, xp):
    reference = {name: decoded(name) for name in ("Q8_0", "Q4_K", "IQ2_XXS", "NVFP4")}
    qa.save(tmp_path / "q.safetensors", {name: moved(q, xp) for name, q in reference.items()})
    found = qa.load(tmp_path / "q.safetensors")
    assert sorted(found) == sorted(reference)
    for name, q in reference.items():
        assert_same_quantized(found[name], q, NUMPY)


def test_errors_and_comparisons(xp):
    x, there = rows(), to_backend(rows(), xp)
    q = qa.quantize(x, "gguf:q4_k")
    report = qa.error(there, moved(q, xp))
    difference = x.astype(np.float64) - q.dequantize().astype(np.float64)
    np.testing.assert_allclose(report.mse, np.mean(difference**2), rtol=1e-6)
    assert report.bits_per_element == 4.5
    assert qa.compare(there, ["gguf:q4_0", "int4"]) == qa.compare(x, ["gguf:q4_0", "int4"])


def test_products(xp):
    q = qa.quantize(rows()[:4], "gguf:q8_0")
    there, v = moved(q, xp), importance()
    for other in (v, np.outer(v, v[:3])):
        found = to_numpy(qa.matmul(there, to_backend(other, xp)))
        expected = q.dequantize().astype(np.float64) @ other.astype(np.float64)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)
    with pytest.raises(QuantArrayError, match="matmul: a has shape"):
        qa.matmul(there, to_backend(v[:-1], xp))


@pytest.mark.parametrize("scheme", ["gguf:mxfp4", "gguf:nvfp4"])
def test_schemes_without_a_nan_refuse_to_propagate(xp, scheme):
    message = f"nonfinite='propagate': {scheme} stores no NaN for a scale: expected 'raise' or 'sat"
    with pytest.raises(QuantArrayError, match=message):
        qa.quantize(to_backend(rows(), xp), scheme, nonfinite="propagate")


@only_numpy
@pytest.mark.parametrize("layout", ["fortran", "strided", "reversed"])
def test_layouts_of_stored_bytes(layout):
    for name in ("Q4_0", "Q4_K", "IQ3_S"):
        data = lay_out(any_bytes(name), layout)
        q = QuantizedArray.from_parts(
            {"data": data}, qa.scheme(f"gguf:{name.lower()}"), rows().shape, "float32"
        )
        assert_same_quantized(q, decoded(name), NUMPY)
        assert q.to_bytes() == any_bytes(name).tobytes()


def test_float64_keeps_its_dtype_and_not_its_precision(xp):
    if lacks(_xp.backend(xp), "float64"):
        pytest.skip("no float64")
    q = qa.quantize(to_backend(rows().astype(np.float64), xp), "gguf:q4_1")
    assert _xp.dtype_name(q.scale.dtype) == "float32"
    assert _xp.dtype_name(q.dequantize().dtype) == "float64"
