"""GGUF files against gguf-py, in both directions, and against ggml's own reader where it is."""

import ctypes
import os

import numpy as np
import pytest

if not os.environ.get("QUANTARRAY_ORACLES"):
    pytest.skip("owners' packages: run by `nox -s oracles`", allow_module_level=True)

import ggml_library

from quantarray.io import gguf as ours
from quantarray.io.gguf import Spec
from quantarray.io.gguf_types import TYPES
from quantarray.io.gguf_values import DTYPES
from quantarray.records import RECORDS

theirs = pytest.importorskip("gguf")
pytestmark = pytest.mark.backend_independent

TYPE = theirs.GGMLQuantizationType
VALUE = theirs.GGUFValueType
RNG = np.random.default_rng(0)


def written(path, alignment=None, tensors=True):
    """A file by gguf-py of all it writes."""
    writer = theirs.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        info = np.iinfo(name)
        getattr(writer, f"add_{name}")(f"max.{name}", info.max)
        getattr(writer, f"add_{name}")(f"min.{name}", info.min)
        kind = getattr(VALUE, name.upper())
        writer.add_key_value(f"some.{name}", [0, info.max], VALUE.ARRAY, kind)
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_string("text", "größe 大 😀")
    writer.add_array("floats", [0.5, -2.0])
    writer.add_array("bools", [True, False])
    writer.add_array("texts", ["a", "", "ü", b"\xff"])
    writer.add_array("bytes", bytes(range(256)))
    writer.add_array("arrays", [[1, 2], ["x"], [[0.5]]])
    writer.add_chat_template("{{ x }}")
    expected = {}
    for dtype in (np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64):
        name = np.dtype(dtype).name
        expected[name] = RNG.integers(-9, 9, (2, 3, 5)).astype(dtype)
        writer.add_tensor(name, expected[name])
    for name, record in RECORDS.items():
        if name in TYPE.__members__:
            shape = (3, 2 * record.size)
            expected[name] = RNG.integers(0, 256, shape, np.uint8)
            writer.add_tensor(name, expected[name], raw_dtype=TYPE[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if tensors:
        writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_we_read_what_it_writes_and_write_the_same(tmp_path, alignment):
    expected = written(tmp_path / "x", alignment)
    found = ours.read(tmp_path / "x")
    assert found.alignment == (alignment or 32)
    assert list(found.specs) == list(expected)
    for name, x in expected.items():
        np.testing.assert_array_equal(found.array(name), x)
    assert found.metadata["max.uint64"] == np.uint64(2**64 - 1)
    assert found.metadata["texts"] == ["a", "", "ü", "\udcff"]
    assert bytes(found.metadata["bytes"]) == bytes(range(256))
    assert found.metadata["arrays"][0].tolist() == [1, 2]
    tensors = ((name, found.array(name)) for name in found.specs)
    ours.write(tmp_path / "y", found.metadata, found.specs, tensors)
    assert (tmp_path / "y").read_bytes() == (tmp_path / "x").read_bytes()


def test_it_reads_what_we_write(tmp_path):
    metadata = {
        **{f"k{dtype}": np.dtype(dtype).type(1) for dtype in ("u1", "i2", "u4", "i8", "f4", "f8")},
        "general.alignment": np.uint32(64),
        "text": "größe",
        "bool": True,
        "numbers": np.arange(5, dtype=np.int16),
        "texts": ["a", "", "ü"],
    }
    names = [name for name in TYPES if name in TYPE.__members__]
    specs = {name: Spec(name, (3, 2 * TYPES[name][1])) for name in names}
    data = {name: RNG.integers(0, 256, spec.nbytes, np.uint8) for name, spec in specs.items()}
    ours.write(tmp_path / "x", metadata, specs, ((name, x.data) for name, x in data.items()))
    found = theirs.GGUFReader(tmp_path / "x")
    for name, value in metadata.items():
        expected = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        assert found.fields[name].contents() == expected
    assert [tensor.name for tensor in found.tensors] == names
    for tensor in found.tensors:
        assert tensor.tensor_type.name == tensor.name
        assert tuple(tensor.shape[::-1]) == specs[tensor.name].shape
        assert tensor.data.tobytes() == data[tensor.name].tobytes()


def test_files_without_tensors(tmp_path):
    writer = theirs.GGUFWriter(tmp_path / "x", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = ours.read(tmp_path / "x")
    assert found.metadata == {"general.architecture": "llama"}
    ours.write(tmp_path / "y", found.metadata, {}, [])
    assert theirs.GGUFReader(tmp_path / "y").fields["general.architecture"].contents() == "llama"


def test_the_tables_agree():
    for name, (number, elements, size) in TYPES.items():
        if name in TYPE.__members__:
            assert TYPE[name] == number
            assert theirs.GGML_QUANT_SIZES[TYPE[name]] == (elements, size)


class Parameters(ctypes.Structure):
    """`struct gguf_init_params`."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def header_by_ggml(path):
    """The header as ggml writes it after it read the file; None where it refuses the file."""
    _, lib = ggml_library.library()
    address = ctypes.c_void_p
    lib.gguf_init_from_file.restype = address
    lib.gguf_init_from_file.argtypes = (ctypes.c_char_p, Parameters)
    lib.gguf_get_meta_size.restype = ctypes.c_size_t
    lib.gguf_get_meta_size.argtypes = (address,)
    lib.gguf_get_meta_data.argtypes = (address, ctypes.c_char_p)
    lib.gguf_free.argtypes = (address,)
    context = lib.gguf_init_from_file(os.fsencode(path), Parameters(True, None))
    if context is None:
        return None
    header = ctypes.create_string_buffer(lib.gguf_get_meta_size(context))
    lib.gguf_get_meta_data(context, header)
    lib.gguf_free(context)
    return header.raw


@pytest.mark.skipif(ggml_library.library() is None, reason="no package has ggml's library")
@pytest.mark.parametrize("alignment", [1, 32, 256])
def test_ggml_reads_what_we_write_and_writes_the_same(tmp_path, alignment):
    path = tmp_path / "x"
    metadata = {
        **{f"k{i}": dtype.type(1) for i, dtype in DTYPES.items() if dtype.kind != "b"},
        "general.alignment": np.uint32(alignment),
        **{f"a{i}": np.asarray([0, 1, 1], dtype) for i, dtype in DTYPES.items()},
        **{f"e{i}": np.asarray([], dtype) for i, dtype in DTYPES.items()},
        "text": "größe \udcff",
        "bool": True,
        "texts": ["a", "", "ü"],
        "empty": [],
    }
    known = [name for name in TYPES if name not in RECORDS or ggml_library.has(RECORDS[name])]
    specs = {name: Spec(name, (3, 2, 2 * TYPES[name][1])) for name in known}
    if known == list(TYPES):  # older ones refuse empty tensors; none writes a last extent of 0
        specs["no columns"] = Spec("Q4_K", (2, 0))
    ours.write(path, metadata, specs, [(name, bytes(s.nbytes)) for name, s in specs.items()])
    header = header_by_ggml(path)
    assert header == path.read_bytes()[: len(header)]
    assert len(header) == ours.read(path).starts["F32"]
    path.write_bytes(path.read_bytes().replace(b"GGUF\3", b"GGUF\4"))
    assert header_by_ggml(path) is None
