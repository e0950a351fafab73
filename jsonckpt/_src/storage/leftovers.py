"""Finds the files of a damaged checkpoint and the leftovers of killed saves. Opens no file."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointNotFoundError, UnsafePathError
from ..format.filenames import is_content_name, is_shard_name, temporary_stem, zstd_by_name
from ..format.model import MANIFEST_NAME
from .missing import hint_for_missing
from .new_file import special_kind

#: Files that saves of this package make.
_SHARD = re.compile(r"shard-([0-9a-f]{12})(?:-r[0-9]{5,})?-([0-9]{5,})\.json(\.zst)?")
_MANIFEST_TEMPORARY = re.compile(r"\.manifest-[0-9a-f]{12}\.tmp")
_SINGLE_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}\.tmp")


@dataclass(frozen=True)
class File:
    """A regular file. ``changed`` is the time of its last change, in seconds."""

    path: Path
    nbytes: int
    changed: float

    @property
    def zstd_by_name(self) -> bool | None:
        """Whether its name says that it is compressed; ``None`` if its content says it."""
        match = _SINGLE_TEMPORARY.fullmatch(self.path.name)
        return zstd_by_name(match["name"] if match else self.path.name)


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a checkpoint that may be damaged.

    Attributes:
        path: the directory, or the single file.
        shards: the files with records.
        manifests: ``manifest.json``, then those of saves that did not finish, the newest first.
    """

    path: Path
    shards: list[File]
    manifests: list[File]
    is_directory: bool


def regular_files(directory: Path) -> Iterator[File]:
    """The regular files of a directory, by name. Links are not followed."""
    for name in sorted(os.listdir(directory)):
        try:
            status = os.lstat(directory / name)
        except FileNotFoundError:  # gone meanwhile
            continue
        if stat.S_ISREG(status.st_mode):
            yield File(directory / name, status.st_size, status.st_mtime)


def files_to_search(path: Path) -> CheckpointFiles:
    """The files of the checkpoint at ``path``.

    If a single file is missing, the newest temporary file of a killed save is taken.

    Raises:
        CheckpointNotFoundError: nothing is there.
    """
    if path.name == MANIFEST_NAME and not path.is_dir():
        path = path.parent
    if path.is_dir():
        shards = [_followed(path, name) for name in sorted(os.listdir(path)) if is_shard_name(name)]
        manifests = [_followed(path, MANIFEST_NAME), *unfinished_manifests(path)]
        return CheckpointFiles(
            path, list(filter(None, shards)), list(filter(None, manifests)), is_directory=True
        )
    single = _followed(path.parent, path.name)
    if single is None:
        left = single_temporaries(path)
        if not left:
            if path.exists():
                kind = special_kind(os.stat(path).st_mode)
                raise UnsafePathError(
                    f"{kind or 'something else'}, not a regular file",
                    file=path,
                    hint="Copy what comes out of it to a file, and recover that.",
                )
            raise CheckpointNotFoundError(
                "no such file or directory, and no leftovers of a save to it",
                file=path,
                hint=hint_for_missing(path),
            )
        single = max(left, key=lambda file: file.changed)
    return CheckpointFiles(single.path, [single], [], is_directory=False)


def unfinished_manifests(directory: Path) -> list[File]:
    """The manifests that killed saves and removals left, the newest first."""
    found = [
        file for file in regular_files(directory) if _MANIFEST_TEMPORARY.fullmatch(file.path.name)
    ]
    return sorted(found, key=lambda file: file.changed, reverse=True)


def single_temporaries(path: Path) -> list[File]:
    """The temporary files beside ``path`` that a save, conversion or recovery of it left.

    A killed save of a single file leaves one. So does a killed conversion to another program's
    file. A killed ``recover`` leaves its spool, for a file and for a directory.
    """
    if path.name in ("", ".."):  # "." or "..", for example
        path = Path(os.path.abspath(path))
    try:
        files = list(regular_files(path.parent))
    except OSError:  # the directory does not exist, or may not be listed
        return []
    return [file for file in files if is_temporary_of(file.path.name, path.name)]


def is_temporary_of(name: str, of: str) -> bool:
    """Whether a name is that of a temporary file that a save, conversion or recovery left.

    Args:
        of: the name of its output.
    """
    match = _SINGLE_TEMPORARY.fullmatch(name)
    return match is not None and match["name"] == temporary_stem(of)


def is_unfinished_manifest(name: str) -> bool:
    """Whether a name is that of a manifest which was not committed."""
    return _MANIFEST_TEMPORARY.fullmatch(name) is not None


def is_of_save(name: str) -> bool:
    """Whether a name is one that saves of this package give the files of a directory."""
    return is_unfinished_manifest(name) or _is_shard_of_ours(name)


def orphans(directory: Path, named: set[str]) -> list[File]:
    """The files of saves in a directory that are not in ``named``, the files of its manifest."""
    return [
        file
        for file in regular_files(directory)
        if is_of_save(file.path.name) and file.path.name not in named
    ]


def _is_shard_of_ours(name: str) -> bool:
    return _SHARD.fullmatch(name) is not None or is_content_name(name)


def shared_shard(directory: Path, path: str, *, follow: bool) -> File | None:
    """A shard in ``../NAME``, another directory beside that of the manifest; ``None`` if not there.

    Args:
        follow: whether that directory may be a symbolic link.
    """
    place, _, name = path.rpartition("/")
    if not follow and (directory / place).is_symlink():
        return None
    return _followed(directory / place, name)


def _followed(directory: Path, name: str) -> File | None:
    """A regular file, or a link to one (as in download caches); else ``None``."""
    try:
        status = os.stat(directory / name)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return File(directory / name, status.st_size, status.st_mtime)
