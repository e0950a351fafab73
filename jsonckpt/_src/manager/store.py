"""The directory of a run: local, or a URL."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from ..errors import ArgumentError, JsonckptError
from ..format.filenames import temporary_name
from ..format.model import MANIFEST_NAME
from ..standalone.export import FILES, changes
from ..storage import commit
from ..storage.leftovers import orphans, single_temporaries
from ..storage.os_errors import read_error, writing
from ..storage.path_arguments import is_url, path_text
from .locks import PathLock


class Store(Protocol):
    """What a manager needs of the directory of a run."""

    def make(self, *, sync: bool) -> None:
        """Make the directory."""

    def names(self) -> list[str]:
        """What is directly in it."""

    def path(self, name: str) -> str:
        """The path or URL of what has a name in it."""

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file, at most ``limit`` + 1 bytes of it; ``None`` if it is not there."""

    def write(self, name: str, data: bytes, *, sync: bool) -> None:
        """Replace a small file: a reader sees the old or the new one."""

    def remove_step(self, name: str) -> None:
        """Remove a checkpoint, its manifest first. Files that are not of saves stay."""

    def exists(self, name: str) -> bool:
        """Whether anything has this name."""

    def lock(self, name: str, *, shared: bool) -> Any:
        """A context manager that says whether nobody else uses it; ``""`` is the directory."""


def store_at(directory: object, storage_options: Mapping[str, Any] | None) -> Store:
    """The directory of a run. It need not exist.

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
    return LocalStore(Path(text).absolute())


class LocalStore:
    """A directory of a local file system."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        try:
            return sorted(os.listdir(self._root))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise read_error(error, str(self._root), opening=True) from error

    def path(self, name: str) -> str:
        return str(self._root / name) if name else str(self._root)

    def exists(self, name: str) -> bool:
        return os.path.lexists(self._root / name)

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

    def make(self, *, sync: bool) -> None:
        commit.make_directory(self._root, [], sync=sync)

    def write(self, name: str, data: bytes, *, sync: bool) -> None:
        temporary = self._root / temporary_name(name, secrets.token_hex(6))
        commit.commit(temporary, self._root / name, data, sync=sync)

    def lock(self, name: str, *, shared: bool) -> PathLock:
        return PathLock(self.path(name), shared=shared)

    def remove_step(self, name: str) -> None:
        path = self._root / name
        for left in single_temporaries(path):
            commit.unlink(left.path)
        with writing(path):
            try:
                is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
            except FileNotFoundError:
                return
            if not is_directory:
                os.unlink(path)
                return
            _remove_directory(path)


def _remove_directory(path: Path) -> None:
    """Remove what saves have written in a directory, and the directory if nothing else is in it."""
    with suppress(FileNotFoundError):
        os.unlink(path / MANIFEST_NAME)
        # After a power failure it must not come back without its shards.
        commit.fsync_directory(path)
    for file in orphans(path, set()):
        os.unlink(file.path)
    with suppress(JsonckptError):  # a changed copy, which stays
        if not changes(path):
            for name in FILES:
                os.unlink(path / name)
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


@contextmanager
def reading(store: Store, name: str) -> Iterator[bool]:
    """Keep a checkpoint from removal while it is read. Yields whether it is still there."""
    with store.lock(name, shared=True) as free:
        yield free and store.exists(name)
