"""Whole files to GGUF, from it and between: tensors, metadata, memory and faults."""

import base64
import os
import struct
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
from helpers import bits

import quantarray as qa
from quantarray import QuantArrayError
from quantarray.gguf import encode
from quantarray.gguf.encoders import ENCODERS
from quantarray.io import dequantize_file, files, measure, quantize_file, safetensors
from quantarray.io.dtypes import Spec
from quantarray.io.gguf_values import text
from quantarray.io.plan import Plan, target

pytestmark = pytest.mark.backend_independent

X = np.random.default_rng(13).standard_normal((6, 256), dtype=np.float32)
TENSORS = {
    "token_embd.weight": X,
    "blk.0.attn_norm.weight": X[0],
    "blk.0.attn_q.weight": X.astype(np.float16),
    "blk.0.ffn_up.weight": X.astype(ml_dtypes.bfloat16),
    "blk.0.ffn_down.weight": X[:, :96].astype(np.float32),
    "blk.0.ffn_up_exps.weight": np.stack([X, -X, X / 3]),
    "ids": np.arange(6, dtype=np.int32).reshape(2, 3),
    "empty.weight": X[:0],
}
PLAIN = ("blk.0.attn_norm.weight", "ids")
KINDS = ("gguf", "safetensors")


def same(found, x):
    assert (found.dtype, found.shape) == (x.dtype, x.shape)
    assert found.tobytes() == x.tobytes()


# Four ways.


@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "IQ4_NL"])
def test_files_are_quantized_and_dequantized(tmp_path, source_kind, target_kind, name):
    source, middle, back = (
        tmp_path / f"{file}.{kind}"
        for file, kind in (("a", source_kind), ("b", target_kind), ("c", source_kind))
    )
    qa.save(source, TENSORS)
    seen = []
    conversion = quantize_file(
        source, middle, qa.scheme(f"gguf:{name}".lower()), lambda *done: seen.append(done)
    )
    found = qa.load(middle)
    assert list(found) == list(TENSORS)
    for key_, x in TENSORS.items():
        if key_ in PLAIN:
            same(found[key_], x)
        else:
            assert found[key_].scheme.name == f"gguf:{name}".lower()
            assert found[key_].shape == x.shape
            assert found[key_].dtype == (np.float32 if target_kind == "gguf" else x.dtype)
            same(found[key_].data, encode(x, name))
    sizes = np.cumsum([x.nbytes for x in TENSORS.values()])
    assert seen == [(size, sizes[-1]) for size in sizes]
    assert (conversion.size_in, conversion.size_out) == (
        os.path.getsize(source),
        middle.stat().st_size,
    )
    for item, (key_, x) in zip(conversion.tensors, TENSORS.items(), strict=True):
        assert (item.before.name, item.after.name) == (key_, key_)
        assert item.copied == (item.noise is None) == (key_ in PLAIN)
        if not item.copied:
            x64 = x.astype(np.float64)
            decoded = qa.quantize(x, f"gguf:{name}".lower()).dequantize().astype(np.float64)
            np.testing.assert_allclose(item.signal, np.sum(x64**2), rtol=1e-12)
            np.testing.assert_allclose(item.noise, np.sum((x64 - decoded) ** 2), rtol=1e-12)
    conversion = dequantize_file(middle, back)
    again = qa.load(back)
    assert list(again) == list(TENSORS)
    for item, (key_, x) in zip(conversion.tensors, TENSORS.items(), strict=True):
        assert item.copied == (key_ in PLAIN)
        assert item.noise is None
        plain = found[key_]
        same(again[key_], plain if key_ in PLAIN else plain.dequantize())
        assert key_ in PLAIN or again[key_].shape == x.shape


def test_quantized_tensors_are_copied_from_one_kind_of_file_to_another(tmp_path):
    tensors = {f"{name}.weight": qa.quantize(X, f"gguf:{name}".lower()) for name in ENCODERS} | {
        "half.weight": qa.quantize(X.astype(np.float16), "gguf:q8_0"),
        "x": X,
        "n": X[0],
    }
    qa.save(tmp_path / "a.safetensors", tensors)
    nothing = Plan(target("gguf:q4_0"), exclude=("*",))
    for source, to in ("ab", "bc", "cd"):
        kinds = {"a": "safetensors", "b": "gguf", "c": "safetensors", "d": "gguf"}
        conversion = quantize_file(
            tmp_path / f"{source}.{kinds[source]}", tmp_path / f"{to}.{kinds[to]}", nothing
        )
        assert all(item.copied for item in conversion.tensors)
        found = qa.load(tmp_path / f"{to}.{kinds[to]}")
        assert list(found) == list(tensors)
        for name, q in tensors.items():
            if isinstance(q, qa.QuantizedArray):
                assert found[name].scheme == q.scheme
                same(found[name].data, q.data)
            else:
                same(found[name], q)
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "d.gguf").read_bytes()


