"""Outputs for the text of a shard: a file, a stream, or a compressor in front of one."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import zstandard

from ..errors import JsonckptError, WriteError
from ..storage.file_objects import wrong_direction
from ..storage.os_errors import describe
from ..storage.protocols import Output, WritableFile

_FRAME_TEXT = 4 << 20


class FileOutput:
    """A plain file: pieces may be written in any order."""

    ordered = False

    def __init__(self, file: WritableFile, *, sync: bool) -> None:
        self._file = file
        self._sync = sync
        self._lock = threading.Lock()
        self._taken = 0
        self.written = 0

    def put(self, offset: int, buffers: Sequence[Any]) -> None:
        """Write at the offset."""
        self._file.write_at(offset, buffers)
        with self._lock:
            self._taken += sum(memoryview(buffer).nbytes for buffer in buffers)

    def end(self, length: int) -> None:
        """Make the file durable and close it."""
        require_all(self._taken, length)
        self.written = length
        self._file.finish(sync=self._sync)


class StreamOutput:
    """A binary file object that can only be written forward: a pipe, a socket, a remote file."""

    ordered = True

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.written = 0

    def put(self, offset: int, buffers: Sequence[Any]) -> None:
        """Write the next bytes. A raw stream may take fewer than it is given."""
        require_all(self.written, offset)
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            self.written += len(view)
            while len(view):
                count = self._stream.write(view)
                if count is None and isinstance(self._stream, io.RawIOBase):
                    # Many file-like objects return None and take everything. A raw stream that
                    # returns None took nothing.
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                view = view[len(view) if count is None else count :]

    def end(self, length: int) -> None:
        """Flush what the stream holds."""
        require_all(self.written, length)
        flush = getattr(self._stream, "flush", None)
        if flush is not None:
            flush()


class ObjectOutput(StreamOutput):
    """The caller's file object. Its errors become :class:`WriteError`."""

    def put(self, offset: int, buffers: Sequence[Any]) -> None:
        """Write next."""
        with self._mapped():
            super().put(offset, buffers)

    def end(self, length: int) -> None:
        """Flush what the object holds."""
        with self._mapped():
            super().end(length)

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except (JsonckptError, MemoryError):
            raise
        except io.UnsupportedOperation as error:
            raise wrong_direction("wb") from error
        except Exception as error:  # of whatever stands behind it
            name = getattr(self._stream, "name", None)
            reason = getattr(error, "strerror", None) or describe(error)
            raise WriteError(
                f"cannot write to the file object: {reason}",
                errno=getattr(error, "errno", None),
                file=name if isinstance(name, str) else None,
                hint="What was written so far is not a whole checkpoint.",
            ) from error


class ZstdOutput:
    """Compresses the text, frame by frame, into another output."""

    ordered = True

    def __init__(self, output: Output, *, level: int | None) -> None:
        self._output = output
        self._compressor = zstandard.ZstdCompressor(level=3 if level is None else level)
        self._held = bytearray()
        self._taken = 0
        self.written = 0

    def put(self, offset: int, buffers: Sequence[Any]) -> None:
        """Collect text, and compress it in whole frames."""
        require_all(self._taken, offset)
        for buffer in buffers:
            self._held += buffer
            self._taken += memoryview(buffer).nbytes
        if len(self._held) >= _FRAME_TEXT:
            self._compress()

    def end(self, length: int) -> None:
        """Compress the rest."""
        require_all(self._taken, length)
        if self._held:
            self._compress()
        self._output.end(self.written)

    def _compress(self) -> None:
        frame = self._compressor.compress(self._held)
        self._output.put(self.written, [frame])
        self.written += len(frame)
        self._held = bytearray()


def require_all(taken: int, length: int) -> None:
    """Check that all text was written. A commit relies on it, whatever happened to the threads.

    Raises:
        WriteError: text is missing.
    """
    if taken != length:
        raise WriteError(
            f"{taken} of {length} bytes of the text were written: a thread has ended early",
            hint="The previous checkpoint, if any, is untouched. Save again.",
        )
