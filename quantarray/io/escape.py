"""Text that came from a file, made safe to show on a terminal or in an error message."""

from __future__ import annotations

LIMIT = 120
"""Longest name shown, in characters: a hostile file may hold a name of a hundred megabytes."""


def escape(text: str, limit: int | None = LIMIT) -> str:
    """Replace what a terminal could act on, and cut what is too long to read.

    Control characters (ESC, newlines), bidirectional marks, lone surrogates and all else that
    Python calls unprintable become backslash escapes.

    Parameters
    ----------
    text : str
        Any text.
    limit : int or None
        Longest result before it is cut and marked with an ellipsis; None for no limit.

    Returns
    -------
    str
        One line of printable characters.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
