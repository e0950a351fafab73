"""What a shard's text says once its payloads are lifted out of it (format section 3).

Both readers push the skeleton through one :class:`SkeletonReader`, so they cannot differ in what
they
accept: the streaming reader as the text passes, the indexed one from the gaps between the byte
ranges of the index. ijson reads it; what is pushed into ijson has been guarded first, since its C
backend crashes on integers of over 4,300 digits and replaces lone surrogates.

Pure: bytes in, facts out.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, cast

import ijson

from jsonckpt import jsontext
from jsonckpt.checksums import ALGORITHMS, Hasher, hasher, hexdigest
from jsonckpt.dtypes import DTYPES
from jsonckpt.errors import (
    CUT_OFF,
    DAMAGED,
    FormatError,
    IncompleteCheckpointError,
    IntegrityError,
    JsonckptError,
    LimitError,
    quote,
)
from jsonckpt.facts import SHARD_FORMAT, Codec, chunk_count, element_count, identity_lines
from jsonckpt.grammar import TRAILER_MAX, index_row, trailer
from jsonckpt.guards import guard
from jsonckpt.limits import Limits, exceeds
from jsonckpt.validation import (
    LONGEST_LINE,
    check_chunking,
    check_header,
    check_requires,
    checksum_name,
    is_hex,
    longest_tail,
    no_checkpoint,
    parse_codec,
    parse_identity,
    reformatted,
)

__all__ = ["Header", "Record", "SkeletonReader"]

TENSORS_LINE: Final = b'"tensors":[\n'
#: Ends the head: the line feed before that line, and the line.
HEAD_END: Final = b"\n" + TENSORS_LINE
_CHUNKS_END: Final = b'"chunks":[\n'


@dataclass(frozen=True, slots=True)
class Header:
    """What a record says before its data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    codec: Codec
    nbytes: int

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


