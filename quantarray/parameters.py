"""What is known of each block, and what its codes mean."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import Arithmetic, working_dtype
from quantarray.blocks import Blocks, Slices
from quantarray.formats import DTYPES, Float
from quantarray.scheme import Scale, Scheme


@dataclass(frozen=True)
class Outer:
    """What the codes of scales mean, where there are two levels: one entry per block of scales."""

    scale: Array
    offset: Array | None = None


@dataclass(frozen=True)
class Parameters:
    """What the codes of each block mean: a scale, and a zero point or offset if the scheme has one.

    All are floats of the arithmetic's dtype with one entry per block, but for `stored`: the scales
    in the dtype, or as the codes, that the scheme stores; and `outer`.
    """

    scale: Array
    stored: Array
    zero: Array | None = None
    offset: Array | None = None
    # 1 / scale where that is not how it is computed; and what elements are divided by before they
    # are multiplied with that.
    inverse: Array | None = None
    inner: Array | None = None
    outer: Outer | None = None

    def map(self, function: Callable[[Array], Array]) -> "Parameters":
        """Apply a function to each array that has an entry per block."""

        def apply(array: Array | None) -> Array | None:
            return None if array is None else function(array)

        return Parameters(
            function(self.scale),
            function(self.stored),
            apply(self.zero),
            apply(self.offset),
            apply(self.inverse),
            apply(self.inner),
            self.outer,
        )

    def spread(self, blocks: Blocks, xp: Namespace) -> "Parameters":
        """View them so that they broadcast with a split array."""
        if blocks.grid == blocks.spread_view:
            return self
        return self.map(lambda array: blocks.spread(array, xp))

    def at(self, blocks: Slices) -> "Parameters":
        """Give those of some of the blocks."""
        return self.map(lambda array: array[blocks])


@dataclass(frozen=True)
class Range:
    """The smallest and largest element of each block; not finite where an element is not."""

    low: Array
    high: Array
    # The mean magnitude, where the scheme's rule asks for it.
    mean: Array | None = None

    def within(self, limit: float, xp: Namespace) -> Array:
        """Tell which blocks hold only finite elements, none beyond a limit."""
        return xp.maximum(self.high, -self.low) <= limit  # false for NaN


def float_dtype(scheme: Scheme, dtype: str) -> str:
    """Name the dtype of scales and offsets that have no format, for input of `dtype`."""
    return dtype if scheme.scale.width == "input" else working_dtype(dtype)


def stored_dtype(scheme: Scheme, dtype: str) -> str:
    """Name the dtype that scales are stored in, for input of `dtype`."""
    if scheme.scale.format is None:
        return float_dtype(scheme, dtype)
    return next((name for name, f in DTYPES.items() if f == scheme.scale.format), "uint8")


def least_scale(rule: Scale, math_: Arithmetic) -> float:
    """Give the smallest scale of a block that is not all zero."""
    return math_.smallest_normal if rule.least is None else rule.least


def zero_block_scale(rule: Scale, math_: Arithmetic) -> float:
    """Give the scale of a block of zeros."""
    if isinstance(rule.zero_block, float):
        return rule.zero_block
    return math_.epsilon if rule.zero_block == "epsilon" else least_scale(rule, math_)


def nan_of(scheme: Scheme) -> Any:
    """Give what a scheme stores for a NaN scale, or None if it stores none."""
    coded = scheme.scale.coded
    if coded is None:
        return None if scheme.record is not None and not scheme.record.base else math.nan
    return coded.nan if isinstance(coded, Float) else None


def poison(
    parameters: Parameters, finite: Array | None, scheme: Scheme, xp: Namespace
) -> Parameters:
    """Give blocks that are not finite a NaN scale, which decodes to NaN, and zero for the rest."""
    if finite is None:
        return parameters
    nan = nan_of(scheme)
    settled = parameters.map(lambda array: _xp.where(finite, array, xp.zeros_like(array), xp))
    stored = settled.stored
    if nan is not None:
        stored = _xp.where(finite, stored, xp.full_like(stored, nan), xp)
    return replace(settled, scale=_xp.where(finite, parameters.scale, math.nan, xp), stored=stored)
