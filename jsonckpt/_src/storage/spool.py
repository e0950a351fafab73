"""Temporary files without names, for bytes that are needed later and tensors larger than memory.

A spool never has a name, or loses it before its first byte is written. So nothing remains of it,
whatever happens to the process.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import WriteError

if TYPE_CHECKING:
    import torch

#: How the name of a temporary file begins, if it has one.
PREFIX = ".jsonckpt-"
#: Address space of one mapping. Pages take no space on disk before they are written.
_SEGMENT = 256 << 20
#: Alignment of tensors: a cache line, as in torch's own allocator.
_ALIGNMENT = 64
_PIECE = 1 << 20
_TOO_LARGE = (
    "This is a limit on the size of each file (of the file system, or ulimit -f), not a lack of "
    "room. Raise the limit, or name a directory of another file system by --spool."
)
_AnyFile = TypeVar("_AnyFile", bound="_Unnamed")


class _Unnamed:
    """An open file without a name. ``hint`` says what to do when the disk is full."""

    _number = -1

    def __init__(self, directory: Path, hint: str) -> None:
        self._directory = directory
        self._hint = hint
        with self._refusals(), tempfile.TemporaryFile(dir=directory, prefix=PREFIX) as file:
            self._number = os.dup(file.fileno())

    def __enter__(self: _AnyFile) -> _AnyFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()  # an interrupt can keep a caller from closing it

    def close(self) -> None:
        """Close the file, which removes it."""
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(
                f"cannot write temporary data ({os.strerror(error.errno or 0)})",
                errno=error.errno,
                file=self._directory,
                hint=_TOO_LARGE if error.errno == errno.EFBIG else self._hint,
            ) from error


class SpoolFile(_Unnamed):
    """A temporary file that grows at its end and can be cut back.

    Raises:
        WriteError: from :meth:`write`: no space is left; from reading: the file lost its end.
    """

    def __init__(self, directory: Path, hint: str) -> None:
        super().__init__(directory, hint)
        self._end = 0

    def tell(self) -> int:
        """The offset of the next byte."""
        return self._end

    def write(self, data: bytes | memoryview, /) -> None:
        """Add bytes."""
        view = memoryview(data).cast("B")
        with self._refusals():
            while view:
                written = os.pwrite(self._number, view, self._end)
                self._end += written
                view = view[written:]

    def cut(self, length: int) -> None:
        """Forget what was written after ``length`` bytes. Later bytes overwrite it."""
        self._end = length

    def mapped(self) -> mmap.mmap:
        """What was written, as memory that the system can drop. It is not empty."""
        with self._refusals():
            return mmap.mmap(self._number, self._end, access=mmap.ACCESS_READ)

    def read(self, offset: int, length: int, piece: int = _PIECE) -> Iterator[bytes]:
        """``length`` bytes from ``offset`` on, in pieces of at most ``piece`` bytes."""
        end = offset + length
        while offset < end:
            data = os.pread(self._number, min(piece, end - offset), offset)
            if not data:
                raise WriteError("a temporary file lost its end", file=self._directory)
            yield data
            offset += len(data)


class Spool(_Unnamed):
    """Memory for tensors that the system can write out and drop under pressure: a mapped file.

    Its storages stay valid after :meth:`close`: they keep their mapping alive.
    """

    def __init__(self, directory: Path, hint: str) -> None:
        super().__init__(directory, hint)
        self._size = 0
        self._segment: mmap.mmap | None = None
        self._used = 0

    def close(self) -> None:
        """Close the file. Tensors that lie in it stay valid."""
        super().close()
        self._segment = None

    def allocate(self, nbytes: int) -> torch.UntypedStorage:
        """A storage of ``nbytes`` zeros whose space on disk is reserved.

        Raises:
            WriteError: no space is left.
        """
        import torch

        if nbytes == 0:
            return torch.empty(0, dtype=torch.uint8).untyped_storage()
        start = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        with self._refusals():
            if self._segment is None or start + nbytes > len(self._segment):
                self._segment, start = self._map(nbytes), 0
            self._reserve(self._size - len(self._segment) + start, nbytes)
        self._used = start + nbytes
        # Every tensor has its own storage: neighbours in the file do not share memory.
        region = torch.frombuffer(self._segment, dtype=torch.uint8, count=nbytes, offset=start)
        return region.untyped_storage()

    def _map(self, nbytes: int) -> mmap.mmap:
        length = -(-max(nbytes, _SEGMENT) // mmap.ALLOCATIONGRANULARITY)
        length *= mmap.ALLOCATIONGRANULARITY
        os.ftruncate(self._number, self._size + length)
        segment = mmap.mmap(self._number, length, offset=self._size)
        self._size += length
        return segment

    def _reserve(self, offset: int, nbytes: int) -> None:
        # Writing to a mapped page kills the process (SIGBUS) if the disk is full. So the space is
        # reserved first, where a full disk is an ordinary error.
        if hasattr(os, "posix_fallocate"):
            with suppress(NotImplementedError):
                os.posix_fallocate(self._number, offset, nbytes)
                return
        zeros = bytes(_PIECE)
        for start in range(offset, offset + nbytes, _PIECE):
            os.pwrite(self._number, zeros[: offset + nbytes - start], start)
