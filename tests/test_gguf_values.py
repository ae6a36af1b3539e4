"""ggml's block types on NumPy: with kernels as without, in any layout, and what is always true."""

import numpy as np
import pytest
from gguf_corpus import (
    COLUMNS,
    ENCODED,
    FEW,
    NEEDED,
    PRESETS,
    ROWS,
    SEARCHED,
    any_bytes,
    importance,
    needed,
    rows,
)
from helpers import DTYPES, LAYOUTS, assert_same, assert_same_quantized, lay_out
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import quantarray as qa
from quantarray import QuantArrayError, _xp, gguf
from quantarray.gguf import generic
from quantarray.gguf import rows as encoding
from quantarray.records import RECORDS

pytestmark = pytest.mark.backend_independent
NUMPY = _xp.load("numpy")
F = np.float32
WAYS = ("fused", "generic")


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    monkeypatch.setenv("QUANTARRAY_KERNELS", "fused")


def both_ways(monkeypatch, function, *arguments, **options):
    """Give what a call gives, or the message of its error, with and without kernels."""
    found = []
    for way in WAYS:
        monkeypatch.setenv("QUANTARRAY_KERNELS", way)
        try:
            found.append(function(*arguments, **options))
        except QuantArrayError as error:
            found.append(str(error))
    return found


def assert_both_ways(monkeypatch, function, *arguments, **options):
    found, expected = both_ways(monkeypatch, function, *arguments, **options)
    if isinstance(expected, str):
        assert found == expected
    else:
        assert_same(found, expected, NUMPY)
    return expected


# With kernels as without.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", gguf.TYPES)
def test_encoding(name, dtype, monkeypatch):
    weights = [importance()] if name in NEEDED else [None, importance()]
    for given_ in weights if dtype == "float32" else weights[:1]:
        data = assert_both_ways(monkeypatch, gguf.encode, rows(dtype), name, given_)
    if dtype != "float32":
        expected = gguf.encode(rows(dtype).astype(F), name, needed(name))
        assert_same(data, expected, NUMPY)


@pytest.mark.parametrize("name", SEARCHED)
def test_importances_of_each_row(name, monkeypatch):
    """Zero for some, as large and as small as may be for others."""
    weights = np.stack([np.roll(importance(), row) for row in range(len(ROWS))])
    weights[1], weights[2] = 0, 1
    weights[3:5] *= F([[1e30], [1e-30]])
    assert_both_ways(monkeypatch, gguf.encode, rows(), name, weights)


@pytest.mark.parametrize("name", gguf.TYPES)
def test_decoding(name, monkeypatch):
    data = any_bytes(name) if name in RECORDS else any_bytes("Q4_0")
    for dtype in DTYPES:
        assert_both_ways(monkeypatch, gguf.decode, data, name, dtype)


@pytest.mark.parametrize("nonfinite", ["raise", "propagate", "saturate"])
@pytest.mark.parametrize("name", ENCODED)
def test_what_is_not_finite(name, nonfinite, monkeypatch):
    for value in (np.nan, -np.nan, np.inf, -np.inf, -3e38, 1e10):
        for at in ((0, 0), (3, 511), (9, 255)):
            x = rows().copy()
            x[at] = value
            assert_both_ways(monkeypatch, gguf.encode, x, name, needed(name), nonfinite=nonfinite)


@pytest.mark.parametrize("scheme", PRESETS)
def test_quantized_arrays(scheme, monkeypatch):
    x = rows()[:, :256]
    found, expected = both_ways(monkeypatch, qa.quantize, x, scheme)
    assert_same_quantized(found, expected, NUMPY)


def test_the_two_ways_are_two(monkeypatch):
    """Each is seen: an encoder of another type makes other bytes."""

    def another(x, weights, record, xp):
        return np.zeros((len(x), 2 * 144), np.uint8)

    monkeypatch.setattr(generic, "encode", another)
    found, expected = both_ways(monkeypatch, gguf.encode, rows(), "Q4_K")
    assert not expected.any()
    with pytest.raises(AssertionError, match="differ"):
        assert_same(found, expected, NUMPY)


# Layouts, shapes and threads.


