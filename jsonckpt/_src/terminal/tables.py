"""Columns that fit a terminal. A file gets them whole."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from ..errors import printable
from .console import can_show, columns, say, wrapped

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


def say_wrapped(text: str, first: str = "", rest: str = "", style: str = "") -> None:
    """Print printable text. On a terminal its lines end between words.

    Args:
        first, rest: what the first line and the others begin with.
        style: of the text.
    """
    for line in wrapped(text, columns(), first, rest):
        say(line, style=style)


def labels(rows: Iterable[tuple[str, str]]) -> None:
    """Print texts beside their labels. On a terminal a text takes as many lines as it needs."""
    shown = [(printable(label), printable(text)) for label, text in rows]
    widths = [width_of(label) for label, _ in shown]
    room = columns()
    limit = max(widths, default=0) if room is None else max(room // 2, _NARROWEST)
    width = max((size for size in widths if size <= limit), default=0)
    for label, text in shown:
        say_wrapped(text, pad(label, width) + _GAP, " " * (width + len(_GAP)))


def table(
    rows: Sequence[Sequence[str]],
    align: str,
    *,
    header: bool = True,
    cut: int = 0,
    optional: Sequence[int] = (),
) -> None:
    """Print rows of printable text in columns. One column is cut where the others need room.

    Args:
        rows: all of one length; the first is a header unless ``header`` is false.
        align: ``"<"`` or ``">"`` for each column.
        cut: the column that is cut.
        optional: columns that are left out, in this order, where a terminal is too narrow.
    """
    width, left_out = columns(), list(optional)
    while left_out and width is not None and _least(rows, cut) > width:
        gone = left_out.pop(0)
        rows = [[*row[:gone], *row[gone + 1 :]] for row in rows]
        align = align[:gone] + align[gone + 1 :]
        cut -= gone < cut
        left_out = [number - (number > gone) for number in left_out]
    for number, line in enumerate(lines(rows, align, width, cut)):
        say(line, style="bold" if header and not number else "")


def _least(rows: Sequence[Sequence[str]], cut: int) -> int:
    """The columns of a table whose column ``cut`` is as narrow as it may be."""
    widths = [max(map(width_of, column)) for column in zip(*rows)]
    widths[cut] = min(widths[cut], _NARROWEST)
    return sum(widths) + len(_GAP) * (len(widths) - 1)


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
