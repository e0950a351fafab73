"""Moves the long parts of a JSON text to a file, before a parser sees the text.

Arrays of numbers and long strings are 99.9 % of a checkpoint in JSON. They go into a scratch file,
piece by piece. The text that ijson gets has a short string in their place, a reference. ``NaN`` and
the infinities become references, too: Python writes them bare, and JSON does not know them.

The remaining text is also checked: the length of numbers and strings, surrogates, the total size.
So the parser gets little text, and no text that parsers read in different ways.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from ..errors import FormatError, IncompleteCheckpointError, JsonckptError, LimitError, quote
from .number_array import MAX_RANK, ArrayParser, Scan
from .scratch import Numbers, Ragged, References, Scratch, Stretch, Text

#: Members that hold the values of a tensor. Arrays in them are lifted even if they are short.
PAYLOAD_KEYS = frozenset(
    {b'"data"', b'"values"', b'"__ndarray__"', b'"__tensor__"', b'"__torch_tensor__"'}
)
#: Bytes read at once.
BLOCK = 4 << 20
#: Bytes of numbers parsed at once.
WINDOW = 1 << 20
#: Shorter strings, and shorter arrays of numbers outside tensors, stay in the text.
SHORT_ARRAY = 4 << 10
SHORT_STRING = 64 << 10
#: The longest text that is kept of an array, in case that it is no array of numbers after all.
MAX_CONSUMED = 16 << 20
#: How often the items of an array are tried for themselves, one inside the other.
MAX_RETRIES = 4
#: Text without strings is passed on in pieces of this size: each number in it becomes an object.
PLAIN_PIECE = 64 << 10
MAX_NUMBER = 1000
MAX_SKELETON = 64 << 20
#: The hint when lists outside tensors are too long.
DROP_HINT = (
    "Remove the long lists that are no tensors from the file, for example by jq 'del(.history)'."
)
_SPECIAL = re.compile(rb'["\[]')
_BACKSLASH = ord("\\")
_OPEN, _CLOSE = b"[]"
#: Short strings without escapes, and the text before each. It does not match keys of arrays,
#: brackets, and bytes that need more checks.
_SHORT_STRINGS = re.compile(
    rb'(?:[^"\[NI\f\v]{0,4000}"[^"\\]{0,64}"'
    rb"(?=[ \t\r\n]*[,\]}]|[ \t\r\n]*:[ \t\r\n]*[^ \t\r\n\[])){1,500}"
)
#: Bytes searched at once for the end of a string.
_STRING_BLOCK = 64 << 10
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_BRACKETS = re.compile(rb"\[[ \t\r\n\[]{0,256}")
#: Arrays so short that lifting them takes longer than parsing them.
_TINY_ARRAY = re.compile(rb"\[[-+0-9.EINa-z, \t\r\n\[\]]{0,64}\]")
_STARTS_NUMBER = frozenset(b"-0123456789NItf]")
_NOT_FINITE = re.compile(rb"-?Infinity|NaN")
#: All bytes except those that end a number or a word.
_NOT_SEPARATORS = bytes(byte for byte in range(256) if byte not in b" \t\r\n,:{}]")
_BLANK_ALL_BUT_NUMBERS = bytes(byte if byte in b"-+.0123456789eE" else 0x20 for byte in range(256))
_SURROGATE = re.compile("[\ud800-\udfff]")


class ByteSource(Protocol):
    """Where a text is read from."""

    def read(self, size: int, /) -> bytes: ...


class _Reader:
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
            if _tears_escape(block):
                block = self.buffer[start : start + len(block) + 1]
            plain = block.replace(b"\\\\", b"__").replace(b'\\"', b"__")
            end = plain.find(b'"')
            if end >= 0:
                return start + end
            start += len(block)
        return -1


class _Output:
    """Collects text and passes it on in larger pieces."""

    def __init__(self, emit: Callable[[bytes], None]) -> None:
        self._emit = emit
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

    def flush(self) -> None:
        """Pass on the pending text. So finished tensors are made and release their stretches."""
        text = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        if text:
            self._emit(text)


class Lifter:
    """Reads a JSON text and passes it on without its long parts.

    Args:
        source: the text.
        scratch: gets the long parts.
        references: gets the references to them.
        emit: gets the remaining text, in pieces.
        advance: gets the number of bytes of each block that was read.
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
        #: Where the text ends that was read again, and how often that was done inside of it.
        self._retried_upto = 0
        self._retries = 0

    def run(self) -> None:
        """Read to the end.

        Raises:
            FormatError, LimitError, IncompleteCheckpointError: the text is refused. The message
                gives the position in it.
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
        """Handle one string, one array, or the text before it. False at the end."""
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
        """Pass on the rest of the buffer, except a number that may continue after it."""
        text = self._in
        if text.ended:
            self._plain(text.take(text.left()))
            return False
        rest = text.buffer[text.position :]
        self._plain(text.take(len(rest.rstrip(_NOT_SEPARATORS))))
        if text.left() > MAX_NUMBER:
            raise LimitError(f"a number of more than {MAX_NUMBER:,} characters")
        text.fill(text.left() + 1)
        return True

    def _plain(self, text: bytes) -> None:
        """Pass on text without strings."""
        _check_numbers(text)
        if b"\f" in text or b"\v" in text:  # yajl takes them for blanks
            raise FormatError("a form feed or vertical tab between values")
        if b"N" in text or b"I" in text:
            text = _NOT_FINITE.sub(lambda match: self._references.put_word(match[0]), text)
        self._out.push(text)

    def _string(self) -> None:
        """Handle the string at the position. If it is a key, also its colon and an array."""
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
        head = text.buffer[text.position : text.position + 256].decode("ascii", "replace")
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
        """Handle the array at the position. Lift it if it is a long array of numbers."""
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
        # A small window at first: many short arrays may follow.
        size = SHORT_ARRAY
        while True:
            window, bounded = text.window(size)
            scan = parser.scan(window)
            if scan.end is not None or bounded or size >= WINDOW:
                break
            size *= 4
        if scan.end is None and bounded:
            # There are strings or objects among the numbers. ijson parses them.
            self._plain(text.take(len(window)))
            return
        if scan.end is None and (deep := scan.open_throughout()):
            # The first item is long. So are the others, and each is lifted for itself.
            self._out.push(text.take(_end_of_bracket(brackets[0], deep)))
            return
        short = scan.end is not None and (scan.end <= SHORT_ARRAY or b"null" in window[: scan.end])
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
        """Lift the array at the position. If it is no array of numbers, pass its text on."""
        text, consumed = self._in, self._scratch.consumed
        begin = text.start + text.position
        values_start = self._scratch.tell()
        start = values_start if kept is None else kept.offset
        consumed.cut(0)
        bounded, items = False, 1
        while True:
            items += scan.items()
            try:
                if bounded and scan.end is None:
                    raise FormatError("a string or an object among the numbers of a long array")
                taken = parser.feed(window, scan)
                shape = parser.shape() if scan.end is not None else ()
            except (FormatError, LimitError) as error:
                self._scratch.cut(start)
                length = _whole_values(window, scan, bounded)
                self._pass_on(begin, length, items, error)
                return
            text.position += taken
            if scan.end is not None:
                break
            if text.ended and text.left() <= len(window) - taken:
                raise IncompleteCheckpointError("the text ends within an array")
            if taken == 0:
                raise LimitError(f"a number of more than {WINDOW:,} characters")
            if text.start + text.position - begin <= MAX_CONSUMED:
                consumed.write(memoryview(window)[:taken])
            text.fill(WINDOW)
            window, bounded = text.window(WINDOW)
            scan = parser.scan(window)
        held = self._scratch.hold(start)
        values = Stretch(values_start, held.offset + held.length - values_start)
        numbers = Numbers((values,), tuple(parser.runs), shape, kept)
        self._out.push(self._references.put(numbers))

    def _pass_on(self, begin: int, length: int, items: int, error: JsonckptError) -> None:
        """Pass on an array that is no array of numbers.

        Its items are lifted if they are long: a list of tensors of unequal shapes is common.

        Args:
            begin: where the array begins in the whole text.
            length: the bytes after the position that are known to belong to it.
            items: the number of items in them.
            error: why it is none.
        """
        text, consumed = self._in, self._scratch.consumed
        before = text.start + text.position - begin
        if before != consumed.tell():
            raise LimitError(
                f"{error.message}, in a list of more than {MAX_CONSUMED:,} bytes", hint=DROP_HINT
            ) from error
        text.unread(consumed.read(0, before))
        length += before
        self._retries = self._retries + 1 if begin < self._retried_upto else 1
        self._retried_upto = max(self._retried_upto, begin + length)
        if length > items * SHORT_ARRAY and self._retries <= MAX_RETRIES:
            self._out.push(text.take(1))
            return
        if not self._ragged():
            self._pass_plain(length)

    def _ragged(self) -> bool:
        """Lift the text of the list at the position. False if there is more than numbers in it."""
        text, depth, start = self._in, 0, self._scratch.tell()
        while True:
            text.fill(WINDOW)
            window, bounded = text.window(WINDOW)
            scan = ArrayParser(self._scratch.write, _depth=depth).scan(window)
            length = _whole_values(window, scan, bounded)
            wrong = (bounded and scan.end is None) or int(scan.depth.max(initial=0)) > MAX_RANK
            written = self._scratch.tell() - start
            if wrong or length == 0:
                self._scratch.cut(start)
                text.unread(self._scratch.read(start, written))
                return False
            if written + length > MAX_CONSUMED:
                raise LimitError(
                    f"a list with rows of unequal length, of more than {MAX_CONSUMED:,} bytes",
                    hint=DROP_HINT,
                )
            _check_numbers(window[:length])
            self._scratch.write(memoryview(window)[:length])
            text.take(length)
            if scan.end is not None:
                self._out.push(self._references.put(Ragged(self._scratch.hold(start))))
                return True
            depth = int(scan.depth[np.flatnonzero(scan.structure == ord(","))[-1]])

    def _pass_plain(self, length: int) -> None:
        """Pass on so many bytes, which end after a comma, a bracket or before a string."""
        text = self._in
        while length > 0:
            piece = text.buffer[text.position : text.position + min(length, PLAIN_PIECE)]
            if len(piece) < length:
                piece = piece[: piece.rfind(b",") + 1] or piece
            self._plain(text.take(len(piece)))
            length -= len(piece)


def _whole_values(window: bytes, scan: Scan, bounded: bool) -> int:
    """The length of the part of ``window`` that does not end within a number."""
    if scan.end is not None or bounded:
        return scan.end or len(window)
    return window.rfind(b",") + 1


def _end_of_bracket(text: bytes, nth: int) -> int:
    """The position after the ``nth`` bracket that opens."""
    position = 0
    for _ in range(nth):
        position = text.index(b"[", position) + 1
    return position


def _tears_escape(block: bytes) -> bool:
    """True if ``block`` ends between the two bytes of an escape."""
    return (len(block) - len(block.rstrip(b"\\"))) % 2 == 1


def _check_numbers(text: bytes) -> None:
    if len(text) > MAX_NUMBER:
        words = text.translate(_BLANK_ALL_BUT_NUMBERS).split()
        if any(len(word) > MAX_NUMBER for word in words):
            raise LimitError(f"a number of more than {MAX_NUMBER:,} characters")


def _length_of_array(text: bytes, payload: bool) -> int:
    """The length up to the bracket that closes the first one.

    0 if none does, or if it holds no number: :class:`ArrayParser` finds the shape of such a tensor.
    """
    depth = 0
    for position, byte in enumerate(text):
        if byte == _OPEN:
            depth += 1
        elif byte == _CLOSE:
            depth -= 1
            if depth == 0:
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
