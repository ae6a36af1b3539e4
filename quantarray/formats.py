"""Number formats as data: what a code of a few bits means.

A number format is one of three kinds, all frozen and hashable. The element of a scheme and the
format its scale is stored in are the same type.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from quantarray.codebooks import DYNAMIC, FP4_BNB, NF4
from quantarray.errors import QuantArrayError, choice, integer, short


@dataclass(frozen=True)
class Integer:
    """Integers of 1 to 16 bits, two's complement or unsigned: code c means (c - origin) / steps."""

    bits: int
    signed: bool = True
    # The lowest signed code is not used, so that the range is symmetric: int8 is -127..127.
    narrow: bool = False
    # Fixed point: codes per unit of value.
    steps: float = 1.0
    # The code of the value 0.
    origin: float = 0.0
    # Values decode to the middle of those that are truncated to their code, half a step up.
    middle: bool = False

    def __post_init__(self) -> None:
        integer("Integer", "bits", self.bits, 1, 16)
        if self.narrow and not (self.signed and self.bits > 1):
            raise QuantArrayError(
                "Integer: narrow=True: only signed integers of 2 bits or more are narrow"
            )
        for field, low, high in (("steps", 2.0**-16, 2.0**16), ("origin", -(2.0**16), 2.0**16)):
            if (
                not isinstance(getattr(self, field), float)
                or not low <= getattr(self, field) <= high
            ):
                raise QuantArrayError(
                    f"Integer: {field}={short(getattr(self, field))}: expected {low:g} to {high:g}"
                )

    @property
    def codes(self) -> tuple[int, int]:
        """The smallest and largest codes."""
        low = -(1 << (self.bits - 1)) + self.narrow if self.signed else 0
        return low, (1 << (self.bits - self.signed)) - 1

    @property
    def plain(self) -> bool:
        """Whether values are their codes."""
        return (self.steps, self.origin, self.middle) == (1.0, 0.0, False)

    @property
    def mantissa(self) -> int:
        """Bits after the leading one of the largest value."""
        return self.bits - self.signed - 1

    @property
    def min(self) -> float:
        """The smallest value."""
        return self._value(self.codes[0])

    @property
    def max(self) -> float:
        """The largest value."""
        return self._value(self.codes[1])

    @property
    def resolution(self) -> float:
        """The magnitude up to which values round to zero."""
        return 0.5 / self.steps

    def _value(self, code: int) -> float:
        return (code - self.origin + self.middle / 2) / self.steps


@dataclass(frozen=True)
class Float:
    """Binary floating point: a sign bit, exponent bits, mantissa bits, with subnormals."""

    exponent: int
    mantissa: int
    bias: int
    # Which codes are not finite numbers. "ieee": the top exponent holds Inf and NaN. "nan": only
    # the all-ones code (of either sign) is NaN. "nan_zero": only the code of -0 is. "none": none.
    specials: Literal["ieee", "nan", "nan_zero", "none"]
    signed: bool = True

    def __post_init__(self) -> None:
        integer("Float", "exponent", self.exponent, 1, 11)
        integer("Float", "mantissa", self.mantissa, 0, 52)
        integer("Float", "bias", self.bias, 0, 1023)
        choice("Float", "specials", self.specials, ("ieee", "nan", "nan_zero", "none"))

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.signed + self.exponent + self.mantissa

    @property
    def max(self) -> float:
        """The largest finite value."""
        return self.magnitude(self._finite - 1)

    @property
    def _finite(self) -> int:
        """How many codes without a sign are finite."""
        taken = {"ieee": 1 << self.mantissa, "nan": 1}.get(self.specials, 0)
        return (1 << (self.exponent + self.mantissa)) - taken

    @property
    def min(self) -> float:
        """The smallest finite value."""
        return -self.max if self.signed else self.magnitude(0)

    @property
    def smallest_normal(self) -> float:
        """The smallest value with the full precision of the mantissa."""
        return self.magnitude(1 << self.mantissa if self.mantissa else 0)

    @property
    def resolution(self) -> float:
        """The magnitude up to which values round to zero."""
        return self.magnitude(1) / 2

    @property
    def magnitudes(self) -> tuple[float, ...]:
        """The finite values of the codes without a sign, in their order."""
        return tuple(map(self.magnitude, range(self._finite)))

    @property
    def table(self) -> tuple[float, ...]:
        """The value of every code."""
        half = list(self.magnitudes)
        if self.specials == "ieee":
            half.append(math.inf)
        half += [math.nan] * ((1 << (self.bits - self.signed)) - len(half))
        if not self.signed:
            return tuple(half)
        negative = [-value for value in half]
        if self.specials == "nan_zero":
            negative[0] = math.nan
        return (*half, *negative)

    @property
    def nan(self) -> int | None:
        """The code of NaN, if there is one."""
        quiet = 1 << self.mantissa >> 1
        codes = {
            "ieee": self._finite + quiet if quiet else None,  # without a mantissa only Inf fits
            "nan": self._finite,
            "nan_zero": 1 << (self.bits - 1),
        }
        return codes.get(self.specials)

    def magnitude(self, code: int) -> float:
        """Give the value of an unsigned code, as if no code were special.

        Parameters
        ----------
        code : int
            Exponent and mantissa bits.

        Returns
        -------
        float
            Exact: every format here fits a Python float.
        """
        exponent, mantissa = code >> self.mantissa, code & ((1 << self.mantissa) - 1)
        if exponent == 0 and self.mantissa:
            return mantissa * 2.0 ** (1 - self.bias - self.mantissa)
        return (1.0 + mantissa * 2.0**-self.mantissa) * 2.0 ** (exponent - self.bias)


