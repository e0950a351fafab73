"""A shard's text without its payloads, read line by line (format section 3).

All readers push that text through one :class:`ShardParser`, so they accept the same files: the
streaming reader as the text passes, the indexed one from the gaps between the ranges of the
index. :mod:`.head_parser` reads what stands before the records, :mod:`.record_parser` what the
lines of a record say; here is the layout in lines, and the end of the file.

Pure: bytes in, facts out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ..errors import (
    CUT_OFF,
    DAMAGED,
    FormatError,
    IncompleteCheckpointError,
    IntegrityError,
    LimitError,
    quote,
)
from .checksums import Hasher
from .head_parser import HeadParser
from .incremental import IncrementalReader
from .limits import Limits, check_beside, exceeds, way_over
from .model import Entry, Header
from .record_parser import Record, RecordParser
from .shard_text import index_row, marks, trailer
from .validation import LONGEST_LINE, longest_tail

_CHUNKS_END: Final = b'"chunks":[\n'


class ShardParser:
    """Reads one shard's text without its payloads, pushed in as it comes.

    One class of over 200 lines, because each line sets the state that the next is checked against.

    Args:
        limits: what is too large.
        whole: the text is a whole file; else it is runs of records.
        algorithm: the checksum in use; must be given unless ``whole``.
        on_header: called when a record's head has been read, before its payloads.
        on_record: called when a record has been read and its digest checked.
        expected: what the manifest says of the records, in order; what agrees with it to the byte
            is read faster.
        head_digest: the checksum of the head, where it has been parsed before.

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
        expected: Sequence[Entry] = (),
        head_digest: str = "",
    ) -> None:
        self.algorithm = algorithm
        self.head_digest = head_digest
        self.position = 0
        self.records = 0
        self.seal = ""
        self._whole = whole
        self._limits = limits
        self._on_record = on_record
        # Plain functions, for bound methods would be references to itself.
        self._handle: Callable[[ShardParser, bytes], None] = ShardParser._record_line
        self._on_header, self._expected = on_header, expected
        self._json = IncrementalReader(limits)
        known = (algorithm, head_digest) if algorithm and head_digest else None
        self._head = HeadParser(limits, self._json, known) if whole else None
        self._in_head = whole
        self._records: RecordParser | None = None
        self._skeleton: Hasher | None = None
        self._trailer = self._line = b""
        self._line_start = self._line_end = self._record_start = 0
        self._more = True
        self._left = 0
        self._payload_noted = False
        self._ranges: list[tuple[int, int]] = []
        self._index = bytearray()
        if not whole:
            self._json.push(b"[")
            self._begin_records()

    # --- what the readers call --------------------------------------------------------------

    @property
    def header(self) -> Header | None:
        """Of the record that is open."""
        return self._records.header if self._records is not None else None

    @property
    def head(self) -> dict[str, Any]:
        """The members before the records, once they have been read."""
        return self._head.members if self._head is not None else {}

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
            return longest_tail(self.header.chunk_count, self.algorithm)
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
            assert self._head is not None
            behind = self._head.push(text)
            if behind is None:
                return
            text = behind
            self._end_head(self._head)
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
            check_beside(len(self._line), self._limits)

    def payload(self, length: int) -> None:
        """Say that a payload of ``length`` bytes stands here.

        Raises:
            FormatError: no payload may stand here.
        """
        header = self.header
        if header is None or not self._left or self._payload_noted:
            raise FormatError("the index names a payload where the text has none")
        if self._line != marks(header)[0]:
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
            if self._in_head and self._head is not None:
                self._head.refuse_end()
            if self._handle is not ShardParser._trailer_line:
                where = f" in tensor {quote(self.header.name)}" if self.header is not None else ""
                raise IncompleteCheckpointError(
                    f"the text ends after {self.position} bytes{where}",
                    hint=CUT_OFF,
                )
            self._check_trailer(self._trailer + self._line)

    # --- lines ------------------------------------------------------------------------------

    def _end_head(self, head: HeadParser) -> None:
        if self.algorithm not in (None, head.algorithm):
            raise FormatError(
                f"checksum is {head.algorithm!r}, the manifest says {self.algorithm!r}"
            )
        self.algorithm, self._skeleton = head.algorithm, head.skeleton
        self.head_digest = head.digest
        self._in_head = False
        self._begin_records()

    def _begin_records(self) -> None:
        assert self.algorithm is not None
        self._records = RecordParser(
            self._limits,
            self._json,
            self.algorithm,
            on_header=self._on_header,
            expected=self._expected,
        )

    def _record_line(self, line: bytes) -> None:
        if line[:1] == b"]" and self._whole:
            if self._more and self.records:
                raise FormatError("a comma after the last record")
            check_beside(len(line), self._limits)
            self._handle = ShardParser._trailer_line
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
                hint=way_over("tensors"),
            )
        self._record_start, self._ranges = self._line_start, []
        assert self._records is not None
        self._left = self._records.head(line).chunk_count
        self._next(line, ShardParser._chunk_line if self._left else ShardParser._tail_line)

    def _chunk_line(self, line: bytes) -> None:
        header = self.header
        assert header is not None
        ending = b",\n" if self._left > 1 else b"\n"
        if not self._payload_noted or line != b"".join(marks(header)) + ending:
            raise self._misplaced(header)
        self._payload_noted = False
        self._left -= 1
        self._next(line, ShardParser._chunk_line if self._left else ShardParser._tail_line)

    def _tail_line(self, line: bytes) -> None:
        header = self.header
        assert header is not None
        assert self._records is not None
        longest = longest_tail(header.chunk_count, self.algorithm)
        if len(line) > longest:
            raise LimitError(
                f"the end of a record has {len(line)} bytes, over {longest}", tensor=header.name
            )
        body = line[:-2] if line.endswith(b"},\n") else line[:-1]
        if not body.endswith(b"}"):
            raise FormatError("the end of a record must stand on one line", tensor=header.name)
        self._more = len(body) == len(line) - 2
        self._line_end -= len(line) - len(body)
        sums = self._records.tail(body)
        chunks = tuple([(*place, checksum) for place, checksum in zip(self._ranges, sums)])
        record = Record(header, self._record_start, self._line_end - self._record_start, chunks)
        self.records += 1
        if self._whole:
            self._index += (b"," if self._index else b"") + index_row(
                record.offset, record.length, chunks
            )
        if self._on_record is not None:
            self._on_record(record)
        self._next(line, ShardParser._record_line)

    def _trailer_line(self, line: bytes) -> None:
        raise FormatError(f"{quote(line)} stands after the line that ends the file")

    def _next(self, line: bytes, handle: Callable[[ShardParser, bytes], None]) -> None:
        if self._skeleton is not None:
            self._skeleton.update(line)
        self._handle = handle

    def _misplaced(self, header: Header) -> FormatError:
        return FormatError(
            "each chunk must stand on a line of its own, and the lines must be as many as "
            f"the shape asks for ({header.chunk_count})",
            tensor=header.name,
            chunk=header.chunk_count - self._left,
        )

    def _check_trailer(self, found: bytes) -> None:
        assert self._skeleton is not None
        self._skeleton.update(b'],"index":[' + self._index + b"]")
        self.seal = f"{self.algorithm}:{self._skeleton.hexdigest()}"
        check_trailer(found, self._index, self.seal, self.position)


