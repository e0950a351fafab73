"""Lists, reads, writes and removes files of a remote directory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import JsonckptError, LimitError
from ..format.json_text import is_text
from ..format.limits import Limits
from ..format.model import MANIFEST_NAME
from ..remote.ranges import size_of
from ..save.remote_target import RENAMES, make_directory
from ..storage.os_errors import is_absent, reading, writing
from ..storage.path_arguments import without_query
from ..storage.remote import changed, filesystem, protocols, split_query


@dataclass(frozen=True)
class RemoteEntry:
    """What lies directly in a remote directory.

    Attributes:
        changed: the time of the last change, in seconds; 0 if the store does not say.
    """

    name: str
    is_directory: bool
    changed: float
    nbytes: int


class RemoteFiles:
    """A directory behind a URL.

    Raises:
        JsonckptError: the URL cannot be opened.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None) -> None:
        self.url = url if url.endswith("://") else url.rstrip("/")
        self.requests, path = filesystem(url, storage_options)
        self.path = split_query(path)[0]
        self._protocols = protocols(self.requests.fs)

    @classmethod
    def beside(cls, url: str, storage_options: Mapping[str, Any] | None) -> tuple[RemoteFiles, str]:
        """The directory that holds what a URL names, and the name."""
        before, own, after = _own_part(url)
        scheme, mark, rest = own.rstrip("/").rpartition("://")
        parent, _, name = rest.rpartition("/")
        return cls(f"{before}{scheme}{mark}{parent}{after}", storage_options), name

    @property
    def lists(self) -> bool:
        """Whether it lists its files. Web servers do not."""
        return not self._protocols & {"http", "https"}

    def where(self, name: str) -> str:
        """The URL of a file, for messages."""
        return without_query(self.child(name))

    def child(self, name: str) -> str:
        """The URL of a file."""
        before, own, after = _own_part(self.url)
        return f"{before}{own}{'' if own.endswith('/') else '/'}{name}{after}"

    def full(self, name: str) -> str:
        """A file's path in the file system."""
        return f"{self.path}/{name}" if self.path else name

    def entries(self) -> list[RemoteEntry]:
        """What lies directly in it, by name; nothing if it does not exist.

        Raises:
            JsonckptError: it cannot be listed.
        """
        with reading(without_query(self.url)):
            self.requests.fs.invalidate_cache()
            try:
                found = self.requests.call("ls", self.path, detail=True)
            except (FileNotFoundError, NotADirectoryError) as error:
                if isinstance(error, FileNotFoundError) and not is_absent(error):
                    raise
                return []
        listed = []
        for facts in found:
            path = facts.get("name") if isinstance(facts, Mapping) else None
            if not isinstance(path, str) or path.strip("/") == self.path.strip("/"):
                continue
            name = path.rstrip("/").rpartition("/")[2]
            if name in ("", ".", "..") or not is_text(name):  # no store has such names
                continue
            is_directory = facts.get("type") == "directory"
            nbytes = size_of(facts.get("size")) or 0
            listed.append(RemoteEntry(name, is_directory, changed(facts), nbytes))
        return sorted(listed, key=lambda entry: entry.name)

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file; ``None`` if it does not exist.

        Raises:
            LimitError: it has more than ``limit`` bytes.
            JsonckptError: it cannot be read.
        """
        with reading(self.where(name)):
            self.requests.fs.invalidate_cache()
            try:
                path = self.full(name)
                data: bytes = self.requests.call("cat_file", path, start=0, end=limit + 1)
            except (FileNotFoundError, NotADirectoryError) as error:
                if isinstance(error, FileNotFoundError) and not is_absent(error):
                    raise
                return None
        if len(data) > limit:
            raise LimitError(f"the file has more than {limit} bytes", file=self.where(name))
        return bytes(data)

    def make(self) -> None:
        """Make the directory. Object stores have none.

        Raises:
            WriteError: it cannot be made.
        """
        with writing(without_query(self.url), remote=True):
            make_directory(self.requests, self.path)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file in one step: a reader sees the old one or the new one.

        Raises:
            WriteError: it may or may not have been replaced.
        """
        self._replace(name, lambda path: self._call("pipe_file", path, data, nbytes=len(data)))

    def put(self, local: str, name: str, nbytes: int) -> None:
        """Upload a local file. Raises :class:`WriteError`."""
        self._replace(name, lambda path: self._call("put_file", local, path, nbytes=nbytes))

    def remove(self, names: Iterable[str]) -> None:
        """Remove files. One that does not exist is no error.

        Raises:
            WriteError: the store refuses.
        """
        for name in names:
            with writing(self.where(name), remote=True):
                try:
                    self._call("rm_file", self.full(name))
                except FileNotFoundError as error:
                    if not is_absent(error):
                        raise
        self.requests.fs.invalidate_cache()

    def remove_if_empty(self, name: str) -> None:
        """Remove a subdirectory if nothing is in it. Object stores have none."""
        with suppress(Exception):  # an empty directory does no harm
            self._call("rmdir", self.full(name))

    def _replace(self, name: str, send: Any) -> None:
        path = self.full(name)
        with writing(self.where(name), remote=True):
            if not self._protocols & RENAMES:
                send(path)
                return
            temporary = self.full(f".{name}.tmp")
            try:
                send(temporary)
                self.requests.fs.mv(temporary, path)
            except BaseException:
                with suppress(Exception):
                    self._call("rm_file", temporary)
                raise

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        return self.requests.call(method, *args, **options)


def _own_part(url: str) -> tuple[str, str, str]:
    """The part of a chained URL (``zip://c::file:///x.zip``) that names the file, and the rest.

    >>> _own_part("simplecache::s3://b/c")
    ('simplecache::', 's3://b/c', '')
    >>> _own_part("zip://c::file:///x.zip")
    ('', 'zip://c', '::file:///x.zip')
    """
    first, mark, rest = url.partition("::")
    if not mark:
        return "", url, ""
    if "://" in first:
        return "", first, mark + rest
    before, own, after = _own_part(rest)
    return first + mark + before, own, after


def not_named_beside(
    inside: RemoteFiles,
    names: Iterable[str],
    storage_options: Mapping[str, Any] | None,
    limits: Limits,
) -> list[str]:
    """Those files of a directory that no manifest in a directory beside it names.

    A name that occurs anywhere in such a manifest counts as used.

    Raises:
        JsonckptError: a manifest cannot be read.
    """
    left = list(names)
    if not left:
        return []
    for text in manifests_beside(inside, storage_options, limits):
        left = [name for name in left if name.encode() not in text]
    return left


def manifests_beside(
    inside: RemoteFiles, storage_options: Mapping[str, Any] | None, limits: Limits
) -> Iterator[bytes]:
    """The manifests in the directories beside a directory.

    Raises:
        JsonckptError: one cannot be read.
    """
    around, own = RemoteFiles.beside(inside.url, storage_options)
    for entry in around.entries():
        if entry.is_directory and entry.name != own:
            beside = RemoteFiles(around.child(entry.name), storage_options)
            text = beside.read(MANIFEST_NAME, limits.manifest_bytes or (1 << 62))
            if text is not None:
                yield text


def refuse_web(files: RemoteFiles, purpose: str) -> None:
    """Refuse a web server where files are listed or written.

    Raises:
        JsonckptError: it is one.
    """
    if not files.lists:
        raise JsonckptError(
            f"a web server does not list its files, which {purpose} needs",
            file=without_query(files.url),
            hint="Download the checkpoint first.",
        )
