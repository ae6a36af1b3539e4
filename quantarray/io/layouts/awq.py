"""AWQ: the "GEMM" layout of AutoAWQ, which vLLM and transformers load.

Codes have 4 bits; scales are float16, or bfloat16 in a model of that dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantarray import _xp
from quantarray.array import QuantizedArray
from quantarray.formats import FLOAT16
from quantarray.io.dtypes import Spec
from quantarray.io.layouts import common, words
from quantarray.io.layouts.common import Arrays, Config, Host
from quantarray.scheme import Scheme

PRESET = "awq:int4"
WIDTHS = (4,)
PARTS = ("qweight", "qzeros", "scales")
MARKS = ("qweight", "qzeros")


@dataclass(frozen=True)
class Awq:
    """The layout."""

    name: str = "awq"
    method: str = "awq"

    @property
    def schemes(self) -> Mapping[str, Scheme]:
        """See `Layout`."""
        found = words.scheme(PRESET, FLOAT16)
        return {"int4": found, "uint4": found}

    def stored(self, name: str, q: QuantizedArray) -> dict[str, Host]:
        """See `Layout`."""
        with common.naming(name, self.name):
            prefix = common.prefix_of(name)
            bits = words.check_integers(q, WIDTHS, self.schemes)
            words.check_groups(q, bits, ragged=False)
            target = words.scheme(PRESET, common.scale_format(q))
            p = common.repacked(q, target, self.schemes)
            return {prefix + part: array for part, array in words.stored(p, "awq").items()}

    def restored(self, name: str, arrays: Arrays, config: Config) -> QuantizedArray:
        """See `Layout`."""
        with common.naming(name, self.name):
            parts = common.relative(name, arrays)
            data, scales = common.part_of(parts, "qweight", 2), common.part_of(parts, "scales", 2)
            (row, columns), (groups, out) = data.shape, scales.shape
            size = common.group_of(groups, row, None)
            common.check_parts(
                parts,
                {
                    "qweight": (("int32",), (row, out // 8)),
                    "qzeros": (("int32",), (groups, out // 8)),
                    "scales": (words.SCALE_DTYPES, (groups, columns * 8)),
                },
            )
            dtype = common.model_dtype(config, _xp.dtype_name(scales.dtype))
            return words.restored(parts, PRESET, "awq", (out, row), size, dtype)

    def config(self, tensors: Mapping[str, QuantizedArray], plain: Sequence[str]) -> dict[str, Any]:
        """See `Layout`."""
        return {
            "quant_method": self.method,
            "bits": 4,
            "group_size": common.common_group(tensors, self.name),
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": sorted(plain),
        }

    def groups(self, specs: Mapping[str, Spec]) -> dict[str, tuple[str, ...]]:
        """See `Layout`."""
        return common.grouped(specs, PARTS, MARKS)
