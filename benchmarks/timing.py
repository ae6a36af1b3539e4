"""Measure functions side by side: every one in turn, again and again, and their medians."""

import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

# Threads of some libraries spin for a while after a call, on the cores that the next row needs.
PAUSE = 0.005
LEAST_RUNS = 3
# A run of a fast row is many calls: one of microseconds cannot be timed.
RUN_SECONDS = 2e-3

Timer = Callable[[int], float]


def timer(function: Callable[[], Any]) -> Timer:
    """Give a function that times some calls in a row, in seconds for one.

    A call that is not timed comes first: after a pause, or another library, processors, caches and
    memory are not what they are in a program that does one thing.
    """

    def measure(calls: int) -> float:
        function()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls

    return measure


@dataclass
class Row:
    """One way to do what a case is about, and the seconds that it took."""

    who: str
    # "base": what bounds the case; "ours"; "peer"; "near": a peer that does another or less work.
    kind: str
    measure: Timer
    note: str = ""
    error: str = ""
    runs: list[float] = field(default_factory=list)
    # In each run.
    calls: int = 1

    @property
    def seconds(self) -> float | None:
        """The median, if it ran."""
        return statistics.median(self.runs) if self.runs else None

    def attempt(self) -> float | None:
        """Run it; what fails is kept as the row's result."""
        try:
            return self.measure(self.calls)
        except Exception as failure:  # whatever a peer raises is a result, and not the end
            self.error = describe(failure)
            return None

    def warm_up(self) -> None:
        """Run it twice, so that all is compiled, and decide how many calls a run is."""
        if not self.error:
            self.attempt()
        if not self.error:
            self.calls = max(1, min(1000, int(RUN_SECONDS / (self.attempt() or RUN_SECONDS))))


def describe(failure: Exception) -> str:
    """Put an exception on one short line."""
    lines = str(failure).strip().splitlines() or [""]
    return f"{type(failure).__name__}: {lines[0]}"[:120]


def interleave(rows: Iterable[Row], repeat: int, budget: float) -> None:
    """Fill in the runs of every row.

    Each round runs every row once, in another order, so that a slow moment of the machine meets all
    of them and none always follows the same one. A row that has used `budget` seconds is left out
    of further rounds, but for the first ones.
    """
    order, shuffle = list(rows), random.Random(0).shuffle
    for row in order:
        row.warm_up()
    for _ in range(repeat):
        shuffle(order)
        for row in order:
            spent = row.calls * sum(row.runs)
            if row.error or (spent > budget and len(row.runs) >= LEAST_RUNS):
                continue
            time.sleep(PAUSE)
            seconds = row.attempt()
            if seconds is not None:
                row.runs.append(seconds)
