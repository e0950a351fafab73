"""One record's own text, read: its head, the places of its payloads, its tail (format section 3.2).

ijson reads it, after a guard: its C backend crashes on integers of over 4,300 digits and replaces
lone surrogates. Where the manifest has said what a record must say, its text is first compared,
byte by byte, with what a writer makes of that; equal text needs no parser, any other goes to ijson.

Pure: bytes in, facts out.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ijson

from ..errors import DAMAGED, FormatError, IntegrityError, JsonckptError, LimitError, quote
from .checksums import ALGORITHMS, hexdigest
from .dtypes import DTYPES
from .limits import Limits, exceeds, way_over
from .model import PLAIN, Codec, Entry, Layout, chunk_count, element_count, identity_lines
from .shard_text import record_head, record_tail
from .validation import check_chunking, check_requires, is_hex, parse_codec, parse_identity


@dataclass(frozen=True, slots=True)
class Header:
    """What a record says before its data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    codec: Codec
    nbytes: int
    layout: Layout = PLAIN

    @property
    def chunks(self) -> int:
        """How many chunks follow."""
        return chunk_count(self.nbytes, self.codec.chunk_bytes)


@dataclass(frozen=True, slots=True)
class Record:
    """A whole record: its header, its range in the text, its payloads' ranges and checksums."""

    header: Header
    offset: int
    length: int
    chunks: tuple[tuple[int, int, str], ...]


def parse_header(found: dict[str, Any], limits: Limits) -> Header:
    """What the members of a record before its data say, checked.

    Raises:
        FormatError, LimitError, UnsupportedVersionError: they do not make sense together, are over
            a limit, or ask for a feature that is not known.
    """
    check_requires(found.get("requires", []))
    name, dtype, shape, device, layout = parse_identity(found, limits)
    codec = parse_codec(found, limits)
    if isinstance(codec, str):
        if "over the limit" in codec:
            raise LimitError(codec, tensor=name, hint=way_over("chunk_bytes"))
        raise FormatError(codec, tensor=name)
    nbytes = element_count(shape) * DTYPES[dtype].itemsize
    check_chunking(dtype, shape, codec, chunk_count(nbytes, codec.chunk_bytes))
    return Header(name, dtype, shape, device, codec, nbytes, layout)


