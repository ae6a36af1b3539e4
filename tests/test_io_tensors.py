"""Files of quantized and plain tensors: what is saved comes back, and nothing else is believed."""

import json
import os
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import quantarray as qa
from quantarray import QuantArrayError, io
from quantarray.io import files, measure
from quantarray.io import safetensors as container
from quantarray.io.dtypes import DTYPES, Spec
from quantarray.io.layout import KEY

pytestmark = pytest.mark.backend_independent

X = np.random.default_rng(7).standard_normal((6, 70)).astype(np.float32)

QUANTIZED = {
    "per tensor": qa.quantize(X, "int8"),
    "channel": qa.quantize(X, "int8", channel_axis=0),
    "other channel": qa.quantize(X.astype(np.float64), "int8", channel_axis=1),
    "group": qa.quantize(X, "int4", group_size=32),
    "group of axis 0": qa.quantize(X, "int4", group_size=4, group_axis=0),
    "tiles": qa.quantize(X, "int6", block=(4, 32)),
    "zero points": qa.quantize(X.astype(np.float16), "uint4", group_size=32),
    "bfloat16": qa.quantize(X.astype(ml_dtypes.bfloat16), "uint8", group_size=32),
    "flat": qa.quantize(X, qa.scheme("int3", flat=100)),
    "empty": qa.quantize(X[:0], "int4", group_size=32),
    "scalar": qa.quantize(X[0, 0], "int8"),
}


