"""Found records as something to be saved, and a place for payloads that pass only once."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from jsonckpt import storage
from jsonckpt.checksums import hexdigest
from jsonckpt.codecs import Coder
from jsonckpt.errors import IntegrityError, JsonckptError
from jsonckpt.limits import Limits
from jsonckpt.names import temporary_name
from jsonckpt.reading import LocalFile
from jsonckpt.salvage import Found

__all__ = ["FoundSource", "SpoolFile", "spool_beside"]


@dataclass(frozen=True)
class FoundSource:
    """A record that was found, as something to be saved: read and checked once more."""

    found: Found
    file: Path
    limits: Limits

    @property
    def name(self) -> str:
        return self.found.header.name

    @property
    def dtype(self) -> str:
        return self.found.header.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.found.header.shape

    @property
    def device(self) -> str:
        return self.found.header.device

    @property
    def nbytes(self) -> int:
        return self.found.header.nbytes

    def read(self, start: int, stop: int) -> memoryview:
        """The raw bytes ``[start, stop)``, which are one chunk."""
        chunk = start // self.found.header.codec.chunk_bytes
        offset, length, _ = self.found.chunks[chunk]
        payload = bytearray(length)
        with LocalFile(self.file, follow=self.limits.follow) as file:
            file.read_range(offset, memoryview(payload))
        try:
            raw = decode_chunk(memoryview(payload), self.found, chunk, self.limits)
        except JsonckptError as error:
            error.at(file=self.file)
            raise
        assert len(raw) == stop - start
        return raw


class SpoolFile:
    """A temporary file that grows and can be cut back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = storage.NewFile(path)
        self._length = 0

    def create(self) -> None:
        """Make it, empty."""
        self._file.create()

    def tell(self) -> int:
        """Bytes so far."""
        return self._length

    def write(self, data: bytes, /) -> int:
        """Add bytes."""
        self._file.write_at(self._length, [data])
        self._length += len(data)
        return len(data)

    def cut(self, length: int) -> None:
        """Forget what was written after ``length`` bytes; later bytes overwrite it."""
        self._length = length

    def remove(self) -> None:
        """Remove it."""
        self._file.abandon()

    def __del__(self) -> None:
        # An interrupt on the way to the removal, or in it.
        self.remove()


def spool_beside(target: Path, stack: ExitStack) -> SpoolFile:
    """A temporary file beside ``target``, removed when ``stack`` ends."""
    made: list[Path] = []
    # A name that gc knows, should this be killed.
    spool = SpoolFile(target.with_name(temporary_name(target.name, secrets.token_hex(6))))
    # What removes it is there before it is: an interrupt may come between any two calls.
    stack.callback(storage.remove_directories, made)
    stack.callback(spool.remove)
    storage.make_directory(target.parent, made, sync=False)
    spool.create()
    return spool


def decode_chunk(payload: memoryview, found: Found, chunk: int, limits: Limits) -> memoryview:
    """The raw bytes of a chunk that :func:`scan` found, checked again.

    Raises:
        IntegrityError: the file has changed since.
    """
    header = found.header
    start = chunk * header.codec.chunk_bytes
    out = memoryview(bytearray(min(header.codec.chunk_bytes, header.nbytes - start)))
    coder = Coder(zstd_window=limits.zstd_window)
    try:
        coder.decode_into(payload, header.codec, header.dtype, out)
        if hexdigest(found.algorithm, out) != found.chunks[chunk][2]:
            raise IntegrityError("the file was changed while it was read")
    except JsonckptError as error:
        error.at(tensor=header.name, chunk=chunk)
        raise
    return out