def test_in_may_be_out(tmp_path):
    path = tmp_path / "x.gguf"
    qa.save(path, TENSORS)
    quantize_file(path, path, qa.scheme("gguf:q8_0"))
    same(qa.load(path)["token_embd.weight"].data, encode(X, "Q8_0"))
    dequantize_file(path, path)
    same(qa.load(path)["token_embd.weight"], qa.fake_quantize(X, "gguf:q8_0"))
    assert os.listdir(tmp_path) == ["x.gguf"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((2, 2), np.uint8), r"tensor 'w\x1b': type 'U8' is unknown, in a GGUF file"),
        (np.ones((2, 2), bool), r"tensor 'w\x1b': type 'BOOL' is unknown"),
        (np.ones((1,) * 5, np.float32), r"tensor 'w\x1b': 5 axes are above the limit of 4"),
        (qa.quantize(X, "int8"), r"tensor 'w\x1b': a GGUF file holds ggml's types, not int8"),
    ],
)
@pytest.mark.parametrize("convert", [quantize_file, dequantize_file])
def test_what_gguf_does_not_hold_is_refused_by_name(tmp_path, value, message, convert):
    source, to = tmp_path / "in", tmp_path / "out.gguf"
    qa.save(source, {"fine": X, "w\x1b": value})
    more = [qa.scheme("gguf:q8_0")] if convert is quantize_file else []
    if convert is dequantize_file and isinstance(value, qa.QuantizedArray):
        convert(source, to)
        same(qa.load(to)["w\x1b"], value.dequantize())
        return
    with pytest.raises(QuantArrayError) as caught:
        convert(source, to, *more)
    assert message in str(caught.value)
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_what_no_type_holds_is_refused_by_name(tmp_path, value):
    bad = X.copy()
    bad[2, 3] = value
    qa.save(tmp_path / "in.gguf", {"a.weight": X, "b\n.weight": bad})
    with pytest.raises(QuantArrayError, match=r"^tensor 'b\\n.weight': .*1"):
        quantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", qa.scheme("gguf:q4_k"))
    assert os.listdir(tmp_path) == ["in.gguf"]


