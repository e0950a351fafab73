"""A compressed text read past its damage: what the intact frames hold, in order.

The usual reader stops at the first broken frame. This one goes on at the next place where a frame
begins. What it gives is not to be trusted by itself; :mod:`jsonckpt.salvage` checks every record.
"""

from __future__ import annotations

from typing import Any, Final, cast

import zstandard

from jsonckpt.indexed import RangeReader

__all__ = ["DamagedZstd"]

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_LONGEST_HEADER: Final = 18
_SEARCH: Final = 1 << 20
#: What one read may lose when it meets damage.
_STEP: Final = 1 << 16


class DamagedZstd:
    """The text of a ``.zst`` file, a :class:`~jsonckpt.streaming.ByteSource`.

    Args:
        file: what is left of it.
        window: the largest window that a frame may ask for, in bytes; others are passed over.
    """

    def __init__(self, file: RangeReader, *, window: int | None) -> None:
        self.size: int | None = file.size
        #: Frames that could not be read to their end.
        self.broken = 0
        self._file = file
        self._window = window
        self._at = 0
        self._frame = 0
        self._reader: Any = None

    def readinto(self, buffer: memoryview, /) -> int:
        """The next bytes of the text; 0 at the end of the last frame that can be read."""
        while True:
            if self._reader is None and not self._open_next():
                return 0
            try:
                count: int = self._reader.readinto(buffer[:_STEP])
            except zstandard.ZstdError:
                # The frame may seem to end far behind what is its own: look for the next one in it.
                self.broken += 1
                self._at, count = self._frame + len(_MAGIC), 0
            if count:
                return count
            self._reader = None

    def _open_next(self) -> bool:
        while (start := self._find(self._at)) is not None:
            self._frame, self._at = start, start + len(_MAGIC)
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
            self._at = stop
            section = _Section(self._file, start, stop)
            self._reader = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(
                cast("Any", section), read_across_frames=False, read_size=_STEP
            )
            return True
        return False

    def _end_of(self, start: int, header: bytes, parameters: Any) -> int | None:
        """Where a frame ends by what its blocks say (RFC 8878 section 3.1.1); ``None``: nowhere."""
        at = start + zstandard.frame_header_size(header)
        while True:
            block = self._bytes(at, 3)
            if len(block) < 3:
                return None
            value = int.from_bytes(block, "little")
            kind, size = value >> 1 & 3, value >> 3
            if kind == 3 or size > 1 << 17:
                return None
            at += 3 + (1 if kind == 1 else size)
            if value & 1:
                at += 4 if parameters.has_checksum else 0
                return at if at <= self._file.size else None

    def _find(self, start: int) -> int | None:
        """Where the next frame begins."""
        while start < self._file.size:
            block = self._bytes(start, _SEARCH)
            found = block.find(_MAGIC)
            if found >= 0:
                return start + found
            if start + len(block) >= self._file.size:
                return None
            start += len(block) - len(_MAGIC) + 1
        return None

    def _bytes(self, start: int, length: int) -> bytes:
        data = bytearray(max(0, min(length, self._file.size - start)))
        self._file.read_range(start, memoryview(data))
        return bytes(data)


class _Section:
    """A part of a file as something to read from."""

    def __init__(self, file: RangeReader, start: int, stop: int) -> None:
        self._file, self._at, self._stop = file, start, stop

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        left = self._stop - self._at
        data = bytearray(left if size < 0 else min(size, left))
        self._file.read_range(self._at, memoryview(data))
        self._at += len(data)
        return bytes(data)
