"""Which shards of a directory other checkpoints beside it use.

A directory whose shards are used by others has a file ``.shared-shards``, so that saves into other
directories need not look at their neighbours. Who begins to use a shard holds a shared lock on its
directory until its own manifest is committed; who removes a shard holds the exclusive one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import JsonckptError, LimitError
from ..format.filenames import SHARED_MARK
from ..format.limits import DEFAULT_LIMITS
from ..format.manifest import shard_files
from ..format.model import MANIFEST_NAME, SHARED_SHARDS, ShardFile
from ..storage import commit
from ..storage.leftovers import orphans
from ..storage.local import LocalLocation
from ..storage.lock import DirectoryLock
from ..storage.new_file import NewFile
from ..storage.os_errors import writing

_TEXT = b"""Checkpoints in the directories beside this one use shard-*.json files of this directory.
Do not delete them by hand: jsonckpt gc removes what nothing uses.
"""


def is_marked(directory: Path) -> bool:
    """Whether other checkpoints may use shards of a directory."""
    return os.path.lexists(directory / SHARED_MARK)


def mark(directory: Path, *, sync: bool) -> None:
    """Say that other checkpoints may use shards of a directory. Raises :class:`WriteError`."""
    if is_marked(directory):
        return
    file = NewFile(directory / SHARED_MARK)
    try:
        file.create()
        file.write_at(0, [_TEXT])
        file.finish(sync=sync)
    except BaseException as error:
        file.abandon()
        if isinstance(error, JsonckptError) and is_marked(directory):  # another save was faster
            return
        raise
    if sync:
        commit.fsync_directory(directory)


def files_in_use(directory: Path) -> frozenset[str] | None:
    """The shards of a directory that the checkpoints beside it name.

    ``None`` if that cannot be known: a manifest that may name some cannot be read.
    """
    real = Path(os.path.realpath(directory))
    ours = f'"../{real.name}"'.encode()
    found: set[str] = set()
    try:
        for text in _manifests_beside(real):
            if SHARED_SHARDS.encode() not in text:
                continue
            try:
                rows = shard_files(text, DEFAULT_LIMITS)
            except JsonckptError:
                if ours in text or not real.name.isascii():
                    return None
                continue
            found.update(row.file for row in rows if _leads_to(row, real))
    except (JsonckptError, OSError):
        return None
    return frozenset(found)


def _manifests_beside(real: Path) -> Iterator[bytes]:
    with os.scandir(real.parent) as entries:
        beside = [
            one.path
            for one in entries
            if one.name != real.name and one.is_dir(follow_symlinks=False)
        ]
    for path in sorted(beside):
        if os.path.lexists(os.path.join(path, MANIFEST_NAME)):
            yield _manifest(path)


def _manifest(directory: str | Path) -> bytes:
    """The manifest of a directory.

    Raises:
        JsonckptError: it cannot be read, or it is longer than any.
    """
    limit = DEFAULT_LIMITS.manifest_bytes or 0
    text = LocalLocation(directory).manifest(limit)
    if len(text) > limit:
        raise LimitError(f"the manifest has over {limit} bytes", file=directory)
    return text


def _leads_to(row: ShardFile, real: Path) -> bool:
    name = row.directory.removeprefix("../")
    return bool(name) and (
        name == real.name or os.path.realpath(real.parent / name) == os.fspath(real)
    )


def remove_unused(directory: Path, files: Iterable[str]) -> list[str]:
    """Remove shards of a directory that no checkpoint names any more, its own included.

    If nothing of a checkpoint is left in the directory, it is removed, too. If another process
    uses it, or it cannot be known what is in use, everything stays.

    Returns:
        the names of the removed files.
    """
    with DirectoryLock(directory) as alone:
        used = files_in_use(directory) if alone else None
        if used is None:
            return []
        own: set[str] = set()
        if os.path.lexists(directory / MANIFEST_NAME):
            try:
                text = _manifest(directory)
                own = {row.file for row in shard_files(text, DEFAULT_LIMITS) if not row.directory}
            except (JsonckptError, OSError):
                return []
        unused = sorted(name for name in set(files) - used - own)
        removed = [name for name in unused if os.path.lexists(directory / name)]
        commit.unlink_all([directory / name for name in removed], threads=1)
        if not own:
            remove_empty(directory)
    return removed


def remove_empty(directory: Path) -> None:
    """Remove the mark of a directory without a checkpoint and without shards, and the directory."""
    if os.path.lexists(directory / MANIFEST_NAME) or orphans(directory, set()):
        return
    commit.unlink(directory / SHARED_MARK)
    with suppress(OSError):  # there are files of others
        os.rmdir(directory)


def shards_of_others(rows: Iterable[ShardFile]) -> dict[str, set[str]]:
    """The shards of a manifest that lie in other directories, by directory."""
    found: dict[str, set[str]] = {}
    for row in rows:
        if row.directory:
            found.setdefault(row.directory, set()).add(row.file)
    return found


def rename_away(manifest: Path, token: str, *, sync: bool) -> Path:
    """Give a manifest the name of one that is not finished: there is no checkpoint any more."""
    path = manifest.with_name(f".manifest-{token}.tmp")
    with writing(manifest):
        os.replace(manifest, path)
    if sync:
        commit.fsync_directory(manifest.parent)
    return path
