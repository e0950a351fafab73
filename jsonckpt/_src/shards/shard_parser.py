"""A shard's text without its payloads, read line by line (format section 3).

All readers push this text through the parsers here, so they accept the same files. The streaming
reader pushes the text as it passes, the indexed one the gaps between the ranges of the index.
:mod:`.head_parser` reads what precedes the records, :mod:`.record_parser` the lines of a record.
These parsers know the layout in lines and the end of the file.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ..errors import (
    CUT_OFF,
    DAMAGED,
    FormatError,
    IncompleteCheckpointError,
    LimitError,
    quote,
    rewritten,
    seal_differs,
)
from ..format import json_text
from ..format.checksums import Hasher
from ..format.limits import Limits, check_beside, exceeds, way_over
from ..format.model import Entry, Header
from ..format.validation import LONGEST_LINE, longest_tail
from .head_parser import HeadParser
from .incremental import IncrementalReader
from .record_parser import Record, RecordParser
from .shard_text import TRAILER_MAX, index_offset, index_row, marks, trailer

_CHUNKS_END: Final = b'"chunks":[\n'


class RunParser:
    """Reads runs of records, pushed in as text without payloads.

    Call :meth:`begin_run`, then :meth:`text` for the text around payloads and :meth:`payload` for
    each payload that is left out, then :meth:`end_run`.

    Args:
        limits: what is too large.
        algorithm: the checksum in use.
        on_record: called when a record has been read and its digest checked.
        expected: the records according to the manifest, in order. Text that agrees to the byte is
            read faster.

    Attributes:
        header: the header of the record that is open.
        in_head, head, seal: of a whole file, see :class:`ShardParser`.
    """

    in_head = False

    def __init__(
        self,
        limits: Limits,
        algorithm: str | None,
        on_record: Callable[[Record], None] | None = None,
        expected: Sequence[Entry] = (),
    ) -> None:
        self.algorithm = algorithm
        self.header: Header | None = None
        self.head: dict[str, Any] = {}
        self.position = 0
        self.records = 0
        self.seal = ""
        self._limits = limits
        self._on_record = on_record
        self._expected = expected
        self._json = IncrementalReader(limits)
        self._line = b""
        self._line_start = self._line_end = self._record_start = 0
        self._more = True
        self._left = 0
        self._payload_noted = False
        self._ranges: list[tuple[int, int]] = []
        if not self.in_head:
            self._json.push(b"[")
            self._begin_records()

    @property
    def awaits_payload(self) -> bool:
        """Whether the next line is a chunk's."""
        return self._left > 0

    def text(self, text: bytes) -> None:
        """Push the next piece of text that is not a payload.

        Raises:
            FormatError, LimitError, IntegrityError: the text breaks a rule.
        """
        at = self.position
        self.position += len(text)
        begin = 0
        while (stop := text.find(b"\n", begin) + 1) > 0:
            line = text[begin:stop]
            if self._line:
                line, self._line = self._line + line, b""
            else:
                self._line_start = at + begin
            self._line_end = at + stop
            self._take(line)
            begin = stop
        if begin < len(text):
            if not self._line:
                self._line_start = at + begin
            self._line += text[begin:]
            check_beside(len(self._line), self._limits)

    def payload(self, length: int) -> None:
        """Say that a payload of ``length`` bytes comes here.

        Raises:
            FormatError: no payload may come here.
        """
        header = self.header
        if header is None or not self._left or self._payload_noted:
            raise FormatError("the index names a payload where the text has none")
        if self._line != marks(header)[0]:
            raise _misplaced(header, self._left)
        self._ranges.append((self.position, length))
        self.position += length
        self._payload_noted = True

    def begin_run(self, position: int) -> None:
        """A run of records begins at ``position`` of the file."""
        self.position = position
        self._more = True

    def end_run(self) -> None:
        """Check that no record is open where a run ends."""
        self.text(b"\n")  # not in the file: it completes the last line
        self.position -= 1
        if self.header is not None:
            raise FormatError(
                "the record does not end where its range ends", tensor=self.header.name
            )

    def _begin_records(self) -> None:
        assert self.algorithm is not None
        self._records = RecordParser(
            self._limits, self._json, self.algorithm, expected=self._expected
        )

    def _take(self, line: bytes) -> None:
        """Read the next whole line."""
        if self._left:
            self._chunk_line(line)
        elif self.header is not None:
            self._tail_line(line, self.header)
        else:
            self._head_line(line)

    def _head_line(self, line: bytes) -> None:
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
        self.header = self._records.head(line)
        self._left = self.header.chunk_count

    def _chunk_line(self, line: bytes) -> None:
        header = self.header
        assert header is not None
        ending = b",\n" if self._left > 1 else b"\n"
        if not self._payload_noted or line != b"".join(marks(header)) + ending:
            raise _misplaced(header, self._left)
        self._payload_noted = False
        self._left -= 1

    def _tail_line(self, line: bytes, header: Header) -> None:
        longest = longest_tail(header.chunk_count, self.algorithm)
        if len(line) > longest:
            raise LimitError(
                f"the end of a record has {len(line)} bytes, over {longest}", tensor=header.name
            )
        body = line[:-2] if line.endswith(b"},\n") else line[:-1]
        if not body.endswith(b"}"):
            raise FormatError("the end of a record must be on one line", tensor=header.name)
        self._more = len(body) == len(line) - 2
        stop = self._line_end - (len(line) - len(body))
        sums = self._records.tail(body)
        chunks = tuple([(*place, checksum) for place, checksum in zip(self._ranges, sums)])
        self.header = None
        self.records += 1
        self._add(Record(header, self._record_start, stop - self._record_start, chunks))

    def _add(self, record: Record) -> None:
        """Report a record that has been read."""
        if self._on_record is not None:
            self._on_record(record)


