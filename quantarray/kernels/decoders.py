"""What the loops that decode need to know of a scheme, in the types they compute with."""

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from quantarray import codec, packing, storage
from quantarray.formats import LARGEST, Codebook, Integer, NumberFormat
from quantarray.kernels.plans import BITS, SIGNED, TABLE, UNSIGNED, Numbers, packs, record
from quantarray.parameters import float_dtype
from quantarray.scheme import Packing, Scheme
from quantarray.task import arithmetic


class Decoder(NamedTuple):
    """A scheme for `decode.dequantize`, in fields like those of `Encoder`."""

    kind: int
    width: int
    high_first: bool
    flip: Any
    # The value of each code of each byte, or of each code.
    table: Numbers
    has_point: bool
    signed_point: bool
    has_offset: bool
    factor: Any
    # Whether values are codes times a scale.
    simple: bool
    # See `decoder._scaled`.
    tiny: Any
    safe: Any
    largest_offset: Any
    resolution: Any


@functools.lru_cache
def decoder(scheme: Scheme, original: str, dtype: str) -> tuple[Decoder, Numbers] | None:
    """Describe how codes are decoded, or give None if the loops do not cover it.

    Parameters
    ----------
    scheme : Scheme
        What the codes mean.
    original : str
        The dtype of the array that was quantized.
    dtype : str
        The dtype to decode to.

    Returns
    -------
    tuple of (Decoder, numpy.ndarray), or None
        The numbers, and their record.
    """
    element, math_ = scheme.element, arithmetic(scheme, original, np)
    working = math_.dtype
    if element.bits > 8 or dtype not in _NARROWER[working]:
        return None
    if scheme.zero_kind == "offset" and float_dtype(scheme, original) != working:
        return None
    real = np.dtype(working).type
    factor, plain = 1.0, element
    if isinstance(element, Integer) and scheme.rounding.quotient == "reciprocal":
        factor, plain = 1 / element.steps, replace(element, steps=1.0)
    simple = packs(scheme)
    width = element.bits if simple else 8
    limit = min(LARGEST[working], LARGEST[dtype])
    least, most, resolution = codec.limits_of(element)
    kind = _byte_kind(plain, width, excess=simple and scheme.packing.excess)
    plan = Decoder(
        kind=kind,
        width=width,
        high_first=scheme.packing.order == "msb",
        flip=np.uint8(128 if simple and scheme.packing.centred else 0),
        table=_values(scheme, plain, width, working),
        has_point=scheme.zero_kind == "point",
        signed_point=isinstance(element, Integer) and element.signed,
        has_offset=scheme.zero_kind == "offset",
        factor=real(factor),
        simple=kind in (SIGNED, UNSIGNED) and factor == 1 and scheme.zero_kind is None,
        tiny=real(math_.tiny),
        safe=real(limit / 8 / (most - min(least, 0.0))),
        largest_offset=real(limit / 2),
        resolution=real(resolution),
    )
    return plan, record(plan)


# The values of eight codes in each byte.
TABLE_SIZE = 2048
# What the loops can round numbers of each dtype to.
_NARROWER = {"float32": ("float32", "bfloat16", "float16"), "float64": ("float64",)}


def _byte_kind(element: NumberFormat, width: int, excess: bool) -> int:
    whole = width == 8 and not excess
    if whole and isinstance(element, Integer) and element.plain and element.bits == 8:
        return SIGNED if element.signed else UNSIGNED
    return TABLE if 8 % width == 0 else BITS


def _values(scheme: Scheme, element: NumberFormat, width: int, dtype: str) -> Numbers:
    """Give what the generic path decodes the codes of every byte, or every code, to."""
    how = scheme.packing
    data = np.arange(1 << (width if 8 % width else 8), dtype=np.uint8)
    if width < 8 and 8 % width == 0:
        row = (data ^ 128 if how.centred else data)[:, None]
        data = packing.unpack(row, width, Packing(order=how.order), 8 // width, np).reshape(-1)
    if packs(scheme):
        codes = storage.from_fields(data, element, how, np)
    else:
        codes = data.view(codec.code_dtype(element))
    if isinstance(element, Codebook):  # which may have fewer values than bytes
        codes = np.minimum(codes, len(element.table) - 1)
    table = np.zeros(TABLE_SIZE, dtype)
    table[: codes.size] = codec.to_values(codes, element, dtype, np)
    return table
