"""What schemes would cost on the tensors of a file: the figures are those of `quantize`."""

import json
import os

import gguf_model
import numpy as np
import pytest
from gguf_model import DOWN, EXPERTS, SUMS, TENSORS, Q, X, Y, importances, ran, reported, sqnr

import quantarray as qa
from quantarray import report
from quantarray.gguf import encode
from quantarray.io.compare import Cost, compare_file, decibels
from quantarray.io.plan import Plan, target

pytestmark = pytest.mark.backend_independent


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gguf_model.save()


def by_hand(tensors, scheme):
    """The figures of one scheme on tensors, by `quantize`."""
    pairs = {}
    for name, x in tensors.items():
        q = qa.quantize(x, scheme[name] if isinstance(scheme, dict) else scheme)
        pairs[name] = (x.astype(np.float64), q.dequantize().astype(np.float64), q.nbytes)
    signal = sum(np.sum(x**2) for x, _, _ in pairs.values())
    noise = sum(np.sum((x - y) ** 2) for x, y, _ in pairs.values())
    worst = min(pairs, key=lambda name: sqnr(*pairs[name][:2]))
    return {
        "tensors": len(pairs),
        "bits_per_element": 8 * sum(n for *_, n in pairs.values()) / sum(
            x.size for x, *_ in pairs.values()
        ),
        "sqnr_db": pytest.approx(10 * np.log10(signal / noise), rel=1e-9),
        "max_error": max(np.abs(x - y).max() for x, y, _ in pairs.values()),
        "worst_tensor": worst,
        "worst_sqnr_db": pytest.approx(sqnr(*pairs[worst][:2]), rel=1e-9),
    }  # fmt: skip


def test_compare_on_a_gguf_file(capsys):
    schemes = ["gguf:q4_k", "gguf:q8_0", "gguf:q4_0"]
    before = sorted(os.listdir())
    found = reported(capsys, "compare", "model.gguf", "--schemes", ",".join(schemes))
    quantized = {name: TENSORS[name] for name in (Q, EXPERTS, DOWN)}
    assert list(found) == ["schemes"]
    for scheme, item in zip(schemes, found["schemes"], strict=True):
        stands_in = {"gguf:q4_k": "gguf:q5_0"}.get(scheme, scheme)
        expected = by_hand(quantized, {Q: scheme, EXPERTS: scheme, DOWN: stands_in})
        assert item == {"scheme": scheme, **expected}
    out = ran(capsys, "compare", "model.gguf", "--schemes", ",".join(schemes))
    rows = [line.split() for line in out.splitlines()]
    for row, item in zip(rows[2:], found["schemes"], strict=True):
        assert row[:3] == [item["scheme"], "3", f"{item['bits_per_element']:.2f}"]
        assert row[3:5] == [f"{item['sqnr_db']:.2f}", f"{item['max_error']:.4g}"]
        assert row[5:] == [item["worst_tensor"], f"{item['worst_sqnr_db']:.2f}"]
    assert sorted(os.listdir()) == before


def test_compare_on_safetensors(capsys):
    schemes = ["int8", "nf4", "gguf:q4_0"]
    found = reported(capsys, "compare", "model.safetensors", "--schemes", ",".join(schemes))
    quantized = {name: TENSORS[name] for name in (Q, EXPERTS, DOWN)}
    for scheme, item in zip(schemes, found["schemes"], strict=True):
        assert item == {"scheme": scheme, **by_hand(quantized, scheme)}


def test_compare_takes_a_selection_and_importances(capsys):
    arguments = ["--include", "*attn*", "--include", "*exps*", "--imatrix", importances()]
    arguments += ["--exclude", "*exps*", "--schemes", "gguf:q4_0"]
    (item,) = reported(capsys, "compare", "model.gguf", *arguments)["schemes"]
    weights = SUMS / np.float32(50)
    decoded = qa.gguf.decode(encode(X, "Q4_0", weights), "Q4_0")
    assert (item["tensors"], item["worst_tensor"]) == (1, Q)
    assert item["sqnr_db"] == item["worst_sqnr_db"] == pytest.approx(sqnr(X, decoded), rel=1e-9)
    assert item["max_error"] == np.abs(X.astype(np.float64) - decoded).max()


