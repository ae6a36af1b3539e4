"""GGUF files: what is in them comes back, types and all, and goes out again byte for byte."""

import os
import struct
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from gguf_files import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    array,
    gguf,
    info,
    key,
    string,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantarray.errors import QuantArrayError
from quantarray.io import files, gguf_types, gguf_values
from quantarray.io import gguf as ours
from quantarray.io.gguf import Spec
from quantarray.io.gguf_values import Arrays
from quantarray.records import RECORDS

pytestmark = pytest.mark.backend_independent

RNG = np.random.default_rng(0)
DTYPES = {
    "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64,
    "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
}  # fmt: skip

VALUES = [
    (U8, 255, np.uint8(255)),
    (I8, -128, np.int8(-128)),
    (U16, 65535, np.uint16(65535)),
    (I16, -32768, np.int16(-32768)),
    (U32, 2**32 - 1, np.uint32(2**32 - 1)),
    (I32, -(2**31), np.int32(-(2**31))),
    (U64, 2**64 - 1, np.uint64(2**64 - 1)),
    (I64, -(2**63), np.int64(-(2**63))),
    (F32, 0.1, np.float32(0.1)),
    (F64, 0.1, np.float64(0.1)),
    (BOOL, True, True),
    (BOOL, False, False),
    (STRING, "wert ü 大", "wert ü 大"),
    (STRING, "", ""),
    (STRING, b"\xff\xfe", "\udcff\udcfe"),
    (STRING, "nul\0 and more", "nul\0 and more"),
]
ARRAYS = [
    *((kind, [value] * 3, np.asarray([expected] * 3)) for kind, value, expected in VALUES[:12]),
    *((kind, [], np.asarray([], np.asarray(x).dtype)) for kind, _, x in VALUES[:11]),
    (STRING, ["a", "", "ü"], ["a", "", "ü"]),
    (STRING, [b"\xc3", b"\xed\xa0\x80"], ["\udcc3", "\udced\udca0\udc80"]),
    (STRING, [], []),
    (ARRAY, [], Arrays()),
    (ARRAY, [array(U8, [])], Arrays([np.asarray([], np.uint8)])),
    (
        ARRAY,
        [array(U8, [1, 2]), array(STRING, ["x"]), array(ARRAY, [array(BOOL, [True])])],
        Arrays([np.asarray([1, 2], np.uint8), ["x"], Arrays([np.asarray([True])])]),
    ),
]


def put(tmp_path, raw, name="x"):
    (tmp_path / name).write_bytes(raw)
    return tmp_path / name


def same(a, b):
    """Whether two values are the same, types included, NaN and -0.0 told apart by their bits."""
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def rewritten(found, path):
    ours.write(path, found.metadata, found.specs, [(name, found.raw(name)) for name in found.specs])
    return path.read_bytes()


@pytest.mark.parametrize(("kind", "value", "expected"), VALUES)
@pytest.mark.parametrize("version", [2, 3])
def test_every_scalar_keeps_its_type(tmp_path, kind, value, expected, version):
    raw = gguf([key("k", kind, value if kind != STRING else string(value))], version=version)
    found = ours.read(put(tmp_path, raw))
    assert (found.version, found.alignment, found.header_size) == (version, 32, len(raw))
    assert same(found.metadata["k"], expected)
    again = rewritten(found, tmp_path / "y")
    assert again[8 : len(raw)] == raw[8:]
    assert again[:8] == b"GGUF\3\0\0\0"


@pytest.mark.parametrize(("kind", "items", "expected"), ARRAYS)
def test_every_array_keeps_its_type(tmp_path, kind, items, expected):
    raw = gguf([key("k", ARRAY, array(kind, items))])
    found = ours.read(put(tmp_path, raw))
    value = found.metadata["k"]
    assert same(value, expected)
    assert not isinstance(value, np.ndarray) or not value.flags.writeable
    assert rewritten(found, tmp_path / "y")[: len(raw)] == raw


