"""Reads a damaged text line by line, in constant memory, and finds the lines that open a record."""

from __future__ import annotations

import re
from typing import Any, Final

from ..errors import JsonckptError
from ..format import json_text
from ..format.validation import LONGEST_LINE
from ..storage.protocols import ByteSource

_CHUNKS: Final = b'"chunks":[\n'
_RECORD: Final = re.compile(rb'\{[ \t]*"name"[ \t]*:')
_READ: Final = 1 << 20
#: The shortest common line is that of a chunk with one element.
_SHORTEST_LINE: Final = 6
#: This many shorter lines are allowed.
_SHORT_LINES: Final = 100_000


class LineReader:
    """A text line by line.

    Attributes:
        position: bytes of text that were read.
        gave_up: whether there were too many very short lines to go on. A few bytes of zstd can
            hold gigabytes of line feeds.
    """

    def __init__(self, source: ByteSource) -> None:
        self.position = 0
        self.gave_up = False
        self._source = source
        self._buffer = bytearray()
        self._start = 0
        self._ended = False
        self._pushed: tuple[int, bytes] | None = None
        self._count = 0

    def next(self, limit: int) -> tuple[int, bytes, bool]:
        """``(position, line, whole)``; the line is empty at the end.

        For a line of more than ``limit`` bytes this is its last part, and ``whole`` is false.
        """
        if self._pushed is not None:
            (at, line), self._pushed = self._pushed, None
            return at, line, len(line) <= limit
        at = self.position
        self._count += 1
        if self._count > _SHORT_LINES + at // _SHORTEST_LINE:
            self.gave_up = True
            return at, b"", True
        scanned = self._start
        cut = False
        while (stop := self._buffer.find(b"\n", scanned) + 1) <= 0:
            if self._ended:
                stop = len(self._buffer)
                break
            held = len(self._buffer) - self._start
            if held > max(limit, LONGEST_LINE):
                cut = True
                self._start += held - LONGEST_LINE
                self.position += held - LONGEST_LINE
            count = self._fill()
            scanned = max(self._start, len(self._buffer) - count)
        line = bytes(memoryview(self._buffer)[self._start : stop])
        self.position += len(line)
        self._start = stop
        whole = not cut and len(line) <= limit
        return (at if not cut else self.position - len(line)), line, whole

    @property
    def next_at(self) -> int:
        """Where the next line begins."""
        return self.position if self._pushed is None else self._pushed[0]

    def first(self) -> bytes:
        """The first byte of the next line; empty at the end."""
        if self._pushed is not None:
            return self._pushed[1][:1]
        while self._start == len(self._buffer) and not self._ended:
            self._fill()
        return bytes(self._buffer[self._start : self._start + 1])

    def push(self, at: int, line: bytes) -> None:
        """Let :meth:`next` return this line again."""
        self._pushed = at, line

    def _fill(self) -> int:
        """Read more. Returns the number of bytes."""
        del self._buffer[: self._start]
        self._start = 0
        used = len(self._buffer)
        self._buffer += bytes(_READ)
        view = memoryview(self._buffer)
        try:
            count = self._source.readinto(view[used:])
        finally:
            view.release()
        del self._buffer[used + count :]
        self._ended = not count
        return count


def record_start(line: bytes) -> int:
    """The index of a record's start in a line that ends with ``"chunks":[``; -1 if there is none.

    A string cannot hold these bytes, since quotes in it are escaped.
    """
    if not line.endswith(_CHUNKS):
        return -1
    if line.startswith(b"{") and not _RECORD.match(line) and _is_header(line):
        return 0  # its members have another order
    starts = [match.start() for match in _RECORD.finditer(line[-LONGEST_LINE:])]
    return max(0, len(line) - LONGEST_LINE) + starts[-1] if starts else -1


def _is_header(line: bytes) -> bool:
    try:
        value = record_header(line, 1_000)
    except JsonckptError:
        return False
    return "name" in value and "dtype" in value


def record_header(line: bytes, depth: int) -> dict[str, Any]:
    """The members in the line that opens a record."""
    value = json_text.parse(
        line[: -len(_CHUNKS)] + b'"chunks":null}', what="the head of a record", max_depth=depth
    )
    assert isinstance(value, dict)
    return value
