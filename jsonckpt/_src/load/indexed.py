"""The indexed reader: byte ranges from the manifest, several threads, any part of a checkpoint.

Where the ranges of a shard's payloads are known, its text is read in pieces that tile it: each
piece is a stretch of file with some payloads in it. The payloads are decoded straight into their
tensors in parallel; what lies between them goes, in order, through the same
:class:`ShardParser` as in the streaming reader, and must say exactly what
the manifest says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DAMAGED, FormatError, IncompleteCheckpointError, JsonckptError, quote
from ..format.checksums import hexdigest
from ..format.chunk_codec import ChunkCodec
from ..format.limits import Limits
from ..format.model import Entry
from ..format.record_parser import Record
from ..format.shard_parser import ShardParser
from ..parallel import run_ordered, threads_for
from ..storage.protocols import RangeReader, Sink
from .record_stream import checksum_error

#: A piece ends when it has this many bytes of text; small records share one.
_PIECE_BYTES = 1 << 20
_PIECE_CHUNKS = 1_024
#: Pieces whose text waits for its turn; only what stands between payloads is held.
_AHEAD = 16


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of file.

    ``payloads`` are ``(offset, length, entry, chunk)``, ``entry`` the position in the list of
    entries that are read. ``begins`` and ``ends``: whether a run of records begins and ends with
    it.
    """

    start: int
    stop: int
    payloads: tuple[tuple[int, int, int, int], ...]
    begins: bool
    ends: bool


def tile(entries: Sequence[Entry], whole: int | None) -> Iterator[Piece]:
    """The pieces that hold the records of ``entries``, in order.

    Args:
        entries: records of one shard, in the order of their offsets.
        whole: the size of the file, when all of it is read; ``None`` reads the records only,
            neighbours together.
    """
    first, begins = 0, True
    position = 0 if whole is not None else (entries[0].offset if entries else 0)
    payloads: list[tuple[int, int, int, int]] = []

    def text_until(end: int) -> Iterator[Piece]:
        """Give away what is too much text for one piece: a large index, or a bad file."""
        nonlocal payloads, position, begins
        if payloads and end - position > _PIECE_BYTES:
            stop = payloads[-1][0] + payloads[-1][1]
            yield Piece(position, stop, tuple(payloads), begins, False)
            payloads, position, begins = [], stop, False
        while end - position > _PIECE_BYTES:
            yield Piece(position, position + _PIECE_BYTES, (), begins, False)
            position, begins = position + _PIECE_BYTES, False

    for number, entry in enumerate(entries):
        if whole is None and number > first:
            previous = entries[number - 1]
            if entry.offset != previous.offset + previous.length + 2:  # a comma and a line feed
                stop = previous.offset + previous.length
                yield Piece(position, stop, tuple(payloads), begins, True)
                payloads, position, begins, first = [], entry.offset, True, number
        for chunk, (offset, length, _) in enumerate(entry.chunks):
            if offset - position > _PIECE_BYTES:
                yield from text_until(offset)
            payloads.append((offset, length, number, chunk))
            stop = offset + length
            if stop - position >= _PIECE_BYTES or len(payloads) >= _PIECE_CHUNKS:
                yield Piece(position, stop, tuple(payloads), begins, False)
                payloads, position, begins = [], stop, False
    if whole is not None:
        yield from text_until(whole)
        yield Piece(position, whole, tuple(payloads), begins, True)
    elif entries:
        stop = entries[-1].offset + entries[-1].length
        yield Piece(position, stop, tuple(payloads), begins, True)


class _WorkerBuffers:
    """What one thread owns."""

    def __init__(self, limits: Limits) -> None:
        self.coder = ChunkCodec(zstd_window=limits.zstd_window)
        self._text = np.empty(0, np.uint8)
        self._raw = np.empty(0, np.uint8)

    def text(self, nbytes: int) -> memoryview:
        # Not a bytearray, whose zeros would be written for nothing.
        if len(self._text) < nbytes:
            self._text = np.empty(nbytes, np.uint8)
        return self._text.data[:nbytes]

    def breaks_line(self, start: int, stop: int) -> bool:
        return bool((self._text[start:stop] == ord("\n")).any())

    def raw(self, nbytes: int) -> memoryview:
        if len(self._raw) < nbytes:
            self._raw = np.empty(nbytes, np.uint8)
        return self._raw.data[:nbytes]