@pytest.mark.parametrize("bits", [0x7F800001, 0xFFC12345, 0x80000000, 1])
def test_the_bits_of_a_float_stay(tmp_path, bits):
    four = struct.pack("<I", bits)
    raw = gguf([key("k", F32, four), key("a", ARRAY, struct.pack("<iQ", F32, 1) + four)])
    found = ours.read(put(tmp_path, raw))
    assert found.metadata["k"].tobytes() == found.metadata["a"].tobytes() == four
    assert rewritten(found, tmp_path / "y")[: len(raw)] == raw


def test_keys_stay_in_order(tmp_path):
    raw = gguf([key(name, U8, i) for i, name in enumerate("zaübc")])
    assert list(ours.read(put(tmp_path, raw)).metadata) == list("zaübc")


@pytest.mark.parametrize("version", [2, 3])
def test_the_smallest_file(tmp_path, version):
    found = ours.read(put(tmp_path, gguf(version=version)))
    assert (found.specs, found.metadata, found.header_size) == ({}, {}, 24)
    ours.write(tmp_path / "y", {}, {}, [])
    assert (tmp_path / "y").read_bytes() == gguf() + bytes(8)
    assert ours.read(tmp_path / "y").metadata == {}


def plain(dtype, shape):
    size = int(np.prod(shape)) * np.dtype(DTYPES[dtype]).itemsize
    return RNG.integers(0, 256, size, np.uint8).view(DTYPES[dtype]).reshape(shape)


def some(alignment=32):
    """Metadata, specs and data of every plain type, some block types, and the awkward shapes."""
    data = {dtype: plain(dtype, (2, 3)) for dtype in DTYPES}
    specs = {dtype: Spec(dtype, (2, 3)) for dtype in DTYPES}
    for name, dtype, shape in [
        ("scalar", "F32", ()),
        ("empty", "F32", (0,)),
        ("no rows", "F16", (0, 7)),
        ("no columns", "F32", (7, 0)),
        ("four axes", "I8", (2, 1, 3, 5)),
        ("", "I8", (1,)),
        ("é \n name", "I16", (3,)),
        ("n" * 200, "F64", (1, 1)),
    ]:
        data[name], specs[name] = plain(dtype, shape), Spec(dtype, shape)
    for name, record in RECORDS.items():
        for label, shape in [("", (3, 2 * record.elements)), (" empty", (2, 0))]:
            specs[name + label] = spec = Spec(name, shape)
            data[name + label] = RNG.integers(0, 256, spec.stored, np.uint8)
    return {"general.alignment": np.uint32(alignment)}, specs, data


@pytest.mark.parametrize("alignment", [1, 2, 8, 32, 64, 4096, gguf_types.ALIGNMENT_CAP])
def test_tensors_come_back(tmp_path, alignment):
    metadata, specs, data = some(alignment)
    ours.write(tmp_path / "x", metadata, specs, data.items())
    found = ours.read(tmp_path / "x")
    assert found.specs == specs
    assert list(found.specs) == list(specs)
    assert (found.alignment, found.file.size % alignment) == (alignment, 0)
    for name, expected in data.items():
        assert found.starts[name] % alignment == 0
        value = found.array(name)
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
        assert value.tobytes() == bytes(found.raw(name)) == expected.tobytes()
        assert len(found.raw(name)) == specs[name].nbytes
        assert value.flags.aligned
        assert not value.flags.writeable
        found.release(name)
        assert value.tobytes() == expected.tobytes()
    assert rewritten(found, tmp_path / "y") == (tmp_path / "x").read_bytes()


