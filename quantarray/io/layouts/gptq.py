"""GPTQ: the layout of AutoGPTQ and GPTQModel, which vLLM and transformers load.

Scales are float16, or bfloat16 in a model of that dtype. The first version stores zero points less
1 and has no code for a zero point of 0; "gptq_v2" stores them as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantarray import _xp
from quantarray.array import QuantizedArray
from quantarray.errors import QuantArrayError, short
from quantarray.formats import FLOAT16
from quantarray.io.dtypes import Spec
from quantarray.io.layouts import common, words
from quantarray.io.layouts.common import Arrays, Config, Host
from quantarray.scheme import Scheme

WIDTHS = (2, 3, 4, 8)
PARTS = ("qweight", "qzeros", "scales", "g_idx")
MARKS = ("qweight", "qzeros")


@dataclass(frozen=True)
class Gptq:
    """The layout of one version of the checkpoint format."""

    name: str
    # A key of `zero_points.LAYOUTS`.
    zeros: str
    method: str = "gptq"

    @property
    def schemes(self) -> Mapping[str, Scheme]:
        """See `Layout`."""
        return {
            **{f"int{n}": words.scheme(f"gptq:int{n}", FLOAT16) for n in WIDTHS},
            **{
                f"uint{n}": words.scheme(f"gptq:int{n}", FLOAT16, symmetric=False)
                for n in WIDTHS
                if self.zeros == "gptq_v2"
            },
        }

    def stored(self, name: str, q: QuantizedArray) -> dict[str, Host]:
        """See `Layout`."""
        with common.naming(name, self.name):
            prefix = common.prefix_of(name)
            bits = words.check_integers(q, WIDTHS, self.schemes)
            words.check_groups(q, bits, ragged=True)
            target = words.scheme(f"gptq:int{bits}", common.scale_format(q), symmetric=False)
            p = common.repacked(q, target, self.schemes)
            zero = _xp.to_numpy(p.zero_point)
            if self.zeros == "gptq_v1" and not zero.all():
                raise QuantArrayError(
                    f"{np.count_nonzero(zero == 0)} of {zero.size} zero points are 0, which the "
                    "first version has no code for: expected the layout gptq_v2"
                )
            parts = words.stored(p, self.zeros)
            parts["g_idx"] = _groups(q.shape[1], common.extents_of(q)[1])
            return {prefix + part: array for part, array in parts.items()}

    def restored(self, name: str, arrays: Arrays, config: Config) -> QuantizedArray:
        """See `Layout`; ``g_idx`` may be missing, and is refused where it reorders columns."""
        with common.naming(name, self.name):
            parts = common.relative(name, arrays)
            stated = common.quantization_config(config)
            data, scales = common.part_of(parts, "qweight", 2), common.part_of(parts, "scales", 2)
            bits = stated.get("bits")
            row = data.shape[0] * 32 // bits if type(bits) is int and bits in WIDTHS else 0
            if "g_idx" in parts:
                row = common.part_of(parts, "g_idx", 1).size
                bits = data.shape[0] * 32 // row if row else 0
            if type(bits) is not int or bits not in WIDTHS or row * bits != data.shape[0] * 32:
                raise QuantArrayError(
                    f"its part 'qweight' is {common.described(data)}, rows have {row} codes, and "
                    f"bits of the configuration are {short(stated.get('bits'))}: expected "
                    f"{', '.join(map(str, WIDTHS))} bits in a code"
                )
            groups, out = scales.shape
            size = common.group_of(groups, row, stated.get("group_size"))
            wanted: dict[str, tuple[Sequence[str], tuple[int, ...]]] = {
                "qweight": (("int32",), (data.shape[0], out)),
                "qzeros": (("int32",), (groups, -(-out * bits // 32))),
                "scales": (words.SCALE_DTYPES, (groups, out)),
            }
            if "g_idx" in parts:
                wanted["g_idx"] = (("int32",), (row,))
            common.check_parts(parts, wanted)
            if "g_idx" in parts and not np.array_equal(parts["g_idx"], _groups(row, size)):
                raise QuantArrayError(
                    f"its part 'g_idx' does not count groups of {size}: a layer whose columns are "
                    "reordered (desc_act) has no groups along rows"
                )
            dtype = common.model_dtype(config, _xp.dtype_name(scales.dtype))
            return words.restored(parts, f"gptq:int{bits}", self.zeros, (out, row), size, dtype)

    def config(self, tensors: Mapping[str, QuantizedArray], plain: Sequence[str]) -> dict[str, Any]:
        """See `Layout`; modules that are not quantized are in ``dynamic``."""
        widths = {
            words.check_integers(q, WIDTHS, self.schemes): common.module_of(name)
            for name, q in tensors.items()
        }
        if len(widths) != 1:
            found = ", ".join(f"{bits} ('{module}')" for bits, module in widths.items())
            raise QuantArrayError(
                f"{self.name}: bits of weights: {found}: expected one width for all weights"
            )
        (bits,) = widths
        modules = {common.module_of(name) for name in tensors}
        return {
            "quant_method": self.method,
            "bits": bits,
            "group_size": common.common_group(tensors, self.name),
            "desc_act": False,
            "sym": all(common.is_symmetric(q) for q in tensors.values()),
            "lm_head": "lm_head" in modules,
            "true_sequential": True,
            "pack_dtype": "int32",
            "checkpoint_format": self.name,
            "dynamic": {f"-:^{re.escape(module)}$": {} for module in sorted(plain)},
        }

    def groups(self, specs: Mapping[str, Spec]) -> dict[str, tuple[str, ...]]:
        """See `Layout`."""
        return common.grouped(specs, PARTS, MARKS)


def _groups(row: int, size: int) -> Host:
    """Give the group of each column."""
    return np.arange(row, dtype=np.int32) // np.int32(size)
