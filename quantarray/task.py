"""What the pipeline is told, and what it gives."""

import math
from dataclasses import dataclass, field

from quantarray import _xp, codec, packing
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import Arithmetic, working_dtype
from quantarray.blocks import Blocks, Slices, of_grid
from quantarray.formats import Integer, NumberFormat
from quantarray.parameters import Outer, Parameters, float_dtype
from quantarray.scheme import Rounding, Scheme

# Elements of a piece: its float32 temporaries are 1 MiB each.
PIECE = 1 << 18


_DEFAULT = Rounding()


def arithmetic(scheme: Scheme, dtype: str, xp: Namespace) -> Arithmetic:
    """Give what a scheme's steps on values of a dtype are computed with."""
    working = working_dtype(dtype)
    return Arithmetic(working, dtype if scheme.arithmetic == "input" else working, xp)


@dataclass(frozen=True, eq=False)
class Task:
    """All that the pipeline needs to know besides the values."""

    blocks: Blocks
    scheme: Scheme
    xp: Namespace
    # The dtype of the array that is, or was, quantized.
    dtype: str
    # "raise", "propagate" or "saturate".
    nonfinite: str = "raise"
    key: int | None = None
    given: Parameters | None = None
    # Whether values can be looked at: not while traced, compiled, or lazy.
    concrete: bool = True
    # What the scheme's steps are computed with.
    arithmetic: Arithmetic = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arithmetic", arithmetic(self.scheme, self.dtype, self.xp))

    @property
    def element(self) -> NumberFormat:
        """The element format."""
        return self.scheme.element

    @property
    def in_rows(self) -> bool:
        """Whether codes are packed, row by row."""
        how = self.scheme.packing
        return self.scheme.packed and how.transpose == "no" and not how.strided

    @property
    def in_pieces(self) -> bool:
        """Whether the array is large and its library computes each operation at once."""
        if not in_pieces(self.xp, math.prod(self.blocks.shape), PIECE):
            return False
        # Sums are in the order of a whole block.
        return self.scheme.scale.rule != "absmean" or math.prod(self.blocks.extents) <= PIECE

    @property
    def multiple(self) -> int:
        """The number of codes after which a row may be cut."""
        return packing.unit(self.element.bits, self.scheme.packing) if self.in_rows else 1

    @property
    def inside(self) -> bool:
        """Whether no quotient needs clipping.

        True where the scale is absmax / max: that and the quotient are rounded a few times, each to
        a relative 2**-21 at worst, which is far less than the half code that clipping could need.
        """
        rule, element = self.scheme.scale, self.element
        return (
            isinstance(element, Integer)
            and self.given is None
            and self.concrete
            and self.nonfinite == "raise"
            and self.key is None
            and (rule.rule, rule.divisor, rule.format) == ("absmax", element.max, None)
            and (self.scheme.zero, self.scheme.rounding) == ("none", _DEFAULT)
            and element.plain
            and rule.least is None
        )

    def working(self, x: Array) -> Array:
        """Give the values that arithmetic is done on."""
        return _xp.cast(x, self.arithmetic.dtype, self.xp)

    def data_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Give the shape of the stored codes of an array of this shape."""
        record = self.scheme.record
        if record is not None:
            return (*shape[:-1], record.row_bytes(shape[-1]))
        if not self.scheme.packed:
            return shape
        return packing.packed_shape(shape, self.element.bits, self.scheme.packing)

    def rows_where(self, where: Slices) -> Slices:
        """Give where the codes of a piece lie, in packed rows if they are in rows."""
        if not self.in_rows:
            return where
        row, bits, how = where[-1], self.element.bits, self.scheme.packing
        stop = packing.words(row.stop, bits, how)
        return (*where[:-1], slice(packing.words(row.start, bits, how), stop))


def in_pieces(xp: Namespace, size: int, piece: int) -> bool:
    """Tell whether arrays are worked on in pieces: large ones, whose operations are not fused."""
    return _xp.backend(xp) == "numpy" and size > piece


@_xp.cached
def decoding(
    scheme: Scheme,
    shape: tuple[int, ...],
    grid: tuple[int, ...],
    dtype: str,
    xp: Namespace,
    concrete: bool,
) -> Task:
    """Give the task of codes of a shape, with a grid of scales."""
    return Task(of_grid(scheme.block, shape, grid), scheme, xp, dtype, concrete=concrete)


@dataclass(frozen=True)
class Result:
    """Stored codes, and the parameters of their blocks as they are stored."""

    data: Array
    scale: Array  # None where it lies among the codes
    zero_point: Array | None = None
    offset: Array | None = None
    outer: Outer | None = None

    def with_grid(self, grid: tuple[int, ...], xp: Namespace) -> "Result":
        """Give the shape of the grid of blocks to what has an entry for each."""

        def reshape(array: Array | None) -> Array | None:
            return None if array is None else xp.reshape(array, grid)

        scale, zero_point, offset = map(reshape, (self.scale, self.zero_point, self.offset))
        return Result(self.data, scale, zero_point, offset, self.outer)


def result(data: Array, parameters: Parameters, task: Task) -> Result:
    """Give parameters the dtypes in which they are stored, beside stored codes."""
    xp, zero, offset = task.xp, parameters.zero, parameters.offset
    if zero is not None:
        zero = _xp.cast(zero, codec.code_dtype(task.element), xp)
    if offset is not None:
        offset = _xp.cast(offset, float_dtype(task.scheme, task.dtype), xp)
    return Result(data, parameters.stored, zero, offset, parameters.outer)
