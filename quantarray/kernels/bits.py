"""Floats as their bits, for compiled loops: what each function does depends on its types."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable


def as_bits(x: Any) -> Any:
    """Give the bits of a float as a signed integer."""


def as_float(x: Any) -> Any:
    """Give the float of these bits."""


def fit(x: Any, like: Any) -> Any:
    """Cast to the type of another number, since Numba computes with 64 bits."""


def magnitude(x: Any) -> Any:
    """Clear the sign of bits."""


def ordered(x: Any) -> Any:
    """Give integers that order like the floats of these bits, or undo that."""


def widened(x: Any) -> Any:
    """Give the bits of the float32, or float64, that an element in memory holds.

    float32 and float64 are in memory as unsigned integers, bfloat16 as uint16, float16 as int16.
    """


@overload(as_bits, strict=False)
def _as_bits(x: Any) -> Any:
    if x == types.float64:
        return lambda x: np.float64(x).view(np.int64)
    return lambda x: np.float32(x).view(np.int32)


@overload(as_float, strict=False)
def _as_float(x: Any) -> Any:
    if x == types.int64:
        return lambda x: np.int64(x).view(np.float64)
    return lambda x: np.int32(x).view(np.float32)


@overload(fit, strict=False)
def _fit(x: Any, like: Any) -> Any:
    if like == types.int64:
        return lambda x, like: np.int64(x)
    if like == types.float64:
        return lambda x, like: np.float64(x)
    if like == types.float32:
        return lambda x, like: np.float32(x)
    return lambda x, like: np.int32(x)


@overload(magnitude, strict=False)
def _magnitude(x: Any) -> Any:
    if x == types.int64:
        return lambda x: np.int64(x & np.int64(0x7FFFFFFFFFFFFFFF))
    return lambda x: np.int32(x & np.int32(0x7FFFFFFF))


@overload(ordered, strict=False)
def _ordered(x: Any) -> Any:
    if x == types.int64:
        return lambda x: np.int64(x ^ ((x >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF)))
    return lambda x: np.int32(x ^ np.int32(np.int32(x >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@overload(widened, strict=False)
def _widened(x: Any) -> Any:
    if x == types.uint64:
        return lambda x: np.int64(x)
    if x == types.uint32:
        return lambda x: np.int32(x)
    if x == types.uint16:
        return lambda x: np.int32(np.int32(x) << np.int32(16))

    def half(x: Any) -> Any:
        moved = np.int32(np.int32(x & np.int16(0x7FFF)) << np.int32(13))
        number = as_bits(np.float32(as_float(moved) * np.float32(2.0**112)))
        top = np.int32(0x7F800000) if moved >= np.int32(0x0F800000) else np.int32(0)
        sign = np.int32(np.int32(x) & np.int32(-0x80000000))
        return np.int32(np.int32(number | top) | sign)

    return half


@register_jitable
def flushed(x: Any, tiny: Any) -> Any:
    """Take a subnormal number for a zero of its sign."""
    return np.copysign(x - x, x) if abs(x) < tiny else x
