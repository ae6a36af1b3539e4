"""Arrays and quantized arrays in GGUF files: what `save` is given is what `load` gives."""

import os
import struct

import ml_dtypes
import numpy as np
import pytest
from gguf_files import ARRAY, F32, STRING, U8, U32, array, gguf, info, key
from helpers import LAYOUTS, lay_out

import quantarray as qa
from quantarray import QuantArrayError, io
from quantarray.io import files
from quantarray.io import gguf as container
from quantarray.records import RECORDS

pytestmark = pytest.mark.backend_independent

RNG = np.random.default_rng(5)
X = RNG.standard_normal((4, 256), dtype=np.float32)
# By type of ggml, a dtype of NumPy.
PLAIN = {
    "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64,
    "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
}  # fmt: skip
METADATA = {
    "general.architecture": "llama",
    "general.alignment": np.uint32(64),
    "u8": np.uint8(255),
    "i64": np.int64(-(2**63)),
    "f32": np.float32(0.1),
    "f64": np.float64(0.1),
    "bool": True,
    "text": "größe 大",
    "not text": "\udcff",
    "numbers": np.arange(5, dtype=np.int16),
    "no numbers": np.zeros(0, np.float32),
    "bools": np.array([True, False]),
    "texts": ["a", "", "ü"],
    "no texts": [],
}


def random_blocks(name, rows=3):
    """A quantized array of a type of ggml, of any bytes."""
    record = RECORDS[name]
    data = RNG.integers(0, 256, (rows, 2 * record.size), np.uint8)
    shape = (rows, 2 * record.elements)
    scheme = qa.scheme(f"gguf:{name.lower()}")
    return qa.QuantizedArray.from_parts({"data": data}, scheme, shape, "float32")


def same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, qa.QuantizedArray):
        assert found.scheme == expected.scheme
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        same(found.data, expected.data)
        same(found.dequantize(), expected.dequantize())
    else:
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()


def same_metadata(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert type(found[name]) is type(value)
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)
        else:
            assert found[name] == value


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.gguf"


def test_every_plain_dtype_comes_back(path):
    tensors = {
        name: RNG.integers(0, 256, 24 * np.dtype(dtype).itemsize, np.uint8).view(dtype)
        for name, dtype in PLAIN.items()
    }
    tensors = {name: x.reshape(2, 3, 4) for name, x in tensors.items()}
    qa.save(path, tensors)
    found = qa.load(path)
    assert {name: spec.dtype for name, spec in found.container.specs.items()} == {
        name: name for name in PLAIN
    }
    for name, x in tensors.items():
        same(found[name], x)
        with pytest.raises(ValueError, match="read-only"):
            found[name][...] = 0


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (0, 3), (3, 0), (2, 1, 3, 2)], ids=str)
def test_every_number_of_axes_comes_back(path, shape):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    qa.save(path, {"before": X, "x": x, "after": X})
    found = qa.load(path)
    same(found["x"], x)
    same(found["after"], X)


@pytest.mark.parametrize("name", RECORDS)
def test_every_block_type_comes_back(path, name):
    q = random_blocks(name)
    qa.save(path, {"before": X[0, :3], "q": q})
    found = qa.load(path)
    assert found.container.specs["q"] == container.Spec(name, q.shape)
    same(found["q"], q)
    with pytest.raises(ValueError, match="read-only"):
        found["q"].data[...] = 0


def test_a_quantized_tensor_is_one_tensor_of_its_name(path):
    q = qa.quantize(X[None].repeat(3, 0), "gguf:q4_k")
    qa.save(path, {"w": q, "w.data": X})
    found = qa.load(path)
    assert list(found.container.specs) == ["w", "w.data"]
    same(found["w"], q)
    same(found["w.data"], X)
    assert found["w"].dtype == np.float32


def test_the_original_dtype_is_forgotten(path):
    q = qa.quantize(X.astype(np.float16), "gguf:q8_0")
    assert q.dtype == np.float16
    qa.save(path, {"w": q})
    found = qa.load(path)["w"]
    assert found.dtype == np.float32
    same(found.data, q.data)


