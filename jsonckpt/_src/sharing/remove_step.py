"""Removes a checkpoint directory, but not the shards that checkpoints beside it use."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointNotFoundError, JsonckptError
from ..format.limits import DEFAULT_LIMITS
from ..format.manifest import shard_files
from ..format.model import MANIFEST_NAME, ShardFile
from ..standalone.export import FILES, changes
from ..storage import commit
from ..storage.leftovers import orphans, unfinished_manifests
from ..storage.local import LocalLocation
from ..storage.lock import DirectoryLock
from .holders import files_in_use, remove_empty, remove_unused, rename_away, shards_of_others


@dataclass(frozen=True)
class Removal:
    """What :func:`remove_step` did.

    Attributes:
        removed: paths of files, seen from the directory.
        kept: shards of it that checkpoints beside it use.
        busy: another process reads it, or is about to use its shards: nothing was done.
        unknown: a manifest beside it cannot be read, so all its shards stay.
    """

    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    busy: bool = False
    unknown: bool = False


def remove_step(path: str | os.PathLike[str], *, sync: bool = True) -> Removal:
    """Remove a checkpoint directory. Shards that checkpoints beside it use stay.

    First its manifest goes: from then on there is no checkpoint. Then its shards go that nothing
    names, and those in other directories that only it named. If it is stopped anywhere, no other
    checkpoint has lost anything, and calling it again ends the work. Files of others stay.

    No save may be writing to the directory.

    Args:
        path: of a checkpoint directory, or of one that an earlier call left behind.
        sync: make each step durable before the next one.

    Raises:
        CheckpointNotFoundError: there is no such directory.
        WriteError: the system refused; the checkpoint is as it was.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as run:
    ...     state, one, two = {"body": torch.ones(3)}, run + "/step-1", run + "/step-2"
    ...     _ = jsonckpt.save(state, one)
    ...     _ = jsonckpt.save(state, two, unchanged_from=one)
    ...     len(remove_step(one).kept), jsonckpt.load(two)
    (1, {'body': tensor([1., 1., 1.])})
    """
    directory = Path(os.path.realpath(path))
    if not directory.is_dir():
        raise CheckpointNotFoundError("there is no such directory", file=path)
    with DirectoryLock(directory) as alone:
        if not alone:
            return Removal(busy=True)
        used = files_in_use(directory)
        manifest = directory / MANIFEST_NAME
        if os.path.lexists(manifest):
            rename_away(manifest, secrets.token_hex(6), sync=sync)
        gone = [file.path for file in unfinished_manifests(directory)]
        rows = [row for path in gone for row in _rows(path)]
        own = {row.file for row in rows if not row.directory}
        own |= {file.path.name for file in orphans(directory, set())} - {path.name for path in gone}
        present = sorted(name for name in own if os.path.lexists(directory / name))
        kept = [name for name in present if used is None or name in used]
        removed = [name for name in present if name not in set(kept)]
        commit.unlink_all([directory / name for name in removed], threads=4)
        for other, files in shards_of_others(rows).items():
            place = directory / other
            if place.is_dir():
                removed += [f"{other}/{name}" for name in remove_unused(place, files)]
        if sync:
            commit.fsync_directory(directory)
        commit.unlink_all([*gone, *_reader_of(directory)], threads=1)
        remove_empty(directory)
    if sync:
        commit.fsync_directory(directory.parent)
    return Removal(tuple(removed), tuple(kept), unknown=used is None)


def _rows(manifest: Path) -> list[ShardFile]:
    """The rows of a manifest that was renamed. One that is damaged says nothing."""
    try:
        with LocalLocation(manifest.parent).file(manifest.name) as file:
            if file.size > (DEFAULT_LIMITS.manifest_bytes or 0):  # no manifest is so long
                return []
            text = bytearray(file.size)
            file.read_range(0, memoryview(text))
        return shard_files(bytes(text), DEFAULT_LIMITS)
    except JsonckptError:
        return []


def _reader_of(directory: Path) -> list[Path]:
    """The unchanged copies of the standalone reader that a save has written there."""
    try:
        changed = changes(directory)
    except JsonckptError:
        return []
    return [directory / name for name in FILES if name not in changed]
