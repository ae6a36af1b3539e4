"""Rows of our array-API code without kernels, for comparison.

`QUANTARRAY_KERNELS=generic` is read once in a process, so these run in one of their own. It waits
while others are measured, and they wait while it runs: the rows stay interleaved.
"""

import importlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

from timing import Row, Timer, timer

VARIABLE = "QUANTARRAY_KERNELS"


@cache
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


@cache
def _timer(module: str, function: str, *arguments: Any) -> Timer:
    return timer(getattr(importlib.import_module(module), function)(*arguments))


def _measure(calls: int, *what: Any) -> float:
    return _timer(*what)(calls)


def _submit(calls: int, *what: Any) -> float:
    """Run in the other process; it starts at the first call, with the variable set."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "generic"
    try:
        return _process().submit(_measure, calls, *what).result()
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


def row(module: str, function: str, *arguments: Any) -> Row:
    """Give a row that times what a function of a module gives for these arguments."""

    def measure(calls: int) -> float:
        return _submit(calls, module, function, *arguments)

    return Row("quantarray, generic", "ours", measure)
