"""What the loops that quantize need to know of a scheme, in the types they compute with."""

import functools
from typing import Any, NamedTuple

import numpy as np

from quantarray import codec, scales
from quantarray.arithmetic import Arithmetic
from quantarray.formats import Codebook, Float, Integer
from quantarray.kernels.plans import (
    ABSMAX,
    EDGE,
    FEW,
    FLOAT,
    INTEGER,
    MAGNITUDES,
    MANY,
    MINMAX,
    ONE,
    RANGE,
    VALUES,
    Numbers,
    packs,
    record,
)
from quantarray.parameters import float_dtype, least_scale, zero_block_scale
from quantarray.scheme import Scale, Scheme
from quantarray.task import arithmetic

_RULES = {"absmax": ABSMAX, "minmax": MINMAX, "range": RANGE, "edge": EDGE, "one": ONE}


class Encoder(NamedTuple):
    """A scheme for `encode.quantize`: floats and integers of one width, flags, and tables.

    Every field is a NumPy scalar or array, and tables have one size, so that the records made of
    these have one dtype for all schemes.
    """

    # The range of a block, and its scale: see `scales.derive`.
    rule: int
    limit: Any
    tiny: Any
    nothing: Any
    half: Any
    one: Any
    divisor: Any
    least: Any
    largest: Any
    zero_block: Any
    # The codes of scales: how many thresholds lie below a number with given leading bits, the
    # thresholds, and the values.
    scale_shift: int
    scale_count: int
    scale_starts: Numbers
    scale_ends: Numbers
    scale_values: Numbers
    scale_exact: bool
    least_code: int
    zero_block_code: int
    has_outer: bool
    outer_divides: bool
    # The zero of a block: an offset, or the code of its smallest element, or a constant.
    zero_is_offset: bool
    zero_is_low: bool
    zero: Any
    # The quotient: see `pipeline._divide`.
    multiplies: bool
    tail_divides: bool
    inverse: bool
    guarded: bool
    steps: Any
    bound: Any
    largest_scale: Any
    resolution: Any
    flushes: bool
    # Whether elements take more than a division before they are rounded.
    prepares: bool
    uses_zero: bool
    # The code: see `codec.to_codes`.
    kind: int
    # Whether subnormal quotients would have codes of their own.
    small_counts: bool
    truncates: bool
    zero_before: bool
    zero_after: bool
    origin: Any
    origin_after: Any
    lowest: Any
    highest: Any
    mask: int
    excess: int
    exponents: Any
    float_min: Any
    float_max: Any
    float_step: Any
    float_shift: Any
    ends: Numbers
    many_shift: int
    many_starts: Numbers
    many_ends: Numbers
    reorders: bool
    order: Numbers
    # Negative elements get the sign from this magnitude on, if their code is above that.
    sign: Any
    signed_from: Any
    signed_above: int
    zero_first: bool
    # Bits a code takes in memory, and the bits of a byte that are turned.
    width: int
    high_first: bool
    flip: Any
    padding: Any


