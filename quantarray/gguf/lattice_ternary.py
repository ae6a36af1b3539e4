"""The encoders of IQ1_S and IQ1_M: entries of a lattice of -1, 0 and 1, plus or minus an eighth.

Elements in ascending order are split in three, at the two places that fit best.
"""

from typing import Any

import numpy as np

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import Arithmetic
from quantarray.gguf.block import Blocks, Fields
from quantarray.gguf.lattice_search import entries_of, settled, shared, shrinks
from quantarray.gguf.search import total
from quantarray.lattice_tables import Ternary, neighbours

_LARGEST = float(np.finfo(np.float32).max)
# What is added to -1, 0 and 1.
_DELTAS = (0.125, -0.125)


def encode(blocks: Blocks, *, how: Ternary) -> Fields:
    """IQ1_S, IQ1_M."""
    xp, math_, record = blocks.math_.xp, blocks.math_, blocks.record
    assert record.lattice is not None
    near = neighbours(record.lattice, 3)
    x, weights = blocks.groups(blocks.x), blocks.groups(blocks.mattering(2.0, 0.0))
    empty = xp.max(xp.abs(x), axis=0) < how.least
    scale, digits, delta, found = _split(x, weights, how.parts, math_)
    empty = empty | ~found
    plus = _spread(delta, record.group // record.lattice.width, xp)
    digits, on = settled(digits, x, weights, scale, (1.0, plus - 1), near, math_)
    values = digits - 1 + _spread(delta, record.group, xp)
    product, square = _sums(x, weights, values, math_)
    fits = ~xp.all(on, axis=0) & (product > 0) & (square > 0)
    ratio = math_.divide(product, _xp.where(fits, square, 1.0, xp))
    scale = _xp.where(empty, 0.0, _xp.where(fits, ratio, scale, xp), xp)
    entries = entries_of(digits, near, xp)
    entries = _xp.where(empty, xp.zeros_like(entries), entries, xp)
    base, codes, some = shared(scale, 15, 7, math_)
    if how.again:
        # A group of zeros is one of the first entry, with the first delta.
        first = float(near.digits[0, 0]) - 1 + _DELTAS[0]
        values = _xp.where(empty, first, values, xp)
        values = math_.multiply(values, 2 * codes + 1)
        fitted = _fitted(x, weights, values, base, math_)
        base = _xp.where(some, fitted, 0.0, xp)
    base = math_.multiply(base, float(np.float32(how.times)))
    minus = xp.astype((plus < 0) & ~empty & some, xp.int32)
    return Fields(entries, base, codes, deltas=minus)


def _spread(delta: Array, count: int, xp: Namespace) -> Array:
    """Repeat the deltas of parts, (parts, groups, blocks), for so many of a group."""
    parts = delta.shape[0]
    wide = xp.broadcast_to(xp.expand_dims(delta, 1), (parts, count // parts, *delta.shape[1:]))
    return xp.reshape(wide, (count, *delta.shape[1:]))


def _sums(x: Array, weights: Array, values: Array, math_: Arithmetic) -> tuple[Array, Array]:
    weighted = math_.multiply(weights, values)
    products, squares = math_.multiply(weighted, x), math_.multiply(weighted, values)
    return total(products, math_.xp), total(squares, math_.xp)


def _fitted(x: Array, weights: Array, values: Array, base: Array, math_: Arithmetic) -> Array:
    """Give the scale of a block with which its elements, with those values, err least."""
    xp = math_.xp
    one_by_one = (x.shape[0] * x.shape[1], x.shape[2])
    x, weights, values = (
        xp.reshape(xp.permute_dims(a, (1, 0, 2)), one_by_one) for a in (x, weights, values)
    )
    product, square = _sums(x, weights, values, math_)
    some = square > 0
    ratio = math_.divide(product, _xp.where(some, square, 1.0, xp))
    return _xp.where(some, ratio, base, xp)


def _split(
    x: Array, weights: Array, parts: int, math_: Arithmetic
) -> tuple[Array, Array, Array, Array]:
    """Find scales of groups, their elements' digits, their parts' deltas, and which have any."""
    xp = math_.xp
    count, *shape = x.shape
    # Equal ones in the order of the elements, as the merge sort of C's library has them.
    order = xp.argsort(x + 0.0, axis=0, stable=True)
    rank = xp.argsort(order, axis=0, stable=True)
    sums = _running(x, weights, order, parts, math_)
    choices = 2**parts

    def attempt(state: tuple[Array, ...], entries: tuple[Array, ...]) -> tuple[Any, None]:
        best, scale, chosen = state
        product, square, fits, ratio, score, which = entries
        better = fits & (math_.multiply(product, product) > math_.multiply(best, square))
        return (
            _xp.where(better, score, best, xp),
            _xp.where(better, ratio, scale, xp),
            _xp.where(better, which, chosen, xp),
        ), None

    def attempts(state: Any, first: Array, here: Array, seconds: Array, there: Array) -> Any:
        """Try all splits with one first place: `here` and `there` are the sums at the places."""
        sums_of = _one_delta if parts == 1 else _two_deltas
        products, squares = sums_of(here, there, sums[-1, ...], math_)
        which = xp.reshape((first * (count + 1) + seconds) * choices, (-1, 1))
        which = which + xp.arange(choices, dtype=xp.int32, device=_xp.beside(x))
        fits = (squares > 0) & xp.reshape(seconds >= first, (-1, 1, *(1 for _ in shape)))
        ratios = math_.divide(products, _xp.where(fits, squares, 1.0, xp))
        found = products, squares, fits, ratios, math_.multiply(ratios, products)
        flat = [xp.reshape(a, (-1, *shape)) for a in found]
        return _xp.scan(attempt, state, (*flat, xp.reshape(which, (-1,))), xp)[0]

    largest = xp.max(xp.abs(x), axis=0)
    places = xp.arange(count + 1, dtype=xp.int32, device=_xp.beside(x))
    state = xp.full_like(largest, -_LARGEST), largest, xp.full_like(rank[0, ...], -1)
    state = *state[:2], xp.astype(state[2], xp.int32)
    if shrinks(x, xp):
        for i in range(count + 1):
            state = attempts(state, places[i], sums[i, ...], places[i:], sums[i:, ...])
    else:

        def step(state: Any, entries: tuple[Array, ...]) -> tuple[Any, None]:
            return attempts(state, entries[0], entries[1], places, sums), None

        state, _ = _xp.scan(step, state, (places, sums), xp)
    _, scale, chosen = state
    found = chosen >= 0
    chosen = _xp.where(found, chosen, xp.zeros_like(chosen), xp)
    place, choice = chosen // choices, chosen % choices
    digits = xp.astype(rank >= place // (count + 1), xp.float32)
    digits = digits + xp.astype(rank >= place % (count + 1), xp.float32)
    negative = scale < 0
    digits = _xp.where(negative, 2 - digits, digits, xp)
    choice = _xp.where(negative, choices - 1 - choice, choice, xp)
    bits = [(choice >> (parts - 1 - part)) & 1 for part in range(parts)]
    delta = xp.astype(xp.stack(bits, axis=0), xp.float32) * (_DELTAS[1] - _DELTAS[0]) + _DELTAS[0]
    return xp.abs(scale), digits, delta, found


def _running(x: Array, weights: Array, order: Array, parts: int, math_: Arithmetic) -> Array:
    """Sum elements times weights, and weights, of the first elements in order: none, one, two...

    The shape is (elements + 1, 2, parts, groups, blocks).
    """
    xp = math_.xp
    count, *shape = x.shape
    columns = int(np.prod(shape))
    column = xp.arange(columns, dtype=xp.int32, device=_xp.beside(x))
    flat = xp.reshape(xp.astype(order, xp.int32), (count, columns)) * columns + column
    summed = [
        xp.reshape(_xp.lookup(xp.reshape(a, (-1,)), flat, xp), x.shape)
        for a in (math_.multiply(weights, x), weights)
    ]
    part = xp.astype(order, xp.int32) // (count // parts)
    rows = [xp.zeros((2, parts, *shape), dtype=xp.float32, device=_xp.beside(x))]
    for i in range(count):
        here = xp.stack([a[i, ...] for a in summed], axis=0)
        both = [_xp.where(part[i, ...] == p, here, 0.0, xp) for p in range(parts)]
        rows.append(rows[-1] + xp.stack(both, axis=1))
    return xp.stack(rows, axis=0)


def _one_delta(here: Array, there: Array, last: Array, math_: Arithmetic) -> tuple[Array, Array]:
    """Sum elements times values, and values squared, times weights: (seconds, deltas, ...).

    `here`, `there` and `last` are running sums at the first place, at all second ones, and of all.
    """
    xp = math_.xp
    here, last = xp.broadcast_to(here, there.shape), xp.broadcast_to(last, there.shape)
    thirds = [a[:, :, 0, ...] for a in (here, there - here, last - there)]
    products, squares = [], []
    for delta in _DELTAS:
        product = square = None
        for third, value in zip(thirds, (-1 + delta, delta, 1 + delta), strict=True):
            a = math_.multiply(third[:, 0, ...], value)
            b = math_.multiply(math_.multiply(third[:, 1, ...], value), value)
            product, square = (a, b) if product is None else (product + a, square + b)
        products.append(product)
        squares.append(square)
    return xp.stack(products, axis=1), xp.stack(squares, axis=1)


def _two_deltas(here: Array, there: Array, last: Array, math_: Arithmetic) -> tuple[Array, Array]:
    """As `_one_delta`, for all combinations of the deltas of two parts."""
    xp = math_.xp
    here, last = xp.broadcast_to(here, there.shape), xp.broadcast_to(last, there.shape)
    first_last = here[:, 0, ...] + there[:, 0, ...]
    products, squares = [], []
    for delta in _DELTAS:
        low, middle, high = -1 + delta, delta, 1 + delta
        products.append(math_.multiply(last[:, 0, ...], high) - first_last)
        square = math_.multiply(math_.multiply(last[:, 1, ...], high), high)
        square = square + math_.multiply(here[:, 1, ...], low * low - middle * middle)
        square = square + math_.multiply(there[:, 1, ...], middle * middle - high * high)
        squares.append(square)
    return tuple(
        xp.stack([a[:, 0, ...] + b[:, 1, ...] for a in found for b in found], axis=1)
        for found in (products, squares)
    )
