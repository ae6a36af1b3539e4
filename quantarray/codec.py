"""Values to the codes of one number format, and back: rounding lives here."""

from typing import Any, Literal

from quantarray import _xp, counter
from quantarray._xp import Array, Namespace
from quantarray.blocks import whole
from quantarray.errors import QuantArrayError, choice, integer, short
from quantarray.formats import (
    DTYPES,
    LARGEST,
    SMALLEST_NORMAL,
    Integer,
    NumberFormat,
    number_format,
)

Mode = Literal["half_even", "half_away", "toward_zero", "stochastic"]
MODES: tuple[Mode, ...] = ("half_even", "half_away", "toward_zero", "stochastic")
# Beyond every integer code and zero point, where Inf may be clipped to.
BEYOND = float(1 << 20)
NONFINITE = ("raise", "propagate", "saturate")


def code_dtype(element: NumberFormat) -> str:
    """Name the dtype of unpacked codes: signed for signed integers, unsigned for the rest."""
    signed = isinstance(element, Integer) and element.signed
    return f"{'' if signed else 'u'}int{8 if element.bits <= 8 else 16}"


def arithmetic(dtype: str) -> str:
    """Name the dtype that arithmetic on values of `dtype` is done in."""
    return "float64" if dtype == "float64" else "float32"


def round_to_integer(x: Array, mode: Mode, noise: Array | None, xp: Namespace) -> Array:
    """Round to integers, kept as floats.

    Parameters
    ----------
    x : array of float32 or float64
        Quotients.
    mode : str
        One of `MODES`.
    noise : array or None
        Numbers in [0, 1) for "stochastic": `x` goes up where they lie below its fraction.
    xp : namespace
        The array's.

    Returns
    -------
    array of x's dtype
    """
    if mode == "half_even":
        return xp.round(x)
    if mode == "toward_zero":
        return xp.trunc(x)
    if mode == "half_away":
        floor = xp.floor(xp.abs(x))
        # Adding 0.5 first would round the number just below a half up.
        magnitude = _xp.where(xp.abs(x) - floor >= 0.5, floor + 1, floor, xp)
        return xp.copysign(magnitude, x)
    x = _xp.flush(x, SMALLEST_NORMAL[_xp.dtype_name(x.dtype)], xp)
    floor = xp.floor(x)
    return _xp.where(noise < x - floor, floor + 1, floor, xp)


def to_codes(x: Array, element: Integer, xp: Namespace) -> Array:
    """Saturate rounded values to the codes of an integer format; NaN must be gone."""
    return xp.astype(_xp.clip(x, element.min, element.max, xp), _xp.dtype(xp, code_dtype(element)))


def check_key(operation: str, mode: str, key: Any) -> int | None:
    """Refuse a key that stochastic rounding cannot use, or that nothing would use."""
    if mode == "stochastic":
        return integer(operation, "key", key, 0, 2**64 - 1)
    if key is not None:
        raise QuantArrayError(f"{operation}: key={short(key)}: rounding {mode!r} takes no key")
    return None


def encode(
    x: Array,
    format: str | NumberFormat,
    *,
    rounding: Mode = "half_even",
    nonfinite: str = "saturate",
    key: int | None = None,
) -> Array:
    """Cast values to the codes of a number format, without a scale.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64
        Values, any shape.
    format : str or NumberFormat
        The format, such as "int4".
    rounding : {"half_even", "half_away", "toward_zero", "stochastic"}
        How values between two codes are rounded.
    nonfinite : {"saturate", "raise"}
        "saturate": Inf takes the extreme code and NaN the code of 0. "raise": both are refused.
    key : int, optional
        0 to 2**64 - 1; "stochastic" needs it.

    Returns
    -------
    array of int8 or uint8 (16 bits for wider formats), shape of x
        Unpacked codes, in the namespace and on the device of `x`. Finite values saturate.

    Raises
    ------
    QuantArrayError
        If an argument is not of these.
    """
    x, xp = _xp.as_array("encode", x)
    element = _integer_format("encode", format)
    choice("encode", "rounding", rounding, MODES)
    choice("encode", "nonfinite", nonfinite, ("saturate", "raise"))
    key = check_key("encode", rounding, key)
    if nonfinite == "raise" and _xp.is_concrete(x, xp):
        check_finite("encode", x, xp)
    x = xp.astype(x, _xp.dtype(xp, arithmetic(_xp.dtype_name(x.dtype))), copy=False)
    x = _xp.clip(_xp.where(xp.isnan(x), 0.0, x, xp), -BEYOND, BEYOND, xp)
    noise = None if key is None else counter.uniform(key, x.shape, whole(x.shape), x, xp)
    return to_codes(round_to_integer(x, rounding, noise, xp), element, xp)


def decode(codes: Array, format: str | NumberFormat, dtype: Any = None) -> Array:
    """Give the values of the codes of a number format, without a scale.

    Parameters
    ----------
    codes : array of integers
        Unpacked codes, any shape.
    format : str or NumberFormat
        The format, such as "int4".
    dtype : dtype or str, optional
        A floating dtype of the namespace, float32 by default.

    Returns
    -------
    array of dtype, shape of codes

    Raises
    ------
    QuantArrayError
        If an argument is not of these, or a code is none of the format's.
    """
    element = _integer_format("decode", format)
    xp = check_codes("decode", codes, element)
    target = float_dtype("decode", dtype or "float32", xp)
    largest = LARGEST[_xp.dtype_name(target)]
    values = xp.astype(codes, _xp.dtype(xp, "float32"))  # exact: codes have 16 bits at most
    return xp.astype(_xp.clip(values, -largest, largest, xp), target)


def check_codes(operation: str, codes: Array, element: Integer) -> Namespace:
    """Refuse what is no array of codes of an integer format, and give the namespace of what is."""
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
        if low < element.min or high > element.max:
            raise QuantArrayError(
                f"{operation}: codes lie in {low}..{high}: expected {element.min}..{element.max}"
            )
    return xp


def float_dtype(operation: str, dtype: Any, xp: Namespace) -> Any:
    """Give a namespace's floating dtype, asked for by name or as any library's dtype."""
    name = dtype if isinstance(dtype, str) else _name_of(dtype)
    if name not in DTYPES:
        raise QuantArrayError(f"{operation}: dtype={short(dtype)}: expected {', '.join(DTYPES)}")
    return _xp.dtype(xp, name)


def _name_of(dtype: Any) -> str:
    # NumPy and JAX also take their scalar types (np.float32) for dtypes.
    return dtype.__name__ if isinstance(dtype, type) else _xp.dtype_name(dtype)


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


def _integer_format(operation: str, format_: str | NumberFormat) -> Integer:
    element = number_format(format_) if isinstance(format_, str) else format_
    if not isinstance(element, Integer):
        raise QuantArrayError(f"{operation}: format={short(format_)}: expected an integer format")
    return element
