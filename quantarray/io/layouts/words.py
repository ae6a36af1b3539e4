"""What GPTQ and AWQ share: weights (out, in), packed in words of 32 bits, stored as (in, out)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from quantarray import _xp, overrides
from quantarray.array import QuantizedArray
from quantarray.errors import QuantArrayError
from quantarray.formats import DTYPES, Float, Integer
from quantarray.io.layouts import common
from quantarray.io.layouts.common import SCALES, Host
from quantarray.scheme import Scale, Scheme
from quantarray.zero_points import pack_zero_points, unpack_zero_points


def scheme(name: str, format_: Float, symmetric: bool = True) -> Scheme:
    """Give a preset with scales in a format, and zero points that are in the middle, or anywhere.

    Those anywhere are the zero of a range from the smallest to the largest element.
    """
    found = overrides.scheme(name)
    scale = replace(found.scale, format=format_)
    if found.zero == "midpoint" and not symmetric:
        top = float(found.element.max)
        return replace(found, scale=Scale("minmax", top, format_, zero_block=1 / top), zero="point")
    return replace(found, scale=scale)


def check_groups(q: QuantizedArray, bits: int, *, ragged: bool) -> None:
    """Refuse blocks that are no groups along rows, and sizes that are no whole words."""
    (out, row), (high, wide) = q.shape, common.extents_of(q)
    if high != 1 or (row % wide and not ragged):
        raise QuantArrayError(
            f"{q.scheme} for the shape {q.shape}: expected groups along rows"
            + ("" if ragged else ", which they fill")
        )
    if out * bits % 32 or row * bits % 32:
        raise QuantArrayError(
            f"shape {q.shape}: expected sizes of whole words of 32 bits, with {bits} in a code"
        )


def check_integers(q: QuantizedArray, widths: Sequence[int], schemes: Mapping[str, Scheme]) -> int:
    """Give the bits of a code, refusing those of other widths."""
    common.check_matrix(q)
    element = q.scheme.element
    if not isinstance(element, Integer) or element.bits not in widths:
        raise QuantArrayError(
            f"{q.scheme.name}: expected integers of {', '.join(map(str, widths))} bits"
            f"{common.instead(schemes)}"
        )
    return element.bits


def stored(p: QuantizedArray, zeros: str) -> dict[str, Host]:
    """Give the parts that both have, of an array of `scheme`."""
    return {
        "qweight": common.host(p.data),
        "qzeros": common.host(pack_zero_points(p, zeros)),
        "scales": common.host(_xp.to_numpy(p.scale_data).T),
    }


def restored(
    parts: Mapping[str, Host], name: str, zeros: str, shape: tuple[int, int], size: int, dtype: str
) -> QuantizedArray:
    """Undo `stored`, of parts whose shapes and dtypes are checked.

    Parameters
    ----------
    parts : mapping of str to numpy.ndarray
        "qweight", "qzeros" and "scales".
    name : str
        The preset.
    zeros : str
        How zero points are packed.
    shape : tuple of int
        Of the weight.
    size : int
        Of groups.
    dtype : str
        Of the result.

    Returns
    -------
    QuantizedArray
    """
    scales = parts["scales"]
    format_ = DTYPES[_xp.dtype_name(scales.dtype)]
    zero = unpack_zero_points(parts["qzeros"], zeros, name, shape[0])
    preset = overrides.scheme(name)
    middle = 1 << (preset.element.bits - 1)
    found = scheme(name, format_, symmetric=bool((zero == middle).all()))
    found = replace(found, block=common.group_block(size, shape[1]))
    result = {"data": parts["qweight"], "scale": common.host(scales.T), "zero_point": zero}
    return QuantizedArray.from_parts(result, found, shape, dtype)


SCALE_DTYPES = SCALES[:2]
