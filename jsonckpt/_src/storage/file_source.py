"""A file object that is read forward: a pipe, a socket, standard input."""

from __future__ import annotations

import io
from typing import Any

from ..errors import ArgumentError, JsonckptError, quote
from ..linux import widen_pipe
from .file_objects import check_file_object, wrong_direction
from .os_errors import describe


class FileSource:
    """A binary file object as a source of bytes. Its errors become :class:`JsonckptError`.

    Args:
        argument: the name of the argument that gave it, for messages.

    Attributes:
        position: bytes that have been read.

    Raises:
        ArgumentError: it cannot be read, or gives text.
    """

    size = None

    def __init__(self, file: Any, argument: str = "path") -> None:
        check_file_object(file, "rb", argument)
        self._file = file
        self._argument = argument
        self.position = 0
        # A buffered reader's readinto waits until the buffer is full. Its readinto1 returns what is
        # there, so decoding begins while the writer still writes.
        self._readinto = getattr(file, "readinto1", getattr(file, "readinto", None))
        if self._readinto is not None:
            widen_pipe(file)

    def readinto(self, buffer: memoryview, /) -> int:
        """See :class:`ByteSource`."""
        try:
            count = self._read(buffer) if self._readinto is None else self._readinto(buffer) or 0
        except (JsonckptError, MemoryError):
            raise
        except io.UnsupportedOperation as error:
            raise wrong_direction("rb") from error
        except Exception as error:  # of whatever stands behind it
            name = getattr(self._file, "name", None)
            raise JsonckptError(
                f"cannot read the file object: {describe(error)}",
                file=name if isinstance(name, str) else None,
                hint="Check what it reads from, and that it is open for reading bytes.",
            ) from error
        if not (count or self.position):
            self._refuse_end()
        self.position += count
        return count

    def _read(self, buffer: memoryview) -> int:
        data = self._file.read(len(buffer))
        if not isinstance(data, bytes):
            raise ArgumentError(
                f"path is a file object whose read() gives {quote(type(data).__name__)}, "
                "expected bytes",
                hint='Open it with "rb".',
            )
        buffer[: len(data)] = data
        return len(data)

    def _refuse_end(self) -> None:
        """Refuse a file object that is at its end."""
        try:
            at = self._file.tell()
        except (AttributeError, OSError, ValueError):  # a pipe that was closed without data
            return
        if at:
            raise ArgumentError(
                f"{self._argument} is a file object at its end: there is nothing after its "
                f"position {at}",
                hint="Call seek(0) on it first.",
            )
