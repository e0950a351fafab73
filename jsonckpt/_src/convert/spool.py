"""Temporary room on disk for tensors that are too large for memory.

A spool is a file without a name: it is unlinked before the first byte is written (or never had a
name), so that nothing stays behind whatever happens to the process. Tensors lie in mapped regions
of it, which the system can write out and drop under pressure.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from ..errors import WriteError
from ..storage.path_arguments import path_text
from .pieces import over

#: Address space that one mapping of a spool covers. Pages take no room before they are written.
_SEGMENT = 256 << 20
#: Alignment of tensors in a spool: a cache line, as torch's own allocator has it.
_ALIGNMENT = 64
#: Bytes read back from a scratch file at once.
_PIECE = 1 << 20


def spool_directory(chosen: str | os.PathLike[str] | None, beside: Path | None) -> Path:
    """The directory for temporary files: ``chosen``, else the output's, else the system's.

    Args:
        chosen: what the user asked for.
        beside: the path of the output.

    Raises:
        WriteError: ``chosen`` is not a directory.
    """
    if chosen is not None:
        directory = Path(path_text(chosen, "spool"))
        if not directory.is_dir():
            raise WriteError("is not a directory", file=directory, hint="Choose another --spool.")
        return directory
    if beside is not None:
        parent = beside.absolute().parent
        if parent.is_dir() and os.access(parent, os.W_OK):
            return parent
    return Path(tempfile.gettempdir())


def _no_room(error: OSError, directory: Path) -> WriteError:
    return WriteError(
        f"cannot write temporary data ({os.strerror(error.errno or 0)})",
        errno=error.errno,
        file=directory,
        hint="Name a directory with more room by --spool.",
    )


class Spool:
    """Memory for tensors, in an unnamed file under ``directory``.

    The storages that it hands out stay valid after :meth:`close`: they hold their mapping.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: int | None = None
        self._size = 0
        self._segment: mmap.mmap | None = None
        self._segment_start = 0
        self._used = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def allocate(self, nbytes: int) -> torch.UntypedStorage:
        """A storage of ``nbytes`` bytes whose room on disk is reserved.

        Raises:
            WriteError: no room is left.
        """
        if nbytes == 0:
            return torch.empty(0, dtype=torch.uint8).untyped_storage()
        start = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        try:
            if self._segment is None or start + nbytes > len(self._segment):
                self._map(nbytes)
                start = 0
            self._reserve(self._segment_start + start, nbytes)
        except OSError as error:
            raise _no_room(error, self._directory) from error
        assert self._segment is not None
        self._used = start + nbytes
        # Every tensor has a storage of its own: neighbours in the file do not share memory.
        region = torch.frombuffer(self._segment, dtype=torch.uint8, count=nbytes, offset=start)
        return region.untyped_storage()

    def tensor(self, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
        """A contiguous tensor of zeros."""
        storage = self.allocate(prod(shape) * dtype.itemsize)
        return over(storage, dtype, shape)

    def close(self) -> None:
        """Close the file. Tensors that lie in it stay valid."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._segment = None

    def _map(self, nbytes: int) -> None:
        if self._file is None:
            with tempfile.TemporaryFile(dir=self._directory, prefix=".jsonckpt-") as file:
                self._file = os.dup(file.fileno())
        length = -(-max(nbytes, _SEGMENT) // mmap.ALLOCATIONGRANULARITY)
        length *= mmap.ALLOCATIONGRANULARITY
        os.ftruncate(self._file, self._size + length)
        self._segment = mmap.mmap(self._file, length, offset=self._size)
        self._segment_start = self._size
        self._size += length

    def _reserve(self, offset: int, nbytes: int) -> None:
        # A store into a mapped page for which the disk has no room kills the process (SIGBUS), so
        # the room is taken before the page is touched, where its lack is an ordinary error.
        assert self._file is not None
        if hasattr(os, "posix_fallocate"):
            with suppress(NotImplementedError):
                os.posix_fallocate(self._file, offset, nbytes)
                return
        zeros = bytes(_PIECE)
        for start in range(offset, offset + nbytes, _PIECE):
            os.pwrite(self._file, zeros[: offset + nbytes - start], start)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of a scratch file."""

    offset: int
    length: int


class Scratch:
    """An unnamed file for what waits until its meaning is known; used again once all is consumed.

    Whoever holds a stretch gives it back with :meth:`release`; when none is out, the file is
    written from its beginning again, and so stays about as large as the largest tensor.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = tempfile.TemporaryFile(  # noqa: SIM115 - closed by close()
            dir=directory, prefix=".jsonckpt-", buffering=0
        )
        self._end = 0
        self._held = 0

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def end(self) -> int:
        """Where the next byte goes."""
        return self._end

    def append(self, data: bytes | memoryview) -> None:
        """Write at the end.

        Raises:
            WriteError: no room is left.
        """
        view = memoryview(data).cast("B")
        try:
            while view:
                written = os.pwrite(self._file.fileno(), view, self._end)
                self._end += written
                view = view[written:]
        except OSError as error:
            raise _no_room(error, self._directory) from error

    def hold(self, offset: int) -> Stretch:
        """Everything from ``offset`` to the end, kept until it is released."""
        self._held += 1
        return Stretch(offset, self._end - offset)

    def release(self) -> None:
        """Give one stretch back."""
        self._held -= 1
        if self._held == 0:
            self._end = 0

    def read(self, stretch: Stretch, piece: int = _PIECE) -> Iterator[bytes]:
        """The bytes of a stretch in pieces of at most ``piece`` bytes."""
        offset, end = stretch.offset, stretch.offset + stretch.length
        while offset < end:
            data = os.pread(self._file.fileno(), min(piece, end - offset), offset)
            if not data:
                raise WriteError("a temporary file lost its end", file=self._directory)
            yield data
            offset += len(data)
