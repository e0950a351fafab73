"""Tables and sections: the results of a group, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Section", "Table", "bytes_text", "mib", "times"]


@dataclass(frozen=True)
class Table:
    """A table; the first column is text, the others are figures unless ``words``.

    A terminal shows every table, ``docs/benchmarks.md`` those with ``page``.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    words: bool = False
    page: bool = True

    def markdown(self) -> str:
        """For ``docs/benchmarks.md``."""
        lines = [f"**{self.title}**", "", _row(self.columns)]
        lines.append(_row([":--", *[":--" if self.words else "--:"] * (len(self.columns) - 1)]))
        lines += [_row(row) for row in self.rows]
        lines += ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """For a terminal."""
        cells = [[cell.replace("**", "") for cell in row] for row in [self.columns, *self.rows]]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.columns))]
        lines = [self.title, "-" * len(self.title)]
        for row in cells:
            first = row[0].ljust(widths[0])
            rest = [
                cell if self.words else cell.rjust(width)
                for cell, width in zip(row[1:], widths[1:])
            ]
            lines.append("  ".join([first, *rest]).rstrip())
        lines += [f"  * {note}" for note in self.notes]
        return "\n".join(lines) + "\n"


@dataclass
class Section:
    """The results of one group.

    Attributes:
        name: the word after ``--only``.
        title, text: the heading, and what was done.
        tables: its tables.
        plots: SVG text by file name.
        figures: single figures by a name such as ``"load/memory/torch"``, for ``--targets``.
    """

    name: str
    title: str
    text: str
    tables: list[Table] = field(default_factory=list)
    plots: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def mib(size: float) -> str:
    """Bytes in MiB.

    >>> mib(3 << 19)
    '1.5'
    """
    return f"{size / (1 << 20):,.1f}"


def bytes_text(size: float) -> str:
    """A size for people to read, in decimal units.

    >>> bytes_text(231_800_000), bytes_text(1_000_000_000)
    ('232 MB', '1 GB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"


def times(ratio: float) -> str:
    """A ratio.

    >>> times(1.337)
    '1.34x'
    """
    return f"{ratio:.2f}x"
