"""Scales and zeros of one scheme as another stores them, exactly or not at all."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from quantarray import _xp, codec, scales
from quantarray._xp import Array
from quantarray.errors import QuantArrayError
from quantarray.formats import DTYPES, Codebook, Float, Integer, NumberFormat, format_name
from quantarray.parameters import Outer, float_dtype, nan_of, stored_dtype
from quantarray.scheme import Scheme
from quantarray.task import Result, Task

Host = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Move:
    """From the scheme of a task to another."""

    task: Task
    target: Scheme

    @property
    def source(self) -> Scheme:
        """The scheme of what is stored."""
        return self.task.scheme

    def refusal(self, reason: str) -> QuantArrayError:
        """Give the error that says why there is no exact result."""
        return QuantArrayError(f"repack: {self.source.name} to {self.target.name}: {reason}")

    def know(self, what: str, *arrays: Array) -> None:
        """Refuse if it depends on values that are not there whether a conversion is exact."""
        if not all(_xp.is_concrete(array, self.task.xp) for array in arrays):
            raise self.refusal(
                f"whether it is exact depends on the {what}, "
                "which traced and lazy arrays do not show"
            )

    def look(self, what: str, *arrays: Array) -> tuple[Host, ...]:
        """Give values on which it depends whether a conversion is exact."""
        self.know(what, *arrays)
        return tuple(_xp.to_numpy(array) for array in arrays)

    def refuse(self, bad: Host, reason: str) -> None:
        """Refuse what is bad anywhere; the reason begins after how many are."""
        if bad.any():
            raise self.refusal(f"{np.count_nonzero(bad)} of {bad.size} {reason}")

    def moved(self, host: Host, beside: Array) -> Array:
        """Copy an array to where another is."""
        array, device = _xp.from_numpy(host, self.task.xp), _xp.beside(beside)
        return array if device is None else _xp.to_device(array, device)


def same_values(a: NumberFormat, b: NumberFormat) -> bool:
    """Tell whether codes mean the same; how those of a codebook are found does not matter."""
    if isinstance(a, Codebook) and isinstance(b, Codebook):
        return a.table == b.table
    return a == b


def zeros(
    stored: Result, values: Array, flip: Array | None, shift: int, move: Move
) -> tuple[Array | None, Array | None]:
    """Give the target's zero points, or its offsets.

    Parameters
    ----------
    stored : Result
        The source's.
    values : array
        The scales, none of them negative but where the target may have such.
    flip : array of bool, or None
        Whose codes are counted from the other end, where any are.
    shift : int
        What is added to zero points.
    move : Move
        Whose.

    Returns
    -------
    tuple of (array or None, array or None)
        Zero points and offsets.
    """
    xp, kind = move.task.xp, move.target.zero_kind
    zero: Array | int = shift
    if stored.offset is not None and kind == "offset":
        return None, _offset(stored.offset, shift, move)
    if stored.offset is not None:
        zero = _whole(stored.offset, values, flip, move) + shift
    elif stored.zero_point is not None:
        zero = xp.astype(stored.zero_point, xp.int32) + shift
    if kind == "offset":
        return None, _offset_of(zero, values, move)
    if kind == "point":
        return _point(zero, values, move), None
    if isinstance(zero, int) and zero:
        raise move.refusal(f"it has no zero points, and its codes would need {zero}")
    if not isinstance(zero, int):
        host, scale = move.look("zeros", zero, values)
        bad = (host != 0) & ~np.isnan(scale)
        move.refuse(bad, f"blocks have another zero than {-shift}, and it has no zero points")
    return None, None


def _point(zero: Array | int, values: Array, move: Move) -> Array:
    """Give zero points as codes."""
    xp, element = move.task.xp, move.target.element
    assert isinstance(element, Integer)
    least, most = element.codes
    dtype = _xp.dtype(xp, codec.code_dtype(element))
    reason = f"zero points are beyond {least}..{most}"
    if isinstance(zero, int):
        move.refuse(np.asarray(not least <= zero <= most), reason)
        return xp.full(values.shape, zero, dtype=dtype, device=_xp.beside(values))
    if move.source.zero_kind == "offset" or element.narrow or _xp.is_concrete(zero, xp):
        (host,) = move.look("zeros", zero)
        move.refuse((host < least) | (host > most), reason)
    return xp.astype(zero, dtype)


def _whole(offset: Array, values: Array, flip: Array | None, move: Move) -> Array:
    """Give the zero points that offsets are."""
    scale, shift = (host.astype(np.float64) for host in move.look("offsets", values, offset))
    known = np.isfinite(scale) & (scale != 0)
    with np.errstate(all="ignore"):
        steps = np.round(shift / np.where(known, scale, 1.0))
    steps = np.where(known & (np.abs(steps) < codec.BEYOND), steps, 0.0)
    move.refuse(~_is_product(shift, scale, steps), "offsets are no whole number of scales")
    zero = -steps
    if flip is not None:
        assert isinstance(move.source.element, Integer)
        zero = zero + np.where(_xp.to_numpy(flip), sum(move.source.element.codes), 0)
    return move.moved(zero.astype(np.int32), values)


def _offset_of(zero: Array | int, values: Array, move: Move) -> Array:
    """Give the offsets that zero points are."""
    xp, name = move.task.xp, float_dtype(move.target, move.task.dtype)
    if isinstance(zero, int) and zero == 0:
        return xp.zeros(values.shape, dtype=_xp.dtype(xp, name), device=_xp.beside(values))
    (scale,) = move.look("scales", values)
    point = np.asarray(zero) if isinstance(zero, int) else move.look("zeros", zero)[0]
    scale, point = np.broadcast_arrays(scale.astype(np.float64), point.astype(np.float64))
    with np.errstate(all="ignore"):
        product = np.where(np.isnan(scale) | (point == 0), 0.0, -scale * point)
        offset = product.astype(_xp.dtype(np, name))
    bad = ~_is_product(offset.astype(np.float64), scale, -point)
    move.refuse(bad, f"offsets are not exact in {name}")
    return move.moved(offset, values)


def _is_product(product: Host, a: Host, b: Host) -> Host:
    """Tell where a float64 is exactly that times a whole number of at most 20 bits.

    Where `a` is NaN, only zero is.
    """
    fraction, exponent = np.frexp(a)
    high = np.round(np.ldexp(fraction, 26)) * 2.0**-26
    with np.errstate(all="ignore"):
        # Where the product is exact, so is each step.
        rest = np.ldexp(product, -exponent) - high * b
        same = (rest == (fraction - high) * b) & ((product == 0) == ((a == 0) | (b == 0)))
    exact: Host = np.where(np.isnan(a), product == 0, same)
    return exact


def _offset(offset: Array, shift: int, move: Move) -> Array:
    """Give offsets in the dtype of the target's."""
    if shift:
        raise move.refusal(f"its codes would change all offsets, by {shift} scales")
    xp, name = move.task.xp, float_dtype(move.target, move.task.dtype)
    held = DTYPES[name]
    if not _includes(held, DTYPES[_xp.dtype_name(offset.dtype)]):
        (host,) = move.look("offsets", offset)
        narrow = np.clip(host, -held.max, held.max).astype(_xp.dtype(np, name))
        move.refuse(~_equal(host, narrow.astype(host.dtype)), f"offsets are none of {name}")
    return xp.astype(offset, _xp.dtype(xp, name), copy=False)