@dataclass(frozen=True)
class Codebook:
    """A named table of values: code `i` means `table[i]`."""

    name: str
    table: tuple[float, ...]
    # Values are first rounded to the nearest of this many, evenly spaced over [-1, 1].
    bins: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= len(self.table) <= 256 or not all(map(math.isfinite, self.table)):
            raise QuantArrayError(
                f"Codebook: name={short(self.name)}: table: expected 2 to 256 finite values"
            )
        if self.bins is not None:
            integer("Codebook", "bins", self.bins, 2, 1 << 16)

    @property
    def order(self) -> tuple[int, ...]:
        """The codes in ascending order of their values."""
        return tuple(sorted(range(len(self.table)), key=self.table.__getitem__))

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return (len(self.table) - 1).bit_length()

    @property
    def max(self) -> float:
        """The largest value."""
        return max(self.table)

    @property
    def min(self) -> float:
        """The smallest value."""
        return min(self.table)

    @property
    def resolution(self) -> float:
        """The magnitude up to which all values round to the same code."""
        if self.bins is not None:
            return 0.0  # that of zero itself may have a neighbour's code
        return min(abs(a + b) / 2 for a, b in itertools.pairwise(sorted(self.table)))


NumberFormat = Integer | Float | Codebook

FLOAT64 = Float(11, 52, 1023, "ieee")
FLOAT32 = Float(8, 23, 127, "ieee")
BFLOAT16 = Float(8, 7, 127, "ieee")
FLOAT16 = Float(5, 10, 15, "ieee")

# The floating dtypes an array may have, by the name every array library gives them.
DTYPES = {"float16": FLOAT16, "bfloat16": BFLOAT16, "float32": FLOAT32, "float64": FLOAT64}
LARGEST = {name: dtype.max for name, dtype in DTYPES.items()}
SMALLEST_NORMAL = {name: dtype.smallest_normal for name, dtype in DTYPES.items()}
EPSILON = {name: 2.0**-dtype.mantissa for name, dtype in DTYPES.items()}

FORMATS: dict[str, NumberFormat] = {
    **{f"int{bits}": Integer(bits) for bits in range(2, 17)},
    **{f"uint{bits}": Integer(bits, signed=False) for bits in range(1, 17)},
    # OCP 8-bit floating point (OFP8) 1.0, and the variants without Inf and negative zero (FNUZ).
    "e4m3fn": Float(4, 3, 7, "nan"),
    "e5m2": Float(5, 2, 15, "ieee"),
    "e4m3fnuz": Float(4, 3, 8, "nan_zero"),
    "e5m2fnuz": Float(5, 2, 16, "nan_zero"),
    # OCP Microscaling formats (MX) 1.0.
    "e3m2fn": Float(3, 2, 3, "none"),
    "e2m3fn": Float(2, 3, 1, "none"),
    "e2m1fn": Float(2, 1, 1, "none"),
    "e8m0fnu": Float(8, 0, 127, "nan", signed=False),
    "mxint8": Integer(8, narrow=True, steps=64.0),
    "nf4": Codebook("nf4", NF4),
    "fp4_bnb": Codebook("fp4_bnb", FP4_BNB),
    "dynamic8": Codebook("dynamic8", DYNAMIC),
    "sign": Codebook("sign", (-1.0, 1.0)),
}


def number_format(name: str) -> NumberFormat:
    """Find a number format by name.

    Parameters
    ----------
    name : str
        A key of `FORMATS`, such as "e4m3fn" or "int4".

    Returns
    -------
    NumberFormat
        The format.

    Raises
    ------
    QuantArrayError
        If there is no such format.
    """
    if name not in FORMATS:
        raise QuantArrayError(
            f"number format: {short(name)} is not known; known: {', '.join(FORMATS)}"
        )
    return FORMATS[name]


def format_name(element: NumberFormat) -> str:
    """Give the name of a number format, or what it is if it has none."""
    if isinstance(element, Codebook):
        return element.name
    known: dict[str, NumberFormat] = {**FORMATS, **DTYPES}
    return next((name for name, format_ in known.items() if format_ == element), short(element))
