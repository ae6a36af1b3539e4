"""Importance matrices: the numbers that llama-quantize takes from such a file."""

import numpy as np
import pytest
from gguf_files import ARRAY, STRING, U8, U32, array, gguf, info, key, string

from quantarray.errors import QuantArrayError
from quantarray.io import gguf as ours
from quantarray.io.gguf import Spec
from quantarray.io.imatrix import read_imatrix

pytestmark = pytest.mark.backend_independent

METADATA = {
    "general.type": "imatrix",
    "imatrix.datasets": ["wiki.txt"],
    "imatrix.chunk_count": np.uint32(10),
    "imatrix.chunk_size": np.uint32(512),
}


def put(path, tensors, metadata=METADATA):
    data = {name: np.asarray(x) for name, x in tensors.items()}
    names = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}
    specs = {name: Spec(names[x.dtype], x.shape) for name, x in data.items()}
    ours.write(path, metadata, specs, data.items())
    return path


def floats(values):
    return np.asarray(values, np.float32)


def entry(sums, counts, name="w"):
    return {f"{name}.in_sum2": floats(sums), f"{name}.counts": floats(counts)}


def test_sums_are_divided_by_counts(tmp_path):
    sums = np.random.default_rng(0).random((4, 96), np.float32) * 1e4
    file = entry(sums[0], [1537], "blk.0.attn_q.weight") | entry(
        sums, [[3], [0], [2**24], [1]], "blk.0.ffn_up_exps.weight"
    )
    found = read_imatrix(put(tmp_path / "x", file))
    assert list(found) == ["blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"]
    plain, experts = found.values()
    assert (plain.dtype, plain.shape) == (np.float32, (96,))
    assert plain.tobytes() == (sums[0] / np.float32(1537)).tobytes()
    assert (experts.dtype, experts.shape) == (np.float32, (4, 96))
    assert experts[0].tobytes() == (sums[0] / np.float32(3)).tobytes()
    assert (experts[1] == 1).all()
    assert experts[2].tobytes() == (sums[2] / np.float32(2**24)).tobytes()
    assert experts[3].tobytes() == sums[3].tobytes()


@pytest.mark.parametrize(
    ("count", "value"),
    [(0, 1), (-0.0, 1), (0.49, 1), (0.5, 12), (1.5, 6), (2.5, 4), (2.4, 6), (1e20, 12e-20)],
)
def test_counts_are_rounded_half_away_from_zero(tmp_path, count, value):
    found = read_imatrix(put(tmp_path / "x", entry([12, 12], [count])))
    np.testing.assert_array_equal(found["w"], floats([value] * 2))


@pytest.mark.parametrize(
    ("sums", "counts", "shape"),
    [
        ((5,), (1,), (5,)),
        ((1, 5), (1, 1), (5,)),
        ((3, 5), (3, 1), (3, 5)),
        ((3, 1), (3, 1), (3, 1)),
        ((2, 3, 5), (2, 3, 1), (6, 5)),
        ((3, 5), (3,), (3, 5)),
    ],
)
def test_shapes(tmp_path, sums, counts, shape):
    file = entry(np.full(sums, 8), np.full(counts, 2))
    found = read_imatrix(put(tmp_path / "x", file))["w"]
    assert found.shape == shape
    assert (found == 4).all()
    assert found.flags.writeable


def test_other_tensors_and_keys_are_left_out(tmp_path):
    file = {"a": floats([1]), **entry([4], [2]), "in_sum2": floats([-1])}
    found = read_imatrix(put(tmp_path / "x", file, {"k": True, "general.type": "imatrix"}))
    assert {name: x.tolist() for name, x in found.items()} == {"w": [2]}


def test_counts_may_come_first(tmp_path):
    file = dict(reversed(entry([4], [2]).items()))
    assert read_imatrix(put(tmp_path / "x", file))["w"].tolist() == [2]


