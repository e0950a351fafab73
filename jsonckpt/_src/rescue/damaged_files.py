"""Reads what is left of damaged files.

The normal readers stop at the first fault. :class:`PatchedFile` continues after a range that the
system cannot read, :class:`DamagedZstd` at the next frame. Neither checks what it reads:
mod:`.scan` checks every record.
"""

from __future__ import annotations

from typing import Any, Final

import zstandard
from zstandard import BLOCKSIZE_MAX, FRAME_HEADER

from ..errors import IncompleteCheckpointError, JsonckptError
from ..format.zstd import new_decompressor, zstd
from ..storage.protocols import RangeReader

_LONGEST_HEADER: Final = 18
_SEARCH: Final = 1 << 20
#: The most that one read may lose to damage.
_STEP: Final = 1 << 16
#: The least that a failing disk loses.
_PAGE: Final = 4096


class PatchedFile:
    """A file with zeros where the system fails to read it; also a :class:`ByteSource`.

    The zeros keep the offsets of the text that follows. No text of a checkpoint has a zero byte.

    Attributes:
        holes: ``[start, stop)`` of each unreadable range, in the order in which it was found.
        reason: of the first failure; ``""`` if there is none.
    """

    def __init__(self, file: RangeReader) -> None:
        self.size = file.size
        self.holes: list[tuple[int, int]] = []
        self.reason = ""
        self._file = file
        self._at = 0

    def readinto(self, buffer: memoryview, /) -> int:
        """The next bytes; 0 at the end."""
        count = min(len(buffer), self.size - self._at)
        try:
            self.read_range(self._at, buffer[:count])
        except IncompleteCheckpointError:  # cut off since it was opened
            return 0
        self._at += count
        return count

    def read_range(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on.

        Raises:
            IncompleteCheckpointError: the file ends before that.
        """
        try:
            self._file.read_range(offset, buffer)
            return
        except IncompleteCheckpointError:
            raise
        except JsonckptError as error:
            self.reason = self.reason or error.message
        done = 0
        while done < len(buffer):
            stop = min(len(buffer), done + _PAGE - (offset + done) % _PAGE)
            part = buffer[done:stop]
            try:
                self._file.read_range(offset + done, part)
            except IncompleteCheckpointError:
                raise
            except JsonckptError:
                part[:] = bytes(len(part))
                self._hole(offset + done, offset + stop)
            done = stop

    def fault_in(self, start: int, stop: int) -> str:
        """Why a range could not be read; ``""`` if it could."""
        hit = any(begin < stop and start < end for begin, end in self.holes)
        return self.reason if hit else ""

    def note(self) -> str:
        """The unreadable ranges, for the report. There must be at least one."""
        lost = sum(stop - start for start, stop in self.holes)
        return (
            f"{lost} bytes cannot be read, the first at byte {min(self.holes)[0]} ({self.reason})"
        )

    def _hole(self, start: int, stop: int) -> None:
        if self.holes and self.holes[-1][1] == start:
            start = self.holes.pop()[0]
        elif any(begin <= start and stop <= end for begin, end in self.holes):
            return
        self.holes.append((start, stop))


class DamagedZstd:
    """The text of a ``.zst`` file, a :class:`ByteSource`.

    Args:
        file: the damaged file.
        window: the largest window that a frame may ask for, in bytes. Other frames are skipped.
    """

    def __init__(self, file: RangeReader | PatchedFile, *, window: int | None) -> None:
        self.size: int | None = file.size
        #: Frames that could not be read to their end.
        self.broken = 0
        self._file = file
        self._window = window
        self._frame: zstd.ZstdDecompressor | None = None
        self._begin = 0  # of the frame
        self._fed = 0  # the frame's bytes up to here were decompressed
        self._at = 0  # the frame ends here, and the search for the next one begins
        self._given = 0
        self._faults: list[tuple[int, str]] = []

    def fault_in(self, start: int, stop: int) -> str:
        """Why the text breaks off in this part, if the reason is a failure to read."""
        return next((why for at, why in self._faults if start <= at <= stop), "")

    def readinto(self, buffer: memoryview, /) -> int:
        """The next bytes of the text; 0 at the end of the last frame that can be read."""
        while (frame := self._frame or self._next_frame()) is not None:
            piece = b""
            if frame.needs_input:
                piece = self._bytes(self._fed, min(_STEP, self._at - self._fed))
                self._fed += len(piece)
                if not piece:  # cut off
                    self._frame = None
                    continue
            try:
                data = frame.decompress(piece, min(len(buffer), _STEP))
            except zstd.ZstdError:
                # The frame may state a false end: search for the next frame inside it.
                self.broken += 1
                if isinstance(self._file, PatchedFile):
                    why = self._file.fault_in(self._begin, self._at)
                    self._faults.append((self._given, why))
                self._at, self._frame = self._begin + len(FRAME_HEADER), None
                continue
            self._frame = None if frame.eof else frame
            if data:
                buffer[: len(data)] = data
                self._given += len(data)
                return len(data)
        return 0

    def _next_frame(self) -> zstd.ZstdDecompressor | None:
        while (start := self._find(self._at)) is not None:
            self._at = start + len(FRAME_HEADER)
            header = self._bytes(start, _LONGEST_HEADER)
            try:
                parameters = zstandard.get_frame_parameters(header)
            except zstandard.ZstdError:
                continue
            too_large = self._window is not None and parameters.window_size > self._window
            if parameters.dict_id or too_large:
                self.broken += 1
                continue
            stop = self._end_of(start, header, parameters)
            if stop is None:
                self.broken += 1
                stop = self._find(self._at)
                stop = self._file.size if stop is None else stop
            self._begin, self._fed, self._at = start, start, stop
            self._frame = new_decompressor()
            return self._frame
        return None

    def _end_of(self, start: int, header: bytes, parameters: Any) -> int | None:
        """Where a frame ends according to its block headers; ``None`` if they are damaged."""
        at = start + zstandard.frame_header_size(header)
        while len(block := self._bytes(at, 3)) == 3:
            value = int.from_bytes(block, "little")
            kind, size = value >> 1 & 3, value >> 3
            if kind == 3 or size > BLOCKSIZE_MAX:
                return None
            at += 3 + (1 if kind == 1 else size)
            if value & 1:
                at += 4 if parameters.has_checksum else 0
                return at if at <= self._file.size else None
        return None

    def _find(self, start: int) -> int | None:
        """Where the next frame begins."""
        while start < self._file.size:
            block = self._bytes(start, _SEARCH)
            found = block.find(FRAME_HEADER)
            if found >= 0:
                return start + found
            if start + len(block) >= self._file.size:
                return None
            start += len(block) - len(FRAME_HEADER) + 1
        return None

    def _bytes(self, start: int, length: int) -> bytes:
        data = bytearray(max(0, min(length, self._file.size - start)))
        self._file.read_range(start, memoryview(data))
        return bytes(data)