@functools.lru_cache
def encoder(scheme: Scheme, dtype: str, given: bool) -> tuple[Encoder, Numbers] | None:
    """Describe a scheme, or give None if the loops do not cover it.

    Parameters
    ----------
    scheme : Scheme
        What to describe.
    dtype : str
        Of the array to quantize.
    given : bool
        Whether the scales are there.

    Returns
    -------
    tuple of (Encoder, numpy.ndarray), or None
        The numbers, and their record.
    """
    math_ = arithmetic(scheme, dtype, np)
    if not _covers(scheme, math_, dtype, given):
        return None
    element, rule = scheme.element, scheme.scale
    real = np.dtype(math_.dtype).type
    whole = np.int64 if math_.dtype == "float64" else np.int32
    how, rounding = scheme.packing, scheme.rounding
    integer = element if isinstance(element, Integer) else None
    zero = real(0)
    if integer is not None and scheme.zero == "midpoint":
        zero = real((sum(integer.codes) + 1) // 2)
    steps, origin = (integer.steps, real(integer.origin)) if integer else (1.0, real(0))
    adds = scheme.zero_kind == "point" or origin != 0
    low, high = integer.codes if integer else (0, 0)
    simple = packs(scheme)
    resolution = codec.limits_of(element)[2]
    truncates = integer is not None and rounding.mode == "toward_zero"
    added = scheme.zero_kind == "offset" or rounding.zero_added == "before"
    flushes = added or rounding.negative_zero == "rounded"
    small_counts = integer is None and resolution == 0
    plan = Encoder(
        rule=_RULES[rule.rule],
        limit=real(scales.largest(scheme, math_.dtype)),
        tiny=real(math_.tiny),
        nothing=real(0),
        half=real(0.5),
        one=real(1),
        divisor=real(rule.divisor),
        least=real(least_scale(rule, math_)),
        largest=real(math_.limit),
        zero_block=real(zero_block_scale(rule, math_)),
        **_coded_scales(scheme, math_, given),
        zero_is_offset=scheme.zero_kind == "offset",
        zero_is_low=scheme.zero == "point",
        zero=zero,
        multiplies=rounding.quotient != "divide",
        tail_divides=rounding.quotient == "but_tail",
        inverse=rounding.quotient == "reciprocal" and rule.outer is not None,
        guarded=rule.least is not None or rule.outer is not None,
        steps=real(steps),
        bound=real(math_.limit / steps * (1 - 2**-22)),
        largest_scale=real(math_.limit / 4 / rule.divisor),
        resolution=real(resolution),
        flushes=flushes,
        prepares=flushes or small_counts or truncates or steps != 1,
        uses_zero=scheme.zero != "none",
        small_counts=small_counts,
        truncates=truncates,
        zero_before=adds and rounding.zero_added == "before",
        zero_after=scheme.zero_kind == "point" and rounding.zero_added == "after",
        origin=origin if rounding.zero_added == "before" else real(0),
        origin_after=origin if rounding.zero_added == "after" else real(0),
        lowest=real(low),
        highest=real(high),
        mask=(1 << element.bits) - 1 if scheme.packed else 255,
        excess=1 << (element.bits - 1) if scheme.packed and how.excess else 0,
        **_rounding(scheme, math_, real, whole),
        zero_first=rounding.zero_scale == "first" and integer is None,
        width=element.bits if simple else 8,
        high_first=how.order == "msb",
        flip=np.uint8(128 if simple and how.centred else 0),
        padding=np.uint8(_padding(scheme) if how.padding == "value" else 0),
    )
    return plan, record(plan)


def _covers(scheme: Scheme, math_: Arithmetic, dtype: str, given: bool) -> bool:
    element, rule, mode = scheme.element, scheme.scale, scheme.rounding.mode
    if element.bits > 8 or rule.rule == "absmean":
        return False
    if math_.precision != math_.dtype or float_dtype(scheme, dtype) != math_.dtype:
        return False
    if rule.outer is not None and (
        rule.outer.scale.stored == "absmax"  # elements are divided twice
        or (scheme.rounding.quotient == "reciprocal" and not derives(scheme, given))
    ):
        return False
    if isinstance(element, Integer):
        return mode in ("half_even", "toward_zero")
    if scheme.packing.excess or (scheme.packing.padding == "value" and not packs(scheme)):
        return False
    if isinstance(element, Codebook):
        return True
    few = len(element.magnitudes) <= FEW + 1
    return element.signed and (few or (mode == "half_even" and element.mantissa > 0))


def derives(scheme: Scheme, given: bool) -> bool:
    """Tell whether the loops derive the scales too."""
    rule = scheme.scale
    if given:
        return False
    if rule.outer is None:
        return rule.format is None or rule.coded is not None
    whole = rule.outer.block.flat is None and not rule.outer.block.axes
    return (
        whole
        and isinstance(rule.outer.element, Float)
        and rule.outer.zero == "none"
        and rule.outer.rounding.quotient == "divide"
        and rule.codes_from == "stored"
    )


def _coded_scales(scheme: Scheme, math_: Arithmetic, given: bool) -> dict[str, Any]:
    """Describe how scales become codes of 8 bits."""
    rule, dtype = scheme.scale, math_.dtype
    shift = _bits(math_.dtype)[0] - 3  # three bits of the mantissa tell the values of e4m3 apart
    ends, values, codes = np.full(256, np.inf, dtype), np.zeros(256, dtype), np.zeros(2, int)
    count = 0
    exact = rule.outer is None and rule.rounding in ("down", "up")
    if isinstance(rule.coded, Float) and derives(scheme, given):
        between = _scale_ends(rule, exact, math_.dtype)
        count = between.size
        ends[:count], values[: count + 1] = between, rule.coded.magnitudes
        wanted = least_scale(rule, math_), zero_block_scale(rule, math_)
        codes = np.searchsorted(values[: count + 1], wanted)
    return {
        "scale_shift": shift,
        "scale_count": count,
        "scale_starts": _starts(ends[:count], shift, signed=False),
        "scale_ends": ends,
        "scale_values": values,
        "scale_exact": exact,
        "least_code": codes[0],
        "zero_block_code": codes[1],
        "has_outer": rule.outer is not None,
        "outer_divides": rule.outer is not None and rule.outer.scale.stored == "reciprocal",
    }


def _bits(dtype: str) -> tuple[int, int]:
    """Give the bits of the mantissa of a dtype, and the bias of its exponent."""
    return (52, 1023) if dtype == "float64" else (23, 127)


def _starts(ends: Numbers, shift: int, signed: bool) -> Numbers:
    """Count the thresholds below all numbers whose bits begin alike; negative ones come second."""
    kind = f"u{ends.itemsize}"
    leading = np.arange(1 << (8 * ends.itemsize - shift - 1)).astype(kind) << shift
    counts = np.searchsorted(ends, leading.view(ends.dtype))
    if signed:
        last = leading | np.asarray((1 << shift) - 1, kind)
        counts = np.concatenate([counts, np.searchsorted(ends, -last.view(ends.dtype))])
    return counts.astype(np.uint8)


def _scale_ends(rule: Scale, exact: bool, dtype: str) -> Numbers:
    """Give the thresholds between the values of scales."""
    assert isinstance(rule.coded, Float)
    odd = rule.rounding == "half_even" and rule.coded.mantissa == 0  # as in codec.to_codes
    mode = "half_away" if odd else rule.rounding
    return codec.thresholds(rule.coded.magnitudes, mode, rule.divisor if exact else 1.0, dtype)


def _rounding(scheme: Scheme, math_: Arithmetic, real: Any, whole: Any) -> dict[str, Any]:
    """Describe how quotients become codes."""
    element, rounding, dtype = scheme.element, scheme.rounding, math_.dtype
    found: dict[str, Any] = {
        "kind": INTEGER,
        "exponents": whole(0),
        "float_min": whole(0),
        "float_max": whole(0),
        "float_step": whole(0),
        "float_shift": whole(0),
        "ends": np.full(FEW, np.inf, dtype),
        "many_shift": _bits(dtype)[0] - 4,
        "many_starts": np.zeros(
            1 << (8 * np.dtype(dtype).itemsize - _bits(dtype)[0] + 4), np.uint8
        ),
        "many_ends": np.full(256, np.inf, dtype),
        "reorders": False,
        "order": np.zeros(256, np.uint8),
        "sign": whole(0),
        "signed_from": whole(0),
        "signed_above": -1,
    }
    if isinstance(element, Codebook):
        ends = codec.codebook_ends(element, dtype)
        found["kind"] = VALUES if ends.size <= FEW else MANY
        if element.order != tuple(range(len(element.table))):
            found["reorders"] = True
            found["order"][: len(element.order)] = element.order
    elif isinstance(element, Float):
        mode = rounding.mode
        if mode == "half_even" and element.mantissa > 0:
            return (
                found
                | _float(element, whole, dtype)
                | _sign(element, rounding.negative_zero, math_, whole)
            )
        ends = codec.thresholds(element.magnitudes, mode, 1.0, dtype)
        found |= {"kind": MAGNITUDES} | _sign(element, rounding.negative_zero, math_, whole)
    else:
        return found
    if found["kind"] == MANY:
        found["many_ends"][: ends.size] = ends
        found["many_starts"] = _starts(ends, found["many_shift"], signed=True)
    else:
        found["ends"][: ends.size] = ends
    return found


def _sign(element: Float, zero: str, math_: Arithmetic, whole: Any) -> dict[str, Any]:
    """Describe the sign bit of a float format, and which negative zeros have none."""
    tiny = np.asarray(math_.tiny, math_.dtype).view(whole)[()]
    return {
        "sign": whole(1 << (element.bits - 1)),
        "signed_from": tiny if zero == "rounded" else whole(0),
        "signed_above": 0 if zero == "never" or element.specials == "nan_zero" else -1,
    }


def _float(element: Float, whole: Any, dtype: str) -> dict[str, Any]:
    """Describe a small float format in the bits of a large one."""
    mantissa, bias = _bits(dtype)
    shift = mantissa - element.mantissa
    return {
        "kind": FLOAT,
        "exponents": whole((2 * bias + 1) << mantissa),
        "float_min": whole((1 - element.bias + bias) << mantissa),
        "float_max": np.asarray(element.max, dtype).view(whole)[()],
        "float_step": whole(shift << mantissa),
        "float_shift": whole(shift),
    }


def _padding(scheme: Scheme) -> int:
    """Give the code of 0."""
    zero = codec.to_codes(np.zeros(1, np.float32), scheme.element, "half_even", None, np)
    return int(zero[0])