def test_bytes_as_llama_imatrix_writes_them(tmp_path):
    keys = [
        key("general.type", STRING, string("imatrix")),
        key("imatrix.datasets", ARRAY, array(STRING, ["a.txt"])),
        key("imatrix.chunk_count", U32, 1),
        key("imatrix.chunk_size", U32, 512),
    ]
    infos = [info("w.in_sum2", (3, 2)), info("w.counts", (1, 2), offset=32)]
    data = floats([2, 4, 6, 1, 1, 1]).tobytes() + bytes(8) + floats([2, 0]).tobytes() + bytes(24)
    (tmp_path / "x").write_bytes(gguf(keys, infos, data))
    assert read_imatrix(tmp_path / "x")["w"].tolist() == [[1, 2, 3], [1, 1, 1]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1])
@pytest.mark.parametrize("part", ["in_sum2", "counts"])
def test_numbers_that_cannot_be(tmp_path, value, part):
    file = entry(np.ones((2, 3)), np.ones((2, 1)))
    file[f"w.{part}"][1, 0] = value
    index = 3 if part == "in_sum2" else 1
    message = rf"tensor 'w\.{part}': number {index} is {value}.* finite and not negative \(at byte"
    with pytest.raises(QuantArrayError, match=message):
        read_imatrix(put(tmp_path / "x", file))


TYPE = {"general.type": "imatrix"}
WRONG = {
    "no type": (entry([1], [1]), {}, "it has no metadata 'general.type'"),
    "a model": (entry([1], [1]), {"general.type": "model"}, "must be 'imatrix', got 'model'"),
    "type a number": (
        entry([1], [1]),
        {"general.type": np.uint8(1)},
        "metadata 'general.type': must be 'imatrix', got np.uint8(1)",
    ),
    "no counts": ({"w.in_sum2": floats([1])}, TYPE, "'w.in_sum2': there is no 'w.counts' beside"),
    "no sums": ({"w.counts": floats([1])}, TYPE, "'w.counts': there is no 'w.in_sum2' beside it"),
    "nothing": ({}, TYPE, "it holds no importances"),
    "other names": ({"w": floats([1])}, TYPE, "it holds no importances"),
    "too few counts": (entry(np.ones((3, 5)), [1]), TYPE, "shape [3, 5] has 3 rows, 'w.counts' 1"),
    "many counts": (entry(np.ones(5), np.ones((5, 1))), TYPE, "[5] has 1 rows, 'w.counts' 5"),
    "no sums in it": (entry(np.ones((1, 0)), [1]), TYPE, "shape [1, 0] holds no row of numbers"),
    "no experts": (entry(np.ones((0, 4)), np.ones((0, 1))), TYPE, "shape [0, 4] holds no row"),
    "no count in it": (entry([1], []), TYPE, "'w.counts': shape [0] holds no row of numbers"),
    "a scalar": (entry(1, [1]), TYPE, "'w.in_sum2': shape [] holds no row of numbers"),
    "float16": (
        {"w.in_sum2": np.ones(2, np.float16), "w.counts": floats([1])},
        TYPE,
        "'w.in_sum2': must be of type F32, got F16",
    ),
    "ESC": ({"\x1b.counts": floats([1])}, TYPE, r"'\x1b.counts': there is no '\x1b.in_sum2'"),
}


@pytest.mark.parametrize(("tensors", "metadata", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_importance_matrix(tmp_path, tensors, metadata, message):
    path = put(tmp_path / "x\x1b", tensors, metadata)
    with pytest.raises(QuantArrayError) as caught:
        read_imatrix(path)
    assert message in str(caught.value)
    assert r"x\x1b: " in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("data", [b"", b"\2\0\0\0\1\0\0\0w", b"GGU"])
def test_the_older_form_is_refused(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(
        QuantArrayError, match=r"not a GGUF file \(at byte 0\); an older importance"
    ):
        read_imatrix(tmp_path / "x")


def test_a_broken_file_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(gguf([key("k", U8, 1)], counts=(0, 2)))
    with pytest.raises(QuantArrayError, match=r"metadata count: .* \(at byte 16\)"):
        read_imatrix(tmp_path / "x")
