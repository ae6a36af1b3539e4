"""The table of named schemes. A new format is a new row."""

import dataclasses
import math
import typing
from typing import Literal

from quantarray.formats import FORMATS, Codebook, Float, Integer, NumberFormat
from quantarray.records import RECORDS, Record
from quantarray.scheme import Block, Packing, Rounding, Scale, Scheme


def _symmetric(bits: int) -> Scheme:
    element = Integer(bits, narrow=True)
    return Scheme(f"int{bits}", element, scale=Scale("absmax", divisor=element.max))


def _asymmetric(bits: int) -> Scheme:
    element = Integer(bits, signed=False)
    scale = Scale("minmax", divisor=element.max)
    return Scheme(f"uint{bits}", element, scale=scale, zero="point")


def _float(name: str, format_: str) -> Scheme:
    element = FORMATS[format_]
    return Scheme(name, element, scale=Scale("absmax", divisor=float(element.max)))


def _microscaling(name: str, format_: str) -> Scheme:
    element = FORMATS[format_]
    return Scheme(name, element, Block.group(32), power_of_two(element, "floor"))


def power_of_two(element: NumberFormat, rule: str, base: Scale | None = None) -> Scale:
    """Give a rule of the OCP Microscaling formats for scales that are powers of two.

    With 2**e the largest power of two that the element holds: "floor", the MX specification's, is
    2**(floor(log2(absmax)) - e), which saturates the largest elements of some blocks; "ceil" takes
    the next power where absmax is none; "even" rounds absmax to the element's mantissa first;
    "rceil" is the smallest power of two with which no element saturates.
    """
    assert not isinstance(element, Codebook)
    base = base or Scale(format=E8M0)
    power = 2.0 ** math.floor(math.log2(element.max))
    up: Literal["up", "up_log2"] = "up_log2" if base.least == E8M0.min else "up"
    rules: dict[str, tuple[float, Literal["down", "up", "up_log2"]]] = {
        "floor": (power, "down"),
        "ceil": (power, "up"),
        "even": (power * (1 - 2.0 ** -(element.mantissa + 2)), "down"),
        "rceil": (element.max, up),
    }
    divisor, rounding = rules[rule]
    return dataclasses.replace(base, divisor=divisor, rounding=rounding)


def _onnx(name: str, element: NumberFormat) -> Scheme:
    """Give ONNX's QuantizeLinear; its scale for uint8 is that of DynamicQuantizeLinear."""
    unsigned = isinstance(element, Integer) and not element.signed
    span = float(element.max)
    return Scheme(
        f"onnx:{name}",
        element,
        scale=Scale("minmax", span, zero_block=1 / span) if unsigned else Scale("absmax", span),
        zero="point" if unsigned else "none",
        rounding=Rounding(negative_zero="rounded" if element == FORMATS["e2m1fn"] else "kept"),
    )


def _torchao(bits: int, *, signed: bool) -> Scheme:
    """Give torchao's affine primitives with the mapping SYMMETRIC or ASYMMETRIC."""
    element = Integer(bits, signed=signed)
    low, high = element.codes
    rule: Literal["absmax", "minmax"] = "absmax" if signed else "minmax"
    divisor = (high - low) / 2 if signed else float(high)
    return Scheme(
        f"torchao:{'' if signed else 'u'}int{bits}",
        element,
        Block.group(128) if bits < 8 else ROW,
        Scale(rule, divisor, width="input", zero_block="least"),
        "none" if signed else "point",
        Rounding(quotient="reciprocal"),
        arithmetic="input",
    )


def _torchao_mx(name: str, format_: str) -> Scheme:
    element = FORMATS[format_]
    base = Scale(format=E8M0, least=E8M0.min, zero_block="least")
    return Scheme(f"torchao:{name}", element, Block.group(32), power_of_two(element, "floor", base))


def _compressed_tensors(bits: int, *, symmetric: bool) -> Scheme:
    element = Integer(bits)
    low, high = element.codes
    rule: Literal["absmax", "minmax"] = "absmax" if symmetric else "minmax"
    divisor = (high - low) / (2 if symmetric else 1)
    return Scheme(
        f"ct:int{bits}{'' if symmetric else '_asymmetric'}",
        element,
        Block.group(128) if bits < 8 else ROW,
        Scale(rule, divisor, width="input", least=0.0, zero_block="epsilon"),
        "none" if symmetric else "point",
        Rounding(zero_added="before"),
        Packing(word=32, excess=True) if bits < 8 else Packing(),
        arithmetic="input",
    )


def _gptq(bits: int) -> Scheme:
    element = Integer(bits, signed=False)
    span = float(element.max)
    return Scheme(
        f"gptq:int{bits}",
        element,
        Block.group(128),
        Scale("absmax", span / 2, zero_block=2 / span),
        "midpoint",
        packing=Packing(word=32, transpose="words"),
    )


