"""Whether a compressed file is whole, by the headers in it: nothing is decompressed.

A frame of zstd (RFC 8878 section 3.1.1) is a header, blocks that each say their size and whether
they are the last one, and perhaps a checksum. So a cut is found by reading a few bytes for each
block of at most 128 KiB.
"""

from __future__ import annotations

from ..errors import CUT_OFF, FormatError, IncompleteCheckpointError, LimitError, counted
from ..storage.protocols import RangeReader

_MAGIC = b"\x28\xb5\x2f\xfd"
#: Magic number, descriptor, window, dictionary ID, content size: the longest header.
_LONGEST_HEADER = 18
_DICTIONARY_BYTES = (0, 1, 2, 4)
_SIZE_BYTES = (0, 2, 4, 8)
#: Headers are mostly near each other in small files: so much is read at once.
_PIECE = 4096
#: Blocks that are followed: those of a file of 128 GiB. A hostile one can be three bytes.
_MOST_BLOCKS = 1_000_000


def check_frames(file: RangeReader) -> None:
    """Follow the frames of a file to its end.

    Raises:
        FormatError: something that is not a frame.
        IncompleteCheckpointError: the last frame is cut off.
        LimitError: it has too many blocks to follow.
    """
    reader = _Pieces(file)
    at = blocks = 0
    while at < file.size or not at:
        header = reader.get(at, _LONGEST_HEADER, least=6)
        if not header.startswith(_MAGIC):
            raise FormatError(f"at byte {at}: not a zstd frame")
        descriptor = header[4]
        alone, has_checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
        size_bytes = _SIZE_BYTES[descriptor >> 6] or alone
        at += 6 - alone + _DICTIONARY_BYTES[descriptor & 3] + size_bytes
        last = False
        while not last:
            block = int.from_bytes(reader.get(at, 3), "little")
            last, kind, length = bool(block & 1), block >> 1 & 3, block >> 3
            if kind == 3:
                raise FormatError(f"at byte {at}: damaged zstd frame")
            at += 3 + (1 if kind == 1 else length)
            blocks += 1
            if blocks > _MOST_BLOCKS:
                raise LimitError(f"over {counted(_MOST_BLOCKS, 'zstd block')}")
        at += 4 * has_checksum
        if at > file.size:
            raise _cut_off()


class _Pieces:
    """Bytes of a file, read a piece at a time."""

    def __init__(self, file: RangeReader) -> None:
        self._file = file
        self._start, self._piece = 0, b""

    def get(self, at: int, count: int, *, least: int | None = None) -> bytes:
        """``count`` bytes from ``at`` on, or at the end of the file ``least`` of them."""
        if not self._start <= at <= at + count <= self._start + len(self._piece):
            buffer = bytearray(max(0, min(_PIECE, self._file.size - at)))
            if buffer:
                self._file.read_range(at, memoryview(buffer))
            self._start, self._piece = at, bytes(buffer)
        found = self._piece[at - self._start : at - self._start + count]
        if len(found) < (count if least is None else least):
            raise _cut_off()
        return found


def _cut_off() -> IncompleteCheckpointError:
    return IncompleteCheckpointError("the compressed text ends inside a zstd frame", hint=CUT_OFF)
