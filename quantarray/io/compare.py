"""What several schemes cost on the tensors of one file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quantarray.io import gguf_layout, layout, llama, tensors
from quantarray.io.convert import naming, planned, quantized
from quantarray.io.files import Path
from quantarray.io.gguf import Container
from quantarray.io.measure import largest, powers
from quantarray.io.plan import Plan, cast


@dataclass(frozen=True)
class Cost:
    """What one scheme makes of the tensors it is for: sums over all of them.

    `worst` names the tensor with the lowest ratio of signal to noise, whose ratio, in decibels, is
    `worst_db`; empty and None if no tensor was quantized or cast.
    """

    scheme: str
    tensors: int
    elements: int
    nbytes: int
    signal: float
    noise: float
    max_error: float
    worst: str
    worst_db: float | None


def compare_file(
    source: Path, plans: Sequence[Plan], progress: Callable[[int, int], None]
) -> list[Cost]:
    """Quantize the tensors of a file by each plan in turn, writing nothing.

    Parameters
    ----------
    source : str or os.PathLike
        A safetensors or GGUF file.
    plans : sequence of Plan
        What to compare. The tensors of a GGUF file are chosen as for one.
    progress : Callable
        Called with the tensors that are done and those there are.

    Returns
    -------
    list of Cost
        In the order of `plans`.

    Raises
    ------
    QuantArrayError
        `source` breaks its format or a checksum, or a tensor cannot be quantized so.
    OSError
        As the operating system says.
    """
    file = tensors.load(source)
    is_gguf = isinstance(file.container, Container)
    how = gguf_layout if is_gguf else layout
    architecture = file.metadata.get(llama.ARCHITECTURE)
    costs = []
    for index, plan in enumerate(plans):
        found = []
        for done, (name, entry) in enumerate(file.entries.items()):
            with naming(name):
                to = plan.chosen(entry, to_gguf=is_gguf, architecture=architecture)
                after = planned(entry, to, how)
                if to is not None:
                    x = file[name]
                    assert isinstance(x, np.ndarray)
                    q = cast(x, after.dtype) if isinstance(to, str) else quantized(x, after, plan)
                    found.append((name, after, *powers(x, q), largest(x, q)))
            file.release(entry)
            progress(index * len(file) + done + 1, len(plans) * len(file))
        costs.append(_cost(plan, found))
    return costs


def _cost(plan: Plan, found: list[tuple[str, layout.Entry, float, float, float]]) -> Cost:
    to = plan.target
    ratios = {item[0]: decibels(item[2], item[3]) for item in found}
    worst = min(ratios, key=ratios.__getitem__, default="")
    return Cost(
        scheme=f"gguf:{to.lower()}" if isinstance(to, str) else to.name,
        tensors=len(found),
        elements=sum(int(np.prod(entry.shape)) for _, entry, *_ in found),
        nbytes=sum(entry.nbytes for _, entry, *_ in found),
        signal=sum(item[2] for item in found),
        noise=sum(item[3] for item in found),
        max_error=max((item[4] for item in found), default=0.0),
        worst=worst,
        worst_db=ratios.get(worst),
    )


def decibels(signal: float, noise: float) -> float:
    """Give the ratio of signal to noise in decibels; without noise it is infinite."""
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