def test_the_file_has_the_innermost_axis_first(tmp_path):
    raw = gguf(infos=[info("w", (3, 2))], data=np.arange(6, dtype="<f4").tobytes() + bytes(8))
    found = ours.read(put(tmp_path, raw))
    assert found.array("w").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_axes_of_one_stay(tmp_path):
    raw = gguf(infos=[info("w", (3, 1, 1, 1)), info("v", (), offset=32)], data=bytes(64))
    found = ours.read(put(tmp_path, raw))
    assert (found.specs["w"].shape, found.specs["v"].shape) == ((1, 1, 1, 3), ())
    assert rewritten(found, tmp_path / "y") == raw


@pytest.mark.parametrize("left", range(33))
def test_the_padding_of_the_last_tensor_may_be_missing(tmp_path, left):
    raw = gguf(infos=[info("w", (2,), 25)], data=bytes(4))
    path = put(tmp_path, raw + bytes(left))
    if left <= 28:
        assert ours.read(path).array("w").tolist() == [0, 0]
    else:
        with pytest.raises(QuantArrayError, match=f"data: {left - 28} bytes after the last tensor"):
            ours.read(path)


def test_every_block_type_has_its_number_and_row(tmp_path):
    for name, record in RECORDS.items():
        raw = gguf(
            infos=[info("w", (record.elements * 3, 2), record.number)], data=bytes(6 * record.size)
        )
        found = ours.read(put(tmp_path, raw))
        spec = found.specs["w"]
        assert (spec.dtype, spec.record) == (name, record)
        assert spec.stored == found.array("w").shape == (2, 3 * record.size)


def test_bfloat16_without_ml_dtypes_names_the_extra(tmp_path, monkeypatch):
    ours.write(tmp_path / "x", {}, {"w": Spec("BF16", (2,))}, [("w", b"\x80\x3f\0\0")])
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    found = ours.read(tmp_path / "x")
    assert bytes(found.raw("w")) == b"\x80\x3f\0\0"
    with pytest.raises(QuantArrayError, match=r"tensor 'w': .* pip install quantarray\[io\]"):
        found.array("w")


LAYOUTS = {
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "transposed": np.arange(12.0).reshape(3, 4).T,
    "strided": np.arange(24.0).reshape(4, 6)[::2, ::3],
    "reversed": np.arange(6.0)[::-1],
    "big-endian": np.arange(6, dtype=">f8"),
    "broadcast": np.broadcast_to(np.float64(3), (2, 3)),
}


@pytest.mark.parametrize("x", LAYOUTS.values(), ids=LAYOUTS)
def test_memory_layout_does_not_reach_the_file(tmp_path, x):
    ours.write(tmp_path / "x", {}, {"w": Spec("F64", x.shape)}, [("w", x)])
    np.testing.assert_array_equal(ours.read(tmp_path / "x").array("w"), x)


def test_tensors_may_come_in_any_order_and_shape_of_bytes(tmp_path):
    specs = {"a": Spec("F32", (3,)), "b": Spec("I8", (5,)), "c": Spec("Q8_0", (32,))}
    given_ = [("c", b"c" * 34), ("a", memoryview(np.arange(3, dtype="<f4"))), ("b", b"bbbbb")]
    ours.write(tmp_path / "x", {}, specs, given_)
    found = ours.read(tmp_path / "x")
    assert [found.starts[name] - found.starts["a"] for name in "abc"] == [0, 32, 64]
    assert found.array("a").tolist() == [0, 1, 2]
    assert (bytes(found.raw("b")), bytes(found.raw("c"))) == (b"bbbbb", b"c" * 34)
    assert found.file.size == found.starts["a"] + 128
    assert bytes(found.file.view[found.starts["b"] + 5 : found.starts["c"]]) == bytes(27)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "'w' was not given"),
        ([("v\x1b", np.ones(2))], r"'v\x1b' is not in the plan"),
        ([("w", np.ones(2))] * 2, "'w' is not in the plan, or came twice"),
        ([("w", np.ones(3))], "'w' is float64[3], planned F64[2]"),
        ([("w", np.ones(2, np.int64))], "'w' is int64[2], planned F64[2]"),
        ([("w", memoryview(b"123"))], "'w' has 3 bytes, planned 16"),
        ([("w", b"")], "'w' has 0 bytes, planned 16"),
        ([("w", np.ones(2)), ("q", np.ones((1, 32), np.uint8))], "planned U8[1, 34]"),
        ([("w", np.ones(2)), ("q", np.ones((1, 34), np.int8))], "'q' is int8[1, 34], planned U8"),
    ],
)
def test_the_writer_holds_tensors_to_the_plan(tmp_path, tensors, message):
    specs = {"w": Spec("F64", (2,)), "q": Spec("Q8_0", (1, 32))}
    with pytest.raises(QuantArrayError) as caught:
        ours.write(tmp_path / "x", {}, specs, tensors)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