def read_shard(
    file: RangeReader,
    entries: Sequence[Entry],
    sinks: Sequence[Sink | None],
    *,
    algorithm: str,
    limits: Limits,
    threads: int,
    whole: bool,
    verify: bool = True,
    on_head: Callable[[ShardParser], None] | None = None,
    progress: Callable[[int], None] | None = None,
    head_digest: str = "",
) -> str:
    """Read records of one shard into their sinks.

    Args:
        entries: what the manifest says of the records to read, by offset.
        sinks: for each entry where its bytes go; ``None`` checks its text but decodes nothing.
        whole: ``entries`` are all records of the file, which is read and checked from end to end.
        verify: compare the checksums of the chunks.
        progress: called with the raw bytes of each piece that is done.
        head_digest: the checksum of the file's head, where it has been parsed before.

    Returns:
        the seal of the file, ``""`` unless ``whole``.

    Raises:
        JsonckptError: the file is not what the manifest says; the message says where.
    """
    expected = iter(entries)

    def compare(record: Record) -> None:
        must_agree(record, next(expected, None))

    reader = ShardParser(
        limits,
        whole=whole,
        algorithm=algorithm,
        on_record=compare,
        expected=entries,
        head_digest=head_digest,
    )
    headed = False

    def work(hands: _WorkerBuffers, piece: Piece) -> list[bytes]:
        text = hands.text(piece.stop - piece.start)
        file.read_range(piece.start, text)
        between = []
        position = piece.start
        for offset, length, number, chunk in piece.payloads:
            between.append(bytes(text[position - piece.start : offset - piece.start]))
            position = offset + length
            sink, entry = sinks[number], entries[number]
            if sink is None:
                # Nothing is asked of it but that it is one line, as the text around it says.
                if hands.breaks_line(offset - piece.start, position - piece.start):
                    raise FormatError(
                        "a line feed in the payload", tensor=entry.name, chunk=chunk, hint=DAMAGED
                    )
                continue
            payload = text[offset - piece.start : position - piece.start]
            _decode(hands, payload, entry, chunk, sink, algorithm if verify else None)
        between.append(bytes(text[position - piece.start :]))
        return between

    def turn(piece: Piece, between: list[bytes]) -> None:
        nonlocal headed
        if piece.begins and not whole:
            reader.begin_run(piece.start)
        for text, payload in zip(between, piece.payloads):
            reader.text(text)
            reader.payload(payload[1])
        reader.text(between[-1])
        if piece.ends and not whole:
            reader.end_run()
        if whole and not headed and not reader.in_head:
            headed = True
            if on_head is not None and not head_digest:
                on_head(reader)

    def done(piece: Piece) -> None:
        if progress is not None:
            progress(sum(_raw_bytes(entries, payload) for payload in piece.payloads))

    run_ordered(
        tile(entries, file.size if whole else None),
        threads=_threads(entries, threads),
        worker=lambda: _WorkerBuffers(limits),
        work=work,
        turn=turn,
        done=done,
        ahead=_AHEAD,
    )
    reader.close()
    missing = next(expected, None)
    if missing is not None:
        raise FormatError("the manifest names a tensor that the shard lacks", tensor=missing.name)
    return reader.seal


def _threads(entries: Sequence[Entry], threads: int) -> int:
    if all(entry.codec.encoding == "list" for entry in entries):
        return 1  # their parser holds Python's lock: a second thread only takes it away
    return threads_for(threads, sum(entry.nbytes for entry in entries), len(entries))


@dataclass(frozen=True, slots=True)
class PartSink:
    """Passes on the raw bytes ``[start, stop)`` of a tensor as a tensor of their own."""

    sink: Sink
    start: int
    stop: int

    def window(self, start: int, stop: int) -> memoryview | None:
        """The sink's own memory where the bytes lie inside the part."""
        if self.start <= start and stop <= self.stop:
            return self.sink.window(start - self.start, stop - self.start)
        return None

    def write(self, start: int, data: memoryview) -> None:
        """Hand over what lies inside the part."""
        low, high = max(start, self.start), min(start + len(data), self.stop)
        if low >= high:
            return
        part = data[low - start : high - start]
        window = self.sink.window(low - self.start, high - self.start)
        if window is None:
            self.sink.write(low - self.start, part)
        else:
            window[:] = part


