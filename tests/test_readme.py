"""The README keeps its word: its code runs, and its test command is the one that CI runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import quantarray as qa
from quantarray import _xp

pytestmark = pytest.mark.backend_independent

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEST_COMMAND = "python3 -m venv .venv && .venv/bin/pip install -q nox && .venv/bin/nox"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [code for language, code in BLOCKS if language == "sh"]


def test_the_test_command_is_that_of_ci():
    assert [code.strip() for code in SHELL].count(TEST_COMMAND) == 1
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert ci.splitlines()[-1] == TEST_COMMAND
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_every_fence_says_what_it_holds():
    assert PYTHON
    assert {language for language, _ in BLOCKS} <= {"python", "sh", "text", "console", "json"}
    assert len(re.findall(r"^```", README, re.MULTILINE)) == 2 * len(BLOCKS)


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_python_runs(code, tmp_path):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert not run.stderr


def test_comments_after_print_are_what_is_printed(tmp_path, monkeypatch):
    """`print(q)  # int4, 4.25 bits per element`: each part of the comment is in the output."""
    script = "".join(PYTHON)
    shown = re.findall(r"^print\((\w+)\)  # (.*)$", script, re.MULTILINE)
    assert shown
    monkeypatch.chdir(tmp_path)  # some examples write files
    names = {}
    exec(compile(script.replace("print(", "str("), "README.md", "exec"), names)
    for name, comment in shown:
        for part in comment.split(", "):
            assert part in str(names[name]), f"{name}: {part}"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_to_files_lead_somewhere(target):
    assert target.startswith(("http:", "https:")) or (ROOT / target).exists()


def test_no_placeholder_is_left():
    assert not re.findall(r"^[A-Z]{4,}$", README, re.MULTILINE)


def test_the_table_has_every_scheme_and_backend():
    """It is the output of benchmarks/matrix.py, which needs every backend."""
    table = README.split("| scheme |", 1)[1].split("\n\n")[0]
    header, _, *rows = ("| scheme |" + table).splitlines()
    titles = [cell.strip() for cell in header.strip("|").split("|")][1:]
    owners = ["owner", "owner's bytes"]
    assert titles == [*owners, *(name for name in _xp.BACKENDS if name != "cupy"), "jax.jit"]
    cells = {row.split("`")[1]: row.split("|")[2:-1] for row in rows}
    assert tuple(cells) == qa.schemes()
    assert all(len(row) == len(titles) for row in cells.values())
