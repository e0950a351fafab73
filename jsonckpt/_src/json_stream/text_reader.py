"""The text that is read forward, and the text that is passed on to the parser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Protocol

from ..errors import FormatError, LimitError
from .scratch import References

#: Bytes read at once.
BLOCK = 4 << 20
MAX_NUMBER = 1000
MAX_SKELETON = 64 << 20
#: The hint when lists outside tensors are too long.
DROP_HINT = (
    "Remove the long lists that are no tensors from the file, for example by jq 'del(.history)'."
)
_BACKSLASH = ord("\\")
#: Bytes searched at once for the end of a string.
_STRING_BLOCK = 64 << 10
_NOT_FINITE = re.compile(rb"-?Infinity|NaN")
_BLANK_ALL_BUT_NUMBERS = bytes(byte if byte in b"-+.0123456789eE" else 0x20 for byte in range(256))


class ByteSource(Protocol):
    """Where a text is read from."""

    def read(self, size: int, /) -> bytes: ...


class Reader:
    """A text that is read forward: the part of it in memory, and a position in that part.

    Attributes:
        buffer: the part in memory.
        position: the position in the buffer.
        start: where the buffer begins in the text.
        ended: True if the text ends with the buffer.
    """

    def __init__(self, source: ByteSource, advance: Callable[[int], None]) -> None:
        self._source = source
        self._advance = advance
        self.buffer = b""
        self.position = 0
        self.start = 0
        self.ended = False

    def left(self) -> int:
        """Bytes in the buffer after the position."""
        return len(self.buffer) - self.position

    def fill(self, wanted: int) -> None:
        """Read until ``wanted`` bytes follow the position, or the text ends."""
        if self.ended or self.left() >= wanted:
            return
        parts = [self.buffer[self.position :]]
        have = len(parts[0])
        while have < wanted:
            block = self._source.read(BLOCK)
            if not block:
                self.ended = True
                break
            self._advance(len(block))
            parts.append(block)
            have += len(block)
        self.start += self.position
        self.position = 0
        self.buffer = b"".join(parts)

    def unread(self, pieces: Iterable[bytes]) -> None:
        """Put text back. It is read again before what follows the position."""
        again = b"".join(pieces)
        if not again:  # then the rest of the buffer need not be copied
            return
        self.start += self.position - len(again)
        self.buffer = again + self.buffer[self.position :]
        self.position = 0

    def take(self, length: int) -> bytes:
        """Return the next ``length`` bytes and move the position past them."""
        self.position += length
        return self.buffer[self.position - length : self.position]

    def window(self, size: int) -> tuple[bytes, bool]:
        """The next bytes, up to the first one that no array of numbers has.

        Returns:
            At most ``size`` bytes, and True if such a byte ended them.
        """
        upto = min(self.position + size, len(self.buffer))
        limit = upto
        for byte in (b'"', b"{", b"}"):
            found = self.buffer.find(byte, self.position, limit)
            limit = found if found >= 0 else limit
        return self.buffer[self.position : limit], limit < upto

    def closing_quote(self, start: int) -> int:
        """The position of the quote that ends a string, searched from ``start``, or -1."""
        end = self.buffer.find(b'"', start)
        if end <= start or self.buffer[end - 1] != _BACKSLASH:
            return end
        size = 64  # small at first: many short strings may follow
        while start < len(self.buffer):
            block = self.buffer[start : start + size]
            size = min(4 * size, _STRING_BLOCK)
            if tears_escape(block):
                block = self.buffer[start : start + len(block) + 1]
            plain = block.replace(b"\\\\", b"__").replace(b'\\"', b"__")
            end = plain.find(b'"')
            if end >= 0:
                return start + end
            start += len(block)
        return -1


class Output:
    """Collects text and passes it on in larger pieces.

    Args:
        emit: gets the text.
        references: gives a reference to ``NaN`` and the infinities.
    """

    def __init__(self, emit: Callable[[bytes], None], references: References) -> None:
        self._emit = emit
        self._references = references
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._total = 0

    def push(self, text: bytes) -> None:
        """Add text."""
        self._total += len(text)
        if self._total > MAX_SKELETON:
            raise LimitError(
                f"more than {MAX_SKELETON:,} bytes of text besides arrays of numbers and strings",
                hint=DROP_HINT,
            )
        self._pending.append(text)
        self._pending_bytes += len(text)
        if self._pending_bytes > 1 << 16:
            self.flush()

    def plain(self, text: bytes) -> None:
        """Add text without strings, after checks."""
        check_numbers(text)
        if b"\f" in text or b"\v" in text:  # yajl takes them for blanks
            raise FormatError("a form feed or vertical tab between values")
        if b"N" in text or b"I" in text:
            text = _NOT_FINITE.sub(lambda match: self._references.put_word(match[0]), text)
        self.push(text)

    def flush(self) -> None:
        """Pass on the pending text. So finished tensors are made and release their stretches."""
        text = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        if text:
            self._emit(text)


def tears_escape(block: bytes) -> bool:
    """True if ``block`` ends between the two bytes of an escape."""
    return (len(block) - len(block.rstrip(b"\\"))) % 2 == 1


def check_numbers(text: bytes) -> None:
    if len(text) > MAX_NUMBER:
        words = text.translate(_BLANK_ALL_BUT_NUMBERS).split()
        if any(len(word) > MAX_NUMBER for word in words):
            raise LimitError(f"a number of more than {MAX_NUMBER:,} characters")
