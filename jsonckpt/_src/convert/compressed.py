"""Opens files that are compressed with gzip or zstd, and bounds what comes out of them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import partial
from typing import IO, Any

from ..errors import FormatError, IncompleteCheckpointError, LimitError, quote
from ..format.zstd import zstd

#: Opens a file, and decompresses what is read from it.
Unpack = Callable[[IO[bytes]], Any]


def is_gzip(head: bytes) -> bool:
    """True if a file that begins so is compressed with gzip."""
    return head.startswith(b"\x1f\x8b")


def unpacker(head: bytes, window: int | None) -> Unpack:
    """What decompresses a file that begins so.

    Args:
        window: the most memory that a zstd frame may ask for.
    """
    return gzip.open if is_gzip(head) else partial(_zstd, window=window)


def _zstd(file: IO[bytes], window: int | None) -> Any:
    # Other programs write skippable frames, which a checkpoint of this package may not have.
    log = 31 if window is None else min(max(window.bit_length() - 1, 10), 31)
    return zstd.ZstdFile(file, options={int(zstd.DecompressionParameter.window_log_max): log})


class Bounded:
    """Decompressed text, up to a limit."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            FormatError, IncompleteCheckpointError, LimitError: there is something wrong with them.
        """
        try:
            data: bytes = self._stream.read(size)
        except EOFError as error:
            raise IncompleteCheckpointError(
                "the compressed data ends too early", hint="It was cut off: copy it again."
            ) from error
        except (zstd.ZstdError, zlib.error, OSError, ValueError) as error:
            raise FormatError(f"damaged compressed data ({quote(str(error))})") from error
        self._left -= len(data)
        if self._left < 0:
            raise LimitError(
                "the compressed file decompresses to more than the limits allow",
                hint="Pass --limit expansion=none if it is meant.",
            )
        return data
