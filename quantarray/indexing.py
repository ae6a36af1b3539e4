"""Indices of leading axes, and what they select among elements and among blocks."""

import operator
from dataclasses import dataclass, replace
from typing import Any

from quantarray import _xp
from quantarray._xp import Array
from quantarray.errors import QuantArrayError, short
from quantarray.scheme import Block


@dataclass(frozen=True)
class Selection:
    """Slices of leading axes, of the elements and of the blocks, and the axes that go away."""

    elements: tuple[slice, ...]
    blocks: tuple[slice, ...]
    dropped: tuple[int, ...]

    def take(self, data: Array) -> Array:
        """Select from an array with an axis for each of the elements."""
        return self._take(data, self.elements)

    def take_blocks(self, per_block: Array) -> Array:
        """Select from an array with an entry per block."""
        return self._take(per_block, self.blocks)

    def take_whole(self, outer: Array) -> Array:
        """Select from an array with one entry for the whole of each axis, or for flat blocks."""
        return self._take(outer, (slice(None),) * len(self.elements))

    def _take(self, array: Array, where: tuple[slice, ...]) -> Array:
        taken = array[(*where, ...)]
        shape = tuple(size for axis, size in enumerate(taken.shape) if axis not in self.dropped)
        return _xp.namespace(array).reshape(taken, shape)

    def rename(self, block: Block, ndim: int) -> Block:
        """Rename the axes of a block, counted from the end of `ndim`, as some are dropped."""
        axes = tuple(
            (axis + sum(d > axis + ndim for d in self.dropped), extent)
            for axis, extent in block.axes
            if axis + ndim not in self.dropped
        )
        return replace(block, axes=axes)


def resolve(
    key: Any, shape: tuple[int, ...], extents: tuple[int, ...], *, packed: int, flat: bool
) -> Selection:
    """Find what an index selects.

    Parameters
    ----------
    key : int, slice, Ellipsis, or tuple of them
        What stands between the brackets.
    shape : tuple of int
        The logical shape.
    extents : tuple of int
        Of the blocks.
    packed : int
        How many of the last axes packing changed.
    flat : bool
        Whether blocks do not follow the axes.

    Returns
    -------
    Selection

    Raises
    ------
    QuantArrayError
        If the index is out of bounds, cuts a block or a packed row, or is not of these.
    """
    keys = key if isinstance(key, tuple) else (key,)
    keys = keys[:-1] if keys and keys[-1] is ... else keys
    if flat and keys:
        raise QuantArrayError("index: flat blocks do not follow the axes: dequantize first")
    if len(keys) > len(shape):
        raise QuantArrayError(f"index: {len(keys)} indices for shape {shape}")
    if keys and len(keys) > len(shape) - packed:
        axes, verb = ("last axis", "is") if packed == 1 else (f"last {packed} axes", "are")
        raise QuantArrayError(
            f"index: the {axes} of shape {shape} {verb} packed: index the axes before"
        )
    chosen = [_choose(k, axis, shape[axis], extents[axis]) for axis, k in enumerate(keys)]
    dropped = tuple(axis for axis, k in enumerate(keys) if not isinstance(k, slice))
    return Selection(tuple(e for e, _ in chosen), tuple(b for _, b in chosen), dropped)


def _choose(key: Any, axis: int, size: int, extent: int) -> tuple[slice, slice]:
    """Give where an index of one axis lies, among the elements and among the blocks."""
    if isinstance(key, slice):
        start, stop, step = key.indices(size)
        if step < 1:
            raise QuantArrayError(f"index: {key} of axis {axis}: expected a positive step")
        stop = max(start, stop)
        if extent == 1:
            return slice(start, stop, step), slice(start, stop, step)
        if extent >= size:
            return slice(start, stop, step), slice(0, 1 if start < stop else 0)
        if step == 1 and start % extent == 0 and (stop % extent == 0 or stop == size):
            return slice(start, stop), slice(start // extent, -(-stop // extent))
        raise QuantArrayError(
            f"index: {key} of axis {axis} cuts blocks of {extent}: expected multiples of {extent}"
        )
    try:
        if isinstance(key, bool):
            raise TypeError
        i = operator.index(key)
    except TypeError:
        raise QuantArrayError(
            f"index: {short(key)}: expected integers and slices of leading axes"
        ) from None
    if not -size <= i < size:
        raise QuantArrayError(f"index: {i} of axis {axis}: the axis has {size} elements")
    i %= size
    return slice(i, i + 1), slice(i // extent, i // extent + 1)
