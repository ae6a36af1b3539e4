"""Checks of the arguments that several public functions share; each refuses with a message."""

from typing import Any

from quantarray import _xp
from quantarray._xp import Array, Namespace
from quantarray.errors import QuantArrayError, integer, short
from quantarray.formats import DTYPES, Codebook, Float, Integer, NumberFormat, number_format

NONFINITE = ("raise", "propagate", "saturate")


def check_key(operation: str, mode: str, key: Any) -> int | None:
    """Refuse a key that stochastic rounding cannot use, or that nothing would use."""
    if mode == "stochastic":
        return integer(operation, "key", key, 0, 2**64 - 1)
    if key is not None:
        raise QuantArrayError(f"{operation}: key={short(key)}: rounding {mode!r} takes no key")
    return None


def check_codes(operation: str, codes: Array, element: NumberFormat) -> Namespace:
    """Refuse what is no array of codes of a format, and give the namespace of what is."""
    try:
        xp = _xp.namespace(codes)
        name = _xp.dtype_name(codes.dtype)
    except (TypeError, AttributeError):
        raise QuantArrayError(
            f"{operation}: codes is a {type(codes).__name__}: expected an array"
        ) from None
    if not name.startswith(("int", "uint")):
        raise QuantArrayError(f"{operation}: codes has dtype {name}: expected integers")
    if _xp.is_concrete(codes, xp) and 0 not in codes.shape:
        wide = xp.astype(codes, xp.int32) if name == "uint16" else codes  # torch reduces none
        low, high = int(xp.min(wide)), int(xp.max(wide))
        least, most = (
            0,
            (len(element.table) if isinstance(element, Codebook) else 1 << element.bits) - 1,
        )
        if isinstance(element, Integer):
            least, most = element.codes
        if low < least or high > most:
            raise QuantArrayError(
                f"{operation}: codes lie in {low}..{high}: expected {least}..{most}"
            )
    return xp


def shape(operation: str, sizes: Any) -> tuple[int, ...]:
    """Give a shape as a tuple; a single size is that of one axis."""
    several = sizes if isinstance(sizes, tuple | list) else (sizes,)
    return tuple(integer(operation, "shape", size, 0, 1 << 62) for size in several)


def float_dtype(operation: str, dtype: Any, xp: Namespace) -> Any:
    """Give a namespace's floating dtype, asked for by name or as any library's dtype."""
    name = dtype if isinstance(dtype, str) else _name_of(dtype)
    if name not in DTYPES:
        raise QuantArrayError(f"{operation}: dtype={short(dtype)}: expected {', '.join(DTYPES)}")
    return _xp.dtype(xp, name)


def _name_of(dtype: Any) -> str:
    # NumPy and JAX also take their scalar types (np.float32) for dtypes.
    return dtype.__name__ if isinstance(dtype, type) else _xp.dtype_name(dtype)


def check_out(operation: str, out: Any, shape: tuple[int, ...], xp: Namespace) -> None:
    """Refuse what floating values of a shape cannot be written to."""
    try:
        same = _xp.namespace(out) is xp
    except TypeError:
        same = False
    if not same:
        raise QuantArrayError(
            f"{operation}: out is a {type(out).__name__}: expected an array of {_xp.backend(xp)}"
        )
    if not _xp.is_writable(out, xp):
        raise QuantArrayError(
            f"{operation}: out: this array of {_xp.backend(xp)} cannot be written to: expected None"
        )
    name = _xp.dtype_name(out.dtype)
    if tuple(out.shape) != shape or name not in DTYPES:
        raise QuantArrayError(
            f"{operation}: out has shape {tuple(out.shape)} and dtype {name}: "
            f"expected shape {shape} and a floating dtype"
        )


def check_finite(operation: str, x: Array, xp: Namespace) -> None:
    """Refuse an array that holds NaN or Inf, naming how many and the first."""
    bad = _xp.to_numpy(~xp.isfinite(x))
    if bad.any():
        first = tuple(map(int, next(zip(*bad.nonzero(), strict=True)))) if bad.ndim else ()
        raise QuantArrayError(
            f"{operation}: x has {int(bad.sum())} NaN or Inf of {bad.size} elements, "
            f"the first at {first}: "
            "expected finite values, or nonfinite='propagate' or 'saturate'"
        )


def find_format(operation: str, format_: Any) -> NumberFormat:
    """Give a number format, asked for by name or as itself."""
    element = number_format(format_) if isinstance(format_, str) else format_
    if not isinstance(element, Integer | Float | Codebook) or element.bits > 16:
        raise QuantArrayError(
            f"{operation}: format={short(format_)}: "
            "expected a name or a number format of 16 bits or less"
        )
    return element
