"""Stored codes in the array library's own dtypes for their formats."""

from collections.abc import Callable

from quantarray import _xp
from quantarray._xp import Array
from quantarray.errors import QuantArrayError
from quantarray.formats import Integer, NumberFormat, format_name
from quantarray.scheme import Packing

# Formats that every library has a dtype for: that of the codes.
_CODES = ("int8", "uint8", "int16", "uint16")


def view(
    part: str,
    data: Array,
    element: NumberFormat,
    packing: Packing | None,
    row: int,
    codes: Callable[[], Array],
) -> Array:
    """View codes as the library's own dtype for their format.

    Parameters
    ----------
    part : str
        What they are, for the message.
    data : array
        As they are stored.
    element : NumberFormat
        Their format.
    packing : Packing or None
        How they are packed; None if they are not.
    row : int
        Codes in a row.
    codes : callable
        Gives them unpacked.

    Returns
    -------
    array
        In the shape of `codes`, but for padding that rows may end with.

    Raises
    ------
    QuantArrayError
        If the library has no such dtype, or none for codes that are packed in this way.
    """
    xp, name = _xp.namespace(data), _name_of(element)
    if name in _CODES:
        return codes()
    packed = data if packing == Packing() else None
    found = _xp.native_view(name, element.bits, packed, codes, row, xp)
    if found is None:
        library = _xp.backend(xp)
        release = f" {_xp.version(library)}" if library in _xp.BACKENDS else ""
        raise QuantArrayError(
            f"view_native: {part}: {library}{release} has no dtype for {name}"
            f"{f' (packed rows of {row})' if packing else ''}: "
            f"use .{'codes' if part == 'data' else 'scale'}"
        )
    return found


@_xp.constant
def _name_of(element: NumberFormat) -> str:
    if isinstance(element, Integer) and element.plain:  # a narrow one has the dtype of all codes
        return f"{'' if element.signed else 'u'}int{element.bits}"
    return format_name(element)
