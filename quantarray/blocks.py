"""Arrays to blocks and back: views that have one axis to reduce for every axis a block spans.

An array of shape (6, 10) in blocks of (1, 4) is padded to (6, 12) and seen as (6, 3, 4); its scales
have shape (6, 3), and (6, 3, 1) in the view. Padding repeats the last element, so that a ragged
last block has the range of its own elements.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.errors import QuantArrayError
from quantarray.scheme import Block

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Blocks:
    """The blocks of an array of one shape: an extent of at least 1 for each axis."""

    shape: tuple[int, ...]
    extents: tuple[int, ...]
    # How many blocks there are along each axis: the shape of the scales.
    grid: tuple[int, ...] = field(init=False)
    # The shape padded to whole blocks; the view's shape, with the scales' shape in it, and the
    # axes of the view that a block spans.
    padded: tuple[int, ...] = field(init=False)
    view: tuple[int, ...] = field(init=False)
    spread_view: tuple[int, ...] = field(init=False)
    axes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        grid = tuple([-(-size // e) for size, e in zip(self.shape, self.extents, strict=True)])
        view: list[int] = []
        axes: list[int] = []
        for count, extent in zip(grid, self.extents, strict=True):
            if extent == 1 or count != 1:
                view.append(count)
            if extent != 1:
                axes.append(len(view))
                view.append(extent)
        spread = [1 if axis in axes else size for axis, size in enumerate(view)]
        padded = tuple([count * e for count, e in zip(grid, self.extents, strict=True)])
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "padded", padded)
        object.__setattr__(self, "view", tuple(view))
        object.__setattr__(self, "spread_view", tuple(spread))
        object.__setattr__(self, "axes", tuple(axes))

    def split(self, x: Array, xp: Namespace, fill: float | None = None) -> Array:
        """View an array of this shape by blocks, padding what is ragged: with `fill` if given."""
        if self.padded != self.shape:
            for axis, (size, wanted) in enumerate(zip(self.shape, self.padded, strict=True)):
                if size < wanted:
                    padding = _repeat_last(x, axis, wanted - size, xp)
                    padding = padding if fill is None else xp.full_like(padding, fill)
                    x = xp.concat([x, padding], axis=axis)
        return self._reshape(x, splitting=True, xp=xp)

    def counts(self) -> np.ndarray[Any, Any]:
        """Give the number of elements of each block."""
        counts = np.ones((), dtype=np.int64)
        for size, extent, count in zip(self.shape, self.extents, self.grid, strict=True):
            last = size - extent * (count - 1)
            along = np.where(np.arange(count) == count - 1, last, extent)
            counts = counts[..., None] * along
        return counts

    def spread(self, per_block: Array, xp: Namespace) -> Array:
        """View an array of one entry per block so that it broadcasts with a split array."""
        if self.grid == self.spread_view:
            return per_block
        return xp.reshape(per_block, self.spread_view)

    def merge(self, view: Array, xp: Namespace) -> Array:
        """Undo `split`."""
        x = self._reshape(view, splitting=False, xp=xp)
        return x if self.padded == self.shape else x[tuple(slice(size) for size in self.shape)]

    def _reshape(self, x: Array, *, splitting: bool, xp: Namespace) -> Array:
        """Reshape to or from the view, one axis at a time: JAX can shard no other reshape."""
        if self.view == self.padded:
            return x
        shape = list(self.padded if splitting else self.view)
        at = 0
        for size, extent, count in zip(self.padded, self.extents, self.grid, strict=True):
            width = 1 if extent == 1 or count == 1 else 2
            if width == 2:
                shape[at : at + (1 if splitting else 2)] = [count, extent] if splitting else [size]
                x = xp.reshape(x, tuple(shape))
            at += width if splitting else 1
        return x


def _repeat_last(x: Array, axis: int, count: int, xp: Namespace) -> Array:
    last = x[(*(slice(None),) * axis, slice(-1, None), ...)]
    return xp.broadcast_to(last, (*x.shape[:axis], count, *x.shape[axis + 1 :]))


def work_shape(block: Block, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give the shape the pipeline works in: raveled for flat blocks, and at least 1-d."""
    return (math.prod(shape),) if block.flat is not None or not shape else shape


@_xp.cached
def resolve(operation: str, block: Block, shape: tuple[int, ...]) -> Blocks:
    """Find the blocks of an array.

    Parameters
    ----------
    operation : str
        Who asks, for the message.
    block : Block
        What the scheme says.
    shape : tuple of int
        The array's shape.

    Returns
    -------
    Blocks
        Of `work_shape`, with every extent at most the axis' length.

    Raises
    ------
    QuantArrayError
        If `block` names an axis that the array does not have.
    """
    if block.flat is not None:
        size = math.prod(shape)
        return Blocks((size,), (max(1, min(block.flat, size)),))
    extents = [1 if block.others == 1 else -1] * len(shape)
    for axis, extent in block.axes:
        extents[_normal_axis(operation, axis, shape)] = extent
    clamped = tuple(_clamp(e, size) for e, size in zip(extents, shape, strict=True))
    return Blocks(shape, clamped) if shape else Blocks((1,), (1,))