def test_compare_counts_casts_and_not_what_is_quantized_already(capsys):
    tensors = {"a.weight": X, "b.weight": qa.quantize(X, "gguf:q4_0"), "c.weight": X[:, :48]}
    qa.save("x.gguf", tensors)
    arguments = ["--schemes", "gguf:f16,gguf:f32,gguf:q4_0", "--exclude", "b*"]
    half, single, q4 = reported(capsys, "compare", "x.gguf", *arguments)["schemes"]
    assert (half["scheme"], half["tensors"], half["bits_per_element"]) == ("gguf:f16", 2, 16)
    error = X.astype(np.float64) - X.astype(np.float16)
    assert half["max_error"] == np.abs(error).max()
    assert (single["max_error"], single["bits_per_element"]) == (0, 32)
    assert (single["sqnr_db"], single["worst_sqnr_db"]) == (None, None)  # infinite
    # Of c.weight no row is whole blocks: it would be float16.
    size = X.nbytes / 32 * 4.5 + tensors["c.weight"].size * 2
    assert q4["tensors"] == 2
    assert q4["bits_per_element"] == 8 * size / (X.size + tensors["c.weight"].size)
    assert "inf" in ran(capsys, "compare", "x.gguf", *arguments)


def test_compare_of_nothing_and_of_zeros(capsys):
    qa.save("x.gguf", {"zeros.weight": X * 0, "none.weight": X[:0], "w.weight": X})
    (item,) = reported(capsys, "compare", "x.gguf", "--schemes", "gguf:q4_0")["schemes"]
    assert (item["tensors"], item["worst_tensor"]) == (3, "w.weight")
    assert item["worst_sqnr_db"] == item["sqnr_db"] > 15
    nothing = ["compare", "x.gguf", "--schemes", "gguf:q4_0", "--include", "absent"]
    (item,) = reported(capsys, *nothing)["schemes"]
    assert item == {
        "scheme": "gguf:q4_0",
        "tensors": 0,
        "bits_per_element": None,
        "sqnr_db": None,
        "max_error": 0,
        "worst_tensor": "",
        "worst_sqnr_db": None,
    }
    assert ran(capsys, *nothing).splitlines()[-1].split() == [
        "gguf:q4_0", "0", "-", "-", "0", "-", "-"
    ]  # fmt: skip
    zeros = ["compare", "x.gguf", "--schemes", "gguf:q4_0", "--include", "z*"]
    assert ran(capsys, *zeros).splitlines()[-1].split()[-2:] == ["zeros.weight", "inf"]


def test_compare_file_tells_how_far_it_is():
    seen = []
    plans = [Plan(target(name)) for name in ("gguf:q4_0", "gguf:q8_0")]
    first, second = compare_file("model.gguf", plans, lambda *done: seen.append(done))
    assert seen == [(i + 1, 10) for i in range(10)]
    assert isinstance(first, Cost)
    assert (first.scheme, second.scheme) == ("gguf:q4_0", "gguf:q8_0")
    assert first.elements == second.elements == X.size + Y.size + X[:, :96].size
    assert first.nbytes < second.nbytes
    assert first.worst_db == pytest.approx(decibels(first.signal, first.noise), rel=0.1)


def test_decibels():
    assert decibels(100, 1) == 20
    assert decibels(0, 0) == decibels(3, 0) == float("inf")
    assert decibels(0, 2) == float("-inf")
    assert json.loads(report.as_json({"a": [decibels(1, 0), 0.5]})) == {"a": [None, 0.5]}
