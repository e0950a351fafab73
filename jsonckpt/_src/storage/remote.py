"""Checkpoints on remote file systems, through fsspec (extra ``remote``).

Object stores have no rename: the manifest is written last, in one piece. It is the commit point, as
on a local disk. Files are read by ranges if the store allows that, else forward.
"""

from __future__ import annotations

import fnmatch
import urllib.parse
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import Any

from ..errors import CheckpointNotFoundError, IncompleteCheckpointError, JsonckptError
from ..format import filenames
from ..format.model import MANIFEST_NAME
from ..remote.faults import status_of
from ..remote.forward import SMALL, Forward
from ..remote.policy import split_options
from ..remote.ranges import NoRangesError, RemoteFacts, ReplacedError, facts_of, fetcher
from ..remote.read_ahead import ReadAhead
from ..remote.requests import Requests, result_of
from . import path_arguments
from .local import ZstdStream
from .os_errors import describe, is_absent, reading

_EXTRA = "pip install 'jsonckpt[remote]'."
_DOWNLOAD = "Download the checkpoint and load the copy."
_REPLACED = "The checkpoint was overwritten since it was opened; open it again."


def filesystem(url: str, storage_options: Mapping[str, Any] | None) -> tuple[Requests, str]:
    """The requests to the fsspec file system of a URL, and the path in it.

    Raises:
        ArgumentError: an option is not valid.
        JsonckptError: fsspec, or what it needs for this protocol, is not installed.
    """
    policy, options = split_options(storage_options)
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise JsonckptError("paths with :// need fsspec", file=url, hint=_EXTRA) from error
    try:
        fs, path = url_to_fs(url, **options)
    except Exception as error:  # each file system has errors of its own
        raise JsonckptError(
            f"cannot open this URL: {describe(error)}",
            file=path_arguments.without_query(url),
            hint=_EXTRA if isinstance(error, ImportError) else None,
        ) from error
    return Requests(fs, policy), str(path)


def remote_location(
    url: str, storage_options: Mapping[str, Any] | None
) -> tuple[RemoteLocation, str | None]:
    """The location of a URL, and the name of the file if the checkpoint is a single file.

    What is there decides, not the name, as on a local disk.
    """
    requests, path = filesystem(url, storage_options)
    path, query = split_query(path)
    parent, _, last = path.rpartition("/")
    if last == MANIFEST_NAME:
        return RemoteLocation(requests, parent, query), None
    here, beside = RemoteLocation(requests, path, query), RemoteLocation(requests, parent, query)
    where = path_arguments.without_query(url)
    if filenames.is_single(last):
        with reading(where):
            kind = kind_of(requests, path + query)
        if kind is None:
            raise CheckpointNotFoundError("the file does not exist", file=where)
        return (here, None) if kind == "directory" else (beside, last)
    try:
        with reading(where):
            if kind_of(requests, here.full(MANIFEST_NAME)) is not None:
                return here, None
    except JsonckptError:
        if requests.gave_up:
            raise
        # A signed URL allows only this file. Requests for others are forbidden.
        with reading(where):
            if kind_of(requests, path + query) != "file":
                raise
        return beside, last
    with reading(where):
        return (beside, last) if kind_of(requests, path + query) == "file" else (here, None)


def listing(
    url: str, pattern: str, storage_options: Mapping[str, Any] | None
) -> list[tuple[str, bool, float]]:
    """What matches a pattern in a remote directory: URL, whether a directory, time of change.

    Raises:
        JsonckptError: it cannot be listed, or the bucket does not exist.
    """
    requests, path = filesystem(url, storage_options)
    fs = requests.fs
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
            entries = requests.call("ls", path, detail=True)
            found = {str(facts["name"]).rstrip("/"): facts for facts in entries}
        except FileNotFoundError as error:
            if not is_absent(error):
                raise
            _check_container(requests, path, url)
            found = {}
        if "/" in pattern:
            whole = f"{path}/{pattern}"
            found = requests.call("glob", whole, detail=True) if found else {}
        fs.invalidate_cache()  # else later changes would not be seen
    return [
        (url.rstrip("/") + name[len(path) :], facts.get("type") == "directory", changed(facts))
        for name, facts in found.items()
        if "/" in pattern or fnmatch.fnmatchcase(name.rpartition("/")[2], pattern)
    ]


def _check_container(requests: Requests, path: str, url: str) -> None:
    """Raise if a bucket does not exist, rather than return nothing: its name is mistyped."""
    top = path.partition("/")[0]
    if top and not path.startswith("/") and not requests.call("exists", top):
        raise CheckpointNotFoundError(
            f"the bucket {top!r} does not exist",
            file=url,
            hint="Check the name and storage_options.",
        )


