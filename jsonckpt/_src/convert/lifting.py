"""Any JSON text as a stream, with everything long lifted out before a parser sees it.

Arrays of numbers and long strings, which are 99.9 % of a checkpoint in JSON, go into a scratch
file piece by piece; a short reference stands in their place in the text that goes on to ijson.
``NaN`` and the infinities, which Python writes bare and JSON does not know, become references, too.
The text is guarded on the way (length of numbers and strings, surrogates, total size): what
arrives at the parser is small, and of a form on which all parsers agree.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..errors import FormatError, IncompleteCheckpointError, JsonckptError, LimitError, quote
from .numberarray import ArrayParser, Run, Scan
from .spool import Scratch, Stretch

#: Members whose value is a tensor's: lifted out whatever their length.
PAYLOAD_KEYS = frozenset(
    {b'"data"', b'"values"', b'"__ndarray__"', b'"__tensor__"', b'"__torch_tensor__"'}
)
#: Bytes read at once.
BLOCK = 4 << 20
#: Text of numbers parsed at once.
WINDOW = 1 << 20
#: Shorter arrays of numbers outside tensors, and shorter strings, stay in the text.
SHORT_ARRAY = 4 << 10
SHORT_STRING = 64 << 10
MAX_NUMBER = 1000
MAX_SKELETON = 64 << 20
_SPECIAL = re.compile(rb'["\[]')
_BACKSLASH = ord("\\")
_OPEN, _CLOSE = b"[]"
#: Short strings without escapes and what stands before them, but for keys of arrays, and for what
#: must be looked at more closely.
_SHORT_STRINGS = re.compile(
    rb'(?:[^"\[NI\f\v]{0,4000}"[^"\\]{0,64}"'
    rb"(?=[ \t\r\n]*[,\]}]|[ \t\r\n]*:[ \t\r\n]*[^ \t\r\n\[])){1,500}"
)
#: Bytes of a string looked through at once for its end.
_STRING_BLOCK = 64 << 10
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_BRACKETS = re.compile(rb"\[[ \t\r\n\[]{0,256}")
#: To lift these few numbers of a tensor takes longer than to read them.
_TINY_ARRAY = re.compile(rb"\[[-0-9.eE, \t\r\n\[\]]{0,64}\]")
_STARTS_NUMBER = frozenset(b"-0123456789NItf]")
_NOT_FINITE = re.compile(rb"-?Infinity|NaN")
#: What ends a number or a word, for the search backwards from the end of a buffer.
_SEPARATORS = (b" ", b",", b"\n", b"}", b"]", b":", b"{", b"\t", b"\r")
_BLANK_ALL_BUT_NUMBERS = bytes(byte if byte in b"-+.0123456789eE" else 0x20 for byte in range(256))
_SURROGATE = re.compile("[\ud800-\udfff]")


class ByteSource(Protocol):
    """What a text is read from."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Numbers:
    """An array of numbers that was lifted out.

    Attributes:
        values: 8 bytes each in the scratch file.
        runs: their binary form.
        shape: as the brackets say.
        text: the text itself, kept where it is short enough to become a Python list again.
    """

    values: Stretch
    runs: tuple[Run, ...]
    shape: tuple[int, ...]
    text: Stretch | None

    @property
    def count(self) -> int:
        return sum(run.count for run in self.runs)


@dataclass(frozen=True, slots=True)
class Text:
    """A long string that was lifted out: what stands between the quotes, escapes and all.

    Attributes:
        stretch: where it lies in the scratch file.
        escaped: whether it holds backslashes.
        head: how it begins.
    """

    stretch: Stretch
    escaped: bool
    head: str

    def after(self, count: int) -> Text:
        """The text without its first ``count`` characters, which are ASCII."""
        start = Stretch(self.stretch.offset + count, self.stretch.length - count)
        return Text(start, self.escaped, self.head[count:])


