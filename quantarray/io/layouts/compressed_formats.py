"""The formats of compressed-tensors, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quantarray import overrides
from quantarray.formats import Integer
from quantarray.io.dtypes import DTYPES
from quantarray.io.layouts.common import SCALES
from quantarray.scheme import Packing, Scale, Scheme

SPARSE = Packing(word=32, dense=False, excess=True)
FP8 = replace(
    overrides.scheme("fp8_e4m3"),
    name="ct:fp8_e4m3",
    scale=Scale("absmax", 448.0, width="input", least=0.0, zero_block="epsilon"),
    arithmetic="input",
)


def _integer(bits: int, symmetric: bool, how: Packing) -> Scheme:
    """Give the scheme of integers, which has presets for 4 and 8 bits."""
    suffix = "" if symmetric else "_asymmetric"
    base = overrides.scheme(f"ct:int{8 if bits == 8 else 4}{suffix}")
    element = Integer(bits)
    low, high = element.codes
    scale = replace(base.scale, divisor=(high - low) / (2 if symmetric else 1))
    name = f"ct:int{bits}{suffix}"
    return replace(base, name=name, element=element, scale=scale, packing=how)


@dataclass(frozen=True, eq=False)
class Format:
    """One of the owner's formats."""

    name: str
    # For 4 or 8 bits; those of the array, if they are integers.
    scheme: Scheme
    # The part with the codes, and the container's dtypes of it and of scales (those of models).
    data: str
    code: str
    scales: tuple[str, ...]
    strategies: tuple[str, ...]
    args: Mapping[str, Any] = field(default_factory=dict)
    activations: Mapping[str, Any] | None = None

    def fits(self, scheme: Scheme) -> bool:
        """Tell whether it is for codes and scales such as those of a scheme."""
        mine, its = self.scheme, scheme.element
        same = its == mine.element
        if self.integer:
            same = isinstance(its, Integer) and (2 if self.packed else 8) <= its.bits <= 8
        levels = (mine.scale.outer is None) == (scheme.scale.outer is None)
        return same and levels and scheme.scale.coded == mine.scale.coded

    @property
    def integer(self) -> bool:
        """Whether codes are integers."""
        return isinstance(self.scheme.element, Integer)

    @property
    def scale_code(self) -> str:
        """The container's dtype of scales, where that is not the model's."""
        return DTYPES[self.scales[0]] if self.scales != SCALES else ""

    @property
    def packed(self) -> bool:
        """Whether codes are in words of 32 bits."""
        return self.code == "I32"

    def target(self, bits: int, symmetric: bool, dense: bool = True) -> Scheme:
        """Give the scheme of arrays of so many bits."""
        if not self.integer:
            return self.scheme
        how = self.scheme.packing if dense else SPARSE
        return _integer(bits, symmetric, how)


_ALL = ("tensor", "channel", "group", "block")
_TOKEN = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "token",
    "dynamic": True,
}
_E4M3 = {"scale_dtype": "torch.float8_e4m3fn"}
_MX = {"scale_dtype": "torch.uint8"}
PACK = Format(
    "pack-quantized", overrides.scheme("ct:int4"), "weight_packed", "I32", SCALES, _ALL[1:3]
)
INT_QUANTIZED = Format(
    "int-quantized",
    overrides.scheme("ct:int8"),
    "weight",
    "I8",
    SCALES,
    _ALL,
    activations=_TOKEN,
)
FLOAT = Format("float-quantized", FP8, "weight", "F8_E4M3", SCALES, _ALL)
MXFP4 = Format(
    "mxfp4-pack-quantized",
    overrides.scheme("mxfp4"),
    "weight_packed",
    "U8",
    ("uint8",),
    ("group",),
    _MX,
)
NVFP4 = Format(
    "nvfp4-pack-quantized",
    overrides.scheme("ct:nvfp4"),
    "weight_packed",
    "U8",
    ("float8_e4m3fn",),
    ("tensor_group",),
    _E4M3,
)
FORMATS = (PACK, INT_QUANTIZED, FLOAT, MXFP4, NVFP4)


@dataclass(frozen=True)
class Described:
    """How an array is held: the fields of ``weights`` that differ between arrays."""

    format: Format
    bits: int
    symmetric: bool
    strategy: str
    group: int | None
    block: tuple[int, int] | None

    @property
    def target(self) -> Scheme:
        """The scheme of what is stored."""
        return self.format.target(self.bits, self.symmetric)

    def to_dict(self, modules: Sequence[str]) -> dict[str, Any]:
        """Give the entry of ``config_groups`` for modules."""
        weights: dict[str, Any] = {
            "num_bits": self.bits,
            "type": "int" if self.format.integer else "float",
            "symmetric": self.symmetric,
            "group_size": self.group,
            "strategy": self.strategy,
            "dynamic": False,
            **({"block_structure": list(self.block)} if self.block else {}),
            **self.format.args,
        }
        activations = self.format.activations
        return {
            "targets": list(modules),
            "weights": weights,
            "input_activations": None if activations is None else dict(activations),
            "output_activations": None,
            "format": self.format.name,
        }
