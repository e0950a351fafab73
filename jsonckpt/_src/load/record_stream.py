"""The forward-only reader: pipes, URLs, compressed files, shards without a manifest.

Reads a shard's text once, from beginning to end, through one buffer: payloads are decoded where
they lie in the buffer, everything else goes to the :class:`ShardParser`.
Memory is the buffer (a few chunks), whatever the size of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

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
from ..format.head_parser import HEAD_END, HEAD_END_PATTERN
from ..format.limits import Limits, exceeds, way_over
from ..format.model import Header
from ..format.record_parser import Record
from ..format.shard_parser import ShardParser
from ..storage.protocols import ByteSource, Sink

_BUFFER = 4 << 20
#: Decoding scratch of this size is kept between chunks; larger chunks make their own.
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
        """The next line with its line feed; without one at the end of the source; empty after it.

        The view is valid until the next call.

        Args:
            limit: bytes that it may have.
            too_long: makes the error that is raised for a longer one.
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
        """The next byte, which is not taken; empty at the end of the source."""
        while self._start == self._end and not self._finished:
            self._fill()
        return bytes(self._buffer[self._start : min(self._start + 1, self._end)])

    def through(self, mark: re.Pattern[bytes], longest: int) -> memoryview:
        """What is there up to and with ``mark``; where it is not there, all that cannot be of it.

        Empty at the end of the source. The view is valid until the next call.
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
                # The line is longer than the buffer: grow, up to what the caller's limit lets by.
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


def read_records(
    source: ByteSource,
    *,
    limits: Limits,
    open_sink: Callable[[Header], Sink | None],
    on_head: Callable[[ShardParser], None] | None = None,
    algorithm: str | None = None,
    verify: bool = True,
    alone: bool = False,
) -> Iterator[tuple[Record, Sink | None]]:
    """Read a whole shard forward, yielding each record when all of it has been checked.

    Args:
        alone: it is a checkpoint of its own; of a directory the manifest has been held against
            the limits on the whole.
        open_sink: called with each record's header before its data; ``None`` passes it over
            without decoding.
        on_head: called once when everything before the first record has been read.
        algorithm: the checksum that the manifest names, where there is one.
        verify: compare the checksums of the chunks (everything else is always checked).

    Raises:
        JsonckptError: the text breaks a rule; the message says in which tensor and chunk.
    """
    limits = limits.for_text(source.size)
    window = LineBuffer(source)
    coder = ChunkCodec(zstd_window=limits.zstd_window)
    scratch = bytearray(_SCRATCH)
    finished: list[Record] = []
    reader = ShardParser(limits, whole=True, algorithm=algorithm, on_record=finished.append)
    sink: Sink | None = None
    opened: Header | None = None
    sums: list[str] = []
    headed = False
    decoded = 0
    chunks = 0
    most_chunks = limits.most_chunks(source.size) if alone and source.size is not None else None
    while True:
        if reader.awaits_payload:
            header = reader.header
            assert header is not None
            if header is not opened:
                opened, sums = header, []
                chunks += header.chunk_count
                if exceeds(chunks, most_chunks):
                    raise LimitError(
                        f"{chunks} chunks in a file of {source.size} bytes, the limit is"
                        f" {most_chunks}",
                        tensor=header.name,
                        hint=way_over("chunks", "None"),
                    )
                sink = open_sink(header)
            chunk = len(sums)
            start = chunk * header.codec.chunk_bytes
            nbytes = min(header.codec.chunk_bytes, header.nbytes - start)
            try:
                longest = longest_payload(nbytes, header.codec, header.dtype)
                # Two quotes, a comma and a line feed stand around it.
                line = window.line(longest + 4, lambda limit: payload_too_long(limit - 4))
                payload, after = _payload_of(line)
                decoded += nbytes
                if source.size is None:
                    check_expansion(decoded, reader.position + len(line), limits)
                if sink is None:
                    sums.append("")
                else:
                    target = sink.window(start, start + nbytes)
                    if target is None:
                        if len(scratch) < nbytes:
                            scratch = bytearray(nbytes)
                        out = memoryview(scratch)[:nbytes]
                    else:
                        out = target
                    coder.decode_into(payload, header.codec, header.dtype, out)
                    sums.append(hexdigest(reader.algorithm or "", out) if verify else "")
                    if target is None:
                        sink.write(start, out)
                    # Memory of a tensor that must not be held when the next one is made.
                    del target, out
            except JsonckptError as error:
                error.at(tensor=header.name, chunk=chunk, hint=DAMAGED)
                raise
            reader.text(bytes(line[:1]))
            reader.payload(len(payload))
            reader.text(bytes(after))
            continue
        if reader.in_head:
            line = window.through(HEAD_END_PATTERN, len(HEAD_END))
        else:
            line = window.line(reader.longest_line(window.first()))
        if not line:
            break
        reader.text(bytes(line))
        if not headed and not reader.in_head:
            headed = True
            if on_head is not None:
                on_head(reader)
        if finished:
            record = finished.pop()
            if record.header is not opened:  # a tensor of no bytes
                sink, sums = open_sink(record.header), []
            if sink is not None and verify:
                compare_checksums(record, sums)
            yield record, sink
            sink, opened = None, None
    reader.close()
    if reader.in_head:
        raise IncompleteCheckpointError("the text ends before its first tensor")


def check_expansion(decoded: int, read: int, limits: Limits) -> None:
    """Whether the tensors so far may come from so little text.

    For pipes only: where the size on disk is known, the total is held against that, as the indexed
    reader does. A file may begin with what compresses better than the rest of it.

    Raises:
        LimitError: they are over the limit.
    """
    if exceeds(decoded, limits.total_bytes(read)):
        raise LimitError(
            f"{decoded} bytes of tensors in the first {read} bytes, over the limit",
            hint=way_over("total_floor"),
        )


def compare_checksums(record: Record, found: list[str]) -> None:
    """Whether the chunks are the chunks that were saved.

    Raises:
        IntegrityError: one is not.
    """
    for number, (chunk, actual) in enumerate(zip(record.chunks, found)):
        if chunk[2] != actual:
            raise checksum_error(record.header.name, number, chunk[2], actual)


def checksum_error(tensor: str, chunk: int, expected: str, found: str) -> IntegrityError:
    """The error for a chunk whose bytes are not those that were saved."""
    return IntegrityError(
        f"the checksum is {found}, expected {expected}",
        tensor=tensor,
        chunk=chunk,
        hint=DAMAGED,
    )


def _payload_of(line: memoryview) -> tuple[memoryview, memoryview]:
    """A chunk's line as its payload and what follows it; the skeleton reader checks the rest."""
    if not len(line):
        raise IncompleteCheckpointError("the text ends here", hint=CUT_OFF)
    if line[-1] != 10:
        raise IncompleteCheckpointError("the text ends inside the chunk", hint=CUT_OFF)
    stop = len(line) - (3 if len(line) > 3 and line[-2] == 44 else 2)
    if stop < 1 or line[0] not in b'"[' or line[stop] not in b'"]':
        raise FormatError("expected the line of a chunk")
    return line[1:stop], line[stop:]