class SkeletonReader:
    """Reads one shard's skeleton, pushed in as it comes.

    Args:
        limits: what is too large.
        whole: the text is a whole file; else it is runs of records.
        algorithm: the checksum in use; must be given unless ``whole``.
        on_header: called when a record's head has been read, before its payloads.
        on_record: called when a record has been read and its digest checked.

    :meth:`text` takes the text around payloads, :meth:`payload` says that one was lifted out here.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        whole: bool,
        algorithm: str | None = None,
        on_header: Callable[[Header], None] | None = None,
        on_record: Callable[[Record], None] | None = None,
    ) -> None:
        self.head: dict[str, Any] = {}
        self.header: Header | None = None
        self.algorithm = algorithm
        self.position = 0
        self.records = 0
        self.seal = ""
        self._whole = whole
        self._limits = limits
        self._on_header = on_header
        self._on_record = on_record
        # Plain functions, for bound methods would be references to itself.
        self._handle: Callable[[SkeletonReader, bytes], None] = SkeletonReader._record_line
        self._in_head = whole
        self._skeleton: Hasher | None = None
        self._head_text = bytearray()
        self._trailer = b""
        self._line = b""
        self._line_start = 0
        self._line_end = 0
        self._record_start = 0
        self._more = True
        self._left = 0
        self._payload_noted = False
        self._ranges: list[tuple[int, int]] = []
        self._index = bytearray()
        # ijson's C objects are unknown to the garbage collector: held from there, a reader would
        # never be freed.
        events = _assemble(cast("SkeletonReader", weakref.proxy(self)))
        next(events)
        self._parser = ijson.basic_parse_coro(events)
        self._send(b"[")

    # --- what the readers call --------------------------------------------------------------

    @property
    def awaits_payload(self) -> bool:
        """Whether the next line is a chunk's."""
        return self._left > 0

    @property
    def in_head(self) -> bool:
        """Whether the first record has not been reached."""
        return self._in_head

    def longest_line(self, first: bytes) -> int:
        """How long the next line may be that is no chunk's.

        Args:
            first: its first byte.
        """
        if self.header is not None:
            return longest_tail(self.header.chunks, self.algorithm)
        if first == b"]":
            limit = self._limits.manifest_bytes
            return 1 << 62 if limit is None else limit
        return LONGEST_LINE

    def text(self, text: bytes) -> None:
        """Push the next piece of text that is not a payload.

        Raises:
            FormatError, LimitError, IntegrityError: what the text breaks.
        """
        self.position += len(text)
        if self._in_head:
            text = self._take_head(text)
        at = self.position - len(text)
        begin = 0
        while (stop := text.find(b"\n", begin) + 1) > 0:
            line = text[begin:stop]
            if self._line:
                line, self._line = self._line + line, b""
            else:
                self._line_start = at + begin
            self._line_end = at + stop
            self._handle(self, line)
            begin = stop
        if begin < len(text):
            if not self._line:
                self._line_start = at + begin
            self._line += text[begin:]
            self._check_beside(len(self._line))

    def payload(self, length: int) -> None:
        """Say that a payload of ``length`` bytes stands here.

        Raises:
            FormatError: no payload may stand here.
        """
        header = self.header
        if header is None or not self._left or self._payload_noted:
            raise FormatError("the index names a payload where the text has none")
        opening = b"[" if header.codec.encoding == "list" else b'"'
        if self._line != opening:
            raise self._misplaced(header)
        self._ranges.append((self.position, length))
        self.position += length
        self._payload_noted = True

    def begin_run(self, position: int) -> None:
        """A run of records begins at ``position`` of the file."""
        self.position = position
        self._more = True

    def end_run(self) -> None:
        """The end of a run of records: nothing may be open."""
        self.text(b"\n")  # not in the file: it completes the last line
        self.position -= 1
        if self.header is not None:
            raise FormatError(
                "the record does not end where its range ends", tensor=self.header.name
            )

    def close(self) -> None:
        """The end of the text: everything must be there and agree.

        Raises:
            IncompleteCheckpointError: the text ends too early.
            FormatError, IntegrityError: the index, the seal or the last member is wrong.
        """
        if self._whole:
            if self._in_head:
                if b"jsonckpt.shard" not in self._head_text:
                    raise no_checkpoint(self._head_text)
                if b'"index_offset"' in self._head_text[-TRAILER_MAX:]:
                    raise reformatted()
            if self._handle is not SkeletonReader._trailer_line:
                where = f" in tensor {quote(self.header.name)}" if self.header is not None else ""
                raise IncompleteCheckpointError(
                    f"the text ends after {self.position} bytes{where}",
                    hint=CUT_OFF,
                )
            self._check_trailer(self._trailer + self._line)
        self._send(b"]")
        self._send(None)

    # --- lines ------------------------------------------------------------------------------

    def _check_beside(self, length: int) -> None:
        if exceeds(length, self._limits.manifest_bytes):
            raise LimitError(
                f"over {self._limits.manifest_bytes} bytes of text beside the tensors",
                hint="Pass limits=jsonckpt.Limits(manifest_bytes=...) if it is meant.",
            )

    def _take_head(self, text: bytes) -> bytes:
        """Take what of ``text`` belongs to the head; return the rest."""
        searched = max(0, len(self._head_text) - len(HEAD_END))
        self._head_text += text
        if not b"{".startswith(self._head_text[:64].lstrip()[:1]):
            raise no_checkpoint(self._head_text)
        stop = self._head_text.find(HEAD_END, searched)
        if stop < 0:
            self._check_beside(len(self._head_text))
            return b""
        stop += len(HEAD_END)
        head, rest = bytes(self._head_text[:stop]), bytes(self._head_text[stop:])
        self._check_beside(len(head))
        self._head_text = bytearray()
        self._in_head = False
        self._open_head(head)
        return rest

    def _open_head(self, text: bytes) -> None:
        value = jsontext.parse(
            text[: -len(TENSORS_LINE)] + b'"tensors":null}',
            what="the head of the shard",
            max_depth=self._limits.depth or 1_000,
            max_number=self._limits.number_chars or 1 << 20,
        )
        head = check_header(value, SHARD_FORMAT)
        for member in ("index", "seal", "index_offset"):
            if member in head:
                raise FormatError(f"the member {member!r} stands twice, before and after the data")
        algorithm = checksum_name(head.get("checksum"))
        if self.algorithm not in (None, algorithm):
            raise FormatError(f"checksum is {algorithm!r}, the manifest says {self.algorithm!r}")
        self.head = head
        self.algorithm = algorithm
        self._skeleton = hasher(algorithm)
        self._skeleton.update(text)

    def _record_line(self, line: bytes) -> None:
        if line[:1] == b"]" and self._whole:
            if self._more and self.records:
                raise FormatError("a comma after the last record")
            self._check_beside(len(line))
            self._handle = SkeletonReader._trailer_line
            self._trailer = line
            return
        if line[:1] != b"{" or not line.endswith(_CHUNKS_END):
            raise FormatError(
                'expected the head of a record, a line from { to "chunks":[, '
                f"found {quote(line[:40])}"
            )
        if len(line) > LONGEST_LINE:
            raise LimitError(f"the head of a record has {len(line)} bytes, over {LONGEST_LINE}")
        if not self._more:
            raise FormatError("no comma between two records")
        if exceeds(self.records + 1, self._limits.tensors):
            raise LimitError(
                f"{self.records + 1} tensors or more, the limit is {self._limits.tensors}",
                hint="Pass limits=jsonckpt.Limits(tensors=...) if it is meant.",
            )
        guard(line)
        self._record_start, self._ranges = self._line_start, []
        count = self.records
        self._send(b"," + line if count else line)
        if self.header is None or self.records != count:
            raise FormatError('the head of a record must end in its member "chunks"')
        self._left = self.header.chunks
        self._next(line, SkeletonReader._chunk_line if self._left else SkeletonReader._tail_line)

    def _chunk_line(self, line: bytes) -> None:
        header = self.header
        assert header is not None
        marks = b"[]" if header.codec.encoding == "list" else b'""'
        if not self._payload_noted or line != marks + (b",\n" if self._left > 1 else b"\n"):
            raise self._misplaced(header)
        self._payload_noted = False
        self._left -= 1
        self._send(line)
        self._next(line, SkeletonReader._chunk_line if self._left else SkeletonReader._tail_line)

    def _tail_line(self, line: bytes) -> None:
        header = self.header
        assert header is not None
        longest = longest_tail(header.chunks, self.algorithm)
        if len(line) > longest:
            raise LimitError(
                f"the end of a record has {len(line)} bytes, over {longest}", tensor=header.name
            )
        body = line[:-2] if line.endswith(b"},\n") else line[:-1]
        if not body.endswith(b"}"):
            raise FormatError("the end of a record must stand on one line", tensor=header.name)
        self._more = len(body) == len(line) - 2
        self._line_end -= len(line) - len(body)
        guard(body)
        count = self.records
        self._send(body)
        if self.header is not None or self.records != count + 1:
            raise FormatError("the end of a record must stand on one line", tensor=header.name)
        self._next(line, SkeletonReader._record_line)

    def _trailer_line(self, line: bytes) -> None:
        raise FormatError(f"{quote(line)} stands after the line that ends the file")

    def _next(self, line: bytes, handle: Callable[[SkeletonReader, bytes], None]) -> None:
        if self._skeleton is not None:
            self._skeleton.update(line)
        self._handle = handle

    def _misplaced(self, header: Header) -> FormatError:
        return FormatError(
            "each chunk must stand on a line of its own, and the lines must be as many as "
            f"the shape asks for ({header.chunks})",
            tensor=header.name,
            chunk=header.chunks - self._left,
        )

    def _check_trailer(self, found: bytes) -> None:
        assert self._skeleton is not None
        assert self.algorithm is not None
        self._skeleton.update(b'],"index":[' + self._index + b"]")
        self.seal = f"{self.algorithm}:{self._skeleton.hexdigest()}"
        start = self.position - len(found)
        expected = trailer(self._index, self.seal, start)
        if found == expected:
            return
        if len(found) < len(expected) and expected.startswith(found):
            raise IncompleteCheckpointError(
                f"the text ends after {self.position} bytes, "
                f"{len(expected) - len(found)} too early",
                hint=CUT_OFF,
            )
        if len(found) > len(expected) and found.startswith(expected):
            raise FormatError(f"{len(found) - len(expected)} bytes after the end of the JSON")
        seal_at = len(expected) - len(trailer(b"", self.seal, start)) + len(b'],"index":[]')
        if found[:seal_at] != expected[:seal_at]:
            raise FormatError(
                "index does not say where the records lie",
                hint=DAMAGED,
            )
        raise IntegrityError(
            "the text around the payloads does not match its seal "
            f"(expected {_seal_in(found)}, found {self.seal})",
            hint=DAMAGED,
        )

    # --- ijson ------------------------------------------------------------------------------

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

    def _open(self, found: dict[str, Any]) -> Header:
        check_requires(found.get("requires", []))
        name, dtype, shape, device = parse_identity(found, self._limits)
        codec = parse_codec(found, self._limits)
        if isinstance(codec, str):
            kind = LimitError if "over the limit" in codec else FormatError
            raise kind(codec, tensor=name)
        nbytes = element_count(shape) * DTYPES[dtype].itemsize
        check_chunking(dtype, shape, codec, chunk_count(nbytes, codec.chunk_bytes))
        self.header = header = Header(name, dtype, shape, device, codec, nbytes)
        if exceeds(header.chunks, self._limits.chunks):
            raise LimitError(
                f"{header.chunks} chunks, the limit is {self._limits.chunks}",
                tensor=name,
                hint="Pass limits=jsonckpt.Limits(chunks=...) if it is meant.",
            )
        if self._on_header is not None:
            self._on_header(header)
        return header

    def _close_record(self, header: Header, found: dict[str, Any]) -> None:
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
            or len(sums) != len(self._ranges)
            or not all(is_hex(item, digits) for item in sums)
        ):
            raise FormatError(
                f"{algorithm} must be an array of {header.chunks} checksums", tensor=header.name
            )
        lines = identity_lines(
            header.name, header.dtype, header.shape, header.device, header.codec, sums
        )
        digest = hexdigest(algorithm, lines)
        if found.get("digest") != digest:
            raise IntegrityError(
                f"the record does not match its digest (expected {quote(found.get('digest'))}, "
                f"found {digest!r})",
                tensor=header.name,
                hint=DAMAGED,
            )
        chunks = tuple((*place, item) for place, item in zip(self._ranges, sums))
        record = Record(header, self._record_start, self._line_end - self._record_start, chunks)
        self.records += 1
        self.header = None
        if self._whole:
            self._index += (b"," if self._index else b"") + index_row(
                record.offset, record.length, chunks
            )
        if self._on_record is not None:
            self._on_record(record)


