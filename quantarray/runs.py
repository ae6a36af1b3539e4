"""How a block of bytes is described: which bits of which bytes are codes, scales and offsets."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from quantarray.formats import Codebook, Integer
from quantarray.lattices import Lattice

REACH = 2.0**40


class Run(NamedTuple):
    """Fields of a few bits, or some bits of wider fields, which lie in order in some bytes.

    Each of `unit` neighbouring bytes holds a field in its lowest bits, then each holds one in the
    next bits, and so on for `parts` of them; `units` such units lie `step` bytes apart. It is a
    tuple because torch.compile rebuilds no other kind of constant inside of one.
    """

    start: int
    bits: int
    unit: int = 1
    parts: int = 1
    units: int = 1
    step: int = 0  # 0: `unit`
    right: int = 0  # where the lowest field of a byte begins
    left: int = 0  # where these bits begin in their field
    first: int = 0  # the index of the first field
    each: int = 0  # fields between the first ones of two units; 0: unit * parts
    # 2, or 3: a byte holds `parts` digits of base 3, the first worth most, as a fraction of 256.
    base: Literal[2, 3] = 2

    @property
    def stride(self) -> int:
        """Bytes from one unit to the next."""
        return self.step or self.unit

    @property
    def fields(self) -> int:
        """Fields from one unit to the next."""
        return self.each or self.unit * self.parts


Runs = tuple[Run, ...]


@dataclass(frozen=True)
class Record:
    """A block type: `size` bytes hold `elements` elements, each `group` of which share a scale.

    The scale of a group is `base` times the value that `scale_values` gives to its scale code, each
    factor 1 where there is none. Its offset is the value of the field `offset`, times minus its
    code in `mins` where there are any.
    """

    name: str
    number: int  # of `enum ggml_type`
    elements: int
    size: int
    group: int
    codes: Runs  # or the entries of `lattice`
    element: Integer | Codebook
    base: Runs = ()  # float16
    scales: Runs = ()
    scale_values: tuple[float, ...] = ()
    offset: Runs = ()  # float16
    mins: Runs = ()
    lattice: Lattice | None = None
    # Of the elements of each entry, a bit each, 1 for negative. "parity": the bit of the last
    # makes their sum even, and is not stored.
    signs: Runs = ()
    sign_bits: Literal["all", "parity"] = "all"
    # Of each entry: 0 adds an eighth to its values, 1 subtracts it.
    deltas: Runs = ()
    # What a vector of importances does to encoding.
    importance: Literal["ignored", "used", "needed"] = "used"
    # Larger magnitudes are not encoded. By default those that no scale of float16 holds, whose
    # squares may overflow, of which C makes zeros.
    reach: float = REACH

    def row_bytes(self, elements: int) -> int:
        """Give the bytes of a row of elements."""
        return elements // self.elements * self.size

    @property
    def groups(self) -> int:
        """Scales in a block."""
        return self.elements // self.group

    @property
    def bits(self) -> float:
        """Bits per element."""
        return 8 * self.size / self.elements
