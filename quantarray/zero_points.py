"""Zero points as the files of GPTQ, AWQ and compressed-tensors hold them: packed in words.

Weights are (out, in) with groups along `in` here, so that zero points are (out, groups). In files
they are packed along `out`, which is the last axis of the words, or the first. Those with the words
of `out` last have scales as (groups, out) too.
"""

from dataclasses import dataclass

from quantarray import _xp, packing, storage
from quantarray._xp import Array
from quantarray.array import QuantizedArray
from quantarray.errors import QuantArrayError, choice, integer
from quantarray.formats import Integer
from quantarray.overrides import scheme as find_scheme
from quantarray.scheme import Packing, Scheme


@dataclass(frozen=True)
class Layout:
    """How files hold zero points of shape (..., out, groups)."""

    # Of the rows of the array with its last two axes exchanged.
    packing: Packing
    # What is stored is less by this, modulo 2**bits.
    less: int = 0


_AWQ = find_scheme("awq:int4").packing
LAYOUTS = {
    # `qzeros`, (groups, out * bits / 32). Readers of the first version add the 1 again.
    "gptq_v1": Layout(Packing(word=32), less=1),
    "gptq_v2": Layout(Packing(word=32)),
    "awq": Layout(Packing(word=32, interleave=_AWQ.interleave)),
    # `weight_zero_point`, (out * bits / 32, groups).
    "ct": Layout(Packing(word=32, excess=True, transpose="words")),
    # Its releases before June 2026, where codes of 3, 5, 6 and 7 bits do not straddle words.
    "ct_sparse": Layout(Packing(word=32, dense=False, excess=True, transpose="words")),
}


def pack_zero_points(q: QuantizedArray, layout: str) -> Array:
    """Give the zero points of an array as files hold them.

    Parameters
    ----------
    q : QuantizedArray
        With zero points, of 2 axes or more, groups along the last.
    layout : str
        A key of `LAYOUTS`.

    Returns
    -------
    array of int32, shape (..., groups, words) or (..., words, groups)
        The words of the axis before the groups.

    Raises
    ------
    QuantArrayError
        If `q` has no zero points or too few axes, or codes of another width than the layout.
    """
    how, element = _check("pack_zero_points", q.scheme, layout)
    if q.zero_point is None or q.zero_point.ndim < 2:
        raise QuantArrayError(
            f"pack_zero_points: q is {q!r}: expected zero points, and 2 axes or more"
        )
    xp = _xp.namespace(q.zero_point)
    zero = xp.astype(q.zero_point, xp.int16) - how.less
    fields = storage.to_fields(xp.matrix_transpose(zero), element.bits, how.packing, xp)
    return packing.pack(fields, element.bits, how.packing, xp)


def unpack_zero_points(data: Array, layout: str, scheme: str | Scheme, count: int) -> Array:
    """Undo `pack_zero_points`.

    Parameters
    ----------
    data : array of int32
        The words.
    layout : str
        A key of `LAYOUTS`.
    scheme : str or Scheme
        Whose zero points they are.
    count : int
        The size of the axis before the groups.

    Returns
    -------
    array of the code dtype, shape (..., count, groups)
        `QuantizedArray.from_parts` takes them as the part "zero_point".

    Raises
    ------
    QuantArrayError
        If `data` is not of int32, or has too few words or axes.
    """
    how, element = _check("unpack_zero_points", find_scheme(scheme), layout)
    count = integer("unpack_zero_points", "count", count, 0, 1 << 62)
    xp, shape = _xp.namespace(data), tuple(data.shape)
    expected = packing.words(count, element.bits, how.packing)
    axis = -1 if how.packing.transpose == "no" else -2
    if len(shape) < 2 or shape[axis] != expected or _xp.dtype_name(data.dtype) != "int32":
        raise QuantArrayError(
            f"unpack_zero_points: data has shape {shape}, {_xp.dtype_name(data.dtype)}: "
            f"expected 2 axes or more, {expected} words of int32 along axis {axis}"
        )
    fields = packing.unpack(data, element.bits, how.packing, count, xp)
    if how.less:
        more = xp.astype(fields, xp.int16) + how.less
        fields = storage.to_fields(more, element.bits, Packing(), xp)
    return xp.matrix_transpose(storage.from_fields(fields, element, how.packing, xp))


def _check(operation: str, scheme: Scheme, layout: str) -> tuple[Layout, Integer]:
    choice(operation, "layout", layout, tuple(LAYOUTS))
    element = scheme.element
    if not isinstance(element, Integer) or scheme.zero_kind != "point" or element.bits > 8:
        raise QuantArrayError(
            f"{operation}: scheme {scheme.name}: expected one with zero points of 8 bits or less"
        )
    return LAYOUTS[layout], element