def _equal(a: Host, b: Host) -> Host:
    equal: Host = (a == b) | (np.isnan(a) & np.isnan(b))
    return equal


def _includes(wide: Float, narrow: Float) -> bool:
    """Tell whether a format holds every value of another."""
    least = narrow.magnitude(0) or narrow.magnitude(1)
    return wide == narrow or (
        wide.mantissa >= narrow.mantissa
        and wide.magnitude(1) <= least
        and wide.max >= narrow.max
        and wide.signed >= narrow.signed
    )


def scale(stored: Result, values: Array, move: Move) -> tuple[Array, Outer | None]:
    """Give the target's scales, and the scales of those.

    Parameters
    ----------
    stored : Result
        The source's.
    values : array
        The values of its scales.
    move : Move
        Whose.

    Returns
    -------
    tuple of (array, Outer or None)
        As the target stores them.
    """
    xp, task, a, b = move.task.xp, move.task, move.source.scale, move.target.scale
    if b.outer is not None:
        return _two_levels(stored, values, move)
    _check_limits(values, move)
    name = stored_dtype(move.target, task.dtype)
    held = b.coded or DTYPES[name]
    of: NumberFormat = DTYPES[_xp.dtype_name(values.dtype)]
    if a.outer is None:
        of = a.coded or DTYPES[_xp.dtype_name(stored.scale.dtype)]
        if held == of:
            return stored.scale, None
    assert isinstance(held, Float)
    assert isinstance(of, Float)
    converted = scales.as_stored(
        _xp.clip(values, -held.max, held.max, xp), move.target, task.dtype, xp
    )
    if b.coded is not None:
        nan = xp.full_like(converted, nan_of(move.target))
        converted = _xp.where(xp.isnan(values), nan, converted, xp)
    if not _includes(held, of):
        again = scales.as_values(converted, move.target, task.arithmetic.dtype, xp)
        bad = ~_equal(*move.look("scales", values, again))
        move.refuse(bad, f"scales are none of {format_name(held)}")
    return converted, None


def _check_limits(values: Array, move: Move) -> None:
    """Refuse scales that a scheme has none of, though their dtype holds them."""
    a, b = move.source.scale, move.target.scale
    if b.rule == "one" and a.rule != "one":
        (host,) = move.look("scales", values)
        move.refuse(host != 1, "scales are not 1")
    if b.least is None and (a.least is not None or a.coded is not None):
        (host,) = move.look("scales", values)
        tiny = move.task.arithmetic.tiny
        move.refuse((np.abs(host) < tiny) & (host != 0), f"scales are less than {tiny:g}")


def _two_levels(stored: Result, values: Array, move: Move) -> tuple[Array, Outer | None]:
    """Give scales that are quantized themselves."""
    a, b, task, outer = move.source.scale.outer, move.target.scale.outer, move.task, stored.outer
    assert b is not None
    if a is None or outer is None:
        raise move.refusal("it has two levels of scales: expected an array with two")
    if not same_values(a.element, b.element) or (a.zero, a.block) != (b.zero, b.block):
        raise move.refusal("its scales are quantized in another way")
    if a.scale.stored == b.scale.stored:
        return stored.scale, outer
    before, old = move.look("scales", values, outer.scale)
    divide, times = (old.dtype.type(level.scale.divisor) for level in (a, b))
    with np.errstate(all="ignore"):
        plain = {"scale": old, "reciprocal": 1 / old, "absmax": old / divide}
        g = plain[a.scale.stored]
        forms = {"scale": g, "reciprocal": 1 / g, "absmax": g * times}
    new = forms[b.scale.stored]
    new = np.where((new != 0) & (np.abs(new) < np.inf), new, np.nan)
    outer = Outer(move.moved(new, outer.scale), outer.offset)
    after = scales.as_values(stored.scale, move.target, task.arithmetic.dtype, task.xp, outer)
    bad = ~_equal(before, _xp.to_numpy(after))
    move.refuse(bad, "scales would change, as the other form of the global scale is rounded")
    return stored.scale, outer