class Odd:
    pass


DEEP = np.zeros(1, np.uint8)
for _ in range(gguf_values.DEPTH_CAP):
    DEEP = [DEEP]
UNSTORABLE = {
    "int": ({"k": 3}, "metadata 'k': a value of type int does not say its type in the file"),
    "float": ({"k": 0.5}, "such as numpy.uint32(1)"),
    "none": ({"k": None}, "a value of type NoneType"),
    "bytes": ({"k": b"x"}, "a value of type bytes"),
    "object": ({"k\x1b": Odd()}, r"metadata 'k\x1b': a value of type Odd"),
    "float16": ({"k": np.float16(1)}, "dtype float16 is not one of the format's"),
    "complex": ({"k": np.ones(2, complex)}, "dtype complex128 is not"),
    "text array": ({"k": np.asarray(["a"])}, "dtype <U1 is not"),
    "two axes": ({"k": np.ones((2, 2))}, "an array must have one axis, this one has 2"),
    "no axis": ({"k": np.ones(())}, "an array must have one axis, this one has 0"),
    "list of int": ({"k": [1, 2]}, "an array of arrays cannot hold int"),
    "mixed list": ({"k": ["a", np.ones(2)]}, "an array of arrays cannot hold str"),
    "depth": ({"k": DEEP}, f"nested deeper than the limit of {gguf_values.DEPTH_CAP}"),
    "half a surrogate": ({"k": "\ud800"}, "surrogates not allowed"),
    "key not text": ({1: "x"}, "metadata '1': must be str, got int"),
    "key empty": ({"": "x"}, "metadata '': it is empty"),
    "key not Unicode": ({"\udcff": "x"}, "surrogates not allowed"),
    "key with a null": ({"a\0b": "x"}, "it holds a null character"),
    "key long": ({"k" * 65536: "x"}, "its length 65536 is above the limit of 65535"),
    "alignment type": ({"general.alignment": np.int32(8)}, "must be of type uint32, got int32"),
    "alignment 0": ({"general.alignment": np.uint32(0)}, "must be a power of 2 up to 1048576"),
    "alignment 48": ({"general.alignment": np.uint32(48)}, "must be a power of 2"),
    "alignment 2^21": ({"general.alignment": np.uint32(2**21)}, "got 2097152"),
    "type": ({}, "tensor 'w': type 'Q8_K' is unknown", "w", Spec("Q8_K", (256,))),
    "axes": ({}, "tensor 'w': 5 axes are above", "w", Spec("F32", (1,) * 5)),
    "extent": ({}, "shape [-1] has a negative extent", "w", Spec("F32", (-1,))),
    "row": ({}, "a row of 33 elements is not whole blocks of 32", "w", Spec("Q4_0", (2, 33))),
    "size": ({}, "not a possible number of bytes", "w", Spec("F32", (2**61,))),
    "name long": ({}, "its length 65536 is above", "w" * 65536, Spec("F32", (1,))),
    "name not Unicode": ({}, "surrogates not allowed", "\udc80", Spec("F32", (1,))),
    "name not text": ({}, "tensor '7': must be str, got int", 7, Spec("F32", (1,))),
}


