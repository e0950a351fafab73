"""Any JSON text as a stream, with everything long lifted out before a parser sees it.

Arrays of numbers and long strings, which are 99.9 % of a checkpoint in JSON, go into a scratch
file piece by piece; a short reference stands in their place in the text that goes on to ijson.
``NaN`` and the infinities, which Python writes bare and JSON does not know, become references, too.
The text is guarded on the way (length of numbers and strings, surrogates, total size): what
arrives at the parser is small, and all parsers agree on its meaning.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from ..errors import FormatError, IncompleteCheckpointError, JsonckptError, LimitError, quote
from ..storage.spool import SpoolFile
from .number_array import ArrayParser, Run, Scan
from .options import ROOM_HINT

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


class Stretch(NamedTuple):
    """Bytes of a scratch file."""

    offset: int
    length: int


class Scratch(SpoolFile):
    """A file for what was lifted out, until its meaning is known.

    Whoever holds a stretch gives it back with :meth:`release`. When none is out, the file is
    written from its beginning again, and so stays about as large as the largest tensor.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, ROOM_HINT)
        self._held = 0

    def hold(self, offset: int) -> Stretch:
        """Everything from ``offset`` to the end, kept until it is released."""
        self._held += 1
        return Stretch(offset, self.tell() - offset)

    def release(self) -> None:
        """Give one stretch back."""
        self._held -= 1
        if self._held == 0:
            self.cut(0)


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


class References:
    """What was lifted out of a text, by the strings that stand for it.

    Attributes:
        key: what these strings begin with: 128 random bits, so that no file can forge one.
    """

    def __init__(self) -> None:
        self.key = secrets.token_hex(16)
        self._lifted: dict[int, Numbers | Text] = {}
        self._count = 0

    def put(self, thing: Numbers | Text) -> bytes:
        """The JSON string that stands for ``thing`` from now on."""
        self._count += 1
        self._lifted[self._count] = thing
        return f'"{self.key}:{self._count}"'.encode()

    def put_word(self, word: bytes) -> bytes:
        """The JSON string that stands for ``NaN`` or an infinity."""
        return f'"{self.key}:{word.decode()}"'.encode()

    def take(self, text: str) -> Numbers | Text | float | str:
        """What ``text`` stands for, once; any other string as it is."""
        if not text.startswith(self.key):
            return text
        reference = text[len(self.key) + 1 :]
        return self._lifted.pop(int(reference)) if reference.isdigit() else float(reference)


class _Reader:
    """The part of a text that is in memory, and a position in it."""

    def __init__(self, source: ByteSource, advance: Callable[[int], None]) -> None:
        self._source = source
        self._advance = advance
        self.buffer = b""
        self.position = 0
        #: Where in the text the buffer begins.
        self.start = 0
        #: Whether the text ends with the buffer.
        self.ended = False

    def left(self) -> int:
        """Bytes in the buffer after the position."""
        return len(self.buffer) - self.position

    def fill(self, wanted: int) -> None:
        """Have at least ``wanted`` bytes after the position, if there are so many."""
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

    def take(self, length: int) -> bytes:
        """The next ``length`` bytes; the position moves behind them."""
        self.position += length
        return self.buffer[self.position - length : self.position]

    def window(self, size: int) -> tuple[bytes, bool]:
        """What follows, up to the first byte that no array of numbers holds.

        Returns:
            At most ``size`` bytes, and whether such a byte ended them.
        """
        upto = min(self.position + size, len(self.buffer))
        limit = upto
        for byte in (b'"', b"{", b"}"):
            found = self.buffer.find(byte, self.position, limit)
            limit = found if found >= 0 else limit
        return self.buffer[self.position : limit], limit < upto

    def closing_quote(self, start: int) -> int:
        """Where the string that has begun before ``start`` ends in the buffer, or -1."""
        end = self.buffer.find(b'"', start)
        if end <= start or self.buffer[end - 1] != _BACKSLASH:
            return end
        size = 64  # no more than the string may take: many short ones may follow
        while start < len(self.buffer):
            block = self.buffer[start : start + size]
            size = min(4 * size, _STRING_BLOCK)
            if _tears_escape(block):
                block = self.buffer[start : start + len(block) + 1]
            plain = block.replace(b"\\\\", b"__").replace(b'\\"', b"__")
            end = plain.find(b'"')
            if end >= 0:
                return start + end
            start += len(block)
        return -1


