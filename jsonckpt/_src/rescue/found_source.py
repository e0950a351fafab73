"""A record that was found, as a source for a save; and a spool for payloads of compressed files."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from pathlib import Path

from ..errors import IntegrityError, JsonckptError
from ..format.checksums import hexdigest
from ..format.chunk_codec import ChunkCodec
from ..format.filenames import temporary_name
from ..format.limits import Limits
from ..format.model import Layout
from ..storage import commit
from ..storage.local import LocalFile
from ..storage.new_file import Mode, NewFile
from .scan_record import FoundRecord


class FoundSource:
    """A record that was found, as a source for a save. Reading checks it once more.

    Args:
        payloads: the file that holds its payloads: that in which it was found, or a spool.
        file: the file in which it was found.
    """

    def __init__(self, found: FoundRecord, payloads: Path, file: str, limits: Limits) -> None:
        header = found.header
        self.found, self.file = found, file
        self.name, self.dtype, self.shape = header.name, header.dtype, header.shape
        self.device, self.nbytes = header.device, header.nbytes
        # Not its place in a storage: others there may be lost.
        self.layout = Layout(header.layout.stride)
        self._payloads, self._limits = payloads, limits

    def read(self, start: int, stop: int) -> memoryview:
        """The raw bytes ``[start, stop)``, which are one chunk.

        Raises:
            IntegrityError: the file has changed since it was scanned.
        """
        header = self.found.header
        chunk = start // header.codec.chunk_bytes
        offset, length, checksum = self.found.chunks[chunk]
        payload, raw = memoryview(bytearray(length)), memoryview(bytearray(stop - start))
        with LocalFile(self._payloads, follow=self._limits.follow) as file:
            file.read_range(offset, payload)
        try:
            coder = ChunkCodec(zstd_window=self._limits.zstd_window)
            coder.decode_into(payload, header.codec, header.dtype, raw)
            if hexdigest(self.found.algorithm, raw) != checksum:
                raise IntegrityError("the file was changed while it was read")
        except JsonckptError as error:
            error.at(file=self._payloads, tensor=header.name, chunk=chunk)
            raise
        return raw


class SpoolFile:
    """A temporary file that grows and can be cut back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Payloads of a checkpoint that perhaps not everybody may read.
        self._file = NewFile(path, mode=Mode(0o600))
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
    stack.callback(commit.remove_directories, made)
    stack.callback(spool.remove)
    commit.make_directory(target.parent, made, sync=False)
    spool.create()
    return spool
