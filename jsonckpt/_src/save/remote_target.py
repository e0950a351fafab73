"""Saves to remote file systems. After an error it may not be known whether a commit happened."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from ..errors import ArgumentError, CheckpointExistsError, WriteError
from ..format import filenames
from ..format.model import MANIFEST_NAME
from ..parallel import CancelToken
from ..remote.ranges import size_of
from ..remote.requests import Requests
from ..remote.upload import PartsUpload, can_upload_in_parts
from ..storage import path_arguments
from ..storage.os_errors import is_absent, writing
from ..storage.protocols import Output
from ..storage.remote import RemoteLocation, filesystem, kind_of, protocols, split_query
from .options import SaveOptions
from .outputs import StreamOutput
from .plan import SavePlan, ShardPlan
from .target import Target, check_is_ours, own_files, replaced_rows, unnamed_shards

#: Protocols of stores without directories, whose files appear as a whole when they are closed.
_OBJECT_STORES = frozenset(
    "s3,s3a,gs,gcs,az,abfs,abfss,adl,oss,oci,cos,obs,swift,tos,r2,b2,hf".split(",")  # noqa: SIM905
)
#: Protocols whose rename replaces a file in one step.
RENAMES = frozenset(["file", "local", "sftp", "ssh"])
#: Errors by which a server refuses finally. After any other error the request may still succeed.
_REFUSALS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)
_REFUSAL_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG}
#: This many bytes at each end of a single file identify its save.
_ENDS = 512


class _Upload:
    """A file that is being uploaded. It appears when it is closed, unless it is discarded."""

    def __init__(self, requests: Requests, path: str) -> None:
        self._requests = requests
        self._path = path
        self.written = 0
        self.ended = False
        self._head = self._tail = b""
        self._stream: Any
        with writing(path, remote=True):
            if can_upload_in_parts(requests):
                self._stream = PartsUpload(requests, path)
            else:
                self._stream = requests.blocking(lambda: requests.fs.open(path, "wb"))

    def write(self, data: memoryview) -> int:
        """Send more. Returns the number of bytes taken."""
        with writing(self._path, remote=True):
            count = self._stream.write(data)
        taken = len(data) if count is None else int(count)
        if len(self._head) < _ENDS:
            self._head += bytes(data[: min(taken, _ENDS - len(self._head))])
        self._tail = (self._tail + bytes(data[max(0, taken - _ENDS) : taken]))[-_ENDS:]
        self.written += taken
        return taken

    def close(self) -> None:
        """Send the rest. Then the file appears."""
        self.ended = True
        with writing(self._path, remote=True):
            self._stream.close()

    def discard(self) -> None:
        """Discard it without a trace, if the file system can do that."""
        with suppress(Exception):
            self._stream.discard()
        try:
            # Otherwise the finalizer of fsspec's own class would send what has been written so far.
            self._stream.closed = True
        except Exception:
            with suppress(Exception):
                self._stream.close()

    def lies_at(self, path: str) -> bool:
        """Whether the file at ``path`` is the one that was uploaded."""
        call = self._requests.call
        self._requests.fs.invalidate_cache()
        if size_of(call("info", path).get("size")) != self.written:
            return False
        head = call("cat_file", path, start=0, end=min(_ENDS, self.written))
        tail = call("cat_file", path, start=max(0, self.written - _ENDS), end=self.written)
        return bool(head == self._head and tail == self._tail)


class _UploadOutput(StreamOutput):
    """The text of one file that is being uploaded."""

    def __init__(self, upload: _Upload, path: str, *, close: bool) -> None:
        super().__init__(upload)
        self._upload = upload
        self._path = path
        self._close = close

    def end(self, length: int) -> None:
        """Make a shard appear. A single file appears in the commit."""
        super().end(length)
        if not self._close:
            return
        try:
            self._upload.close()
        except WriteError:
            # The answer may be lost. No other save makes a shard of this name.
            with suppress(Exception):
                if self._upload.lies_at(self._path):
                    return
            raise


class RemoteTarget(Target):
    """A directory or a single file on a remote file system.

    A step that reports an error may have happened all the same, or may happen later: its answer was
    lost, or the request is still running. So this checks what was committed before it removes
    anything. If that cannot be found out, everything stays.
    """

    def __init__(self, url: str, options: SaveOptions) -> None:
        if options.delete_first:
            raise ArgumentError(
                "delete_first is for local paths; remove the remote checkpoint first"
            )
        self.path = self.place = url
        self._options = options
        self._requests: Any = None
        self._path = ""
        self._token = ""
        self._begun: list[str] = []
        self._uploads: list[_Upload] = []
        self._temporary = ""
        self._replaced: list[str] = []
        #: Whether the commit of this save may have happened.
        self._may_be_there = False

    def check(self) -> None:
        """Refuse a name that looks like another kind of file, unless a checkpoint is there."""
        if self._options.single_file is None:
            _check_name(self.path, self._options)

    def begin(self, plan: SavePlan, cancel: CancelToken) -> None:
        """Connect, and refuse to overwrite what must not be overwritten.

        Raises:
            CheckpointExistsError: there is a checkpoint that must be kept.
        """
        self._requests, path = filesystem(self.path, self._options.storage_options)
        self._path = split_query(path)[0]
        self._protocols = protocols(self._requests.fs)
        self._token = plan.snapshot.token
        self.name = self._path.rpartition("/")[2]
        self.single = self._options.is_single(self.name)
        if self.single:
            filenames.check_single_name(self.path)
        elif self._options.by_content:
            raise ArgumentError(
                "save_id='content' writes directories to local paths only",
                hint="Save to a local directory and copy it, or to a remote .json file.",
            )
        url = path_arguments.without_query(self.path)
        visible = self._path if self.single else f"{self._path}/{MANIFEST_NAME}"
        with writing(url, remote=True):
            if not self._options.overwrite and kind_of(self._requests, visible) is not None:
                raise CheckpointExistsError(
                    "there is a checkpoint", file=url, hint="Pass overwrite=True to replace it."
                )
        if not self.single:
            check_is_ours(self._location())
        elif self._shows_early:
            cancel.close()

    def open(self, shard: ShardPlan) -> Output:
        """Begin a shard, or the single file."""
        directory = self._path.rpartition("/")[0] if self.single else self._path
        with writing(directory or path_arguments.without_query(self.path), remote=True):
            make_directory(self._requests, directory)
        path = f"{self._path}/{shard.name}"
        if self.single:
            path = self._path
            if self._protocols & (RENAMES | {"memory"}):
                parent, slash, last = path.rpartition("/")
                path = f"{parent}{slash}{filenames.temporary_name(last, self._token)}"
                self._temporary = path
        if not self.single or path == self._temporary or self._shows_early:
            self._begun.append(path)
        upload = _Upload(self._requests, path)
        self._uploads.append(upload)
        return _UploadOutput(upload, path, close=not self.single)

    def commit(self, manifest: bytes, cancel: CancelToken) -> str:
        """Make the single file appear, or write the manifest in one piece.

        Raises:
            WriteError: the commit failed, or may have failed. The hint says which.
        """
        if not self.single:
            self._replaced = _replaced(self._requests, self._location())
        cancel.close()
        if self.single:
            self._publish(self._uploads[0])
        else:
            self._write_manifest(manifest)
        return "best-effort"

    def abandon(self, error: BaseException, others: Sequence[str] = ()) -> None:
        """Remove the files of a save that failed, unless a manifest may name them."""
        for upload in self._uploads:
            if self.single or not upload.ended:
                upload.discard()
        if self.single and self._begun and self._shows_early and isinstance(error, WriteError):
            error.hint = (
                "This file system shows a file while it is being written, so the previous "
                "checkpoint is lost. Save to a directory, which is safe there, too."
            )
        if not self._may_be_there:
            unnamed = unnamed_shards(self._location(), others) if others else []
            self._remove_quietly({*self._begun, *(f"{self._path}/{name}" for name in unnamed)})

    def clean_up(self) -> None:
        """Remove the shards of the checkpoint that was replaced."""
        self._remove_quietly(
            f"{self._path}/{filenames.check_shard_name(name)}" for name in self._replaced
        )

    @property
    def _shows_early(self) -> bool:
        """Whether a single file replaces the old one as soon as it is opened."""
        return not self._protocols & (_OBJECT_STORES | RENAMES | {"memory"})

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        return self._requests.call(method, *args, **options)

    def _location(self) -> RemoteLocation:
        return RemoteLocation(self._requests, self._path)

    def _publish(self, upload: _Upload) -> None:
        try:
            if self._temporary:
                upload.close()
            self._may_be_there = True
            if self._temporary:
                with writing(self._path, remote=True):
                    self._move(self._temporary)
            else:
                upload.close()
        except BaseException as error:
            if self._temporary:
                self._remove_quietly([self._temporary])
            if not self._happened(error, lambda: upload.lies_at(self._path)):
                raise

    def _write_manifest(self, text: bytes) -> None:
        path = f"{self._path}/{MANIFEST_NAME}"
        temporary = f"{self._path}/.manifest-{self._token}.tmp"
        renames = bool(self._protocols & RENAMES)
        try:
            if renames:
                with writing(temporary, remote=True):
                    self._call("pipe_file", temporary, text, nbytes=len(text))
            self._may_be_there = True
            with writing(path, remote=True):
                if renames:
                    self._requests.fs.mv(temporary, path)
                else:
                    self._call("pipe_file", path, text, nbytes=len(text))
        except BaseException as error:
            if renames:
                self._remove_quietly([temporary])
            if not self._happened(error, lambda: bool(self._call("cat_file", path) == text)):
                raise

    def _move(self, temporary: str) -> None:
        if "memory" in self._protocols:  # its mv treats some names as patterns
            self._call("cp_file", temporary, self._path)
            self._call("rm_file", temporary)
        else:
            self._requests.fs.mv(temporary, self._path)

    def _happened(self, error: BaseException, holds: Callable[[], bool]) -> bool:
        """Whether a commit that raised an error has happened.

        If it has not, this also decides whether the new files may be removed.
        """
        if not (self._may_be_there and isinstance(error, WriteError)):
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
                "It is not known whether the new checkpoint is in place, so none of its files "
                "was removed: the old one or the new one loads. Save again."
            )
        return False

    def _remove_quietly(self, paths: Iterable[str]) -> None:
        for path in paths:
            with suppress(Exception):  # an orphan does no harm
                self._call("rm_file", path)


def make_directory(requests: Requests, directory: str) -> None:
    """Make a directory, but never a bucket. Object stores have no directories."""
    if _protocols_below(requests.fs) & _OBJECT_STORES:
        return
    if directory.startswith("/"):
        requests.call("makedirs", directory, exist_ok=True)
        return
    parts = directory.split("/")
    for count in range(2, len(parts) + 1):
        with suppress(FileExistsError):
            requests.call("mkdir", "/".join(parts[:count]), create_parents=False)


def _replaced(requests: Requests, location: RemoteLocation) -> list[str]:
    """The shards that an overwrite removes: none if checkpoints beside it may use them."""
    files = own_files(replaced_rows(location))
    try:
        mark = kind_of(requests, location.full(filenames.SHARED_MARK))
    except Exception:  # an orphan does no harm
        return []
    return files if mark is None else []


def _check_name(url: str, options: SaveOptions) -> None:
    """Refuse a name that looks like another kind of file. Only such a name asks the server.

    Raises:
        ArgumentError: it does, and no checkpoint is there.
    """
    try:
        path_arguments.check_target_name(url)
    except ArgumentError:
        requests, path = filesystem(url, options.storage_options)
        with writing(url, remote=True):
            if kind_of(requests, f"{path.rstrip('/')}/{MANIFEST_NAME}") is None:
                raise


def _protocols_below(fs: Any) -> set[str]:
    """The protocols of a file system, and of those that it is built on."""
    found = protocols(fs)
    while (fs := getattr(fs, "fs", None)) is not None and hasattr(fs, "protocol"):
        found |= protocols(fs)
    return found


def _is_refusal(error: BaseException | None) -> bool:
    """Whether the server refused finally, so that the request cannot succeed later."""
    if isinstance(error, OSError) and error.errno in _REFUSAL_NUMBERS:
        return True
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return isinstance(status, int) and 400 <= status < 500
    return isinstance(error, _REFUSALS) and not isinstance(error.__cause__, TimeoutError)
