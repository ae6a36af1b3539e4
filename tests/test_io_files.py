"""A written file is whole or absent, whatever fails."""

import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from quantarray.errors import QuantArrayError
from quantarray.io import files
from quantarray.io.escape import escape

pytestmark = pytest.mark.backend_independent

OLD, NEW = b"old" * 1000, b"new" * 2000


def put(path, data=NEW):
    with files.atomic_writer(path) as output:
        output.write_at(0, data)


class Failing:
    """Stands in for `files.call`: raises at the N-th call."""

    def __init__(self, n, error):
        self.left, self.error = n, error

    def __call__(self, function, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return function(*args, **kwargs)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [True, False])
def test_any_failing_call_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch, error, exists):
    target = tmp_path / "target"
    for n in range(1, 100):
        target.unlink(missing_ok=True)
        if exists:
            target.write_bytes(OLD)
        failing = Failing(n, error)
        monkeypatch.setattr(files, "call", failing)
        try:
            put(target)
        except type(error):
            assert os.listdir(tmp_path) == (["target"] if target.exists() else [])
            whole = [OLD, NEW] if exists else [None, NEW]
            assert (target.read_bytes() if target.exists() else None) in whole
        else:
            break  # there is no N-th call
    assert n >= 8  # stat, open, (chmod,) seek, write, fsync, rename, open and fsync of the folder
    assert target.read_bytes() == NEW


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_any_failing_call_of_a_read_is_raised(tmp_path, monkeypatch, error):
    path = tmp_path / "file"
    path.write_bytes(OLD)
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for n in (1, 2, 3):
        monkeypatch.setattr(files, "call", Failing(n, error))
        with pytest.raises(type(error)):
            files.open_mapped(path)
    monkeypatch.setattr(files, "call", Failing(4, error))
    assert bytes(files.open_mapped(path).view) == OLD
    if opened is not None:
        assert len(os.listdir("/proc/self/fd")) <= opened + 1  # the last mapping's own


def test_an_error_inside_the_block_leaves_the_old_file(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(OLD)

    def write():
        with files.atomic_writer(target) as output:
            output.write_at(0, NEW)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert os.listdir(tmp_path) == ["target"]
    assert target.read_bytes() == OLD


def test_short_writes_are_continued(tmp_path, monkeypatch):
    def short(function, *args, **kwargs):
        if function is os.write:
            return os.write(args[0], args[1][:7])
        return function(*args, **kwargs)

    monkeypatch.setattr(files, "call", short)
    put(tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == NEW


def test_writes_at_offsets_in_any_order(tmp_path):
    with files.atomic_writer(tmp_path / "target") as output:
        output.write_at(4, b"5678")
        output.write_at(0, memoryview(b"1234"))
        output.write_at(2, b"")
    assert (tmp_path / "target").read_bytes() == b"12345678"


# A child process imports what this one does, installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
KILLED = """
import os, signal, sys
from quantarray.io import files
with files.atomic_writer(sys.argv[1]) as output:
    output.write_at(0, b"x" * 100)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and file locks are POSIX")
def test_what_a_killed_writer_left_is_swept_by_the_next_write(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(OLD)
    died = subprocess.run([sys.executable, "-c", KILLED, target], env=ENVIRONMENT, check=False)
    assert died.returncode == -signal.SIGKILL
    assert target.read_bytes() == OLD
    (left,) = set(os.listdir(tmp_path)) - {"target"}
    assert left.startswith(files.PREFIX)
    assert left.endswith(files.SUFFIX)
    put(tmp_path / "other")
    assert left in os.listdir(tmp_path)  # another target's
    put(target)
    assert sorted(os.listdir(tmp_path)) == ["other", "target"]
    assert target.read_bytes() == NEW


@pytest.mark.skipif(sys.platform == "win32", reason="file locks are POSIX")
def test_a_living_writer_is_not_swept(tmp_path):
    target = tmp_path / "target"
    with files.atomic_writer(target) as output:
        output.write_at(0, OLD)
        put(target, NEW)
        assert len(os.listdir(tmp_path)) == 2
    assert target.read_bytes() == OLD  # the last to finish
    assert os.listdir(tmp_path) == ["target"]


def test_a_temporary_swept_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    swept = []

    def locked(descriptor, wait=False):
        if not swept:
            swept.extend(os.listdir(tmp_path))
            (tmp_path / swept[0]).unlink()
        return True

    monkeypatch.setattr(files, "_locked", locked)
    put(tmp_path / "target")
    assert len(swept) == 1
    assert os.listdir(tmp_path) == ["target"]


def test_interrupted_while_waiting_for_the_lock(tmp_path, monkeypatch):
    def locked(descriptor, wait=False):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_locked", locked)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path / "target")
    assert os.listdir(tmp_path) == []


def test_concurrent_writers_leave_one_whole_file(tmp_path):
    target = tmp_path / "target"
    contents = [bytes([65 + i]) * 50_000 for i in range(8)]

    def work(data):
        for _ in range(10):
            put(target, data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, contents))
    assert target.read_bytes() in contents
    assert os.listdir(tmp_path) == ["target"]


def test_the_mapped_old_file_survives_its_replacement(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(OLD)
    mapped = files.open_mapped(path)
    put(path)
    mapped.release(0, mapped.size)
    assert bytes(mapped.view) == OLD
    assert path.read_bytes() == NEW


def test_links_are_followed_and_permissions_stay(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(OLD)
    real.chmod(0o640)
    link.symlink_to("real")
    put(link)
    assert link.is_symlink()
    assert real.read_bytes() == NEW
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_name_as_long_as_names_get(tmp_path):
    put(tmp_path / ("n" * 255))
    assert os.listdir(tmp_path) == ["n" * 255]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "path is empty"),
        ("a\0b", r"null character: 'a\x00b'"),
        (3, "path must be str"),
        ("missing/file", "folder does not exist"),
        ("file/below", "folder does not exist"),
        (".", "it is a directory"),
        ("pipe", "it is not a regular file"),
        ("mis\x1b[31msing/file", r"mis\x1b[31msing"),
    ],
)
def test_targets_that_cannot_be_written(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    os.mkfifo("pipe")
    with pytest.raises(QuantArrayError) as caught:
        put(path)
    assert message in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_read(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises((QuantArrayError, IsADirectoryError)):
        files.open_mapped(tmp_path / "x")


def test_an_empty_file_maps(tmp_path):
    (tmp_path / "empty").touch()
    mapped = files.open_mapped(tmp_path / "empty")
    assert (mapped.size, bytes(mapped.view)) == (0, b"")
    mapped.release(0, 0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.layers.0.w", "model.layers.0.w"),
        ("größe 大", "größe 大"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u200b\ufeff\u2028", r"\u200b\ufeff\u2028"),
        ("\x85\x9b", r"\x85\x9b"),
        ("\ud800", r"\ud800"),
        ("n" * 121, "n" * 119 + "…"),
    ],
)
def test_escape(text, shown):
    assert escape(text) == shown
    assert escape(text).isprintable()
