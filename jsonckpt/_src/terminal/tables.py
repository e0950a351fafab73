"""Columns that fit a terminal. A file gets them whole."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from .console import can_show, columns, say

_GAP = "  "
#: A column is not cut further.
_NARROWEST = 16


def width_of(text: str) -> int:
    """The columns that text takes: those of East Asian scripts are wide.

    >>> width_of("abc"), width_of("日本")
    (3, 4)
    """
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def cut_middle(text: str, width: int, mark: str = "…") -> str:
    """Text of at most ``width`` columns: the middle is left out, since names differ at their ends.

    >>> cut_middle("/model/layers.11.weight", 13)
    '/model…weight'
    """
    if width_of(text) <= width:
        return text
    left = (width - len(mark)) // 2
    right = width - len(mark) - left
    return f"{_within(text, left)}{mark}{_within(text[::-1], right)[::-1]}"


def _within(text: str, width: int) -> str:
    """The beginning that takes at most ``width`` columns."""
    taken = 0
    for position, character in enumerate(text):
        taken += width_of(character)
        if taken > width:
            return text[:position]
    return text


def pad(text: str, width: int, align: str = "<") -> str:
    """Text with spaces up to ``width`` columns; ``align`` is ``"<"`` or ``">"``."""
    spaces = " " * (width - width_of(text))
    return text + spaces if align == "<" else spaces + text


def fit(text: str) -> str:
    """A line that fits the terminal, if standard output is one; its end is cut."""
    width = columns()
    if width is None or width_of(text) <= width:
        return text
    return _within(text, width - 1) + ("…" if can_show("…") else ">")


def table(rows: Sequence[Sequence[str]], align: str, *, header: bool = True, cut: int = 0) -> None:
    """Print rows of printable text in columns. One column is cut where the others need room.

    Args:
        rows: all of one length; the first is a header unless ``header`` is false.
        align: ``"<"`` or ``">"`` for each column.
        cut: the column that is cut.
    """
    for number, line in enumerate(lines(rows, align, columns(), cut)):
        say(line, style="bold" if header and not number else "")


def lines(
    rows: Sequence[Sequence[str]], align: str, width: int | None, cut: int = 0
) -> Iterator[str]:
    """The lines of a table.

    Args:
        width: columns of the terminal; ``None`` for no limit.

    >>> list(lines([("name", "size"), ("/w", "12 B")], "<>", None))
    ['name  size', '/w    12 B']
    """
    widths = [max((width_of(row[n]) for row in rows), default=0) for n in range(len(align))]
    mark = "…" if can_show("…") else "..."
    if width is not None:
        others = sum(widths) - widths[cut] + len(_GAP) * (len(align) - 1)
        widths[cut] = max(min(widths[cut], width - others), min(widths[cut], _NARROWEST))
    for row in rows:
        cells = [*row]
        cells[cut] = cut_middle(cells[cut], widths[cut], mark)
        padded = [pad(cell, size, side) for cell, size, side in zip(cells, widths, align)]
        yield _GAP.join(padded).rstrip()