def check_trailer(found: bytes, index: bytes | bytearray, seal: str, position: int) -> None:
    """Whether a text ends as it must.

    Args:
        found: the text from the bracket that closes the records.
        index: the rows of the records that were read, joined with commas.
        position: where the text ends.

    Raises:
        FormatError, IncompleteCheckpointError, IntegrityError: it does not.
    """
    start = position - len(found)
    expected = trailer(index, seal, start)
    if found == expected:
        return
    if len(found) < len(expected) and expected.startswith(found):
        raise IncompleteCheckpointError(
            f"the text ends after {position} bytes, {len(expected) - len(found)} too early",
            hint=CUT_OFF,
        )
    if len(found) > len(expected) and found.startswith(expected):
        raise FormatError(f"{len(found) - len(expected)} bytes after the end of the JSON")
    seal_at = len(expected) - len(trailer(b"", seal, start)) + len(b'],"index":[]')
    if found[:seal_at] != expected[:seal_at]:
        raise FormatError("index does not say where the records lie", hint=DAMAGED)
    stated = found.rpartition(b',"seal":"')[2].partition(b'"')[0]
    raise IntegrityError(
        "the text around the payloads does not match its seal "
        f"(expected {quote(stated).strip(chr(39))}, found {seal})",
        hint=DAMAGED,
    )
