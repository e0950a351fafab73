"""A recovered record as a source for a save, and the spool for payloads of compressed files."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from ..errors import IntegrityError, JsonckptError
from ..format.checksums import hexdigest
from ..format.chunk_codec import ChunkCodec
from ..format.limits import Limits
from ..format.model import Codec, Layout
from ..storage import commit
from ..storage.local import LocalFile
from ..storage.spool import SpoolFile
from .scan_record import FoundRecord


class FoundSource:
    """A recovered record as a source for a save. Reading checks it again.

    Args:
        file: the file in which it was found.
        spool: holds its payloads if the file cannot be read a second time.
    """

    def __init__(
        self, found: FoundRecord, file: Path, limits: Limits, spool: SpoolFile | None = None
    ) -> None:
        header = found.header
        self.found, self.file = found, file
        self.name, self.dtype, self.shape = header.name, header.dtype, header.shape
        self.device, self.nbytes = header.device, header.nbytes
        # Without its place in a storage: other records there may be lost.
        self.layout = Layout(header.layout.stride)
        self._limits, self._spool = limits, spool

    @property
    def codec(self) -> Codec:
        """How its chunks are encoded."""
        return self.found.header.codec

    def read(self, start: int, stop: int) -> memoryview:
        """The raw bytes ``[start, stop)``, which are one chunk.

        Raises:
            IntegrityError: the file has changed since it was scanned.
        """
        header = self.found.header
        chunk = start // header.codec.chunk_bytes
        offset, length, checksum = self.found.chunks[chunk]
        raw = memoryview(bytearray(stop - start))
        if self._spool is not None:
            payload = memoryview(bytearray().join(self._spool.read(offset, length)))
        else:
            payload = memoryview(bytearray(length))
            with LocalFile(self.file, follow=self._limits.follow) as file:
                file.read_range(offset, payload)
        try:
            coder = ChunkCodec(zstd_window=self._limits.zstd_window)
            coder.decode_into(payload, header.codec, header.dtype, raw)
            if hexdigest(self.found.algorithm, raw) != checksum:
                raise IntegrityError("the file was changed while it was read")
        except JsonckptError as error:
            error.at(file=self.file, tensor=header.name, chunk=chunk)
            raise
        return raw


def spool_beside(target: Path, stack: ExitStack) -> SpoolFile:
    """A temporary file where ``target`` will be, open until ``stack`` ends."""
    made: list[Path] = []
    # The cleanup is registered first: an interrupt may come between any two calls.
    stack.callback(commit.remove_directories, made)
    commit.make_directory(target.parent, made, sync=False)
    return stack.enter_context(SpoolFile(target.parent, "Free some space, or recover elsewhere."))
