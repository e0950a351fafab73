"""Single-file checkpoints: builds their manifest from the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import (
    CUT_OFF,
    FormatError,
    IncompleteCheckpointError,
    JsonckptError,
    LimitError,
    line_endings,
    quote,
    rewritten,
)
from ..format import json_text, model
from ..format.checksums import check_seal
from ..format.limits import Limits, exceeds, way_over
from ..format.manifest import manifest_of_head
from ..format.model import SHARD_FORMAT, Entry, Header, Manifest
from ..format.validation import LONGEST_BEGINNING, LONGEST_LINE, check_not_newer, no_checkpoint
from ..shards.record_parser import Record
from ..shards.shard_parser import ShardParser
from ..shards.shard_text import TRAILER_MAX, has_crlf, index_offset, is_laid_out
from ..storage.protocols import ByteSource, RangeReader, Sink
from .indexed import between_chunks
from .options import ReadOptions
from .record_stream import RecordStream


def entry_of(record: Record, shard: int = 0) -> Entry:
    """The entry that a manifest would have for a record."""
    return model.entry_of(record.header, shard, record.offset, record.length, record.chunks)


def gather(
    source: ByteSource,
    options: ReadOptions,
    open_sink: Callable[[Header], Sink | None] | None = None,
) -> Manifest:
    """Read a single file forward, without decoding payloads.

    Args:
        open_sink: gives a record's sink. Then its payloads are decoded and checked.

    Raises:
        IntegrityError: it is not the file that ``options.expected_digest`` pins.
    """
    stream = RecordStream(source, options, alone=True)
    head = stream.read_head()
    entries = [entry_of(record) for record in stream.records(open_sink or (lambda _: None))]
    check_seal(stream.parser.seal, options.expected_digest)
    size, seal = stream.parser.position, stream.parser.seal
    return manifest_of_head(head, entries, size, options.limits, on_disk=source.size, seal=seal)


def from_index(file: RangeReader, options: ReadOptions) -> Manifest:
    """Read the text around the payloads of a single file, by its index.

    Raises:
        IntegrityError: it is not the file that ``options.expected_digest`` pins.
    """
    try:
        return _from_index(file, options.limits, options.expected_digest)
    except JsonckptError:
        # This may be the file of a later release.
        beginning = bytearray(min(file.size, LONGEST_BEGINNING))
        file.read_range(0, memoryview(beginning))
        check_not_newer(bytes(beginning))
        raise


def _from_index(file: RangeReader, limits: Limits, expected_digest: str | None) -> Manifest:
    rows = read_index(file, limits)
    entries: list[Entry] = []
    reader = ShardParser(limits, on_record=lambda record: entries.append(entry_of(record)))
    position = 0
    for offset, _, payloads in rows:
        if not payloads:
            continue
        stop = payloads[0][0]
        if stop < position:
            raise FormatError(f"index: the record at {offset} overlaps the one before it")
        _push(reader, file, position, stop, limits)
        header = reader.header
        if header is None:
            raise FormatError("index does not match the positions of the records")
        if header.chunk_count != len(payloads):
            raise FormatError(
                f"index names {len(payloads)} chunks, a shape of {quote(list(header.shape))} "
                f"has {header.chunk_count}",
                tensor=header.name,
            )
        between = between_chunks(header.codec)
        for number, (start, length) in enumerate(payloads):
            if number:
                # They are compared with the file when the payloads are read.
                reader.text(between)
            if reader.position != start:
                raise FormatError(
                    "index does not match the positions of the chunks", tensor=header.name
                )
            reader.payload(length)
            position = start + length
    _push(reader, file, position, file.size, limits)
    reader.close()
    check_seal(reader.seal, expected_digest)
    return manifest_of_head(
        reader.head, entries, file.size, limits, head_digest=reader.head_digest, seal=reader.seal
    )


def _push(reader: ShardParser, file: RangeReader, start: int, stop: int, limits: Limits) -> None:
    # This text may hold the end of a record and the index, or the file's head and the head of a
    # record. The parser applies its limits to each of them, as in a stream.
    most = None if limits.manifest_bytes is None else 2 * limits.manifest_bytes + 2 * LONGEST_LINE
    if exceeds(stop - start, most):
        raise LimitError(
            f"{stop - start} bytes of text between two tensors, "
            f"the limit is {limits.manifest_bytes}",
            hint=way_over("manifest_bytes"),
        )
    text = bytearray(stop - start)
    file.read_range(start, memoryview(text))
    reader.text(bytes(text))


def read_index(file: RangeReader, limits: Limits) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """The rows of a file's index: for each record its range, and the ranges of its payloads.

    Raises:
        JsonckptError: the file does not end in an index and its offset, or they are wrong.
    """
    size = file.size
    tail = bytearray(min(size, TRAILER_MAX))
    file.read_range(size - len(tail), memoryview(tail))
    offset = index_offset(bytes(tail))
    if offset is None:
        raise _no_trailer(file)
    if offset >= size:
        raise FormatError(f"index_offset is {offset}, the file has {size} bytes")
    if exceeds(size - offset, limits.manifest_bytes):
        raise LimitError(
            f"the index has {size - offset} bytes, the limit is {limits.manifest_bytes}",
            hint=way_over("manifest_bytes"),
        )
    text = bytearray(size - offset)
    file.read_range(offset, memoryview(text))
    stop = text.rfind(b',"seal":')
    rows: Any = json_text.parse(bytes(text[:stop]), what="the index", max_marks=limits.marks)
    checked = []
    found: list[Any] = rows if isinstance(rows, list) else [None]
    for row in found:
        if not _is_row(row):
            raise FormatError(f"index: {quote(row)} is not [offset, length, [[offset, length], …]]")
        start, length, payloads = row
        if any(o + n > size for o, n in payloads) or start + length > size:
            raise FormatError(f"index: {quote(row)} is outside the file of {size} bytes")
        checked.append((start, length, [(o, n) for o, n in payloads]))
    return checked


def check_text_is_unchanged(file: RangeReader) -> None:
    """Check that a shard of another size than it had is not one whose whole text was changed.

    Raises:
        FormatError: its line feeds became CRLF.
        IntegrityError: a JSON tool wrote it again.
    """
    beginning = bytearray(min(file.size, LONGEST_BEGINNING))
    file.read_range(0, memoryview(beginning))
    end = bytearray(min(file.size, TRAILER_MAX))
    file.read_range(file.size - len(end), memoryview(end))
    if has_crlf(bytes(end)):
        raise line_endings()
    in_lines = b'\n"tensors":[\n' in beginning or is_laid_out(bytes(beginning))
    if SHARD_FORMAT.encode() in beginning and not in_lines:
        raise rewritten("shard")


def _is_row(row: object) -> bool:
    if not (isinstance(row, list) and len(row) == 3 and isinstance(row[2], list)):
        return False
    numbers = [row[0], row[1]]
    for payload in row[2]:
        if not (isinstance(payload, list) and len(payload) == 2):
            return False
        numbers += payload
    return all(type(number) is int and number >= 0 for number in numbers)


def _no_trailer(file: RangeReader) -> JsonckptError:
    """The error for a file without an index: a checkpoint that was cut off, or another file."""
    start = bytearray(min(file.size, LONGEST_BEGINNING))
    file.read_range(0, memoryview(start))
    if b"jsonckpt.shard" in start:
        end = bytearray(min(file.size, TRAILER_MAX))
        file.read_range(file.size - len(end), memoryview(end))
        if has_crlf(bytes(end)):
            return line_endings()
        return IncompleteCheckpointError(
            f"the file of {file.size} bytes does not end in its seal and index_offset",
            hint=CUT_OFF,
        )
    if b"jsonckpt.manifest" in start:
        return FormatError(
            "the file is a manifest",
            hint="Open its directory; the file must have the name manifest.json.",
        )
    return no_checkpoint(start)
