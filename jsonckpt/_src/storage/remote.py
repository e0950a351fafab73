"""Checkpoints on remote file systems, through fsspec (extra ``remote``).

Object stores have no rename: the manifest is written last, in one piece. It is the commit point, as
on a local disk. Files are read by ranges if the store allows that, else forward.
"""

from __future__ import annotations

import fnmatch
import urllib.parse
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ..errors import CheckpointNotFoundError, IncompleteCheckpointError, JsonckptError
from ..format import filenames
from ..format.model import MANIFEST_NAME
from . import path_arguments
from .local import ZstdStream
from .os_errors import describe, is_absent, reading


def filesystem(url: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

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
    except Exception as error:  # each file system has errors of its own
        raise JsonckptError(
            f"cannot open this URL: {describe(error)}", file=path_arguments.without_query(url)
        ) from error
    return fs, str(path)


def remote_location(
    url: str, storage_options: Mapping[str, Any] | None
) -> tuple[RemoteLocation, str | None]:
    """The location of a URL, and the name of the file if the checkpoint is a single file.

    What is there decides, not the name, as on a local disk.
    """
    fs, path = filesystem(url, storage_options)
    path, query = split_query(path)
    parent, _, last = path.rpartition("/")
    if last == MANIFEST_NAME:
        return RemoteLocation(fs, parent, query), None
    here, beside = RemoteLocation(fs, path, query), RemoteLocation(fs, parent, query)
    where = path_arguments.without_query(url)
    if filenames.is_single(last):
        with reading(where):
            kind = kind_of(fs, path + query)
        if kind is None:
            raise CheckpointNotFoundError("the file does not exist", file=where)
        return (here, None) if kind == "directory" else (beside, last)
    try:
        with reading(where):
            if kind_of(fs, here.full(MANIFEST_NAME)) is not None:
                return here, None
    except JsonckptError:
        # A signed URL allows only this file. Requests for others are forbidden.
        with reading(where):
            if kind_of(fs, path + query) != "file":
                raise
        return beside, last
    with reading(where):
        return (beside, last) if kind_of(fs, path + query) == "file" else (here, None)


def listing(
    url: str, pattern: str, storage_options: Mapping[str, Any] | None
) -> list[tuple[str, bool, float]]:
    """What matches a pattern in a remote directory: URL, whether a directory, time of change.

    Raises:
        JsonckptError: it cannot be listed, or the bucket does not exist.
    """
    fs, path = filesystem(url, storage_options)
    if protocols(fs) & {"http", "https"}:
        raise JsonckptError(
            "a web server does not list its files",
            file=path_arguments.without_query(url),
            hint="Give the URL of the checkpoint itself to jsonckpt.load.",
        )
    path = path.rstrip("/")
    with reading(url):
        fs.invalidate_cache()
        try:
            # glob alone is not enough: for a directory that cannot be listed it returns nothing.
            found = {str(facts["name"]).rstrip("/"): facts for facts in fs.ls(path, detail=True)}
        except FileNotFoundError as error:
            if not is_absent(error):
                raise
            _check_container(fs, path, url)
            found = {}
        if "/" in pattern:
            found = fs.glob(f"{path}/{pattern}", detail=True) if found else {}
        fs.invalidate_cache()  # else later changes would not be seen
    return [
        (url.rstrip("/") + name[len(path) :], facts.get("type") == "directory", _changed(facts))
        for name, facts in found.items()
        if "/" in pattern or fnmatch.fnmatchcase(name.rpartition("/")[2], pattern)
    ]


def _check_container(fs: Any, path: str, url: str) -> None:
    """Raise if a bucket does not exist, rather than return nothing: its name is mistyped."""
    top = path.partition("/")[0]
    if top and not path.startswith("/") and not fs.exists(top):
        raise CheckpointNotFoundError(
            f"the bucket {top!r} does not exist",
            file=url,
            hint="Check the name and storage_options.",
        )


def _changed(facts: Mapping[str, Any]) -> float:
    for key in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        value = facts.get(key)
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, datetime):
            return value.timestamp()
    return 0.0


def kind_of(fs: Any, path: str) -> str | None:
    """``"file"``, ``"directory"``, or ``None`` for nothing; in :func:`reading` or ``writing``."""
    try:
        return str(fs.info(path)["type"])
    except FileNotFoundError as error:
        if is_absent(error):
            return None
        raise


def protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def split_query(path: str) -> tuple[str, str]:
    """The path in a file system, and the query of a web address. Only the path tells what it is."""
    if not path.startswith(("http://", "https://")):
        return path.rstrip("/"), ""
    bare, mark, query = path.partition("#")[0].partition("?")
    return bare.rstrip("/"), mark + query


