"""The encoders of the types whose codes are entries of a lattice: IQ2 and IQ3.

Each does what the function ``quantize_row_<type>_impl`` of `ggml-quants.c` does, on many blocks at
once.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import Arithmetic
from quantarray.gguf import lattice_ternary, search
from quantarray.gguf.block import Blocks, Encoder, Fields
from quantarray.gguf.lattice_search import entries_of, settled, shared
from quantarray.gguf.search import total
from quantarray.lattice_tables import SEARCHES, TERNARY, Neighbours, Search, factors, neighbours
from quantarray.records import RECORDS


def _signed(blocks: Blocks, *, how: Search) -> Fields:
    """IQ2 and IQ3: values are odd numbers times half a scale, and have a sign each."""
    xp, math_, record = blocks.math_.xp, blocks.math_, blocks.record
    assert record.lattice is not None
    near = neighbours(record.lattice, how.distances)
    x, weights = blocks.groups(blocks.x), blocks.groups(blocks.mattering(how.energy, how.typical))
    signs, x = _signs(x, weights, record.sign_bits == "parity", math_)
    largest = xp.max(x, axis=0)
    empty = (largest < how.least) | (largest == 0)
    largest = _xp.where(empty, 1.0, largest, xp)
    scale, digits, fits = _scales(x, weights, largest, near, how, math_)
    empty = empty | ~fits
    scale = _xp.where(empty, 0.0, scale, xp)
    flipped = xp.astype(scale < 0, xp.int32) * (127 if record.sign_bits == "parity" else 255)
    signs = _xp.where(empty, xp.zeros_like(signs), signs ^ flipped, xp)
    entries = entries_of(digits, near, xp)
    entries = _xp.where(empty, xp.zeros_like(entries), entries, xp)
    if how.crowded:
        entries, signs = _crowded(entries, empty, 256, xp), _crowded(signs, empty, 256, xp)
    base, scales, some = shared(xp.abs(scale), 31, 15, math_)
    base = math_.multiply(base, float(np.float32(how.times)))
    if how.cleared:
        entries = _xp.where(some, entries, xp.zeros_like(entries), xp)
        signs = _xp.where(some, signs, xp.zeros_like(signs), xp)
    return Fields(entries, base, scales, signs=signs)


def _signs(x: Array, weights: Array, parity: bool, math_: Arithmetic) -> tuple[Array, Array]:
    """Give the signs of every eight elements, int32, and elements without them.

    With `parity` an even number is negative, and seven bits say which: where that takes it, the
    element that counts least keeps its sign, and the others' product has it.
    """
    xp = math_.xp
    shape = (x.shape[0] // 8, 8, *x.shape[1:])
    x, weights = xp.reshape(x, shape), xp.reshape(weights, shape)
    negative = x < 0
    magnitude = _xp.where(negative, -x, x, xp)
    if parity:
        odd = xp.sum(xp.astype(negative, xp.int32), axis=1) & 1
        least = xp.argmin(math_.multiply(math_.multiply(weights, x), x), axis=1)
        index = xp.arange(8, dtype=least.dtype, device=_xp.beside(x))
        index = xp.reshape(index, (1, 8) + (1,) * (x.ndim - 2))
        turned = (index == xp.expand_dims(least, 1)) & xp.expand_dims(odd == 1, 1)
        negative = negative ^ turned
        magnitude = _xp.where(turned, -magnitude, magnitude, xp)
    bits = xp.zeros((shape[0], *shape[2:]), dtype=xp.int32, device=_xp.beside(x))
    for index in range(7 if parity else 8):
        bits = bits | (xp.astype(negative[:, index, ...], xp.int32) << index)
    return bits, xp.reshape(magnitude, (-1, *shape[2:]))


def _scales(
    x: Array,
    weights: Array,
    largest: Array,
    near: Neighbours,
    how: Search,
    math_: Arithmetic,
) -> tuple[Array, Array, Array]:
    """Give the scales of groups, the digits of their elements, and which groups are not zeros.

    The digits are on the lattice.
    """
    xp = math_.xp
    top = near.levels - 1
    roots = _xp.sqrt(weights, xp)
    weighted = math_.multiply(weights, x)
    if how.positive:
        scale, _ = search.positive(x, near.levels + 1, weights, math_)
        fits = ~(math_.multiply(scale, float(near.levels)) <= 0)  # NaN, which makes no float16
        scale = _xp.where(fits, scale, 1.0, xp)
        largest = math_.multiply(scale, float(near.levels))
    else:
        fits = largest > 0
        scale = math_.divide(largest, xp.full_like(largest, 2.0 * top + 1))

    def round_(inverse: Array, scale: Array) -> tuple[Array, Array]:
        quotient = math_.multiply(math_.multiply(inverse, x) - 1, 0.5)
        digits = _xp.clip(search.nearest(quotient, xp), 0, top, xp)
        return settled(digits, x, roots, scale, (2.0, xp.ones_like(scale)), near, math_)

    def fit(digits: Array) -> tuple[Array, Array]:
        values = 2 * digits + 1
        squares = math_.multiply(math_.multiply(weights, values), values)
        return total(math_.multiply(weighted, values), xp), total(squares, xp)

    def attempt(state: tuple[Array, ...], entries: tuple[Array, ...]) -> tuple[Any, None]:
        _, best, digits, on = state
        inverse = math_.divide(xp.broadcast_to(entries[0], largest.shape), largest)
        tried, here = round_(inverse, math_.reciprocal(inverse))
        product, square = fit(tried)
        better = (square > 0) & (math_.multiply(product, product) > math_.multiply(best, square))
        ratio = math_.divide(product, _xp.where(better, square, 1.0, xp))
        return (
            _xp.where(better, ratio, state[0], xp),
            _xp.where(better, math_.multiply(ratio, product), best, xp),
            _xp.where(better, tried, digits, xp),
            _xp.where(better, here, on, xp),
        ), None

    width = near.digits.shape[0]
    on = xp.ones((x.shape[0] // width, *x.shape[1:]), dtype=xp.bool, device=_xp.beside(x))
    if how.again == "any off":  # until one is better
        on = ~on
    start = scale, xp.zeros_like(scale), xp.zeros_like(x), on
    tried = xp.asarray(factors(how, near.levels), device=_xp.beside(x))
    (scale, _, digits, on), _ = _xp.scan(attempt, start, (tried,), xp)
    again = ~on
    if how.again != "off":
        again = xp.broadcast_to(xp.any(again, axis=0) | (how.again == "all"), again.shape)
    again = again & (scale > 0)
    moved, _ = round_(math_.reciprocal(_xp.where(scale > 0, scale, 1.0, xp)), scale)
    wide = xp.reshape(
        xp.broadcast_to(xp.expand_dims(again, 1), (again.shape[0], width, *again.shape[1:])),
        x.shape,
    )
    digits = _xp.where(wide, moved, digits, xp)
    product, square = fit(digits)
    changed = xp.any(again, axis=0) & (square > 0)
    ratio = math_.divide(product, _xp.where(changed, square, 1.0, xp))
    return _xp.where(changed, ratio, scale, xp), digits, fits


def _crowded(fields: Array, empty: Array, least: int, xp: Namespace) -> Array:
    """Move the lower bits of fields to the place of groups of zeros before them.

    IQ3_S: C counts such groups for the ninth bits of entries, but not for the eight others, nor for
    signs, so that what follows in the block decodes to other numbers.
    """
    groups = empty.shape[0]
    low, high = fields & (least - 1), fields & ~(least - 1)
    given = xp.astype(~empty, xp.int32)
    rank = xp.cumulative_sum(given, axis=0) - 1
    to = xp.reshape(xp.arange(groups, dtype=rank.dtype, device=_xp.beside(rank)), (-1, 1, 1))
    here = xp.astype(xp.expand_dims(rank, 0) == to, xp.int32) * given
    moved = xp.sum(xp.expand_dims(low, 1) * here, axis=2, dtype=xp.int32)
    return moved | high


def _encoders() -> Iterator[tuple[str, tuple[Encoder | None, Encoder]]]:
    for name in (*TERNARY, *SEARCHES):
        found: Encoder
        if name in TERNARY:
            found = functools.partial(lattice_ternary.encode, how=TERNARY[name])
        else:
            found = functools.partial(_signed, how=SEARCHES[name])
        yield name, (None if RECORDS[name].importance == "needed" else found, found)


# As `ENCODERS`: C does not encode some without importances.
LATTICE_ENCODERS = dict(_encoders())