def _mlx(bits: int) -> Scheme:
    element = Integer(bits, signed=False)
    return Scheme(
        f"mlx:affine{bits}",
        element,
        Block.group(64),
        Scale(
            "edge",
            float(element.max),
            width="input",
            least=1e-7,
            zero_block="least",
            codes_from="unrounded",
        ),
        "edge",
        packing=Packing(word=32),
    )


def _mlx_float(name: str, format_: str, block: int, scale: Scale, rounding: Rounding) -> Scheme:
    return Scheme(
        f"mlx:{name}",
        FORMATS[format_],
        Block.group(block),
        scale,
        rounding=rounding,
        packing=Packing(word=32),
    )


def _faiss(bits: int) -> Scheme:
    """Give faiss' scalar quantizer, which stores a dimension's smallest element and its extent."""
    span = float(Integer(bits, signed=False).max)
    return Scheme(
        f"faiss:sq{bits}",
        Integer(bits, signed=False, steps=span, middle=True),
        Block.channel(-1),
        Scale("range", 1.0, least=0.0, zero_block=0.0),
        "offset",
        Rounding("toward_zero"),
    )


def _sentence_transformers(name: str, element: NumberFormat, rounding: Rounding) -> Scheme:
    scale = Scale("range", 255.0)
    return Scheme(name, element, Block.channel(-1), scale, "offset", rounding)


def _signs(name: str, *, centred: bool) -> Scheme:
    packing = Packing("msb", centred=centred)
    return Scheme(name, FORMATS["sign"], scale=Scale("one"), packing=packing)


E8M0 = typing.cast(Float, FORMATS["e8m0fnu"])
# Every row of the last axis is a block.
ROW = Block(axes=((-1, -1),), others=1)
# bitsandbytes: absmax is stored as it is, 0 for a block of zeros.
_ABSMAX = Scale("absmax", divisor=1.0, least=0.0, zero_block=0.0)
_BNB_4BIT = Scheme(
    "bnb:nf4",
    FORMATS["nf4"],
    Block(flat=64),
    _ABSMAX,
    rounding=Rounding(quotient="but_tail"),
    packing=Packing("msb", padding="value"),
)
# Its 8-bit kernel for CPUs, since 0.50, rounds to bins first.
_BNB_8BIT = Scheme(
    "bnb:int8",
    dataclasses.replace(typing.cast(Codebook, FORMATS["dynamic8"]), bins=1 << 16),
    Block(flat=4096),
    _ABSMAX,
    rounding=Rounding(quotient="reciprocal", zero_scale="first"),
)
_BNB_NESTED = dataclasses.replace(
    _BNB_8BIT, name="scales of bnb:nf4_nested", block=Block(flat=256), zero="mean"
)
# NVFP4: a scale for the array, so that block scales use all of e4m3.
_NVFP4_GLOBAL = Scheme(
    "scales of nvfp4", FORMATS["e4m3fn"], scale=Scale("absmax", divisor=6.0 * 448.0)
)
_NVFP4 = Scheme(
    "nvfp4",
    FORMATS["e2m1fn"],
    Block.group(16),
    Scale("absmax", divisor=6.0, format=_NVFP4_GLOBAL, least=2.0**-9),
)

# MLX breaks ties towards zero, writes no -0, and lets scales underflow to 0.
_MLX_4BIT = Rounding("half_down", negative_zero="never", zero_scale="first")
_MLX_NVFP4 = Scale("absmax", 6.0, typing.cast(Float, FORMATS["e4m3fn"]), least=0.0, zero_block=0.0)


def _gguf(record: Record) -> Scheme:
    return Scheme(
        f"gguf:{record.name.lower()}",
        record.element,
        Block.group(record.group),
        Scale("record", divisor=1.0),
        "offset" if record.offset else "none",
        packing=Packing(record=record.name),
    )


