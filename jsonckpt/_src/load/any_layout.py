"""Reads single files that were edited or that a JSON tool wrote again (format section 3.3).

No seal covers them, and their layout and index say nothing of where the payloads lie. So the file
is read twice: once to find the payloads, once to decode them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ..errors import (
    DAMAGED,
    FormatError,
    IncompleteCheckpointError,
    IntegrityError,
    JsonckptError,
    LimitError,
    UnsupportedVersionError,
    is_change_of_text,
    line_endings,
    rewritten,
    seal_missing,
)
from ..format.checksums import check_seal, hexdigest
from ..format.chunk_codec import ChunkCodec
from ..format.filenames import zstd_by_name
from ..format.limits import Limits, exceeds, way_over
from ..format.manifest import manifest_of_head
from ..format.model import Entry, Header, Manifest
from ..format.validation import checksum_name
from ..parallel import run_ordered, threads_for
from ..shards.any_layout import AnyLayoutScanner, plain_payload, record_of
from ..shards.record_parser import Record
from ..storage.protocols import ByteSource, Location, RangeReader, Sink
from .options import ReadOptions
from .record_stream import checksum_error
from .single_file import entry_of, gather

_PIECE = 1 << 20
#: Chunks of small tensors that one job decodes.
_JOB_CHUNKS = 256
#: White space at the end of a file, at most.
_END = 4096


def open_again(
    location: Location, name: str, options: ReadOptions, error: JsonckptError
) -> tuple[Manifest, int]:
    """The manifest of a file whose layout the usual readers refused, and its size on disk.

    Args:
        error: how they refused it. It is raised again if it says best what is wrong.

    Raises:
        IntegrityError: the file has a seal, which cannot fit any more.
        JsonckptError: it is not whole.
    """
    if not _may_be_rewritten(error) or not _may_be_whole(location, name):
        raise error
    limits = options.limits
    with location.stream(name, zstd_window=limits.zstd_window) as source:
        limits = limits.for_text(source.size)
        scanner = AnyLayoutScanner(limits, limits.most_chunks(source.size))
        try:
            scan_text(scanner, source, limits, compressed=source.compressed)
            members = scanner.finish()
        except IncompleteCheckpointError:
            raise error from None
        except (FormatError, LimitError) as other:
            says_enough = isinstance(error, LimitError) and not is_change_of_text(error)
            if says_enough or not scanner.explains(other):
                raise error from None
            raise other from error
        if "seal" not in members:
            raise seal_missing() from error
        if members["seal"] is not None:
            raise _of_a_sealed_file(location, name, options, error, laid_out=scanner.is_laid_out)
        check_seal("", options.expected_digest)
        algorithm = checksum_name(members.get("checksum"))
        pairs = zip(members["tensors"], scanner.found)
        records = (record_of(item, found, limits, algorithm) for item, found in pairs)
        manifest = manifest_of_head(
            members,
            [entry_of(record) for record in records],
            scanner.position,
            options.limits,
            on_disk=source.size,
            any_layout=True,
        )
        return manifest, source.size or 0


def is_ranged(location: Location, name: str) -> bool:
    """Whether ranges of a file's text can be read: its server allows it, and it is no zstd."""
    return (
        zstd_by_name(name) is not True and location.ranged(name) and not location.compressed(name)
    )


def _of_a_sealed_file(
    location: Location, name: str, options: ReadOptions, error: JsonckptError, *, laid_out: bool
) -> JsonckptError:
    """The error for a file that is whole JSON, but does not match its seal.

    Args:
        laid_out: whether its records begin in the layout of a writer.
    """
    if error.hint == rewritten("pipe").hint:
        return rewritten()
    if isinstance(error, IntegrityError) or error.hint == line_endings().hint:
        return error
    if not laid_out:
        return rewritten()
    if isinstance(error, LimitError):
        return error
    if is_ranged(location, name):
        try:  # by the text, not by its index
            with location.stream(name, zstd_window=options.limits.zstd_window) as source:
                gather(source, options)
        except JsonckptError as other:
            if is_change_of_text(other):
                return other
    return error


def scan_text(
    scanner: AnyLayoutScanner, source: ByteSource, limits: Limits, *, compressed: bool
) -> None:
    """Push all of a source's text to a scanner.

    Raises:
        LimitError: a compressed file has more text than any checkpoint of its size.
    """
    most = limits.total_bytes(source.size or 0) if compressed else None
    buffer = memoryview(bytearray(_PIECE))
    while count := source.readinto(buffer):
        scanner.push(bytes(buffer[:count]))
        if exceeds(scanner.position, None if most is None else 2 * most):
            raise LimitError(
                f"over {scanner.position} bytes of text in {source.size} bytes",
                hint=way_over("total_floor"),
            )


def _may_be_rewritten(error: JsonckptError) -> bool:
    if isinstance(error, UnsupportedVersionError) or isinstance(
        error.__cause__, OSError | ImportError
    ):
        return False
    refusals = FormatError | IncompleteCheckpointError | LimitError
    return isinstance(error, refusals) or is_change_of_text(error)


def _may_be_whole(location: Location, name: str) -> bool:
    """Whether a file ends as JSON does. A compressed one may."""
    if not is_ranged(location, name):
        return True
    with location.file(name) as file:
        end = bytearray(min(_END, file.size))
        file.read_range(file.size - len(end), memoryview(end))
    return end.rstrip().endswith(b"}")


