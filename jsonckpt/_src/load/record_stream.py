"""Reads a shard's text once, from beginning to end, through one buffer.

For pipes, URLs, compressed files, and shards without a manifest. Payloads are decoded in place, in
the buffer. Everything else goes to the :class:`ShardParser`. It needs memory for the buffer (a few
chunks), whatever the size of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import (
    CUT_OFF,
    DAMAGED,
    FormatError,
    IncompleteCheckpointError,
    IntegrityError,
    JsonckptError,
    LimitError,
)
from ..format.checksums import hexdigest
from ..format.chunk_codec import ChunkCodec, longest_payload, payload_too_long
from ..format.limits import Limits, exceeds, way_over
from ..format.model import Header
from ..shards.head_parser import HEAD_END_PATTERN, LONGEST_HEAD_END
from ..shards.record_parser import Record
from ..shards.shard_parser import ShardParser
from ..storage.protocols import ByteSource, Sink
from .options import ReadOptions

_BUFFER = 4 << 20
#: A decoding buffer of this size is kept between chunks. Larger chunks make their own.
_SCRATCH = 1 << 20


def _line_too_long(limit: int) -> JsonckptError:
    return LimitError(
        f"a line of over {limit} bytes beside the tensors",
        hint=way_over("manifest_bytes", "None"),
    )


class LineBuffer:
    """A buffer over a source, read line by line."""

    def __init__(self, source: ByteSource, capacity: int = _BUFFER) -> None:
        self._source = source
        self._buffer = bytearray(capacity)
        self._start = 0
        self._end = 0
        self._finished = False

    def line(
        self, limit: int, too_long: Callable[[int], JsonckptError] = _line_too_long
    ) -> memoryview:
        """The next line with its line feed. The last line may have none. After it, lines are empty.

        The view is valid until the next call.

        Args:
            limit: the most bytes of a line.
            too_long: makes the error for a longer one.
        """
        scanned = self._start
        while True:
            stop = self._buffer.find(b"\n", scanned, self._end) + 1
            if stop > 0:
                break
            scanned_bytes = self._end - self._start
            if scanned_bytes > limit:
                raise too_long(limit)
            if self._finished:
                stop = self._end
                break
            self._fill()
            scanned = self._start + scanned_bytes
        view = memoryview(self._buffer)[self._start : stop]
        self._start = stop
        if len(view) > limit:
            raise too_long(limit)
        return view

    def first(self) -> bytes:
        """The next byte, which stays in the buffer; empty at the end of the source."""
        while self._start == self._end and not self._finished:
            self._fill()
        return bytes(self._buffer[self._start : min(self._start + 1, self._end)])

    def through(self, mark: re.Pattern[bytes], longest: int) -> memoryview:
        """The text up to the end of ``mark``, or all text that cannot belong to it.

        Empty at the end of the source. The view is valid until the next call.

        Args:
            longest: the length of the mark.
        """
        while True:
            found = mark.search(self._buffer, self._start, self._end)
            stop = self._end - longest + 1 if found is None else found.end()
            if stop > self._start:
                break
            if self._finished:
                stop = self._end
                break
            self._fill()
        view = memoryview(self._buffer)[self._start : stop]
        self._start = stop
        return view

    def _fill(self) -> None:
        used = self._end - self._start
        if self._end == len(self._buffer):
            if used > len(self._buffer) // 2:
                # The line is longer than half the buffer. The caller's limit bounds the growth of
                # the buffer.
                grown = bytearray(2 * len(self._buffer))
                grown[:used] = memoryview(self._buffer)[self._start : self._end]
                self._buffer = grown
            else:
                self._buffer[:used] = self._buffer[self._start : self._end]
            self._start, self._end = 0, used
        count = self._source.readinto(memoryview(self._buffer)[self._end :])
        if count:
            self._end += count
        else:
            self._finished = True


class RecordStream:
    """Reads a whole shard forward.

    First call :meth:`read_head`, then :meth:`records`. ``parser`` knows the head, the position
    and, at the end, the seal.

    Args:
        options: the limits, and whether to compare the checksums of the chunks.
        algorithm: the checksum that the manifest names, if there is one.
        alone: the file is a whole checkpoint. For a shard of a directory, the limits on the whole
            have been applied to the manifest.
    """

    def __init__(
        self,
        source: ByteSource,
        options: ReadOptions,
        *,
        algorithm: str | None = None,
        alone: bool = False,
    ) -> None:
        self._source = source
        self._limits = limits = options.limits.for_text(source.size)
        self._verify = options.verify
        self._lines = LineBuffer(source)
        self._codec = ChunkCodec(zstd_window=limits.zstd_window)
        self._scratch = bytearray(_SCRATCH)
        self._finished: list[Record] = []
        self._decoded = 0
        self._chunks = 0
        self._most_chunks = None
        if alone and source.size is not None:
            self._most_chunks = limits.most_chunks(source.size)
        self.parser = ShardParser(limits, algorithm=algorithm, on_record=self._finished.append)

    def read_head(self) -> dict[str, Any]:
        """Read up to the first record; returns the head.

        Raises:
            JsonckptError: the head breaks a rule.
        """
        while self.parser.in_head:
            text = self._lines.through(HEAD_END_PATTERN, LONGEST_HEAD_END)
            if not text:
                self.parser.close()
                raise IncompleteCheckpointError("the text ends before its first tensor")
            self.parser.text(bytes(text))
        return self.parser.head

    def records(self, open_sink: Callable[[Header], Sink | None]) -> Iterator[Record]:
        """Yields each record after all of it has been checked.

        Args:
            open_sink: called with each header before its data. If it returns ``None``, the data is
                skipped without decoding.

        Raises:
            JsonckptError: the text breaks a rule. The message names the tensor and the chunk.
        """
        parser = self.parser
        sink: Sink | None = None
        opened: Header | None = None
        sums: list[str] = []
        while True:
            if parser.awaits_payload:
                header = parser.header
                assert header is not None
                if header is not opened:
                    opened, sums = header, []
                    self._count_chunks(header)
                    sink = open_sink(header)
                self._chunk(header, sink, sums)
                continue
            line = self._lines.line(parser.longest_line(self._lines.first()))
            if not line:
                break
            parser.text(bytes(line))
            if self._finished:
                record = self._finished.pop()
                if record.header is not opened:  # a tensor of no bytes
                    sink, sums = open_sink(record.header), []
                if sink is not None and self._verify:
                    compare_checksums(record, sums)
                # The memory of a tensor must not stay alive while the next one is made.
                sink, opened = None, None
                yield record
        parser.close()

    def _count_chunks(self, header: Header) -> None:
        self._chunks += header.chunk_count
        if exceeds(self._chunks, self._most_chunks):
            raise LimitError(
                f"{self._chunks} chunks in a file of {self._source.size} bytes, the limit is"
                f" {self._most_chunks}",
                tensor=header.name,
                hint=way_over("chunks", "None"),
            )

    def _chunk(self, header: Header, sink: Sink | None, sums: list[str]) -> None:
        """Read one chunk's line; add the checksum of its bytes to ``sums``."""
        chunk = len(sums)
        start = chunk * header.codec.chunk_bytes
        nbytes = min(header.codec.chunk_bytes, header.nbytes - start)
        parser = self.parser
        try:
            longest = longest_payload(nbytes, header.codec, header.dtype)
            # Two quotes, a comma and a line feed are around it.
            line = self._lines.line(longest + 4, lambda limit: payload_too_long(limit - 4))
            payload, after = _payload_of(line)
            self._decoded += nbytes
            if self._source.size is None:
                check_expansion(self._decoded, parser.position + len(line), self._limits)
            if sink is None:
                sums.append("")
            else:
                out = sink.window(start, start + nbytes)
                windowed = out is not None
                if out is None:
                    if len(self._scratch) < nbytes:
                        self._scratch = bytearray(nbytes)
                    out = memoryview(self._scratch)[:nbytes]
                self._codec.decode_into(payload, header.codec, header.dtype, out)
                sums.append(hexdigest(parser.algorithm or "", out) if self._verify else "")
                if not windowed:
                    sink.write(start, out)
        except JsonckptError as error:
            error.at(tensor=header.name, chunk=chunk, hint=DAMAGED)
            raise
        parser.text(bytes(line[:1]))
        parser.payload(len(payload))
        parser.text(bytes(after))


