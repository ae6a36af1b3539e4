"""The encoder of each block type, as rows of data over a few functions.

Each does what the function ``quantize_row_<type>_ref`` or ``_impl`` of `ggml-quants.c` does, on
many blocks at once.
"""

import functools
import itertools
from collections.abc import Callable

import numpy as np

from quantarray import _xp, codec
from quantarray._xp import Array, Namespace
from quantarray.arithmetic import Arithmetic
from quantarray.formats import Codebook
from quantarray.gguf import fields, search
from quantarray.gguf.block import Blocks, Encoder, Fields
from quantarray.gguf.lattice_encoders import LATTICE_ENCODERS
from quantarray.gguf.search import Affine, total


def _stored(x: Array, xp: Namespace) -> Array:
    """Round to float16, keeping float32."""
    return fields.half_to_value(fields.value_to_half(x, xp), xp)


def _inverse(scale: Array, math_: Arithmetic) -> Array:
    """Give 1 / scale, but 0 for 0."""
    xp = math_.xp
    zero = scale == 0
    return _xp.where(zero, 0.0, math_.reciprocal(_xp.where(zero, 1.0, scale, xp)), xp)


def _held(x: Array, xp: Namespace) -> Array:
    """Give 0 for what C casts to no integer: the reciprocal of the smallest scales is Inf."""
    return _xp.where(xp.abs(x) < 2.0**31, x, 0.0, xp)


def _by_extreme(blocks: Blocks, *, most: int) -> Fields:
    """Q4_0, Q5_0: the first element of the largest magnitude becomes ``-most``."""
    xp, math_ = blocks.math_.xp, blocks.math_
    extreme, _ = search.first_largest(blocks.x, xp)
    scale = math_.divide(extreme, xp.full_like(extreme, -float(most)))
    quotient = math_.multiply(blocks.x, _inverse(scale, math_))
    codes = xp.trunc(_held(quotient + (most + 0.5), xp))
    return Fields(blocks.groups(_xp.clip(codes, 0, 2 * most - 1, xp)), scale)


def _by_range(blocks: Blocks, *, most: int) -> Fields:
    """Q4_1, Q5_1."""
    xp, math_ = blocks.math_.xp, blocks.math_
    low, high = search.first_smallest(blocks.x, xp), xp.max(blocks.x, axis=0)
    span = (high - low) + 0.0  # +0 also where zeros have both signs
    scale = math_.divide(span, xp.full_like(low, float(most)))
    quotient = math_.multiply(blocks.x - low, _inverse(scale, math_))
    codes = xp.trunc(_held(quotient + 0.5, xp))
    return Fields(blocks.groups(xp.minimum(codes, xp.full_like(codes, most))), scale, offset=low)


def _by_magnitude(blocks: Blocks, *, divisor: int, plus: int, most: int, wild: int) -> Fields:
    """Q8_0, TQ1_0, TQ2_0, Q2_0: `wild` is the code of what is no number."""
    xp, math_ = blocks.math_.xp, blocks.math_
    largest = xp.max(xp.abs(blocks.x), axis=0)
    scale = math_.divide(largest, xp.full_like(largest, float(divisor)))
    quotient = math_.multiply(blocks.x, _inverse(scale, math_))
    finite = xp.abs(quotient) < 2.0**31
    quotient = _xp.where(finite, quotient, 0.0, xp)
    codes = codec.round_to_integer(quotient, "half_away", None, xp) + plus
    codes = _xp.where(finite, codes, float(wild), xp)
    return Fields(blocks.groups(_xp.clip(codes, plus - divisor, most, xp)), scale)


def _by_sign(blocks: Blocks) -> Fields:
    """Q1_0."""
    xp, math_ = blocks.math_.xp, blocks.math_
    magnitude = total(xp.abs(blocks.x), xp)
    scale = math_.divide(magnitude, xp.full_like(magnitude, float(blocks.record.elements)))
    return Fields(blocks.groups(xp.astype(blocks.x >= 0, xp.float32)), scale)


def _by_power(blocks: Blocks) -> Fields:
    """MXFP4."""
    xp = blocks.math_.xp
    largest = xp.max(xp.abs(blocks.x), axis=0)
    table = xp.asarray(_powers(), device=_xp.beside(largest))
    # floor(log2(x)) - 2 + 127 in a byte, of powers from 2**-149 on; 0 for 0.
    power = xp.astype(_xp.count_below(table, largest, xp), xp.int32) - 150
    code = _xp.where(largest > 0, (power + 125) & 255, xp.zeros_like(power), xp)
    return _by_scale(blocks, xp.expand_dims(code, 0))