class _Output:
    """Passes text on in pieces that are worth it."""

    def __init__(self, emit: Callable[[bytes], None]) -> None:
        self._emit = emit
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._total = 0

    def push(self, text: bytes) -> None:
        """Add text."""
        if not text:
            return
        self._total += len(text)
        if self._total > MAX_SKELETON:
            raise LimitError(
                f"more than {MAX_SKELETON:,} bytes of text besides arrays of numbers and strings"
            )
        self._pending.append(text)
        self._pending_bytes += len(text)
        if self._pending_bytes > 1 << 16:
            self.flush()

    def flush(self) -> None:
        """Pass on what is pending, so that finished tensors give their scratch room back."""
        text = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        if text:
            self._emit(text)


class Lifter:
    """Reads a JSON text and passes it on without its long parts.

    Args:
        source: the text.
        scratch: where the long parts go.
        references: gets what they are.
        emit: takes the remaining text, in pieces.
        advance: told of every block that was read, by its number of bytes.
    """

    def __init__(
        self,
        source: ByteSource,
        scratch: Scratch,
        references: References,
        emit: Callable[[bytes], None],
        advance: Callable[[int], None],
    ) -> None:
        self._in = _Reader(source, advance)
        self._scratch = scratch
        self._references = references
        self._out = _Output(emit)

    def run(self) -> None:
        """Read to the end.

        Raises:
            FormatError, LimitError, IncompleteCheckpointError: see the module; the message gives
                the position in the text.
            WriteError: the scratch file cannot grow.
        """
        text = self._in
        try:
            text.fill(4)
            if text.buffer.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise FormatError("UTF-16 text", hint="Save it as UTF-8.")
            if text.buffer.startswith(b"\xef\xbb\xbf"):
                text.position = 3
            while self._step():
                pass
            self._out.flush()
        except JsonckptError as error:
            if type(error) in (FormatError, LimitError, IncompleteCheckpointError):
                error.message += f" (near byte {text.start + text.position:,})"
            raise

    def _step(self) -> bool:
        """Take one string, array or stretch of other text. False at the end."""
        text = self._in
        run = _SHORT_STRINGS.match(text.buffer, text.position)
        if run is not None:
            _check_numbers(run[0])
            self._out.push(text.take(len(run[0])))
            return True
        match = _SPECIAL.search(text.buffer, text.position)
        if match is None:
            return self._plain_to_end()
        self._plain(text.take(match.start() - text.position))
        if match[0] == b'"':
            self._string()
        else:
            self._array(None)
        return True

    def _plain_to_end(self) -> bool:
        """Text without strings and arrays up to the end of the buffer, whole numbers only."""
        text = self._in
        if text.ended:
            self._plain(text.take(text.left()))
            return False
        rest = text.buffer[text.position :]
        cut = max(rest.rfind(separator) for separator in _SEPARATORS) + 1
        self._plain(text.take(cut))
        if text.left() > MAX_NUMBER:
            raise LimitError(f"a number of more than {MAX_NUMBER:,} characters")
        text.fill(text.left() + 1)
        return True

    def _plain(self, text: bytes) -> None:
        """Pass on text that holds no string."""
        _check_numbers(text)
        if b"\f" in text or b"\v" in text:  # blanks to yajl, not to JSON
            raise FormatError("a form feed or vertical tab between values")
        if b"N" in text or b"I" in text:
            text = _NOT_FINITE.sub(lambda match: self._references.put_word(match[0]), text)
        self._out.push(text)

    def _string(self) -> None:
        """The string at the position, and, when it is a key, its colon and an array after it."""
        text = self._in
        text.fill(2 * SHORT_STRING)
        end = text.closing_quote(text.position + 1)
        if end < 0 or end - text.position > SHORT_STRING:
            self._long_string()
            return
        token = text.take(end + 1 - text.position)
        if b"\\u" in token:
            _check_surrogates(token)
        self._out.push(token)
        colon = _COLON.match(text.buffer, text.position)
        if colon is None:
            return
        self._out.push(text.take(len(colon[0])))
        if text.buffer[text.position : text.position + 1] == b"[":
            self._array(token)

    def _long_string(self) -> None:
        self._out.flush()
        text = self._in
        start, escaped = self._scratch.tell(), False
        text.position += 1
        head = text.buffer[text.position : text.position + 16].decode("ascii", "replace")
        while True:
            end = text.closing_quote(text.position)
            length = (end if end >= 0 else len(text.buffer)) - text.position
            if end < 0 and _tears_escape(text.buffer[text.position :]):
                length -= 1
            piece = text.take(length)
            escaped = escaped or b"\\" in piece
            self._scratch.write(piece)
            if end >= 0:
                text.position += 1
                break
            if text.ended:
                raise IncompleteCheckpointError("the text ends within a string")
            text.fill(text.left() + 1)
        self._out.push(self._references.put(Text(self._scratch.hold(start), escaped, head)))

    def _array(self, key: bytes | None) -> None:
        """The array at the position, lifted out if it is a long one of numbers."""
        text = self._in
        text.fill(WINDOW)
        brackets = _BRACKETS.match(text.buffer, text.position)
        assert brackets is not None
        after = text.buffer[brackets.end() : brackets.end() + 1]
        if not after or after[0] not in _STARTS_NUMBER:
            self._out.push(text.take(len(brackets[0])))
            return
        payload = key in PAYLOAD_KEYS
        tiny = _TINY_ARRAY.match(text.buffer, text.position)
        if tiny is not None and (length := _length_of_array(tiny[0], payload)):
            self._plain(text.take(length))
            return
        window, bounded = text.window(SHORT_ARRAY)
        if not payload and bounded:
            self._plain(text.take(len(window)))
            return
        parser = ArrayParser(self._scratch.write)
        # As much as the array takes, not as much as there is: many short ones may follow.
        size = SHORT_ARRAY
        while True:
            window, bounded = text.window(size)
            scan = parser.scan(window)
            if scan.end is not None or bounded or size >= WINDOW:
                break
            size *= 4
        if scan.end is None and bounded:
            # Strings or objects among the numbers: the parser takes them one by one.
            self._plain(text.take(len(window)))
            return
        short = scan.end is not None and (scan.end <= SHORT_ARRAY or b"n" in window[: scan.end])
        if not payload and scan.end is not None and short:
            self._plain(text.take(scan.end))
            return
        self._out.flush()
        kept = None
        if scan.end is not None and (not payload or scan.end <= SHORT_ARRAY):
            kept = Stretch(self._scratch.tell(), scan.end)
            self._scratch.write(window[: scan.end])
        self._lift(parser, window, scan, kept)

    def _lift(self, parser: ArrayParser, window: bytes, scan: Scan, kept: Stretch | None) -> None:
        text = self._in
        values_start = self._scratch.tell()
        start = values_start if kept is None else kept.offset
        bounded = False
        while True:
            taken = parser.feed(window, scan)
            text.position += taken
            if scan.end is not None:
                break
            if bounded:
                raise FormatError("a string or an object among the numbers of a long array")
            if text.ended and text.left() <= len(window) - taken:
                raise IncompleteCheckpointError("the text ends within an array")
            if taken == 0:
                raise LimitError(f"a number of more than {WINDOW:,} characters")
            text.fill(WINDOW)
            window, bounded = text.window(WINDOW)
            scan = parser.scan(window)
        held = self._scratch.hold(start)
        values = Stretch(values_start, held.offset + held.length - values_start)
        numbers = Numbers(values, tuple(parser.runs), parser.shape(), kept)
        self._out.push(self._references.put(numbers))


def _tears_escape(block: bytes) -> bool:
    """Whether ``block`` ends between the two bytes of an escape."""
    return (len(block) - len(block.rstrip(b"\\"))) % 2 == 1


def _check_numbers(text: bytes) -> None:
    if len(text) > MAX_NUMBER:
        words = text.translate(_BLANK_ALL_BUT_NUMBERS).split()
        if any(len(word) > MAX_NUMBER for word in words):
            raise LimitError(f"a number of more than {MAX_NUMBER:,} characters")


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
        raise FormatError(f"not a JSON string: {quote(token)}") from error
    if _SURROGATE.search(text) is not None:
        raise FormatError(f"a lone surrogate in the string {quote(token)}")
