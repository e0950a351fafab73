"""Counts what a conversion changes, by kind, with the first names: a note for each kind."""

from __future__ import annotations

from ..errors import printable

_SHOWN = 3


class Tally:
    """Kinds of changes, each with its names, in order of first appearance.

    >>> tally = Tally()
    >>> for name in ("/a", "/b", "/c", "/d"):
    ...     tally.add("tuples become lists", name)
    >>> tally.notes()
    ['tuples become lists: 4 (/a, /b, /c, …)']
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}

    def add(self, what: str, name: str) -> None:
        """Count one change."""
        count, names = self._found.get(what, (0, []))
        if count < _SHOWN:
            names.append(name or "/")
        self._found[what] = (count + 1, names)

    def count(self, what: str) -> int:
        """How often a change was counted."""
        return self._found.get(what, (0, []))[0]

    def notes(self) -> list[str]:
        """One line for each kind."""
        return [f"{what}: {self.shown(what)}" for what in self._found]

    def shown(self, what: str) -> str:
        """The count of a kind and its first names.

        >>> Tally().shown("x")
        '0'
        """
        count, names = self._found.get(what, (0, []))
        more = ["…"] if count > len(names) else []
        return f"{count:,} ({', '.join([*map(printable, names), *more])})" if names else "0"
