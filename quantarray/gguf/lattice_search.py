"""The nearest entries of a lattice, on many points at once and with the choices of ggml's C code.

Arrays have an entry for each element of a point along their first axis, and points along the
other. All but indices is float32.
"""

from typing import Any

import numpy as np

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import Arithmetic
from quantarray.gguf.lattice_tables import Neighbours
from quantarray.gguf.search import total

# Entries that are looked at together, and the largest number, which no distance C takes exceeds.
_TOGETHER = 4
_LARGEST = float(np.finfo(np.float32).max)


def number(digits: Array, levels: int, xp: Namespace) -> Array:
    """Give the numbers of points, int32: (points,)."""
    found = digits[-1, ...]
    for index in reversed(range(digits.shape[0] - 1)):
        found = found * levels + digits[index, ...]
    return xp.astype(found, xp.int32)


def entries(digits: Array, levels: int, near: Neighbours, xp: Namespace) -> Array:
    """Give the entries that points are, int32: (points,)."""
    table = xp.asarray(near.entries, device=_xp.beside(digits))
    return _xp.lookup(table, number(digits, levels, xp), xp)


def settle(
    digits: Array,
    x: Array,
    weights: Array,
    scale: Array,
    values: Array,
    near: Neighbours,
    math_: Arithmetic,
) -> tuple[Array, Array]:
    """Move points to the lattice: `iq2_find_best_neighbour` and its kin.

    Parameters
    ----------
    digits : array of float32, shape (width, points)
        The points.
    x, weights : array of float32, shape of digits
        What they stand for, and what the squared error of each element counts.
    scale : array of float32, shape (points,)
        What the values of an entry are multiplied by.
    values : array of float32, shape (levels,) or (levels, points)
        The values of digits.
    near : Neighbours
        What to look at.
    math_ : Arithmetic
        On float32.

    Returns
    -------
    tuple of array
        Digits of entries, shape of digits, and whether the points are such, bool, shape (points,).
        Of errors that are all Inf or NaN, which C refuses to go on with, the first entry's.
    """
    xp = math_.xp
    place = _xp.beside(x)
    points = number(digits, values.shape[0], xp)
    counts = _xp.lookup(xp.asarray(near.counts, device=place), points, xp)
    starts = _xp.lookup(xp.asarray(near.starts, device=place), points, xp)
    on = counts == 0
    if not _xp.is_concrete(x, xp):
        best = _best(starts, counts, None, x, weights, scale, values, near, math_)
        return _xp.where(xp.expand_dims(on, 0), digits, _digits(best, near, xp), xp), on
    # Those with the most to look at first, so that fewer and fewer are left.
    order = xp.argsort(-counts, stable=True)
    ordered = np.sort(_xp.to_numpy(counts))[::-1]
    if not ordered[0]:
        return digits, on
    left = _widths(ordered)
    order = order[: left[0]]

    def few(a: Array) -> Array:
        return xp.take(a, order, axis=a.ndim - 1)

    some = values if values.ndim == 1 else few(values)
    given = few(starts), few(counts), left, few(x), few(weights), few(scale), some
    best = _best(*given, near, math_)
    # All in the order of `order`, and back.
    rest = xp.argsort(-counts, stable=True)[left[0] :]
    moved = xp.take(digits, xp.concat([order, rest]), axis=1)
    off = xp.expand_dims(few(counts) > 0, 0)
    first = _xp.where(off, _digits(best, near, xp), moved[:, : left[0]], xp)
    moved = xp.concat([first, moved[:, left[0] :]], axis=1)
    back = xp.argsort(xp.concat([order, rest]), stable=True)
    return xp.take(moved, back, axis=1), on


def _widths(counts: np.ndarray[Any, Any]) -> list[int]:
    """Give how many of the first points have entries left, batch after batch.

    These are powers of two, for libraries that compile for each shape.
    """
    begin = np.arange(0, int(counts[0]), _TOGETHER)
    left = np.searchsorted(-counts, -begin, side="left")
    return [min(1 << int(some - 1).bit_length(), len(counts)) for some in left]


def _digits(entries: Array, near: Neighbours, xp: Namespace) -> Array:
    """Give the digits of entries: their axes after that of the elements."""
    width, count = near.digits.shape
    flat = xp.asarray(near.digits.reshape(-1), device=_xp.beside(entries))
    first = xp.arange(width, dtype=xp.int32, device=_xp.beside(entries)) * count
    first = xp.reshape(first, (width,) + (1,) * entries.ndim)
    return _xp.lookup(flat, first + xp.expand_dims(entries, 0), xp)


def _valued(digits: Array, values: Array, xp: Namespace) -> Array:
    """Give the values of digits: (width, together, points)."""
    found = None
    for level in range(values.shape[0]):
        value = xp.broadcast_to(values[level, ...], digits.shape)
        found = value if found is None else _xp.where(digits == level, value, found, xp)
    return found


def _best(
    starts: Array,
    counts: Array,
    left: list[int] | None,
    x: Array,
    weights: Array,
    scale: Array,
    values: Array,
    near: Neighbours,
    math_: Arithmetic,
) -> Array:
    """Give the entry with the smallest error, the first of equals: (points,)."""
    xp = math_.xp
    place = _xp.beside(x)
    table = xp.asarray(near.near, device=place)
    together = xp.reshape(xp.arange(_TOGETHER, dtype=xp.int32, device=place), (-1, 1))

    def look(begin: Array | int, width: int, best: tuple[Array, Array]) -> tuple[Array, Array]:
        least, chosen = best
        places = together + begin
        some = places < xp.expand_dims(counts[:width], 0)
        index = xp.expand_dims(starts[:width], 0) + places
        found = _xp.lookup(table, _xp.where(some, index, xp.zeros_like(index), xp), xp)
        which = values if values.ndim == 1 else values[:, :width]
        valued = _valued(_digits(found, near, xp), which, xp)
        difference = math_.multiply(xp.broadcast_to(scale[:width], valued.shape), valued)
        difference = difference - xp.expand_dims(x[:, :width], 1)
        weight = xp.broadcast_to(xp.expand_dims(weights[:, :width], 1), valued.shape)
        errors = total(math_.multiply(math_.multiply(weight, difference), difference), xp)
        errors = _xp.where(some & (errors < _LARGEST), errors, _LARGEST, xp)
        for index in range(_TOGETHER):
            better = errors[index, ...] < least
            least = _xp.where(better, errors[index, ...], least, xp)
            chosen = _xp.where(better, found[index, ...], chosen, xp)
        return least, chosen

    first = _xp.lookup(table, _xp.where(counts > 0, starts, xp.zeros_like(starts), xp), xp)
    best = xp.full_like(scale, _LARGEST), first
    if left is None:
        begins = np.arange(0, int(near.counts.max()), _TOGETHER, dtype=np.int32)

        def batch(best: Any, entries: tuple[Array, ...]) -> tuple[Any, None]:
            return look(entries[0], scale.shape[0], best), None

        found: tuple[Array, Array] = _xp.scan(batch, best, (xp.asarray(begins),), xp)[0]
        return found[1]
    done = []  # of those whose entries are all looked at, the last first
    for begin, width in enumerate(left):
        if width < best[0].shape[0]:
            done.append(best[1][width:])
            best = best[0][:width], best[1][:width]
        best = look(begin * _TOGETHER, width, best)
    return xp.concat([best[1], *reversed(done)]) if done else best[1]
