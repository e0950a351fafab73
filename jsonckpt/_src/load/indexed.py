"""Reads records by the byte ranges of a manifest: several threads, any part of a checkpoint.

The text of a shard is read in consecutive pieces. Each piece is a range of the file with some
payloads in it. The payloads are decoded straight into their tensors, in parallel. The text between
them goes, in order, through the same parser as in :mod:`.record_stream`, and must agree with the
manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DAMAGED, FormatError, IncompleteCheckpointError, JsonckptError, quote
from ..format.checksums import hexdigest
from ..format.chunk_codec import ChunkCodec
from ..format.model import Codec, Entry
from ..parallel import run_ordered, threads_for
from ..shards.record_parser import Record
from ..shards.shard_parser import RunParser, ShardParser
from ..storage.protocols import PlannedReader, Sink
from .options import ReadOptions
from .record_stream import checksum_error

#: A piece ends when it has this many bytes of text. Small records share one piece.
_PIECE_BYTES = 1 << 20
_PIECE_CHUNKS = 1_024
#: How many pieces may wait for their turn. Only the text between their payloads is kept.
_AHEAD = 16


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of a file.

    ``payloads`` are ``(offset, length, entry, chunk)``, where ``entry`` is a position in the list
    of entries. ``begins`` and ``ends`` tell whether a run of consecutive records begins and ends
    here.
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
        whole: the size of the file, to read all of it. ``None`` reads only the records, neighbours
            together.
    """
    first, begins = 0, True
    position = 0 if whole is not None else (entries[0].offset if entries else 0)
    payloads: list[tuple[int, int, int, int]] = []

    def text_until(end: int) -> Iterator[Piece]:
        """Pieces for text that is too long for one: a large index, or a bad file."""
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


class _Decoder:
    """Decodes payloads for one thread, with its own buffers.

    Args:
        algorithm: of the checksums; ``None`` does not compare them.
    """

    def __init__(self, options: ReadOptions, algorithm: str | None) -> None:
        self._codec = ChunkCodec(zstd_window=options.limits.zstd_window)
        self._algorithm = algorithm
        self._text = np.empty(0, np.uint8)
        self._raw = np.empty(0, np.uint8)

    def text(self, nbytes: int) -> memoryview:
        """A buffer for text, valid until the next call."""
        # Not a bytearray: filling it with zeros costs time.
        if len(self._text) < nbytes:
            self._text = np.empty(nbytes, np.uint8)
        return self._text.data[:nbytes]

    def has_line_feed(self, start: int, stop: int) -> bool:
        """Whether there is a line feed in a part of the text buffer."""
        return bool((self._text[start:stop] == ord("\n")).any())

    def decode(self, payload: memoryview, entry: Entry, chunk: int, sink: Sink | None) -> None:
        """Decode one payload and compare its checksum. Without a sink, keep nothing."""
        start, stop = entry.raw_range(chunk)
        window = sink.window(start, stop) if sink is not None else None
        out = window if window is not None else self._scratch(stop - start)
        try:
            self._codec.decode_into(payload, entry.codec, entry.dtype, out)
            if self._algorithm is not None:
                found = hexdigest(self._algorithm, out)
                if found != entry.chunks[chunk][2]:
                    raise checksum_error(entry.name, chunk, entry.chunks[chunk][2], found)
            if sink is not None and window is None:
                sink.write(start, out)
        except JsonckptError as error:
            error.at(tensor=entry.name, chunk=chunk, hint=DAMAGED)
            raise

    def _scratch(self, nbytes: int) -> memoryview:
        if len(self._raw) < nbytes:
            self._raw = np.empty(nbytes, np.uint8)
        return self._raw.data[:nbytes]


