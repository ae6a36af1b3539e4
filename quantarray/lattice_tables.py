"""How ggml looks for entries of its lattices: which lie near a point, and what each type tries."""

from typing import Any, Literal, NamedTuple

import numpy as np

from quantarray import _xp
from quantarray.lattices import Lattice

Numbers = np.ndarray[Any, Any]
Floats = np.ndarray[tuple[int], np.dtype[np.float32]]


class Neighbours(NamedTuple):
    """The entries that are looked at for each point, a number of a digit per element.

    A digit is the index of a value in those of the lattice, the first of a point counting least.
    """

    levels: int  # how many digits there are
    digits: Numbers  # of each entry, float32: (width, entries)
    entries: Numbers  # of each point that is one, int32; -1 elsewhere: (points,)
    starts: Numbers  # where a point's entries begin in `near`, int32: (points,)
    counts: Numbers  # how many those are, int32, 0 for a point that is an entry: (points,)
    near: Numbers  # int32, nearest first, of as near ones the first


@_xp.constant
def neighbours(lattice: Lattice, distances: int) -> Neighbours:
    """Give the entries at the smallest `distances` different distances from each point.

    It is what `iq2xs_init_impl` and `iq3xs_init_impl` of ggml compute.
    """
    levels, width = len(lattice.values), lattice.width
    digits = np.searchsorted(np.asarray(lattice.values), lattice.table)
    powers = levels ** np.arange(width)
    count = levels**width
    entries = np.full(count, -1, np.int32)
    entries[digits @ powers] = np.arange(len(digits))
    points = np.arange(count)[:, None] // powers % levels
    # Of products, which are exact; C's distances, of twice the digits, are four times these.
    squares = (points**2).sum(1)[:, None] + (digits**2).sum(1)
    products = points.astype(np.float32) @ digits.T.astype(np.float32)
    found = (squares - 2 * products).astype(np.int16)
    order = np.argsort(found, axis=1, kind="stable")
    found = np.take_along_axis(found, order, axis=1)
    further = np.cumsum(np.diff(found, axis=1) > 0, axis=1)
    chosen = np.pad(further, ((0, 0), (1, 0))) < distances
    chosen &= (entries < 0)[:, None]
    counts = chosen.sum(1)
    return Neighbours(
        levels,
        np.ascontiguousarray(digits.T.astype(np.float32)),
        entries,
        (np.cumsum(counts) - counts).astype(np.int32),
        counts.astype(np.int32),
        order[chosen].astype(np.int32),
    )


class Search(NamedTuple):
    """How a type of IQ2 or IQ3 looks for scales and entries."""

    distances: int  # of how many different ones from a point entries are looked at
    tries: int  # scales to try, on either side of the one of the largest element
    step: float
    least: float  # below it the largest element of a group makes it zeros, as 0 does
    # What counts without importances: the squares of elements, beside these of their block's.
    typical: float = 0.0
    energy: float = 2.0
    times: float = 1.0  # what the scale of a block is multiplied by in the end
    # Which points are rounded again with the scale found: those off the lattice, all of a group
    # that has such, or all.
    again: Literal["off", "any off", "all"] = "off"
    positive: bool = False  # whether scales to try come from `search.positive`
    cleared: bool = True  # whether nothing is stored where all scales are 0
    crowded: bool = False  # see `gguf.lattice_encoders`


@_xp.constant
def factors(how: Search, levels: int) -> Floats:
    """Give what the largest elements of groups become, by each try."""
    steps = np.arange(-how.tries, how.tries + 1, dtype=np.float32)
    return np.float32(2 * levels - 1) + steps * np.float32(how.step)


SEARCHES = {
    "IQ2_XXS": Search(2, 6, 0.1, 1e-15, energy=1.0, again="all", positive=True),
    "IQ2_XS": Search(2, 9, 0.1, 1e-15, energy=1.0),
    "IQ2_S": Search(1, 9, 0.1, 1e-8, 0.25, times=0.9875, cleared=False),
    "IQ3_XXS": Search(2, 15, 0.2, 1e-8, times=1.0125),
    "IQ3_S": Search(3, 9, 0.2, 0.0, times=1.033, again="any off", cleared=False, crowded=True),
}


class Ternary(NamedTuple):
    """How IQ1_S or IQ1_M looks for scales and entries."""

    least: float  # below it the largest magnitude of a group makes it zeros
    times: float  # what the scale of a block is multiplied by in the end
    parts: int  # of a group, which have a delta each
    again: bool  # whether the scale of a block is fitted to all of its elements


TERNARY = {
    "IQ1_S": Ternary(1e-12, 1.125, 1, again=False),
    "IQ1_M": Ternary(1e-7, 1.1125, 2, again=True),
}
