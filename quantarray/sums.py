"""Sums in one order, so that every library rounds them the same way."""

import math

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import Arithmetic
from quantarray.blocks import Blocks


def tree_sum(x: Array, axes: tuple[int, ...], xp: Namespace) -> Array:
    """Add neighbours, then neighbouring sums, and so on, along one axis after the other.

    Parameters
    ----------
    x : array of float32 or float64
        Not empty.
    axes : tuple of int
        Not negative, ascending; the last is summed first.
    xp : namespace
        The array's.

    Returns
    -------
    array of x's dtype
        The axes stay, with length 1.
    """
    for axis in reversed(axes):
        while x.shape[axis] > 1:
            x = _add_pairs(x, axis, xp)
    return x


def _add_pairs(x: Array, axis: int, xp: Namespace) -> Array:
    head, (size, *tail) = x.shape[:axis], x.shape[axis:]
    every = (slice(None),) * axis
    if size % 2:
        x = xp.concat([x, xp.zeros_like(x[(*every, slice(1), ...)])], axis=axis)
    pairs = xp.reshape(x, (*head, (size + 1) // 2, 2, *tail))
    return pairs[(*every, slice(None), 0, ...)] + pairs[(*every, slice(None), 1, ...)]


def mean_magnitude(x: Array, absmax: Array, blocks: Blocks, math_: Arithmetic) -> Array:
    """Give the mean of the magnitudes of each block, subnormal ones taken for zeros.

    Parameters
    ----------
    x : array of float32 or float64, shape ``blocks.shape``
        Values, not empty.
    absmax : array, shape ``blocks.grid``
        The largest magnitude of each block.
    blocks : Blocks
        The blocks.
    math_ : Arithmetic
        On x's dtype.

    Returns
    -------
    array of x's dtype, shape ``blocks.grid``
    """
    xp = math_.xp
    # The sum of many large numbers can overflow; that of a fraction of each cannot.
    fraction = 0.5 ** math.ceil(math.log2(math.prod(blocks.extents)))
    part = _xp.where(absmax > math_.limit * fraction, xp.full_like(absmax, fraction), 1.0, xp)
    magnitudes = blocks.split(math_.flush(xp.abs(x)), xp, fill=0.0)
    total = tree_sum(_xp.multiply(magnitudes, blocks.spread(part, xp), xp), blocks.axes, xp)
    counts = xp.asarray(blocks.counts().astype(math_.dtype), device=_xp.beside(x))
    return math_.divide(math_.divide(xp.reshape(total, blocks.grid), counts), part)