def read_part(
    file: RangeReader,
    entry: Entry,
    start: int,
    stop: int,
    sink: Sink,
    *,
    algorithm: str,
    limits: Limits,
    verify: bool = True,
) -> None:
    """Read the raw bytes ``[start, stop)`` of one tensor: its chunks that hold them.

    The cost grows with the part, not with the tensor (but for some 40 bytes of checksum a chunk).

    Raises:
        JsonckptError: the record is not what the manifest says.
    """
    hands = _WorkerBuffers(limits)
    part = PartSink(sink, start, stop)
    size = entry.codec.chunk_bytes
    wanted = range(start // size, -(-stop // size))
    records: list[Record] = []
    reader = ShardParser(limits, whole=False, algorithm=algorithm, on_record=records.append)
    reader.begin_run(entry.offset)

    def text_between(begin: int, end: int) -> bytes:
        text = bytearray(end - begin)
        file.read_range(begin, memoryview(text))
        return bytes(text)

    between = b"],\n[" if entry.codec.encoding == "list" else b'",\n"'
    position = entry.offset
    for chunk, (offset, length, _) in enumerate(entry.chunks):
        near = chunk in wanted or (chunk - 1) in wanted or chunk == 0
        reader.text(text_between(position, offset) if near else between)
        reader.payload(length)
        position = offset + length
        if chunk in wanted:
            payload = hands.text(length)
            file.read_range(offset, payload)
            _decode(hands, payload, entry, chunk, part, algorithm if verify else None)
    reader.text(text_between(position, entry.offset + entry.length))
    reader.end_run()
    reader.close()
    must_agree(records[0], entry)


def check_chunk(
    file: RangeReader, entry: Entry, chunk: int, *, algorithm: str, limits: Limits
) -> None:
    """Decode one payload and compare its checksum; the text around it is not looked at.

    Raises:
        JsonckptError: it is damaged; without a tensor when the file ends before it.
    """
    hands = _WorkerBuffers(limits)
    offset, length, _ = entry.chunks[chunk]
    payload = hands.text(length)
    try:
        file.read_range(offset, payload)
    except IncompleteCheckpointError:
        raise
    except JsonckptError as error:  # the system fails to read here, and may well elsewhere
        error.at(tensor=entry.name, chunk=chunk)
        raise
    _decode(hands, payload, entry, chunk, None, algorithm)


def _raw_bytes(entries: Sequence[Entry], payload: tuple[int, int, int, int]) -> int:
    start, stop = entries[payload[2]].raw_range(payload[3])
    return stop - start


def _decode(
    hands: _WorkerBuffers,
    payload: memoryview,
    entry: Entry,
    chunk: int,
    sink: Sink | None,
    algorithm: str | None,
) -> None:
    """Decode one payload and compare its checksum, unless ``algorithm`` is ``None``.

    Args:
        sink: ``None`` only checks.
    """
    start, stop = entry.raw_range(chunk)
    window = sink.window(start, stop) if sink is not None else None
    out = window if window is not None else hands.raw(stop - start)
    try:
        hands.coder.decode_into(payload, entry.codec, entry.dtype, out)
        if algorithm is not None:
            found = hexdigest(algorithm, out)
            if found != entry.chunks[chunk][2]:
                raise checksum_error(entry.name, chunk, entry.chunks[chunk][2], found)
        if sink is not None and window is None:
            sink.write(start, out)
    except JsonckptError as error:
        error.at(tensor=entry.name, chunk=chunk, hint=DAMAGED)
        raise


def must_agree(record: Record, entry: Entry | None) -> None:
    """Whether a shard's record is what the manifest says of it.

    Raises:
        FormatError: it is not.
    """
    header = record.header
    if entry is None:
        raise FormatError("the shard holds a tensor that the manifest lacks", tensor=header.name)
    for what, said, found in (
        ("name", entry.name, header.name),
        ("dtype", entry.dtype, header.dtype),
        ("shape", entry.shape, header.shape),
        ("device", entry.device, header.device),
        ("stride", entry.layout.stride, header.layout.stride),
        ("storage", entry.layout.storage, header.layout.storage),
        ("codec", entry.codec, header.codec),
        ("range", (entry.offset, entry.length), (record.offset, record.length)),
        ("chunks", entry.chunks, record.chunks),
    ):
        if said != found:
            raise FormatError(
                f"the manifest says {what} {quote(said)}, the shard says {quote(found)}",
                tensor=entry.name,
                hint="Manifest and shard do not belong together, or one was changed.",
            )
