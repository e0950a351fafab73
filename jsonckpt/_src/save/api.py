"""``save`` and ``save_async``: state, leaves, plan, shards, manifest, commit."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, quote
from ..format.filenames import is_single
from ..format.json_text import BRIEF, collector_paused
from ..parallel import thread_count
from ..storage.commit import writing
from ..storage.path_arguments import check_storage_options, is_url, path_text
from . import plan
from .background import Background, CancelToken, PendingSave
from .snapshot import SaveOptions, Snapshot, check_options, encode, settle, walk
from .staging import Buffers
from .targets import (
    check_container,
    check_target,
    save_directory,
    save_file,
    save_remote,
    save_stream,
)


@dataclass(frozen=True, kw_only=True)
class SaveResult:
    """What :func:`save` did.

    Attributes:
        path: where the checkpoint lies (``""`` when it was written to a file object).
        save_id: 32 hexadecimal digits, in every file of this save.
        digest: ``"sha256:…"`` of the manifest; of a single file its seal. It pins every byte when
            the checkpoint was saved with ``checksum="sha256"``.
        tensors: number of records.
        nbytes: raw bytes of all tensors.
        stored_bytes: bytes written.
        files: names of the files, the manifest last.
        seconds: how long it took.
        durability: ``"synced"``; ``"best-effort"`` where the file system cannot fsync a directory;
            ``"none"`` with ``sync=False`` or a file object.
    """

    path: str
    save_id: str
    digest: str
    tensors: int
    nbytes: int
    stored_bytes: int
    files: tuple[str, ...]
    seconds: float
    durability: str


def save(
    state: object,
    path: str | os.PathLike[str] | Any,
    *,
    encoding: str = "base64",
    compression: str | None = None,
    compression_level: int | None = None,
    filter: str = "auto",
    chunk_size: int | str = "1MiB",
    max_shard_size: int | str = "5GB",
    checksum: str = "xxh3_128",
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = True,
    delete_first: bool = False,
    threads: int | None = None,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    sync: bool = True,
) -> SaveResult:
    """Write ``state`` as a JSON checkpoint, atomically.

    Args:
        state: any nesting of dicts, lists, tuples, … with tensors in it; ``docs/format.md`` section
            6 lists the types. Values and types come back exactly.
        path: a path ending in ``.json`` or ``.json.zst`` is one file, any other a directory. A
            binary file object (a pipe, say) gets the text of a single file.
        encoding: ``"base64"``, or ``"list"`` for number lists that a person can read.
        compression: ``"zstd"`` or ``None``. With ``list`` it compresses whole files and needs a
            directory or a ``.json.zst``.
        compression_level: zstd level; ``None`` takes what measured best on weights.
        filter: ``"auto"`` (byte shuffle where it helps), ``"none"`` or ``"shuffle"``.
        chunk_size: raw bytes of a chunk, at most 64 MiB: the unit of memory and of partial reads.
        max_shard_size: a new file begins before it is exceeded; one tensor is never split over
        files.
        checksum: ``"xxh3_128"`` (fast), or ``"sha256"``/``"blake3"`` to pin every byte by the
        digest.
        metadata: your own plain JSON object, read with ``jsonckpt.open(path).metadata``.
        overwrite: ``False`` refuses when a checkpoint is already there, also one that appears while
            this one is written.
        delete_first: remove the checkpoint at ``path`` before the new one is written, where there
            is no room for both. It gives up the guarantee: a save that fails or is killed leaves
            nothing there. Local paths only.
        threads: ``None`` takes the processors that may be used, up to 8.
        progress: show a tqdm bar.
        storage_options: for paths such as ``s3://…`` (extra ``remote``): passed to fsspec.
        sync: ``False`` skips the fsyncs (not the order of steps): after a power failure the
            checkpoint may be lost, after a killed process it is not.

    Returns:
        a :class:`SaveResult`.

    Raises:
        UnsupportedTypeError: a value that no rule covers; nothing has been written.
        CheckpointExistsError: what lies at ``path`` must not be overwritten.
        LimitError: readers would refuse the result.
        WriteError: the system refused; what was at ``path`` before is untouched, but for
            ``delete_first``.
        DurabilityUncertainError: written and visible, but the last fsync failed.
        ArgumentError: arguments that cannot be; it is a ValueError and a TypeError.

    >>> import tempfile, torch, jsonckpt
    >>> directory = tempfile.TemporaryDirectory()
    >>> result = jsonckpt.save({"w": torch.ones(2, 3), "epoch": 1}, directory.name + "/ckpt")
    >>> result.tensors, result.nbytes
    (1, 24)
    >>> jsonckpt.load(result.path)["epoch"]
    1
    >>> directory.cleanup()
    """
    began = time.perf_counter()
    options = _options(
        encoding=encoding,
        compression=compression,
        compression_level=compression_level,
        filter=filter,
        chunk_size=chunk_size,
        max_shard_size=max_shard_size,
        checksum=checksum,
        threads=threads,
        sync=sync,
        progress=progress,
        delete_first=delete_first,
        exclusive=not overwrite,
    )
    return _save(state, path, metadata, options, storage_options, began)


def save_privately(
    state: object,
    path: str | os.PathLike[str],
    *,
    shared: int,
    encoding: str = "base64",
    compression: str | None = None,
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = True,
    delete_first: bool = False,
    progress: bool = False,
) -> SaveResult:
    """:func:`save` for what comes from a file that not everybody may read.

    Args:
        shared: what group and others may be allowed to do with the files at most.
    """
    options = _options(
        encoding=encoding,
        compression=compression,
        compression_level=None,
        filter="auto",
        chunk_size="1MiB",
        max_shard_size=max_shard_size,
        checksum="xxh3_128",
        threads=None,
        sync=True,
        progress=progress,
        delete_first=delete_first,
        exclusive=not overwrite,
    )
    options = replace(options, shared=shared)
    return _save(state, path, metadata, options, None, time.perf_counter())


def _save(
    state: object,
    path: str | os.PathLike[str] | Any,
    metadata: Mapping[str, Any] | None,
    options: SaveOptions,
    storage_options: Mapping[str, Any] | None,
    began: float,
) -> SaveResult:
    target = _target(state, path, options, storage_options)
    # What was asked for first is written first: it must not come out later and replace this one.
    _background.leave(target.place)
    target.check()
    with ExitStack() as brief:
        # No garbage is made here; the collector would look through all tensors of the state.
        brief.enter_context(collector_paused())
        contents = encode(state, metadata, options)
        if contents.nbytes > BRIEF:
            brief.close()
        result = _write(contents, target, options, CancelToken(), began)
        del contents  # before the collector is back
    return result


#: The one save in the background of this process, and the memory for its copy of a state.
_background = Background()
_buffers = Buffers()


def save_async(
    state: object,
    path: str | os.PathLike[str],
    *,
    encoding: str = "base64",
    compression: str | None = None,
    compression_level: int | None = None,
    filter: str = "auto",
    chunk_size: int | str = "1MiB",
    max_shard_size: int | str = "5GB",
    checksum: str = "xxh3_128",
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = True,
    delete_first: bool = False,
    threads: int | None = 1,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    sync: bool = True,
    keep_buffers: bool = True,
) -> PendingSave[SaveResult]:
    """Copy ``state``, return, and write the copy in the background as :func:`save` writes it.

    The call holds up the training for about as long as a copy of the tensors takes. When it has
    returned, the state may change: nothing of that shows in the checkpoint, which is that of
    the moment of the call. The commit is that of :func:`save`: a process killed at any moment
    leaves what was at ``path`` before, whole.

    One save at a time: a second call first waits until the one before is written, since both need
    the memory of the copy. If that one has failed and nobody has asked for its :meth:`result
    <jsonckpt.PendingSave.result>`, the second call raises its error, once, and saves nothing.
    A :func:`save` to the same path waits likewise.
    The interpreter waits for a save when it exits; an error that nobody has seen by then is printed
    to stderr. A child made by ``os.fork`` inherits no save.

    Args:
        state, encoding, compression, compression_level, filter, chunk_size, max_shard_size,
        checksum, metadata, overwrite, delete_first, progress, storage_options, sync: as for
            :func:`save`.
        path: as for :func:`save`, but no file object.
        threads: of the background. One, at a low priority on Linux, leaves the rest to the
            training; ``None`` takes as many as :func:`save`. The copy itself is made by all
            processors. (Number lists hold Python's lock while they are made, base64 does not.)
        keep_buffers: keep the memory of the copy for the next call, which makes that one several
            times quicker; ``False`` gives it back when the checkpoint is written.

    Extra memory is one copy of the tensors, on the host, pinned for those on a CUDA device.

    Returns:
        a :class:`~jsonckpt.PendingSave`, with ``done()``, ``result()`` and ``cancel()``.

    Raises:
        UnsupportedTypeError: a value that no rule covers; nothing has been written.
        CheckpointExistsError: what lies at ``path`` must not be overwritten.
        LimitError: readers would refuse the result. (Too many chunks: ``result()`` says so.)
        MemoryError: there is no memory for a copy.
        ArgumentError: arguments that cannot be; it is a ValueError and a TypeError.
        JsonckptError: the error of an earlier call, of the type that it had (:class:`WriteError`
            above all); its ``file`` is the path of that call.

    >>> import tempfile, torch, jsonckpt
    >>> directory = tempfile.TemporaryDirectory()
    >>> w = torch.zeros(3)
    >>> pending = jsonckpt.save_async({"w": w}, directory.name + "/ckpt")
    >>> _ = w.fill_(7)
    >>> jsonckpt.load(pending.result().path)
    {'w': tensor([0., 0., 0.])}
    >>> directory.cleanup()
    """
    began = time.perf_counter()
    if hasattr(path, "write"):
        raise ArgumentError("save_async() takes a path; jsonckpt.save writes to a file object")
    options = _options(
        encoding=encoding,
        compression=compression,
        compression_level=compression_level,
        filter=filter,
        chunk_size=chunk_size,
        max_shard_size=max_shard_size,
        checksum=checksum,
        threads=threads,
        sync=sync,
        progress=progress,
        delete_first=delete_first,
        exclusive=not overwrite,
    )
    target = _target(state, path, options, storage_options)
    if target.local is not None:
        # The loop may change the working directory meanwhile.
        target = replace(target, local=target.local.absolute())

    def prepare() -> PendingSave[SaveResult]:
        target.check()
        contents = walk(state, metadata)
        _buffers.stage(contents.sources)

        def write(cancel: CancelToken) -> SaveResult:
            try:
                return _write(settle(contents, options), target, options, cancel, began)
            finally:
                # The traceback of an error refers to this list, and so would hold on to the memory.
                contents.sources.clear()
                if not keep_buffers:
                    _buffers.release()

        return _background.start(os.fspath(path), write, place=target.place)

    return _background.turn(prepare)


@dataclass(frozen=True)
class _Target:
    """Where a save goes: a path, a URL, or a file object where both are ``None``."""

    local: Path | None
    url: str | None
    stream: Any
    overwrite: bool
    storage_options: Mapping[str, Any] | None

    @property
    def place(self) -> str:
        """One name for the place, however it was given; ``""`` for a file object."""
        if self.local is not None:
            return os.path.abspath(self.local)
        return self.url or ""

    def check(self) -> None:
        """Refuse to overwrite what lies there. Of a URL this is found out when it is written."""
        if self.local is not None:
            check_target(self.local, overwrite=self.overwrite)


def _target(
    state: object,
    path: Any,
    options: SaveOptions,
    storage_options: Mapping[str, Any] | None,
) -> _Target:
    overwrite = not options.exclusive
    if hasattr(path, "write"):
        _check_stream(path)
        return _Target(None, None, path, overwrite, None)
    if options.delete_first and not overwrite:
        raise ArgumentError(
            "delete_first=True removes what overwrite=False keeps: pass one of them"
        )
    if isinstance(state, str | os.PathLike) and not isinstance(path, str | os.PathLike):
        raise ArgumentError(
            f"state is a path and path is {quote(type(path).__name__)}: they are swapped",
            hint="The order is save(state, path).",
        )
    text = path_text(path, also=", or a binary file object")
    check_container(text, options)
    check_storage_options(storage_options)
    if is_url(text):
        if options.delete_first:
            raise ArgumentError(
                "delete_first is for local paths; remove the remote checkpoint first"
            )
        return _Target(None, text, None, overwrite, dict(storage_options or {}))
    with writing(text):
        os.path.abspath(text)  # fails where the working directory is gone
    return _Target(Path(text), None, None, overwrite, None)


def _check_stream(stream: Any) -> None:
    """Find out before the work that a file object takes no bytes."""
    if isinstance(stream, io.TextIOBase) or isinstance(getattr(stream, "encoding", None), str):
        raise ArgumentError(
            "path is a file object for text, and a checkpoint is written as bytes",
            hint='Open it with "wb", or pass its .buffer; in memory, use io.BytesIO.',
        )
    if getattr(stream, "closed", False) is True:
        raise ArgumentError("path is a file object that is closed", hint="Open it again.")


def _options(
    *,
    encoding: str,
    compression: str | None,
    compression_level: int | None,
    filter: str,
    chunk_size: int | str,
    max_shard_size: int | str,
    checksum: str,
    threads: int | None,
    sync: bool,
    progress: bool,
    delete_first: bool,
    exclusive: bool,
) -> SaveOptions:
    options = SaveOptions(
        encoding=encoding,
        compression="none" if compression is None else compression,
        level=compression_level,
        filter=filter,
        chunk_bytes=plan.parse_size(chunk_size, "chunk_size"),
        max_shard_size=plan.parse_size(max_shard_size, "max_shard_size"),
        checksum=checksum,
        threads=thread_count(threads),
        sync=sync,
        progress=progress,
        delete_first=delete_first,
        exclusive=exclusive,
    )
    check_options(options, compression_level)
    return options


def _write(
    contents: Snapshot, target: _Target, options: SaveOptions, cancel: CancelToken, began: float
) -> SaveResult:
    if target.url is not None:
        result = save_remote(
            contents, target.url, options, target.overwrite, target.storage_options, cancel
        )
    elif target.local is None:
        result = save_stream(contents, target.stream, options, cancel)
    elif is_single(target.local.name):
        result = save_file(contents, target.local, options, cancel)
    else:
        result = save_directory(contents, target.local, options, cancel)
    return SaveResult(
        save_id=contents.save_id,
        tensors=len(contents.sources),
        nbytes=contents.nbytes,
        seconds=time.perf_counter() - began,
        **result,
    )