def check_expansion(decoded: int, read: int, limits: Limits) -> None:
    """Check that the text so far is long enough for the tensors so far.

    For pipes only. If the size on disk is known, the total is compared with it instead: a file may
    begin with data that compresses better than the rest.

    Raises:
        LimitError: the tensors are over the limit.
    """
    if exceeds(decoded, limits.total_bytes(read)):
        raise LimitError(
            f"{decoded} bytes of tensors in the first {read} bytes, over the limit",
            hint=way_over("total_floor"),
        )


def compare_checksums(record: Record, found: list[str]) -> None:
    """Check that the chunks are those that were saved.

    Raises:
        IntegrityError: one is not.
    """
    for number, (chunk, actual) in enumerate(zip(record.chunks, found)):
        if chunk[2] != actual:
            raise checksum_error(record.header.name, number, chunk[2], actual)


def checksum_error(tensor: str, chunk: int, expected: str, found: str) -> IntegrityError:
    """The error for a chunk with other bytes than were saved."""
    return IntegrityError(
        f"the checksum is {found}, expected {expected}",
        tensor=tensor,
        chunk=chunk,
        hint=DAMAGED,
    )


def _payload_of(line: memoryview) -> tuple[memoryview, memoryview]:
    """A chunk's line as its payload and the text after it. The parser checks that text."""
    if not len(line):
        raise IncompleteCheckpointError("the text ends here", hint=CUT_OFF)
    if line[-1] != 10:
        raise IncompleteCheckpointError("the text ends inside the chunk", hint=CUT_OFF)
    stop = len(line) - (3 if len(line) > 3 and line[-2] == 44 else 2)
    if stop < 1 or line[0] not in b'"[' or line[stop] not in b'"]':
        raise FormatError("expected the line of a chunk")
    return line[1:stop], line[stop:]
