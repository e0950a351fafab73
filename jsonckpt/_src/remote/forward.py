"""Reads a file of ranges from its beginning on, with small steps at first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

#: Bytes of the first step, and of what a small read fetches.
SMALL = 64 << 10


class PlannedFile(Protocol):
    """A file whose ranges are fetched ahead."""

    size: int

    def expect(self, ranges: Iterable[tuple[int, int]], *, slow_start: bool = False) -> None:
        """Fetch these ranges ahead."""

    def parts(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes of a range, part by part."""

    def close(self) -> None:
        """End the requests that are under way."""


class Forward:
    """The bytes of a file that is read by ranges, in order."""

    def __init__(self, file: PlannedFile, largest: int) -> None:
        self._file = file
        self._position = 0
        self._steps = _steps(file.size, largest)
        self._left = memoryview(b"")
        file.expect(_steps(file.size, largest), slow_start=True)

    def read(self, count: int) -> bytes:
        """At most ``count`` bytes, none at the end."""
        data = bytearray(count)
        return bytes(data[: self.readinto(memoryview(data))])

    def readinto(self, buffer: memoryview) -> int:
        """The next bytes, none at the end."""
        if not self._left:
            step = next(self._steps, None)
            if step is None:
                return 0
            # A step is not longer than a request, so it has one part.
            (self._left,) = self._file.parts(*step)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self) -> None:
        """End the requests that are under way."""
        self._file.close()


def _steps(size: int, largest: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover a file. The first are small: often only a beginning is read."""
    start, step = 0, min(SMALL, largest)
    while start < size:
        yield start, min(start + step, size)
        start, step = start + step, min(step * 4, largest)