def test_tensors_are_read_when_asked_for_and_not_copied(path, monkeypatch):
    read = []
    raw = container.Container.raw

    def noted(self, name):
        read.append(name)
        return raw(self, name)

    monkeypatch.setattr(container.Container, "raw", noted)
    qa.save(path, {"plain": X, "bf": X.astype(ml_dtypes.bfloat16), "q": random_blocks("Q6_K")})
    found = qa.load(path)
    assert (list(found), len(found), read) == (["plain", "bf", "q"], 3, [])
    mapped = np.frombuffer(found.container.file.view, np.uint8)
    for x in (found["q"].data, found["plain"], found["bf"].view(np.uint16)):
        assert np.shares_memory(x, mapped)
    assert set(read[:2]) == {"q"}
    with pytest.raises(KeyError):
        found["absent"]


def test_order_and_metadata_are_kept(path):
    names = ["z", "a", "größe 大", "m.weight", ""]
    qa.save(path, {name: X[:1] + i for i, name in enumerate(names)}, METADATA)
    found = qa.load(path)
    assert list(found) == names
    same_metadata(found.metadata, METADATA)
    for i, name in enumerate(names):
        same(found[name], X[:1] + i)


def test_the_bytes_are_those_of_the_format(path):
    q = qa.quantize(X[:2, :64], "gguf:q8_0")
    q_bytes, half = q.data.tobytes(), X[0, :3].astype(np.float16)
    assert len(q_bytes) == 136
    qa.save(
        path,
        {"q": q, "half": half},
        {"text": "ü", "n": np.uint32(7), "list": ["a"], "raw": np.arange(3, dtype=np.uint8)},
    )
    keys = [
        key("text", STRING, "ü"),
        key("n", U32, 7),
        key("list", ARRAY, array(STRING, ["a"])),
        key("raw", ARRAY, array(U8, [0, 1, 2])),
    ]
    infos = [info("q", (64, 2), 8, 0), info("half", (3,), 1, 160)]
    data = q_bytes + bytes(24) + half.tobytes() + bytes(26)
    assert path.read_bytes() == gguf(keys, infos, data)


def test_a_name_ends_in_gguf_in_any_case(tmp_path):
    qa.save(tmp_path / "x.GGUF", {"w": X})
    assert (tmp_path / "x.GGUF").read_bytes()[:4] == b"GGUF"
    qa.save(str(tmp_path / "gguf"), {"w": X})
    assert (tmp_path / "gguf").read_bytes()[8:10] == b'{"'


def test_what_a_file_is_called_does_not_matter_to_load(tmp_path):
    qa.save(tmp_path / "x.gguf", {"w": X})
    os.rename(tmp_path / "x.gguf", tmp_path / "x.safetensors")
    same(qa.load(tmp_path / "x.safetensors")["w"], X)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout_and_byte_order(path, layout):
    x = lay_out(X, layout)
    qa.save(path, {"w": x, "swapped": x.astype(">f4")})
    found = qa.load(path)
    same(found["w"], X)
    same(found["swapped"], X)


def test_saving_over_the_file_being_read(path):
    q = random_blocks("IQ2_XXS")
    qa.save(path, {"w": X, "q": q}, {"a": np.uint8(1)})
    found = qa.load(path)
    w = found["w"]
    qa.save(path, {"q": found["q"], "v": w * 2, "w": w}, found.metadata)
    same(w, X)
    same(found["q"], q)
    again = qa.load(path)
    assert list(again) == ["q", "v", "w"]
    same(again["q"], q)
    same(again["v"], X * 2)
    same(again["w"], X)
    same_metadata(again.metadata, {"a": np.uint8(1)})
    assert os.listdir(path.parent) == ["x.gguf"]


class Named:
    """An array as far as its header goes."""

    def __init__(self, dtype, shape):
        self.dtype, self.shape = np.dtype(dtype), shape


