"""Whole files to GGUF, from it and between: tensors, memory and faults."""

import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from helpers import bits

import quantarray as qa
from quantarray import QuantArrayError
from quantarray.gguf import encode
from quantarray.gguf.encoders import ENCODERS
from quantarray.io import dequantize_file, files, measure, quantize_file
from quantarray.io.compare import compare_file
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
# Types that are encoded without importances.
FREE = [name for name, (plain, _) in ENCODERS.items() if plain is not None]


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
    tensors = {f"{name}.weight": qa.quantize(X, f"gguf:{name}".lower()) for name in FREE} | {
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


# Memory.


def peak(function, *arguments):
    """Bytes allocated at once while a function runs."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_tensors(tmp_path, monkeypatch):
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
        assert many < 1.75 * x.nbytes  # one tensor, and pieces of it
    assert peak(lambda: [np.array(array) for array in qa.load(one).values()]) > 8 * x.nbytes


def test_the_pages_of_each_tensor_are_let_go(tmp_path, monkeypatch):
    pages = []
    release = files.Mapped.release

    def noted(self, start, stop):
        pages.append((start, stop))
        release(self, start, stop)

    monkeypatch.setattr(files.Mapped, "release", noted)
    qa.save(tmp_path / "a.gguf", TENSORS)
    held = qa.load(tmp_path / "a.gguf").container
    expected = [(held.starts[name], held.starts[name] + x.nbytes) for name, x in TENSORS.items()]
    plan = Plan(target("gguf:q8_0"))
    for run in (
        lambda: quantize_file(tmp_path / "a.gguf", tmp_path / "b.gguf", plan),
        lambda: dequantize_file(tmp_path / "a.gguf", tmp_path / "b.safetensors"),
        lambda: compare_file(tmp_path / "a.gguf", [plan], lambda *done: None),
    ):
        pages.clear()
        run()
        assert pages == expected


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
    qa.save(tmp_path / source, tensors, {"n": np.uint8(1)} if source.endswith("gguf") else {})
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