class RecordParser:
    """Reads records, one after the other: :meth:`head`, :meth:`chunk` for each line, :meth:`tail`.

    Args:
        limits: what is too large.
        on_header: called when a head has been read, before the payloads.
        expected: what the manifest says of the records, in order, when it has been read before.

    Attributes:
        algorithm: the checksum in use; to be set before the first tail.
        header: of the record that is open.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        on_header: Callable[[Header], None] | None,
        expected: Sequence[Entry],
    ) -> None:
        self.algorithm: str | None = None
        self.header: Header | None = None
        self.max_depth = limits.depth or 1_000
        self._limits = limits
        self._on_header = on_header
        self._expected = expected
        self._entry: Entry | None = None
        self._count = 0
        self._parsed = 0
        self._sums: list[str] | None = None
        # ijson's C objects are unknown to the garbage collector: held from there, a reader would
        # never be freed.
        events = _assemble(cast("RecordParser", weakref.proxy(self)))
        next(events)
        self._parser = ijson.basic_parse_coro(events)
        self._send(b"[")

    def head(self, line: bytes) -> Header:
        """Read the line that begins a record.

        Raises:
            FormatError, LimitError: what it breaks.
        """
        if self._count < len(self._expected):
            entry = self._expected[self._count]
            head = _head_of(entry)
            if line == head:
                self._entry = entry
                header = Header(
                    entry.name,
                    entry.dtype,
                    entry.shape,
                    entry.device,
                    entry.codec,
                    entry.nbytes,
                    entry.layout,
                )
                self.header = header
                if self._on_header is not None:
                    self._on_header(header)
                return header
        self._entry = None
        return self._parse_head(line)

    def chunk(self, line: bytes) -> None:
        """Take the line that a payload was lifted out of."""
        if self._entry is None:
            self._send(line)

    def tail(self, body: bytes) -> list[str]:
        """Read the text that ends a record; return the checksums of its chunks.

        Raises:
            FormatError: what it breaks.
            IntegrityError: it does not match its digest.
        """
        header = self.header
        assert header is not None
        assert self.algorithm is not None
        entry = self._entry
        if entry is not None:
            sums = [checksum for _, _, checksum in entry.chunks]
            digest = self._digest(header, sums)
            if body == record_tail(self.algorithm, sums, digest):
                self._entry = self.header = None
                self._count += 1
                return sums
            self._catch_up(entry)
        guard(body)
        self._sums = None
        self._send(body)
        # ijson calls back while it parses, which mypy cannot know.
        found = cast("list[str] | None", self._sums)
        if self.header is not None or found is None:
            raise FormatError("the end of a record must stand on one line", tensor=header.name)
        self._count += 1
        return found

    def finish(self) -> None:
        """There are no more records."""
        self._send(b"]")
        self._send(None)

    def _parse_head(self, line: bytes) -> Header:
        guard(line)
        self.header = None
        parsed = self._parsed
        self._send(b"," + line if parsed else line)
        if self.header is None or self._parsed != parsed:
            raise FormatError('the head of a record must end in its member "chunks"')
        return self.header

    def _catch_up(self, entry: Entry) -> None:
        """Let ijson see a record whose head was as expected, and whose tail is not."""
        line = _head_of(entry)
        on_header, self._on_header = self._on_header, None
        header = self._parse_head(line)
        self._on_header = on_header
        if header.chunks:  # ijson takes empty text for the end
            empty = b"[]" if header.codec.encoding == "list" else b'""'
            self._send(b",".join([empty] * header.chunks))

    def _send(self, text: bytes | None) -> None:
        try:
            if text is None:
                self._parser.close()
            else:
                self._parser.send(text)
        except JsonckptError:
            raise
        except (ijson.JSONError, ValueError, ArithmeticError, SystemError) as error:
            # The C backend raises SystemError, the one in Python what json and codecs raise.
            tensor = self.header.name if self.header is not None else None
            raise FormatError(f"broken JSON: {quote(str(error))}", tensor=tensor) from error

    def _digest(self, header: Header, sums: Sequence[str]) -> str:
        assert self.algorithm is not None
        lines = identity_lines(
            header.name, header.dtype, header.shape, header.device, header.codec, sums
        )
        return hexdigest(self.algorithm, lines)

    # --- what ijson's events lead to ---------------------------------------------------------

    def open(self, found: dict[str, Any]) -> Header:
        """The members before a record's data are known."""
        self.header = header = parse_header(found, self._limits)
        if exceeds(header.chunks, self._limits.chunks):
            raise LimitError(
                f"{header.chunks} chunks, the limit is {self._limits.chunks}",
                tensor=header.name,
                hint=way_over("chunks"),
            )
        if self._on_header is not None:
            self._on_header(header)
        return header

    def close(self, header: Header, found: dict[str, Any]) -> None:
        """All members of a record are known."""
        check_requires(found.get("requires", []))
        algorithm = self.algorithm
        present = [name for name in ALGORITHMS if name in found]
        if algorithm is None or present != [algorithm]:
            raise FormatError(
                f"expected the checksums {quote(algorithm)}, found {quote(present)}",
                tensor=header.name,
            )
        sums, digits = found[algorithm], ALGORITHMS[algorithm].digits
        if (
            not isinstance(sums, list)
            or len(sums) != header.chunks
            or not all(is_hex(item, digits) for item in sums)
        ):
            raise FormatError(
                f"{algorithm} must be an array of {header.chunks} checksums", tensor=header.name
            )
        digest = self._digest(header, sums)
        if found.get("digest") != digest:
            raise IntegrityError(
                f"the record does not match its digest (expected {quote(found.get('digest'))}, "
                f"found {digest!r})",
                tensor=header.name,
                hint=DAMAGED,
            )
        self._sums = sums
        self._parsed += 1
        self.header = None


def _head_of(entry: Entry) -> bytes:
    return record_head(
        entry.name, entry.dtype, entry.shape, entry.device, entry.codec, entry.layout
    )


def _assemble(reader: RecordParser) -> Generator[None, tuple[str, Any], None]:
    """What ijson's events mean: a coroutine that they are pushed into."""
    yield  # the array that the records are read in
    while True:
        event, _ = yield
        if event != "start_map":
            break
        yield from _record(reader)
    while True:
        yield