@pytest.mark.parametrize("case", UNSTORABLE.values(), ids=UNSTORABLE)
def test_what_cannot_be_stored(tmp_path, case):
    metadata, message, *tensor = case
    with pytest.raises(QuantArrayError) as caught:
        ours.write(tmp_path / "x", metadata, dict([tensor] if tensor else []), [])
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_files_no_reader_would_take_are_not_written(tmp_path, monkeypatch):
    from quantarray.io import gguf_writer

    for limit in ("KEYS_CAP", "TENSORS_CAP"):
        monkeypatch.setattr(gguf_writer, limit, 2)
    with pytest.raises(QuantArrayError, match="3 keys are above the limit of 2"):
        ours.write(tmp_path / "x", dict.fromkeys("abc", True), {}, [])
    with pytest.raises(QuantArrayError, match="3 tensors are above the limit of 2"):
        ours.write(tmp_path / "x", {}, dict.fromkeys("abc", Spec("F32", (1,))), [])
    monkeypatch.setattr(gguf_writer, "HEADER_CAP", 30)
    with pytest.raises(QuantArrayError, match=r"the header takes .. bytes, the limit is 30"):
        ours.write(tmp_path / "x", {"a": "text"}, {}, [])
    assert not list(tmp_path.iterdir())


def test_numpy_scalars_of_bool_and_text_are_taken(tmp_path):
    ours.write(tmp_path / "x", {"b": np.bool_(True), "s": np.str_("text")}, {}, [])
    found = ours.read(tmp_path / "x").metadata
    assert found == {"b": True, "s": "text"}
    assert (type(found["b"]), type(found["s"])) == (bool, str)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_any_failing_call_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch, error):
    target = tmp_path / "target"
    specs = {"a": Spec("F32", (3,)), "b": Spec("Q8_0", (2, 32))}
    data = {"a": np.ones(3, np.float32), "b": b"b" * 68}
    ours.write(target, {"k": "new"}, specs, data.items())
    new, old = target.read_bytes(), gguf([key("k", STRING, string("old"))])
    calls = 0

    def fail(function, *args, **kwargs):
        nonlocal calls
        calls -= 1
        if not calls:
            raise error
        return function(*args, **kwargs)

    for n in range(1, 100):
        target.write_bytes(old)
        calls = n
        monkeypatch.setattr(files, "call", fail)
        try:
            ours.write(target, {"k": "new"}, specs, data.items())
        except type(error):
            assert os.listdir(tmp_path) == ["target"]
            assert target.read_bytes() in (old, new)
            if n < 10:
                assert target.read_bytes() == old
        else:
            break
        finally:
            monkeypatch.undo()
    assert n >= 16  # stat, open, chmod, five pieces, fsync, rename, open and fsync of the folder
    assert target.read_bytes() == new


def test_an_error_while_a_tensor_is_made_leaves_the_old_file(tmp_path):
    path = put(tmp_path, gguf())

    def tensors():
        yield "a", b"aa"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ours.write(path, {}, {"a": Spec("I8", (2,)), "b": Spec("I8", (2,))}, tensors())
    assert os.listdir(tmp_path) == ["x"]
    assert path.read_bytes() == gguf()


def test_a_file_may_be_written_over_while_it_is_read(tmp_path):
    path = tmp_path / "x"
    metadata, specs, data = some()
    ours.write(path, metadata, specs, data.items())
    old = path.read_bytes()
    found = ours.read(path)
    ours.write(path, {"k": True}, found.specs, ((name, found.raw(name)) for name in found.specs))
    assert bytes(found.file.view) == old
    assert ours.read(path).array("Q4_K").tobytes() == data["Q4_K"].tobytes()


