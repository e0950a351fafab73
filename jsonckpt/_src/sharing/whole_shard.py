"""Whether a shard is the one that a manifest describes: its size, and its text but for payloads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..errors import CUT_OFF, IncompleteCheckpointError, IntegrityError
from ..format.checksums import hasher
from ..format.model import Entry, ShardFile
from ..shards.shard_text import index_offset
from ..storage.protocols import ByteSource, Location, RangeReader

#: Payloads shorter than this are read with the text around them.
_SHORT = 32 << 10
_MOST_AT_ONCE = 1 << 20
_INDEX = b'],"index":'


def check_shard(
    location: Location, row: ShardFile, entries: Sequence[Entry], *, zstd_window: int | None
) -> None:
    """Check a shard without its payloads: they are neither read, as far as possible, nor decoded.

    The text around them says the checksum of each of them. Damage in a payload is not found.

    Args:
        entries: its records, by offset.

    Raises:
        JsonckptError: it is missing, cannot be read, or is another file.
    """
    with location.file(row.path) as file:
        if file.size != row.bytes:
            raise IncompleteCheckpointError(f"the file has {file.size} bytes, not {row.bytes}")
        if not row.file.endswith(".zst"):
            _check_text(file, row, entries)
            return
    with location.stream(row.path, zstd_window=zstd_window) as stream:
        _check_text(_Forward(stream, row.text_bytes), row, entries)


def _check_text(file: RangeReader, row: ShardFile, entries: Sequence[Entry]) -> None:
    algorithm, _, expected = row.seal.partition(":")
    skeleton = hasher(algorithm)
    tail = bytearray()
    last = entries[-1].offset + entries[-1].length if entries else 0
    for start, text in _pieces(file, row, entries):
        if start + len(text) <= last:
            skeleton.update(text)
            continue
        # From the end of the last record on: the text that holds the index and the seal.
        skeleton.update(text[: max(0, last - start)])
        tail += text[max(0, last - start) :]
    mark = tail.rfind(b',"seal":"')
    offset = index_offset(bytes(tail[mark:]))
    skeleton.update(tail[:mark])
    said = b',"seal":"' + row.seal.encode() + b'","index_offset":'
    index = last + tail.find(_INDEX) + len(_INDEX)
    if skeleton.hexdigest() != expected or not tail[mark:].startswith(said) or offset != index:
        raise IntegrityError(f"the text of the file does not match its seal {row.seal}")


def _pieces(
    file: RangeReader, row: ShardFile, entries: Sequence[Entry]
) -> Iterator[tuple[int, memoryview]]:
    """The text around payloads in order, each piece with its offset."""
    gaps, at = [], 0
    for entry in entries:
        for offset, length, _ in entry.chunks:
            gaps.append((at, offset))
            at = offset + length
    gaps.append((at, row.text_bytes))
    first = 0
    for number, (_, stop) in enumerate(gaps):
        following = gaps[number + 1] if number + 1 < len(gaps) else None
        start = gaps[first][0]
        if following and following[0] - stop < _SHORT and following[1] - start < _MOST_AT_ONCE:
            continue
        block = memoryview(bytearray(stop - start))
        file.read_range(start, block)
        for begin, end in gaps[first : number + 1]:
            yield begin, block[begin - start : end - start]
        first = number + 1


class _Forward:
    """Ranges in order of a text that can only be read forward."""

    def __init__(self, source: ByteSource, size: int) -> None:
        self._source, self._at, self.size = source, 0, size
        self._rest = memoryview(bytearray(_MOST_AT_ONCE))

    def read_range(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``; ``offset`` is not before the end of the last range."""
        while self._at < offset:
            self._take(self._rest[: min(len(self._rest), offset - self._at)])
        done = 0
        while done < len(buffer):
            done += self._take(buffer[done:])

    def _take(self, buffer: memoryview) -> int:
        count = self._source.readinto(buffer)
        if not count:
            raise IncompleteCheckpointError("the text ends too early", hint=CUT_OFF)
        self._at += count
        return count
