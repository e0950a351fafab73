"""Scans files whose text was changed as a whole: by a JSON tool, or in its line endings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import IntegrityError, JsonckptError, LimitError, UnsupportedVersionError, is_refusal
from ..format.checksums import hexdigest
from ..format.chunk_codec import ChunkCodec
from ..format.limits import Limits, exceeds
from ..format.validation import checksum_name
from ..load.any_layout import ForwardRanges, pieces, scan_text
from ..shards.any_layout import AnyLayoutScanner, plain_payload, record_of
from ..shards.record_parser import Record
from ..storage.protocols import ByteSource
from .scan import LostTensor, ScanResult
from .scan_record import FoundRecord, Spool


def scan_any_layout(
    source: Callable[[], ByteSource], limits: Limits, spool: Spool, *, compressed: bool
) -> ScanResult | None:
    """Find every intact record of a text that a JSON tool wrote again.

    Args:
        source: opens the text; it is read twice.
        spool: takes the payloads of the intact records, without escapes and line feeds.

    Returns:
        ``None`` if the text is not such a file, as a whole.

    Raises:
        UnsupportedVersionError: it has a version, or requires a feature, that is not known.
        LimitError: its tensors are larger than the limits allow.
    """
    text = source()
    size = text.size
    own = limits.for_text(size)
    scanner = AnyLayoutScanner(own, own.most_chunks(size))
    try:
        scan_text(scanner, text, own, compressed=compressed)
        members = scanner.finish()
        algorithm = checksum_name(members.get("checksum"))
    except UnsupportedVersionError:
        raise
    except JsonckptError:
        return None
    result = ScanResult(members, "", ended=True, rewritten=True, position=scanner.position)
    ranges, coder, claimed = ForwardRanges(source()), ChunkCodec(zstd_window=own.zstd_window), 0
    for item, found in zip(members["tensors"], scanner.found):
        name: Any = item.get("name") if isinstance(item, dict) else None
        name = name if isinstance(name, str) else None
        kept = spool.tell()
        try:
            record = record_of(item, found, own, algorithm)
            claimed += record.header.nbytes
            if size is not None and exceeds(claimed, own.total_bytes(size)):
                raise LimitError(f"{claimed} bytes of tensors so far, over the limit", tensor=name)
            result.found.append(_spooled(record, ranges, coder, algorithm, spool))
        except JsonckptError as error:
            if is_refusal(error) and error.chunk is None:
                raise
            spool.cut(kept)
            result.lost.append(LostTensor(name, error.message, chunk=error.chunk))
    return result


def _spooled(
    record: Record, ranges: ForwardRanges, coder: ChunkCodec, algorithm: str, spool: Spool
) -> FoundRecord:
    """The record, after its payloads were checked and written to the spool.

    Raises:
        JsonckptError: a payload is damaged.
    """
    header, places = record.header, []
    for chunk, (offset, length, checksum) in enumerate(record.chunks):
        start, stop = header.raw_range(chunk)
        raw = memoryview(bytearray(stop - start))
        try:
            payload = bytes(plain_payload(pieces(ranges, offset, length), header, chunk))
            coder.decode_into(memoryview(payload), header.codec, header.dtype, raw)
            found = hexdigest(algorithm, raw)
            if found != checksum:
                raise IntegrityError(f"the checksum is {found}, expected {checksum}")
        except JsonckptError as error:
            raise error.at(chunk=chunk) from error.__cause__
        places.append((spool.tell(), len(payload), checksum))
        spool.write(payload)
    return FoundRecord(header, algorithm, tuple(places))


class UnixLines:
    """The text of a source with line feeds instead of CRLF. No text of a checkpoint has a CR."""

    def __init__(self, source: ByteSource) -> None:
        self.size = source.size
        self._source = source
        self._held = b""

    def readinto(self, buffer: memoryview, /) -> int:
        """See :class:`ByteSource`."""
        while True:
            piece = memoryview(bytearray(len(buffer) - len(self._held)))
            count = self._source.readinto(piece)
            text = self._held + piece[:count]
            self._held = b"\r" if count and text.endswith(b"\r") else b""
            text = text[: len(text) - len(self._held)].replace(b"\r\n", b"\n")
            if text or not count:
                buffer[: len(text)] = text
                return len(text)