def of_grid(block: Block, shape: tuple[int, ...], grid: tuple[int, ...]) -> Blocks:
    """Find the blocks from the shapes that are there, which vmap or scan may have changed."""
    if block.flat is not None or not shape:
        return resolve("dequantize", block, shape)
    named = {axis + len(shape): extent for axis, extent in block.axes}
    extents = [
        1 if count == size else size if count == 1 else named.get(axis, size)
        for axis, (size, count) in enumerate(zip(shape, grid, strict=True))
    ]
    return Blocks(shape, tuple(max(1, extent) for extent in extents))


def _clamp(extent: int, size: int) -> int:
    return max(1, size if extent == -1 else min(extent, size))


def _normal_axis(operation: str, axis: int, shape: tuple[int, ...]) -> int:
    if not -len(shape) <= axis < len(shape):
        raise QuantArrayError(
            f"{operation}: axis {axis} of the scheme's block: x has shape {shape}, so expected "
            + (f"-{len(shape)} to {len(shape) - 1}" if shape else "one scale for the whole array")
        )
    return axis % len(shape)


def from_end(operation: str, block: Block, shape: tuple[int, ...]) -> Block:
    """Rewrite a block so that its axes count from the end of an array of this shape."""
    axes = tuple(
        (_normal_axis(operation, axis, shape) - len(shape), extent) for axis, extent in block.axes
    )
    return block if axes == block.axes else Block(axes, block.others, block.flat)


Part = tuple[Slices, Blocks]


def whole(shape: tuple[int, ...]) -> Slices:
    """Give the slices of a whole array."""
    return tuple(slice(0, size) for size in shape)


def pieces(blocks: Blocks, limit: int, multiple: int = 1) -> Iterator[tuple[Slices, list[Part]]]:
    """Cut an array into pieces of whole blocks.

    Parameters
    ----------
    blocks : Blocks
        The blocks of the array.
    limit : int
        Elements a piece may have. A larger block is a piece of its own, cut into parts.
    multiple : int
        Pieces and parts begin at multiples of this along the last axis, so that packed bytes are
        not shared.

    Yields
    ------
    tuple of (tuple of slice, list of (tuple of slice, Blocks))
        Where the piece's blocks lie in the grid; and its parts: where each lies in the array, and
        its blocks. A part of a cut block is one block.
    """
    for where, grid in _cut(blocks, _steps(blocks, limit, multiple)):
        shape = tuple(s.stop - s.start for s in where)
        if math.prod(shape) <= limit or any(s.stop - s.start > 1 for s in grid):
            yield grid, [(where, Blocks(shape, tuple(map(min, blocks.extents, shape))))]
            continue
        elements = Blocks(shape, (1,) * len(shape))
        parts = []
        for inner, _ in _cut(elements, _steps(elements, limit, multiple)):
            at = tuple(
                slice(s.start + i.start, s.start + i.stop)
                for s, i in zip(where, inner, strict=True)
            )
            size = tuple(i.stop - i.start for i in inner)
            parts.append((at, Blocks(size, size)))
        yield grid, parts


def _steps(blocks: Blocks, limit: int, multiple: int) -> tuple[int, ...]:
    """Give the shape of a piece: whole blocks, grown from the last axis on while they fit."""
    unit = list(blocks.extents)
    if unit and unit[-1] < blocks.shape[-1]:
        unit[-1] = math.lcm(unit[-1], multiple)
    steps = unit.copy()
    for axis in reversed(range(len(unit))):
        room = max(1, limit // math.prod(steps))
        steps[axis] = unit[axis] * min(room, -(-blocks.shape[axis] // unit[axis]))
        if steps[axis] < blocks.shape[axis]:
            break
    return tuple(steps)


def _cut(blocks: Blocks, steps: tuple[int, ...]) -> Iterator[tuple[Slices, Slices]]:
    if not steps:
        yield (), ()
        return
    head = Blocks(blocks.shape[:-1], blocks.extents[:-1])
    size, extent, step = blocks.shape[-1], blocks.extents[-1], steps[-1]
    for where, grid in _cut(head, steps[:-1]):
        for start in range(0, size, step):
            stop = min(start + step, size)
            yield (*where, slice(start, stop)), (*grid, slice(start // extent, -(-stop // extent)))