class ForwardRanges:
    """Ranges of a text that can only be read forward, in order. A :class:`RangeReader`."""

    size = 0

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._at = 0

    def read_range(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on, which is not before the end of the last range."""
        scratch = memoryview(bytearray(min(_PIECE, offset - self._at)))
        while self._at < offset:
            self._fill(scratch[: min(len(scratch), offset - self._at)])
        self._fill(buffer)

    def _fill(self, buffer: memoryview) -> None:
        while buffer:
            count = self._source.readinto(buffer)
            if not count:
                raise IncompleteCheckpointError(
                    f"the text ends after {self._at} bytes; it was longer when it was opened"
                )
            self._at += count
            buffer = buffer[count:]


class AnyLayoutReader:
    """Reads tensors of such a file by the ranges that were found.

    Args:
        forward: the ranges can only be read in order.
    """

    def __init__(
        self, file: RangeReader, algorithm: str, options: ReadOptions, *, forward: bool
    ) -> None:
        self._file = file
        self._algorithm = algorithm
        self._options = options
        self._forward = forward

    def read(
        self,
        entries: Sequence[Entry],
        sinks: Mapping[str, Sink | None],
        advance: Callable[[int], None] | None = None,
    ) -> None:
        """Read records into their sinks, as :meth:`IndexedReader.read` does."""

        def work(coder: ChunkCodec, job: list[tuple[Entry, int]]) -> None:
            for entry, chunk in job:
                self._decode(coder, entry, chunk, sinks[entry.name])

        def done(job: list[tuple[Entry, int]]) -> None:
            if advance is not None:
                advance(sum(stop - start for start, stop in (e.raw_range(c) for e, c in job)))

        nbytes = sum(entry.nbytes for entry in entries)
        run_ordered(
            _jobs([entry for entry in entries if sinks[entry.name] is not None]),
            threads=1
            if self._forward
            else threads_for(self._options.threads, nbytes, len(entries)),
            worker=self._coder,
            work=work,
            turn=lambda _, nothing: nothing,
            done=done,
            ahead=16,
        )

    def read_chunks(self, entry: Entry, chunks: Sequence[int], sink: Sink) -> None:
        """As :meth:`IndexedReader.read_chunks`."""
        coder = self._coder()
        for chunk in chunks:
            self._decode(coder, entry, chunk, sink)

    def check_chunk(self, entry: Entry, chunk: int) -> None:
        """As :meth:`IndexedReader.check_chunk`."""
        self._decode(self._coder(), entry, chunk, None)

    def records(
        self, entries: Sequence[Entry], open_sink: Callable[[Header], Sink | None]
    ) -> Iterator[Record]:
        """The records in order, each after its payloads went to its sink."""
        coder = self._coder()
        for entry in entries:
            sink = open_sink(entry)
            if sink is not None:
                for chunk in range(len(entry.chunks)):
                    self._decode(coder, entry, chunk, sink)
            del sink  # the memory of a tensor must not stay alive while the next one is made
            yield Record(entry, entry.offset, entry.length, entry.chunks)

    def _coder(self) -> ChunkCodec:
        return ChunkCodec(zstd_window=self._options.limits.zstd_window)

    def _decode(self, coder: ChunkCodec, entry: Entry, chunk: int, sink: Sink | None) -> None:
        """Decode one payload and compare its checksum. Without a sink, keep nothing."""
        start, stop = entry.raw_range(chunk)
        offset, length, checksum = entry.chunks[chunk]
        window = sink.window(start, stop) if sink is not None else None
        out = window if window is not None else memoryview(bytearray(stop - start))
        try:
            payload = plain_payload(pieces(self._file, offset, length), entry, chunk)
            coder.decode_into(memoryview(payload), entry.codec, entry.dtype, out)
            if self._options.verify or sink is None:
                found = hexdigest(self._algorithm, out)
                if found != checksum:
                    raise checksum_error(entry.name, chunk, checksum, found)
            if sink is not None and window is None:
                sink.write(start, out)
        except JsonckptError as error:
            hint = _CHANGED_NUMBERS if entry.codec.encoding == "list" else DAMAGED
            if error.hint == DAMAGED:
                error.hint = hint
            raise error.at(tensor=entry.name, chunk=chunk, hint=hint) from error.__cause__


_CHANGED_NUMBERS = (
    "The file was damaged, or a JSON tool changed a number (-0.0 to 0, or digits of a large "
    "integer): take a copy from before that"
)


def pieces(file: RangeReader, offset: int, length: int) -> Iterator[bytes]:
    """A range of a file, piece by piece."""
    stop = offset + length
    while offset < stop:
        piece = bytearray(min(_PIECE, stop - offset))
        file.read_range(offset, memoryview(piece))
        yield bytes(piece)
        offset += len(piece)


def _jobs(entries: Sequence[Entry]) -> Iterator[list[tuple[Entry, int]]]:
    """Chunks in order: large ones alone, small ones together."""
    job: list[tuple[Entry, int]] = []
    nbytes = 0
    for entry in entries:
        for chunk, (_, length, _) in enumerate(entry.chunks):
            job.append((entry, chunk))
            nbytes += length
            if nbytes >= _PIECE or len(job) >= _JOB_CHUNKS:
                yield job
                job, nbytes = [], 0
    if job:
        yield job
