"""Saves to remote file systems: files that appear as a whole, and a commit that may be in doubt.

With ``remote``, the only room that knows fsspec.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import CheckpointExistsError, JsonckptError, WriteError
from ..format import filenames
from ..format.model import MANIFEST_NAME
from . import path_arguments
from .remote import RemoteLocation, filesystem, is_absent, kind_of, protocols, said, split_query

#: Protocols of stores without directories, whose files appear as a whole when they are closed.
_OBJECT_STORES = frozenset(
    "s3,s3a,gs,gcs,az,abfs,abfss,adl,oss,oci,cos,obs,swift,tos,r2,b2,hf".split(",")  # noqa: SIM905
)
#: Protocols whose rename puts one file in the place of another at once.
_RENAMES = frozenset(["file", "local", "sftp", "ssh"])
#: What a server that says no for good may answer. Anything else may still happen later.
_REFUSALS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)
_REFUSAL_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG}
#: How many bytes at each end of a single file tell one save from another.
_ENDS = 512


@contextmanager
def writing(where: str) -> Iterator[None]:
    """Map what file systems raise on writing to :class:`WriteError`.

    As for :func:`mapped`, nothing but calls of the file system may stand in it.
    """
    try:
        yield
    except (JsonckptError, MemoryError):
        raise
    except Exception as error:
        hint = "The previous checkpoint, if any, is untouched."
        if isinstance(error, FileNotFoundError):
            hint = "Is there such a bucket? None is made: check the name, or make it first."
        raise WriteError(
            f"cannot write: {said(error)}",
            errno=getattr(error, "errno", None),
            file=where,
            hint=hint,
        ) from error


class _Upload:
    """A file under way, which appears when it is closed, or is let go of."""

    def __init__(self, fs: Any, path: str) -> None:
        self._path = path
        self.written = 0
        self._head = self._tail = b""
        with writing(path):
            self._stream = fs.open(path, "wb")

    def write(self, data: memoryview) -> int:
        """Send more; the bytes taken."""
        with writing(self._path):
            count = self._stream.write(data)
        taken = len(data) if count is None else int(count)
        if len(self._head) < _ENDS:
            self._head += bytes(data[: min(taken, _ENDS - len(self._head))])
        self._tail = (self._tail + bytes(data[max(0, taken - _ENDS) : taken]))[-_ENDS:]
        self.written += taken
        return taken

    def close(self) -> None:
        """Send the rest, and let it appear."""
        with writing(self._path):
            self._stream.close()

    def discard(self) -> None:
        """Let go of it without a trace, as far as the file system can."""
        with suppress(Exception):
            self._stream.discard()
        try:
            # Or the finalizer of fsspec's own class would send what has been written so far.
            self._stream.closed = True
        except Exception:
            with suppress(Exception):
                self._stream.close()

    def lies_at(self, fs: Any, path: str) -> bool:
        """Whether the file at ``path`` is what was written here."""
        fs.invalidate_cache()
        if int(fs.info(path)["size"]) != self.written:
            return False
        head = fs.cat_file(path, start=0, end=min(_ENDS, self.written))
        tail = fs.cat_file(path, start=max(0, self.written - _ENDS), end=self.written)
        return bool(head == self._head and tail == self._tail)


class RemoteTarget:
    """Where a save goes on a remote file system: streams for files, then the manifest.

    A step that reports an error may have happened all the same, or happen later: its answer was
    lost, or the request is still under way. What may have been committed is therefore looked at
    before anything is removed, and stays where nobody knows.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None) -> None:
        self._fs, path = filesystem(url, storage_options)
        self._path = split_query(path)[0]
        self._url = path_arguments.without_query(url)
        self._protocols = protocols(self._fs)
        self._begun: list[str] = []
        self._temporary = ""
        #: Whether what is to be seen of this save may have been committed.
        self._may_be_there = False
        self.name = self._path.rpartition("/")[2]
        self.single = filenames.is_single(self.name)

    def check(self, *, overwrite: bool) -> None:
        """Refuse to overwrite what must not be overwritten.

        Raises:
            CheckpointExistsError: with the way out.
        """
        path = self._path if self.single else f"{self._path}/{MANIFEST_NAME}"
        with writing(self._url):
            if not overwrite and kind_of(self._fs, path) is not None:
                raise CheckpointExistsError(
                    "there is a checkpoint",
                    file=self._url,
                    hint="Pass overwrite=True to replace it.",
                )

    @contextmanager
    def shard(self, name: str) -> Iterator[_Upload]:
        """A stream for a new shard."""
        path = f"{self._path}/{name}"
        self._make_directory()
        self._begun.append(path)
        upload = _Upload(self._fs, path)
        try:
            yield upload
        except BaseException:
            upload.discard()
            raise
        upload.close()

    @property
    def shows_early(self) -> bool:
        """Whether a single file takes the place of the old one as soon as it is opened."""
        return not self._protocols & (_OBJECT_STORES | _RENAMES | {"memory"})

    @contextmanager
    def file(self, token: str) -> Iterator[_Upload]:
        """A stream for the single file, which takes its place in :meth:`publish`."""
        self._make_directory()
        path = self._path
        if self._protocols & (_RENAMES | {"memory"}):
            parent, slash, last = path.rpartition("/")
            path = self._temporary = f"{parent}{slash}{filenames.temporary_name(last, token)}"
        if path == self._temporary or self.shows_early:
            self._begun.append(path)
        try:
            upload = _Upload(self._fs, path)
            try:
                yield upload
            except BaseException:
                upload.discard()
                raise
        except WriteError as error:
            if self.shows_early:
                error.hint = (
                    "This file system shows a file while it is written, so the previous "
                    "checkpoint is lost. Save to a directory, which is safe there, too."
                )
            raise

    def publish(self, upload: _Upload) -> None:
        """Put the single file in its place.

        Raises:
            WriteError: it is not there, or nobody knows; the second is said.
        """
        try:
            if self._temporary:
                upload.close()
            self._may_be_there = True
            if self._temporary:
                with writing(self._path):
                    self._move(self._temporary)
            else:
                upload.close()
        except BaseException as error:
            if self._temporary:
                self._remove_quietly([self._temporary])
            if isinstance(error, WriteError) and self._happened(
                error, lambda: upload.lies_at(self._fs, self._path)
            ):
                return
            raise

    def place(self) -> RemoteLocation:
        """The directory, for reading what is there."""
        return RemoteLocation(self._fs, self._path)

    def commit(self, text: bytes, token: str) -> None:
        """Write the manifest, in one piece.

        Raises:
            WriteError: it is not there, or nobody knows; the second is said.
        """
        path = f"{self._path}/{MANIFEST_NAME}"
        temporary = f"{self._path}/.manifest-{token}.tmp"
        renames = bool(self._protocols & _RENAMES)
        try:
            if renames:
                with writing(temporary):
                    self._fs.pipe_file(temporary, text)
            self._may_be_there = True
            with writing(path):
                if renames:
                    self._fs.mv(temporary, path)
                else:
                    self._fs.pipe_file(path, text)
        except BaseException as error:
            if renames:
                self._remove_quietly([temporary])
            if isinstance(error, WriteError) and self._happened(
                error, lambda: bool(self._fs.cat_file(path) == text)
            ):
                return
            raise

    def _move(self, temporary: str) -> None:
        if "memory" in self._protocols:  # its mv would take some names for patterns
            self._fs.cp_file(temporary, self._path)
            self._fs.rm_file(temporary)
        else:
            self._fs.mv(temporary, self._path)

    def _happened(self, error: WriteError, holds: Callable[[], bool]) -> bool:
        """Whether a commit that reported an error has happened; what it means for our files."""
        if not self._may_be_there:
            return False
        try:
            found: bool | None = holds()
        except FileNotFoundError as missing:
            found = False if is_absent(missing) else None
        except Exception:
            found = None
        if found:
            return True
        if found is False and _is_refusal(error.__cause__):
            self._may_be_there = False
        else:
            error.hint = (
                "Whether the new checkpoint is there, or will be, cannot be found out, so none of "
                "its files was removed: the old one or the new one loads. Save again."
            )
        return False

    def _make_directory(self) -> None:
        """Make the directory of the target where the file system has directories; never a bucket.

        Raises:
            WriteError: it cannot be made.
        """
        if self._protocols_below() & _OBJECT_STORES:
            return
        directory = self._path.rpartition("/")[0] if self.single else self._path
        with writing(directory or self._url):
            if directory.startswith("/"):
                self._fs.makedirs(directory, exist_ok=True)
                return
            parts = directory.split("/")
            for count in range(2, len(parts) + 1):
                with suppress(FileExistsError):
                    self._fs.mkdir("/".join(parts[:count]), create_parents=False)

    def _protocols_below(self) -> set[str]:
        """The protocols of the file system and of what it stands on."""
        fs, found = self._fs, set(self._protocols)
        while (fs := getattr(fs, "fs", None)) is not None and hasattr(fs, "protocol"):
            found |= protocols(fs)
        return found

    def abandon(self) -> None:
        """Remove the files of a save that failed, unless a manifest may name them."""
        if not self._may_be_there:
            self._remove_quietly(self._begun)

    def remove(self, files: list[str]) -> None:
        """Remove replaced shards, after the commit."""
        self._remove_quietly([f"{self._path}/{filenames.check_shard_name(name)}" for name in files])

    def _remove_quietly(self, paths: list[str]) -> None:
        for path in paths:
            with suppress(Exception):  # an orphan harms nobody
                self._fs.rm_file(path)


def _is_refusal(error: BaseException | None) -> bool:
    """Whether an error is the other side's no, so that nothing of the request is under way."""
    if isinstance(error, OSError) and error.errno in _REFUSAL_NUMBERS:
        return True
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return isinstance(status, int) and 400 <= status < 500
    return isinstance(error, _REFUSALS) and not isinstance(error.__cause__, TimeoutError)