@_xp.constant
def _powers() -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Give the largest float32 whose logarithm to base 2, in float32, is below -149, -148, ...

    The logarithm of the last numbers below a power of two rounds up to the power's own.
    """
    powers = np.arange(-149, 128)
    below = np.nextafter(powers.astype(np.float32), np.float32(-np.inf)).astype(np.float64)
    least = 2.0 ** ((powers + below) / 2)
    found = least.astype(np.float32)
    # A tie goes to the even logarithm, and none of these numbers is one.
    return np.where(found >= least, np.nextafter(found, np.float32(0)), found)


def _by_float(blocks: Blocks) -> Fields:
    """NVFP4: scales are rounded half up, from their next bit alone."""
    xp, math_ = blocks.math_.xp, blocks.math_
    largest = xp.max(xp.abs(blocks.groups(blocks.x)), axis=0)
    scale = math_.divide(largest, xp.full_like(largest, 6.0))
    scale = xp.minimum(scale, xp.full_like(scale, 448.0))
    bits = _xp.float_bits(scale, xp)
    normal = ((bits >> 20) + ((bits >> 19) & 1)) - (120 << 3)
    low = xp.astype(xp.trunc(math_.multiply(scale, 512.0) + 0.5), xp.int32)
    small = scale < 2.0**-6
    low = xp.minimum(low, xp.full_like(low, 7))
    # All from 256 on becomes the largest, 448.
    normal = _xp.where(normal < 0x78, normal, xp.full_like(normal, 0x7E), xp)
    code = _xp.where(small, low, normal, xp)
    return _by_scale(blocks, code)


def _by_scale(blocks: Blocks, scales: Array) -> Fields:
    """Encode as the nearest of a codebook's values times the scale, of two as near the smaller."""
    xp, math_, record = blocks.math_.xp, blocks.math_, blocks.record
    assert isinstance(record.element, Codebook)
    table = xp.asarray(record.scale_values, dtype=xp.float32, device=_xp.beside(blocks.x))
    scale = _xp.lookup(table, scales, xp)
    x = blocks.groups(blocks.x)
    values = record.element.table[:8]
    codes = xp.zeros_like(x)
    for low, high in itertools.pairwise(values):  # no quotient is rounded
        above = xp.abs(x) > math_.multiply(scale, (low + high) / 2)
        codes = codes + xp.astype(above, xp.float32)
    codes = codes + _xp.where((x < 0) & (codes > 0), xp.full_like(codes, 8.0), 0.0, xp)
    return Fields(_xp.where(scale == 0, 0.0, codes, xp), scales=scales)


def _with_extreme(blocks: Blocks, *, most: int) -> Fields:
    """Q4_0, Q5_0 with importances."""
    scale, codes = search.signed(blocks.x, most, blocks.weighted(_given(blocks)), blocks.math_)
    return Fields(blocks.groups(codes), scale)


def _with_range(blocks: Blocks, *, most: int) -> Fields:
    """Q4_1, Q5_1 with importances."""
    weights = blocks.weighted(_given(blocks))
    scale, minus, codes = search.affine(blocks.x, weights, _fine(most), blocks.math_)
    return Fields(blocks.groups(codes), scale, offset=-minus)


def _given(blocks: Blocks) -> Array:
    assert blocks.energy is not None
    return blocks.energy


def _fine(most: int) -> Affine:
    return Affine(most, -0.9, 0.05, 36)


def _two_level(blocks: Blocks, *, how: Affine, most: int) -> Fields:
    """Q2_K, Q4_K, Q5_K: scales and minima are codes up to `most` themselves."""
    xp, math_ = blocks.math_.xp, blocks.math_
    x = blocks.groups(blocks.x)
    magnitude = xp.abs(x)
    if not how.by_magnitude:
        mean = math_.divide(total(math_.multiply(x, x), xp), 32.0)
        magnitude = _xp.sqrt(mean, xp) + magnitude
    scale, minus, codes = search.affine(x, magnitude, how, math_)
    base, scales = _share(scale, most, math_)
    offset, mins = _share(minus, most, math_)
    return _refined(x, codes, how.most, base, scales, offset, mins, math_)


def _share(values: Array, most: int, math_: Arithmetic) -> tuple[Array, Array]:
    """Find a scale of numbers that makes the largest the code `most`."""
    xp = math_.xp
    largest = xp.max(values, axis=0)
    some = largest > 0
    largest = _xp.where(some, largest, 1.0, xp)
    inverse = math_.divide(xp.full_like(largest, float(most)), largest)
    codes = search.in_byte(search.nearest(math_.multiply(inverse, values), xp), xp)
    codes = xp.minimum(codes, xp.full_like(codes, float(most)))
    base = math_.divide(largest, xp.full_like(largest, float(most)))
    return _xp.where(some, base, 0.0, xp), _xp.where(some, codes, 0.0, xp)


