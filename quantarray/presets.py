"""The table of named schemes. A new format is a new row."""

import dataclasses
from typing import Any

from quantarray.errors import QuantArrayError, integer, short
from quantarray.formats import Integer
from quantarray.scheme import Block, Scale, Scheme


def _symmetric(bits: int) -> Scheme:
    element = Integer(bits, narrow=True)
    return Scheme(f"int{bits}", element, scale=Scale("absmax", divisor=float(element.max)))


def _asymmetric(bits: int) -> Scheme:
    element = Integer(bits, signed=False)
    scale = Scale("minmax", divisor=float(element.max))
    return Scheme(f"uint{bits}", element, scale=scale, zero="point")


PRESETS: dict[str, Scheme] = {
    preset.name: preset
    for preset in (
        *(_symmetric(bits) for bits in range(2, 9)),
        *(_asymmetric(bits) for bits in range(2, 9)),
    )
}


def schemes() -> tuple[str, ...]:
    """List the names of the presets.

    Returns
    -------
    tuple of str
        Every name that `scheme` and `quantize` take.
    """
    return tuple(PRESETS)


def scheme(name_or_scheme: str | Scheme, **overrides: Any) -> Scheme:
    """Look a scheme up and change some of its choices.

    Parameters
    ----------
    name_or_scheme : str or Scheme
        A name that `schemes()` lists, or a scheme.
    **overrides
        ``channel_axis``, ``group_size`` (with ``group_axis``), ``block`` (a tuple with an extent
        for each of the last axes, or a `Block`) or ``flat`` (elements of the raveled array) say
        which elements share a scale; ``rounding`` is a mode's name or a `Rounding`; any other field
        of `Scheme` is replaced by the value given.

    Returns
    -------
    Scheme
        The scheme.

    Raises
    ------
    QuantArrayError
        If the name or an override is unknown, or its value makes no scheme.
    """
    base = _find(name_or_scheme)
    if not overrides:
        return base
    sizes = {
        k: overrides.pop(k)
        for k in ("channel_axis", "group_size", "group_axis", "flat")
        if k in overrides
    }
    block = make_block(block=overrides.pop("block", None), **sizes)
    if block is not None:
        overrides["block"] = block
    if isinstance(overrides.get("rounding"), str):
        overrides["rounding"] = dataclasses.replace(base.rounding, mode=overrides["rounding"])
    unknown = [k for k in overrides if k not in {f.name for f in dataclasses.fields(Scheme)}]
    if unknown:
        raise QuantArrayError(
            f"scheme: {unknown[0]} is no choice of a scheme; see help(quantarray.scheme)"
        )
    return dataclasses.replace(base, **overrides)


def _find(name_or_scheme: Any) -> Scheme:
    if isinstance(name_or_scheme, Scheme):
        return name_or_scheme
    if not isinstance(name_or_scheme, str) or name_or_scheme not in PRESETS:
        raise QuantArrayError(
            f"scheme: {short(name_or_scheme)} is not known; known: {', '.join(PRESETS)}"
        )
    return PRESETS[name_or_scheme]


def make_block(
    *,
    channel_axis: int | None = None,
    group_size: int | None = None,
    group_axis: int = -1,
    block: tuple[int, ...] | Block | None = None,
    flat: int | None = None,
) -> Block | None:
    """Build the block that the keyword arguments of `quantize` and `scheme` describe.

    Parameters
    ----------
    channel_axis, group_size, block, flat
        At most one of them; see `scheme`.
    group_axis : int
        The axis that `group_size` counts along.

    Returns
    -------
    Block or None
        None if no argument was given.

    Raises
    ------
    QuantArrayError
        If more than one is given, or a value is not a positive integer (or -1 in `block`).
    """
    choices = {"channel_axis": channel_axis, "group_size": group_size, "block": block, "flat": flat}
    given = [name for name, value in choices.items() if value is not None]
    if not given and group_axis == -1:
        return None
    if len(given) > 1:
        raise QuantArrayError(
            f"scheme: {' and '.join(given)} exclude one another: give one of them"
        )
    if group_size is None and group_axis != -1:
        raise QuantArrayError(f"scheme: group_axis={short(group_axis)} needs a group_size")
    if channel_axis is not None:
        return Block.channel(integer("scheme", "channel_axis", channel_axis, -64, 63))
    if group_size is not None:
        size = integer("scheme", "group_size", group_size, 1, 1 << 62)
        return Block.group(size, integer("scheme", "group_axis", group_axis, -64, 63))
    if flat is not None:
        return Block(flat=integer("scheme", "flat", flat, 1, 1 << 62))
    if isinstance(block, tuple | list):
        return Block.tile(
            tuple(integer("scheme", "block", extent, -1, 1 << 62) for extent in block)
        )
    if isinstance(block, Block):
        return block
    raise QuantArrayError(
        f"scheme: block={short(block)}: expected an extent for each axis, such as (1, 128)"
    )
