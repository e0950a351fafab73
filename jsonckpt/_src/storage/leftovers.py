"""What lies at the path of a damaged checkpoint: which files to search, which to leave alone.

Names only and nothing opened: the age and kind of files decide, never what they hold.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointNotFoundError
from ..format.filenames import is_shard_name, is_single, temporary_stem
from ..format.model import MANIFEST_NAME

#: Names that this package itself gives: its shards, its manifests under way.
SHARD = re.compile(r"shard-([0-9a-f]{12})-([0-9]{5,})\.json(\.zst)?")
MANIFEST_TEMPORARY = re.compile(r"\.manifest-[0-9a-f]{12}\.tmp")
_SINGLE_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}\.tmp")


@dataclass(frozen=True)
class File:
    """A regular file: its path, bytes, and the time of its last change in seconds."""

    path: Path
    nbytes: int
    changed: float

    @property
    def compressed(self) -> bool:
        """Whether its name says that it is zstd."""
        match = _SINGLE_TEMPORARY.fullmatch(self.path.name)
        return (match["name"] if match else self.path.name).endswith(".zst")


def regular_files(directory: Path) -> Iterator[File]:
    """The regular files of a directory, by name. Links are not followed."""
    for name in sorted(os.listdir(directory)):
        try:
            status = os.lstat(directory / name)
        except FileNotFoundError:  # gone meanwhile
            continue
        if stat.S_ISREG(status.st_mode):
            yield File(directory / name, status.st_size, status.st_mtime)


def searched(path: Path) -> tuple[list[File], list[File], bool]:
    """``(files of records, manifests, is a directory)`` of what is to be recovered.

    The manifests are ``manifest.json`` and after it those of saves that did not finish, the newest
    first. For a single file that is missing, what its killed save left is taken.

    Raises:
        CheckpointNotFoundError: nothing is there.
    """
    if path.name == MANIFEST_NAME and not path.is_dir():
        path = path.parent
    if path.is_dir():
        files = list(regular_files(path))
        shards = [_followed(path, name) for name in sorted(os.listdir(path)) if is_shard_name(name)]
        manifests = [file for file in files if MANIFEST_TEMPORARY.fullmatch(file.path.name)]
        manifests.sort(key=lambda file: file.changed, reverse=True)
        final = _followed(path, MANIFEST_NAME)
        return [file for file in shards if file], [*filter(None, [final]), *manifests], True
    single = _followed(path.parent, path.name)
    if single is not None:
        return [single], [], False
    left = single_temporaries(path) if is_single(path.name) else []
    if not left:
        raise CheckpointNotFoundError(
            "there is no such file or directory, and no leftovers of a save of it", file=path
        )
    return [max(left, key=lambda file: file.changed)], [], False


def single_temporaries(path: Path) -> list[File]:
    """What was left beside a path by those who were killed before it was complete.

    That is a save of a single file; ``recover``, which keeps payloads beside what it makes, be it
    a file or a directory; a conversion to another program's file.
    """
    if path.name in ("", ".."):  # a directory that is not called by its name
        path = Path(os.path.abspath(path))
    stem = temporary_stem(path.name)
    try:
        return [file for file in regular_files(path.parent) if temporary_of(file.path) == stem]
    except OSError:  # there is no such directory, or it may not be listed
        return []


def temporary_of(path: Path) -> str | None:
    """What :func:`temporary_stem` says of the file that it was to become."""
    match = _SINGLE_TEMPORARY.fullmatch(path.name)
    return match["name"] if match else None


def orphans(directory: Path, named: set[str]) -> list[File]:
    """The files of a directory that saves of this package left and its manifest does not name."""
    return [
        file
        for file in regular_files(directory)
        if MANIFEST_TEMPORARY.fullmatch(file.path.name)
        or (SHARD.fullmatch(file.path.name) and file.path.name not in named)
    ]


def _followed(directory: Path, name: str) -> File | None:
    """A regular file, or a link to one (download caches have them); else ``None``."""
    try:
        status = os.stat(directory / name)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return File(directory / name, status.st_size, status.st_mtime)