def _record(reader: RecordParser) -> Generator[None, tuple[str, Any], None]:
    found: dict[str, Any] = {}
    header: Header | None = None
    while True:
        event, key = yield
        if event == "end_map":
            break
        if key in found:
            raise FormatError(f"the member {quote(key)} stands twice")
        event, value = yield
        if key == "chunks" and event == "start_array":
            header = reader.open(found)
            found[key] = None
            yield from _lifted(header)
        elif event in ("start_map", "start_array"):
            found[key] = yield from _shallow(event, reader.max_depth)
        else:
            found[key] = value
    if header is None:
        raise FormatError("a record without chunks")
    reader.close(header, found)


def _lifted(header: Header) -> Generator[None, tuple[str, Any], None]:
    """The chunks of a record, from which the payloads were lifted out."""
    for _ in range(header.chunks):
        event, value = yield
        if header.codec.encoding == "list":
            closing, _ = yield
            if (event, closing) != ("start_array", "end_array"):
                raise FormatError("expected an array for each chunk", tensor=header.name)
        elif (event, value) != ("string", ""):
            raise FormatError("expected a string for each chunk", tensor=header.name)
    event, _ = yield
    if event != "end_array":
        raise FormatError(f"over {header.chunks} chunks", tensor=header.name)


def _shallow(opening: str, max_depth: int) -> Generator[None, tuple[str, Any], Any]:
    """An array of scalars as a list; anything deeper (an unknown member) is passed over."""
    items: list[Any] = []
    names: list[set[str]] = [set()]
    deep = opening == "start_map"
    while names:
        event, value = yield
        if event in ("start_map", "start_array"):
            names.append(set())
            deep = True
            if len(names) > max_depth:
                raise LimitError(
                    f"a record is nested deeper than {max_depth} levels", hint=way_over("depth")
                )
        elif event in ("end_map", "end_array"):
            names.pop()
        elif event == "map_key":
            if value in names[-1]:
                raise FormatError(f"the member {quote(value)} stands twice")
            names[-1].add(value)
        elif not deep:
            items.append(value)
    return None if deep else items


#: Longer than any number or name that the format allows, shorter than what crashes ijson.
_DIGIT_RUN = 1_100
_STRIDE = 1_000
#: All below U+0020 but the white space that JSON has.
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r"))
_DIGITS = re.compile(rb"[0-9]*")
#: ijson's backend in Python takes +1 for a number.
_PLUS = re.compile(rb"(?<![eE])\+")
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


def guard(text: bytes) -> None:
    """Refuse what ijson must not see. ``text`` is whole lines.

    Raises:
        FormatError: invalid UTF-8, a control character, an endless run of digits, a lone surrogate.
    """
    if len(text.translate(None, _CONTROLS)) != len(text):
        raise FormatError("a control character, which JSON must not have")
    try:
        text.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"invalid UTF-8: {error.reason} at byte {error.start} of a line"
        ) from error
    # A run of that many digits covers a multiple of the stride: look only there.
    for place in range(_STRIDE - 1, len(text), _STRIDE):
        if 48 <= text[place] <= 57:
            after = _DIGITS.match(text, place)
            assert after is not None
            before = text[max(0, place - _DIGIT_RUN) : place]
            digits = len(after[0]) + len(before) - len(before.rstrip(b"0123456789"))
            if digits >= _DIGIT_RUN:
                raise FormatError(f"a run of over {_DIGIT_RUN} digits")
    if b"\\u" in text:
        _check_escapes(text)
    if b"+" in text and _PLUS.search(_outside_strings(text)):
        raise FormatError("a plus sign before a number, which JSON must not have")


def _outside_strings(text: bytes) -> bytes:
    """What stands between the strings, in time that grows with the length alone.

    A pattern for strings would look for the end of one at every quote, where none ends. Between
    strings no backslash is JSON: what that does to the quotes behind it, ijson refuses anyway.
    """
    plain = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    return b'"'.join(plain.split(b'"')[::2])


def _check_escapes(text: bytes) -> None:
    high_end = -1
    for match in _ESCAPE.finditer(text):
        unit = int(match[1], 16) if match[1] else 0
        if high_end >= 0:
            if not (match.start() == high_end and 0xDC00 <= unit <= 0xDFFF):
                break
            high_end = -1
        elif 0xD800 <= unit <= 0xDBFF:
            high_end = match.end()
        elif 0xDC00 <= unit <= 0xDFFF:
            high_end = 0
            break
    if high_end >= 0:
        raise FormatError("a lone surrogate escape")