@pytest.mark.parametrize("kernels", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FEW)
def test_layouts(name, layout, kernels, monkeypatch):
    monkeypatch.setenv("QUANTARRAY_KERNELS", kernels)
    for dtype in ("float32", "bfloat16"):
        x = rows(dtype)
        data = gguf.encode(x, name)
        assert_same(gguf.encode(lay_out(x, layout), name), data, NUMPY)
        weights = lay_out(importance(), layout)
        expected = gguf.encode(x, name, importance())
        assert_same(gguf.encode(lay_out(x, layout), name, weights), expected, NUMPY)
        assert_same(
            gguf.decode(lay_out(data, layout), name, dtype),
            gguf.decode(data, name, dtype),
            NUMPY,
        )


@pytest.mark.parametrize("kernels", WAYS)
@pytest.mark.parametrize("name", FEW)
def test_byte_order_and_broadcast_arrays(name, kernels, monkeypatch):
    monkeypatch.setenv("QUANTARRAY_KERNELS", kernels)
    x = rows()
    swapped = x.astype(x.dtype.newbyteorder())
    assert_same(gguf.encode(swapped, name), gguf.encode(x, name), NUMPY)
    spread = np.broadcast_to(x[3], (5, COLUMNS))
    assert_same(gguf.encode(spread, name), np.tile(gguf.encode(x[3], name), (5, 1)), NUMPY)


SHAPES = ((6144,), (2, 2, 3, 512), (24, 256), (1, 1, 6144), (0, 256), (0,))


@pytest.mark.parametrize("kernels", WAYS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FEW)
def test_shapes(name, shape, kernels, monkeypatch):
    """Blocks do not know of the array that they are in."""
    monkeypatch.setenv("QUANTARRAY_KERNELS", kernels)
    record = RECORDS[name]
    x = rows().reshape(shape) if 0 not in shape else np.zeros(shape, F)
    expected = gguf.encode(rows(), name).reshape(-1) if 0 not in shape else np.zeros(0, np.uint8)
    data = gguf.encode(x, name)
    bytes_ = (*shape[:-1], shape[-1] // record.elements * record.size)
    assert_same(data, expected.reshape(bytes_), NUMPY)
    values = gguf.decode(data, name)
    assert values.shape == shape
    assert_same(values.reshape(-1), gguf.decode(expected, name), NUMPY)


@pytest.mark.parametrize("count", ["1", "2"])
def test_threads(count, monkeypatch):
    pytest.importorskip("numba")
    from quantarray.kernels import records

    expected = {name: gguf.encode(rows(), name, needed(name)) for name in ENCODED}
    monkeypatch.setattr(records, "ALONE", 0)
    monkeypatch.setenv("QUANTARRAY_THREADS", count)
    for name, data in expected.items():
        assert_same(gguf.encode(rows(), name, needed(name)), data, NUMPY)
        assert_same(gguf.decode(data, name), gguf.decode(data, name), NUMPY)


@pytest.mark.parametrize("name", FEW)
def test_pieces_change_no_byte(name, monkeypatch):
    """Without kernels large arrays are worked on a few blocks or rows at a time."""
    monkeypatch.setenv("QUANTARRAY_KERNELS", "generic")
    data, weighted = gguf.encode(rows(), name), gguf.encode(rows(), name, importance())
    values = gguf.decode(data, name)
    for piece in (256, 1024, 5000):
        monkeypatch.setattr(generic, "PIECE", piece)
        monkeypatch.setattr(encoding, "_PIECE", piece)
        assert_same(gguf.encode(rows(), name), data, NUMPY)
        assert_same(gguf.encode(rows(), name, importance()), weighted, NUMPY)
        assert_same(gguf.decode(data, name), values, NUMPY)


# What is always true.

finite = st.one_of(
    st.floats(-100, 100, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-7, 1e-20, 1e3]),
    st.integers(-64, 64).map(float),
)
# Nothing in it is near what float16 does not hold as a normal number, once it is a scale.
moderate = st.integers(-63, 63).map(float)
names = st.sampled_from([name for name in ENCODED if RECORDS[name].lattice is None])
run = settings(deadline=None, max_examples=60)


