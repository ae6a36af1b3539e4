"""The nearest entries of a lattice, on many points at once and with the choices of ggml's C code.

Arrays have an entry for each element of a point along their first axis, and points along the
other. All but indices is float32.
"""

from typing import Any

import numpy as np

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import Arithmetic
from quantarray.gguf.search import nearest, total
from quantarray.lattice_tables import Neighbours

# Entries that are looked at together, and the largest number, which no distance C takes exceeds.
_TOGETHER = 4
_LARGEST = float(np.finfo(np.float32).max)


def shrinks(x: Array, xp: Namespace) -> bool:
    """Tell whether loops are to leave out, step by step, what is done."""
    return _xp.is_concrete(x, xp) and not _xp.compiles_shapes(xp)


def points(x: Array, near: Neighbours, xp: Namespace) -> Array:
    """View elements of groups, (elements, groups, blocks), as (width, points, groups, blocks)."""
    width = near.digits.shape[0]
    x = xp.reshape(x, (x.shape[0] // width, width, *x.shape[1:]))
    return xp.permute_dims(x, (1, 0, 2, 3))


def number(digits: Array, levels: int, xp: Namespace) -> Array:
    """Give the numbers of points, int32: digits without their first axis."""
    found = digits[-1, ...]
    for index in reversed(range(digits.shape[0] - 1)):
        found = found * levels + digits[index, ...]
    return xp.astype(found, xp.int32)


def entries_of(digits: Array, near: Neighbours, xp: Namespace) -> Array:
    """Give the entries of groups, int32: (points of a group, groups, blocks)."""
    table = xp.asarray(near.entries, device=_xp.beside(digits))
    return _xp.lookup(table, number(points(digits, near, xp), near.levels, xp), xp)


def settled(
    digits: Array,
    x: Array,
    weights: Array,
    scale: Array,
    values: tuple[float, Array],
    near: Neighbours,
    math_: Arithmetic,
) -> tuple[Array, Array]:
    """Move groups to the lattice: `settle` of (elements, groups, blocks).

    What there has an entry for each point is of shape (groups, blocks) here, or one that broadcasts
    to (points of a group, groups, blocks); which points were entries has the latter.
    """
    xp = math_.xp
    width = near.digits.shape[0]
    shape = (x.shape[0] // width, *x.shape[1:])

    def flat(x: Array) -> Array:
        return xp.reshape(points(x, near, xp), (width, -1))

    def spread(x: Array) -> Array:
        return xp.reshape(xp.broadcast_to(x, shape), (-1,))

    given = flat(digits), flat(x), flat(weights), spread(scale), (values[0], spread(values[1]))
    found, on = settle(*given, near, math_)
    found = xp.permute_dims(xp.reshape(found, (width, *shape)), (1, 0, 2, 3))
    return xp.reshape(found, x.shape), xp.reshape(on, shape)


def settle(
    digits: Array,
    x: Array,
    weights: Array,
    scale: Array,
    values: tuple[float, Array],
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
    values : tuple of float and array of float32, shape (points,)
        What a digit is multiplied by, and what is added, to give its value.
    near : Neighbours
        What to look at.
    math_ : Arithmetic
        On float32.

    Returns
    -------
    tuple of array
        Digits of entries, shape of digits, and whether the points were such, bool, shape (points,).
        Of errors that are all Inf or NaN, which C refuses to go on with, the nearest entry's.
    """
    xp = math_.xp
    place = number(digits, near.levels, xp)
    counts, starts = (
        _xp.lookup(xp.asarray(table, device=_xp.beside(x)), place, xp)
        for table in (near.counts, near.starts)
    )
    on = counts == 0
    given = [starts, counts, x, weights, scale, values[1]]
    if not shrinks(x, xp):
        best = _best(given, values[0], None, near, math_)
        return _xp.where(xp.expand_dims(on, 0), digits, _digits(best, near, xp), xp), on
    # Those with the most to look at first, so that fewer and fewer are left.
    ordered = np.sort(_xp.to_numpy(counts))[::-1]
    if not ordered[0]:
        return digits, on
    left = _widths(ordered)
    order = xp.argsort(-counts, stable=True)
    given = [xp.take(a, order[: left[0]], axis=a.ndim - 1) for a in given]
    best = _best(given, values[0], left, near, math_)
    moved = xp.take(digits, order, axis=1)
    moved = xp.concat([_digits(best, near, xp), moved[:, left[0] :]], axis=1)
    return xp.take(moved, xp.argsort(order, stable=True), axis=1), on


def _widths(counts: np.ndarray[Any, Any]) -> list[int]:
    """Give how many of the first points have entries left, batch after batch."""
    begin = np.arange(0, int(counts[0]), _TOGETHER)
    return [int(some) for some in np.searchsorted(-counts, -begin, side="left")]


def _digits(entries: Array, near: Neighbours, xp: Namespace) -> Array:
    """Give the digits of entries: their axes after that of the elements."""
    width, count = near.digits.shape
    flat = xp.asarray(near.digits.reshape(-1), device=_xp.beside(entries))
    first = xp.arange(width, dtype=xp.int32, device=_xp.beside(entries)) * count
    first = xp.reshape(first, (width,) + (1,) * entries.ndim)
    return _xp.lookup(flat, first + xp.expand_dims(entries, 0), xp)


def _best(
    given: list[Array], times: float, left: list[int] | None, near: Neighbours, math_: Arithmetic
) -> Array:
    """Give the entry with the smallest error, the first of equals: (points,).

    `given` are where a point's entries begin, how many those are, and `settle`'s `x`, `weights`,
    `scale` and second of `values`; `left` how many of the first points have entries left, batch
    after batch, or None where all are to be looked at in all of them.
    """
    starts, counts, x, weights, scale, plus = given
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
        valued = _digits(found, near, xp) * times + plus[:width]
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


def shared(scale: Array, most: int, top: int, math_: Arithmetic) -> tuple[Array, Array, Array]:
    """Give the scale of blocks, the codes of their groups' and whether any is not 0.

    `scale` is not negative, (groups, blocks). A code stands for the odd number after its double;
    the largest scale becomes `most`, and `top` is the largest code.
    """
    xp = math_.xp
    largest = xp.max(scale, axis=0)
    some = largest > 0
    base = math_.divide(largest, xp.full_like(largest, float(most)))
    inverse = math_.reciprocal(_xp.where(some, base, 1.0, xp))
    quotient = math_.multiply(math_.multiply(inverse, scale) - 1, 0.5)
    codes = _xp.clip(nearest(quotient, xp), 0, top, xp)
    return base, _xp.where(some, codes, 0.0, xp), some
