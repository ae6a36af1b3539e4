"""Metadata of GGUF files that are converted: through safetensors and back, and a model's own."""

import base64
import os
import struct

import numpy as np
import pytest
from gguf_files import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I8,
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

import quantarray as qa
from quantarray import QuantArrayError
from quantarray.io import dequantize_file, quantize_file, safetensors
from quantarray.io.dtypes import Spec
from quantarray.io.gguf_values import text
from quantarray.io.plan import Plan, target

pytestmark = pytest.mark.backend_independent

X = np.random.default_rng(13).standard_normal((6, 256), dtype=np.float32)

KEYS = [
    key("u8", U8, 255), key("i8", I8, -1), key("u16", U16, 2), key("u64", U64, 2**64 - 1),
    key("f32", F32, 0.1), key("f64", F64, 0.1), key("yes", BOOL, 1), key("text", STRING, "größe"),
    key("not text", STRING, string(b"\xff\0")),
    key("tokens", ARRAY, array(STRING, ["a", "", b"\xc3"])),
    key("none", ARRAY, array(STRING, [])), key("floats", ARRAY, array(F32, [0.5, -0.0])),
    key("bools", ARRAY, array(BOOL, [1, 0])), key("no floats", ARRAY, array(F64, [])),
    key("deep", ARRAY, array(ARRAY, [array(U8, [1]), array(ARRAY, [array(STRING, ["x"])])])),
    key("no arrays", ARRAY, array(ARRAY, [])), key("general.alignment", U32, 64),
    key("quantarray", STRING, "a key of this name"), key("gguf", STRING, "and of this"),
    key("quantarray.crc32", STRING, ""),
]  # fmt: skip


@pytest.mark.parametrize("convert", ["quantize", "dequantize"])
def test_metadata_go_through_safetensors_byte_for_byte(tmp_path, convert):
    whole = gguf(KEYS, [info("w.weight", (2, 1)), info("n", (2,), 0, 64)],
                 bytes(range(8)) + bytes(56) + bytes(8) + bytes(56), 64)  # fmt: skip
    (tmp_path / "a.gguf").write_bytes(whole)

    def run(source, to):
        if convert == "dequantize":
            dequantize_file(tmp_path / source, tmp_path / to)
        else:
            plan = Plan(target("gguf:q4_0"), exclude=("*",))
            quantize_file(tmp_path / source, tmp_path / to, plan)

    run("a.gguf", "b.gguf")
    run("a.gguf", "c.safetensors")
    run("c.safetensors", "d.safetensors")
    run("d.safetensors", "e.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == whole
    assert (tmp_path / "e.gguf").read_bytes() == whole
    assert list(qa.load(tmp_path / "d.safetensors").metadata) == ["gguf"]


def test_text_metadata_become_strings(tmp_path):
    qa.save(tmp_path / "a", {"w": X}, {"format": "pt", "größe": "x\ny"})
    dequantize_file(tmp_path / "a", tmp_path / "b.gguf")
    assert qa.load(tmp_path / "b.gguf").metadata == {"format": "pt", "größe": "x\ny"}
    dequantize_file(tmp_path / "b.gguf", tmp_path / "c")
    dequantize_file(tmp_path / "c", tmp_path / "d.gguf")
    assert (tmp_path / "d.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_file_without_metadata_stays_so(tmp_path):
    qa.save(tmp_path / "a.gguf", {"w": X})
    dequantize_file(tmp_path / "a.gguf", tmp_path / "b")
    assert qa.load(tmp_path / "b").metadata == {}


def coded(raw):
    return base64.b64encode(raw).decode()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("ü", "metadata 'gguf': "),
        ("!!!!", "metadata 'gguf': "),
        ("AAA", "metadata 'gguf': "),
        (coded(b"abc"), "metadata 'gguf': it takes 8 bytes where 3 are left"),
        (coded(struct.pack("<Q", 2**60)), "its length 1152921504606846976 is above the limit"),
        (coded(text("a")), "metadata 'gguf': it takes 4 bytes where 0 are left"),
        (coded(text("a") + struct.pack("<i", 77)), "metadata 'gguf': value type 77 is unknown"),
        (coded(text("a") + struct.pack("<iiQ", 9, 4, 2**40)), "4398046511104 bytes where 0"),
        (coded(text("") + struct.pack("<iB", 0, 0)), "metadata '': it is empty"),
        (coded(key("general.alignment", U32, 3)), "metadata 'general.alignment': must be a power"),
    ],
)
def test_hostile_metadata_in_safetensors_are_refused(tmp_path, value, message):
    specs = {"w": Spec("F32", X.shape)}
    safetensors.write(tmp_path / "in", specs, [("w", X)], lambda sums: {"gguf": value})
    for convert in (dequantize_file, lambda *p: quantize_file(*p, qa.scheme("gguf:q8_0"))):
        with pytest.raises(QuantArrayError) as caught:
            convert(tmp_path / "in", tmp_path / "out.gguf")
        assert message in str(caught.value)
        assert str(caught.value).isprintable()
        assert os.listdir(tmp_path) == ["in"]


