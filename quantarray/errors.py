"""The one exception type of quantarray, and the argument checks that raise it."""

import operator
import reprlib
from typing import Any


class QuantArrayError(ValueError):
    """A request that has no exact, documented result.

    The message names the operation, the argument, its value or shape, and what would be right.
    """


def short(value: Any) -> str:
    """Describe a value in a few words, whatever its size and depth: it may be hostile."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"<{type(value).__name__} of shape {tuple(value.shape)}, {value.dtype}>"
    try:
        text = reprlib.repr(value)
    except Exception:  # a __repr__ may raise anything, as that of an integer of 5000 digits does
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 120 else f"{text[:117]}..."


def choice(operation: str, argument: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuse a value that is not one of the choices, or only equal to one, as True is to 1."""
    if not any(type(value) is type(allowed) and value == allowed for allowed in choices):
        expected = ", ".join(map(repr, choices))
        raise QuantArrayError(f"{operation}: {argument}={short(value)}: expected one of {expected}")


def integer(operation: str, argument: str, value: Any, low: int, high: int) -> int:
    """Give an integer of any kind but bool as an int, refusing what is not in low..high."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        raise QuantArrayError(
            f"{operation}: {argument}={short(value)}: expected an integer, {low} to {high}"
        )
    return number
