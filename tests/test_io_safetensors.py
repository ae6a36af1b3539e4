"""The container: what the reference implementation reads and writes; stricter with bad files."""

import json
import random
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantarray.errors import QuantArrayError
from quantarray.io import safetensors as ours
from quantarray.io.dtypes import BITS, DTYPES, NUMPY_NAMES, Spec, numpy_dtype

pytestmark = pytest.mark.backend_independent

RNG = np.random.default_rng(0)


def arrays():
    """One array of every dtype NumPy and ml_dtypes have, and the awkward shapes."""
    made = {}
    for code, name in NUMPY_NAMES.items():
        dtype = numpy_dtype(code)
        if code == "BOOL":
            made[name] = np.array([True, False, True])
        else:
            raw = RNG.integers(0, 256, 3 * 5 * dtype.itemsize, np.uint8)
            made[name] = raw.view(dtype).reshape(3, 5)
    made["scalar"] = np.array(1.5, np.float32)
    made["empty"] = np.zeros((0, 7), np.float64)
    made["odd bytes first"] = np.arange(3, dtype=np.uint8)
    made["é \n 'quoted' \\ \"name\""] = np.arange(4)
    return made


def plan(tensors):
    return {name: Spec(DTYPES[x.dtype.name], x.shape) for name, x in tensors.items()}


def write(path, tensors, metadata=None):
    ours.write(path, plan(tensors), tensors.items(), lambda sums: metadata or {})


def same_bits(a, b):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


def test_the_reference_reads_what_we_write(tmp_path):
    tensors = {k: v for k, v in arrays().items() if v.dtype.name in DTYPES}
    write(tmp_path / "x", tensors, {"key": "wert ü"})
    found = dict(safetensors.deserialize((tmp_path / "x").read_bytes()))
    assert found.keys() == tensors.keys()
    for name, x in tensors.items():
        assert found[name]["dtype"] == DTYPES[x.dtype.name]
        assert tuple(found[name]["shape"]) == x.shape
        assert bytes(found[name]["data"]) == x.tobytes()
    with safetensors.safe_open(tmp_path / "x", "np") as file:
        assert file.metadata()["key"] == "wert ü"


def test_we_read_what_the_reference_writes(tmp_path):
    tensors = {
        k: v for k, v in arrays().items() if not k.startswith(("float8", "complex", "bfloat"))
    }
    tensors["bf16"] = np.ones((2, 3), ml_dtypes.bfloat16)
    safetensors.numpy.save_file(tensors, tmp_path / "x", {"format": "pt"})
    found = ours.read(tmp_path / "x")
    assert found.metadata == {"format": "pt"}
    assert found.specs.keys() == tensors.keys()
    for name, x in tensors.items():
        same_bits(found.array(name), x)
        assert not found.array(name).flags.writeable


def test_round_trip_of_every_dtype_aligned(tmp_path):
    tensors = arrays()
    write(tmp_path / "x", tensors)
    found = ours.read(tmp_path / "x")
    found.check_header()
    assert list(found.specs) == list(tensors)
    for name, x in tensors.items():
        same_bits(found.array(name), x)
        assert found.starts[name] % x.dtype.itemsize == 0
        found.release(name)
        same_bits(found.array(name), x)
    assert found.header_size % 8 == 0


@pytest.mark.parametrize("code", BITS)
def test_bytes_pass_through_whatever_the_dtype(tmp_path, code):
    spec = Spec(code, (4, 8))
    data = memoryview(bytes(RNG.integers(0, 2, spec.nbytes, np.uint8)))
    ours.write(tmp_path / "x", {"w": spec}, [("w", data)], lambda sums: sums)
    found = ours.read(tmp_path / "x")
    assert found.specs == {"w": spec}
    assert bytes(found.raw("w")) == bytes(data)
    assert found.metadata["w"] == ours.checksum(data)


