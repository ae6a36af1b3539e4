"""Dask arrays go through the pipeline chunk by chunk, where no chunk needs another one."""

import pickle

import numpy as np
import pytest
from corpus import CHOICES, HELD, KINDS, corpus, poisoned, reached
from helpers import assert_same_quantized, bits, session_of, to_numpy

import quantarray as qa
from quantarray import pipeline
from quantarray.kernels import chunks
from quantarray.scheme import Packing

xp = session_of("dask")
import dask  # noqa: E402
import dask.array  # noqa: E402

SHAPE = (9, 8, 96)
WHOLE = (3, 8, 96)
# Groups of 20 and 32 are whole, cut, or both; the last chunk is ragged, or one element alone.
CHUNKS = (
    WHOLE,
    (9, 8, 32),
    (4, 3, 25),
    (2, (1, 7), (1, 40, 55)),
    (9, 4, (95, 1)),
    (3, 4, (80, 16)),
)
SCHEMES = ("int8", "int3", "uint4", "fp8_e4m3", "mxfp4", "nf4", "ternary", "bnb:fp4", "st:int8")


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """List whether what is tested took each array it was offered."""
    answers = []

    def listening(function):
        def call(*arguments):
            found = function(*arguments)
            answers.append(found is not None)
            return found

        return call

    monkeypatch.setenv("QUANTARRAY_KERNELS", "fused")
    for name in ("quantize", "dequantize"):
        monkeypatch.setattr(chunks, name, listening(getattr(chunks, name)))
    return answers


@pytest.fixture
def small():
    """Keep chunks from being joined."""
    with dask.config.set({"array.chunk-size": "1KiB"}):
        yield


@pytest.fixture
def forbidden():
    """Make any computation fail."""

    def scheduler(*arguments, **options):
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=scheduler):
        yield


def lazy(x=None, sizes=WHOLE):
    return dask.array.from_array(corpus() if x is None else x, chunks=sizes)


def own_tasks(*arrays):
    """Count the tasks of each layer that is not of the source."""
    return {
        name: len(layer)
        for array in arrays
        for name, layer in array.__dask_graph__().layers.items()
        if name.startswith("quantarray-")
    }


def test_one_task_quantizes_a_chunk_and_one_decodes_it(taken):
    x = lazy(sizes=(3, 8, 32))
    q = qa.quantize(x, "uint4", group_size=16)
    layers = own_tasks(*q.parts().values())
    assert sorted(name.split("-")[1] for name in layers) == [
        "data",
        "quantize",
        "scale",
        "zero_point",
    ]
    assert set(layers.values()) == {x.npartitions}
    assert set(own_tasks(q.dequantize()).values()) == {x.npartitions}
    assert len(own_tasks(q.dequantize())) == len(layers) + 1
    assert taken == [True] * 3


@pytest.mark.parametrize(
    ("options", "grid"), [({}, 1), ({"channel_axis": 0}, 3), ({"channel_axis": 2}, 3)], ids=str
)
def test_chunks_that_share_blocks(options, grid, taken, small):
    """Two tasks for each chunk, of its range and its codes, beside those of scales."""
    x = lazy(sizes=(3, 4, 32))
    q = qa.quantize(x, "uint4", **options)
    layers = own_tasks(*q.parts().values())
    assert [n for n in layers.values() if n == x.npartitions] == [x.npartitions] * 4
    assert sorted(n for n in layers.values() if n != x.npartitions) == [grid] * 3
    assert len(q.data.__dask_graph__()) < 6 * x.npartitions
    assert q.data.chunks == ((3, 3, 3), (4, 4), (16, 16, 16))
    assert_same_quantized(q, qa.quantize(corpus(), "uint4", **options), xp, dtypes=["float32"])
    assert all(taken)