class IndexedReader:
    """Reads records of one file by the byte ranges of a manifest.

    Args:
        algorithm: of the checksums.
    """

    def __init__(self, file: PlannedReader, algorithm: str, options: ReadOptions) -> None:
        self._file = file
        self._algorithm = algorithm
        self._options = options

    def _decoder(self) -> _Decoder:
        return _Decoder(self._options, self._algorithm if self._options.verify else None)

    def read(
        self,
        entries: Sequence[Entry],
        sinks: Sequence[Sink | None],
        *,
        whole: bool,
        on_head: Callable[[Mapping[str, Any]], None],
        advance: Callable[[int], None] | None = None,
        head_digest: str = "",
    ) -> str:
        """Read records into their sinks.

        Args:
            entries: the entries of the records in the manifest, by offset.
            sinks: the sink of each entry. ``None`` checks the text of the record but decodes
                nothing.
            whole: ``entries`` are all records of the file, and all of the file is read and checked.
            on_head: called with the head of a file that is read whole.
            advance: called with the raw bytes of each piece that is done.
            head_digest: the checksum of the file's head, if the head has been parsed before.
                ``on_head`` is not called then.

        Returns:
            the seal of the file, ``""`` unless ``whole``.

        Raises:
            JsonckptError: the file differs from the manifest. The message says where.
        """
        expected = ExpectedRecords(entries)
        arguments = self._options.limits, self._algorithm, expected.check, entries
        shard = ShardParser(*arguments, head_digest=head_digest) if whole else None
        parser = shard or RunParser(*arguments)

        def turn(piece: Piece, between: list[bytes]) -> None:
            was_in_head = parser.in_head
            if piece.begins and not whole:
                parser.begin_run(piece.start)
            for text, payload in zip(between, piece.payloads):
                parser.text(text)
                parser.payload(payload[1])
            parser.text(between[-1])
            if piece.ends and not whole:
                parser.end_run()
            if was_in_head and not parser.in_head and not head_digest:
                on_head(parser.head)

        def done(piece: Piece) -> None:
            if advance is not None:
                ranges = [
                    entries[number].raw_range(chunk) for _, _, number, chunk in piece.payloads
                ]
                advance(sum(stop - start for start, stop in ranges))

        size = self._file.size if whole else None
        self._file.expect((piece.start, piece.stop) for piece in tile(entries, size))
        run_ordered(
            tile(entries, size),
            threads=self._threads(entries),
            worker=self._decoder,
            work=lambda decoder, piece: self._read_piece(decoder, piece, entries, sinks),
            turn=turn,
            done=done,
            ahead=_AHEAD,
        )
        if shard is not None:
            shard.close()
        expected.check_end()
        return parser.seal

    def _read_piece(
        self,
        decoder: _Decoder,
        piece: Piece,
        entries: Sequence[Entry],
        sinks: Sequence[Sink | None],
    ) -> list[bytes]:
        """Read a piece and decode its payloads. Returns the text between them."""
        text = decoder.text(piece.stop - piece.start)
        self._file.read_range(piece.start, text)
        between = []
        position = 0
        for offset, length, number, chunk in piece.payloads:
            start = offset - piece.start
            between.append(bytes(text[position:start]))
            position = start + length
            sink = sinks[number]
            if sink is not None:
                decoder.decode(text[start:position], entries[number], chunk, sink)
            elif decoder.has_line_feed(start, position):
                # The text around it shows that it is one line. Nothing more is checked.
                raise FormatError(
                    "a line feed in the payload",
                    tensor=entries[number].name,
                    chunk=chunk,
                    hint=DAMAGED,
                )
        between.append(bytes(text[position:]))
        return between

    def _threads(self, entries: Sequence[Entry]) -> int:
        if all(entry.codec.encoding == "list" for entry in entries):
            return 1  # their parser holds Python's lock, so a second thread does not help
        nbytes = sum(entry.nbytes for entry in entries)
        return threads_for(self._options.threads, nbytes, len(entries))

    def read_chunks(self, entry: Entry, chunks: Sequence[int], sink: Sink) -> None:
        """Read some chunks of one tensor: neighbours with one request, several at once.

        The cost grows with the chunks, not with the tensor (except about 40 bytes of checksum for
        each chunk).

        Args:
            chunks: their numbers, ascending.

        Raises:
            JsonckptError: the record differs from the manifest.
        """
        expected = ExpectedRecords([entry])
        parser = RunParser(self._options.limits, self._algorithm, expected.check)
        parser.begin_run(entry.offset)
        lengths = iter([length for _, length, _ in entry.chunks])
        between = between_chunks(entry.codec)
        at_payload = True

        def turn(piece: Piece, texts: list[bytes]) -> None:
            nonlocal at_payload
            while parser.position < piece.start:  # chunks that nobody wants
                if at_payload:
                    parser.payload(next(lengths))
                else:
                    parser.text(between)
                at_payload = not at_payload
            for text, _ in zip(texts, piece.payloads):
                parser.text(text)
                parser.payload(next(lengths))
            parser.text(texts[-1])
            at_payload = not (piece.payloads and not texts[-1])

        wanted = sum(stop - start for start, stop in map(entry.raw_range, chunks))
        self._file.expect((piece.start, piece.stop) for piece in _pieces_of(entry, chunks))
        run_ordered(
            _pieces_of(entry, chunks),
            threads=1
            if entry.codec.encoding == "list"
            else threads_for(self._options.threads, wanted, len(chunks)),
            worker=self._decoder,
            work=lambda decoder, piece: self._read_piece(decoder, piece, [entry], [sink]),
            turn=turn,
            ahead=_AHEAD,
        )
        parser.end_run()
        expected.check_end()

    def check_chunk(self, entry: Entry, chunk: int) -> None:
        """Decode one payload and compare its checksum, without the text around it.

        Raises:
            JsonckptError: it is damaged. The error names no tensor if the file ends before it.
        """
        decoder = _Decoder(self._options, self._algorithm)
        try:
            payload = self._payload(decoder, entry, chunk)
        except IncompleteCheckpointError:
            raise
        except JsonckptError as error:  # the system cannot read here, but perhaps elsewhere
            error.at(tensor=entry.name, chunk=chunk)
            raise
        decoder.decode(payload, entry, chunk, None)

    def _payload(self, decoder: _Decoder, entry: Entry, chunk: int) -> memoryview:
        offset, length, _ = entry.chunks[chunk]
        payload = decoder.text(length)
        self._file.read_range(offset, payload)
        return payload


