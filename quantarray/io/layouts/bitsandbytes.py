"""bitsandbytes: 4-bit codebooks with their ``quant_state``, and the int8 rows of LLM.int8().

Scales are float32 in any model, as those of the "bnb:" presets are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantarray import _xp, overrides
from quantarray.array import QuantizedArray
from quantarray.errors import QuantArrayError, short
from quantarray.formats import Codebook
from quantarray.io.dtypes import SIZE_CAP, Spec, naturals
from quantarray.io.layouts import common
from quantarray.io.layouts.common import SCALES, Arrays, Config, Host
from quantarray.io.safetensors import loads
from quantarray.scheme import Block, Scheme

ROWS = overrides.scheme("bnb:int8_rows")
NESTED = overrides.scheme("bnb:nf4_nested").scale
KINDS = {"nf4": overrides.scheme("bnb:nf4"), "fp4": overrides.scheme("bnb:fp4")}
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
STATE = "weight.quant_state.bitsandbytes__"
STATE_CAP = 1 << 14  # bytes of JSON; the owner's take less than 200
_PLAIN = {"quant_type", "blocksize", "dtype", "shape"}
_TWO = {"nested_blocksize", "nested_dtype", "nested_offset"}
PARTS = (
    "weight",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    *(STATE + kind for kind in KINDS),
    "SCB",
    "weight_format",
)
MARKS = PARTS[1:]


def _scheme(kind: str, nested: bool, size: int = 64, outer: int = 256) -> Scheme:
    """Give the scheme of a 4-bit codebook in flat blocks, perhaps with nested scales."""
    found = replace(KINDS[kind], block=Block(flat=size))
    if not nested:
        return found
    assert NESTED.outer is not None
    scale = replace(NESTED, format=replace(NESTED.outer, block=Block(flat=outer)))
    return replace(found, name=f"bnb:{kind}_nested", scale=scale)


def _table(scheme: Scheme | None) -> Host:
    """Give the values of a scheme's codes, as files hold them."""
    assert scheme is not None
    assert isinstance(scheme.element, Codebook)
    return np.asarray(scheme.element.table, np.float32)


@dataclass(frozen=True)
class Bitsandbytes:
    """The layout."""

    name: str = "bitsandbytes"
    method: str = "bitsandbytes"

    @property
    def schemes(self) -> Mapping[str, Scheme]:
        """See `Layout`."""
        return {
            "nf4": KINDS["nf4"],
            "fp4_bnb": KINDS["fp4"],
            "nf4_nested": _scheme("nf4", True),
            "fp4_nested": _scheme("fp4", True),
            "int8": ROWS,
        }

    def stored(self, name: str, q: QuantizedArray) -> dict[str, Host]:
        """See `Layout`."""
        with common.naming(name, self.name):
            prefix, (kind, nested) = common.prefix_of(name), self._describe(q)
            parts = self._rows(q) if kind == "int8" else self._codebook(q, kind, nested)
            return {prefix + part: array for part, array in parts.items()}

    def restored(self, name: str, arrays: Arrays, config: Config) -> QuantizedArray:
        """See `Layout`."""
        with common.naming(name, self.name):
            parts = common.relative(name, arrays)
            if "SCB" in parts or "weight_format" in parts:
                return _restore_rows(parts, common.model_dtype(config, "float16"))
            return _restore_codebook(parts)

    def config(self, tensors: Mapping[str, QuantizedArray], plain: Sequence[str]) -> dict[str, Any]:
        """See `Layout`."""
        kinds = {}
        for name, q in tensors.items():
            with common.naming(name, self.name):
                kinds[self._describe(q)] = q.dtype_name
        if len(kinds) != 1:
            found = ", ".join(sorted(f"{kind}{' nested' * two}" for kind, two in kinds))
            raise QuantArrayError(f"{self.name}: weights of {found}: expected one kind for all")
        (((kind, nested), dtype),) = kinds.items()
        eight = kind == "int8"
        return {
            "quant_method": self.method,
            "_load_in_8bit": eight,
            "_load_in_4bit": not eight,
            "llm_int8_threshold": 6.0,
            "llm_int8_skip_modules": sorted(plain),
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "bnb_4bit_quant_type": "fp4" if eight else kind,
            "bnb_4bit_use_double_quant": nested,
            "bnb_4bit_compute_dtype": "float32" if eight else dtype,
            "bnb_4bit_quant_storage": "uint8",
            "load_in_4bit": not eight,
            "load_in_8bit": eight,
        }

    def groups(self, specs: Mapping[str, Spec]) -> dict[str, tuple[str, ...]]:
        """See `Layout`."""
        return common.grouped(specs, PARTS, MARKS)

    def _describe(self, q: QuantizedArray) -> tuple[str, bool]:
        """Give the kind of weight, and whether its scales are nested."""
        common.check_matrix(q)
        element = q.scheme.element
        if element == ROWS.element:
            return "int8", False
        for kind, scheme in KINDS.items():
            assert isinstance(scheme.element, Codebook)
            if isinstance(element, Codebook) and element.table == scheme.element.table:
                return kind, q.scheme.scale.outer is not None
        raise QuantArrayError(f"{q.scheme.name}{common.instead(self.schemes)}")

    def _rows(self, q: QuantizedArray) -> dict[str, Host]:
        if common.extents_of(q) != (1, q.shape[1]):
            raise QuantArrayError(f"{q.scheme} for the shape {q.shape}: expected a scale for a row")
        p = common.repacked(q, ROWS, self.schemes)
        return {
            "weight": common.host(p.data),
            "SCB": common.host(p.scale_data).reshape(-1),
            "weight_format": np.zeros((), np.uint8),  # rows as they are
        }

    def _codebook(self, q: QuantizedArray, kind: str, nested: bool) -> dict[str, Host]:
        found = q.scheme.scale.outer
        outer = found.block.flat if found is not None else None
        p = common.repacked(q, _scheme(kind, nested, outer=outer or 256), self.schemes)
        size = p.scheme.block.flat
        if size not in BLOCKS:
            raise QuantArrayError(
                f"blocks of {size}: expected one of {', '.join(map(str, BLOCKS))} elements"
            )
        state: dict[str, Any] = {
            "quant_type": kind,
            "blocksize": size,
            "dtype": q.dtype_name,
            "shape": list(q.shape),
        }
        parts = {
            "weight": common.host(p.data).reshape(-1, 1),
            "weight.absmax": common.host(p.scale_data),
            "weight.quant_map": _table(p.scheme),
        }
        if nested:
            parts["weight.nested_absmax"] = common.host(p.global_scale)
            parts["weight.nested_quant_map"] = _table(p.scheme.scale.outer)
            state["nested_blocksize"] = outer
            state["nested_dtype"] = "float32"
            state["nested_offset"] = float(_xp.to_numpy(p.global_offset).reshape(()))
        text = json.dumps(state).encode()
        parts[STATE + kind] = np.frombuffer(text, np.uint8)
        return parts


