"""compressed-tensors: the layout of llm-compressor, which vLLM and transformers load.

Scales are in the dtype of the model: quantize with the schemes of `CompressedTensors.schemes`,
whose scales are in the dtype of the input. What clients do with activations is theirs, but for
"int-quantized", which no client runs without rounding activations to int8, row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantarray import _xp, packing
from quantarray.array import QuantizedArray
from quantarray.errors import QuantArrayError
from quantarray.formats import format_name
from quantarray.io.dtypes import NUMPY_NAMES, Spec
from quantarray.io.layouts import common
from quantarray.io.layouts.common import SCALES, Arrays, Config, Host
from quantarray.io.layouts.compressed_formats import (
    FLOAT,
    FORMATS,
    MXFP4,
    NVFP4,
    PACK,
    SPARSE,
    Described,
    Format,
)
from quantarray.scheme import Block, Scheme
from quantarray.zero_points import pack_zero_points, unpack_zero_points

# The release whose files these are.
VERSION = "0.20.0"
PARTS = (
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
    "weight_global_scale",
)
MARKS = ("weight_packed", "weight_scale", "weight_global_scale")


@dataclass(frozen=True)
class CompressedTensors:
    """The layout; which of the formats it writes is a choice, it reads all of them."""

    name: str = "compressed-tensors"
    formats: tuple[Format, ...] = (PACK, FLOAT, MXFP4, NVFP4)
    method: str = "compressed-tensors"

    @property
    def schemes(self) -> Mapping[str, Scheme]:
        """See `Layout`."""
        found = {
            **{f"int{bits}": (PACK, PACK.target(bits, True)) for bits in range(2, 8)},
            **{f"uint{bits}": (PACK, PACK.target(bits, False)) for bits in range(2, 8)},
            "int8": (self.formats[0], self.formats[0].target(8, True)),
            "uint8": (self.formats[0], self.formats[0].target(8, False)),
            "fp8_e4m3": (FLOAT, FLOAT.scheme),
            "mxfp4": (MXFP4, MXFP4.scheme),
            "nvfp4": (NVFP4, NVFP4.scheme),
        }
        return {name: scheme for name, (of, scheme) in found.items() if of in self.formats}

    def stored(self, name: str, q: QuantizedArray) -> dict[str, Host]:
        """See `Layout`."""
        with common.naming(name, self.name):
            prefix, how = common.prefix_of(name), self._describe(q)
            p = common.repacked(q, how.target, self.schemes)
            scale = common.host(p.scale_data, how.format.scale_code)
            parts = {
                how.format.data: common.host(p.data, how.format.code),
                "weight_scale": scale.reshape(1) if how.strategy == "tensor" else scale,
            }
            if how.format.packed:
                parts["weight_shape"] = np.asarray(q.shape, np.int64)
            if p.global_scale is not None:
                parts["weight_global_scale"] = common.host(p.global_scale).reshape(1)
            if p.zero_point is not None:
                zero = pack_zero_points(p, "ct") if how.format.packed else p.zero_point
                zero = common.host(zero)
                tensor = how.strategy == "tensor"
                parts["weight_zero_point"] = zero.reshape(1) if tensor else zero
            return {prefix + part: array for part, array in parts.items()}

    def config(self, tensors: Mapping[str, QuantizedArray], plain: Sequence[str]) -> dict[str, Any]:
        """See `Layout`."""
        groups: dict[Described, list[str]] = {}
        for name, q in tensors.items():
            with common.naming(name, self.name):
                groups.setdefault(self._describe(q), []).append(common.module_of(name))
        names = {how.format.name for how in groups}
        return {
            "quant_method": self.method,
            "version": VERSION,
            "format": names.pop() if len(names) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{i}": how.to_dict(modules)
                for i, (how, modules) in enumerate(groups.items())
            },
            "ignore": sorted(plain),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }

    def groups(self, specs: Mapping[str, Spec]) -> dict[str, tuple[str, ...]]:
        """See `Layout`."""
        return common.grouped(specs, PARTS, MARKS)

    def restored(self, name: str, arrays: Arrays, config: Config) -> QuantizedArray:
        """See `Layout`; codes of 3, 5, 6 and 7 bits are read as older releases packed them, too."""
        with common.naming(name, self.name):
            parts = common.relative(name, arrays)
            stated = _stated(common.quantization_config(config))
            return _restore(parts, stated, common.model_dtype(config, "bfloat16"))

    def _describe(self, q: QuantizedArray) -> Described:
        """Find how an array is held."""
        common.check_matrix(q)
        scheme = q.scheme
        found = next((f for f in self.formats if f.fits(scheme)), None)
        if found is None:
            raise QuantArrayError(
                f"{scheme.name} has {format_name(scheme.element)} and other scales than its "
                f"formats{common.instead(self.schemes)}"
            )
        (out, row), (high, wide) = q.shape, common.extents_of(q)
        strategy, group = "block", None
        if (high, wide) == (out, row) and out > 1:
            strategy = "tensor"
        elif high == 1:
            strategy = "channel" if wide == row else "group"
        if found.strategies[0].endswith("group"):  # those of 4-bit floats are groups of one size
            size = found.scheme.block.axes[0][1]
            strategy = found.strategies[0] if (high, wide) == (1, size) else ""
        if strategy.endswith("group"):
            group = wide
        symmetric = common.is_symmetric(q)
        known = strategy in found.strategies and (group is None or row % group == 0)
        if not known or (not symmetric and found.packed and strategy == "tensor"):
            raise QuantArrayError(
                f"{scheme} for the shape {q.shape}: {found.name} holds "
                f"{', '.join(found.strategies)} scales, groups of which fill rows"
            )
        block = (high, wide) if strategy == "block" else None
        return Described(found, scheme.element.bits, symmetric, strategy, group, block)


@dataclass(frozen=True)
class Stated:
    """What a hostile configuration states of the weights: of some, each."""

    bits: frozenset[int]
    blocks: frozenset[tuple[int, int]]


def _stated(config: Config) -> Stated:
    groups = config.get("config_groups")
    entries = groups.values() if isinstance(groups, dict) else ()
    found = [entry.get("weights") for entry in entries if isinstance(entry, dict)]
    weights = [w for w in found if isinstance(w, dict)]
    bits = {b for w in weights if type(b := w.get("num_bits")) is int and 2 <= b <= 8}
    pairs = [w.get("block_structure") for w in weights]
    blocks = {
        (pair[0], pair[1])
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n > 0 for n in pair)
    }
    return Stated(frozenset(bits), frozenset(blocks))


def _restore(parts: Mapping[str, Host], stated: Stated, dtype: str) -> QuantizedArray:
    """Build an array from parts of a hostile file, by their shapes and dtypes.

    `dtype` is that of the result where the scales do not tell.
    """
    scale = common.part_of(parts, "weight_scale")
    found = _format_of(parts, scale)
    data = common.part_of(parts, found.data, 2)
    shape, bits, dense = _size(parts, data, found, stated)
    block, grid = _block(scale, shape, found, stated)
    symmetric = not found.integer or "weight_zero_point" not in parts
    target = replace(found.target(bits, symmetric, dense), block=block)
    wanted: dict[str, tuple[Sequence[str], tuple[int, ...]]] = {
        found.data: ((NUMPY_NAMES[found.code],), data.shape),
        "weight_scale": (found.scales, scale.shape),
    }
    if found.packed:
        wanted["weight_shape"] = (("int64",), (2,))
    if not symmetric and found.packed:
        words = packing.words(shape[0], bits, target.packing)
        wanted["weight_zero_point"] = (("int32",), (words, grid[1]))
    elif not symmetric:
        wanted["weight_zero_point"] = (("int8",), scale.shape)
    if target.scale.outer is not None:
        wanted["weight_global_scale"] = (("float32",), (1,))
    common.check_parts(parts, wanted)
    result = {
        "data": common.codes_of(data) if found.code == "F8_E4M3" else data,
        "scale": (scale if found.scales == SCALES else common.codes_of(scale)).reshape(grid),
    }
    if not symmetric:
        zero = parts["weight_zero_point"]
        if found.packed:
            zero = unpack_zero_points(zero, "ct" if dense else "ct_sparse", target, shape[0])
        result["zero_point"] = zero.reshape(grid)
    if target.scale.outer is not None:
        result["global_scale"] = parts["weight_global_scale"].reshape(1, 1)
    dtype = _xp.dtype_name(scale.dtype) if found.scales == SCALES else dtype
    return QuantizedArray.from_parts(result, target, shape, dtype)


def _format_of(parts: Mapping[str, Host], scale: Host) -> Format:
    """Find the format of parts by the dtypes of codes and scales."""
    name = _xp.dtype_name(scale.dtype)
    for found in FORMATS:
        data = parts.get(found.data)
        dtype = data is not None and _xp.dtype_name(data.dtype)
        if dtype == NUMPY_NAMES[found.code] and name in found.scales:
            return found
    held = ", ".join(f"{part} of {_xp.dtype_name(a.dtype)}" for part, a in parts.items())
    raise QuantArrayError(f"no format has {held}: expected one of {_names(FORMATS)}")


def _names(formats: Sequence[Format]) -> str:
    return ", ".join(found.name for found in formats)


def _size(
    parts: Mapping[str, Host], data: Host, found: Format, stated: Stated
) -> tuple[tuple[int, int], int, bool]:
    """Give the shape, the bits of a code, and whether codes may straddle words."""
    out, columns = data.shape
    bits = found.scheme.element.bits
    if not found.packed:
        row = columns * 8 // bits
        if not out or not row:
            raise QuantArrayError(
                f"its part '{found.data}' is {common.described(data)}: it is empty"
            )
        return (out, row), bits, True
    sizes = common.part_of(parts, "weight_shape", 1)
    common.check_parts({"weight_shape": sizes}, {"weight_shape": (("int64",), (2,))})
    rows, row = map(int, sizes)
    fitting = [
        (bits, dense)
        for bits in sorted(stated.bits)
        for dense in (True, False)
        if packing.words(max(row, 0), bits, PACK.scheme.packing if dense else SPARSE) == columns
    ]
    if rows != out or out < 1 or row < 1 or len({bits for bits, _ in fitting}) != 1:
        raise QuantArrayError(
            f"its part '{found.data}' is {common.described(data)}, its weight_shape [{rows}, {row}]"
            f", and num_bits of the configuration {sorted(stated.bits)}: expected one of those "
            "to fit"
        )
    return (out, row), *fitting[0]


def _block(
    scale: Host, shape: tuple[int, int], found: Format, stated: Stated
) -> tuple[Block, tuple[int, int]]:
    """Find the blocks by the shape of the scales, and the shape that ours have."""
    out, row = shape
    if scale.size == 1 and scale.ndim <= 2 and "tensor" in found.strategies:
        return Block(), (1, 1)
    groups = scale.shape[1] if scale.ndim == 2 and scale.shape[0] == out else 0
    if groups and row % groups == 0:
        size = row // groups
        if found.scheme.scale.coded is None or found.scheme.block == Block.group(size):
            return common.group_block(size, row), (out, groups)
    for high, wide in sorted(stated.blocks) if "block" in found.strategies else ():
        if scale.shape == (-(-out // high), -(-row // wide)):
            return Block.tile((high, wide)), (scale.shape[0], scale.shape[1])
    raise QuantArrayError(
        f"its part 'weight_scale' is {common.described(scale)} for the shape {shape}: "
        f"{found.name} holds {', '.join(found.strategies)} scales"
    )