def changed(facts: Mapping[str, Any]) -> float:
    """The time of the last change, in seconds; 0 if the store does not say."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        value = facts.get(key)
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, datetime):
            return value.timestamp()
    return 0.0


def kind_of(requests: Requests, path: str) -> str | None:
    """``"file"``, ``"directory"``, or ``None`` for nothing; in :func:`reading` or ``writing``."""
    try:
        return str(requests.call("info", path).get("type"))
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
    """A remote file read by ranges, from several threads.

    Args:
        facts: what the store says of it.
    """

    def __init__(self, requests: Requests, path: str, where: str, facts: RemoteFacts) -> None:
        self._requests = requests
        self._path = path
        self._where = where
        self._fetch = fetcher(requests, path, facts)
        self._ahead: ReadAhead | None = None
        self._near: tuple[int, memoryview] = 0, memoryview(b"")
        if facts.size is None:
            raise JsonckptError(
                "the server does not say how long the file is", file=where, hint=_DOWNLOAD
            )
        self.size = facts.size

    def expect(self, ranges: Iterable[tuple[int, int]], *, slow_start: bool = False) -> None:
        """Fetch these ranges ahead, several at once. Each will be read once, about in order."""
        if self._fetch is not None:
            self.close()
            self._ahead = ReadAhead(self._requests, self._fetch, ranges, slow_start=slow_start)

    def read_range(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on.

        Raises:
            IncompleteCheckpointError: the file ends before that, or another one replaced it.
        """
        done = 0
        for part in self.parts(offset, offset + len(buffer)):
            buffer[done : done + len(part)] = part
            done += len(part)

    def parts(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes of a range, part by part. Raises as :meth:`read_range`."""
        if stop > self.size:
            raise IncompleteCheckpointError(
                f"the file ends after {self.size} bytes", file=self._where
            )
        with self._errors():
            expected = None if self._ahead is None else self._ahead.parts(start, stop)
            if expected is not None:
                yield from expected
                return
            first, near = self._near
            if not (first <= start and stop <= first + len(near)):
                # Small reads are often followed by others close by.
                ends = max(stop, min(start + SMALL, self.size))
                first, near = start, memoryview(self._request(start, ends))
                self._near = start, near if len(near) <= SMALL else near[:0]
        yield near[start - first : stop - first]

    def close(self) -> None:
        """End the requests that are under way."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _request(self, start: int, stop: int) -> Any:
        """The bytes of a range, in a request of its own."""
        count, fetch = stop - start, self._fetch
        if not count:
            return b""
        if fetch is not None:
            data = result_of(self._requests.start(lambda: fetch(start, stop), count))
        else:
            data = self._requests.call("cat_file", self._path, start=start, end=stop, nbytes=count)
        if len(data) > count:
            raise NoRangesError(f"the server sent {len(data)} bytes instead of {count}")
        if len(data) < count:
            raise IncompleteCheckpointError(
                f"the file ends after {start + len(data)} bytes", file=self._where
            )
        return data

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with reading(self._where):
            try:
                yield
            except NoRangesError as error:
                raise JsonckptError(
                    f"{error}: it serves no ranges of a file", file=self._where, hint=_DOWNLOAD
                ) from error
            except Exception as error:
                if not (isinstance(error, ReplacedError) or status_of(error) == 412):
                    raise
                raise IncompleteCheckpointError(
                    "another file has replaced this one", file=self._where, hint=_REPLACED
                ) from error

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RemoteStream:
    """A remote file read forward. It is decompressed if its name or else its content says so."""

    def __init__(self, source: Any, where: str, size: int | None) -> None:
        self._opened = self._source = source
        self._where = where
        self.compressed = False
        self.size = size

    def decompress_if(self, named: bool | None, zstd_window: int | None) -> None:
        """Decompress what is read, if its name or else its first bytes say so."""
        if named is None:
            with reading(self._where):
                start = self._opened.read(len(filenames.ZSTD_MAGIC))
            self._source = _After(start, self._opened)
            named = start == filenames.ZSTD_MAGIC
        self.compressed = named
        if named:
            self._source = ZstdStream(self._source, zstd_window=zstd_window)

    def readinto(self, buffer: memoryview, /) -> int:
        """The next bytes of the text."""
        with reading(self._where):
            return self._source.readinto(buffer) or 0

    def __enter__(self) -> RemoteStream:
        return self

    def __exit__(self, *_: object) -> None:
        with reading(self._where):
            self._opened.close()


class _After:
    """A file whose first bytes have been read already."""

    def __init__(self, start: bytes, file: Any) -> None:
        self._start = start
        self._file = file

    def read(self, count: int) -> bytes:
        """Some of the next bytes."""
        start, self._start = self._start, b""
        return start or self._file.read(count) or b""

    def readinto(self, buffer: memoryview) -> int:
        """The next bytes."""
        if not self._start:
            return self._file.readinto(buffer) or 0
        count = min(len(buffer), len(self._start))
        buffer[:count] = self._start[:count]
        self._start = self._start[count:]
        return count


class RemoteLocation:
    """A directory of a remote file system.

    Args:
        query: what follows each file's path in a web address.
    """

    def __init__(self, requests: Requests, path: str, query: str = "") -> None:
        self.requests = requests
        self.fs = requests.fs
        self.path = path
        self._query = query
        self._web = bool(protocols(self.fs) & {"http", "https"})
        self._ranges: bool | None = None if self._web else True
        self._compressed: dict[str, bool] = {}
        self._facts: dict[str, RemoteFacts] = {}
        self._manifest_read: tuple[int | None, bytes] = None, b""  # the limit, and the digest

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
        """The bytes of ``manifest.json``, up to one more than ``limit``."""
        text = self._manifest(limit)
        self._manifest_read = limit, sha256(text).digest()
        return text

    def _manifest(self, limit: int | None) -> bytes:
        end = None if limit is None else limit + 1
        path = self.full(MANIFEST_NAME)
        with reading(self.where(MANIFEST_NAME)):
            try:
                data: bytes = self.requests.call("cat_file", path, start=0, end=end)
            except FileNotFoundError as error:
                if not is_absent(error):
                    raise
                raise CheckpointNotFoundError(
                    f"there is no {MANIFEST_NAME}", file=self.where(MANIFEST_NAME)
                ) from error
        return data

    def version_tag(self, name: str) -> object:
        """Unknown without another request. :meth:`was_replaced` makes it, after an error."""
        del name
        return None

    def was_replaced(self, name: str, tag: object) -> bool:
        """Whether another file has replaced the one that was read. ``False`` if nobody knows."""
        del tag
        known = self._facts.get(name)
        if self.requests.gave_up:
            return False
        try:
            if name == MANIFEST_NAME:
                limit, digest = self._manifest_read
                return bool(digest) and sha256(self._manifest(limit)).digest() != digest
            found = self._ask(name)
        except JsonckptError:
            return False
        return known is not None and bool(known.tag) and found.tag != known.tag

    def facts(self, name: str) -> RemoteFacts:
        """What the store says of a file. It is asked once, until the manifest is read again."""
        if name not in self._facts:
            self._facts[name] = self._ask(name)
        return self._facts[name]

    def expect_files(self, names: Iterable[str]) -> None:
        """Ask for the facts of several files at once. Errors come when a file is opened."""
        missing = [name for name in dict.fromkeys(names) if name not in self._facts]
        info = getattr(self.fs, "_info", None)
        if len(missing) < 2 or not self.requests.is_async or info is None:
            return
        self.fs.invalidate_cache()
        waiting: deque[tuple[str, Future[Any]]] = deque()
        try:
            for name in missing:
                future = self.requests.start(partial(info, self.full(name)))
                waiting.append((name, future))
                if len(waiting) >= self.requests.policy.connections:
                    self._take_facts(*waiting.popleft())
            while waiting:
                self._take_facts(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()

    def _take_facts(self, name: str, future: Future[Any]) -> None:
        with suppress(Exception):  # raised again where the file is opened
            self._facts[name] = facts_of(result_of(future))

    def _ask(self, name: str) -> RemoteFacts:
        with reading(self.where(name)):
            self.fs.invalidate_cache()  # of listings
            return facts_of(self.requests.call("info", self.full(name)))

    def ranged(self, name: str) -> bool:
        """Whether parts of a file can be read. Not every web server allows it, so this asks."""
        if self._ranges is None:
            with reading(self.where(name)):
                self._ranges = self._answers_ranges(name)
        return self._ranges

    def compressed(self, name: str) -> bool:
        """Whether a file is compressed as a whole. One request, if its name does not say it."""
        named = filenames.zstd_by_name(name)
        if named is not None:
            return named
        if name not in self._compressed:
            with self.stream(name, zstd_window=None) as stream:
                self._compressed[name] = stream.compressed
        return self._compressed[name]

    def _answers_ranges(self, name: str) -> bool:
        """Whether a web server sends only the last byte of a file. Some claim to and do not."""
        facts = self.facts(name)
        if facts.size is None or facts.size < 2 or not facts.partial:
            return False
        fetch = fetcher(self.requests, self.full(name), facts)
        if fetch is None:
            return False
        stop = facts.size
        try:
            return len(result_of(self.requests.start(lambda: fetch(stop - 1, stop), 1))) == 1
        except NoRangesError:
            return False

    def file(self, name: str) -> RemoteFile:
        """A file for ranged reads."""
        return RemoteFile(self.requests, self.full(name), self.where(name), self.facts(name))

    def stream(self, name: str, *, zstd_window: int | None) -> RemoteStream:
        """A file for forward reading, decompressed."""
        stream = self.raw(name)
        stream.decompress_if(filenames.zstd_by_name(name), zstd_window)
        return stream

    def raw(self, name: str) -> RemoteStream:
        """A file for forward reading, as it is."""
        path, where = self.full(name), self.where(name)
        source: Any
        size: int | None
        if self.ranged(name):
            file = self.file(name)
            source, size = Forward(file, self.requests.policy.request_bytes), file.size
        else:
            with reading(where):
                size = self.facts(name).size
                # For fsspec's web files a size of 0 means: one answer, read as it comes.
                source = self.requests.blocking(lambda: self.fs.open(path, "rb", block_size=0))
        return RemoteStream(source, where, size)