def _two_level_weighted(
    blocks: Blocks, *, most: int, top: int, times: float, in_place: "InPlace"
) -> Fields:
    """Q2_K, Q4_K, Q5_K with importances: elements to `most`, scales and minima to `top`."""
    xp, math_ = blocks.math_.xp, blocks.math_
    energy = math_.divide(math_.multiply(blocks.squares(), times), float(blocks.record.elements))
    x, weights = blocks.groups(blocks.x), blocks.groups(blocks.weighted(energy))
    sums = total(weights, xp)
    scale, minus, codes = search.affine(x, weights, _fine(most), math_)
    base, scales = search.positive(scale, top, sums, math_)
    offset, mins = search.positive(minus, top, sums, math_)
    scales, mins = in_place(scales, mins, xp)
    return _refined(x, codes, most, base, scales, offset, mins, math_)


# What becomes of bytes for scales and minima where they are stored: those below 0, which sparse
# importances give, are large bytes.
InPlace = Callable[[Array, Array, Namespace], tuple[Array, Array]]


def _clipped(scales: Array, mins: Array, xp: Namespace) -> tuple[Array, Array]:
    """Q5_K."""
    limit = xp.full_like(scales, 63.0)
    return xp.minimum(scales, limit), xp.minimum(mins, limit)


def _spilled(scales: Array, mins: Array, xp: Namespace) -> tuple[Array, Array]:
    """Q4_K: what is too large in the first half of the groups reaches the second."""

    def spilled(codes: Array) -> Array:
        codes = xp.astype(codes, xp.int32)
        half = codes.shape[0] // 2
        first, second = codes[:half, ...], codes[half:, ...]
        joined = xp.concat([first & 63, (second & 63) | ((first >> 6) << 4)], axis=0)
        return xp.astype(joined, xp.float32)

    return spilled(scales), spilled(mins)


def _in_nibbles(scales: Array, mins: Array, xp: Namespace) -> tuple[Array, Array]:
    """Q2_K: what is too large in a scale reaches its minimum."""
    low, high = xp.astype(scales, xp.int32), xp.astype(mins, xp.int32)
    mins = (high | (low >> 4)) & 15
    return xp.astype(low & 15, xp.float32), xp.astype(mins, xp.float32)


def _refined(
    x: Array,
    codes: Array,
    most: int,
    base: Array,
    scales: Array,
    offset: Array,
    mins: Array,
    math_: Arithmetic,
) -> Fields:
    """Round elements again, with the scales and minima that are stored."""
    xp = math_.xp
    scale = math_.multiply(_stored(base, xp), scales)
    least = math_.multiply(_stored(offset, xp), mins)
    quotient = math_.divide(x + least, _xp.where(scale == 0, 1.0, scale, xp))
    again = _xp.clip(search.nearest(quotient, xp), 0, most, xp)
    codes = _xp.where(xp.expand_dims(scale == 0, 0), codes, again, xp)
    return Fields(codes, base, scales, offset, mins)


def _rounded_again(x: Array, codes: Array, most: int, scale: Array, math_: Arithmetic) -> Array:
    """Round elements again, with the scales that are stored."""
    xp = math_.xp
    quotient = math_.divide(x, _xp.where(scale == 0, 1.0, scale, xp))
    again = _xp.clip(search.nearest(quotient, xp), -most, most - 1, xp) + most
    return _xp.where(xp.expand_dims(scale == 0, 0), codes, again, xp)


def _three_bits(blocks: Blocks) -> Fields:
    """Q3_K."""
    xp, math_ = blocks.math_.xp, blocks.math_
    x = blocks.groups(blocks.x)
    scale, codes = search.signed_stepwise(x, 4, math_)
    extreme, _ = search.first_largest(scale, xp)
    some = extreme != 0
    inverse = math_.divide(xp.full_like(extreme, -32.0), _xp.where(some, extreme, 1.0, xp))
    scales = _xp.clip(search.nearest(math_.multiply(inverse, scale), xp), -32, 31, xp)
    base = _xp.where(some, math_.reciprocal(inverse), 0.0, xp)
    scales = _xp.where(some, scales, -32.0, xp)
    held = math_.multiply(_stored(base, xp), scales)
    return Fields(_rounded_again(x, codes, 4, held, math_), base, scales + 32)


def _three_bits_weighted(blocks: Blocks) -> Fields:
    """Q3_K with importances."""
    xp, math_ = blocks.math_.xp, blocks.math_
    energy = math_.divide(math_.multiply(blocks.squares(), 2.0), 256.0)
    x, weights = blocks.groups(blocks.x), blocks.groups(blocks.weighted(energy))
    scale, codes = search.signed(x, 4, weights, math_)
    base, scales = search.signed(scale, 32, total(weights, xp), math_)
    held = math_.multiply(_stored(base, xp), scales - 32)
    return Fields(_rounded_again(x, codes, 4, held, math_), base, scales)