@pytest.mark.parametrize("nonfinite", ["raise", "propagate", "saturate"])
@pytest.mark.parametrize("options", [{}, {"channel_axis": 0}, {"channel_axis": 2}], ids=str)
def test_nonfinite_chunks_that_share_blocks(options, nonfinite, taken, small):
    seen = "propagate" if nonfinite == "raise" else nonfinite
    for scheme in ("int8", "uint4", "fp8_e4m3", "st:int8"):
        q = qa.quantize(
            lazy(poisoned(), (3, 4, 32)),
            scheme,
            **(options or {"block": (-1, -1, -1)}),
            nonfinite=nonfinite,
        )
        reference = qa.quantize(
            poisoned(), scheme, **(options or {"block": (-1, -1, -1)}), nonfinite=seen
        )
        assert_same_quantized(q, reference, xp, dtypes=["float32"])
    assert all(taken)


def test_each_chunk_is_quantized_once(monkeypatch):
    calls, wrapped = [], chunks.quantize

    def counting(x, task):
        calls.append(x.shape)
        return pipeline.quantize(x, task)

    x = lazy(sizes=(3, 8, 32))
    monkeypatch.setattr(chunks, "quantize", lambda x, task, _: wrapped(x, task, counting))
    q = qa.quantize(x, "uint4", group_size=16)
    dask.compute(*q.parts().values(), scheduler="synchronous")
    assert calls == [(3, 8, 32)] * x.npartitions


