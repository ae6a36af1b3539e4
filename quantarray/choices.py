"""Choices of a scheme that are data by themselves: blocks, rounding, packing."""

import typing
from dataclasses import dataclass
from typing import Any, Literal, Self

from quantarray.errors import QuantArrayError, choice, integer, short
from quantarray.records import RECORDS


def check_choices(part: Any, *fields: str) -> None:
    """Refuse a value that the annotation of its field does not list."""
    for field in fields:
        allowed = typing.get_args(type(part).__annotations__[field])
        choice(type(part).__name__, field, getattr(part, field), allowed)


@dataclass(frozen=True)
class Block:
    """Which elements share a scale: an extent for some axes and one for all the others.

    -1 is the whole axis. The default, with no axis named, is one block for the whole array.
    """

    # (axis, extent) pairs. Negative axes count from the end; `quantize` stores only those, so that
    # a scheme stays true when leading axes are added or dropped (vmap, scan, indexing).
    axes: tuple[tuple[int, int], ...] = ()
    others: Literal[1, -1] = -1
    # Blocks of this many consecutive elements of the raveled (C order) array, instead of axes.
    flat: int | None = None

    def __post_init__(self) -> None:
        if self.others not in (1, -1):
            raise QuantArrayError(f"Block: others={short(self.others)}: expected 1 or -1")
        if type(self.axes) is not tuple or len(dict(self.axes)) < len(self.axes):
            raise QuantArrayError(
                f"Block: axes={short(self.axes)}: expected pairs, each axis named once"
            )
        for axis, extent in self.axes:
            integer("Block", "axis", axis, -64, 63)
            integer("Block", f"extent of axis {axis}", extent, -1, 1 << 62)
            if extent == 0:
                raise QuantArrayError(
                    f"Block: extent of axis {axis}=0: expected 1 or more, or -1 (the whole axis)"
                )
        if self.flat is not None:
            integer("Block", "flat", self.flat, 1, 1 << 62)
            if self.axes:
                raise QuantArrayError(
                    f"Block: flat={self.flat}: expected no axes, not {short(self.axes)}"
                )

    @classmethod
    def channel(cls, axis: int) -> Self:
        """Give every index of one axis its own scale."""
        return cls(axes=((axis, 1),))

    @classmethod
    def group(cls, size: int, axis: int = -1) -> Self:
        """Give every `size` consecutive elements along one axis their own scale."""
        return cls(axes=((axis, size),), others=1)

    @classmethod
    def tile(cls, extents: tuple[int, ...]) -> Self:
        """Give every tile of the last `len(extents)` axes its own scale."""
        return cls(axes=tuple((i - len(extents), e) for i, e in enumerate(extents)), others=1)

    def __str__(self) -> str:
        if self.flat is not None:
            return f"flat {self.flat}"
        if not self.axes:
            return "per tensor" if self.others == -1 else "per element"
        axes, extents = zip(*self.axes, strict=True)
        where = ", ".join(map(str, axes))
        if self.others == -1 and set(extents) == {1}:
            return f"per channel of axis {where}"
        sizes = " x ".join("whole" if extent == -1 else str(extent) for extent in extents)
        others = "" if self.others == 1 else ", other axes whole"
        return f"blocks of {sizes} along axis {where}{others}"


@dataclass(frozen=True)
class Rounding:
    """How a quotient becomes a code."""

    mode: Literal["half_even", "half_away", "half_down", "toward_zero", "stochastic"] = "half_even"
    # "divide": x / s.  "reciprocal": x * (1 / s), which differs in the last bit.  "but_tail": that,
    # but x / s in a block that is cut short by the end of the array.
    quotient: Literal["divide", "reciprocal", "but_tail"] = "divide"
    # Whether the zero point is added to the quotient before it is rounded, or after.
    zero_added: Literal["after", "before"] = "after"
    # What has the code of -0.0 in formats with one: -0.0 and what rounds to it, or only what rounds
    # to it, or nothing.
    negative_zero: Literal["kept", "rounded", "never"] = "kept"
    # What elements of a block whose scale is 0 get: the code nearest to 0, or code 0.
    zero_scale: Literal["nearest", "first"] = "nearest"

    def __post_init__(self) -> None:
        check_choices(self, "mode", "quotient", "zero_added", "negative_zero", "zero_scale")


@dataclass(frozen=True)
class Packing:
    """Where the bits of codes lie in the words of a row; rows are padded to whole words.

    Codes of 8 bits or more are stored as they are, unless words have 32 bits.
    """

    # "lsb": the first code in the lowest bits of the first word.  "msb": in the highest.
    order: Literal["lsb", "msb"] = "lsb"
    # 8: uint8.  32: int32, little-endian in bytes.
    word: Literal[8, 32] = 8
    # Whether codes follow one another across words; otherwise a word holds only whole codes.
    dense: bool = True
    # Signed codes are stored plus 2**(bits - 1), and not as two's complement.
    excess: bool = False
    # Which code of a word comes first, second, ...: (0, 2, 4, 6, 1, 3, 5, 7) puts code 2 second.
    interleave: tuple[int, ...] = ()
    # Whether the codes of a word come from equal parts of the row, the first of each for the first
    # word, and are not neighbours (quanto and HQQ along the first axis; the halves of ggml).
    strided: bool = False
    # "words": the last two axes of the packed array are exchanged.  "codes": those of the codes
    # are, before they are packed.  "both": codes are packed along the last axis but one.
    transpose: Literal["no", "words", "codes", "both"] = "no"
    # Bytes are stored as int8, less 128.
    centred: bool = False
    # What the last word of a row is filled up with: zero bits, or codes of the value 0.
    padding: Literal["bits", "value"] = "bits"
    # A block type of ggml, in whose bytes codes, scales and offsets lie together; it settles all
    # other choices of its scheme.
    record: str = ""

    def __post_init__(self) -> None:
        check_choices(self, "order", "word", "transpose", "padding")
        for field in ("dense", "excess", "strided", "centred"):
            if type(getattr(self, field)) is not bool:
                raise QuantArrayError(
                    f"Packing: {field}={short(getattr(self, field))}: expected True or False"
                )
        if self.centred and self.word != 8:
            raise QuantArrayError("Packing: centred=True: expected words of 8 bits")
        if self.record not in ("", *RECORDS):
            raise QuantArrayError(
                f"Packing: record={short(self.record)}: expected one of {', '.join(RECORDS)}"
            )
        if sorted(self.interleave) != list(range(len(self.interleave))):
            raise QuantArrayError(
                f"Packing: interleave={short(self.interleave)}: expected each of 0, 1, 2, ... once"
            )
