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
from collections.abc import Callable

from ..errors import FormatError, IncompleteCheckpointError, JsonckptError, LimitError, quote
from .lift_arrays import ArrayLifter
from .scratch import References, Scratch, Text
from .text_reader import MAX_NUMBER, ByteSource, Output, Reader, check_numbers, tears_escape

#: Shorter strings stay in the text.
SHORT_STRING = 64 << 10
_SPECIAL = re.compile(rb'["\[]')
#: Short strings without escapes, and the text before each. It does not match keys of arrays,
#: brackets, and bytes that need more checks.
_SHORT_STRINGS = re.compile(
    rb'(?:[^"\[NI\f\v]{0,4000}"[^"\\]{0,64}"'
    rb"(?=[ \t\r\n]*[,\]}]|[ \t\r\n]*:[ \t\r\n]*[^ \t\r\n\[])){1,500}"
)
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
#: All bytes except those that end a number or a word.
_NOT_SEPARATORS = bytes(byte for byte in range(256) if byte not in b" \t\r\n,:{}]")
_SURROGATE = re.compile("[\ud800-\udfff]")


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
        self._in = Reader(source, advance)
        self._scratch = scratch
        self._references = references
        self._out = Output(emit, references)
        self._arrays = ArrayLifter(self._in, self._out, scratch, references)

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
            check_numbers(run[0])
            self._out.push(text.take(len(run[0])))
            return True
        match = _SPECIAL.search(text.buffer, text.position)
        if match is None:
            return self._plain_to_end()
        self._out.plain(text.take(match.start() - text.position))
        if match[0] == b'"':
            self._string()
        else:
            self._arrays.lift(None)
        return True

    def _plain_to_end(self) -> bool:
        """Pass on the rest of the buffer, except a number that may continue after it."""
        text = self._in
        if text.ended:
            self._out.plain(text.take(text.left()))
            return False
        rest = text.buffer[text.position :]
        self._out.plain(text.take(len(rest.rstrip(_NOT_SEPARATORS))))
        if text.left() > MAX_NUMBER:
            raise LimitError(f"a number of more than {MAX_NUMBER:,} characters")
        text.fill(text.left() + 1)
        return True

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
            self._arrays.lift(token)

    def _long_string(self) -> None:
        self._out.flush()
        text = self._in
        start, escaped = self._scratch.tell(), False
        text.position += 1
        head = text.buffer[text.position : text.position + 256].decode("ascii", "replace")
        while True:
            end = text.closing_quote(text.position)
            length = (end if end >= 0 else len(text.buffer)) - text.position
            if end < 0 and tears_escape(text.buffer[text.position :]):
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


def _check_surrogates(token: bytes) -> None:
    try:
        text = json.loads(token)
    except ValueError as error:
        raise FormatError(f"not a JSON string: {quote(token)}") from error
    if _SURROGATE.search(text) is not None:
        raise FormatError(f"a lone surrogate in the string {quote(token)}")