# `enum llama_ftype` of llama.h.
FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10,
    "q3_k": 11, "q4_k": 14, "q5_k": 16, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30, "bf16": 32,
    "tq1_0": 36, "tq2_0": 37, "mxfp4": 38, "nvfp4": 39, "q1_0": 40, "q2_0": 41,
}  # fmt: skip
OF_LATTICES = {
    "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23, "iq1_s": 24, "iq3_s": 26, "iq2_s": 29, "iq1_m": 31,
}  # fmt: skip
MODEL = {
    "general.architecture": "llama",
    "general.file_type": np.uint32(1),
    "general.name": "a model",
    "split.no": np.uint16(0),
    "split.count": np.uint16(1),
    "split.tensors.count": np.int32(2),
    "split.other": "kept",
    "tokenizer.ggml.tokens": ["a", "b"],
}


def described(found, file_type):
    """Check a model's metadata after its conversion."""
    own = {"general.quantization_version": 2, "general.file_type": file_type}
    gone = ("split.no", "split.count", "split.tensors.count", *own)
    expected = {k: v for k, v in MODEL.items() if k not in gone} | own
    assert list(found.items()) == list(expected.items())
    assert {type(found[name]) for name in own} == {np.uint32}


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
@pytest.mark.parametrize(("name", "file_type"), FILE_TYPES.items(), ids=FILE_TYPES)
def test_a_model_says_what_it_is_made_of(tmp_path, name, file_type, kind):
    qa.save(tmp_path / "a.gguf", {"a.weight": X, "a_norm.weight": X[0]}, MODEL)
    if kind == "safetensors":
        dequantize_file(tmp_path / "a.gguf", tmp_path / "a.safetensors")
    plan = Plan(target(f"gguf:{name}"))
    quantize_file(tmp_path / f"a.{kind}", tmp_path / "b.gguf", plan)
    described(qa.load(tmp_path / "b.gguf").metadata, file_type)
    dequantize_file(tmp_path / "b.gguf", tmp_path / "b.gguf")
    described(qa.load(tmp_path / "b.gguf").metadata, 0)


@pytest.mark.parametrize(("name", "file_type"), OF_LATTICES.items(), ids=OF_LATTICES)
def test_a_model_of_which_nothing_is_quantized(tmp_path, name, file_type):
    qa.save(tmp_path / "a.gguf", {"a_norm.weight": X[0]}, MODEL)
    quantize_file(tmp_path / "a.gguf", tmp_path / "b.gguf", qa.scheme(f"gguf:{name}"))
    described(qa.load(tmp_path / "b.gguf").metadata, file_type)


def test_what_is_no_model_keeps_its_metadata(tmp_path):
    path, to = tmp_path / "a.gguf", tmp_path / "b.gguf"
    without = {k: v for k, v in MODEL.items() if k != "general.architecture"}
    for tensors, metadata in (({"a.weight": X}, without), ({}, MODEL)):
        qa.save(path, tensors, metadata)
        quantize_file(path, to, qa.scheme("gguf:q8_0"))
        assert list(qa.load(to).metadata.items()) == list(metadata.items())
    qa.save(path, {"a.weight": X}, {k: v for k, v in MODEL.items() if k != "general.file_type"})
    dequantize_file(path, to)
    assert list(qa.load(to).metadata) == [k for k in MODEL if k != "general.file_type"]
    dequantize_file(path, tmp_path / "c")
    assert list(qa.load(tmp_path / "c").metadata) == ["gguf"]