REFUSED = [
    ({"w": qa.quantize(X, "int8")}, None, "tensor 'w': a GGUF file holds ggml's types, not int8"),
    ({"w": qa.quantize(X, "mxfp4")}, None, "not mxfp4: expected a scheme gguf:..., such as"),
    ({"w": np.ones(2, bool)}, None, "tensor 'w': type 'BOOL' is unknown, in a GGUF file"),
    ({"w": np.ones(2, np.uint8)}, None, "tensor 'w': type 'U8' is unknown"),
    ({"w": np.ones(2, np.uint64)}, None, "tensor 'w': type 'U64' is unknown"),
    ({"w": np.ones(2, np.complex64)}, None, "tensor 'w': type 'C64' is unknown"),
    ({"w": np.ones(2, np.complex128)}, None, "tensor 'w': dtype complex128 cannot be stored"),
    ({"w": np.ones(2, ml_dtypes.float8_e5m2)}, None, "tensor 'w': type 'F8_E5M2' is unknown"),
    ({"w\x1b": np.ones((1,) * 5)}, None, r"tensor 'w\x1b': 5 axes are above the limit of 4"),
    ({"w": Named("f4", (2**40, 2**40))}, None, "tensor 'w': shape"),
    ({"w": [1.0]}, None, "'w' is a list, not an array"),
    ({3: X}, None, "tensor name 3 must be str"),
    ({"\ud800": X}, None, r"tensor '\ud800': "),
    ({"a\0b": X}, None, r"tensor 'a\x00b': it holds a null character"),
    ({"w": X}, {"a\n": 1}, r"metadata 'a\n': a value of type int does not say its type"),
    ({"w": X}, {"a": 1.5}, "metadata 'a': a value of type float"),
    ({"w": X}, {"a": None}, "metadata 'a': a value of type NoneType"),
    ({"w": X}, {"a": np.float16(1)}, "metadata 'a': dtype float16 is not one of the format's"),
    ({"w": X}, {"a": [1, 2]}, "metadata 'a': "),
    ({"w": X}, {1: "a"}, "metadata '1': "),
    ({"w": X}, {"": "a"}, "metadata '': it is empty"),
    ({"w": X}, {"general.alignment": np.uint32(3)}, "must be a power of 2"),
    ({"w": X}, {"general.alignment": "32"}, "must be of type uint32"),
]


@pytest.mark.parametrize(("tensors", "metadata", "message"), REFUSED)
def test_what_cannot_be_saved(path, tensors, metadata, message):
    with pytest.raises(QuantArrayError) as caught:
        qa.save(path, tensors, metadata)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert not os.listdir(path.parent)


def test_a_gguf_file_has_no_checksums_to_verify(path):
    qa.save(path, {"w": X})
    with pytest.raises(QuantArrayError, match="holds no checksums to verify"):
        io.verify(path)


def test_a_broken_file_is_refused_when_it_is_opened(path):
    path.write_bytes(gguf([key("a", F32, 1)], [info("w", (2,))], struct.pack("<2f", 1, 2))[:-1])
    with pytest.raises(QuantArrayError, match=r"x.gguf: tensor 'w': its 8 bytes end at \d+"):
        qa.load(path)


def test_any_failing_call_of_save_leaves_the_old_file_or_the_new_one(path, monkeypatch):
    tensors = {"w": X, "q": random_blocks("Q4_0")}
    qa.save(path, tensors, METADATA)
    after = path.read_bytes()
    failures = left = 0

    def call(function, *args, **kwargs):
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(28, "No space left on device")
        return function(*args, **kwargs)

    monkeypatch.setattr(files, "call", call)
    for n in range(1, 100):
        path.write_bytes(b"old")
        left = n
        try:
            qa.save(path, tensors, METADATA)
        except OSError:
            failures += 1
            assert path.read_bytes() in (b"old", after)
            assert os.listdir(path.parent) == ["x.gguf"]
        else:
            break
    assert failures >= 10
    assert path.read_bytes() == after