def same(found, expected):
    assert type(found) is type(expected)
    if not isinstance(expected, qa.QuantizedArray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
        return
    assert found.scheme == expected.scheme
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.parts().keys() == expected.parts().keys()
    for part, array in expected.parts().items():
        same(found.parts()[part], array)
    same(found.dequantize(), expected.dequantize())


def saved(tmp_path, **tensors):
    io.save(tmp_path / "x", tensors)
    return tmp_path / "x"


def test_a_file_holds_quantized_and_plain_tensors_side_by_side(tmp_path):
    tensors = {**QUANTIZED, "plain": X, "ids": np.arange(5), "mask": np.array([True, False])}
    io.save(tmp_path / "x", tensors, {"format": "pt", "ünï": "cödé"})
    io.verify(tmp_path / "x")
    found = io.load(tmp_path / "x")
    assert found.metadata == {"format": "pt", "ünï": "cödé"}
    assert list(found) == list(tensors)
    assert len(found) == len(tensors)
    for name, expected in tensors.items():
        same(found[name], expected)
    with pytest.raises(KeyError):
        found["absent"]


def test_other_readers_see_the_parts(tmp_path):
    path = saved(tmp_path, w=QUANTIZED["zero points"], v=X)
    found = safetensors.numpy.load_file(path)
    assert set(found) == {"w.data", "w.scale", "w.zero_point", "v"}
    for part, array in QUANTIZED["zero points"].parts().items():
        same(found[f"w.{part}"], array)
    with safetensors.safe_open(path, "np") as file:
        own = json.loads(file.metadata()[KEY])
    assert own["version"] == 1
    assert qa.Scheme.from_dict(own["tensors"]["w"]["scheme"]) == QUANTIZED["zero points"].scheme
    assert own["tensors"]["w"]["shape"] == [6, 70]
    assert own["tensors"]["w"]["dtype"] == "float16"
    assert own["crc32"].keys() == found.keys()


def test_plain_files_of_other_writers_load(tmp_path):
    safetensors.numpy.save_file({"b": X, "a": np.arange(3)}, tmp_path / "x", {"format": "pt"})
    found = io.load(tmp_path / "x")
    assert found.metadata == {"format": "pt"}
    same(found["b"], X)
    same(found["a"], np.arange(3))
    with pytest.raises(QuantArrayError, match="holds no checksums"):
        io.verify(tmp_path / "x")


def test_arrays_of_a_loaded_file_are_read_only(tmp_path):
    found = io.load(saved(tmp_path, w=X, q=QUANTIZED["group"]))
    for array in (found["w"], *found["q"].parts().values()):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_saving_over_the_file_being_read(tmp_path):
    path = saved(tmp_path, w=X, q=QUANTIZED["group"])
    found = io.load(path)
    w = found["w"]
    io.save(path, {"q": found["q"], "v": found["w"] * 2, "w": found["w"]})
    same(w, X)
    same(found["q"], QUANTIZED["group"])
    again = io.load(path)
    same(again["v"], X * 2)
    same(again["w"], X)
    same(again["q"], QUANTIZED["group"])
    assert os.listdir(tmp_path) == ["x"]


def test_every_flipped_bit_is_found(tmp_path):
    path = saved(tmp_path, w=qa.quantize(X[:1, :3], "int8"), v=np.arange(3, dtype=np.int16))
    whole = path.read_bytes()
    io.verify(path)
    for at in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(QuantArrayError):
                io.verify(path)


def test_a_flipped_payload_bit_is_found_on_access(tmp_path):
    path = saved(tmp_path, v=X, w=QUANTIZED["group"])
    found = io.load(path)
    raw = bytearray(path.read_bytes())
    raw[found.container.starts["w.data"]] ^= 1
    path.write_bytes(raw)
    found = io.load(path)
    same(found["v"], X)
    with pytest.raises(QuantArrayError, match=r"tensor 'w.data': checksum is .* \(at byte \d+\)"):
        found["w"]


class Named:
    """An array as far as its header goes."""

    def __init__(self, dtype, shape):
        self.dtype, self.shape = np.dtype(dtype), shape


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"w": QUANTIZED["group"], "w.data": X}, None, "two tensors would be stored as 'w.data'"),
        ({3: X}, None, "tensor name 3 must be str"),
        ({"w": [1.0]}, None, "'w' is a list, not an array"),
        ({"w\n": "text"}, None, r"'w\n' is a str, not an array"),
        ({"w": np.array(["a"])}, None, "'w': dtype str32 cannot be stored"),
        ({"w": np.array([None])}, None, "'w': dtype object cannot be stored"),
        ({"w": np.ones(2, np.complex128)}, None, "'w': dtype complex128 cannot be stored"),
        ({"w": np.ma.masked_array(X, X > 0)}, None, "'w': a masked array"),
        ({"w": Named("f4", (float("nan"), 3))}, None, "'w' is a Named, not an array of known"),
        ({"__metadata__": X}, None, "a tensor cannot be called '__metadata__'"),
        ({"\ud800": X}, None, "not Unicode text"),
        ({"w": X}, {"a": 1}, "metadata entry 'a': expected text for text"),
        ({"w": X}, {1: "a"}, "metadata entry 1: expected text for text"),
        ({"w": X}, {KEY: "{}"}, "metadata key 'quantarray' is the layout's own"),
        ({"w": X}, {container.CHECKSUM: ""}, "is the layout's own"),
    ],
)
def test_what_cannot_be_saved(tmp_path, tensors, metadata, message):
    with pytest.raises(QuantArrayError) as caught:
        io.save(tmp_path / "x", tensors, metadata)
    assert message in str(caught.value)
    assert not os.listdir(tmp_path)


