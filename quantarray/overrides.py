"""Named schemes with some of their choices changed."""

import dataclasses
import difflib
from typing import Any

from quantarray.errors import QuantArrayError, choice, integer, short
from quantarray.presets import DECODABLE, E8M0, PRESETS, power_of_two
from quantarray.scheme import Block, Scale, Scheme


def schemes() -> tuple[str, ...]:
    """List the names of the presets.

    Returns
    -------
    tuple of str
        Every name that `quantize` takes. `scheme` takes those of ggml's types that need
        importances, too.
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
        which elements share a scale; ``scale_rule`` ("floor", "ceil", "even", "rceil") is how the
        microscaling presets make powers of two, and ("absmax", "absmean") what the scale of
        "ternary" and "binary" is; ``rounding`` is a mode's name or a `Rounding`; any
        other field of `Scheme` is replaced by the value given.

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
    block = make_block("scheme", block=overrides.pop("block", None), **sizes)
    if block is not None:
        overrides["block"] = block
    if "scale_rule" in overrides:
        overrides["scale"] = _scale_rule(base, overrides.pop("scale_rule"))
    if isinstance(overrides.get("rounding"), str):
        overrides["rounding"] = dataclasses.replace(base.rounding, mode=overrides["rounding"])
    unknown = [k for k in overrides if k not in {f.name for f in dataclasses.fields(Scheme)}]
    if unknown:
        raise QuantArrayError(
            f"scheme: {unknown[0]} is no choice of a scheme; see help(quantarray.scheme)"
        )
    return dataclasses.replace(base, **overrides)


def _scale_rule(base: Scheme, rule: Any) -> Scale:
    if base.scale.rule == "absmean":
        choice("scheme", "scale_rule", rule, ("absmax", "absmean"))
        return dataclasses.replace(base.scale, rule=rule)
    if base.scale.format != E8M0:
        raise QuantArrayError(f"scheme: scale_rule: {base.name} has no power-of-two scales")
    choice("scheme", "scale_rule", rule, ("floor", "ceil", "even", "rceil"))
    return power_of_two(base.element, rule, base.scale)


def _find(name_or_scheme: Any) -> Scheme:
    if isinstance(name_or_scheme, Scheme):
        return name_or_scheme
    known = {**PRESETS, **DECODABLE}
    if not isinstance(name_or_scheme, str) or name_or_scheme not in known:
        near = difflib.get_close_matches(str(name_or_scheme), known, n=5, cutoff=0.5)
        raise QuantArrayError(
            f"scheme: {short(name_or_scheme)} is not known: expected one of schemes()"
            + (f", such as {', '.join(near)}" if near else "")
        )
    return known[name_or_scheme]


def make_block(
    operation: str,
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
    operation : str
        Who asks, for the message.
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
            f"{operation}: {' and '.join(given)} exclude one another: give one of them"
        )
    if group_size is None and group_axis != -1:
        raise QuantArrayError(f"{operation}: group_axis={short(group_axis)} needs a group_size")
    if channel_axis is not None:
        return Block.channel(integer(operation, "channel_axis", channel_axis, -64, 63))
    if group_size is not None:
        size = integer(operation, "group_size", group_size, 1, 1 << 62)
        return Block.group(size, integer(operation, "group_axis", group_axis, -64, 63))
    if flat is not None:
        return Block(flat=integer(operation, "flat", flat, 1, 1 << 62))
    if isinstance(block, tuple | list):
        return Block.tile(
            tuple(integer(operation, "block", extent, -1, 1 << 62) for extent in block)
        )
    if isinstance(block, Block):
        return block
    raise QuantArrayError(
        f"{operation}: block={short(block)}: expected an extent for each axis, such as (1, 128)"
    )
