"""Outputs for the text of a shard: a file, a stream, or a compressor in front of one."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import zstandard

from ..errors import JsonckptError, WriteError
from ..storage.file_objects import wrong_direction
from ..storage.local import LocalFile
from ..storage.new_file import NewFile
from ..storage.os_errors import describe
from ..storage.protocols import Output, WritableFile

_FRAME_TEXT = 4 << 20
_COPY = 1 << 20


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


class ComparedOutput:
    """Compares a text with an old file. Writes a new file from where they begin to differ.

    Args:
        old: the old file, if there is one.
        create: makes the new file.

    Attributes:
        file: the new file; ``None`` as long as the old one says the same.
    """

    ordered = False

    def __init__(self, old: LocalFile | None, create: Callable[[], NewFile]) -> None:
        self.file: NewFile | None = None
        self.written = 0
        self._old = old
        self._create = create
        self._lock = threading.Lock()
        self._taken = 0
        self._equal: list[tuple[int, int]] = []

    def put(self, offset: int, buffers: Sequence[Any]) -> None:
        """Compare with what the old file has at the offset, or write there."""
        length = sum(memoryview(buffer).nbytes for buffer in buffers)
        equal = self.file is None and self._is_equal(offset, length, buffers)
        with self._lock:
            self._taken += length
            if self.file is None and equal:
                self._equal.append((offset, length))
                return
            file = self.begin()
        file.write_at(offset, buffers)

    def begin(self) -> NewFile:
        """The new file, with what was equal so far. Call it with the lock, or at the end."""
        if self.file is None:
            file = self._create()
            for offset, length in self._equal:
                self._copy(file, offset, length)
            self.file = file
        return self.file

    def end(self, length: int) -> None:
        """The text is complete. The files stay open."""
        require_all(self._taken, length)
        if self._old is None or self._old.size != length:
            self.begin()
        self.written = length

    def _is_equal(self, offset: int, length: int, buffers: Sequence[Any]) -> bool:
        old = self._old
        if old is None or old.size < offset + length:
            return False
        found = bytearray(length)
        try:
            old.read_range(offset, memoryview(found))
        except JsonckptError:  # it cannot be read, so a new file takes its place
            return False
        at = 0
        for buffer in buffers:
            if not found.startswith(buffer, at):
                return False
            at += memoryview(buffer).nbytes
        return True

    def _copy(self, file: NewFile, offset: int, length: int) -> None:
        assert self._old is not None
        block = bytearray(min(length, _COPY))
        for start in range(offset, offset + length, _COPY):
            piece = memoryview(block)[: min(_COPY, offset + length - start)]
            try:
                self._old.read_range(start, piece)
            except JsonckptError as error:
                raise WriteError(
                    f"a shard changed during the save: {error.message}",
                    errno=getattr(error.__cause__, "errno", None),
                    file=self._old.path,
                    hint="The previous checkpoint is untouched by this save. Save again.",
                ) from error
            file.write_at(start, [piece])


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
