"""Lifts arrays of numbers out of a text. An array that turns out to be none is passed on."""

from __future__ import annotations

import re

import numpy as np

from ..errors import FormatError, IncompleteCheckpointError, JsonckptError, LimitError
from .number_array import MAX_RANK, ArrayParser, Scan
from .scratch import Numbers, Ragged, References, Scratch, Stretch
from .text_reader import DROP_HINT, Output, Reader, check_numbers

#: Members that hold the values of a tensor. Arrays in them are lifted even if they are short.
PAYLOAD_KEYS = frozenset(
    {b'"data"', b'"values"', b'"__ndarray__"', b'"__tensor__"', b'"__torch_tensor__"'}
)
#: Bytes of numbers parsed at once.
WINDOW = 1 << 20
#: Shorter arrays of numbers outside tensors stay in the text.
SHORT_ARRAY = 4 << 10
#: The longest text that is kept of an array, in case that it is no array of numbers after all.
MAX_CONSUMED = 16 << 20
#: How often the items of an array are tried for themselves, one inside the other.
MAX_RETRIES = 4
#: Text without strings is passed on in pieces of this size: each number in it becomes an object.
PLAIN_PIECE = 64 << 10
_OPEN, _CLOSE = b"[]"
_BRACKETS = re.compile(rb"\[[ \t\r\n\[]{0,256}")
#: Arrays so short that lifting them takes longer than parsing them.
_TINY_ARRAY = re.compile(rb"\[[-+0-9.EINa-z, \t\r\n\[\]]{0,64}\]")
_STARTS_NUMBER = frozenset(b"-0123456789NItf]")


class ArrayLifter:
    """Handles the arrays of a text.

    Args:
        text: the text, which is at an array whenever :meth:`lift` is called.
        out: gets what is not lifted.
        scratch: gets the values.
        references: gets the references to them.
    """

    def __init__(self, text: Reader, out: Output, scratch: Scratch, references: References) -> None:
        self._in = text
        self._out = out
        self._scratch = scratch
        self._references = references
        #: Where the text ends that was read again, and how often that was done inside of it.
        self._retried_upto = 0
        self._retries = 0

    def lift(self, key: bytes | None) -> None:
        """Handle the array at the position. Lift it if it is a long array of numbers.

        Args:
            key: the string before it with its quotes, if it is a member of an object.
        """
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
            self._out.plain(text.take(length))
            return
        window, bounded = text.window(SHORT_ARRAY)
        if not payload and bounded:
            self._out.plain(text.take(len(window)))
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
            self._out.plain(text.take(len(window)))
            return
        if scan.end is None and (deep := scan.open_throughout()):
            # The first item is long. So are the others, and each is lifted for itself.
            self._out.push(
                text.take(_end_of_bracket(brackets[0], min(deep, brackets[0].count(_OPEN))))
            )
            return
        short = scan.end is not None and (scan.end <= SHORT_ARRAY or b"null" in window[: scan.end])
        if not payload and scan.end is not None and short:
            self._out.plain(text.take(scan.end))
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
            check_numbers(window[:length])
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
            self._out.plain(text.take(len(piece)))
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