def test_dtypes_numpy_lacks_say_so(tmp_path):
    ours.write(tmp_path / "x", {"w": Spec("F4", (2,))}, [("w", memoryview(b"x"))], dict)
    with pytest.raises(QuantArrayError, match=r"'w': NumPy has no dtype for F4; .* as bytes"):
        ours.read(tmp_path / "x").array("w")


def test_bfloat16_without_ml_dtypes_names_the_extra(tmp_path, monkeypatch):
    write(tmp_path / "x", {"w": np.ones(3, ml_dtypes.bfloat16)})
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    found = ours.read(tmp_path / "x")
    assert bytes(found.raw("w")) == b"\x80\x3f" * 3
    with pytest.raises(QuantArrayError, match=r"pip install quantarray\[io\]"):
        found.array("w")


LAYOUTS = {
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "transposed": np.arange(12.0).reshape(3, 4).T,
    "strided": np.arange(24.0).reshape(4, 6)[::2, ::3],
    "reversed": np.arange(6.0)[::-1],
    "big-endian": np.arange(6, dtype=">f4"),
    "broadcast": np.broadcast_to(np.float32(3), (2, 3)),
}


@pytest.mark.parametrize("x", LAYOUTS.values(), ids=LAYOUTS)
def test_memory_layout_does_not_reach_the_file(tmp_path, x):
    write(tmp_path / "x", {"w": x})
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "x")["w"], x)


def test_misaligned_tensors_of_another_writer_are_aligned(tmp_path):
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "w": {"dtype": "F64", "shape": [2], "data_offsets": [1, 17]},
    }
    (tmp_path / "x").write_bytes(container(header, b"\x07" + np.array([1.5, -2]).tobytes()))
    w = ours.read(tmp_path / "x").array("w")
    assert w.flags.aligned
    assert not w.flags.writeable
    assert w.tolist() == [1.5, -2]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "'w' was not given"),
        ([("v", np.ones(2))], "'v' is not in the plan"),
        ([("w", np.ones(2)), ("w", np.ones(2))], "'w' is not in the plan, or came twice"),
        ([("w", np.ones(3))], r"'w' is float64\[3\], planned F64\[2\]"),
        ([("w", np.ones(2, np.int64))], r"'w' is int64\[2\], planned F64"),
        ([("w", memoryview(b"123"))], "'w' has 3 bytes, planned 16"),
    ],
)
def test_the_writer_holds_tensors_to_the_plan(tmp_path, tensors, message):
    with pytest.raises(QuantArrayError, match=message):
        ours.write(tmp_path / "x", {"w": Spec("F64", (2,))}, tensors, lambda sums: {})
    assert not list(tmp_path.iterdir())


def test_metadata_must_not_grow_with_the_checksums(tmp_path):
    def metadata(sums):
        return {"sum": str(int(sums["w"], 16))}

    data = [("w", memoryview(b"abcd"))]
    with pytest.raises(QuantArrayError, match="changed its length"):
        ours.write(tmp_path / "x", {"w": Spec("U8", (4,))}, data, metadata)
    assert not list(tmp_path.iterdir())


def test_a_header_no_reader_would_take_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "HEADER_CAP", 200)
    with pytest.raises(QuantArrayError, match=r"the header takes 3.. bytes, the limit is 200"):
        write(tmp_path / "x", {"n" * 200: np.ones(1)})


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_names_that_cannot_be_stored(tmp_path, name):
    with pytest.raises(QuantArrayError):
        write(tmp_path / "x", {name: np.ones(1)})
    assert not list(tmp_path.iterdir())


