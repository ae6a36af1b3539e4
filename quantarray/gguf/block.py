"""Blocks that are to be encoded, and what they store."""

from collections.abc import Callable
from typing import NamedTuple

from quantarray import _xp
from quantarray._xp import Array
from quantarray.arithmetic import Arithmetic
from quantarray.gguf.search import total
from quantarray.records import Record


class Blocks(NamedTuple):
    """Blocks to encode, and what their elements count."""

    x: Array  # (elements, blocks)
    weights: Array | None  # the same shape
    energy: Array | None  # the mean square of each block's row, where weights are given: (blocks,)
    record: Record
    math_: Arithmetic

    def groups(self, x: Array) -> Array:
        """View as (elements of a group, groups, blocks)."""
        xp = self.math_.xp
        shape = (self.record.groups, self.record.group, x.shape[-1])
        return xp.permute_dims(xp.reshape(x, shape), (1, 0, 2))

    def squares(self) -> Array:
        """Sum the squares of each block: (blocks,)."""
        return total(self.math_.multiply(self.x, self.x), self.math_.xp)

    def weighted(self, energy: Array) -> Array:
        """Give what elements count beside what is typical for them: (elements, blocks)."""
        xp, math_ = self.math_.xp, self.math_
        spread = _xp.sqrt(energy + math_.multiply(self.x, self.x), xp)
        return math_.multiply(self.weights, spread)

    def mattering(self, times: float, typical: float) -> Array:
        """Give what elements of lattices count: (elements, blocks).

        `times` is what the mean square of a block is multiplied by, and `typical` what of that is
        added to the square of an element without importances.
        """
        math_ = self.math_
        energy = math_.multiply(self.squares(), times)
        energy = math_.divide(energy, float(self.record.elements))
        if self.weights is not None:
            return self.weighted(energy)
        squares = math_.multiply(self.x, self.x)
        return squares + math_.multiply(energy, typical) if typical else squares


class Fields(NamedTuple):
    """What a block stores."""

    codes: Array  # (elements of a group, or their entries of a lattice, groups, blocks)
    base: Array | None = None  # float32, (blocks,)
    scales: Array | None = None  # (groups, blocks)
    offset: Array | None = None  # float32, (blocks,)
    mins: Array | None = None  # (groups, blocks)
    signs: Array | None = None  # (signs of 8 elements in a group, groups, blocks)
    deltas: Array | None = None  # (entries in a group, groups, blocks)


Encoder = Callable[[Blocks], Fields]
