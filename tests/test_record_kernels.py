"""Kernels for ggml's blocks against what `records` says in plain Python, one field at a time.

Where `QUANTARRAY_ORACLES` is set, every byte is compared with C too.
"""

import importlib
import math
import os
import tracemalloc

import fused
import ml_dtypes
import numpy as np
import pytest
from helpers import bits
from record_reference import F, arrays, by_blocks, decoded, encoded

from quantarray.kernels import record_plans, records
from quantarray.kernels.record_fields import put_word, word_at
from quantarray.records import RECORDS

pytestmark = pytest.mark.backend_independent

ENCODED = tuple(record_plans.RULES)
each_type = pytest.mark.parametrize("name", RECORDS)
each_encoded = pytest.mark.parametrize("name", ENCODED)


ARRAYS = dict(arrays())


@each_type
def test_decoding_random_bytes(name):
    record, random = RECORDS[name], np.random.default_rng(0)
    data = random.integers(0, 256, (3, 5 * record.size), np.uint8)
    found = records.decode(data, record, "float32")
    assert found.dtype == F
    np.testing.assert_array_equal(
        bits(found), bits(by_blocks(decoded, record, data, record.size)), strict=True
    )


@each_type
def test_every_byte_of_a_block_has_every_value(name):
    """Also scales that are NaN, Inf, subnormal or of either sign."""
    record = RECORDS[name]
    places = sorted({0, 1, 2, 3, record.size // 2, record.size - 2, record.size - 1})
    data = np.random.default_rng(1).integers(0, 256, (len(places), 256, record.size), np.uint8)
    for which, place in enumerate(places):
        data[which, :, place] = np.arange(256)
    data = data.reshape(len(places), -1)
    found = records.decode(data, record, "float32")
    np.testing.assert_array_equal(
        bits(found), bits(by_blocks(decoded, record, data, record.size)), strict=True
    )


@each_type
def test_decoding_to_other_dtypes(name):
    record = RECORDS[name]
    data = np.random.default_rng(2).integers(0, 256, (3, 4 * record.size), np.uint8)
    wide = records.decode(data, record, "float32")
    assert (records.decode(data, record, "float64") == wide)[~np.isnan(wide)].all()
    with np.errstate(all="ignore"):
        half = np.where(np.isfinite(wide), np.clip(wide, -65504, 65504), wide).astype(np.float16)
        brain = wide.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(bits(records.decode(data, record, "float16")), bits(half))
    found = records.decode(data, record, "bfloat16")
    assert found.dtype == np.int16
    np.testing.assert_array_equal(bits(found.view(ml_dtypes.bfloat16)), bits(brain))


@each_encoded
def test_encoding(name):
    record = RECORDS[name]
    for label, x in ARRAYS.items():
        found, expected = records.encode(x, record), by_blocks(encoded, record, x, record.elements)
        assert found is not None, label
        np.testing.assert_array_equal(found, expected, label, strict=True)


def test_nvfp4_of_more_than_its_largest_scale():
    """It clips, and declines what is so far away that C finds all values equally near."""
    record = RECORDS["NVFP4"]
    x = np.random.default_rng(0).standard_normal((1, 1024)) * 10.0 ** np.arange(16).repeat(64)
    assert records.encode(x.astype(F), record) is None
    x = np.clip(x * 1e3, -record.reach, record.reach).astype(F)
    expected = by_blocks(encoded, record, x, record.elements)
    np.testing.assert_array_equal(records.encode(x, record), expected)


@each_encoded
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_encoding_other_dtypes(name, dtype):
    x = ARRAYS["normal"].astype(dtype)
    given = x.view(np.int16) if dtype == "bfloat16" else x
    found = records.encode(given, RECORDS[name], None, dtype)
    np.testing.assert_array_equal(found, records.encode(x.astype(F), RECORDS[name]))


def test_float64_is_rounded_first():
    x = np.full((1, 32), 1 + 2.0**-24 + 2.0**-40)
    expected = records.encode(x.astype(F), RECORDS["Q8_0"])
    np.testing.assert_array_equal(records.encode(x, RECORDS["Q8_0"]), expected)
    assert records.encode(np.full((1, 32), 1e300), RECORDS["Q8_0"]) is None


LAYOUTS = {
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "transposed": np.asfortranarray,
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "every other": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "in wider rows": lambda x: np.pad(x, ((0, 0), (3, 5)))[:, 3:-5],
    "same rows": lambda x: np.broadcast_to(x[:1], x.shape),
    "not aligned": lambda x: (
        np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
    ),
    "foreign": lambda x: x.astype(x.dtype.newbyteorder()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("piece", [1 << 15, 1024, 256])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_layouts(layout, piece, dtype, monkeypatch):
    monkeypatch.setattr(records, "PIECE", piece)
    x = np.random.default_rng(0).standard_normal((5, 768)).astype(dtype)
    given = LAYOUTS[layout](x)
    for name in ("Q5_0", "TQ1_0", "NVFP4"):
        record = RECORDS[name]
        expected = by_blocks(encoded, record, np.ascontiguousarray(given, F), record.elements)
        np.testing.assert_array_equal(records.encode(given, record), expected)
        if layout in ("foreign", "same rows"):
            continue
        data = LAYOUTS[layout](expected)
        for to in ("float32", dtype):
            found = records.decode(data, record, to)
            np.testing.assert_array_equal(found, records.decode(expected, record, to))


@pytest.mark.parametrize("layout", ["transposed", "every other", "read-only", "foreign"])
@pytest.mark.parametrize("name", ["Q4_K", "IQ4_NL", "Q4_0"])
def test_searches_of_layouts(name, layout, monkeypatch):
    pytest.importorskip("quantarray.kernels.searches")
    monkeypatch.setattr(records, "PIECE", 512)
    record, random = RECORDS[name], np.random.default_rng(0)
    x = random.standard_normal((3, 1024)).astype(F)
    for rows in (None, 1, 3):
        if rows is None and name == "Q4_0":
            continue
        weights = None if rows is None else random.random((rows, 1024)).astype(F)
        expected = records.encode(x, record, weights)
        found = records.encode(LAYOUTS[layout](x), record, weights)
        np.testing.assert_array_equal(found, expected)
        assert expected is not None


@pytest.mark.parametrize("shape", [(1, 8192), (7, 1024), (64, 256)])
@pytest.mark.parametrize("count", ["1", "3", "5"])
def test_threads(shape, count, monkeypatch):
    """One long row is shared too."""
    monkeypatch.setattr(records, "ALONE", 0)
    monkeypatch.setenv("QUANTARRAY_THREADS", count)
    x = np.random.default_rng(0).standard_normal(shape).astype(F)
    weights = np.random.default_rng(1).random((1, shape[1])).astype(F)
    for name in ("Q8_0", "TQ2_0", "Q5_1"):
        record = RECORDS[name]
        found = records.encode(x, record)
        np.testing.assert_array_equal(found, by_blocks(encoded, record, x, record.elements))
        again = by_blocks(decoded, record, found, record.size)
        np.testing.assert_array_equal(records.decode(found, record, "float32"), again)
        if record.importance == "used":
            found = records.encode(x, record, weights)
            each = [records.encode(row[None], record, weights) for row in x]
            np.testing.assert_array_equal(found, np.concatenate(each))


def test_results_go_where_they_are_to():
    record = RECORDS["Q4_1"]
    data = records.encode(ARRAYS["normal"], record)
    for dtype in ("float32", "float16", "float64", "bfloat16"):
        expected = records.decode(data, record, dtype)
        for out in (np.empty_like(expected), np.empty_like(expected, order="F")):
            assert records.decode(data, record, dtype, out) is out
            np.testing.assert_array_equal(out, expected)


@each_type
def test_no_blocks(name):
    record = RECORDS[name]
    for shape in ((0, record.elements), (3, 0)):
        data = np.zeros((shape[0], shape[1] // record.elements * record.size), np.uint8)
        assert records.decode(data, record, "float16").shape == shape
        if record.importance != "needed":
            assert records.encode(np.zeros(shape, F), record).shape == data.shape


@each_encoded
def test_what_is_declined(name):
    record, x = RECORDS[name], ARRAYS["normal"]
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, 17, 511):
            changed = x.copy()
            changed[1, place] = value
            assert records.encode(changed, record) is None
    large = {"Q4_0": 524160, "Q4_1": 982800, "Q5_0": 1048320, "Q5_1": 65520 * 31, "Q8_0": 8321040}
    if name not in ("MXFP4", "NVFP4"):
        edge = np.full((1, record.elements), 0 if name != "Q1_0" else 65520, F)
        edge[0, 0] = large.get(name, 65520)
        assert records.encode(edge, record) is None
        edge = np.nextafter(edge, F(0))
        assert records.encode(edge, record) is not None
    if name in ("Q4_1", "Q5_1"):
        assert records.encode(np.full((1, 32), -65520, F), record) is None
        assert records.encode(np.full((1, 32), 65519, F), record) is not None


def test_types_that_need_importances_are_declined_without():
    for record in RECORDS.values():
        if record.importance == "needed":
            assert records.encode(np.zeros((1, 256), F), record) is None


def test_where_a_logarithm_is_rounded_up():
    """`log2f` rounds correctly there: the logarithm as float64 tells."""
    found = record_plans.nearly()
    for at in range(0, found.size, 9):
        for fraction in (found[at] - 1, found[at], (1 << 23) - 1):
            above = F(at - 149 + math.log2(1 + fraction / 2**23)) == at - 148
            assert above == (fraction >= found[at])


def test_words_at_any_byte():
    data = np.arange(32, dtype=np.uint8)

    @fused.numba.njit
    def move(data, at, to):
        put_word(data, to, word_at(data, at))

    move(data, 3, 21)
    assert data[21:29].tolist() == list(range(3, 11))
    assert data[29:].tolist() == [29, 30, 31]


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_memory(dtype):
    """Besides the result, what one needs does not grow with an array."""
    record = RECORDS["Q8_0"]
    x = np.ones((2048, 1024), dtype).T
    data = records.encode(x, record)
    records.decode(data[:1], record, dtype)
    out = np.empty(x.shape, dtype)
    tracemalloc.start()
    try:
        records.encode(x, record)
        assert tracemalloc.get_traced_memory()[1] < data.nbytes + (2 << 20)
        tracemalloc.reset_peak()
        records.decode(np.asfortranarray(data), record, dtype, out)
        assert tracemalloc.get_traced_memory()[1] < data.nbytes + (2 << 20)
    finally:
        tracemalloc.stop()


if os.environ.get("QUANTARRAY_ORACLES"):
    ggml = importlib.import_module("ggml_library")

    @each_encoded
    def test_no_byte_differs_from_c(name):
        record = RECORDS[name]
        if not ggml.has(record):
            pytest.skip(f"ggml {ggml.version()} has no {name}")
        for label, x in arrays(16, 2048):
            expected = ggml.quantize(x, record)
            np.testing.assert_array_equal(records.encode(x, record), expected, label)

    @each_type
    def test_no_value_differs_from_c(name):
        record = RECORDS[name]
        if not ggml.has(record):
            pytest.skip(f"ggml {ggml.version()} has no {name}")
        data = np.random.default_rng(0).integers(0, 256, (64, 64 * record.size), np.uint8)
        found = records.decode(data, record, "float32")
        np.testing.assert_array_equal(bits(found), bits(ggml.dequantize(data, record)))
