"""What a shard's text says once its payloads are lifted out of it (format section 3).

Both readers push the skeleton through one :class:`ShardParser`, so they cannot differ in what
they
accept: the streaming reader as the text passes, the indexed one from the gaps between the byte
ranges of the index. The layout in lines is checked here, what the lines of a record say in
:mod:`jsonckpt.records`.

Pure: bytes in, facts out.
"""

from __future__ import annotations

import re
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
from . import json_text
from .checksums import Hasher, hasher
from .limits import Limits, exceeds, way_over
from .model import SHARD_FORMAT, Entry
from .record_parser import Header, Record, RecordParser
from .shard_text import TRAILER_MAX, index_row, trailer
from .validation import (
    LONGEST_LINE,
    check_header,
    check_not_newer,
    checksum_name,
    longest_tail,
    no_checkpoint,
    reformatted,
)

TENSORS_LINE: Final = b'"tensors":[\n'
#: Ends the head: the line feed before that line, and the line.
HEAD_END: Final = b"\n" + TENSORS_LINE
# `bytes.find` takes ten times as long in text made of the mark's own characters ("[[[[...").
HEAD_END_PATTERN: Final = re.compile(re.escape(HEAD_END))
_CHUNKS_END: Final = b'"chunks":[\n'


class ShardParser:
    """Reads one shard's skeleton, pushed in as it comes.

    Args:
        limits: what is too large.
        whole: the text is a whole file; else it is runs of records.
        algorithm: the checksum in use; must be given unless ``whole``.
        on_header: called when a record's head has been read, before its payloads.
        on_record: called when a record has been read and its digest checked.
        expected: what the manifest says of the records, in order; what agrees with it to the byte
            is read faster.

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
    ) -> None:
        self.head: dict[str, Any] = {}
        self.algorithm = algorithm
        self.position = 0
        self.records = 0
        self.seal = ""
        self._whole = whole
        self._limits = limits
        self._on_record = on_record
        # Plain functions, for bound methods would be references to itself.
        self._handle: Callable[[ShardParser, bytes], None] = ShardParser._record_line
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
        self._reader = RecordParser(limits, on_header=on_header, expected=expected)
        self._reader.algorithm = algorithm

    # --- what the readers call --------------------------------------------------------------

    @property
    def header(self) -> Header | None:
        """Of the record that is open."""
        return self._reader.header

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
                check_not_newer(bytes(self._head_text))
                if b'"index_offset"' in self._head_text[-TRAILER_MAX:]:
                    raise reformatted()
            if self._handle is not ShardParser._trailer_line:
                where = f" in tensor {quote(self.header.name)}" if self.header is not None else ""
                raise IncompleteCheckpointError(
                    f"the text ends after {self.position} bytes{where}",
                    hint=CUT_OFF,
                )
            self._check_trailer(self._trailer + self._line)
        self._reader.finish()

    # --- lines ------------------------------------------------------------------------------

    def _check_beside(self, length: int) -> None:
        if exceeds(length, self._limits.manifest_bytes):
            raise LimitError(
                f"over {self._limits.manifest_bytes} bytes of text beside the tensors",
                hint=way_over("manifest_bytes", "None"),
            )

    def _take_head(self, text: bytes) -> bytes:
        """Take what of ``text`` belongs to the head; return the rest."""
        searched = max(0, len(self._head_text) - len(HEAD_END))
        self._head_text += text
        if not b"{".startswith(self._head_text[:64].lstrip()[:1]):
            raise no_checkpoint(self._head_text)
        found = HEAD_END_PATTERN.search(self._head_text, searched)
        if found is None:
            self._check_beside(len(self._head_text))
            return b""
        stop = found.end()
        del found  # the match would keep the text
        head, rest = bytes(self._head_text[:stop]), bytes(self._head_text[stop:])
        self._check_beside(len(head))
        self._head_text = bytearray()
        self._in_head = False
        self._open_head(head)
        return rest

    def _open_head(self, text: bytes) -> None:
        value = json_text.parse(
            text[: -len(TENSORS_LINE)] + b'"tensors":null}',
            what="the head of the shard",
            max_depth=self._limits.depth or 1_000,
            max_number=self._limits.number_chars or 1 << 20,
            max_marks=self._limits.marks,
        )
        head = check_header(value, SHARD_FORMAT)
        for member in ("index", "seal", "index_offset"):
            if member in head:
                raise FormatError(f"the member {member!r} stands twice, before and after the data")
        algorithm = checksum_name(head.get("checksum"))
        if self.algorithm not in (None, algorithm):
            raise FormatError(f"checksum is {algorithm!r}, the manifest says {self.algorithm!r}")
        self.head = head
        self.algorithm = self._reader.algorithm = algorithm
        self._skeleton = hasher(algorithm)
        self._skeleton.update(text)

    def _record_line(self, line: bytes) -> None:
        if line[:1] == b"]" and self._whole:
            if self._more and self.records:
                raise FormatError("a comma after the last record")
            self._check_beside(len(line))
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
        self._left = self._reader.head(line).chunks
        self._next(line, ShardParser._chunk_line if self._left else ShardParser._tail_line)

    def _chunk_line(self, line: bytes) -> None:
        header = self.header
        assert header is not None
        marks = b"[]" if header.codec.encoding == "list" else b'""'
        if not self._payload_noted or line != marks + (b",\n" if self._left > 1 else b"\n"):
            raise self._misplaced(header)
        self._payload_noted = False
        self._left -= 1
        self._reader.chunk(line)
        self._next(line, ShardParser._chunk_line if self._left else ShardParser._tail_line)

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
        sums = self._reader.tail(body)
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


def _seal_in(trailer_line: bytes) -> str:
    """The seal that the end of a file states, for a message."""
    stated = trailer_line.rpartition(b',"seal":"')[2].partition(b'"')[0]
    return quote(stated).strip("'\"")