# Metadata.

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
DECODED_ONLY = {
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
    expected = {k: v for k, v in MODEL.items() if not k.startswith("split.") or k == "split.other"}
    expected["general.file_type"] = file_type
    expected["general.quantization_version"] = 2
    assert dict(found) == expected
    for name in ("general.file_type", "general.quantization_version"):
        assert type(found[name]) is np.uint32


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize(("name", "file_type"), DECODED_ONLY.items(), ids=DECODED_ONLY)
def test_a_model_of_a_type_that_is_only_decoded(tmp_path, name, file_type):
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


# Memory.


def peak(function, *arguments):
    """Bytes allocated at once while a function runs."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_one_tensor_is_in_memory_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "_PIECE", 1 << 14)
    x = np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32)
    peaks = {}
    for count in (2, 8):
        one, other, last = (tmp_path / name for name in ("a.gguf", "b.gguf", "c.safetensors"))
        qa.save(one, {f"{i}.weight": x for i in range(count)})
        steps = [
            (quantize_file, one, other, qa.scheme("gguf:q8_0")),
            (dequantize_file, other, last),
            (quantize_file, last, other, Plan("F16")),
            (quantize_file, one, other, Plan("F32")),
        ]
        for step in steps:  # what is compiled on the first call stays
            step[0](*step[1:])
        peaks[count] = [peak(*step) for step in steps]
    for few, many in zip(*peaks.values(), strict=True):
        assert many < few + (64 << 10)
        assert many < 2.5 * x.nbytes
    assert peak(lambda: [np.array(array) for array in qa.load(one).values()]) > 8 * x.nbytes


def test_the_error_does_not_depend_on_the_pieces(tmp_path, monkeypatch):
    qa.save(tmp_path / "a.gguf", TENSORS)
    plan = Plan(target("gguf:q4_k"), schemes=(("*norm*", target("gguf:q8_0")),))
    whole = quantize_file(tmp_path / "a.gguf", tmp_path / "b.gguf", plan)
    monkeypatch.setattr(measure, "_PIECE", 1)
    rows = quantize_file(tmp_path / "a.gguf", tmp_path / "c.gguf", plan)
    assert sum(item.noise is not None for item in whole.tensors) == len(TENSORS) - 1
    for a, b in zip(whole.tensors, rows.tensors, strict=True):
        if a.noise is not None:
            np.testing.assert_allclose((a.signal, a.noise), (b.signal, b.noise), rtol=1e-12)


# Faults.


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("source", "to", "convert"),
    [
        ("in.gguf", "in.gguf", "quantize"),
        ("in.gguf", "out.gguf", "quantize"),
        ("in.safetensors", "out.gguf", "quantize"),
        ("in.gguf", "out.safetensors", "quantize"),
        ("q.gguf", "q.gguf", "dequantize"),
        ("q.gguf", "out.safetensors", "dequantize"),
    ],
)
def test_any_failing_call_leaves_the_old_file_or_the_new_one(
    tmp_path, monkeypatch, error, source, to, convert
):
    tensors = {"a.weight": X, "a_norm.weight": X[0], "b.weight": X[:, :96]}
    if convert == "dequantize":
        tensors |= {"a.weight": qa.quantize(X, "gguf:q4_k")}
    qa.save(tmp_path / source, tensors, MODEL if source.endswith("gguf") else {})
    before = (tmp_path / source).read_bytes()

    def run(target_):
        if convert == "dequantize":
            dequantize_file(tmp_path / source, target_)
        else:
            quantize_file(tmp_path / source, target_, qa.scheme("gguf:q8_0"))

    run(tmp_path / f"after.{to}")
    after = (tmp_path / f"after.{to}").read_bytes()
    os.unlink(tmp_path / f"after.{to}")
    old = before if source == to else b"old"
    failures = left = 0

    def call(function, *args, **kwargs):
        nonlocal left
        left -= 1
        if left == 0:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(files, "call", call)
    for n in range(1, 100):
        (tmp_path / source).write_bytes(before)
        (tmp_path / to).write_bytes(old)
        left = n
        try:
            run(tmp_path / to)
        except type(error):
            failures += 1
            assert (tmp_path / to).read_bytes() in (old, after)
            assert sorted(os.listdir(tmp_path)) == sorted({source, to})
        else:
            break
    assert failures >= 15
    assert (tmp_path / to).read_bytes() == after


def test_a_missing_folder(tmp_path):
    qa.save(tmp_path / "a.gguf", {"a.weight": X})
    with pytest.raises(QuantArrayError, match=r"no/b.gguf: the folder does not exist"):
        quantize_file(tmp_path / "a.gguf", tmp_path / "no" / "b.gguf", qa.scheme("gguf:q8_0"))
    with pytest.raises(FileNotFoundError):
        dequantize_file(tmp_path / "no.gguf", tmp_path / "b.gguf")
    assert os.listdir(tmp_path) == ["a.gguf"]


def test_a_flipped_bit_of_safetensors_is_found(tmp_path):
    qa.save(tmp_path / "in", {"a": X, "b": qa.quantize(X, "gguf:q8_0")})
    raw = bytearray((tmp_path / "in").read_bytes())
    raw[qa.load(tmp_path / "in").container.starts["b.data"]] ^= 1
    (tmp_path / "in").write_bytes(raw)
    for convert in (dequantize_file, lambda *p: quantize_file(*p, qa.scheme("gguf:q8_0"))):
        with pytest.raises(QuantArrayError, match=r"tensor 'b.data': checksum is .* \(at byte"):
            convert(tmp_path / "in", tmp_path / "out.gguf")
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("name", ["q4_0", "q4_k", "iq2_xxs", "mxfp4", "tq1_0"])
def test_hostile_blocks_are_dequantized_as_ever(tmp_path, name):
    scheme = qa.scheme(f"gguf:{name}")
    record = scheme.record
    data = np.random.default_rng(1).integers(0, 256, (8, 4 * record.size), np.uint8)
    data[0] = 255  # NaN for scales of float16
    shape = (8, 4 * record.elements)
    q = qa.QuantizedArray.from_parts({"data": data}, scheme, shape, "float32")
    qa.save(tmp_path / "a.gguf", {"w": q})
    dequantize_file(tmp_path / "a.gguf", tmp_path / "b.gguf")
    found = qa.load(tmp_path / "b.gguf")["w"]
    np.testing.assert_array_equal(bits(found), bits(q.dequantize()))
