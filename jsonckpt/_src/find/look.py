"""Looks at one candidate: what it is, whether it is whole, and how far the run was.

No payload is read. Of a directory the manifest is read and the sizes of its shards are compared;
of a file its head, and its index at the end; of a compressed file its head and the headers of its
frames.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import (
    CheckpointNotFoundError,
    FormatError,
    IncompleteCheckpointError,
    IntegrityError,
    JsonckptError,
    LimitError,
    quote,
)
from ..format.filenames import is_single
from ..format.manifest import parse_head
from ..format.model import MANIFEST_FORMAT, MANIFEST_NAME, SHARD_FORMAT
from ..load.container import open_container
from ..load.options import ReadOptions
from ..load.record_stream import RecordStream
from ..load.single_file import read_index
from ..progress import human
from ..sources.kinds import HEAD, Look
from ..storage.locate import locate
from ..storage.path_arguments import is_url
from ..storage.protocols import ByteSource, Location
from .convertible import UNPACKED, convertible_kind
from .numbers import is_usual, numbers_in_name, numbers_in_state, time_of
from .walk import Place
from .zstd_frames import check_frames

#: Errors about the checkpoint itself. Any other one means that a remote place could not be read.
_ABOUT_CHECKPOINT = (
    CheckpointNotFoundError, FormatError, IncompleteCheckpointError, IntegrityError, LimitError,
)  # fmt: skip
DIRECTORY, FILE = "directory", "file"
#: Bytes of a file that are read at once, until its head has ended.
_PIECE = 1 << 16


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint that :func:`jsonckpt.find` found. ``jsonckpt.load(found)`` takes it as a path.

    Attributes:
        path: a ``Path``, or a URL as text.
        kind: ``"directory"`` or ``"file"``; else what :func:`jsonckpt.convert` can read, in words.
        valid: it is a whole checkpoint of jsonckpt. Its payloads were not read.
        problem: what is wrong with a torn one.
        step, epoch: from the state or the metadata, else from the name; ``None`` if neither says.
        saved_at: UTC; of files of other programs the time of the file.
        bytes: the size on disk.
    """

    path: Any
    kind: str
    valid: bool
    problem: str | None = None
    step: int | None = None
    epoch: int | None = None
    saved_at: datetime | None = None
    bytes: int = 0
    changed: float = field(default=0.0, compare=False)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return str(self.path).rstrip("/").rpartition("/")[2]

    @property
    def convertible(self) -> bool:
        """Whether it is a file of another program, which ``jsonckpt convert`` reads."""
        return self.kind not in (DIRECTORY, FILE)

    @property
    def torn(self) -> bool:
        """Whether it is a checkpoint that is not whole or cannot be read."""
        return not (self.valid or self.convertible)

    def __repr__(self) -> str:
        facts = [self.kind]
        facts += [f"step {self.step}"] if self.step is not None else []
        facts += [f"epoch {self.epoch}"] if self.epoch is not None else []
        facts += [human(self.bytes)]
        facts += [f"torn: {quote(self.problem)}"] if self.torn else []
        return f"<FoundCheckpoint {self.path}: {', '.join(facts)}>"

    def __fspath__(self) -> str:
        return str(self.path)


def problem_of(error: JsonckptError, path: Any) -> str:
    """What is wrong with a checkpoint, in words.

    Raises:
        JsonckptError: ``error``, if it is about a remote place and not about the checkpoint.
    """
    if is_url(str(path)) and not isinstance(error, _ABOUT_CHECKPOINT):
        raise error
    return error.message if error.file == str(path) else str(error)


def check_text(found: FoundCheckpoint, storage_options: Mapping[str, Any] | None) -> None:
    """Read all of the text around the payloads, which a look at a file does not.

    Raises:
        JsonckptError: it is not whole, or cannot be read.
    """
    container = open_container(found.path, options_for(None, storage_options))
    container.check_files(range(len(container.manifest.shards)))


@dataclass(frozen=True)
class _Facts:
    state: Any
    metadata: Any
    created_at: str
    nbytes: int


def look_at(place: Place, options: ReadOptions) -> FoundCheckpoint | None:
    """What is at a place; ``None`` if it is no checkpoint.

    Raises:
        JsonckptError: a remote place cannot be read. It must not look like an empty one.
    """
    if place.is_unpacked_pt and MANIFEST_NAME not in place.names:
        return _convertible(place, UNPACKED, _bytes_of(Path(place.path)))
    kind = DIRECTORY if place.is_directory else FILE
    try:
        location, name = locate(place.path, options.storage_options, follow=options.limits.follow)
        if name is None:
            found = _in_directory(place, options)
        else:
            beginning, size = _beginning(location, name, options)
            if not _is_ours(beginning):
                return _of_others(place, beginning, size)
            kind, single = FILE, _in_file(place, location, name, options)
            if single is None:
                return None
            found = single
    except CheckpointNotFoundError:
        return None  # removed meanwhile, or a directory of something else
    except JsonckptError as error:
        return _torn(place, kind, problem_of(error, place.path))
    step, epoch = numbers_in_state(found.state, found.metadata)
    named_step, named_epoch = numbers_in_name(place.name)
    return FoundCheckpoint(
        place.path,
        kind,
        True,
        step=named_step if step is None else step,
        epoch=named_epoch if epoch is None else epoch,
        saved_at=time_of(found.created_at),
        bytes=found.nbytes,
        changed=place.changed,
    )