def _restore_rows(parts: Mapping[str, Host], dtype: str) -> QuantizedArray:
    data = common.part_of(parts, "weight", 2)
    wanted: dict[str, tuple[Sequence[str], tuple[int, ...]]] = {
        "weight": (("int8",), data.shape),
        "SCB": (("float32",), data.shape[:1]),
    }
    if "weight_format" in parts:
        wanted["weight_format"] = (("uint8",), ())
    common.check_parts(parts, wanted)
    if "weight_format" in parts and parts["weight_format"] != 0:
        raise QuantArrayError(
            f"its part 'weight_format' is {parts['weight_format']}: expected 0, rows as they are"
        )
    result = {"data": data, "scale": parts["SCB"].reshape(-1, 1)}
    return QuantizedArray.from_parts(result, ROWS, (data.shape[0], data.shape[1]), dtype)


def _restore_codebook(parts: Mapping[str, Host]) -> QuantizedArray:
    held = [kind for kind in KINDS if STATE + kind in parts]
    if len(held) != 1:
        names = " or ".join(f"'{STATE}{kind}'" for kind in KINDS)
        raise QuantArrayError(f"{len(held)} of its parts are {names}: expected one")
    state, shape = _state(parts[STATE + held[0]], held[0])
    count = int(np.prod(shape, dtype=object))
    nested = "nested_blocksize" in state
    size, outer = state["blocksize"], state.get("nested_blocksize", 256)
    scheme = _scheme(held[0], nested, size, outer)
    blocks = -(-count // size)
    wanted: dict[str, tuple[Sequence[str], tuple[int, ...]]] = {
        "weight": (("uint8",), (-(-count // 2), 1)),
        "weight.absmax": (("uint8" if nested else "float32",), (blocks,)),
        "weight.quant_map": (("float32",), (16,)),
        STATE + held[0]: (("uint8",), parts[STATE + held[0]].shape),
    }
    maps = {"weight.quant_map": _table(scheme)}
    if nested:
        wanted["weight.nested_absmax"] = (("float32",), (-(-blocks // outer),))
        wanted["weight.nested_quant_map"] = (("float32",), (256,))
        maps["weight.nested_quant_map"] = _table(scheme.scale.outer)
    common.check_parts(parts, wanted)
    for part, table in maps.items():
        if not np.array_equal(parts[part], table):
            raise QuantArrayError(f"its part '{part}' holds other values than those of {held[0]}")
    result = {"data": parts["weight"].reshape(-1), "scale": parts["weight.absmax"]}
    if nested:
        result["global_scale"] = parts["weight.nested_absmax"]
        result["global_offset"] = np.asarray([state["nested_offset"]], np.float32)
    return QuantizedArray.from_parts(result, scheme, shape, state["dtype"])


def _state(part: Host, kind: str) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Check the JSON of a hostile file; give it, and the shape that it states."""

    def check(ok: bool, field: str) -> None:
        if not ok:
            raise QuantArrayError(f"its quant_state: {field}={short(state.get(field))}")

    if part.ndim != 1 or part.dtype != np.uint8 or part.size > STATE_CAP:
        raise QuantArrayError(f"its quant_state is {common.described(part)}: expected JSON")
    try:
        state = loads(part.tobytes())
    except ValueError as error:
        raise QuantArrayError(f"its quant_state: {error}") from None
    if state.keys() not in (_PLAIN, _PLAIN | _TWO):
        raise QuantArrayError(
            f"its quant_state holds {short(sorted(state))}: "
            f"expected {', '.join(sorted(_PLAIN))}, and perhaps {', '.join(sorted(_TWO))}"
        )
    check(state["quant_type"] == kind, "quant_type")
    check(type(state["blocksize"]) is int and state["blocksize"] in BLOCKS, "blocksize")
    check(isinstance(state["dtype"], str) and state["dtype"] in SCALES, "dtype")
    shape = state["shape"]
    check(naturals(shape) and 0 < len(shape) <= 8 and 0 not in shape, "shape")
    check(np.prod(shape, dtype=object) <= SIZE_CAP, "shape")
    if "nested_offset" in state:
        outer = state["nested_blocksize"]
        check(type(outer) is int and outer in BLOCKS, "nested_blocksize")
        check(state["nested_dtype"] == "float32", "nested_dtype")
        offset = state["nested_offset"]
        check(type(offset) in (int, float) and abs(offset) <= 3e38, "nested_offset")
    return state, tuple(shape)