class Lifter:
    """Reads a JSON text and passes it on without its long parts.

    Args:
        source: the text.
        scratch: where the long parts go.
        emit: takes the remaining text, in pieces.
        advance: told of every block that was read, by its number of bytes.

    Attributes:
        key: what references begin with: 128 random bits, so that no file can forge one.
        lifted: what they stand for, by number.
    """

    def __init__(
        self,
        source: ByteSource,
        scratch: Scratch,
        emit: Callable[[bytes], None],
        advance: Callable[[int], None],
    ) -> None:
        self.key = secrets.token_hex(16)
        self.lifted: dict[int, Numbers | Text] = {}
        self._source = source
        self._scratch = scratch
        self._emit = emit
        self._advance = advance
        self._buffer = b""
        self._position = 0
        self._start = 0
        self._ended = False
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._skeleton_bytes = 0
        self._count = 0

    def run(self) -> None:
        """Read to the end.

        Raises:
            FormatError, LimitError, IncompleteCheckpointError: see the module; the message gives
                the position in the text.
            WriteError: the scratch file cannot grow.
        """
        try:
            self._fill(4)
            if self._buffer.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise FormatError("UTF-16 text", hint="Save it as UTF-8.")
            if self._buffer.startswith(b"\xef\xbb\xbf"):
                self._position = 3
            while self._step():
                pass
            self._flush()
        except JsonckptError as error:
            if type(error) in (FormatError, LimitError, IncompleteCheckpointError):
                error.message += f" (near byte {self._start + self._position:,})"
            raise

    def _step(self) -> bool:
        """Take one string, array or stretch of other text. False at the end."""
        run = _SHORT_STRINGS.match(self._buffer, self._position)
        if run is not None:
            self._check_numbers(run[0])
            self._push(run[0])
            self._position = run.end()
            return True
        match = _SPECIAL.search(self._buffer, self._position)
        if match is None:
            return self._plain_to_end()
        self._plain(self._buffer[self._position : match.start()])
        self._position = match.start()
        if match[0] == b'"':
            self._string()
        else:
            self._array(None)
        return True

    def _plain_to_end(self) -> bool:
        """Text without strings and arrays up to the end of the buffer, whole numbers only."""
        rest = self._buffer[self._position :]
        if self._ended:
            self._plain(rest)
            self._position = len(self._buffer)
            return False
        cut = max(rest.rfind(separator) for separator in _SEPARATORS) + 1
        self._plain(rest[:cut])
        self._position += cut
        if len(rest) - cut > MAX_NUMBER:
            raise LimitError(f"a number of more than {MAX_NUMBER:,} characters")
        self._fill(len(rest) - cut + 1)
        return True

    def _plain(self, text: bytes) -> None:
        """Pass on text that holds no string."""
        self._check_numbers(text)
        if b"\f" in text or b"\v" in text:  # blanks to yajl, not to JSON
            raise FormatError("a form feed or vertical tab between values")
        if b"N" in text or b"I" in text:
            text = _NOT_FINITE.sub(self._not_finite, text)
        self._push(text)

    @staticmethod
    def _check_numbers(text: bytes) -> None:
        if len(text) > MAX_NUMBER:
            words = text.translate(_BLANK_ALL_BUT_NUMBERS).split()
            if any(len(word) > MAX_NUMBER for word in words):
                raise LimitError(f"a number of more than {MAX_NUMBER:,} characters")

    def _not_finite(self, match: re.Match[bytes]) -> bytes:
        return f'"{self.key}:{match[0].decode()}"'.encode()

    def _string(self) -> None:
        """The string at the position, and, when it is a key, its colon and an array after it."""
        self._fill(2 * SHORT_STRING)
        end = self._closing_quote(self._position + 1)
        if end < 0 or end - self._position > SHORT_STRING:
            self._long_string()
            return
        token = self._buffer[self._position : end + 1]
        if b"\\u" in token:
            _check_surrogates(token)
        self._push(token)
        self._position = end + 1
        colon = _COLON.match(self._buffer, self._position)
        if colon is None:
            return
        self._push(colon[0])
        self._position = colon.end()
        if self._buffer[self._position : self._position + 1] == b"[":
            self._array(token)

    def _closing_quote(self, start: int) -> int:
        """Where the string that has begun before ``start`` ends in the buffer, or -1."""
        end = self._buffer.find(b'"', start)
        if end <= start or self._buffer[end - 1] != _BACKSLASH:
            return end
        size = 64  # no more than the string may take: many short ones may follow
        while start < len(self._buffer):
            block = self._buffer[start : start + size]
            size = min(4 * size, _STRING_BLOCK)
            if (len(block) - len(block.rstrip(b"\\"))) % 2:
                # An escape must not be torn apart.
                block = self._buffer[start : start + len(block) + 1]
            plain = block.replace(b"\\\\", b"__").replace(b'\\"', b"__")
            end = plain.find(b'"')
            if end >= 0:
                return start + end
            start += len(block)
        return -1

    def _long_string(self) -> None:
        self._flush()
        start, escaped = self._scratch.end, False
        self._position += 1
        head = self._buffer[self._position : self._position + 16].decode("ascii", "replace")
        while True:
            end = self._closing_quote(self._position)
            piece = self._buffer[self._position : end if end >= 0 else len(self._buffer)]
            if end < 0:
                # An escape must not be torn apart.
                odd = (len(piece) - len(piece.rstrip(b"\\"))) % 2
                piece = piece[: len(piece) - odd]
            escaped = escaped or b"\\" in piece
            self._scratch.append(piece)
            self._position += len(piece)
            if end >= 0:
                self._position += 1
                break
            if self._ended:
                raise IncompleteCheckpointError("the text ends within a string")
            self._fill(self._left() + 1)
        self._refer(Text(self._scratch.hold(start), escaped, head))

    def _array(self, key: bytes | None) -> None:
        """The array at the position, lifted out if it is a long one of numbers."""
        self._fill(WINDOW)
        brackets = _BRACKETS.match(self._buffer, self._position)
        assert brackets is not None
        after = self._buffer[brackets.end() : brackets.end() + 1]
        if not after or after[0] not in _STARTS_NUMBER:
            self._push(brackets[0])
            self._position = brackets.end()
            return
        payload = key in PAYLOAD_KEYS
        tiny = _TINY_ARRAY.match(self._buffer, self._position)
        if tiny is not None and (length := _length_of_array(tiny[0], payload)):
            self._pass_on(length)
            return
        window, bounded = self._window(SHORT_ARRAY)
        if not payload and bounded:
            self._pass_on(len(window))
            return
        parser = ArrayParser(self._scratch.append)
        # As much as the array takes, not as much as there is: many short ones may follow.
        size = SHORT_ARRAY
        while True:
            window, bounded = self._window(size)
            scan = parser.scan(window)
            if scan.end is not None or bounded or size >= WINDOW:
                break
            size *= 4
        if scan.end is None and bounded:
            # Strings or objects among the numbers: the parser takes them one by one.
            self._pass_on(len(window))
            return
        short = scan.end is not None and (scan.end <= SHORT_ARRAY or b"n" in window[: scan.end])
        if not payload and scan.end is not None and short:
            self._pass_on(scan.end)
            return
        self._flush()
        text = None
        if scan.end is not None and (not payload or scan.end <= SHORT_ARRAY):
            text = Stretch(self._scratch.end, scan.end)
            self._scratch.append(window[: scan.end])
        self._lift(parser, window, scan, text)

    def _pass_on(self, length: int) -> None:
        self._plain(self._buffer[self._position : self._position + length])
        self._position += length

    def _window(self, size: int = WINDOW) -> tuple[bytes, bool]:
        """What follows, up to the first byte that no array of numbers holds.

        Returns:
            At most ``size`` bytes, and whether such a byte ended them.
        """
        upto = min(self._position + size, len(self._buffer))
        limit = upto
        for byte in (b'"', b"{", b"}"):
            found = self._buffer.find(byte, self._position, limit)
            limit = found if found >= 0 else limit
        return self._buffer[self._position : limit], limit < upto

    def _lift(self, parser: ArrayParser, window: bytes, scan: Scan, text: Stretch | None) -> None:
        start = self._scratch.end if text is None else text.offset
        values_start = self._scratch.end
        bounded = False
        while True:
            taken = parser.feed(window, scan)
            self._position += taken
            if scan.end is not None:
                break
            if bounded:
                raise FormatError("a string or an object among the numbers of a long array")
            if self._ended and self._left() <= len(window) - taken:
                raise IncompleteCheckpointError("the text ends within an array")
            if taken == 0:
                raise LimitError(f"a number of more than {WINDOW:,} characters")
            self._fill(WINDOW)
            window, bounded = self._window()
            scan = parser.scan(window)
        held = self._scratch.hold(start)
        values = Stretch(values_start, held.offset + held.length - values_start)
        self._refer(Numbers(values, tuple(parser.runs), parser.shape(), text))

    def _refer(self, thing: Numbers | Text) -> None:
        self._count += 1
        self.lifted[self._count] = thing
        self._push(f'"{self.key}:{self._count}"'.encode())

    def _push(self, text: bytes) -> None:
        if not text:
            return
        self._skeleton_bytes += len(text)
        if self._skeleton_bytes > MAX_SKELETON:
            raise LimitError(
                f"more than {MAX_SKELETON:,} bytes of text besides arrays of numbers and strings"
            )
        self._pending.append(text)
        self._pending_bytes += len(text)
        if self._pending_bytes > 1 << 16:
            self._flush()

    def _flush(self) -> None:
        """Pass on what is pending, so that finished tensors give their scratch room back."""
        text = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        if text:
            self._emit(text)

    def _left(self) -> int:
        return len(self._buffer) - self._position

    def _fill(self, wanted: int) -> None:
        """Have at least ``wanted`` bytes after the position, if there are so many."""
        if self._ended or self._left() >= wanted:
            return
        parts = [self._buffer[self._position :]]
        have = len(parts[0])
        while have < wanted:
            block = self._source.read(BLOCK)
            if not block:
                self._ended = True
                break
            self._advance(len(block))
            parts.append(block)
            have += len(block)
        self._start += self._position
        self._position = 0
        self._buffer = b"".join(parts)


def _length_of_array(text: bytes, payload: bool) -> int:
    """Up to the bracket that closes the first one; 0 where none does, or its shape is in doubt."""
    depth = 0
    for position, byte in enumerate(text):
        if byte == _OPEN:
            depth += 1
        elif byte == _CLOSE:
            depth -= 1
            if depth == 0:
                # A tensor of brackets alone has a shape that only the other way knows.
                known = not payload or position == 1 or text[:position].strip(b"[], ")
                return position + 1 if known else 0
    return 0


def _check_surrogates(token: bytes) -> None:
    try:
        text = json.loads(token)
    except ValueError as error:
        raise FormatError(f"a string that is no JSON string: {quote(token)}") from error
    if _SURROGATE.search(text) is not None:
        raise FormatError(f"a lone surrogate in the string {quote(token)}")
