"""The lifted parts of a JSON text: the file with their bytes, and the references to them."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import FormatError, quote
from ..storage.spool import SpoolFile
from .number_array import Run
from .spooled import ROOM_HINT


class Stretch(NamedTuple):
    """Bytes of a scratch file."""

    offset: int
    length: int


class Scratch(SpoolFile):
    """A file for what was lifted, until it becomes a tensor or a Python value.

    Every stretch of it is released after use. When none is held, the file is written from its
    beginning again. So it stays about as large as the largest tensor.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, ROOM_HINT)
        self._held = 0
        #: The text of the array that is being lifted, in case that it is no array of numbers.
        self.consumed = SpoolFile(directory, ROOM_HINT)

    def close(self) -> None:
        """Close the files, which removes them."""
        super().close()
        if hasattr(self, "consumed"):  # not if there was no room for it
            self.consumed.close()

    def hold(self, offset: int) -> Stretch:
        """Hold everything from ``offset`` to the end, until it is released."""
        self._held += 1
        return Stretch(offset, self.tell() - offset)

    def hold_again(self, count: int) -> None:
        """Hold ``count`` stretches once more."""
        self._held += count

    def release(self, count: int = 1) -> None:
        """Release ``count`` stretches."""
        self._held -= count
        if self._held == 0:
            self.cut(0)


@dataclass(frozen=True, slots=True)
class Numbers:
    """An array of numbers that was lifted.

    Attributes:
        values: the values in the scratch file, 8 bytes each. Each stretch is held once.
        runs: the kinds of the values.
        shape: the shape that the brackets give.
        text: the text, if it is short enough to become a Python list. It is in the first stretch
            that is held.
    """

    values: tuple[Stretch, ...]
    runs: tuple[Run, ...]
    shape: tuple[int, ...]
    text: Stretch | None

    @property
    def nbytes(self) -> int:
        """The bytes of the values in the scratch file."""
        return sum(stretch.length for stretch in self.values)


def joined(items: list[Any]) -> Any:
    """One array of the items, if all are lifted arrays of the same shape. Else the items.

    An array whose first item is long is lifted item by item. Here it is put together again.
    """
    first = items[0]
    if not isinstance(first, Numbers) or not all(
        isinstance(item, Numbers) and item.shape == first.shape for item in items
    ):
        return items
    return Numbers(
        tuple(stretch for item in items for stretch in item.values),
        tuple(run for item in items for run in item.runs),
        (len(items), *first.shape),
        None,
    )


@dataclass(frozen=True, slots=True)
class Ragged:
    """A list of numbers, ``null``, ``true`` and lists that is no array, and was lifted.

    It is no tensor. So it becomes a Python list in the end: :meth:`loads`.

    Attributes:
        text: its text in the scratch file, which is held once.
    """

    text: Stretch

    def loads(self, scratch: Scratch) -> list[Any]:
        """The list. Its stretch stays held.

        Raises:
            FormatError: the text is not JSON.
        """
        text = b"".join(scratch.read(*self.text))
        try:
            found: list[Any] = json.loads(text, parse_float=_finite if _LARGE(text) else None)
        except ValueError as error:
            raise FormatError(f"not JSON ({quote(str(error))})") from error
        return found


#: Finds exponents with which a number may be too large.
_LARGE = re.compile(rb"[eE]\+?[0-9]{3}|[0-9]{300}").search


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise FormatError(f"the number {quote(text)} is too large")
    return number


@dataclass(frozen=True, slots=True)
class Text:
    """A long string that was lifted: the text between the quotes, with its escapes.

    Attributes:
        stretch: its place in the scratch file.
        escaped: True if it has backslashes.
        head: its first characters.
    """

    stretch: Stretch
    escaped: bool
    head: str

    def after(self, count: int) -> Text:
        """The text without its first ``count`` characters, which are ASCII."""
        start = Stretch(self.stretch.offset + count, self.stretch.length - count)
        return Text(start, self.escaped, self.head[count:])


class References:
    """The lifted parts of a text, by their references: the strings in their place.

    Attributes:
        key: the beginning of every reference. It is random, so no file can forge one.
    """

    def __init__(self) -> None:
        self.key = secrets.token_hex(16)
        self._lifted: dict[int, Numbers | Ragged | Text] = {}
        self._count = 0

    def put(self, thing: Numbers | Ragged | Text) -> bytes:
        """Keep ``thing`` and return a reference to it, as a JSON string."""
        self._count += 1
        self._lifted[self._count] = thing
        return f'"{self.key}:{self._count}"'.encode()

    def put_word(self, word: bytes) -> bytes:
        """A reference to ``NaN`` or an infinity, as a JSON string."""
        return f'"{self.key}:{word.decode()}"'.encode()

    def take(self, text: str) -> Numbers | Ragged | Text | float | str:
        """What the reference ``text`` refers to, once. Other strings are returned unchanged."""
        if not text.startswith(self.key):
            return text
        reference = text[len(self.key) + 1 :]
        return self._lifted.pop(int(reference)) if reference.isdigit() else float(reference)
