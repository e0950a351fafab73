"""Checkpoints on remote file systems, through fsspec (extra ``remote``).

Object stores have no rename: the manifest is written last, in one piece, and is the commit point as
on a local disk. Reading is by ranges where the store can, forward elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jsonckpt import names
from jsonckpt.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    IncompleteCheckpointError,
    JsonckptError,
    WriteError,
)
from jsonckpt.facts import MANIFEST_NAME
from jsonckpt.reading import ZstdStream

__all__ = ["RemotePlace", "remote_place"]


def filesystem(url: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it.

    Raises:
        JsonckptError: fsspec, or what it needs for this protocol, is not installed.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise JsonckptError(
            "paths with :// need fsspec", file=url, hint="pip install 'jsonckpt[remote]'."
        ) from error
    try:
        fs, path = url_to_fs(url, **dict(storage_options or {}))
    except (ImportError, ValueError) as error:
        raise JsonckptError(f"cannot open this URL: {error}", file=url) from error
    return fs, str(path).rstrip("/")


def remote_place(
    url: str, storage_options: Mapping[str, Any] | None
) -> tuple[RemotePlace, str | None]:
    """The place of a URL, and the file in it unless the checkpoint is a directory."""
    fs, path = filesystem(url, storage_options)
    parent, _, last = path.rpartition("/")
    if last == MANIFEST_NAME:
        return RemotePlace(fs, parent), None
    if last.endswith((".json", ".json.zst")):
        with mapped(url):
            if not fs.exists(path):
                raise CheckpointNotFoundError("there is no such file", file=url)
        return RemotePlace(fs, parent), last
    return RemotePlace(fs, path), None


@contextmanager
def mapped(where: str) -> Iterator[None]:
    """Map what file systems raise to our own errors, once, at the border."""
    try:
        yield
    except JsonckptError:
        raise
    except FileNotFoundError as error:
        raise IncompleteCheckpointError("the file is missing", file=where) from error
    except OSError as error:
        raise JsonckptError(
            f"cannot read: {error}",
            file=where,
            hint="Check the connection and what storage_options say, or copy the checkpoint here.",
        ) from error


class RemoteFile:
    """A remote file read by ranges."""

    def __init__(self, fs: Any, path: str) -> None:
        self._fs = fs
        self.path = path
        with mapped(path):
            self.size = int(fs.size(path))

    def read_range(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on.

        Raises:
            IncompleteCheckpointError: the file ends before that.
        """
        with mapped(self.path):
            data = self._fs.cat_file(self.path, start=offset, end=offset + len(buffer))
        if len(data) != len(buffer):
            raise IncompleteCheckpointError(
                f"the file ends after {offset + len(data)} bytes", file=self.path
            )
        buffer[:] = data

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held open."""


class RemoteStream:
    """A remote file read forward, decompressed where its name ends in ``.zst``."""

    def __init__(self, fs: Any, path: str, *, zstd_window: int | None) -> None:
        self.path = path
        with mapped(path):
            self.size = int(fs.size(path))
            self._file = fs.open(path, "rb")
        self._source: Any = self._file
        if path.endswith(".zst"):
            self._source = ZstdStream(self._file, zstd_window=zstd_window)

    def readinto(self, buffer: memoryview, /) -> int:
        """The next bytes of the text."""
        with mapped(self.path):
            return self._source.readinto(buffer) or 0

    def __enter__(self) -> RemoteStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class RemotePlace:
    """A directory of a remote file system."""

    def __init__(self, fs: Any, path: str) -> None:
        self.fs = fs
        self.path = path

    def where(self, name: str) -> str:
        """How messages call a file."""
        return str(self.fs.unstrip_protocol(f"{self.path}/{name}"))

    def manifest(self, limit: int | None) -> bytes:
        """The bytes of ``manifest.json``."""
        path = f"{self.path}/{MANIFEST_NAME}"
        with mapped(self.where(MANIFEST_NAME)):
            if not self.fs.exists(path):
                raise CheckpointNotFoundError(
                    f"there is no {MANIFEST_NAME}", file=self.where(MANIFEST_NAME)
                )
            end = None if limit is None else limit + 1
            data: bytes = self.fs.cat_file(path, start=0, end=end)
        return data

    def stamp(self, name: str) -> object:
        """Not known without asking the other side anew: readers do not try again."""

    def file(self, name: str) -> RemoteFile:
        """A file for ranged reads."""
        return RemoteFile(self.fs, f"{self.path}/{name}")

    def stream(self, name: str, *, zstd_window: int | None) -> RemoteStream:
        """A file for forward reading, decompressed."""
        return RemoteStream(self.fs, f"{self.path}/{name}", zstd_window=zstd_window)


# --- writing ----------------------------------------------------------------------------------


@contextmanager
def writing(where: str) -> Iterator[None]:
    """Map what file systems raise on writing to :class:`WriteError`."""
    try:
        yield
    except JsonckptError:
        raise
    except OSError as error:
        raise WriteError(f"cannot write: {error}", errno=error.errno, file=where) from error


class RemoteTarget:
    """Where a save goes on a remote file system: streams for files, then the manifest."""

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None) -> None:
        self._fs, self._path = filesystem(url, storage_options)
        self._url = url
        self._begun: list[str] = []

    def check(self, *, single: bool, overwrite: bool) -> None:
        """Refuse to overwrite what must not be overwritten.

        Raises:
            CheckpointExistsError: with the way out.
        """
        path = self._path if single else f"{self._path}/{MANIFEST_NAME}"
        with writing(self._url):
            if not overwrite and self._fs.exists(path):
                raise CheckpointExistsError(
                    "there is a checkpoint",
                    file=self._url,
                    hint="Pass overwrite=True to replace it.",
                )

    @contextmanager
    def open(self, name: str | None) -> Iterator[Any]:
        """A stream for a new file; ``None`` is the single file itself."""
        path = self._path if name is None else f"{self._path}/{name}"
        self._begun.append(path)
        with writing(path):
            if name is not None or "/" in path:
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            # Object stores cannot rename, but an upload appears as a whole, when it is closed.
            with self._fs.open(path, "wb") as stream:
                yield stream

    def place(self) -> RemotePlace:
        """The directory, for reading what is there."""
        return RemotePlace(self._fs, self._path)

    def commit(self, text: bytes) -> None:
        """Write the manifest, in one piece."""
        path = f"{self._path}/{MANIFEST_NAME}"
        with writing(path):
            self._fs.pipe_file(path, text)

    def abandon(self) -> None:
        """Remove the files of a save that failed."""
        for path in self._begun:
            try:
                self._fs.rm_file(path)
            except OSError:
                continue  # an orphan harms nobody

    def remove(self, files: list[str]) -> None:
        """Remove replaced shards, after the commit."""
        for name in files:
            try:
                self._fs.rm_file(f"{self._path}/{names.check_shard_name(name)}")
            except OSError:
                continue
