"""The command line on GGUF files: conversions, importances, and complaints."""

import os
import pathlib
import subprocess
import sys

import gguf_model
import numpy as np
import pytest
from gguf_model import (
    DOWN,
    EXPERT_SUMS,
    EXPERTS,
    IDS,
    NORM,
    SUMS,
    TENSORS,
    Q,
    X,
    Y,
    importances,
    ran,
    reported,
    sqnr,
)

import quantarray as qa
from quantarray import cli
from quantarray.gguf import encode
from quantarray.io import safetensors
from quantarray.io.dtypes import Spec
from quantarray.io.gguf_values import Arrays

pytestmark = pytest.mark.backend_independent

# A child process imports what this one does, installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gguf_model.save()


def refused(capsys, *arguments):
    """Run a command that must fail and write nothing; give its one line of complaint."""
    before = contents()
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("quantarray: error: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    assert contents() == before
    return err


def contents():
    """What is in the folder."""
    paths = map(pathlib.Path, os.listdir())
    return {path.name: path.read_bytes() if path.is_file() else None for path in paths}


# quantize, dequantize.


def test_quantize_and_dequantize_in_processes():
    for arguments in (
        ["quantize", "model.gguf", "small.gguf", "--scheme", "gguf:q8_0"],
        ["dequantize", "small.gguf", "plain.safetensors"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "quantarray", *arguments],
            capture_output=True, text=True, check=False, env=ENVIRONMENT,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
    assert "5 tensors, 2 of them copied" in done.stdout
    for name, x in qa.load("plain.safetensors").items():
        expected = TENSORS[name]
        if name not in (NORM, IDS):
            expected = qa.quantize(expected, "gguf:q8_0").dequantize("float32")
        np.testing.assert_array_equal(x, expected)
        assert x.dtype == expected.dtype


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_quantize_to_gguf_as_json(capsys, kind):
    source = f"model.{kind}"
    found = reported(capsys, "quantize", source, "out.gguf", "--scheme", "gguf:q4_k")
    by_name = {tensor.pop("name"): tensor for tensor in found["tensors"]}
    assert list(by_name) == list(TENSORS)
    held = qa.load("out.gguf")
    for name, scheme in ((Q, "gguf:q4_k"), (EXPERTS, "gguf:q4_k"), (DOWN, "gguf:q5_0")):
        x, q = TENSORS[name], qa.quantize(TENSORS[name], scheme)
        assert by_name[name].pop("sqnr_db") == pytest.approx(sqnr(x, q.dequantize()), rel=1e-9)
        assert by_name[name] == {
            "dtype": x.dtype.name,
            "shape": list(x.shape),
            "scheme": str(q.scheme),
            "bits_per_element": q.bits_per_element,
        }
        np.testing.assert_array_equal(held[name].data, q.data)
    for name in (NORM, IDS):
        assert (by_name[name]["scheme"], by_name[name]["sqnr_db"]) == (None, None)
    sizes = [os.path.getsize(path) for path in (source, "out.gguf")]
    totals = found["totals"]
    stored = sum(spec.nbytes for spec in held.container.specs.values())
    elements = sum(x.size for x in TENSORS.values())
    assert (totals["tensors"], totals["copied"]) == (5, 2)
    assert [totals["bytes_in"], totals["bytes_out"]] == sizes
    assert totals["ratio"] == sizes[0] / sizes[1]
    assert totals["bits_per_element"] == 8 * stored / elements
    assert list(found) == ["tensors", "totals"]


def test_casts_are_named_by_dtype(capsys):
    found = reported(capsys, "quantize", "model.gguf", "out.gguf", "--scheme", "gguf:bf16")
    schemes = {tensor["name"]: tensor["scheme"] for tensor in found["tensors"]}
    assert schemes == {
        Q: "bfloat16", EXPERTS: "bfloat16", DOWN: "bfloat16", NORM: None, IDS: None
    }  # fmt: skip
    assert found["totals"]["sqnr_db"] is None
    out = ran(capsys, "quantize", "model.gguf", "out.gguf", "--scheme", "gguf:f16")
    assert [line.split()[2] for line in out.splitlines()[2:7]] == [
        "float16", "copied", "float16", "copied", "copied"
    ]  # fmt: skip
    assert "SQNR -" not in out
    assert qa.load("out.gguf").metadata["general.file_type"] == 1


def test_include_exclude_and_map(capsys):
    ran(
        capsys, "quantize", "model.gguf", "out.gguf", "--scheme", "gguf:q4_0",
        "--include", "*attn*", "--include", "*ffn*", "--exclude", "*_down*",
        "--map", "*exps*=gguf:q8_0", "--map", "*_norm.*=gguf:f16", "--map", "*=gguf:q5_1",
    )  # fmt: skip
    types = {n: spec.dtype for n, spec in qa.load("out.gguf").container.specs.items()}
    assert types == {Q: "Q5_1", EXPERTS: "Q8_0", DOWN: "Q5_1", NORM: "F16", IDS: "I32"}
    ran(
        capsys, "quantize", "model.gguf", "out.gguf", "--scheme", "gguf:q4_0",
        "--include", "*attn*", "--include", "*ffn*", "--exclude", "*_down*",
    )  # fmt: skip
    types = {n: spec.dtype for n, spec in qa.load("out.gguf").container.specs.items()}
    assert types == {Q: "Q4_0", EXPERTS: "Q4_0", DOWN: "F32", NORM: "F32", IDS: "I32"}


def test_maps_are_for_safetensors_too(capsys):
    ran(
        capsys, "quantize", "model.safetensors", "out", "--group-size", "32", "--scheme", "int4",
        "--map", "*exps*=int8", "--map", "a=b*=int8", "--exclude", "*down*",
    )  # fmt: skip
    found = qa.load("out")
    np.testing.assert_array_equal(found[Q].data, qa.quantize(X, "int4", group_size=32).data)
    np.testing.assert_array_equal(found[EXPERTS].data, qa.quantize(Y, "int8").data)
    assert found[DOWN].dtype == np.float32
    qa.save("equals", {"a=b.weight": X, "b": X})
    ran(capsys, "quantize", "equals", "equals", "--scheme", "int4", "--map", "a=b*=int8")
    assert [q.scheme.name for q in qa.load("equals").values()] == ["int8", "int4"]


@pytest.mark.parametrize("to", ["out.gguf", "out.safetensors"])
def test_an_importance_matrix(capsys, to):
    arguments = ["--scheme", "gguf:q4_k", "--exclude", "*down*", "--imatrix", importances()]
    ran(capsys, "quantize", "model.gguf", to, *arguments)
    found = qa.load(to)
    np.testing.assert_array_equal(found[Q].data, encode(X, "Q4_K", SUMS / np.float32(50)))
    weights = [EXPERT_SUMS[0] / np.float32(2), np.ones(256, np.float32), EXPERT_SUMS[2] / 4]
    for i, weight in enumerate(weights):
        np.testing.assert_array_equal(found[EXPERTS].data[i], encode(Y[i], "Q4_K", weight))
    assert found[Q].data.tobytes() != encode(X, "Q4_K").tobytes()


# inspect.


def test_inspect(capsys):
    ran(capsys, "quantize", "model.gguf", "out.gguf", "--scheme", "gguf:q6_k")
    found = reported(capsys, "inspect", "out.gguf")
    assert found["metadata"] == {
        "general.architecture": "llama",
        "n": 7,
        "few": [0, 1, 2],
        "many": list(range(99)),
        "texts": ["a", "\udcff"],
        "odd\x1b": None,
        "general.quantization_version": 2,
        "general.file_type": 18,
    }
    q = qa.quantize(X, "gguf:q6_k")
    assert found["tensors"][0] == {
        "name": Q,
        "dtype": "float32",
        "shape": [4, 256],
        "scheme": str(q.scheme),
        "bits_per_element": 6.5625,
        "bytes": q.nbytes,
    }
    assert [tensor["name"] for tensor in found["tensors"]] == list(TENSORS)
    out = ran(capsys, "inspect", "out.gguf")
    lines = out.splitlines()
    assert [IDS, "int32", "6", "-", "32.00", "24"] in [line.split() for line in lines]
    assert lines[-1] == (
        r"metadata keys: general.architecture, n, few, many, texts, odd\x1b, "
        "general.quantization_version, general.file_type"
    )


def test_nested_metadata(capsys):
    deep = Arrays([np.float32([0.5, np.nan]), ["x"], Arrays([np.array([True])])])
    qa.save("x.gguf", {}, {"deep": deep, "yes": True, "f": np.float64(-0.5)})
    found = reported(capsys, "inspect", "x.gguf")
    assert found == {
        "tensors": [],
        "metadata": {"deep": [[0.5, None], ["x"], [[True]]], "yes": True, "f": -0.5},
    }


def test_names_are_escaped(capsys):
    name = "\x1b[31mred\n\u202e.weight"
    qa.save("x.gguf", {name: X}, {"key\x07": "value"})
    for arguments in (
        ["inspect", "x.gguf"],
        ["compare", "x.gguf", "--schemes", "gguf:q4_0,gguf:q8_0"],
        ["quantize", "x.gguf", "y.gguf", "--scheme", "gguf:q8_0"],
        ["dequantize", "y.gguf", "y.gguf"],
    ):
        out = ran(capsys, *arguments)
        assert r"\x1b[31mred\n\u202e.weight" in out
        assert all(line.isprintable() for line in out.splitlines())
    assert reported(capsys, "inspect", "x.gguf")["tensors"][0]["name"] == name


# What is refused.

Q4 = ["--scheme", "gguf:q4_0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quantize", "model.gguf", "out.gguf"], f"tensor '{Q}': a GGUF file holds ggml's types"),
        (["quantize", "model.safetensors", "out.gguf", "--scheme", "int4"], "not 'int4': expected"),
        (["quantize", "model.gguf", "out.gguf", "--scheme", "gguf:q9_0"], "'gguf:q9_0' is not kno"),
        (["quantize", "model.gguf", "out.gguf", "--scheme", "gguf:iq2_xxs"], f"tensor '{Q}': "),
        (["quantize", "model.gguf", "out.gguf", *Q4, "--group-size", "64"], "settle all choices"),
        (["quantize", "model.gguf", "out.gguf", *Q4, "--channel-axis", "0"], "settle all choices"),
        (
            ["quantize", "model.gguf", "o", "--scheme", "gguf:f16", "--group-size", "8"],
            "'gguf:f16'",
        ),
        (["quantize", "model.gguf", "out.gguf", *Q4, "--map", "*q*=int7_"], "'int7_' is not known"),
        (["quantize", "model.gguf", "out.gguf", *Q4, "--map", "*q*=int7"], f"tensor '{Q}': "),
        (["quantize", "model.gguf", "out.gguf", *Q4, "--map", "x="], "'' is not known"),
        (["quantize", "model.gguf", "out.gguf", *Q4, "--imatrix", "absent"], "absent: No such"),
        (["quantize", "model.gguf", "out.gguf", *Q4, "--imatrix", "model.gguf"], "'general.type'"),
        (["quantize", "model.gguf", "out.gguf", *Q4, "--imatrix", "junk"], "not a GGUF file"),
        (["quantize", "model.gguf", "out.gguf", *Q4, "--imatrix", "other"], f"tensor '{Q}': its"),
        (["quantize", "model.gguf", "no/out.gguf", *Q4], "no/out.gguf: the folder does not exist"),
        (["quantize", "model.gguf", "dir.gguf", *Q4], "cannot write onto it, it is a directory"),
        (
            ["quantize", "q.gguf", "out.gguf", *Q4],
            r"tensor 'w\x1b.weight': it is quantized already",
        ),
        (["quantize", "large.gguf", "out.gguf", "--scheme", "gguf:f16"], r"'w\x1b.weight': it has"),
        (["quantize", "torn.gguf", "out.gguf", *Q4], "torn.gguf: tensor"),
        (["quantize", "hostile", "out.gguf", *Q4], "metadata 'gguf': "),
        (["quantize", "absent\x1b.gguf", "out.gguf", *Q4], r"absent\x1b.gguf: No such file"),
        (["dequantize", "torn.gguf", "out"], "torn.gguf: tensor"),
        (["dequantize", "bytes", "out.gguf"], "tensor 'b': type 'U8' is unknown, in a GGUF file"),
        (["inspect", "torn.gguf"], "torn.gguf: tensor"),
        (["inspect", "magic.gguf"], "magic.gguf: version: "),
        (["compare", "model.gguf", "--schemes", "int8"], f"tensor '{Q}': a GGUF file holds ggml's"),
        (["compare", "model.gguf", "--schemes", "gguf:q4_0,"], "'' is not known"),
        (["compare", "model.gguf", "--schemes", "gguf:q4_0,nope"], "'nope' is not known"),
        (["compare", "torn.gguf", "--schemes", "gguf:q4_0"], "torn.gguf: tensor"),
        (["compare", "q.gguf", "--schemes", "gguf:q4_0"], "it is quantized already"),
        (["compare", "model.gguf", "--schemes", "gguf:q4_0", "--imatrix", "junk"], "junk: not a"),
        (["compare", "absent", "--schemes", "gguf:q4_0"], "absent: No such file"),
    ],
    ids=lambda value: "_".join(value[1:]) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    pathlib.Path("junk").write_bytes(b"\xff" * 100)
    pathlib.Path("magic.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    pathlib.Path("torn.gguf").write_bytes(pathlib.Path("model.gguf").read_bytes()[:-64])
    qa.save("q.gguf", {"w\x1b.weight": qa.quantize(X, "gguf:q8_0")})
    qa.save("large.gguf", {"w\x1b.weight": X * 1e6})
    qa.save("bytes", {"b": np.arange(6, dtype=np.uint8)})
    safetensors.write("hostile", {"w": Spec("F32", (4, 256))}, [("w", X)], lambda _: {"gguf": "ü"})
    importances("other", **{f"{Q}.in_sum2": SUMS[:255]})
    pathlib.Path("out.gguf").write_bytes(b"old")
    os.mkdir("dir.gguf")
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize", "model.gguf", "out.gguf", *Q4, "--map", "no sign"],
        ["quantize", "model.gguf", "out.gguf", *Q4, "--map", "\x1b\n"],
        ["quantize", "model.gguf", "out.gguf", *Q4, "--map"],
        ["quantize", "model.gguf", "out.gguf", *Q4, "--imatrix"],
        ["compare", "model.gguf"],
        ["compare", "--schemes", "gguf:q4_0"],
        ["compare", "model.gguf", "--schemes", "gguf:q4_0", "--map", "a=int8"],
        ["dequantize", "model.gguf"],
    ],
)
def test_usage_errors(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: quantarray")
    assert "error: " in err.splitlines()[-1]
    assert all(line.isprintable() for line in err.splitlines())
    assert sorted(os.listdir()) == ["model.gguf", "model.safetensors"]


@pytest.mark.parametrize(
    ("command", "examples"),
    [([], 10), (["quantize"], 4), (["dequantize"], 2), (["inspect"], 1), (["compare"], 1)],
    ids=str,
)
def test_help_lists_the_examples(capsys, command, examples):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    _, listed = capsys.readouterr().out.split("examples:\n")
    lines = listed.splitlines()
    assert len(lines) == examples
    assert all(f"  {line}\n" in cli.EXAMPLES for line in map(str.strip, lines))
    assert all(" ".join(["quantarray", *command]) in line for line in lines)


def test_the_examples_run(capsys):
    importances(
        "imatrix.gguf", **{f"{DOWN}.in_sum2": SUMS[:96], f"{DOWN}.counts": np.ones(1, "f4")}
    )
    small = {name: x for name, x in TENSORS.items() if name != DOWN}
    qa.save("model.safetensors", small)
    for line in cli.EXAMPLES.splitlines():
        program, *arguments = line.replace("'", "").split()
        assert program == "quantarray"
        if arguments[0] not in ("demo", "backends"):
            assert ran(capsys, *arguments)