def _six_bits(blocks: Blocks) -> Fields:
    """Q6_K, whose importances count as they are."""
    xp, math_ = blocks.math_.xp, blocks.math_
    x = blocks.groups(blocks.x)
    given = blocks.weights
    weights = math_.multiply(x, x) if given is None else blocks.groups(given)
    scale, codes = search.signed(x, 32, weights, math_)
    extreme, largest = search.first_largest(scale, xp)
    empty = largest < search.LEAST
    extreme = _xp.where(empty, 1.0, extreme, xp)
    inverse = math_.divide(xp.full_like(extreme, -128.0), extreme)
    scales = search.nearest(math_.multiply(inverse, scale), xp)
    scales = xp.minimum(scales, xp.full_like(scales, 127.0))
    base = math_.reciprocal(inverse)
    held = math_.multiply(_stored(base, xp), scales)
    codes = _rounded_again(x, codes, 32, held, math_)
    return Fields(
        _xp.where(empty, 0.0, codes, xp),
        _xp.where(empty, 0.0, base, xp),
        _xp.where(empty, 0.0, search.in_byte(scales, xp), xp),
    )


def _by_codebook(blocks: Blocks) -> Fields:
    """IQ4_NL, IQ4_XS."""
    xp, math_, record = blocks.math_.xp, blocks.math_, blocks.record
    assert isinstance(record.element, Codebook)
    values = record.element.table
    x = blocks.groups(blocks.x)
    if blocks.weights is None:
        weights = math_.multiply(x, x)
    else:
        factor = float(np.float32(2) / np.float32(record.elements))
        weights = blocks.groups(blocks.weighted(math_.multiply(blocks.squares(), factor)))
    scale = search.codebook(x, values, weights, math_)
    if not record.scales:
        codes = search.place(math_.multiply(_inverse(scale, math_), x), values, xp)
        return Fields(codes, scale[0, ...])
    extreme, _ = search.first_largest(scale, xp)
    base = math_.divide(-extreme, xp.full_like(extreme, 32.0))
    scales = search.nearest(math_.multiply(_inverse(base, math_), scale), xp)
    scales = _xp.clip(scales, -32, 31, xp)
    held = _inverse(math_.multiply(base, scales), math_)
    codes = search.place(math_.multiply(held, x), values, xp)
    return Fields(codes, base, scales + 32)


_PART = functools.partial

# By name: the encoder without importances, and with them.
ENCODERS: dict[str, tuple[Encoder | None, Encoder | None]] = {
    "Q4_0": (_PART(_by_extreme, most=8), _PART(_with_extreme, most=8)),
    "Q4_1": (_PART(_by_range, most=15), _PART(_with_range, most=15)),
    "Q5_0": (_PART(_by_extreme, most=16), _PART(_with_extreme, most=16)),
    "Q5_1": (_PART(_by_range, most=31), _PART(_with_range, most=31)),
    "Q8_0": (_PART(_by_magnitude, divisor=127, plus=0, most=127, wild=0), None),
    "Q2_K": (
        _PART(_two_level, how=Affine(3, -0.5, 0.1, 15, by_magnitude=True), most=15),
        _PART(_two_level_weighted, most=3, top=15, times=1.0, in_place=_in_nibbles),
    ),
    "Q3_K": (_three_bits, _three_bits_weighted),
    "Q4_K": (
        _PART(_two_level, how=Affine(15, -1.0, 0.1, 20), most=63),
        _PART(_two_level_weighted, most=15, top=63, times=2.0, in_place=_spilled),
    ),
    "Q5_K": (
        _PART(_two_level, how=Affine(31, -0.5, 0.1, 15), most=63),
        _PART(_two_level_weighted, most=31, top=63, times=2.0, in_place=_clipped),
    ),
    "Q6_K": (_six_bits, _six_bits),
    "IQ4_NL": (_by_codebook, _by_codebook),
    "IQ4_XS": (_by_codebook, _by_codebook),
    "TQ1_0": (_PART(_by_magnitude, divisor=1, plus=1, most=2, wild=1), None),
    "TQ2_0": (_PART(_by_magnitude, divisor=1, plus=1, most=2, wild=1), None),
    "MXFP4": (_by_power, None),
    "NVFP4": (_by_float, None),
    "Q1_0": (_by_sign, None),
    "Q2_0": (_PART(_by_magnitude, divisor=1, plus=1, most=3, wild=0), None),
    **LATTICE_ENCODERS,
}