def sizes(name, data, elements, most_rows=3, most_blocks=2):
    """Draw an array of whole blocks."""
    shape = (
        data.draw(st.integers(1, most_rows)),
        data.draw(st.integers(1, most_blocks)) * RECORDS[name].elements,
    )
    return data.draw(arrays(F, shape, elements=elements, fill=elements))


@run
@given(name=names, data=st.data())
def test_rows_apart_are_rows_together(name, data):
    x = sizes(name, data, finite)
    weights = data.draw(arrays(F, x.shape[1:], elements=st.floats(0, 10, width=32)))
    before = x.copy(), weights.copy()
    for given_ in (None, weights):
        together = gguf.encode(x, name, given_)
        apart = np.stack([gguf.encode(row, name, given_) for row in x])
        assert_same(together, apart, NUMPY)
        assert_same(gguf.encode(x[::-1], name, given_), together[::-1], NUMPY)
    for array, copied in zip((x, weights), before, strict=True):
        assert array.tobytes() == copied.tobytes()


@run
@given(name=names, data=st.data())
def test_blocks_apart_are_blocks_together(name, data):
    """Without importances, which are weighed against the mean of a row."""
    record, x = RECORDS[name], sizes(name, data, finite)
    together = gguf.encode(x, name)
    apart = gguf.encode(x.reshape(-1, record.elements), name)
    assert_same(together, apart.reshape(together.shape), NUMPY)


@run
@given(name=names, data=st.data(), power=st.integers(-3, 3))
def test_powers_of_two_are_exact(name, data, power):
    """Scales move by as much, and codes stay: in the range of normal scales."""
    x = sizes(name, data, moderate)
    x.reshape(-1, RECORDS[name].elements)[:, :2] = -64, 64
    weights = data.draw(arrays(F, x.shape[1:], elements=st.integers(0, 9).map(float)))
    for given_ in (None, weights) if name in SEARCHED else (None,):
        values = gguf.decode(gguf.encode(x, name, given_), name)
        scaled = gguf.decode(gguf.encode(x * F(2.0**power), name, given_), name)
        assert_same(scaled, values * F(2.0**power), NUMPY)


@run
@given(name=names, data=st.data(), power=st.integers(-8, 8))
def test_only_ratios_of_importances_count(name, data, power):
    x = sizes(name, data, moderate)
    weights = data.draw(arrays(F, x.shape[1:], elements=st.integers(0, 9).map(float)))
    expected = gguf.encode(x, name, weights)
    assert_same(gguf.encode(x, name, weights * F(4.0**power)), expected, NUMPY)


@run
@given(name=names, data=st.data())
def test_kernels_change_no_byte(name, data):
    x = sizes(name, data, finite)
    weights = data.draw(arrays(F, x.shape[1:], elements=st.floats(0, 10, width=32)))
    with pytest.MonkeyPatch.context() as patch:
        for given_ in (None, weights):
            assert_both_ways(patch, gguf.encode, x, name, given_)


@run
@given(name=st.sampled_from(list(RECORDS)), data=st.data())
def test_any_bytes_decode_alike(name, data):
    size = RECORDS[name].size
    blocks = data.draw(arrays(np.uint8, (data.draw(st.integers(1, 3)), size)))
    with pytest.MonkeyPatch.context() as patch:
        expected = assert_both_ways(patch, gguf.decode, blocks, name)
    assert_same(gguf.decode(blocks.reshape(-1), name), expected.reshape(-1), NUMPY)


@run
@given(name=st.sampled_from(["Q4_0", "Q8_0", "Q5_0", "TQ2_0", "MXFP4"]), data=st.data())
def test_errors_are_within_a_step(name, data):
    """Half a step, a whole one at the end that is clipped, and what float16 rounds of the scale."""
    x = sizes(name, data, moderate)
    values = gguf.decode(gguf.encode(x, name), name)
    blocks = (x - values).reshape(-1, RECORDS[name].elements)
    largest = np.abs(x).reshape(blocks.shape).max(-1, keepdims=True)
    share = {"Q4_0": 1 / 7, "Q8_0": 1 / 220, "Q5_0": 1 / 15, "TQ2_0": 0.51}
    assert (np.abs(blocks) <= share.get(name, 0.34) * largest).all()
