"""The file layer: every call to the operating system that reads or writes a file is made here.

A written file is whole or absent. `atomic_writer` writes to a temporary file beside the target,
syncs it, and renames it over the target, so a crash, a full disk or Ctrl-C leaves the old file as
it was. What a killed process left behind is swept by the next write to the same target.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from quantarray.errors import QuantArrayError
from quantarray.io.escape import escape

if sys.platform != "win32":
    import fcntl

P = ParamSpec("P")
T = TypeVar("T")

Path = str | os.PathLike[str]

PREFIX, SUFFIX = ".quantarray-", ".tmp"
# Windows needs O_BINARY. O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
_FLAGS = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _FLAGS
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS


def call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make one call to the operating system; tests replace this function to fail the N-th."""
    return function(*args, **kwargs)


def checked(path: Path) -> str:
    """Return `path` as text, refusing what is no path at all."""
    if not isinstance(path, str | os.PathLike):
        raise QuantArrayError(f"path must be str or os.PathLike, got {type(path).__name__}")
    text = os.fsdecode(path)
    if not text or "\0" in text:
        raise QuantArrayError(f"path is empty or holds a null character: '{escape(text)}'")
    return text


@dataclass(frozen=True, eq=False)
class Mapped:
    """A file mapped read-only into memory; `view` stays valid when the file is replaced."""

    path: str
    size: int
    view: memoryview
    map: mmap.mmap | None

    def release(self, start: int, stop: int) -> None:
        """Let the pages of bytes ``start..stop`` leave memory; they are read again when touched."""
        if self.map is not None and hasattr(mmap, "MADV_DONTNEED") and stop > start:
            first = start - start % mmap.PAGESIZE
            self.map.madvise(mmap.MADV_DONTNEED, first, stop - first)


def open_mapped(path: Path) -> Mapped:
    """Map a regular file for reading.

    Raises
    ------
    OSError
        As the operating system says, for example FileNotFoundError.
    QuantArrayError
        `path` is a directory, a pipe or a device.
    """
    text = checked(path)
    descriptor = call(os.open, text, _READ)
    try:
        status = call(os.fstat, descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise QuantArrayError(f"{escape(text, None)}: not a regular file")
        if status.st_size == 0:  # an empty file cannot be mapped
            return Mapped(text, 0, memoryview(b""), None)
        mapping = call(mmap.mmap, descriptor, status.st_size, access=mmap.ACCESS_READ)
        return Mapped(text, status.st_size, memoryview(mapping), mapping)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Output:
    """The temporary file behind an atomic write."""

    descriptor: int

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` (contiguous bytes) at `offset`, however few bytes each call takes."""
        view = memoryview(data)
        call(os.lseek, self.descriptor, offset, os.SEEK_SET)
        while len(view):
            view = view[call(os.write, self.descriptor, view) :]


@contextmanager
def atomic_writer(path: Path) -> Iterator[Output]:
    """Write a file that appears whole, under its name, when the block ends without an error.

    Links are followed, so that the file they name is replaced. An existing file's permissions stay.

    Raises
    ------
    QuantArrayError
        The target is not a regular file, or its folder does not exist.
    OSError
        As the operating system says; the target is untouched unless only the last sync failed,
        and then it is the new file, whole.
    """
    target = os.path.realpath(checked(path))
    folder, name = os.path.split(target)
    mode = _mode(target)
    if not os.path.isdir(folder):
        raise QuantArrayError(f"{escape(target, None)}: the folder does not exist")
    # The name's digest, not the name: the temporary's name must fit wherever the target's does.
    prefix = PREFIX + hashlib.sha256(os.fsencode(name)).hexdigest()[:16] + "-"
    _sweep(folder, prefix)
    descriptor, temporary = _create(os.path.join(folder, prefix))
    try:
        with open(descriptor, "r+b", buffering=0) as file:
            if mode is not None:
                call(os.chmod, temporary, mode)
            yield Output(descriptor)
            call(os.fsync, descriptor)
            if sys.platform == "win32":
                file.close()  # it renames no open file; elsewhere the lock holds until the rename
            call(os.replace, temporary, target)
        _sync_folder(folder)
    except BaseException:
        _remove(temporary)
        raise


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """Make a folder for files to be written in the block, if there is none.

    If the block ends with an error, and nothing was written, the folder it made is removed.

    Raises
    ------
    QuantArrayError
        It is no folder, or the one that it would be in does not exist.
    OSError
        As the operating system says.
    """
    text, made = checked(path), True
    try:
        call(os.mkdir, text)
    except FileExistsError:
        made = False
    except (FileNotFoundError, NotADirectoryError):
        raise QuantArrayError(f"{escape(text, None)}: its parent folder does not exist") from None
    if not os.path.isdir(text):
        raise QuantArrayError(f"{escape(text, None)}: not a folder")
    try:
        yield
    except BaseException:
        if made:
            with suppress(OSError):
                os.rmdir(text)
        raise


def _create(prefix: str) -> tuple[int, str]:
    """Open a new temporary file and lock it, so that a sweep knows that its writer lives."""
    while True:
        temporary = prefix + os.urandom(8).hex() + SUFFIX
        descriptor = call(os.open, temporary, _CREATE, 0o666)
        try:
            _locked(descriptor, wait=True)
            if os.path.exists(temporary):
                return descriptor, temporary
        except BaseException:
            os.close(descriptor)
            _remove(temporary)
            raise
        os.close(descriptor)  # another writer's sweep came between the open and the lock


def _mode(target: str) -> int | None:
    """Return an existing target's permissions, None where there is none."""
    try:
        status = call(os.stat, target)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise QuantArrayError(f"{escape(target, None)}: the folder does not exist") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise QuantArrayError(f"{escape(target, None)}: cannot write onto it, it is {kind}")
    return stat.S_IMODE(status.st_mode)


def _locked(descriptor: int, wait: bool = False) -> bool:
    """Take a temporary's lock; the system drops it when its process dies, however it dies."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:  # held by its writer, or a file system without locks
            return False
    return True


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _sweep(folder: str, prefix: str) -> None:
    """Remove the temporaries of dead writers to this target; sweeping is never worth an error."""
    names = [n for n in os.listdir(folder) if n.startswith(prefix) and n.endswith(SUFFIX)]
    for path in (os.path.join(folder, n) for n in names):
        with suppress(OSError):
            descriptor = os.open(path, _READ)
            try:
                if _locked(descriptor):
                    _remove(path)
            finally:
                os.close(descriptor)


def _sync_folder(folder: str) -> None:
    """Make the rename itself durable; Windows opens no folders."""
    if sys.platform != "win32":
        descriptor = call(os.open, folder, os.O_RDONLY | _FLAGS)
        try:
            call(os.fsync, descriptor)
        finally:
            os.close(descriptor)
