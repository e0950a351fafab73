"""JSON read in pieces as they come: ijson, the guards against its traps, and the tree it fills.

This is the one place that uses ijson. Texts that are in memory whole go to :mod:`.json_text`; both
accept the same JSON. The traps, and what stands against each:

- An integer of more than 4,300 digits crashes the C backend: :func:`guard` refuses long numbers.
- Lone surrogates become ``?``, so that two names can be one; control characters between tokens and
  (in the Python backend) ``+1`` are accepted: :func:`guard` refuses them.
- ``use_float`` follows the locale: numbers come as ``Decimal`` and become floats here.
- ``items`` and ``parse`` are quadratic in depth and let a name occur twice: only ``basic_parse`` is
  used, and :class:`IncrementalReader` checks names and depth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import ijson

from ..errors import FormatError, LimitError, quote
from ..format.json_text import LONE_SURROGATE, without_escapes
from ..format.limits import Limits, exceeds, way_over
from ..format.pointer import join

#: Text that is guarded at once, and text whose events are held at once.
_STEP = 1 << 16
_INFINITE = (math.inf, -math.inf)
#: Longest integer that ijson can read.
_MOST_DIGITS = 4_300
#: All below U+0020 but the white space that JSON has.
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r"))
_NUMBER_BYTES = b"0123456789+-.eE"
_AS_DIGITS = bytes(0x30 if byte in _NUMBER_BYTES else 0x20 for byte in range(256))
_PLUS = re.compile(rb"(?<![eE])\+")


class IncrementalReader:
    """One JSON text, pushed in, as the tree of what has come so far.

    Attributes:
        open: the containers that are open, outermost first. The first is a list that holds the
            value of the whole text.
        marks: brackets and strings so far.
    """

    def __init__(self, limits: Limits) -> None:
        self.open: list[Any] = [[]]
        self.marks = 0
        self._base = 1
        self._max_marks = limits.marks
        self._max_depth = limits.depth or 1_000
        self._max_number = limits.number_chars or 1 << 20
        self._key: str | None = None
        self._events = ijson.sendable_list()
        self._parser = ijson.basic_parse_coro(self._events)

    def push(self, text: bytes) -> None:
        """Read the next whole lines.

        Raises:
            FormatError, LimitError: what they break, with the place in the tree.
        """
        for lines in _blocks(text):
            try:
                guard(lines, self._max_number)
            except (FormatError, LimitError) as error:
                error.message = self._place("behind {}: ") + error.message
                raise
            try:
                for start in range(0, len(lines), _STEP):
                    self._send(lines[start : start + _STEP])
            except (FormatError, LimitError) as error:
                error.message = self._place("at {}: ") + error.message
                raise

    def begin_elements(self) -> int:
        """Elements of the innermost list follow, one by one: depth and places count from here.

        Returns:
            how many containers are open.
        """
        self._base, self._max_marks = len(self.open), None
        return self._base

    def _send(self, text: bytes) -> None:
        try:
            self._parser.send(text)
        except (ijson.JSONError, ValueError) as error:
            self._take()
            reason = str(error).partition("\n")[0]
            raise FormatError(f"broken JSON: {quote(reason)}") from error
        except ArithmeticError as error:
            raise FormatError("a number has an exponent of over 18 digits") from error
        except SystemError as error:
            raise LimitError("a number has too many digits for this Python") from error
        self._take()

    def _take(self) -> None:
        """Put what the events say into the tree."""
        opened, container, key = self.open, self.open[-1], self._key
        in_list = type(container) is list
        unmarked = 0
        events = self._events
        try:
            for event, value in events:  # the most frequent events first
                if event == "map_key":
                    if value in container:
                        raise FormatError(f"member {quote(value)} occurs twice in one object")
                    key = value
                elif event == "string" or event == "number":
                    if event == "number":
                        unmarked += 1
                        if type(value) is not int:
                            number, value = value, float(value)
                            if value in _INFINITE:
                                raise FormatError(
                                    f"the number {quote(str(number), 40)} is too large for a float"
                                )
                    if in_list:
                        container.append(value)
                    else:
                        container[key] = value
                elif event == "start_map" or event == "start_array":
                    made: Any = {} if event == "start_map" else []
                    if in_list:
                        container.append(made)
                    else:
                        container[key] = made
                    opened.append(made)
                    container, key, in_list = made, None, event == "start_array"
                    if len(opened) - self._base > self._max_depth:
                        raise LimitError(
                            f"nested deeper than {self._max_depth} levels", hint=way_over("depth")
                        )
                elif event == "end_map" or event == "end_array":
                    opened.pop()
                    container, key = opened[-1], None
                    in_list = type(container) is list
                else:
                    unmarked += 1
                    if in_list:
                        container.append(value)
                    else:
                        container[key] = value
        finally:
            self._key = key
            self.marks += len(events) - unmarked
            events.clear()
        if exceeds(self.marks, self._max_marks):
            raise LimitError(
                f"{self.marks} brackets and strings or more, the limit is {self._max_marks}",
                hint=way_over("marks", "None"),
            )

    def _place(self, words: str) -> str:
        """The JSON Pointer of what is being read, in words; nothing at the outermost level."""
        place = ""
        for container in self.open[self._base :]:
            innermost = container is self.open[-1]
            if type(container) is list:
                place = f"{place}/{len(container) - (not innermost)}"
            elif not innermost:
                place = join(place, next(reversed(container)))
            elif self._key is not None:
                place = join(place, self._key)
        return words.format(quote(place)) if place else ""


def _blocks(text: bytes) -> Iterator[bytes]:
    """The text in blocks of whole lines, none longer than needed."""
    start = 0
    while len(text) - start > _STEP:
        stop = text.rfind(b"\n", start, start + _STEP) + 1 or text.find(b"\n", start + _STEP) + 1
        if not stop:
            break
        yield text[start:stop]
        start = stop
    yield text[start:]


def guard(text: bytes, max_number: int) -> None:
    """Refuse what ijson must not see. ``text`` is whole lines.

    Raises:
        FormatError: invalid UTF-8, a control character, a lone surrogate, a plus sign.
        LimitError: a long number.
    """
    if len(text.translate(None, _CONTROLS)) != len(text):
        raise FormatError("a control character, which JSON does not allow")
    try:
        text.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        raise FormatError(f"invalid UTF-8: {error.reason}") from error
    if b"\\u" in text and LONE_SURROGATE.search(without_escapes(text)):
        raise FormatError("a lone surrogate, which is not a character")
    least = min(max_number, _MOST_DIGITS) + 1
    if len(text) >= least and b"0" * least in text.translate(_AS_DIGITS):
        for run in re.findall(rb"[-+.0-9eE]{%d,}" % least, _outside_strings(text)):
            if len(run) > max_number:
                raise LimitError(
                    f"a number of more than {max_number} characters", hint=way_over("number_chars")
                )
            if run.strip(b"-").isdigit():
                raise LimitError("a number has too many digits for this Python")
    if b"+" in text and _PLUS.search(_outside_strings(text)):
        raise FormatError("a plus sign before a number, which JSON does not allow")


def _outside_strings(text: bytes) -> bytes:
    """What stands between the strings, in time that grows with the length alone.

    A pattern for strings would look for the end of one at every quote, where none ends. Between
    strings no backslash is JSON: what that does to the quotes behind it, ijson refuses anyway.
    """
    return b'"'.join(without_escapes(text).split(b'"')[::2])