PRESETS: dict[str, Scheme] = {
    preset.name: preset
    for preset in (
        *(_symmetric(bits) for bits in range(2, 9)),
        *(_asymmetric(bits) for bits in range(2, 9)),
        # BitNet b1.58 (Ma et al., 2024), and binary weight networks (Rastegari et al., 2016).
        Scheme("ternary", Integer(2, narrow=True), scale=Scale("absmean", divisor=1.0)),
        Scheme(
            "binary",
            FORMATS["sign"],
            scale=Scale("absmean", divisor=1.0, least=0.0, zero_block=0.0),
        ),
        _float("fp8_e4m3", "e4m3fn"),
        _float("fp8_e5m2", "e5m2"),
        _float("fp8_e4m3fnuz", "e4m3fnuz"),
        _float("fp8_e5m2fnuz", "e5m2fnuz"),
        _float("fp6_e3m2", "e3m2fn"),
        _float("fp6_e2m3", "e2m3fn"),
        _float("fp4_e2m1", "e2m1fn"),
        Scheme("nf4", FORMATS["nf4"], Block.group(64), Scale("absmax", divisor=1.0)),
        Scheme("fp4_bnb", FORMATS["fp4_bnb"], Block.group(64), Scale("absmax", divisor=1.0)),
        _microscaling("mxfp8_e4m3", "e4m3fn"),
        _microscaling("mxfp8_e5m2", "e5m2"),
        _microscaling("mxfp6_e3m2", "e3m2fn"),
        _microscaling("mxfp6_e2m3", "e2m3fn"),
        _microscaling("mxfp4", "e2m1fn"),
        _microscaling("mxint8", "mxint8"),
        _NVFP4,
        *(_onnx(f"int{bits}", Integer(bits)) for bits in (2, 4, 8, 16)),
        *(_onnx(f"uint{bits}", Integer(bits, signed=False)) for bits in (2, 4, 8, 16)),
        _onnx("float8e4m3fn", FORMATS["e4m3fn"]),
        _onnx("float8e5m2", FORMATS["e5m2"]),
        _onnx("float4e2m1", FORMATS["e2m1fn"]),
        *(_torchao(bits, signed=signed) for signed in (True, False) for bits in (4, 8)),
        _torchao_mx("mxfp8_e4m3", "e4m3fn"),
        _torchao_mx("mxfp8_e5m2", "e5m2"),
        _torchao_mx("mxfp6_e3m2", "e3m2fn"),
        _torchao_mx("mxfp6_e2m3", "e2m3fn"),
        _torchao_mx("mxfp4", "e2m1fn"),
        dataclasses.replace(
            _NVFP4,
            name="torchao:nvfp4",
            scale=dataclasses.replace(_NVFP4.scale, least=2.0**-6, zero_block="least"),
            rounding=Rounding(quotient="reciprocal"),
        ),
        *(_compressed_tensors(bits, symmetric=s) for s in (True, False) for bits in (4, 8)),
        dataclasses.replace(
            _NVFP4,
            name="ct:nvfp4",
            scale=Scale(
                "absmax",
                divisor=6.0,
                format=dataclasses.replace(
                    _NVFP4_GLOBAL, scale=Scale("absmax", 6.0 * 448.0, stored="reciprocal")
                ),
                least=0.0,
                zero_block=0.125,
            ),
            rounding=Rounding(negative_zero="rounded"),
        ),
        *(_gptq(bits) for bits in (2, 3, 4, 8)),
        Scheme(
            "awq:int4",
            Integer(4, signed=False),
            Block.group(128),
            Scale("range", 15.0, least=1e-5 / 15, zero_block="least"),
            "point",
            packing=Packing(word=32, interleave=(0, 2, 4, 6, 1, 3, 5, 7), transpose="codes"),
        ),
        _BNB_4BIT,
        dataclasses.replace(_BNB_4BIT, name="bnb:fp4", element=FORMATS["fp4_bnb"]),
        dataclasses.replace(
            _BNB_4BIT,
            name="bnb:nf4_nested",
            scale=dataclasses.replace(_ABSMAX, format=_BNB_NESTED, codes_from="unrounded"),
        ),
        _BNB_8BIT,
        Scheme(
            "bnb:int8_rows",
            Integer(8, narrow=True, steps=127.0),
            ROW,
            _ABSMAX,
            rounding=Rounding(quotient="reciprocal"),
        ),
        *(_mlx(bits) for bits in (2, 3, 4, 5, 6, 8)),
        _mlx_float("mxfp4", "e2m1fn", 32, power_of_two(FORMATS["e2m1fn"], "rceil"), _MLX_4BIT),
        _mlx_float("mxfp8", "e4m3fn", 32, power_of_two(FORMATS["e4m3fn"], "rceil"), Rounding()),
        _mlx_float("nvfp4", "e2m1fn", 16, _MLX_NVFP4, _MLX_4BIT),
        # With the global scale that MLX takes, the largest magnitude.
        _mlx_float(
            "nvfp4_global",
            "e2m1fn",
            16,
            dataclasses.replace(
                _MLX_NVFP4,
                format=dataclasses.replace(
                    _NVFP4_GLOBAL, scale=Scale("absmax", 6.0 * 448.0, stored="absmax")
                ),
            ),
            _MLX_4BIT,
        ),
        # Its releases before 6.0 shift to int8 and then truncate; those since, the other way round.
        _sentence_transformers(
            "st:int8", Integer(8, origin=-128.0), Rounding("toward_zero", zero_added="before")
        ),
        _sentence_transformers("st6:int8", Integer(8, origin=-128.0), Rounding("toward_zero")),
        _sentence_transformers("st:uint8", Integer(8, signed=False), Rounding("toward_zero")),
        _signs("st:binary", centred=True),
        _signs("st:ubinary", centred=False),
        *(_faiss(bits) for bits in (4, 8)),
        *(_gguf(r) for r in RECORDS.values() if r.importance != "needed"),
    )
}

# What files hold and `quantize` does not encode: what `gguf.encode` needs importances for.
DECODABLE: dict[str, Scheme] = {
    f"gguf:{name.lower()}": _gguf(record)
    for name, record in RECORDS.items()
    if record.importance == "needed"
}
