"""Frozen dataclasses as JSON-ready data and back, refusing whatever does not fit their fields."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from quantarray.errors import QuantArrayError, short

Kinds = Mapping[str, type]


def dump(value: Any, kinds: Kinds) -> Any:
    """Give a dataclass as JSON-ready data.

    Parameters
    ----------
    value : dataclass, tuple, or what JSON has
        What to describe.
    kinds : mapping of str to type
        The classes that a union can hold, by the name that marks them.

    Returns
    -------
    dict, list, str, int, float, bool or None
    """
    if isinstance(value, tuple):
        return [dump(item, kinds) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    kind = next((name for name, cls in kinds.items() if type(value) is cls), None)
    fields = {f.name: dump(getattr(value, f.name), kinds) for f in dataclasses.fields(value)}
    return fields if kind is None else {"kind": kind} | fields


def parse(expected: Any, value: Any, where: str, kinds: Kinds) -> Any:
    """Read JSON data as the annotated type, refusing whatever is not of it.

    Parameters
    ----------
    expected : type or annotation
        A dataclass, a union, a Literal, a tuple, or a scalar type.
    value : object
        What JSON gave.
    where : str
        What the message calls it.
    kinds : mapping of str to type
        As for `dump`.

    Returns
    -------
    object
        Of the expected type.

    Raises
    ------
    QuantArrayError
        If a field is unknown, missing, or not of its type; the message names it.
    """
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        if not any(type(value) is type(a) and value == a for a in args):
            raise QuantArrayError(
                f"{where}: {short(value)}: expected one of {', '.join(map(repr, args))}"
            )
        return value
    if origin in (types.UnionType, typing.Union):
        return _parse_union(args, value, where, kinds)
    if origin is tuple:
        if not isinstance(value, list | tuple) or (args[-1] is not ... and len(value) != len(args)):
            raise QuantArrayError(f"{where}: {short(value)}: expected a list of {type_names(args)}")
        types_ = args[:1] * len(value) if args[-1] is ... else args
        return tuple(
            parse(t, v, f"{where}[{i}]", kinds)
            for i, (t, v) in enumerate(zip(types_, value, strict=True))
        )
    if dataclasses.is_dataclass(expected):
        return _parse_dataclass(typing.cast(type, expected), value, where, kinds)
    if expected is float and type(value) is int and abs(value) < 1 << 53:
        value = float(value)
    if type(value) is not expected:
        raise QuantArrayError(f"{where}: {short(value)}: expected {expected.__name__}")
    return value


def type_names(types_: Any) -> str:
    """Name types for a message."""
    members = types_ if isinstance(types_, tuple) else (types_,)
    return ", ".join(getattr(member, "__name__", str(member)) for member in members)


def _parse_union(members: tuple[Any, ...], value: Any, where: str, kinds: Kinds) -> Any:
    if value is None and type(None) in members:
        return None
    if isinstance(value, Mapping):
        kind = value.get("kind")
        if not isinstance(kind, str) or kinds.get(kind) not in members:
            raise QuantArrayError(
                f"{where}.kind: {short(kind)}: expected one of {', '.join(kinds)}"
            )
        fields = {k: v for k, v in value.items() if k != "kind"}
        return parse(kinds[kind], fields, where, kinds)
    made = {list: tuple, int: float}  # what JSON makes of them
    for member in members:
        origin = typing.get_origin(member) or member
        if origin is Literal and isinstance(value, str):
            return parse(member, value, where, kinds)
        if origin in (type(value), made.get(type(value))):
            return parse(member, value, where, kinds)
    raise QuantArrayError(f"{where}: {short(value)}: expected one of {type_names(members)}")


def _parse_dataclass(cls: type, value: Any, where: str, kinds: Kinds) -> Any:
    if not isinstance(value, Mapping):
        raise QuantArrayError(f"{where}: {short(value)}: expected an object with fields")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    wrong = [short(n) for n in value if n not in names] or [n for n in names if n not in value]
    if wrong:
        raise QuantArrayError(
            f"{where}: field {wrong[0]}: expected exactly the fields {', '.join(names)}"
        )
    return cls(
        **{name: parse(hints[name], value[name], f"{where}.{name}", kinds) for name in names}
    )
