"""Fused kernels give the same bytes for any shape, layout and number of threads."""

import os
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
from fused import NUMPY, assert_decoded, assert_fused, assert_quantized, cpu, normal, task_of
from helpers import ANY_SHAPE, LAYOUTS, assert_same, lay_out

import quantarray as qa
from quantarray import pipeline
from quantarray.kernels.loops import SPAN
from quantarray.scheme import Packing

pytestmark = pytest.mark.backend_independent

THREADS = ("1", "2", "3", "5", "8")
# Every width of codes, order of bits, and size of words.
PACKED = {
    "1": "st:ubinary",
    "1 centred": "st:binary",
    "2": qa.scheme("uint2"),
    "3": qa.scheme("int3"),
    "4": qa.scheme("int4"),
    "5": qa.scheme("uint5"),
    "6": qa.scheme("fp6_e3m2"),
    "7": qa.scheme("int7"),
    "8": qa.scheme("uint8"),
    "2 high": qa.scheme("int2", packing=Packing("msb")),
    "3 high": qa.scheme("uint3", packing=Packing("msb")),
    "4 high": qa.scheme("nf4", packing=Packing("msb", padding="value")),
    "5 high": qa.scheme("int5", packing=Packing("msb")),
    "6 high": qa.scheme("fp6_e2m3", packing=Packing("msb")),
    "7 high": qa.scheme("uint7", packing=Packing("msb")),
    "3 in words": qa.scheme("uint3", packing=Packing(word=32)),
    "4 in words": qa.scheme("uint4", packing=Packing(word=32)),
    "5 in words": qa.scheme("int5", packing=Packing(word=32)),
    "6 in words": qa.scheme("uint6", packing=Packing(word=32)),
    "8 in words": qa.scheme("uint8", packing=Packing(word=32)),
    "3 in whole words": qa.scheme("uint3", packing=Packing(word=32, dense=False)),
    "4 in high words": qa.scheme("uint4", packing=Packing("msb", word=32)),
    "4 in excess": "ct:int4",
    "2 from parts": qa.scheme("uint2", packing=Packing(strided=True)),
    "4 transposed": qa.scheme("uint4", packing=Packing(transpose="both")),
    "4 interleaved": "awq:int4",
}
FEW = ("int8", "uint3", "fp8_e4m3", "nf4", "nvfp4", "mlx:affine5", "faiss:sq4")
BLOCKS = (
    {},
    {"channel_axis": 0},
    {"channel_axis": -1},
    {"group_size": 32},
    {"group_size": 20},
    {"group_size": 3, "group_axis": 0},
    {"block": (5, 64)},
    {"block": (7, 30)},
)


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    monkeypatch.setenv("QUANTARRAY_KERNELS", "fused")


@pytest.fixture
def small(monkeypatch):
    """Let threads share, and blocks be too large for, what is worked on at once."""
    monkeypatch.setattr(cpu, "ALONE", 0)
    monkeypatch.setattr(cpu, "LARGE", 100)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("scheme", FEW)
def test_threads(scheme, threads, small, monkeypatch):
    """Few and many rows, and rows longer than what is read at once."""
    monkeypatch.setenv("QUANTARRAY_THREADS", threads)
    for shape in ((2, 9001), (37, 330), (300, 41), (1, 3 * SPAN + 7)):
        for options in BLOCKS:
            assert_fused(normal(*shape), scheme, **options)
    assert_fused(normal(30011), qa.scheme(scheme, flat=640))


@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_that_threads_share(name, small, monkeypatch):
    scheme = PACKED[name]
    for threads in ("1", "3", "8"):
        monkeypatch.setenv("QUANTARRAY_THREADS", threads)
        for size in (SPAN - 1, SPAN, SPAN + 1, 3 * SPAN + 5):
            x = normal(2, size)
            stored, task = assert_quantized(x, scheme)
            assert_decoded(stored, task)
            assert_quantized(x, scheme, group_size=128)


@pytest.mark.parametrize("name", PACKED)
def test_short_packed_rows(name):
    for size in (1, 2, 3, 7, 8, 9, 31, 32, 33, 65):
        for options in ({}, {"group_size": 5}, {"channel_axis": 0}):
            stored, task = assert_quantized(normal(3, size), PACKED[name], **options)
            assert_decoded(stored, task)


