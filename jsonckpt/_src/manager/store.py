"""The directory of a run: local, or a URL."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ..errors import ArgumentError, WriteError, counted
from ..format.filenames import temporary_name
from ..sharing.remove_step import remove_step
from ..storage import commit
from ..storage.leftovers import orphans, single_temporaries
from ..storage.lock import PathLock
from ..storage.os_errors import read_error, writing
from ..storage.path_arguments import is_url, path_text


class Store(Protocol):
    """What a manager needs of the directory of a run."""

    def make(self) -> None:
        """Make the directory."""

    def names(self) -> list[str]:
        """What is directly in it."""

    def path(self, name: str) -> str:
        """The path or URL of what has a name in it."""

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file, at most ``limit`` + 1 bytes of it; ``None`` if it is not there."""

    def write(self, name: str, data: bytes, *, sync: bool) -> None:
        """Replace a small file: a reader sees the old or the new one."""

    def tidy(self, name: str) -> None:
        """Remove what killed writes of a file have left. Nobody else may be writing it."""

    def remove_step(self, name: str) -> bool:
        """Remove a checkpoint, its manifest first. Returns whether nobody uses it.

        Files that are not of saves stay, and shards that other checkpoints use.
        """

    def exists(self, name: str) -> bool:
        """Whether anything has this name."""

    def is_link(self, name: str) -> bool:
        """Whether it is a symbolic link: what it leads to is not of this run alone."""

    def lock(self, name: str, *, shared: bool) -> PathLock:
        """A context manager that says whether nobody else uses it; ``""`` is the directory."""


def store_at(
    directory: object, storage_options: Mapping[str, Any] | None, *, sync: bool = True
) -> Store:
    """The directory of a run. It need not exist.

    Args:
        sync: whether changes are made durable.

    Raises:
        ArgumentError: it is no path, or a file.
    """
    text = path_text(directory, "directory")
    if is_url(text):
        from .remote_store import RemoteStore

        return RemoteStore(text, storage_options)
    if os.path.exists(text) and not os.path.isdir(text):
        raise ArgumentError(
            f"directory is {text!r}, which is a file",
            hint="Give the directory that holds the checkpoints of a run.",
        )
    # A training may change its working directory.
    return LocalStore(Path(text).absolute(), sync=sync)


class LocalStore:
    """A directory of a local file system."""

    def __init__(self, root: Path, *, sync: bool) -> None:
        self._root = root
        self._sync = sync

    def names(self) -> list[str]:
        try:
            return sorted(os.listdir(self._root))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise read_error(error, str(self._root), opening=True) from error

    def path(self, name: str) -> str:
        return str(self._root / name) if name else str(self._root)

    def tidy(self, name: str) -> None:
        for left in single_temporaries(self._root / name):
            commit.unlink(left.path)

    def exists(self, name: str) -> bool:
        return os.path.lexists(self._root / name)

    def is_link(self, name: str) -> bool:
        return os.path.islink(self._root / name)

    def read(self, name: str, limit: int) -> bytes | None:
        path = self._root / name
        try:
            # Not a FIFO or a device, which a read may never end.
            if not stat.S_ISREG(path.stat().st_mode):
                return b""
            with path.open("rb") as file:
                return file.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise read_error(error, str(path), opening=True) from error

    def make(self) -> None:
        commit.make_directory(self._root, [], sync=self._sync)

    def write(self, name: str, data: bytes, *, sync: bool) -> None:
        temporary = self._root / temporary_name(name, secrets.token_hex(6))
        commit.commit(temporary, self._root / name, data, sync=sync)

    def lock(self, name: str, *, shared: bool) -> PathLock:
        return PathLock(self.path(name), shared=shared)

    def remove_step(self, name: str) -> bool:
        path = self._root / name
        self.tidy(name)
        if not os.path.lexists(path):
            return True
        if os.path.isdir(path):
            return self._remove_directory(path)
        with self.lock(name, shared=False) as alone, writing(path):
            if alone:
                os.unlink(path)
            return alone

    def _remove_directory(self, path: Path) -> bool:
        removal = remove_step(path, sync=self._sync)
        if removal.busy or not path.is_dir():
            return not removal.busy
        left = [file.path for file in orphans(path, set()) if file.path.name not in removal.kept]
        if left or not os.listdir(path):
            what = counted(len(left), "file") if left else "the empty directory"
            raise WriteError(f"{what} could not be removed", file=(left or [path])[0])
        return True


@contextmanager
def reading(store: Store, name: str) -> Iterator[bool]:
    """Keep a checkpoint from removal while it is read. Yields whether it is still there."""
    with store.lock(name, shared=True) as free:
        yield free and store.exists(name)