class RemoteFile:
    """A remote file read by ranges."""

    def __init__(self, fs: Any, path: str, where: str) -> None:
        self._fs = fs
        self._path = path
        self._where = where
        with reading(where):
            size = fs.size(path)
        if size is None:
            raise JsonckptError(
                "the server does not say how long the file is",
                file=where,
                hint="Download the checkpoint and load the copy.",
            )
        self.size = int(size)

    def read_range(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on.

        Raises:
            IncompleteCheckpointError: the file ends before that.
        """
        with reading(self._where):
            data = self._fs.cat_file(self._path, start=offset, end=offset + len(buffer))
        if len(data) > len(buffer):
            raise JsonckptError(
                f"the server sent {len(data)} bytes instead of {len(buffer)}: it serves "
                "no ranges of a file",
                file=self._where,
                hint="Download the checkpoint and load the copy.",
            )
        if len(data) < len(buffer):
            raise IncompleteCheckpointError(
                f"the file ends after {offset + len(data)} bytes", file=self._where
            )
        buffer[:] = data

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""


class RemoteStream:
    """A remote file read forward. It is decompressed if its name ends in ``.zst``."""

    def __init__(
        self, fs: Any, path: str, where: str, *, zstd_window: int | None, ranged: bool
    ) -> None:
        self._where = where
        # For fsspec's web files a size of 0 means: one answer, read as it comes.
        how = {} if ranged else {"block_size": 0}
        with reading(where):
            self.size = fs.size(path)
            self._file = fs.open(path, "rb", **how)
        self._source: Any = self._file
        if split_query(path)[0].endswith(".zst"):
            self._source = ZstdStream(self._file, zstd_window=zstd_window)

    def readinto(self, buffer: memoryview, /) -> int:
        """The next bytes of the text."""
        with reading(self._where):
            return self._source.readinto(buffer) or 0

    def __enter__(self) -> RemoteStream:
        return self

    def __exit__(self, *_: object) -> None:
        with reading(self._where):
            self._file.close()


class RemoteLocation:
    """A directory of a remote file system.

    Args:
        query: what follows each file's path in a web address.
    """

    def __init__(self, fs: Any, path: str, query: str = "") -> None:
        self.fs = fs
        self.path = path
        self._query = query
        self._web = bool(protocols(fs) & {"http", "https"})
        self._ranges: bool | None = None if self._web else True

    def full(self, name: str) -> str:
        """A file's path in the file system."""
        return self._joined(name) + self._query

    def _joined(self, name: str) -> str:
        """The path of a file of the directory, or of ``../NAME/FILE``. Stores know no ``..``."""
        if not name.startswith("../"):
            return f"{self.path}/{name}"
        above, slash, _ = self.path.rpartition("/")
        name = name.removeprefix("../")
        return above + slash + (urllib.parse.quote(name) if self._web else name)

    def where(self, name: str) -> str:
        """The name of a file in messages."""
        return str(self.fs.unstrip_protocol(self._joined(name)))

    def manifest(self, limit: int | None) -> bytes:
        """The bytes of ``manifest.json``."""
        end = None if limit is None else limit + 1
        with reading(self.where(MANIFEST_NAME)):
            try:
                data: bytes = self.fs.cat_file(self.full(MANIFEST_NAME), start=0, end=end)
            except FileNotFoundError as error:
                if not is_absent(error):
                    raise
                raise CheckpointNotFoundError(
                    f"there is no {MANIFEST_NAME}", file=self.where(MANIFEST_NAME)
                ) from error
        return data

    def version_tag(self, name: str) -> object:
        """Unknown without another request to the server, so readers do not retry."""

    def ranged(self, name: str) -> bool:
        """Whether parts of a file can be read. Not every web server allows it, so this asks."""
        if self._ranges is None:
            with reading(self.where(name)):
                self._ranges = _answers_ranges(self.fs, self.full(name))
        return self._ranges

    def file(self, name: str) -> RemoteFile:
        """A file for ranged reads."""
        return RemoteFile(self.fs, self.full(name), self.where(name))

    def stream(self, name: str, *, zstd_window: int | None) -> RemoteStream:
        """A file for forward reading, decompressed."""
        return RemoteStream(
            self.fs,
            self.full(name),
            self.where(name),
            zstd_window=zstd_window,
            ranged=self.ranged(name),
        )


def _answers_ranges(fs: Any, path: str) -> bool:
    """Whether a web server sends only the last byte of a file. Some claim to and do not."""
    facts = fs.info(path)
    size = facts.get("size")
    if size is None or size < 2 or facts.get("partial") is False:
        return False
    try:
        with fs.open(path, "rb", cache_type="none") as file:
            file.seek(size - 1)
            return len(file.read(1)) == 1
    except ValueError:  # it sent more than was asked for
        return False
