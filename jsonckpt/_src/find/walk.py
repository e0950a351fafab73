"""Walks a directory and collects what may be a checkpoint, by names only.

The walk is bounded, and it visits each directory once, so circles of links end. What cannot be
listed is named in :attr:`Walk.unread`; the rest is still found.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, counted, quote
from ..format.filenames import is_part, is_shard_name, is_single
from ..format.model import MANIFEST_NAME
from ..sources.kinds import WEIGHTS

#: Directories and files that one walk looks at, and levels that it goes down.
MOST_ENTRIES = 200_000
DEEPEST = 32
#: Files that platforms keep beside data. No checkpoint has such a name.
METADATA_NAMES = frozenset(
    {"dataset-metadata.json", "datapackage.json", "kernel-metadata.json", "model-metadata.json"}
    | {"model-instance-metadata.json"}
)


@dataclass(frozen=True)
class Place:
    """Something that may be a checkpoint.

    Attributes:
        path: a path, or a URL as text.
        is_directory: whether it is a directory; of a URL, what the listing says.
        changed: the time of its last change, in seconds.
        names: of a local directory, the names in it.
    """

    path: Any
    name: str
    is_directory: bool
    changed: float
    names: frozenset[str] = frozenset()

    @property
    def is_unpacked_pt(self) -> bool:
        """Whether it is what a site makes of an uploaded .pt, which is a ZIP archive."""
        return {"data.pkl", "data"} <= self.names


@dataclass
class Walk:
    """The candidates below a local directory.

    Attributes:
        unread: what could not be listed or opened, and where the walk stopped, as sentences.
    """

    unread: list[str] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set, repr=False)
    _entries: int = field(default=0, repr=False)

    def below(self, root: Path) -> Iterator[Place]:
        """All candidates at any depth, ``root`` itself first."""
        waiting = [(root, 0)]
        while waiting:
            directory, depth = waiting.pop()
            names = self._names(directory)
            if names is None:
                continue
            place = self._directory(directory, names)
            if place is not None:
                yield place
            inside: list[Path] = []
            if place is None or not place.is_unpacked_pt:
                yield from self._inside(directory, names, inside)
            if inside and depth == DEEPEST:
                self.unread.append(
                    f"{directory}: not searched further, it is {DEEPEST} levels deep"
                )
            else:
                inside.sort(key=_links_last, reverse=True)
                waiting += [(path, depth + 1) for path in inside]

    def matching(self, root: Path, pattern: str) -> Iterator[Place]:
        """The candidates that match a glob relative to ``root``."""
        try:
            found = sorted(root.glob(pattern), key=_links_last)
        except ValueError as error:  # "**x", for example
            raise ArgumentError(f"pattern is {quote(pattern)}: {error}") from error
        except OSError as error:
            self.unread.append(f"{root}: cannot list: {error.strerror}")
            return
        for path in found:
            place = self.at(path)
            if place is not None:
                yield place

    def at(self, path: Path) -> Place | None:
        """A path as a candidate, if it is one."""
        facts = None if is_ignored(path.name) else self._facts(path)
        if facts is None:
            return None
        if stat.S_ISDIR(facts.st_mode):
            names = self._names(path)
            return None if names is None else self._directory(path, names)
        return self._file(path, facts)

    def _inside(self, directory: Path, names: frozenset[str], into: list[Path]) -> Iterator[Place]:
        """The files of a directory that are candidates; its subdirectories go to ``into``."""
        for name in sorted(names):
            path = directory / name
            facts = None if is_ignored(name) else self._facts(path)
            if facts is not None and stat.S_ISDIR(facts.st_mode):
                into.append(path)
            elif facts is not None and (place := self._file(path, facts)) is not None:
                yield place

    def _facts(self, path: Path) -> os.stat_result | None:
        """What the system says of a path; ``None`` if it leads to nothing."""
        try:
            return path.stat()
        except FileNotFoundError:
            return None  # a link that leads nowhere, or removed meanwhile
        except OSError as error:  # for example a circle of links
            self.unread.append(f"{path}: cannot open: {error.strerror}")
            return None

    def _names(self, directory: Path) -> frozenset[str] | None:
        """The names in a directory that was not seen before."""
        try:
            facts = directory.stat()
            if (facts.st_dev, facts.st_ino) in self._seen or self._entries > MOST_ENTRIES:
                return None
            self._seen.add((facts.st_dev, facts.st_ino))
            names = frozenset(self._counted(directory))
        except FileNotFoundError:
            return None  # removed meanwhile
        except OSError as error:
            self.unread.append(f"{directory}: cannot list: {error.strerror}")
            return None
        return names

    def _counted(self, directory: Path) -> Iterable[str]:
        with os.scandir(directory) as entries:
            for entry in entries:
                self._entries += 1
                if self._entries > MOST_ENTRIES:
                    limit = counted(MOST_ENTRIES, "file")
                    self.unread.append(f"{directory}: the search stopped here, after {limit}")
                    return
                yield entry.name

    def _directory(self, path: Path, names: frozenset[str]) -> Place | None:
        if not (
            MANIFEST_NAME in names
            or {"data.pkl", "data"} <= names
            or any(map(is_shard_name, names))
        ):
            return None
        # Without a manifest: the directory of a save that did not finish.
        facts = self._facts(path / MANIFEST_NAME if MANIFEST_NAME in names else path)
        return Place(path, path.name, True, facts.st_mtime if facts else 0.0, names)

    def _file(self, path: Path, facts: os.stat_result) -> Place | None:
        if not (may_be_file(path.name) and stat.S_ISREG(facts.st_mode)):
            return None
        return Place(path, path.name, False, facts.st_mtime)


def _links_last(path: Path) -> tuple[bool, Path]:
    # A directory is visited once. It is to be found under its own name, not as "latest".
    return os.path.islink(path), path


def is_ignored(name: str) -> bool:
    """Whether a name is hidden, temporary, or a part of something else."""
    hidden = name.startswith(".") or ".tmp" in name or name.endswith("~")
    return hidden or is_part(name) or name in METADATA_NAMES


def may_be_file(name: str) -> bool:
    """Whether a file of this name may be a checkpoint, ours or of another program."""
    return is_single(name) or name.lower().endswith(_CONVERTIBLE)


#: Endings of files of other programs that ``convert`` reads.
_CONVERTIBLE = tuple(end for end in WEIGHTS if end not in (".h5", ".onnx", ".gguf"))
