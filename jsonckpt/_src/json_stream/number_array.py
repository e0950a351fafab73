"""Parses long arrays of numbers in JSON text, piece by piece, to binary values and a shape.

A parser that makes one value at a time reads some 25 MB of such text in a second. This one cuts
the text at commas, into pieces of about 1 MiB, and simdjson parses each piece at once. simdjson
does not see the array as a whole. So the lengths of the rows and the depth of the numbers are
checked here, from the brackets and commas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from ..errors import FormatError, LimitError, quote

#: The kind of numbers. ``"wide"`` are whole numbers that neither int64 nor uint64 holds.
Kind = Literal["int", "uint", "wide", "float", "bool"]
MAX_RANK = 64
#: The binary form of values of each kind, 8 bytes each.
BINARY: dict[Kind, type[np.generic]] = {
    "int": np.int64,
    "uint": np.uint64,
    "wide": np.float64,
    "float": np.float64,
    "bool": np.int64,
}
#: All bytes except brackets and commas, for ``bytes.translate`` to delete.
_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b"[],")
_OPEN, _CLOSE, _COMMA = b"[],"
_STEP = np.zeros(256, np.int8)
_STEP[_OPEN], _STEP[_CLOSE] = 1, -1
_WORDS = re.compile(rb"NaN|-?Infinity|true|false")
_VALUE_OF_WORD = {
    b"NaN": float("nan"),
    b"Infinity": float("inf"),
    b"-Infinity": float("-inf"),
    b"true": 1.0,
    b"false": 0.0,
}
_INITIALS = (b"N", b"I", b"t", b"f")


@dataclass(slots=True)
class Run:
    """``count`` values of the same kind, one after the other."""

    kind: Kind
    count: int


@dataclass(frozen=True, slots=True)
class Scan:
    """The brackets and commas of a piece of text, up to the end of the array.

    Attributes:
        end: the position after the bracket that closes the array, or ``None``.
        structure: the brackets and commas, in order.
        depth: the number of open brackets after each of them.
    """

    end: int | None
    structure: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.int32]

    def items(self) -> int:
        """The number of items of the outermost array that a comma ends in the piece."""
        return int(np.count_nonzero((self.structure == _COMMA) & (self.depth == 1)))

    def open_throughout(self) -> int:
        """How many of the outermost arrays have only one item so far, if the array begins here."""
        opening = self.structure == _OPEN
        run = len(opening) if opening.all() else int(np.argmin(opening))
        return max(0, int(self.depth[run - 1 :].min()) - 1)


@dataclass(slots=True)
class _Level:
    """The arrays at one depth.

    Attributes:
        opened: the number of arrays so far.
        commas: the number of commas in each, once one has closed.
        pending: the number of commas so far in the array that is open.
    """

    opened: int = 0
    commas: int | None = None
    pending: int = 0


@dataclass(slots=True)
class ArrayParser:
    """Parses the text of one array of numbers, nested or flat.

    Args:
        write: gets the values, 8 bytes each in native byte order.

    Attributes:
        runs: the kinds of the values, in order.
        count: the number of values so far.
    """

    write: Callable[[memoryview], None]
    runs: list[Run] = field(default_factory=list)
    count: int = 0
    _depth: int = 0
    _rank: int = 0
    _levels: list[_Level] = field(default_factory=lambda: [_Level() for _ in range(MAX_RANK + 1)])
    _simd: simdjson.Parser = field(default_factory=simdjson.Parser)

    def scan(self, text: bytes) -> Scan:
        """Find the end of the array in ``text``, which continues the last piece."""
        structure = np.frombuffer(text.translate(None, _NOT_STRUCTURE), np.uint8)
        depth = self._depth + np.cumsum(_STEP[structure], dtype=np.int32)
        closed = np.flatnonzero(depth <= 0)
        if not len(closed):
            return Scan(None, structure, depth)
        last = int(closed[0]) + 1
        nth = int(np.count_nonzero(structure[:last] == _CLOSE))
        brackets = np.flatnonzero(np.frombuffer(text, np.uint8) == _CLOSE)
        return Scan(int(brackets[nth - 1]) + 1, structure[:last], depth[:last])

    def feed(self, text: bytes, scan: Scan) -> int:
        """Parse ``text`` up to the end of the array, or else up to the last comma.

        Args:
            text: continues the last piece.
            scan: the result of :meth:`scan` for it.

        Returns:
            The number of bytes that were parsed. 0 if there is no comma.

        Raises:
            FormatError: not an array of numbers with rows of equal length.
            LimitError: nested deeper than 64.
        """
        before = self._depth
        end, structure, depth = scan.end, scan.structure, scan.depth
        if end is None:
            end = text.rfind(b",") + 1
            if end == 0:
                return 0
            last = int(np.flatnonzero(structure == _COMMA)[-1]) + 1
            structure, depth = structure[:last], depth[:last]
        self._check_rows(structure, depth)
        body = text[:end].strip(b" \t\r\n")
        # simdjson does not see a comma before "]" if the cut is between the two.
        if before and body[:1] == b"]":
            raise FormatError("a comma before ']' in an array of numbers")
        if self._depth:
            body = body[:-1]
        kind, array = self._parse(b"[" * before + body + b"]" * self._depth)
        self.count += len(array)
        if len(array):
            self.write(array.data.cast("B"))
            if self.runs and self.runs[-1].kind == kind:
                self.runs[-1].count += len(array)
            else:
                self.runs.append(Run(kind, len(array)))
        return end

    def shape(self) -> tuple[int, ...]:
        """The shape of the array, after the last piece.

        Raises:
            FormatError: rows of unequal length, or numbers at unequal depth.
        """
        levels = self._levels[1 : self._rank + 1]
        shape = [(level.commas or 0) + 1 for level in levels]
        arrays = 1
        for depth, level in enumerate(levels):
            if level.opened != arrays:
                # Some rows hold numbers where others hold arrays: [1, [2]].
                raise FormatError("an array of numbers with rows of unequal depth")
            arrays *= shape[depth]
        if self.count == 0 and shape[-1] == 1:  # only brackets: [[], []] or []
            return (*shape[:-1], 0)
        if self.count != arrays:
            raise FormatError(
                f"rows of unequal length: {self.count:,} numbers where the brackets say {arrays:,}"
            )
        return tuple(shape)

    def _check_rows(self, structure: npt.NDArray[np.uint8], depth: npt.NDArray[np.int32]) -> None:
        deepest = max(self._depth, int(depth.max()))
        if deepest > MAX_RANK:
            raise LimitError(f"an array of numbers nested deeper than {MAX_RANK}")
        self._rank = max(self._rank, deepest)
        commas = structure == _COMMA
        opens = structure == _OPEN
        closes = structure == _CLOSE
        for number in range(1, deepest + 1):
            self._check_level(
                self._levels[number],
                commas & (depth == number),
                int(np.count_nonzero(opens & (depth == number))),
                closes & (depth == number - 1),
            )
        self._depth = int(depth[-1])

    @staticmethod
    def _check_level(
        level: _Level, commas: npt.NDArray[np.bool_], opened: int, closes: npt.NDArray[np.bool_]
    ) -> None:
        level.opened += opened
        ends = np.flatnonzero(closes)
        total = int(np.count_nonzero(commas))
        if not len(ends):
            level.pending += total
            return
        running = np.cumsum(commas)[ends]
        counts = np.diff(running, prepend=0)
        counts[0] += level.pending
        if level.commas is None:
            level.commas = int(counts[0])
        if not bool((counts == level.commas).all()):
            wrong = int(counts[counts != level.commas][0])
            raise FormatError(f"rows of unequal length: {level.commas + 1} and {wrong + 1} items")
        level.pending = total - int(running[-1])

    def _parse(self, text: bytes) -> tuple[Kind, npt.NDArray[np.generic]]:
        if any(initial in text for initial in _INITIALS):
            return self._parse_words(text)
        if b"n" in text:
            raise null_error()
        return self._parse_numbers(text)

    def _parse_words(self, text: bytes) -> tuple[Kind, npt.NDArray[np.generic]]:
        """Parse numbers with NaN and infinities among them, or true and false."""
        found = list(_WORDS.finditer(text))
        # The blanks keep "1NaN" from becoming the number 10.
        kind, values = self._parse_numbers(_WORDS.sub(b" 0 ", text))
        commas = np.flatnonzero(np.frombuffer(text, np.uint8) == _COMMA)
        places = np.searchsorted(commas, [match.start() for match in found])
        if any(match[0] in (b"true", b"false") for match in found):
            words = {match[0] for match in found}
            if len(found) != len(values) or not words <= {b"true", b"false"}:
                raise FormatError("true or false among numbers")
            kind = "bool"
        else:
            kind, values = "float", values.astype(np.float64)
        if len(places) and int(places[-1]) >= len(values):
            raise FormatError("empty rows among numbers")
        values = values.copy()
        values[places] = [_VALUE_OF_WORD[match[0]] for match in found]
        return kind, values

    def _parse_numbers(self, text: bytes) -> tuple[Kind, npt.NDArray[np.generic]]:
        order: tuple[tuple[Kind, Any], ...] = (("int", "i"), ("uint", "u"), ("float", "d"))
        try:
            document: Any = self._simd.parse(text)
            for kind, code in order[2:] if b"." in text else order:
                with suppress(TypeError, ValueError):  # the numbers do not fit: the next kind
                    array = np.frombuffer(document.as_buffer(of_type=code), BINARY[kind])
                    return _float_kind(text) if kind == "float" else kind, array
        except (ValueError, RuntimeError) as error:
            return _float_kind(text), _parse_wide(text, error)
        raise FormatError("something other than numbers in an array of numbers")


def _float_kind(text: bytes) -> Kind:
    """The kind of numbers that were parsed as floats. Whole ones are told from others."""
    return "float" if b"." in text or b"e" in text or b"E" in text else "wide"


def null_error() -> FormatError:
    return FormatError(
        "null among the numbers of a tensor",
        hint="The program that wrote this lost a NaN or an infinity; the value is unknown.",
    )


def _parse_wide(text: bytes, reason: Exception) -> npt.NDArray[np.float64]:
    """Parse text that simdjson refused, if it has integers of more than 64 bits.

    Raises:
        FormatError: it is not an array of numbers.
    """
    refused = quote(str(reason).split(":")[0])
    if re.search(rb"[0-9]{19}", text) is None or re.search(rb"[0-9]{1000}", text) is not None:
        raise FormatError(f"not an array of numbers ({refused})") from reason
    try:
        orjson.loads(text)
        flat = json.loads(b"[" + text.translate(None, b"[]") + b"]")
        return np.array([float(value) for value in flat], np.float64)
    except (ValueError, OverflowError) as error:
        raise FormatError(f"not an array of numbers ({refused})") from error