class ShardParser(RunParser):
    """Reads the text of a whole shard: its head, one run of records, and the end of the file.

    Args:
        algorithm: the checksum that the manifest names.
        head_digest: the checksum of the head, if the head has been parsed before.

    Attributes:
        in_head: True until the first record.
        head: the members before the records; empty while ``in_head``.
        seal: the seal of the file, once :meth:`close` has been called; empty if it is null.
    """

    in_head = True

    def __init__(
        self,
        limits: Limits,
        algorithm: str | None = None,
        on_record: Callable[[Record], None] | None = None,
        expected: Sequence[Entry] = (),
        *,
        head_digest: str = "",
    ) -> None:
        super().__init__(limits, algorithm, on_record, expected)
        self.head_digest = head_digest
        known = (algorithm, head_digest) if algorithm and head_digest else None
        self._head = HeadParser(limits, self._json, known)
        self._skeleton: Hasher | None = None
        self._trailer = b""
        self._index = bytearray()

    def longest_line(self, first: bytes) -> int:
        """The most bytes of the next line, if it is not a chunk's.

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
        """Push the next piece of text that is not a payload, as :meth:`RunParser.text`."""
        if self.in_head:
            self.position += len(text)
            behind = self._head.push(text)
            if behind is None:
                return
            self._end_head()
            self.position -= len(behind)
            text = behind
        super().text(text)

    def close(self) -> None:
        """Check that the text is complete and that its last line agrees with the rest.

        Raises:
            IncompleteCheckpointError: the text ends too early.
            FormatError, IntegrityError: the index, the seal or the last member is wrong.
        """
        if self.in_head:
            self._head.refuse_end()
        if not self._trailer or self._skeleton is None:
            where = f" in tensor {quote(self.header.name)}" if self.header is not None else ""
            raise IncompleteCheckpointError(
                f"the text ends after {self.position} bytes{where}", hint=CUT_OFF
            )
        found = self._trailer + self._line
        if is_unsealed(found, self._limits):
            return
        self._skeleton.update(b'],"index":[' + self._index + b"]")
        self.seal = f"{self.algorithm}:{self._skeleton.hexdigest()}"
        check_trailer(found, self._index, self.seal, self.position)

    def _end_head(self) -> None:
        head = self._head
        if self.algorithm not in (None, head.algorithm):
            raise FormatError(
                f"checksum is {head.algorithm!r}, the manifest says {self.algorithm!r}"
            )
        self.algorithm, self._skeleton = head.algorithm, head.skeleton
        self.head, self.head_digest = head.members, head.digest
        self.in_head = False
        self._begin_records()

    def _take(self, line: bytes) -> None:
        if self._trailer:
            raise FormatError(f"{quote(line)} comes after the line that ends the file")
        if line[:1] == b"]" and self.header is None:
            if self._more and self.records:
                raise FormatError("a comma after the last record")
            check_beside(len(line), self._limits)
            self._trailer = line
            return
        super()._take(line)
        assert self._skeleton is not None
        self._skeleton.update(line)

    def _add(self, record: Record) -> None:
        row = index_row(record.offset, record.length, record.chunks)
        self._index += (b"," if self._index else b"") + row
        super()._add(record)


def _misplaced(header: Header, left: int) -> FormatError:
    return FormatError(
        "each chunk must be on a line of its own, and there must be as many lines as the shape "
        f"asks for ({header.chunk_count})",
        tensor=header.name,
        chunk=header.chunk_count - left,
    )


def is_unsealed(found: bytes, limits: Limits) -> bool:
    """Whether the end of a text says that it has no seal. Then its index may be wrong.

    Args:
        found: the text from the bracket that closes the records.
    """
    if b"null" not in found[-2 * TRAILER_MAX :]:
        return False
    try:
        value = json_text.parse(
            b'{"tensors":[' + found,
            what="the end of the file",
            max_depth=limits.depth or 1_000,
            max_marks=limits.marks,
        )
    except (FormatError, LimitError):
        return False
    known = {"tensors", "index", "seal", "index_offset"}
    return isinstance(value, dict) and value.get("seal", "") is None and known >= value.keys()


def check_trailer(found: bytes, index: bytes | bytearray, seal: str, position: int) -> None:
    """Check the end of a text.

    Args:
        found: the text from the bracket that closes the records.
        index: the rows of the records that were read, joined with commas.
        position: where the text ends.

    Raises:
        FormatError, IncompleteCheckpointError, IntegrityError: it is not what it must be.
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
        if index_offset(found[-TRAILER_MAX:]) not in (None, index_offset(expected[-TRAILER_MAX:])):
            raise rewritten()  # text before the index is longer or shorter than it was
        raise FormatError("index does not say where the records lie", hint=DAMAGED)
    stated = found.rpartition(b',"seal":"')[2].partition(b'"')[0]
    error = seal_differs(quote(stated).strip("'"), seal, what="the text around the payloads")
    if stated.decode("latin-1") == seal:  # what follows it is damaged
        error.hint = DAMAGED
    raise error
