"""A scheme is data: six independent choices that say how an array becomes codes.

Decoding is one equation, `x = s * (v(c) - z)`, or `x = s * v(c) + m` where a format keeps a float
offset: `c` the code, `v` the element format's values, `s` the block's scale, `z` its integer zero
point, `m` its offset.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from quantarray.errors import QuantArrayError, choice, integer, short
from quantarray.formats import BFLOAT16, FLOAT16, Codebook, Float, Integer, NumberFormat


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


def _can_store_scales(number: Any) -> bool:
    return isinstance(number, Float) and (number.bits <= 8 or number in (FLOAT16, BFLOAT16))


@dataclass(frozen=True)
class Scale:
    """How a block's range becomes its scale, and how the scale is stored."""

    # "absmax": max |x| / divisor.  "minmax": (max - min) / divisor, the range widened to hold 0.
    # "range": (max - min) / divisor, as the range is.
    rule: Literal["absmax", "minmax", "range"] = "absmax"
    divisor: float = 127.0
    # None: float32, or float64 for float64 input; otherwise float16, bfloat16 or a float format of
    # at most 8 bits. The codes are computed from the scale as stored.
    format: Float | None = None
    # How the quotient becomes a value of `format`: to the nearest, or the next below or above.
    rounding: Literal["half_even", "down", "up"] = "half_even"
    # What a block of zeros gets.
    zero_block: float = 1.0

    def __post_init__(self) -> None:
        choice("Scale", "rule", self.rule, ("absmax", "minmax", "range"))
        choice("Scale", "rounding", self.rounding, ("half_even", "down", "up"))
        if self.format is not None and not _can_store_scales(self.format):
            raise QuantArrayError(
                f"Scale: format={short(self.format)}: "
                "expected float16, bfloat16, a Float of at most 8 bits, or None"
            )
        for field in ("divisor", "zero_block"):
            value = getattr(self, field)
            if not isinstance(value, float) or not 0 < value < math.inf:
                raise QuantArrayError(
                    f"Scale: {field}={short(value)}: expected a positive finite float"
                )
        coded = self.format if self.format is not None and self.format.bits <= 8 else None
        if coded is not None and coded.nan is None:
            raise QuantArrayError(
                f"Scale: format={short(self.format)}: "
                "expected one with a NaN, which poisoned blocks get"
            )
        if coded is not None and self.zero_block not in coded.magnitudes:
            raise QuantArrayError(
                f"Scale: zero_block={self.zero_block}: expected a value of {self.format}"
            )


@dataclass(frozen=True)
class Rounding:
    """How a quotient becomes an integer code."""

    mode: Literal["half_even", "half_away", "toward_zero", "stochastic"] = "half_even"
    # "divide": x / s.  "reciprocal": x * (1 / s), which differs in the last bit.
    quotient: Literal["divide", "reciprocal"] = "divide"
    # Whether the zero point is added to the quotient before it is rounded, or after.
    zero_added: Literal["after", "before"] = "after"

    def __post_init__(self) -> None:
        choice(
            "Rounding", "mode", self.mode, ("half_even", "half_away", "toward_zero", "stochastic")
        )
        choice("Rounding", "quotient", self.quotient, ("divide", "reciprocal"))
        choice("Rounding", "zero_added", self.zero_added, ("after", "before"))


@dataclass(frozen=True)
class Packing:
    """Where the bits of codes narrower than a byte lie; rows are padded to whole bytes."""

    # "lsb": the first code in the lowest bits of the first byte.  "msb": in the highest.
    order: Literal["lsb", "msb"] = "lsb"

    def __post_init__(self) -> None:
        choice("Packing", "order", self.order, ("lsb", "msb"))