def _seal_in(trailer_line: bytes) -> str:
    """The seal that the end of a file states, for a message."""
    stated = trailer_line.rpartition(b',"seal":"')[2].partition(b'"')[0]
    return quote(stated).strip("'\"")


def _assemble(reader: SkeletonReader) -> Generator[None, tuple[str, Any], None]:
    """What ijson's events mean: a coroutine that they are pushed into."""
    yield  # the array that the records are read in
    while True:
        event, _ = yield
        if event != "start_map":
            break
        yield from _record(reader)
    while True:
        yield


def _record(reader: SkeletonReader) -> Generator[None, tuple[str, Any], None]:
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
            header = reader._open(found)
            found[key] = None
            yield from _lifted(header)
        elif event in ("start_map", "start_array"):
            found[key] = yield from _shallow(event, reader._limits.depth or 1_000)
        else:
            found[key] = value
    if header is None:
        raise FormatError("a record without chunks")
    reader._close_record(header, found)


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
                raise LimitError(f"a record is nested deeper than {max_depth} levels")
        elif event in ("end_map", "end_array"):
            names.pop()
        elif event == "map_key":
            if value in names[-1]:
                raise FormatError(f"the member {quote(value)} stands twice")
            names[-1].add(value)
        elif not deep:
            items.append(value)
    return None if deep else items
