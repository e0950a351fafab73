"""Found records: which count; as something to be saved; a place for payloads that pass once."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, JsonckptError
from ..format.checksums import hexdigest
from ..format.chunk_codec import ChunkCodec
from ..format.filenames import temporary_name
from ..format.limits import Limits
from ..format.model import Layout
from ..storage import commit
from ..storage.leftovers import File
from ..storage.local import LocalFile
from ..storage.new_file import Mode, NewFile
from .scan import Found, Scan


@dataclass(frozen=True)
class FoundSource:
    """A record that was found, as something to be saved: read and checked once more."""

    found: Found
    file: Path
    limits: Limits
    #: The file that it was found in, which a spool may stand for.
    at: str

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
    def layout(self) -> Layout:
        """Its strides. What it shared a storage with may be lost, or its place there damaged."""
        return Layout(self.found.header.layout.stride)

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


def decode_chunk(payload: memoryview, found: Found, chunk: int, limits: Limits) -> memoryview:
    """The raw bytes of a chunk that :func:`scan` found, checked again.

    Raises:
        IntegrityError: the file has changed since.
    """
    header = found.header
    start = chunk * header.codec.chunk_bytes
    out = memoryview(bytearray(min(header.codec.chunk_bytes, header.nbytes - start)))
    coder = ChunkCodec(zstd_window=limits.zstd_window)
    try:
        coder.decode_into(payload, header.codec, header.dtype, out)
        if hexdigest(found.algorithm, out) != found.chunks[chunk][2]:
            raise IntegrityError("the file was changed while it was read")
    except JsonckptError as error:
        error.at(tensor=header.name, chunk=chunk)
        raise
    return out


def agrees(record: Found, entry: Any) -> bool:
    """Whether a record is the one that the manifest says: the same bytes of the same tensor."""
    header = record.header
    return (header.dtype, header.shape, header.device, header.codec) == (
        entry.dtype,
        entry.shape,
        entry.device,
        entry.codec,
    ) and [chunk[2] for chunk in record.chunks] == [chunk[2] for chunk in entry.chunks]


def alike(one: Found, other: Found) -> bool:
    """Whether two records are the same bytes of the same tensor."""
    first, second = one.header, other.header
    return (first.dtype, first.shape, first.device, first.codec.chunk_bytes) == (
        second.dtype,
        second.shape,
        second.device,
        second.codec.chunk_bytes,
    ) and [chunk[2] for chunk in one.chunks] == [chunk[2] for chunk in other.chunks]


def save_of(file: File, found: Scan) -> str:
    """Which save a shard belongs to: by its head, else by the beginning that its name has."""
    if found.head is not None:
        return str(found.head["save_id"])
    return file.path.name.removeprefix("shard-").partition("-")[0]


def choose(groups: Mapping[str, Sequence[tuple[File, Scan]]], save_id: str | None) -> str | None:
    """The save that is asked for; else the newest whose shards are complete; else the newest."""
    if save_id is not None:
        groups = {key: group for key, group in groups.items() if key.startswith(save_id)}
    for complete in (True, False):
        fitting = {
            key: max(file.changed for file, _ in group)
            for key, group in groups.items()
            if not complete or all(found.ended for _, found in group)
        }
        if fitting:
            return max(fitting, key=lambda key: fitting[key])
    return None
