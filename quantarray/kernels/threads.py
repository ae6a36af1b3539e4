"""Threads for kernels that release the GIL."""

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from quantarray.errors import QuantArrayError, short


def count() -> int:
    """Give how many threads to use: QUANTARRAY_THREADS, or else the processors there are.

    Raises
    ------
    QuantArrayError
        If QUANTARRAY_THREADS is not a positive integer.
    """
    wanted = os.environ.get("QUANTARRAY_THREADS")
    if wanted is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if not (wanted.isascii() and wanted.isdigit() and len(wanted) < 6 and int(wanted)):
        raise QuantArrayError(f"QUANTARRAY_THREADS={short(wanted)}: expected 1 to 99999")
    return int(wanted)


def run(function: Callable[..., object], shares: Iterable[tuple[Any, ...]]) -> None:
    """Call a function with each share of work, the first in this thread, the others beside it.

    It returns when all have, and raises the first exception, of the earliest share. The threads are
    its own and end with it, so that nothing is left to break when a process forks.
    """
    first, *others = shares
    if not others:
        function(*first)
        return
    failures: list[BaseException | None] = [None] * len(others)

    def work(index: int, share: tuple[Any, ...]) -> None:
        try:
            function(*share)
        except BaseException as failure:  # it is the caller's
            failures[index] = failure

    threads: list[threading.Thread] = []
    try:
        for index, share in enumerate(others):
            thread = threading.Thread(target=work, args=(index, share))
            thread.start()
            threads.append(thread)
        function(*first)
    finally:
        # Also after KeyboardInterrupt: the shares write to arrays of the caller.
        for thread in threads:
            thread.join()
    for failure in failures:
        if failure is not None:
            raise failure
