"""Dask: nothing is computed before it is asked for, and chunks change no bit."""

import pytest
from corpus import KINDS, corpus, poisoned
from helpers import assert_same, assert_same_quantized, session_of, to_numpy

import quantarray as qa
from quantarray import _xp

xp = session_of("dask")
import dask  # noqa: E402
import dask.array  # noqa: E402

FEW = ("int8", "int3", "uint4", "fp8_e4m3", "mxfp4", "nf4")
SHAPE = (9, 8, 96)
# Whole; groups of 20 and 32 are cut; ragged chunks; one element of the last axis alone.
CHUNKS = (SHAPE, (9, 8, 32), (4, 3, 25), (2, (1, 7), (1, 40, 55)), (9, 8, (95, 1)))


def lazy(x=None, chunks=(4, 3, 25)):
    """Give an array of the corpus as Dask holds it."""
    return dask.array.from_array(corpus() if x is None else x, chunks=chunks)


@pytest.fixture
def forbidden():
    """Make any computation fail."""

    def scheduler(*arguments, **options):
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=scheduler):
        yield


def test_the_fixture_forbids(forbidden):
    with pytest.raises(AssertionError, match="something was computed"):
        lazy().compute()


@pytest.mark.parametrize("scheme", FEW)
@pytest.mark.parametrize("kind", ["own", "column", "ragged group"])
def test_nothing_is_computed(forbidden, scheme, kind):
    q = qa.quantize(lazy(), scheme, **KINDS[kind])
    given = {"scale": q.scale, "zero_point": q.zero_point}
    again = qa.quantize(lazy(), scheme, **KINDS[kind], **given)
    rebuilt = qa.from_codes(q.codes, q.scheme, **given)
    values = (
        q.dequantize(),
        again.dequantize("float64"),
        rebuilt.dequantize(),
        qa.fake_quantize(lazy(), scheme, **KINDS[kind]),
    )
    arrays = [*q.parts().values(), *again.parts().values(), *rebuilt.parts().values(), *values]
    assert all(isinstance(array, dask.array.Array) for array in arrays)
    assert all(value.shape == SHAPE for value in values)
    assert q[2:4].shape == (2, 8, 96) or kind != "ragged group"
    assert repr(q).startswith(f"QuantizedArray({scheme}")


def test_several_outputs_in_one_computation():
    q = qa.quantize(lazy(), "uint4", group_size=20)
    data, scale, zero, values = dask.compute(q.data, q.scale, q.zero_point, q.dequantize())
    reference = qa.quantize(corpus(), "uint4", group_size=20)
    numpy = _xp.load("numpy")
    for found, expected in (
        (data, reference.data),
        (scale, reference.scale),
        (zero, reference.zero_point),
        (values, reference.dequantize()),
    ):
        assert_same(found, expected, numpy)


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("kind", ["own", "column", "ragged group", "group", "tile", "flat"])
def test_chunks_change_no_bit(kind, chunks):
    for scheme in ("int8", "uint3"):
        chosen = qa.scheme(scheme, **KINDS[kind])
        q = qa.quantize(lazy(chunks=chunks), chosen)
        assert_same_quantized(q, qa.quantize(corpus(), chosen), xp, dtypes=["float32"])


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_chunks_change_no_stochastic_bit(chunks):
    for kind in ("own", "ragged group"):
        scheme = qa.scheme("uint4", rounding="stochastic", **KINDS[kind])
        q = qa.quantize(lazy(chunks=chunks), scheme, key=12345678901)
        reference = qa.quantize(corpus(), scheme, key=12345678901)
        assert_same_quantized(q, reference, xp, dtypes=["float32"])


@pytest.mark.parametrize("chunks", CHUNKS[1:], ids=str)
@pytest.mark.parametrize("nonfinite", ["raise", "propagate", "saturate"])
def test_nonfinite_blocks_in_chunks(nonfinite, chunks):
    """Values cannot be looked at while they are lazy: "raise" does as "propagate"."""
    q = qa.quantize(lazy(poisoned(), chunks), "uint4", group_size=20, nonfinite=nonfinite)
    seen = "propagate" if nonfinite == "raise" else nonfinite
    reference = qa.quantize(poisoned(), "uint4", group_size=20, nonfinite=seen)
    assert_same_quantized(q, reference, xp, dtypes=["float32"])


def test_groups_inside_chunks_keep_the_chunks():
    q = qa.quantize(lazy(chunks=(3, 8, 32)), "int8", group_size=32)
    assert q.data.chunks == ((3, 3, 3), (8,), (32, 32, 32))
    assert q.scale.chunks == ((3, 3, 3), (8,), (1, 1, 1))
    assert q.dequantize().chunks == q.data.chunks


def test_unknown_chunk_sizes_are_refused():
    x = lazy()[:, 0]
    with pytest.raises(qa.QuantArrayError, match=r"known sizes \(compute_chunk_sizes\(\)\)"):
        qa.quantize(x[x[:, 0] > 0], "int8")


@pytest.mark.parametrize("options", [{}, {"channel_axis": 1}, {"group_size": 20}], ids=str)
def test_empty_chunks(options):
    """A filter leaves them, and Dask's own minimum fails on them."""
    x = lazy(chunks=(1, 8, 25))[:, 0]
    filtered = x[x[:, 0] > 0].compute_chunk_sizes()
    assert 0 in filtered.chunks[0]
    q = qa.quantize(filtered, "int8", **options)
    reference = qa.quantize(to_numpy(filtered), "int8", **options)
    assert_same_quantized(q, reference, xp, dtypes=["float32"])


def test_a_given_numpy_scale():
    reference = qa.quantize(corpus(), "int8", group_size=20)
    q = qa.quantize(lazy(), "int8", group_size=20, scale=reference.scale)
    assert_same_quantized(q, reference, xp, dtypes=["float32"])


def test_metrics_compute():
    x = corpus()[0]
    report = qa.error(lazy(x, (3, 25)), qa.quantize(lazy(x, (3, 25)), "int8"))
    assert report == qa.error(x, qa.quantize(x, "int8"))