SHAPES = [
    *((1,), (2,), (70,), (1, 1), (1, 5), (5, 1), (3, 5), (2, 1, 3, 17), (1, 1, 1, 1)),
    *((2, 3, 4, 5), (6, 1, 1), (1, 33, 1, 2), (2, 3, 2, 3, 2, 3)),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(shape):
    n = len(shape)
    blocks = [
        {},
        {"group_size": 4},
        *({"channel_axis": axis} for axis in range(n)),
        *({"group_size": 2, "group_axis": axis} for axis in range(n)),
        {"block": (2,) * n},
        {"block": (3,) * (n - 1) + (-1,)},
        {"block": (-1,) + (1,) * (n - 1)},
    ]
    for scheme in ("int8", "uint3", "mxfp4", "mlx:affine4"):
        for options in blocks:
            assert_fused(normal(*shape), scheme, **options)
        assert_fused(normal(*shape), qa.scheme(scheme, flat=6))


@pytest.mark.parametrize("scheme", ["int8", "uint4", "mlx:affine4", "nvfp4"])
@pytest.mark.parametrize("wide", [1 << 16, 1000])
def test_columns_of_tall_arrays(scheme, wide, monkeypatch):
    """Blocks too tall for some columns at a time, and more of them than what is read at once."""
    monkeypatch.setattr(cpu, "WIDE", wide)
    for threads in ("1", "3"):
        monkeypatch.setenv("QUANTARRAY_THREADS", threads)
        for shape in ((900, 300), (20, 5000), (2000, 7)):
            x = normal(*shape)
            for options in ({"channel_axis": -1}, {"group_size": 300, "group_axis": 0}):
                assert_fused(x, scheme, **options)


def test_many_rows_are_not_remembered():
    assert_fused(normal(5000, 2, 3).transpose(0, 2, 1), "int8", block=(3, 2, 1))


def strange_layouts(x):
    """Lay an array out as nothing of `helpers.LAYOUTS` does."""
    record = np.zeros(x.shape, [("a", "u1"), ("x", x.dtype)])
    record["x"] = x
    yield "field", record["x"]
    aligned = np.zeros(x.shape, [("a", "u8"), ("x", x.dtype), ("b", "u8", 3)])
    aligned["x"] = x
    yield "far apart", aligned["x"]
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    raw[...] = x
    yield "misaligned", raw
    yield "rows exchanged", x[::-1]
    yield "columns exchanged", x[:, ::-1]
    yield "transposed", np.ascontiguousarray(x.T).T
    yield "one row", np.broadcast_to(x[0], x.shape)
    yield "one column", np.broadcast_to(x[:, 5:6], x.shape)
    yield "one element", np.broadcast_to(x[0, 0], x.shape)
    yield "slice", np.pad(x, 3)[3:-3, 3:-3]
    yield "windows", np.lib.stride_tricks.sliding_window_view(x.reshape(-1), 64)[:24:3]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("scheme", ["int8", "uint3", "nvfp4"])
def test_layouts(scheme, dtype):
    x = normal(8, 66, dtype=dtype)
    given = [(layout, lay_out(x, layout)) for layout in LAYOUTS]
    for name, found in (*given, *strange_layouts(x)):
        for options in ({}, {"group_size": 16}, {"group_size": 20}, {"channel_axis": 1}):
            before = found.copy()
            work, task = task_of(found, scheme, **options)
            expected = pipeline._generic(np.ascontiguousarray(work), task)
            result = cpu.quantize(work, task)
            assert_same(result.data, expected.data, NUMPY)
            assert_same(result.scale, expected.scale, NUMPY)
            assert np.array_equal(found, before), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_what_is_stored(layout):
    for scheme in ("int8", "uint3", "nvfp4", "mlx:affine4", "faiss:sq8"):
        stored, task = assert_quantized(normal(8, 66), scheme, group_size=16)
        parts = {
            name: None if (part := getattr(stored, name)) is None else lay_out(part, layout)
            for name in ("data", "scale", "zero_point", "offset")
        }
        assert_decoded(type(stored)(**parts, outer=stored.outer), task)


@pytest.mark.parametrize("scheme", ["int8", "uint4"])
def test_other_byte_order(scheme):
    x = normal(8, 66)
    expected = qa.quantize(x, scheme, group_size=16)
    found = qa.quantize(x.astype(">f4"), scheme, group_size=16)
    for name, part in expected.parts().items():
        assert_same(found.parts()[name], part, NUMPY)


@pytest.mark.parametrize("scheme", ["int8", "mlx:affine3", "uint4", "faiss:sq8", "nvfp4"])
def test_other_byte_order_of_what_is_stored(scheme):
    q = qa.quantize(normal(8, 128), scheme)
    parts = {name: part.astype(part.dtype.newbyteorder("S")) for name, part in q.parts().items()}
    swapped = qa.QuantizedArray.from_parts(parts, q.scheme, q.shape, q.dtype_name)
    assert_same(swapped.dequantize(), q.dequantize(), NUMPY)


def root(x):
    while isinstance(x, np.ndarray) and x.base is not None:
        x = x.base
    return x


@pytest.mark.parametrize("scheme", FEW)
def test_what_is_given_belongs_to_the_caller(scheme):
    x = normal(8, 96)
    x.flags.writeable = False
    before = x.copy()
    for options in ({}, {"group_size": 16}):
        q = qa.quantize(x, scheme, **options)
        parts = [part.copy() for part in q.parts().values()]
        for array in (*q.parts().values(), q.dequantize()):
            assert array.flags.writeable
            assert array.flags.c_contiguous
            assert array.flags.aligned
            assert not np.shares_memory(array, x)
            assert isinstance(root(array), np.ndarray)
            array[...] = 0
        again = qa.quantize(x, scheme, **options)
        for part, expected in zip(again.parts().values(), parts, strict=True):
            assert_same(part, expected, NUMPY)
    assert np.array_equal(x, before)


def all_bytes(x):
    found = b""
    for scheme in ("int8", "uint3", "mxfp4", "nf4"):
        q = qa.quantize(x, scheme, group_size=32)
        found += q.to_bytes() + q.dequantize().tobytes()
    return found


def test_eight_callers_at_once(small, monkeypatch):
    monkeypatch.setenv("QUANTARRAY_THREADS", "2")
    arrays = [normal(50, 200, seed=seed) for seed in range(8)]
    expected = [all_bytes(x) for x in arrays]
    found = [[] for _ in arrays]
    callers = [
        threading.Thread(target=lambda x=x, mine=mine: mine.extend(all_bytes(x) for _ in range(5)))
        for x, mine in zip(arrays, found, strict=True)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [[one] * 5 for one in expected]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork.*:RuntimeWarning")
def test_after_a_fork(small, monkeypatch):
    monkeypatch.setenv("QUANTARRAY_THREADS", "3")
    x = normal(50, 200)
    expected = all_bytes(x)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if all_bytes(x) == expected else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_next_process_compiles_nothing():
    assert_fused(normal(4, 64), "int8")
    program = """
import numpy as np, quantarray as qa
qa.quantize(np.ones((4, 64), np.float32)).dequantize()
from quantarray.kernels import decode, encode
for loops in (encode.quantize, decode.dequantize):
    print(sum(loops.stats.cache_hits.values()), sum(loops.stats.cache_misses.values()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["1", "0", "1", "0"]


def test_a_second_signature_is_not_compiled_for_other_strides():
    """One compilation for each dtype: layouts, read-only arrays and schemes share it."""
    from quantarray.kernels import decode, encode

    def compiled():
        return len(encode.quantize.signatures), len(decode.dequantize.signatures)

    for dtype in ("float32", "bfloat16"):
        x = normal(8, 66, dtype=dtype)
        assert_fused(x, "int8", (dtype,))
    before = compiled()
    for scheme in ANY_SHAPE:
        for one in (
            x,
            lay_out(x, "fortran"),
            lay_out(x, "strided"),
            np.broadcast_to(x[0], (9, 66)),
        ):
            qa.quantize(one.astype(np.float32, copy=False), scheme).dequantize()
            qa.quantize(one.astype(ml_dtypes.bfloat16, copy=False), scheme).dequantize()
    assert compiled() == before
