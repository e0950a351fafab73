"""How much is measured, and where the files are."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from benchmarks.arena import ROOT

__all__ = ["Place", "Settings", "places"]

#: Trained states, kept between runs. Git ignores it.
CACHE = ROOT / ".benchmarks" / "states"
_MEMORY = Path("/dev/shm")
_PREFIX, _LOCK = "jsonckpt-bench-", "lock"


@dataclass(frozen=True)
class Place:
    """A directory for checkpoints.

    Attributes:
        key: ``"memory"`` or ``"disk"``, also in the names of figures.
        label: as tables show it.
    """

    key: str
    label: str
    path: Path

    @property
    def on_disk(self) -> bool:
        """Whether its files are written back to a disk."""
        return self.key != "memory"


@dataclass(frozen=True)
class Settings:
    """The settings of a run.

    Attributes:
        places: where the files are; the first is the faster one.
        cache: where trained states are kept.
        scratch: a directory on a disk, for files that would fill the memory.
        state_bytes: tensors of the state of the speed group.
        list_bytes: the same for programs with a speed of some MB/s.
        rounds: how often each peer takes its turn.
    """

    quick: bool
    places: tuple[Place, ...]
    cache: Path
    scratch: Path
    state_bytes: int
    list_bytes: int
    rounds: int
    full_guide: bool = False

    @property
    def fast(self) -> Place:
        """The first place."""
        return self.places[0]

    @classmethod
    def of(
        cls,
        found: tuple[Place, ...],
        *,
        quick: bool,
        cache: Path | None = None,
        full_guide: bool = False,
    ) -> Settings:
        """The settings of a full or of a quick run."""
        return cls(
            quick=quick,
            places=found,
            cache=cache or CACHE,
            scratch=found[-1].path,
            state_bytes=100_000_000 if quick else 700_000_000,
            list_bytes=3_000_000 if quick else 12_000_000,
            rounds=2 if quick else 3,
            full_guide=full_guide,
        )


def file_system(path: Path) -> str:
    """The type of the file system that holds ``path``.

    >>> isinstance(file_system(Path("/")), str)
    True
    """
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return kind
    for mount in mounts:
        _, where, found, *_ = mount.split(" ")
        if path.resolve().is_relative_to(where) and len(where) >= len(best):
            best, kind = where, found
    return kind


@contextmanager
def places(directory: Path | None) -> Iterator[tuple[Place, ...]]:
    """The directories to measure in, removed at the end.

    Args:
        directory: the only one; ``None`` takes memory and a disk, if both exist.
    """
    roots = [directory] if directory is not None else [_MEMORY, CACHE.parent]
    made: list[Place] = []
    locks: list[BinaryIO] = []
    try:
        for root in roots:
            if root == _MEMORY and not os.access(_MEMORY, os.W_OK):
                continue
            root.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(root)
            kind = file_system(root)
            key, label = "disk", f"on disk ({kind})"
            if kind == "tmpfs":
                key, label = "memory", "in memory (tmpfs)"
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
            locks.append((path / _LOCK).open("wb"))
            fcntl.flock(locks[-1], fcntl.LOCK_EX)
            made.append(Place(key, label, path))
        yield tuple(made)
    finally:
        for place in made:
            shutil.rmtree(place.path, ignore_errors=True)
        for lock in locks:
            lock.close()


def _remove_abandoned(root: Path) -> None:
    """Remove what a killed run left: gigabytes of files that no process has locked."""
    for path in root.glob(f"{_PREFIX}*"):
        try:
            with (path / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except (BlockingIOError, FileNotFoundError):
            continue  # its run is running, or has just begun