def test_the_writer_holds_one_tensor_at_a_time(tmp_path):
    specs = {str(i): Spec("F32", (1 << 20,)) for i in range(8)}
    tracemalloc.start()
    try:
        tensors = ((name, np.zeros(1 << 20, np.float32)) for name in specs)
        ours.write(tmp_path / "x", {}, specs, tensors)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_errors_of_a_container_say_where(tmp_path):
    raw = gguf([key("some.key", U8, 1)], [info("w")], bytes(32))
    found = ours.read(put(tmp_path, raw))
    start = len(raw) - 32
    assert str(found.error("w", "bad")).endswith(f"x: tensor 'w': bad (at byte {start})")
    at = raw.index(string("some.key"))
    assert str(found.metadata_error("some.key", "bad")).endswith(
        f"x: metadata 'some.key': bad (at byte {at})"
    )


BIG = {
    "150 000 strings": (array(STRING, [f"token {i}" for i in range(150_000)]), 150_000, 1.0),
    "256 KiB of bytes": (struct.pack("<iQ", U8, 1 << 18) + bytes(range(256)) * 1024, 1 << 18, 0.1),
    "200 000 floats": (struct.pack("<iQ", F32, 200_000) + bytes(800_000), 200_000, 0.1),
    "empty strings": (array(STRING, [""] * 100_000), 100_000, 0.5),
}


@pytest.mark.parametrize(("raw", "length", "seconds"), BIG.values(), ids=BIG)
def test_large_arrays_are_read_at_once(tmp_path, raw, length, seconds):
    """The bounds are loose; what they exclude takes many seconds (gguf-py: 9.5 for the bytes)."""
    path = put(tmp_path, gguf([key("k", ARRAY, raw)]))
    start = time.perf_counter()
    found = ours.read(path)
    assert time.perf_counter() - start < seconds
    assert len(found.metadata["k"]) == length
    assert rewritten(found, tmp_path / "y")[: path.stat().st_size] == path.read_bytes()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAME = TEXT.filter(lambda text: "\0" not in text)
DTYPE = st.sampled_from(list(gguf_values.DTYPES.values()))
FLAT = DTYPE.flatmap(
    lambda dtype: st.binary(max_size=4).map(
        lambda raw: np.frombuffer(raw, np.uint8).__mod__(2).astype(dtype)
    )
)
VALUE = st.recursive(
    st.one_of(FLAT, st.lists(TEXT, max_size=3)),
    lambda inner: st.lists(inner, max_size=3).map(Arrays),
    max_leaves=6,
)
SCALAR = st.one_of(TEXT, st.booleans(), FLAT.filter(len).map(lambda x: x[0]).filter(
    lambda x: not isinstance(x, np.bool_)
))  # fmt: skip
TENSOR = st.sampled_from(list(gguf_types.TYPES)).flatmap(
    lambda dtype: st.lists(st.integers(0, 2), min_size=1, max_size=4).map(
        lambda shape: Spec(dtype, (*shape[:-1], shape[-1] * gguf_types.TYPES[dtype][1]))
    )
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(NAME.filter(len), st.one_of(SCALAR, VALUE), max_size=5),
    st.dictionaries(NAME, TENSOR, max_size=5),
    st.sampled_from([None, 1, 16, 128]),
)
def test_anything_round_trips(tmp_path, metadata, specs, alignment):
    if alignment:
        metadata = {**metadata, "general.alignment": np.uint32(alignment)}
    data = {name: bytes([i + 1]) * spec.nbytes for i, (name, spec) in enumerate(specs.items())}
    ours.write(tmp_path / "x", metadata, specs, data.items())
    found = ours.read(tmp_path / "x")
    assert list(found.metadata) == list(metadata)
    assert all(same(found.metadata[name], value) for name, value in metadata.items())
    assert found.specs == specs
    assert {name: bytes(found.raw(name)) for name in specs} == data
    assert rewritten(found, tmp_path / "y") == (tmp_path / "x").read_bytes()
