"""A scheme is data: six independent choices that say how an array becomes codes.

Decoding is one equation, `x = s * (v(c) - z)`, or `x = s * v(c) + m` where a format keeps a float
offset: `c` the code, `v` the element format's values, `s` the block's scale, `z` its integer zero
point, `m` its offset.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from quantarray import schema
from quantarray.choices import Block as Block
from quantarray.choices import Packing as Packing
from quantarray.choices import Rounding as Rounding
from quantarray.choices import check_choices
from quantarray.errors import QuantArrayError, short
from quantarray.formats import BFLOAT16, FLOAT16, Codebook, Float, Integer, NumberFormat
from quantarray.records import RECORDS, Record


def _can_store_scales(number: Any) -> bool:
    return isinstance(number, Float) and (number.bits <= 8 or number in (FLOAT16, BFLOAT16))


@dataclass(frozen=True)
class Scale:
    """How a block's range becomes its scale, and how the scale is stored."""

    # "absmax": max |x| / divisor.  "minmax": (max - min) / divisor, the range widened to hold 0.
    # "range": (max - min) / divisor, as the range is.  "absmean": mean |x| / divisor.  "edge": as
    # "range", then changed so that a whole number of scales is the end with the larger magnitude,
    # and negative where that is the largest element.  "one": 1.  "record": what the encoder of the
    # packing's record finds.
    rule: Literal["absmax", "minmax", "range", "absmean", "edge", "one", "record"] = "absmax"
    divisor: float = 127.0
    # float16, bfloat16, a float format of at most 8 bits, or a scheme for the array of scales: then
    # the scales of those scales, derived from the same blocks' ranges, are stored too. None: a
    # dtype, see `width`.
    format: "Float | Scheme | None" = None
    # The dtype of scales and offsets without a format: float32 (float64 for float64 input), or that
    # of the input.
    width: Literal["arithmetic", "input"] = "arithmetic"
    # How the quotient becomes a value of `format`: to the nearest, or the next below or above, or
    # to the power of two that ceil(log2()) gives in float32, which is too small just above one.
    rounding: Literal["half_even", "down", "up", "up_log2"] = "half_even"
    # No block has a smaller scale, but for what a block of zeros, and in a narrow format one whose
    # scale rounds to 0, gets. None: the smallest normal number.
    least: float | None = None
    zero_block: float | Literal["least", "epsilon"] = 1.0
    # Whether codes are computed from the scale as it is stored, or before it was rounded to that.
    codes_from: Literal["stored", "unrounded"] = "stored"
    # For scales of scales. "reciprocal": divisor * (1 / max |x|) is stored, and values decode by
    # dividing by it.  "absmax": max |x| is stored, and values decode by multiplying with it over
    # the divisor; elements are divided by the inner scales first.
    stored: Literal["scale", "reciprocal", "absmax"] = "scale"

    def __post_init__(self) -> None:
        check_choices(self, "rule", "width", "rounding", "codes_from", "stored")
        self._check_number("divisor", self.divisor, least=0.0, open_=True)
        if self.least is not None:
            self._check_number("least", self.least, least=0.0)
        if not isinstance(self.zero_block, str):
            self._check_number("zero_block", self.zero_block, least=0.0)
        elif self.zero_block not in ("least", "epsilon"):
            raise QuantArrayError(
                f"Scale: zero_block={short(self.zero_block)}: "
                "expected 'least', 'epsilon' or a float"
            )
        if self.format is not None:
            self._check_format()

    def _check_format(self) -> None:
        if isinstance(self.format, Scheme):
            self.format.check_outer()
        elif not _can_store_scales(self.format):
            raise QuantArrayError(
                f"Scale: format={short(self.format)}: "
                "expected float16, bfloat16, a Float of at most 8 bits, a Scheme, or None"
            )
        coded = self.coded
        if isinstance(coded, Float) and coded.nan is None:
            raise QuantArrayError(
                f"Scale: format={short(self.format)}: "
                "expected one with a NaN, which poisoned blocks get"
            )
        if isinstance(coded, Float) and self.zero_block not in ("least", *coded.magnitudes):
            raise QuantArrayError(
                f"Scale: zero_block={self.zero_block}: expected a value of {short(coded)}"
            )

    def _check_number(self, field: str, value: Any, *, least: float, open_: bool = False) -> None:
        if not isinstance(value, float) or not least <= value < math.inf or (open_ and not value):
            raise QuantArrayError(
                f"Scale: {field}={short(value)}: expected a "
                f"{'positive finite' if open_ else 'finite, not negative'} float"
            )

    @property
    def outer(self) -> "Scheme | None":
        """The scheme of the array of scales, where there are two levels."""
        return None if self.format is None or isinstance(self.format, Float) else self.format

    @property
    def coded(self) -> NumberFormat | None:
        """The format of at most 8 bits whose codes are stored instead of the scales."""
        if self.format is None or isinstance(self.format, Float):
            return self.format if self.format and self.format.bits <= 8 else None
        return self.format.element


