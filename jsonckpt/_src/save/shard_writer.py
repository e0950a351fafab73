"""Writes one shard: encodes chunks on several threads and lays them one behind the other.

Knows outputs (where text goes) and the grammar, not the commit protocol.
"""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import zstandard

from ..errors import JsonckptError, WriteError
from ..format.checksums import hexdigest
from ..format.chunk_codec import ChunkCodec, check_bool
from ..format.model import Header, Layout
from ..format.shard_text import ShardText
from ..parallel import Lane, run_ordered, threads_for
from ..storage.protocols import Output, Positioned
from .plan import Part, RecordPlan, Sized, jobs

_FRAME_TEXT = 4 << 20
#: The pieces of a payload, and the checksum of the chunk.
_Chunk = tuple[list[bytes | memoryview], str]


class RawSource(Sized, Protocol):
    """A tensor to be written."""

    @property
    def device(self) -> str: ...
    @property
    def layout(self) -> Layout: ...

    def read(self, start: int, stop: int) -> memoryview:
        """The raw bytes ``[start, stop)``."""


class FileOutput:
    """A plain file: pieces may be written in any order."""

    ordered = False

    def __init__(self, file: Positioned) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._taken = 0
        self.written = 0

    def put(self, offset: int, buffers: Sequence[Any]) -> None:
        """Write at the offset."""
        self._file.write_at(offset, buffers)
        with self._lock:
            self._taken += sum(memoryview(buffer).nbytes for buffer in buffers)

    def end(self, length: int) -> None:
        """Nothing is held back."""
        _require_all(self._taken, length)
        self.written = length


class StreamOutput:
    """A binary file object that is written forward only: a pipe, a socket, a remote file."""

    ordered = True

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.written = 0

    def put(self, offset: int, buffers: Sequence[Any]) -> None:
        """Write next; raw streams may take less than they are given."""
        _require_all(self.written, offset)
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            self.written += len(view)
            while len(view):
                count = self._stream.write(view)
                if count is None and isinstance(self._stream, io.RawIOBase):
                    # Many file-like objects return nothing and take all; these took nothing.
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                view = view[len(view) if count is None else count :]

    def end(self, length: int) -> None:
        """Flush what the stream holds."""
        _require_all(self.written, length)
        flush = getattr(self._stream, "flush", None)
        if flush is not None:
            flush()


class ZstdOutput:
    """Compresses the text frame by frame into another output."""

    ordered = True

    def __init__(self, output: Output, *, level: int | None) -> None:
        self._output = output
        self._compressor = zstandard.ZstdCompressor(level=3 if level is None else level)
        self._held = bytearray()
        self._taken = 0
        self.written = 0

    def put(self, offset: int, buffers: Sequence[Any]) -> None:
        """Collect text; compress whole frames of it."""
        _require_all(self._taken, offset)
        for buffer in buffers:
            self._held += buffer
            self._taken += memoryview(buffer).nbytes
        if len(self._held) >= _FRAME_TEXT:
            self._compress()

    def end(self, length: int) -> None:
        """Compress the rest."""
        _require_all(self._taken, length)
        if self._held:
            self._compress()
        self._output.end(self.written)

    def _compress(self) -> None:
        frame = self._compressor.compress(self._held)
        self._output.put(self.written, [frame])
        self.written += len(frame)
        self._held = bytearray()


def _require_all(taken: int, length: int) -> None:
    """Nothing may be committed whose writers did not all end well, whatever has become of them.

    Raises:
        WriteError: text is missing.
    """
    if taken != length:
        raise WriteError(
            f"{taken} of {length} bytes of the text were written: a writer has ended early",
            hint="The previous checkpoint, if any, is untouched. Save again.",
        )


def write_shard(
    output: Output,
    sources: Sequence[RawSource],
    plans: Sequence[RecordPlan],
    *,
    head: bytes,
    shard: int,
    algorithm: str,
    level: int | None,
    threads: int,
    progress: Callable[[int], None] | None = None,
    check_index: Callable[[bytes], None] | None = None,
    lane: Lane | None = None,
) -> ShardText:
    """Write a whole shard; the returned text knows its entries, its seal and its length.

    Args:
        check_index: gets what stands behind the last record before it is written, and may raise.
        plans: the records in order; each names the position of its source in ``sources``.
        head: what stands before the first record.
        lane: the lane that this runs in, where several shards are written at once.
    """
    text = ShardText(algorithm, shard)
    output.put(0, [text.begin(head)])

    def work(coder: ChunkCodec, job: list[Part]) -> list[_Chunk | None]:
        encoded: list[_Chunk | None] = []
        for part in job:
            plan = plans[part.record]
            source = sources[plan.source]
            start = part.chunk * plan.codec.chunk_bytes
            stop = min(plan.nbytes, start + plan.codec.chunk_bytes)
            if start == stop:
                encoded.append(None)
                continue
            try:
                raw = source.read(start, stop)
                if source.dtype == "bool":
                    check_bool(raw)
                payload = coder.pieces(raw, plan.codec, source.dtype)
                encoded.append((payload, hexdigest(algorithm, raw)))
            except JsonckptError as error:
                error.at(tensor=source.name, chunk=part.chunk)
                raise
        return encoded

    def turn(
        job: list[Part], encoded: list[_Chunk | None]
    ) -> tuple[int, list[bytes | memoryview]] | None:
        start = text.position
        buffers: list[bytes | memoryview] = []
        for part, chunk in zip(job, encoded):
            plan = plans[part.record]
            source = sources[plan.source]
            if chunk is not None and part.first and part.last and len(job) > 1:
                buffers.append(text.add_record(_header(source, plan), *chunk))
                continue
            if part.first:
                buffers.append(text.open_record(_header(source, plan)))
            if chunk is not None:
                before, after = text.add_chunk(sum(map(len, chunk[0])), chunk[1])
                buffers += [before, *chunk[0], after]
            if part.last:
                buffers.append(text.close_record())
        if len(job) > 1:
            # Many small pieces: one copy is cheaper than that many entries of a writev.
            buffers = [b"".join(buffers)]
        if output.ordered:
            output.put(start, buffers)
            return None
        return start, buffers

    def land(_: ChunkCodec, placed: tuple[int, list[bytes | memoryview]] | None) -> None:
        if placed is not None:
            output.put(*placed)

    def done(job: list[Part]) -> None:
        if progress is not None:
            progress(sum(_raw_bytes(plans[part.record], part.chunk) for part in job))

    nbytes = sum(plan.nbytes for plan in plans)
    run_ordered(
        jobs(plans),
        threads=threads_for(threads, nbytes, len(plans)),
        worker=lambda: ChunkCodec(level=level),
        work=work,
        turn=turn,
        land=land,
        done=done,
        lane=lane if threads_for(2, nbytes, len(plans)) > 1 else None,
    )
    _require_all(sum(plan.nbytes for plan in plans), sum(e.nbytes for e in text.entries))
    start = text.position
    end = text.finish()
    if check_index is not None:
        check_index(end)
    output.put(start, [end])
    output.end(text.position)
    return text


def _header(source: RawSource, plan: RecordPlan) -> Header:
    return Header(
        source.name,
        source.dtype,
        source.shape,
        source.device,
        plan.codec,
        plan.nbytes,
        layout=source.layout,
    )


def _raw_bytes(plan: RecordPlan, chunk: int) -> int:
    start = chunk * plan.codec.chunk_bytes
    return min(plan.codec.chunk_bytes, plan.nbytes - start)
