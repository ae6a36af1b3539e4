"""Where the points around a lattice lie nearest to it: `iq2xs_init_impl` and `iq3xs_init_impl`."""

from typing import Any, NamedTuple

import numpy as np

from quantarray import _xp
from quantarray.lattices import Lattice

Numbers = np.ndarray[Any, Any]


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
    """Give the entries at the smallest `distances` different distances from each point."""
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