@pytest.mark.parametrize("sizes", CHUNKS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_every_kind_of_block(kind, sizes):
    for name in ("int8", "uint3"):
        scheme = qa.scheme(name, **KINDS[kind])
        q = qa.quantize(lazy(sizes=sizes), scheme)
        assert_same_quantized(q, qa.quantize(corpus(), scheme), xp, dtypes=["float32"])


@pytest.mark.parametrize("sizes", CHUNKS, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bits_of_schemes(scheme, sizes):
    x = reached(scheme)
    q = qa.quantize(lazy(x, sizes=(2, *sizes[1:])), scheme)
    assert_same_quantized(q, qa.quantize(x, scheme), xp, dtypes=["float32", "float16"])


@pytest.mark.parametrize("choice", CHOICES)
def test_bits_of_choices(choice):
    x = corpus()[HELD] if "float16" in choice else corpus()
    for sizes in (WHOLE, (4, 3, 25)):
        q = qa.quantize(lazy(x, sizes), CHOICES[choice])
        assert_same_quantized(q, qa.quantize(x, CHOICES[choice]), xp, dtypes=["float32"])


PACKINGS = (
    Packing(),
    Packing("msb"),
    Packing(word=32),
    Packing("msb", word=32, dense=False),
    Packing(centred=True),
    Packing(padding="value"),
)


@pytest.mark.parametrize("how", PACKINGS, ids=str)
@pytest.mark.parametrize("name", ["int2", "int3", "int4"])
def test_bits_of_packings(name, how):
    if how.padding == "value" and name == "int3":
        pytest.skip("codes of 3 bits do not fill words")
    scheme = qa.scheme(name, packing=how, group_size=20)
    for sizes in (WHOLE, (3, 8, 40), (4, 3, 25)):
        q = qa.quantize(lazy(sizes=sizes), scheme)
        assert_same_quantized(q, qa.quantize(corpus(), scheme), xp, dtypes=["float32"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("scheme", ["int8", "uint4", "mxfp4"])
def test_bits_of_dtypes(scheme, dtype):
    x = corpus(dtype)[:3]
    chosen = qa.scheme(scheme, group_size=32)
    q = qa.quantize(lazy(x, (2, 8, 32)), chosen)
    assert_same_quantized(q, qa.quantize(x, chosen), xp)


@pytest.mark.parametrize("sizes", CHUNKS, ids=str)
@pytest.mark.parametrize("nonfinite", ["raise", "propagate", "saturate"])
def test_nonfinite_blocks(nonfinite, sizes):
    """A chunk does not raise, as the whole lazy array would not."""
    seen = "propagate" if nonfinite == "raise" else nonfinite
    for scheme in ("int4", "uint4", "nf4"):
        q = qa.quantize(lazy(poisoned(), sizes), scheme, group_size=20, nonfinite=nonfinite)
        reference = qa.quantize(poisoned(), scheme, group_size=20, nonfinite=seen)
        assert_same_quantized(q, reference, xp, dtypes=["float32"])


@pytest.mark.parametrize("scheme", ["int8", "uint4", "st:int8"])
def test_given_parameters(scheme, taken):
    reference = qa.quantize(corpus(), scheme, group_size=32)
    names = [name for name in ("zero_point", "offset") if getattr(reference, name) is not None]
    given = {name: getattr(reference, name) for name in ("scale", *names)}
    again = qa.quantize(corpus(), scheme, group_size=32, **given)
    q = qa.quantize(lazy(sizes=(4, 8, 32)), scheme, group_size=32, **given)
    assert taken == [True]
    assert_same_quantized(q, again, xp, dtypes=["float32"])


@pytest.mark.parametrize("scheme", ["int8", "uint3", "mxfp4", "st:int8", "float16 scale"])
def test_what_is_known_of_each_part_is_true(scheme, forbidden):
    chosen = CHOICES.get(scheme) or qa.scheme(scheme, group_size=24)
    x = corpus()[HELD]
    q = qa.quantize(lazy(x, (2, 8, 48)), chosen)
    values = {**q.parts(), "float64": q.dequantize("float64")}
    with dask.config.set(scheduler="synchronous"):
        for name, array in values.items():
            assert isinstance(array._meta, np.ndarray), name
            assert array._meta.dtype == array.dtype, name
            for index in np.ndindex(*array.numblocks):
                block = array.blocks[index].compute()
                assert block.dtype == array.dtype, name
                expected = tuple(sizes[i] for sizes, i in zip(array.chunks, index, strict=True))
                assert block.shape == expected, name


def test_chunks_of_whole_blocks_are_kept():
    q = qa.quantize(lazy(sizes=(3, 8, 32)), "int4", group_size=32)
    assert q.data.chunks == ((3, 3, 3), (8,), (16, 16, 16))
    assert q.scale.chunks == ((3, 3, 3), (8,), (1, 1, 1))
    assert q.dequantize().chunks == ((3, 3, 3), (8,), (32, 32, 32))


@pytest.mark.parametrize(
    ("name", "options", "sizes", "expected"),
    [
        # To groups; to bytes; no chunk of a ragged group alone; to the whole axis.
        ("int8", {"group_size": 20}, (9, 8, (25, 35, 36)), ((9,), (8,), (20, 40, 36))),
        ("int4", {"channel_axis": -1}, (9, 8, (25, 71)), ((9,), (8,), (24, 72))),
        ("int8", {"group_size": 20}, (3, 8, (80, 16)), ((3, 3, 3), (8,), (96,))),
        ("int8", {"block": (1, 1, -1)}, (3, 8, 25), ((3, 3, 3), (8,), (96,))),
    ],
)
def test_borders_are_moved(name, options, sizes, expected, taken):
    q = qa.quantize(lazy(sizes=sizes), name, **options)
    assert taken == [True]
    per_byte = 8 // q.scheme.element.bits
    assert q.data.chunks == (*expected[:2], tuple(size // per_byte for size in expected[2]))
    assert_same_quantized(q, qa.quantize(corpus(), name, **options), xp, dtypes=["float32"])


FALL_BACK = {
    "random numbers": (qa.scheme("int4", rounding="stochastic", group_size=32), {"key": 5}),
    "scales of scales": (qa.scheme("nvfp4"), {}),
    "rows packed across": (
        qa.scheme("int4", packing=Packing(transpose="both"), group_size=32),
        {},
    ),
    "strided rows": (qa.scheme("int4", packing=Packing(strided=True), group_size=32), {}),
    "one mean of all chunks": (qa.scheme("ternary"), {}),
}


@pytest.mark.parametrize("case", FALL_BACK)
def test_what_needs_the_whole_array_is_left(case, taken):
    scheme, options = FALL_BACK[case]
    q = qa.quantize(lazy(sizes=(3, 8, 32)), scheme, **options)
    assert taken == [False]
    assert_same_quantized(q, qa.quantize(corpus(), scheme, **options), xp, dtypes=["float32"])


def test_chunks_do_not_outgrow_what_dask_aims_at(taken):
    with dask.config.set({"array.chunk-size": "4KiB"}):
        q = qa.quantize(lazy(sizes=(1, 8, 32)), "int8", block=(1, -1, -1))
        qa.quantize(lazy(sizes=(1, 8, 96)), "int8", block=(1, -1, -1))
    assert q.codes.chunks == ((1,) * 9, (8,), (96,))
    with dask.config.set({"array.chunk-size": "2KiB"}):
        q = qa.quantize(lazy(sizes=(1, 8, 32)), "int8", block=(1, -1, -1))
    assert q.codes.chunks == ((1,) * 9, (8,), (32,) * 3)
    assert taken == [True] * 3


@pytest.mark.parametrize(
    ("options", "sizes", "answer"),
    [
        ({}, (3, 8, 32), True),  # all chunks share a scale
        ({"channel_axis": 0}, (4, 3, 25), True),
        ({"group_size": 32}, (4, 3, 32), True),
        ({"group_size": 32}, (4, 3, 24), False),  # a scale is of two chunks, not of all
    ],
    ids=str,
)
def test_stored_codes_in_other_chunks(options, sizes, answer, taken):
    reference = qa.quantize(corpus(), "uint4", **options)
    parts = {name: lazy(part, part.shape) for name, part in reference.parts().items()}
    parts["data"] = lazy(reference.data, (*sizes[:2], sizes[2] // 2))
    parts["scale"] = parts["scale"].rechunk(2)
    q = qa.QuantizedArray.from_parts(parts, reference.scheme, SHAPE, "float32")
    values = q.dequantize()
    assert taken == [answer]
    assert (bits(to_numpy(values)) == bits(reference.dequantize())).all()


def test_words_cut_by_a_chunk_are_left(taken):
    reference = qa.quantize(corpus(), "int3")
    parts = {name: lazy(part, part.shape) for name, part in reference.parts().items()}
    for size, answer in ((12, True), (10, False)):  # 8 codes are 3 bytes
        parts["data"] = lazy(reference.data, (9, 8, size))
        q = qa.QuantizedArray.from_parts(parts, reference.scheme, SHAPE, "float32")
        assert (to_numpy(q.dequantize()) == reference.dequantize()).all()
        assert taken.pop() == answer


def test_nothing_is_computed(forbidden, taken):
    for scheme in SCHEMES:
        q = qa.quantize(lazy(sizes=(3, 8, 25)), scheme, group_size=20)
        again = qa.quantize(
            lazy(), scheme, group_size=20, scale=q.scale, zero_point=q.zero_point, offset=q.offset
        )
        assert again.dequantize().shape == SHAPE
    assert all(taken)


def test_the_graph_can_be_sent_elsewhere():
    q = qa.quantize(lazy(sizes=(3, 8, 32)), "uint4", group_size=32)
    values = q.dequantize()
    sent = pickle.loads(pickle.dumps((q.data, q.scale, values)))
    reference = qa.quantize(corpus(), "uint4", group_size=32)
    for found, expected in zip(
        sent, (reference.data, reference.scale, reference.dequantize()), strict=True
    ):
        assert (to_numpy(found) == expected).all()


def test_the_same_call_gives_the_same_keys():
    one, other, third = (
        qa.quantize(lazy(), scheme, group_size=32).data.name for scheme in ("int4", "int4", "uint4")
    )
    assert one == other != third