def test_float8_and_four_bit_tensors(tmp_path):
    f8 = np.arange(8, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    same(io.load(saved(tmp_path, w=f8))["w"], f8)
    container.write(
        tmp_path / "x", {"w": Spec("F4", (2,))}, [("w", memoryview(b"x"))], lambda s: {}
    )
    with pytest.raises(QuantArrayError, match="NumPy has no dtype for F4"):
        io.load(tmp_path / "x")["w"]


# Hostile metadata: a good file's, with one thing wrong.

SCHEME = QUANTIZED["zero points"].scheme.to_dict()


def record(**changes):
    return {"scheme": SCHEME, "shape": [6, 70], "dtype": "float16", **changes}


def own(**changes):
    sums = dict.fromkeys(["w.data", "w.scale", "w.zero_point", "v"], "00000000")
    return {"version": 1, "tensors": {"w": record()}, "crc32": sums, **changes}


def scheme(**changes):
    return own(tensors={"w": record(scheme={**SCHEME, **changes})})


HOSTILE = {
    "not JSON": ("{", "Expecting"),
    "a list": ("[]", "it is not an object"),
    "key twice": ('{"version":1,"version":1}', "key 'version' appears twice"),
    "deep": ('{"version":' + "[" * 50_000, "nested too deeply"),
    "no version": ("{}", "version must be a positive integer, got None"),
    "version of a bool": (own(version=True), "version must be a positive integer"),
    "version 0": (own(version=0), "version must be a positive integer"),
    "version text": (own(version="1"), "version must be a positive integer"),
    "newer": (own(version=2), "version 2 is newer than 1"),
    "newer, with more": ({"version": 7, "chunks": []}, "version 7 is newer than 1"),
    "more": (own(more=1), "must hold version, tensors and crc32, nothing else"),
    "less": ({"version": 1, "tensors": {}}, "must hold version, tensors and crc32"),
    "crc32 a list": (own(crc32=[]), "crc32 must name every stored tensor"),
    "crc32 of fewer": (own(crc32={}), "crc32 must name every stored tensor"),
    "crc32 of numbers": (own(crc32=dict.fromkeys(own()["crc32"], 0)), "8 hexadecimal digits"),
    "crc32 too long": (own(crc32=dict.fromkeys(own()["crc32"], "0" * 9)), "8 hexadecimal digits"),
    "tensors a list": (own(tensors=[]), "tensors must be an object"),
    "record a list": (own(tensors={"w": []}), "tensor 'w': must be an object of scheme"),
    "record with more": (own(tensors={"w": record(x=1)}), "nothing else"),
    "dtype unknown": (own(tensors={"w": record(dtype="float8")}), "dtype 'float8' is unknown"),
    "dtype a list": (own(tensors={"w": record(dtype=[])}), "dtype [] is unknown"),
    "dtype not floating": (own(tensors={"w": record(dtype="int8")}), "tensor 'w': "),
    "shape text": (own(tensors={"w": record(shape="670")}), "shape must be a list"),
    "shape negative": (own(tensors={"w": record(shape=[-6, -70])}), "shape must be a list"),
    "shape of another": (own(tensors={"w": record(shape=[6, 72])}), "part 'data' is U8[6, 35]"),
    "shape huge": (own(tensors={"w": record(shape=[2**62, 2**62])}), "not a possible number"),
    "shape huge and empty": (own(tensors={"w": record(shape=[0, 2**62, 9])}), "not a possible"),
    "fewer axes": (own(tensors={"w": record(shape=[])}), "tensor 'w': "),
    "missing": (own(tensors={"u": record()}), "tensor 'u': its part 'data' is missing"),
    "bad name": (own(tensors={"\x1b": record()}), r"tensor '\x1b': its part 'data' is missing"),
    "scheme text": (own(tensors={"w": record(scheme="int4")}), "tensor 'w': scheme"),
    "scheme empty": (own(tensors={"w": record(scheme={})}), "tensor 'w': scheme"),
    "scheme with more": (scheme(exec="x"), "tensor 'w': scheme: field 'exec'"),
    "element of 2^31 bits": (
        scheme(element={**SCHEME["element"], "bits": 2**31}),
        "expected an integer, 1 to 16",
    ),
    "bits of text": (scheme(element={**SCHEME["element"], "bits": "4"}), "scheme.element.bits"),
    "element of no kind": (scheme(element={"kind": "pickle"}), "scheme.element.kind"),
    "extent 0": (scheme(block={**SCHEME["block"], "axes": [[-1, 0]]}), "extent of axis -1=0"),
    "axis far out": (scheme(block={**SCHEME["block"], "axes": [[10**9, 1]]}), "axis=1000000000"),
    "axis twice": (scheme(block={**SCHEME["block"], "axes": [[1, 8], [-1, 8]]}), "named once"),
    "divisor huge": (scheme(scale={**SCHEME["scale"], "divisor": 10**400}), "divisor"),
    "divisor 0": (scheme(scale={**SCHEME["scale"], "divisor": 0}), "divisor"),
}


def with_metadata(path, text, **more):
    parts = QUANTIZED["zero points"].parts()
    tensors = {f"w.{part}": array for part, array in parts.items()} | {"v": X} | more
    specs = {name: Spec(DTYPES[x.dtype.name], x.shape) for name, x in tensors.items()}
    text = text if isinstance(text, str) else json.dumps(text)
    container.write(path, specs, tensors.items(), lambda sums: {KEY: text})
    return path


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_metadata_is_refused(tmp_path, text, message):
    path = with_metadata(tmp_path / "x\x1b", text)
    with pytest.raises(QuantArrayError) as caught:
        io.load(path)
    assert message in str(caught.value)
    assert rf"x\x1b: metadata '{KEY}': " in str(caught.value)
    assert str(caught.value).isprintable()


def test_one_name_for_a_plain_and_a_quantized_tensor_is_refused(tmp_path):
    text = own(crc32={**own()["crc32"], "w": "00000000"})
    with pytest.raises(QuantArrayError, match="'w' is stored both plain and quantized"):
        io.load(with_metadata(tmp_path / "x", text, w=X))


def test_a_part_the_scheme_does_not_have_is_a_tensor_of_its_own(tmp_path):
    path = with_metadata(tmp_path / "x", scheme(zero="none"))
    assert list(io.load(path)) == ["w", "w.zero_point", "v"]


# Whole files, converted.


def source(path):
    tensors = {
        "a.weight": X,
        "bias": X[0],
        "half": X[:3].astype(np.float16),
        "bf": X.astype(ml_dtypes.bfloat16),
        "ids": np.arange(12).reshape(3, 4),
        "stack": np.stack([X, X * 3]),
        "empty": np.zeros((0, 4), np.float32),
        "double": X.astype(np.float64),
    }
    io.save(path, tensors, {"format": "pt"})
    return tensors


@pytest.mark.parametrize("same_file", [True, False])
def test_quantize_file(tmp_path, same_file):
    tensors = source(tmp_path / "in")
    target = tmp_path / ("in" if same_file else "out")
    seen = []
    conversion = io.quantize_file(
        tmp_path / "in", target, qa.scheme("int4", group_size=32), lambda *done: seen.append(done)
    )
    io.verify(target)
    found = io.load(target)
    assert list(found) == list(tensors)
    sizes = np.cumsum([x.nbytes for x in tensors.values()])
    assert seen == [(size, sizes[-1]) for size in sizes]
    assert found.metadata == {"format": "pt"}
    for name, x in tensors.items():
        copied = name in ("bias", "ids")
        same(found[name], x if copied else qa.quantize(x, "int4", group_size=32))
    assert conversion.size_out == target.stat().st_size
    for item in conversion.tensors:
        x = tensors[item.before.name]
        if item.noise is None:
            assert x.ndim < 2 or x.dtype == np.int64
            continue
        x64 = x.astype(np.float64)
        back = found[item.before.name].dequantize().astype(np.float64)
        np.testing.assert_allclose(item.signal, np.sum(x64**2), rtol=1e-12)
        np.testing.assert_allclose(item.noise, np.sum((x64 - back) ** 2), rtol=1e-12)


@pytest.mark.parametrize("scheme", qa.schemes())
def test_every_preset_goes_through_files(tmp_path, scheme, monkeypatch):
    monkeypatch.setattr(measure, "_PIECE", 100)
    x = np.random.default_rng(1).standard_normal((24, 256), dtype=np.float32)
    io.save(tmp_path / "in", {"w": x})
    conversion = io.quantize_file(tmp_path / "in", tmp_path / "out", qa.scheme(scheme))
    q = qa.quantize(x, scheme)
    same(io.load(tmp_path / "out")["w"], q)
    noise = np.sum((x.astype(np.float64) - q.dequantize().astype(np.float64)) ** 2)
    np.testing.assert_allclose(conversion.tensors[0].noise, noise, rtol=1e-12)


def test_the_error_of_a_file_is_that_of_plain_numpy(tmp_path):
    source(tmp_path / "in")
    conversion = io.quantize_file(
        tmp_path / "in", tmp_path / "out", qa.scheme("int8", channel_axis=0)
    )
    scale = np.abs(X).max(axis=1, keepdims=True) / np.float32(127)
    codes = np.clip(np.rint(X / scale), -127, 127)
    found = io.load(tmp_path / "out")["a.weight"]
    same(found.data, codes.astype(np.int8))
    same(found.scale, scale)
    noise = np.sum((X.astype(np.float64) - (codes * scale).astype(np.float64)) ** 2)
    np.testing.assert_allclose(conversion.tensors[0].noise, noise, rtol=1e-12)


def test_the_error_does_not_depend_on_the_pieces(tmp_path, monkeypatch):
    source(tmp_path / "in")
    whole = io.quantize_file(tmp_path / "in", tmp_path / "a", qa.scheme("int8"))
    monkeypatch.setattr(measure, "_PIECE", 1)
    rows = io.quantize_file(tmp_path / "in", tmp_path / "b", qa.scheme("int8"))
    for a, b in zip(whole.tensors, rows.tensors, strict=True):
        if a.noise is not None:
            np.testing.assert_allclose((a.signal, a.noise), (b.signal, b.noise), rtol=1e-12)


def test_dequantize_file_gives_plain_tensors_of_the_original_dtypes(tmp_path):
    tensors = source(tmp_path / "in")
    io.quantize_file(tmp_path / "in", tmp_path / "q", qa.scheme("int8", channel_axis=0))
    quantized = io.load(tmp_path / "q")
    io.dequantize_file(tmp_path / "q", tmp_path / "q")
    found = io.load(tmp_path / "q")
    io.verify(tmp_path / "q")
    assert list(found) == list(tensors)
    assert found.metadata == {"format": "pt"}
    for name, x in tensors.items():
        q = quantized[name]
        same(found[name], q.dequantize() if isinstance(q, qa.QuantizedArray) else x)
        assert found[name].dtype == x.dtype


def test_a_file_quantized_twice_keeps_its_codes(tmp_path):
    source(tmp_path / "in")
    io.quantize_file(tmp_path / "in", tmp_path / "a", qa.scheme("int8"))
    io.quantize_file(tmp_path / "a", tmp_path / "b", qa.scheme("int4"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tensor_that_cannot_be_quantized_is_named_and_nothing_written(tmp_path, value):
    bad = X.copy()
    bad[2, 3] = value
    io.save(tmp_path / "in", {"good": X, "bad\x1b": bad})
    with pytest.raises(QuantArrayError, match=r"tensor 'bad\\x1b': .*1"):
        io.quantize_file(tmp_path / "in", tmp_path / "out", qa.scheme("int8"))
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("same_file", [True, False])
def test_any_failing_call_leaves_the_old_file_or_the_new_one(
    tmp_path, monkeypatch, error, same_file
):
    first = tmp_path / "in"
    target = first if same_file else tmp_path / "out"
    scheme = qa.scheme("int4", group_size=32)
    source(first)
    before = first.read_bytes()
    io.quantize_file(first, tmp_path / "out", scheme)
    after = (tmp_path / "out").read_bytes()
    failures, left = 0, 0

    def call(function, *args, **kwargs):
        nonlocal left
        left -= 1
        if left == 0:
            raise error
        return function(*args, **kwargs)

    (tmp_path / "out").unlink()
    for n in range(1, 200):
        first.write_bytes(before)
        if not same_file:
            target.write_bytes(b"old")
        left = n
        monkeypatch.setattr(files, "call", call)
        try:
            io.quantize_file(first, target, scheme)
        except type(error):
            failures += 1
            assert target.read_bytes() in (before if same_file else b"old", after)
            assert sorted(os.listdir(tmp_path)) == sorted({"in", target.name})
        else:
            break
    assert failures >= 30
    assert target.read_bytes() == after


# A child process imports what this one does, installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
KILLED = """
import os, signal, sys
import numpy as np
from quantarray import io

class Deadly(dict):
    def __getitem__(self, name):
        self.reads = getattr(self, "reads", 0) + 1
        if self.reads > len(self) + 1:  # the plan reads all; then the second tensor kills
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(name)

io.save(sys.argv[1], Deadly(a=np.ones(1000), b=np.ones(1000)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and file locks are POSIX")
def test_killed_while_saving(tmp_path):
    path = saved(tmp_path, w=X)
    old = path.read_bytes()
    died = subprocess.run([sys.executable, "-c", KILLED, path], env=ENVIRONMENT, check=False)
    assert died.returncode == -signal.SIGKILL
    assert path.read_bytes() == old
    assert len(os.listdir(tmp_path)) == 2
    saved(tmp_path, v=X)
    assert os.listdir(tmp_path) == ["x"]
    same(io.load(path)["v"], X)