def _pieces_of(entry: Entry, chunks: Sequence[int]) -> Iterator[Piece]:
    """The pieces that hold some chunks of a record, and its head and tail, in order.

    The text before and after each chunk is in its piece.
    """
    end = entry.offset + entry.length
    stops = [offset + length for offset, length, _ in entry.chunks]
    head = entry.chunks[0][0] if entry.chunks else end
    payloads: list[tuple[int, int, int, int]] = []
    start = stop = entry.offset
    if not chunks or chunks[0]:
        yield Piece(start, head, (), False, False)
        start = stop = head
    for number, chunk in enumerate(chunks):
        if chunk and (not number or chunks[number - 1] != chunk - 1):
            start = stops[chunk - 1]
        offset, length, _ = entry.chunks[chunk]
        payloads.append((offset, length, 0, chunk))
        last = chunk == len(stops) - 1
        alone = number + 1 == len(chunks) or chunks[number + 1] != chunk + 1
        stop = end if last else entry.chunks[chunk + 1][0] if alone else stops[chunk]
        if alone or stop - start >= _PIECE_BYTES or len(payloads) >= _PIECE_CHUNKS:
            yield Piece(start, stop, tuple(payloads), False, False)
            payloads, start = [], stop
    if stop < end and entry.chunks:
        yield Piece(stops[-1], end, (), False, False)


def between_chunks(codec: Codec) -> bytes:
    """The text between two payloads of a record."""
    return b"],\n[" if codec.encoding == "list" else b'",\n"'


class ExpectedRecords:
    """Compares the records of a shard, one by one, with the manifest."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._left = iter(entries)

    def check(self, record: Record) -> None:
        """Compare the next record.

        Raises:
            FormatError: it differs.
        """
        header, entry = record.header, next(self._left, None)
        if entry is None:
            raise FormatError("the shard has a tensor that the manifest lacks", tensor=header.name)
        for what, stated, found in (
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
            if stated != found:
                raise FormatError(
                    f"the manifest says {what} {quote(stated)}, the shard says {quote(found)}",
                    tensor=entry.name,
                    hint="Manifest and shard do not belong together, or one was changed.",
                )

    def check_end(self) -> None:
        """Check that there is a record for each entry.

        Raises:
            FormatError: one is missing.
        """
        missing = next(self._left, None)
        if missing is not None:
            raise FormatError("the manifest has a tensor that the shard lacks", tensor=missing.name)