def _in_directory(place: Place, options: ReadOptions) -> _Facts:
    container = open_container(place.path, options)
    manifest = container.manifest
    container.check_files(range(len(manifest.shards)))
    size = container.first_bytes + sum(shard.bytes for shard in manifest.shards)
    return _Facts(manifest.state, manifest.metadata, manifest.created_at, size)


def _in_file(place: Place, location: Location, name: str, options: ReadOptions) -> _Facts | None:
    """The facts of a single file; ``None`` if it is one shard of a directory."""
    try:
        with location.stream(name, zstd_window=options.limits.zstd_window) as stream:
            head = RecordStream(_InPieces(stream), options, alone=True).read_head()
        if "state" not in head:
            return None
        created_at, _, metadata, state = parse_head(head)
        size = _check_end(location, name, options)
    except _ABOUT_CHECKPOINT:
        # It may have been edited. Else this says best what is wrong.
        container = open_container(place.path, options)
        manifest = container.manifest
        return _Facts(manifest.state, manifest.metadata, manifest.created_at, container.first_bytes)
    return _Facts(state, metadata, created_at, size)


def _check_end(location: Location, name: str, options: ReadOptions) -> int:
    """Check that a file is whole, by what is at its end. Returns its size on disk.

    Raises:
        JsonckptError: it is not.
    """
    if not location.ranged(name):
        with location.stream(name, zstd_window=options.limits.zstd_window) as stream:
            return stream.size or 0
    with location.file(name) as file:
        if location.compressed(name):
            check_frames(file)
        else:
            read_index(file, options.limits)
        return int(file.size)


class _InPieces:
    """A source whose reads are small: a head is often a few kilobytes in front of gigabytes."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self.size = source.size

    def readinto(self, buffer: memoryview, /) -> int:
        return self._source.readinto(buffer[:_PIECE])


def _beginning(location: Location, name: str, options: ReadOptions) -> tuple[bytes, int]:
    """The first bytes of a file's text, and its size on disk.

    Raises:
        JsonckptError: it cannot be read or decompressed.
    """
    buffer, done = bytearray(HEAD), 0
    with location.stream(name, zstd_window=options.limits.zstd_window) as stream:
        while done < HEAD and (count := stream.readinto(memoryview(buffer)[done:])):
            done += count
        return bytes(buffer[:done]), stream.size or 0


def _is_ours(beginning: bytes) -> bool:
    return SHARD_FORMAT.encode() in beginning or MANIFEST_FORMAT.encode() in beginning


def _of_others(place: Place, beginning: bytes, size: int) -> FoundCheckpoint | None:
    """A file that does not name this package: convertible, damaged, or of no interest."""
    if is_url(str(place.path)) and not is_single(place.name):
        return None  # a file of another program, which is not looked into over a network
    kind = convertible_kind(Look(Path(place.name), beginning, size)) if beginning else None
    if kind is not None:
        return _convertible(place, kind, size)
    if not (is_single(place.name) and is_usual(place.name)):
        return None
    step, epoch = numbers_in_name(place.name)
    problem = "not a jsonckpt checkpoint" if beginning.strip(b"\0 \r\n") else "the file is empty"
    return FoundCheckpoint(
        place.path, FILE, False, problem, step, epoch, bytes=size, changed=place.changed
    )


def _convertible(place: Place, kind: str, size: int) -> FoundCheckpoint:
    step, epoch = numbers_in_name(place.name)
    saved = datetime.fromtimestamp(place.changed, timezone.utc) if place.changed else None
    return FoundCheckpoint(
        place.path, kind, False, None, step, epoch, saved, size, changed=place.changed
    )


def _torn(place: Place, kind: str, problem: str) -> FoundCheckpoint:
    step, epoch = numbers_in_name(place.name)
    size = 0 if is_url(str(place.path)) else _bytes_of(Path(place.path))
    return FoundCheckpoint(
        place.path, kind, False, problem, step, epoch, bytes=size, changed=place.changed
    )


def _bytes_of(path: Path) -> int:
    """The bytes of a file, or of the files directly in a directory, and of data/ below it."""
    total = 0
    try:
        if not path.is_dir():
            return path.stat().st_size
        for directory in (path, path / "data"):
            if directory.is_dir():
                with os.scandir(directory) as entries:
                    total += sum(one.stat().st_size for one in entries if one.is_file())
    except OSError:
        pass  # a size for people: what can be counted
    return total


def options_for(limits: Any, storage_options: Mapping[str, Any] | None) -> ReadOptions:
    """The options of a look, checked.

    Raises:
        ArgumentError: an argument is not valid.
    """
    return ReadOptions.of(limits=limits, threads=1, storage_options=storage_options)