# What a scheme's zero is, by how it is derived.
ZEROS: dict[str, Literal["point", "offset"]] = {
    "point": "point",
    "midpoint": "point",
    "offset": "offset",
    "mean": "offset",
    "edge": "offset",
}


_WHOLE, _NEAREST, _BYTES = Block(), Rounding(), Packing()


@dataclass(frozen=True)
class Scheme:
    """How to quantize: element format, block, scale, zero, rounding, packing."""

    name: str
    element: NumberFormat
    block: Block = _WHOLE
    scale: Scale = Scale()
    # "none": x = s * v.
    # x = s * (v - z), z an integer.  "point": the code of 0.  "midpoint": the middle of the codes.
    # x = s * v + m, m a float.  "offset": the smallest element of the block.  "mean": the mean of
    # the whole array.  "edge": the end of the block's range with the larger magnitude.
    zero: Literal["none", "point", "midpoint", "offset", "mean", "edge"] = "none"
    rounding: Rounding = _NEAREST
    packing: Packing = _BYTES
    # What the result of each step of the arithmetic is rounded to: float32 (float64 for float64
    # input), or the dtype of the input.
    arithmetic: Literal["float", "input"] = "float"

    def __post_init__(self) -> None:
        check_choices(self, "zero", "arithmetic")
        for field, expected in _FIELDS.items():
            value = getattr(self, field)
            if not isinstance(value, expected):
                names = schema.type_names(expected)
                raise QuantArrayError(f"Scheme: {field}={short(value)}: expected {names}")
        rule, element = self.scale.rule, self.element
        if isinstance(element, Float) and element.bits > 8:
            raise QuantArrayError(f"Scheme: element of {element.bits} bits: expected at most 8")
        if self.zero_kind == "point" and not (isinstance(element, Integer) and element.plain):
            raise QuantArrayError(
                f"Scheme: zero={self.zero!r}: only plain integer elements have zero points"
            )
        if (rule == "record") != bool(self.packing.record):
            raise QuantArrayError("Scheme: the scale rule 'record' needs the packing of a record")
        if (self.zero == "edge") != (rule == "edge") or (
            self.zero == "offset" and rule not in ("range", "one", "record")
        ):
            raise QuantArrayError(
                "Scheme: zero='offset' needs the scale rule 'range', "
                "and zero='edge' the rule 'edge'"
            )
        if self.zero == "offset" and element.min < 0:
            raise QuantArrayError(
                "Scheme: zero='offset': expected an element without negative values"
            )
        if rule == "range" and self.zero == "none":
            raise QuantArrayError("Scheme: the scale rule 'range' needs a zero point or an offset")
        if isinstance(element, Codebook) and self.rounding.mode != "half_even":
            raise QuantArrayError("Scheme: rounding: a codebook has only its nearest value")
        if rule != "absmax" and self.scale.coded is not None:
            raise QuantArrayError("Scheme: scale: a format of 8 bits needs the rule 'absmax'")
        if self.packing.word > 8 and element.bits > 8:
            raise QuantArrayError(
                f"Scheme: packing: element of {element.bits} bits: expected at most 8"
            )
        if self.record is not None:
            self._check_record(self.record)
        elif self.packed:
            self._check_packing()

    def _check_record(self, record: Record) -> None:
        settled = {
            "element": record.element,
            "block": Block.group(record.group),
            "scale": Scale("record", 1.0),
            "zero": "offset" if record.offset else "none",
            "rounding": _NEAREST,
            "packing": Packing(record=record.name),
            "arithmetic": "float",
        }
        for field, value in settled.items():
            if getattr(self, field) != value:
                raise QuantArrayError(
                    f"Scheme: {field}={short(str(getattr(self, field)))}: blocks of {record.name} "
                    f"settle all choices: expected {short(str(value))}"
                )

    def _check_packing(self) -> None:
        packing, bits = self.packing, self.element.bits
        if packing.transpose != "no" and self.block.flat is not None:
            raise QuantArrayError("Scheme: packing: flat blocks have no axes to transpose")
        fits = packing.word % bits == 0
        whole = fits or not packing.dense
        if packing.interleave and not (whole and len(packing.interleave) == packing.word // bits):
            raise QuantArrayError(
                f"Scheme: packing: interleave={short(packing.interleave)}: "
                f"expected an entry for each code of {bits} bits in a word of {packing.word}"
            )
        if packing.strided and (packing.interleave or not whole):
            raise QuantArrayError(
                f"Scheme: packing: strided=True: expected words of whole codes, not {bits} of "
                f"{packing.word} bits, and no interleave"
            )
        rows = packing.transpose == "no" and not packing.strided
        if packing.padding == "value" and not (fits and rows):
            raise QuantArrayError(
                f"Scheme: packing: padding='value': expected codes that fill words, not {bits} "
                f"of {packing.word} bits, and rows as they are"
            )

    @property
    def zero_kind(self) -> Literal["point", "offset"] | None:
        """Whether blocks have a zero point, an offset, or neither."""
        return ZEROS.get(self.zero)

    @property
    def packed(self) -> bool:
        """Whether codes are packed into words, or records."""
        return self.record is not None or self.element.bits < 8 or self.packing.word > 8

    @property
    def record(self) -> Record | None:
        """The block type of ggml whose bytes are stored, if any."""
        return RECORDS.get(self.packing.record)

    def check_outer(self) -> None:
        """Refuse what cannot be the scheme of an array of scales."""
        if (
            self.element.bits != 8
            or isinstance(self.element, Integer)
            or self.zero not in ("none", "mean")
            or (self.scale.rule, self.scale.format, self.block.axes) != ("absmax", None, ())
        ):
            raise QuantArrayError(
                f"Scale: format={short(self.name)}: expected a scheme with a float or codebook "
                "element of 8 bits, one scale for all or flat blocks, and the scale rule 'absmax'"
            )

    def __str__(self) -> str:
        return f"{self.name} ({self.block})"

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        """Hash all choices once: every call looks its scheme up."""
        return hash(tuple(getattr(self, field.name) for field in dataclasses.fields(self)))

    def __getstate__(self) -> dict[str, Any]:
        # Hashes of strings differ between processes.
        return {name: value for name, value in vars(self).items() if name != "_hash"}

    def to_dict(self) -> dict[str, Any]:
        """Give the scheme as JSON-ready data.

        Returns
        -------
        dict
            Strings, numbers, lists and dicts only; `from_dict` gives an equal scheme back.
        """
        dumped: dict[str, Any] = schema.dump(self, _KINDS)
        return {name: value for name, value in dumped.items() if name != "kind"}

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
        scheme: Self = schema.parse(cls, data, "scheme", _KINDS)
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
_KINDS: dict[str, type] = {
    "integer": Integer,
    "float": Float,
    "codebook": Codebook,
    "scheme": Scheme,
}