@dataclass(frozen=True)
class Scheme:
    """How to quantize: element format, block, scale, zero, rounding, packing."""

    name: str
    element: NumberFormat
    block: Block = Block()
    scale: Scale = Scale()
    # "none": x = s * v.  "point": x = s * (v - z), z an integer.  "offset": x = s * v + m, where m,
    # the smallest element of the block, is a float.
    zero: Literal["none", "point", "offset"] = "none"
    rounding: Rounding = Rounding()
    packing: Packing = Packing()

    def __post_init__(self) -> None:
        choice("Scheme", "zero", self.zero, ("none", "point", "offset"))
        for field, expected in _FIELDS.items():
            if not isinstance(getattr(self, field), expected):
                raise QuantArrayError(
                    f"Scheme: {field}={short(getattr(self, field))}: expected {_names(expected)}"
                )
        if isinstance(self.element, Float) and self.element.bits > 8:
            raise QuantArrayError(
                f"Scheme: element of {self.element.bits} bits: expected at most 8"
            )
        if self.zero != "none" and not isinstance(self.element, Integer):
            raise QuantArrayError(
                f"Scheme: zero={self.zero!r}: only integer elements have zero points or offsets"
            )
        if (self.zero == "offset") != (self.scale.rule == "range"):
            raise QuantArrayError(
                "Scheme: zero='offset' and the scale rule 'range' need each other"
            )
        if self.zero == "offset" and self.element.min != 0:
            raise QuantArrayError("Scheme: zero='offset': expected an unsigned integer element")
        if isinstance(self.element, Codebook) and self.rounding.mode != "half_even":
            raise QuantArrayError("Scheme: rounding: a codebook has only its nearest value")
        narrow = self.scale.format is not None and self.scale.format.bits <= 8
        if self.scale.rule != "absmax" and narrow:
            raise QuantArrayError("Scheme: scale: a format of 8 bits needs the rule 'absmax'")

    def __str__(self) -> str:
        return f"{self.name} ({self.block})"

    def to_dict(self) -> dict[str, Any]:
        """Give the scheme as JSON-ready data.

        Returns
        -------
        dict
            Strings, numbers, lists and dicts only; `from_dict` gives an equal scheme back.
        """
        return typing.cast(dict[str, Any], _dump(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build the scheme that `to_dict` described.

        Parameters
        ----------
        data : mapping
            What `to_dict` gave, perhaps through JSON. It may come from a hostile file.

        Returns
        -------
        Scheme
            The scheme.

        Raises
        ------
        QuantArrayError
            If a field is unknown, missing, or not of its type; the message names it.
        """
        scheme: Self = _parse(cls, data, "scheme")
        return scheme


_FIELDS: dict[str, Any] = {
    "name": str,
    "element": (Integer, Float, Codebook),
    "block": Block,
    "scale": Scale,
    "rounding": Rounding,
    "packing": Packing,
}

# The classes a union of the model can hold, by the name that marks them in JSON.
_KINDS = {"integer": Integer, "float": Float, "codebook": Codebook}
_KIND_NAMES = {cls: name for name, cls in _KINDS.items()}


def _dump(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_dump(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    kind = {"kind": _KIND_NAMES[type(value)]} if type(value) in _KIND_NAMES else {}
    return kind | {f.name: _dump(getattr(value, f.name)) for f in dataclasses.fields(value)}


def _parse(expected: Any, value: Any, where: str) -> Any:
    """Read a JSON value as the annotated type, refusing whatever is not of it."""
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        if not any(type(value) is type(a) and value == a for a in args):
            raise QuantArrayError(
                f"{where}: {short(value)}: expected one of {', '.join(map(repr, args))}"
            )
        return value
    if origin is types.UnionType:
        return _parse_union(args, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple) or (args[-1] is not ... and len(value) != len(args)):
            raise QuantArrayError(f"{where}: {short(value)}: expected a list of {_names(args)}")
        types_ = args[:1] * len(value) if args[-1] is ... else args
        return tuple(
            _parse(t, v, f"{where}[{i}]")
            for i, (t, v) in enumerate(zip(types_, value, strict=True))
        )
    if dataclasses.is_dataclass(expected):
        return _parse_dataclass(typing.cast(type, expected), value, where)
    if expected is float and type(value) is int and abs(value) < 1 << 53:
        value = float(value)
    if type(value) is not expected:
        raise QuantArrayError(f"{where}: {short(value)}: expected {expected.__name__}")
    return value


def _names(types_: Any) -> str:
    members = types_ if isinstance(types_, tuple) else (types_,)
    return ", ".join(getattr(member, "__name__", str(member)) for member in members)


def _parse_union(members: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in members:
        return None
    if isinstance(value, Mapping):
        kind = value.get("kind")
        if not isinstance(kind, str) or _KINDS.get(kind) not in members:
            raise QuantArrayError(
                f"{where}.kind: {short(kind)}: expected one of {', '.join(_KINDS)}"
            )
        return _parse(_KINDS[kind], {k: v for k, v in value.items() if k != "kind"}, where)
    scalar = next((m for m in members if m is type(value)), None)
    if scalar is None:
        raise QuantArrayError(f"{where}: {short(value)}: expected one of {_names(members)}")
    return value


def _parse_dataclass(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise QuantArrayError(f"{where}: {short(value)}: expected an object with fields")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    wrong = [short(n) for n in value if n not in names] or [n for n in names if n not in value]
    if wrong:
        raise QuantArrayError(
            f"{where}: field {wrong[0]}: expected exactly the fields {', '.join(names)}"
        )
    return cls(**{name: _parse(hints[name], value[name], f"{where}.{name}") for name in names})
