"""A damaged text line by line, in constant memory; and the lines in it that open a record."""

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
#: The shortest line of a record is that of a chunk of one element; few others are around records.
_SHORTEST_LINE: Final = 6
_FEW_LINES: Final = 100_000


class LineReader:
    """A text line by line; what is too long for a line is passed over in constant memory."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._buffer = bytearray()
        self._start = 0
        self._ended = False
        self._again: tuple[int, bytes] | None = None
        self._count = 0
        self.position = 0
        #: Whether the lines were so short and so many that they are there to keep us busy: a few
        #: bytes of zstd unfold to gigabytes of line feeds.
        self.given_up = False

    def next(self, limit: int) -> tuple[int, bytes, bool]:
        """``(position, line, whole)``; the line is empty at the end.

        Of a line of over ``limit`` bytes it is the last part, and ``whole`` is false.
        """
        if self._again is not None:
            (at, line), self._again = self._again, None
            return at, line, len(line) <= limit
        at = self.position
        self._count += 1
        if self._count > _FEW_LINES + at // _SHORTEST_LINE:
            self.given_up = True
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
            self._fill()
            scanned = max(self._start, len(self._buffer) - self._filled)
        line = bytes(memoryview(self._buffer)[self._start : stop])
        self.position += len(line)
        self._start = stop
        whole = not cut and len(line) <= limit
        return (at if not cut else self.position - len(line)), line, whole

    @property
    def at(self) -> int:
        """Where the next line begins."""
        return self.position if self._again is None else self._again[0]

    def first(self) -> bytes:
        """The first byte of the next line; empty at the end."""
        if self._again is not None:
            return self._again[1][:1]
        while self._start == len(self._buffer) and not self._ended:
            self._fill()
        return bytes(self._buffer[self._start : self._start + 1])

    def push(self, at: int, line: bytes) -> None:
        """Let :meth:`next` give this line (again)."""
        self._again = at, line

    _filled = 0

    def _fill(self) -> None:
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
        self._filled = count
        self._ended = not count


def record_start(line: bytes) -> int:
    """Where a record opens in a line, which then ends in it; -1 where none does.

    A string cannot hold these bytes, for quotes in it are escaped.
    """
    if not line.endswith(_CHUNKS):
        return -1
    if line.startswith(b"{") and not _RECORD.match(line) and _is_header(line):
        return 0  # its members stand in another order
    starts = [match.start() for match in _RECORD.finditer(line[-LONGEST_LINE:])]
    return max(0, len(line) - LONGEST_LINE) + starts[-1] if starts else -1


def _is_header(line: bytes) -> bool:
    """Whether a line of its own opens a record, whatever its first member is."""
    try:
        value = record_header(line, 1_000)
    except JsonckptError:
        return False
    return "name" in value and "dtype" in value


def record_header(line: bytes, depth: int) -> dict[str, Any]:
    """What the line that opens a record says."""
    value = json_text.parse(
        line[: -len(_CHUNKS)] + b'"chunks":null}', what="the head of a record", max_depth=depth
    )
    assert isinstance(value, dict)
    return value
