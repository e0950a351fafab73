"""Watches the frames of a zstd stream as they pass (RFC 8878 section 3.1).

The decompressor reads on without a word when the input ends inside a frame, and allocates the
window that a frame asks for. So the headers and block sizes are read here on the way: a frame with
a dictionary, a skippable frame or too large a window is refused before it is decompressed, and at
the end it is known whether the last frame was whole.
"""

from __future__ import annotations

from typing import Any, Final

from ..errors import CUT_OFF, FormatError, IncompleteCheckpointError, LimitError, quote
from ..format.limits import way_over

_MAGIC: Final = 0xFD2FB528
#: Magic, descriptor, window, dictionary id, content size.
_LONGEST_HEADER: Final = 4 + 1 + 1 + 4 + 8


class FrameWatch:
    """A readable source that passes its bytes on and follows the frames in them."""

    def __init__(self, source: Any, *, window_limit: int | None) -> None:
        self._source = source
        self._limit = window_limit
        self._pending = b""
        self._skip = 0
        self._in_frame = False
        self._checksum = False
        self._last = False
        self._frames = 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes of the source."""
        data: bytes = self._source.read(size) or b""
        self._follow(data)
        return data

    def check_end(self) -> None:
        """The source has ended: it must have ended between frames.

        Raises:
            IncompleteCheckpointError: it ended inside one.
        """
        if self._in_frame or self._skip or self._pending or not self._frames:
            raise IncompleteCheckpointError(
                "the compressed text ends inside a zstd frame",
                hint=CUT_OFF,
            )

    def _follow(self, data: bytes) -> None:
        if self._skip >= len(data):  # also at the end of the source, where there is no data
            self._skip -= len(data)
            return
        data = self._pending + data[self._skip :]
        self._skip = 0
        at = 0
        while at < len(data):
            used, skip = self._block(data, at) if self._in_frame else self._header(data, at)
            if not used:
                break
            at += used
            if at + skip > len(data):
                self._skip = at + skip - len(data)
                at = len(data)
            else:
                at += skip
        self._pending = data[at:]

    def _header(self, data: bytes, at: int) -> tuple[int, int]:
        """Bytes of the frame header at ``at``; 0 when more are needed."""
        if len(data) - at < 5:
            return 0, 0
        if int.from_bytes(data[at : at + 4], "little") != _MAGIC:
            found = quote(bytes(data[at : at + 8]))
            raise FormatError(
                f"expected a zstd frame, found {found}",
                hint="A name that ends in .zst stands for a compressed checkpoint.",
            )
        descriptor = data[at + 4]
        single = bool(descriptor & 0x20)
        if descriptor & 0x18:
            raise FormatError("damaged zstd frame: a bit without meaning is set in its header")
        if descriptor & 0x03:
            raise FormatError("the zstd frame needs a dictionary, which the format forbids")
        size_bytes = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
        used = 5 + (0 if single else 1) + size_bytes
        if len(data) - at < used:
            return 0, 0
        if single:
            window = int.from_bytes(data[at + used - size_bytes : at + used], "little")
            window += 256 if size_bytes == 2 else 0
        else:
            exponent, mantissa = data[at + 5] >> 3, data[at + 5] & 7
            window = (1 << (10 + exponent)) * (8 + mantissa) // 8
        if self._limit is not None and window > max(self._limit, 1024):
            raise LimitError(
                f"the zstd frame needs a window of {window} bytes, the limit is {self._limit}",
                hint=way_over("zstd_window"),
            )
        self._checksum = bool(descriptor & 0x04)
        self._in_frame = True
        self._frames += 1
        return used, 0

    def _block(self, data: bytes, at: int) -> tuple[int, int]:
        """Bytes of the block header at ``at`` and of what follows it."""
        if len(data) - at < 3:
            return 0, 0
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if kind == 3:
            raise FormatError("damaged zstd frame: reserved block type")
        skip = 1 if kind == 1 else size
        if last:
            self._in_frame = False
            skip += 4 if self._checksum else 0
        return 3, skip