def container(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(dtype="F32", shape=(2,), span=(0, 8), **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": span, **more}


def one(*args, data=b"\0" * 8, **kwargs):
    return container({"w": entry(*args, **kwargs)}, data)


BYTE = b'"w":{"dtype":"U8","shape":[],"data_offsets":[0,1]}'
HOSTILE = {
    "empty file": (b"", "header length: the file has 0 bytes"),
    "7 bytes": (b"\x02\0\0\0\0\0\0", "header length: the file has 7 bytes"),
    "header past the end": (container(b"{}", length=3), "header length: 3 is past the end"),
    "header of 2^64-1": (container(b"{}", length=2**64 - 1), "above the limit of 100000000"),
    "header of 0": (container(b""), "header: not a JSON object"),
    "list": (container(b"[]"), "does not begin with '{'"),
    "space first": (container(b" {}"), "does not begin with '{'"),
    "byte order mark": (container(b"\xef\xbb\xbf{}"), "does not begin with '{'"),
    "not UTF-8": (container(b'{"\xff":1}'), "header: not a JSON object: 'utf-8' codec"),
    "not JSON": (container(b"{x"), "header: not a JSON object: Expecting"),
    "two objects": (container(b"{}{}"), "Extra data"),
    "NaN": (container(b'{"w":NaN}'), "NaN is not JSON"),
    "name twice": (container(b"{" + BYTE + b"," + BYTE + b"}", b"\0"), "key 'w' appears twice"),
    "key twice": (container(b'{"w":{"dtype":"U8","dtype":"U8"}}'), "key 'dtype' appears twice"),
    "half a surrogate": (container(b'{"\\ud800":1}'), "surrogates not allowed"),
    "deep lists": (container(b'{"w":' + b"[" * 100_000), "nested too deeply"),
    "deep objects": (container(b'{"w":' * 100_000), "nested too deeply"),
    "long integer": (container(b'{"w":' + b"9" * 5000 + b"}"), "4300 digits"),
    "entry is a list": (container({"w": []}), "tensor 'w': must be an object"),
    "field missing": (container({"w": {"dtype": "U8", "shape": []}}), "must be an object of dtype"),
    "field too many": (one(x=1), "must be an object of dtype"),
    "dtype unknown": (one("F128"), "tensor 'w': dtype 'F128' is unknown"),
    "dtype a number": (one(7), "dtype 7 is unknown"),
    "dtype a list": (one([]), "dtype [] is unknown"),
    "shape a number": (one(shape=2), "shape must be a list"),
    "shape negative": (one(shape=[-2]), "shape must be a list"),
    "shape of a bool": (one(shape=[True]), "shape must be a list"),
    "shape of a float": (one(shape=[2.0]), "shape must be a list"),
    "shape of text": (one(shape=["2"]), "shape must be a list"),
    "65 axes": (one(shape=[1] * 65), "at most 64 integers"),
    "extent of 2^63": (one(shape=[2**63]), "shape must be a list"),
    "2^64 elements wrap to 0": (one(shape=[2**32, 2**32]), "not a possible number of bytes"),
    "empty, yet too large": (
        one(shape=[0, 2**62, 2**62], span=[0, 0]),
        "not a possible number of bytes",
    ),
    "half a byte": (one("F4", [3], [0, 1]), "not a possible number of bytes"),
    "offsets reversed": (one(span=[8, 0]), "data_offsets must be [start, stop] within 8 bytes"),
    "offsets negative": (one(span=[-8, 0]), "data_offsets must be"),
    "offsets past the end": (one(span=[8, 16]), "data_offsets must be"),
    "offsets of 2^64-8": (one(span=[2**64 - 8, 2**64]), "data_offsets must be"),
    "three offsets": (one(span=[0, 4, 8]), "data_offsets must be"),
    "offsets of bools": (one("U8", [1], [False, True], data=b"\0"), "data_offsets must be"),
    "size of another shape": (
        one(shape=[3]),
        "data_offsets [0, 8] hold 8 bytes, shape [3] of F32 takes 12",
    ),
    "a hole first": (one(shape=[1], span=[4, 8]), "leaves a gap before it (at byte "),
    "overlap": (
        container({"a": entry(), "b": entry(shape=[1], span=[4, 8])}, b"\0" * 8),
        "tensor 'b': data_offsets [4, 8] overlaps",
    ),
    "a hole": (
        container(
            {"a": entry(shape=[1], span=[0, 4]), "b": entry(shape=[1], span=[8, 12])}, b"\0" * 12
        ),
        "tensor 'b': data_offsets [8, 12] leaves a gap",
    ),
    "bytes after": (one(data=b"\0" * 9), "data: 1 bytes after the last tensor"),
    "bytes without tensors": (container(b"{}", b"x"), "data: 1 bytes after"),
    "metadata a list": (container({"__metadata__": []}), "__metadata__: must map strings"),
    "metadata of numbers": (
        container({"__metadata__": {"a": 1}}),
        "__metadata__: must map strings",
    ),
    "name with ESC": (
        container({"\x1b[2J\u202e": entry(dtype="X")}),
        r"tensor '\x1b[2J\u202e': dtype 'X' is unknown",
    ),
    "long name": (container({"n" * 10_000: entry(dtype="X")}), "nnn…': dtype 'X' is unknown"),
    "long dtype": (one("D" * 10_000), "DDD…"),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused(tmp_path, data, message):
    path = tmp_path / "name\x1b"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(QuantArrayError) as caught:
            ours.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(data) + 16_000_000
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert message in text
    assert r"name\x1b: " in text
    assert "(at byte " in text
    assert text.isprintable()
    assert len(text) < 1000


def test_the_error_gives_the_byte(tmp_path):
    raw = container({"first": entry(), "w": entry(dtype="X")}, b"\0" * 8)
    (tmp_path / "x").write_bytes(raw)
    at = raw.index(b'"w"')
    with pytest.raises(QuantArrayError, match=rf"\(at byte {at}\)"):
        ours.read(tmp_path / "x")


def test_bytes_that_are_no_bool_are_refused(tmp_path):
    (tmp_path / "x").write_bytes(one("BOOL", [8], [0, 8], data=b"\0\1\0\1\2\0\0\0"))
    with pytest.raises(QuantArrayError, match="neither 0 nor 1"):
        ours.read(tmp_path / "x").array("w")


def test_every_truncation_is_refused(tmp_path):
    write(tmp_path / "x", {"a": np.arange(3.0), "b": np.arange(5, dtype=np.uint8)})
    whole = (tmp_path / "x").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "y").write_bytes(whole[:size])
        with pytest.raises(QuantArrayError):
            ours.read(tmp_path / "y")


def test_mutated_headers_raise_nothing_else(tmp_path):
    write(tmp_path / "x", {"a": np.arange(3.0), "b": np.ones(3, ml_dtypes.bfloat16)}, {"k": "v"})
    whole = (tmp_path / "x").read_bytes()
    random_ = random.Random(0)
    for _ in range(2000):
        raw = bytearray(whole)
        for _ in range(random_.randint(1, 3)):
            raw[random_.randrange(len(raw))] = random_.choice(b'0129{}[]",:-e\\u\0\xff')
        (tmp_path / "y").write_bytes(raw)
        try:
            found = ours.read(tmp_path / "y")
            for name in found.specs:
                found.array(name)
            found.check_header()
        except QuantArrayError:
            pass


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(st.sampled_from(sorted(NUMPY_NAMES)), st.lists(st.integers(0, 4), max_size=4)),
        max_size=6,
    ),
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])).filter(lambda key: key != ours.CHECKSUM),
        st.text(st.characters(exclude_categories=["Cs"])),
        max_size=3,
    ),
)
def test_any_names_shapes_and_metadata_round_trip(tmp_path, tensors, metadata):
    specs = {name: Spec(code, tuple(shape)) for name, (code, shape) in tensors.items()}
    given_ = {name: memoryview(bytes([i]) * specs[name].nbytes) for i, name in enumerate(specs)}
    ours.write(tmp_path / "x", specs, given_.items(), lambda sums: metadata)
    found = ours.read(tmp_path / "x")
    found.check_header()
    assert dict(found.specs) == specs
    assert {k: v for k, v in found.metadata.items() if k != ours.CHECKSUM} == metadata
    assert all(bytes(found.raw(name)) == bytes(data) for name, data in given_.items())
    assert {name for name, _ in safetensors.deserialize((tmp_path / "x").read_bytes())} == set(
        specs
    )
