"""``save`` and ``save_async``: a snapshot of the state, a plan, and a target that commits it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, quote
from ..format.json_text import BRIEF, collector_paused
from ..parallel import CancelToken
from ..sharing.unchanged import check_beside, earlier_checkpoint
from ..standalone.export import changes
from ..state.selector import Selector
from ..storage.file_objects import is_file_object
from ..storage.os_errors import writing
from ..storage.path_arguments import is_url, path_text
from .background import Background, PendingSave
from .local_targets import StreamTarget, local_target
from .options import SaveOptions
from .plan import plan_save
from .snapshot import Snapshot, take_snapshot
from .staging import Buffers, detach
from .target import Target
from .write import SaveResult, write_checkpoint


def save(
    state: object,
    path: str | os.PathLike[str] | Any,
    *,
    encoding: str = "base64",
    compression: str | None = None,
    compression_level: int | None = None,
    filter: str = "auto",
    chunk_size: int | str = "1MiB",
    max_shard_size: int | str | None = None,
    checksum: str = "xxh3_128",
    save_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = True,
    delete_first: bool = False,
    threads: int | None = None,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    sync: bool = True,
    with_reader: bool = False,
    unchanged_from: str | os.PathLike[str] | None = None,
    frozen: Selector | None = None,
    single_file: bool | None = None,
) -> SaveResult:
    """Write ``state`` as a JSON checkpoint, atomically.

    Args:
        state: nested dicts, lists, tuples, … with tensors in them. ``docs/format.md`` section 6
            lists the types. Values and types come back exactly.
        path: a path that ends in ``.json`` or ``.json.zst`` becomes one file, any other path a
            directory. Names of other kinds of files (``.pt``, ``.JSON``, ``.json.gz``, …) are
            refused, unless there is a directory. Directories on the way are made. A binary file
            object, such as a pipe, gets the text of a single file.
        encoding: ``"base64"``, or ``"list"`` for number lists that a person can read.
        compression: ``"zstd"`` or ``None``. With ``list`` it compresses whole files and needs a
            directory or a ``.json.zst``.
        compression_level: zstd level; ``None`` takes the level that is best for weights.
        filter: ``"auto"`` (byte shuffle where it helps), ``"none"`` or ``"shuffle"``.
        chunk_size: raw bytes of a chunk, at most 64 MiB. It is the unit of memory and of partial
            reads.
        max_shard_size: a new file begins before a file gets larger than this. A tensor is never
            split over files. ``None`` is ``"5GB"``, and ``"32MB"`` with ``save_id="content"``.
        checksum: ``"xxh3_128"`` (fast), or ``"sha256"``/``"blake3"`` to pin every byte by the
        digest.
        save_id: ``"content"`` makes the bytes depend on the state only: the same state, options and
            release give the same files, without a time and a random id. Shards are named by their
            content. A save over such a checkpoint writes only shards that have changed. For git,
            dvc and sha256sum. Directories on local paths, and single files anywhere.
        metadata: your own plain JSON object, read with ``jsonckpt.open(path).metadata``.
        overwrite: ``False`` raises an error if a checkpoint exists at the path, even one that
            appears during this save.
        delete_first: remove the checkpoint at ``path`` before the new one is written, for disks
            that cannot hold both. If the save then fails or is killed, nothing is left there. Local
            paths only.
        threads: ``None`` takes the processors that may be used, up to 8.
        progress: show a tqdm bar.
        storage_options: options for fsspec, for paths such as ``s3://…`` (extra ``remote``).
        sync: ``False`` skips the fsyncs, but keeps the order of steps. Then a power failure can
            lose the checkpoint; a killed process cannot.
        with_reader: also write ``jsonckpt_reader.py`` and ``checkpoint_to_json.py``, which read the
            checkpoint where jsonckpt is not installed: into a directory, or beside a file. Local
            paths only. See :func:`export_reader`.
        unchanged_from: an earlier checkpoint directory beside the new one, such as the step before.
            Its files in which no tensor has changed are not written again: the new checkpoint names
            them. The tensors' checksums decide. Then keep both directories beside each other, and
            remove one with :func:`jsonckpt.training.remove_step`. Local directories only.
        frozen: names, globs or a function, as ``include`` of :func:`load`: tensors that are not
            expected to change. They get files of their own from the first save on. Without it, a
            second save with ``unchanged_from`` finds out, and writes them once more.
        single_file: ``True`` writes one file under any name, such as ``last.ckpt``; it is
            compressed as a whole only if the name ends in ``.zst``. ``False`` writes a directory
            under any name. Readers look at what is there, not at its name.

    Returns:
        a :class:`SaveResult`. Its ``notes`` say what was not done as asked.

    Raises:
        UnsupportedTypeError: a value that no rule covers; nothing has been written.
        CheckpointExistsError: what is at ``path`` must not be overwritten.
        LimitError: readers would refuse the result.
        WriteError: the system refused. What was at ``path`` before is untouched, except with
            ``delete_first``.
        DurabilityUncertainError: written and visible, but the last fsync failed.
        ArgumentError: an argument is not valid; it is a ValueError and a TypeError.

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
    options = SaveOptions.of(
        encoding=encoding,
        compression=compression,
        compression_level=compression_level,
        filter=filter,
        chunk_size=chunk_size,
        max_shard_size=max_shard_size,
        checksum=checksum,
        save_id=save_id,
        overwrite=overwrite,
        delete_first=delete_first,
        threads=threads,
        progress=progress,
        storage_options=storage_options,
        sync=sync,
        with_reader=with_reader,
        unchanged_from=unchanged_from,
        frozen=frozen,
        single_file=single_file,
    )
    return _save(state, path, metadata, options, began)


def save_privately(
    state: object,
    path: str | os.PathLike[str],
    *,
    shared: int,
    metadata: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> SaveResult:
    """:func:`save` with limits on who may read the result.

    Args:
        shared: the most that group and others may do with the files.
        arguments: as for :func:`save`.
    """
    options = SaveOptions.of(shared=shared, **arguments)
    return _save(state, path, metadata, options, time.perf_counter())


def _save(
    state: object,
    path: str | os.PathLike[str] | Any,
    metadata: Mapping[str, Any] | None,
    options: SaveOptions,
    began: float,
) -> SaveResult:
    _check_order(state, path)
    target = target_of(path, options)
    # An earlier background save is finished first: it must not replace this one later.
    _background.wait_for(target.place)
    _check(target)
    with ExitStack() as small_state:
        # This code makes no garbage, and the collector would visit all tensors of the state.
        small_state.enter_context(collector_paused())
        snapshot = take_snapshot(state, metadata, by_content=options.by_content)
        if snapshot.nbytes > BRIEF:
            small_state.close()
        result = _plan_and_write(snapshot, options, target, CancelToken(), began)
        del snapshot  # before the collector is on again
    return result


def _plan_and_write(
    snapshot: Snapshot, options: SaveOptions, target: Target, cancel: CancelToken, began: float
) -> SaveResult:
    """Plan a save and write it. What ``unchanged_from`` has already is not written again."""
    plan = plan_save(snapshot, options)
    if options.unchanged_from is None:
        return write_checkpoint(plan, target, cancel, began)
    place = Path(target.place)
    with earlier_checkpoint(options.unchanged_from, place, sync=options.sync) as earlier:
        reuse = earlier.reuse(
            plan.records, options.checksum, threads=options.threads, cancel=cancel
        )
        plan = replace(plan, reuse=reuse)
        check = earlier.check_still_there
        return write_checkpoint(plan, target, cancel, began, before_commit=check)


def _check(target: Target) -> None:
    """Refuse to replace what must be kept, before anything is written."""
    target.check()
    if target.reader is not None:
        changes(target.reader)


def _check_order(state: object, path: object) -> None:
    if isinstance(path, str | os.PathLike) or is_file_object(path, "write"):
        return
    is_path = isinstance(state, str | os.PathLike)
    first = "a path" if is_path else "a file object"
    if is_path or is_file_object(state, "write"):
        raise ArgumentError(
            f"state is {first} and path is {quote(type(path).__name__)}: they are swapped",
            hint="The order is save(state, path).",
        )


#: The background save of this process, and the memory for its copy of a state.
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
    max_shard_size: int | str | None = None,
    checksum: str = "xxh3_128",
    save_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = True,
    delete_first: bool = False,
    threads: int | None = 1,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    sync: bool = True,
    with_reader: bool = False,
    unchanged_from: str | os.PathLike[str] | None = None,
    frozen: Selector | None = None,
    single_file: bool | None = None,
    keep_buffers: bool = True,
) -> PendingSave[SaveResult]:
    """Copy ``state``, return, and write the copy in the background as :func:`save` writes it.

    The call takes about as long as a copy of the tensors. After it the state may change: the
    checkpoint has the values at the time of the call. The commit is that of :func:`save`: if the
    process is killed before it, the old checkpoint at ``path`` is still whole.

    One save runs at a time: a second call first waits until the last save is written, because both
    need the memory of the copy. If the last save has failed and nobody has asked for its
    :meth:`result <jsonckpt.PendingSave.result>`, the second call raises that error, once, and saves
    nothing. A :func:`save` to the same path waits, too. The interpreter waits for a save when it
    exits. An error that nobody has seen by then is printed to stderr. A child of ``os.fork``
    inherits no save.

    Args:
        state, encoding, compression, compression_level, filter, chunk_size, max_shard_size,
        checksum, save_id, metadata, overwrite, delete_first, progress, storage_options, sync,
        with_reader, unchanged_from, frozen, single_file: as for :func:`save`.
        path: as for :func:`save`, but not a file object.
        threads: threads of the background. One thread, at a low priority on Linux, leaves the other
            processors to the training. ``None`` takes as many as :func:`save`. All processors make
            the copy. (Encoding number lists holds Python's lock; base64 does not.)
        keep_buffers: keep the memory of the copy. The next call is then several times faster.
            ``False`` frees it when the checkpoint is written.

    Extra memory is one copy of the tensors on the host, pinned for tensors on a CUDA device.

    Returns:
        a :class:`~jsonckpt.PendingSave`, with ``done()``, ``result()`` and ``cancel()``.

    Raises:
        UnsupportedTypeError: a value that no rule covers; nothing has been written.
        CheckpointExistsError: what is at ``path`` must not be overwritten.
        LimitError: readers would refuse the result. (Too many chunks: ``result()`` says so.)
        MemoryError: there is not enough memory for a copy.
        ArgumentError: an argument is not valid; it is a ValueError and a TypeError.
        JsonckptError: the error of an earlier call, with its type (mostly :class:`WriteError`). Its
            ``file`` is the path of that call.

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
    if is_file_object(path, "write", "read"):
        raise ArgumentError(
            "path is a file object, and save_async takes a path only",
            hint="jsonckpt.save writes to a file object.",
        )
    options = SaveOptions.of(
        encoding=encoding,
        compression=compression,
        compression_level=compression_level,
        filter=filter,
        chunk_size=chunk_size,
        max_shard_size=max_shard_size,
        checksum=checksum,
        save_id=save_id,
        overwrite=overwrite,
        delete_first=delete_first,
        threads=threads,
        progress=progress,
        storage_options=storage_options,
        sync=sync,
        with_reader=with_reader,
        unchanged_from=unchanged_from,
        frozen=frozen,
        single_file=single_file,
    )
    _check_order(state, path)
    # The training may change the working directory during the save.
    target = target_of(path, options, absolute=True)

    def prepare() -> PendingSave[SaveResult]:
        _check(target)
        snapshot = take_snapshot(state, metadata, by_content=options.by_content)
        _buffers.stage(snapshot.sources)

        def write(cancel: CancelToken) -> SaveResult:
            try:
                cancel.check()
                return _plan_and_write(snapshot, options, target, cancel, began)
            finally:
                # The traceback of an error keeps the sources alive, and they keep the memory.
                detach(snapshot.sources)
                if not keep_buffers:
                    _buffers.release()

        return _background.start(os.fspath(path), write, place=target.place)

    return _background.run_next(prepare)


def target_of(path: Any, options: SaveOptions, *, absolute: bool = False) -> Target:
    """The target for a path, a URL or a file object.

    Args:
        absolute: do not depend on the working directory later.

    Raises:
        ArgumentError: it is not a path or a file object, or does not fit the options.
    """
    if is_file_object(path, "write"):
        _refuse_reader(options, "a file object")
        _refuse_unchanged(options, "a file object")
        if options.single_file is False:
            raise ArgumentError("path is a file object, which cannot be a directory")
        return StreamTarget(path, options)
    if options.delete_first and not options.overwrite:
        raise ArgumentError(
            "delete_first=True removes what overwrite=False keeps: pass only one of them"
        )
    text = path_text(path, also=", or a binary file object")
    if options.compresses_files and options.is_single(text) and not text.endswith(".zst"):
        raise ArgumentError(
            "encoding='list' with compression='zstd' compresses whole files: "
            "write to a directory or to a path ending in .zst"
        )
    if is_url(text):
        if text.startswith(("http://", "https://")):
            raise ArgumentError(
                "path is a web address, and a web server takes no files",
                hint="Save to a local path, or to a store such as s3://bucket/run.",
            )
        _refuse_reader(options, "a URL")
        _refuse_unchanged(options, "a URL")
        from .remote_target import RemoteTarget

        return RemoteTarget(text, options)
    with writing(text):
        place = Path(text).absolute() if absolute else Path(text)
        target = local_target(place, options, text)
        if options.unchanged_from is not None:
            if target.single:
                _refuse_unchanged(options, "a single file")
            check_beside(options.unchanged_from, place)
    if options.with_reader:
        target.reader = place.parent if target.single else place
    return target


def _refuse_reader(options: SaveOptions, kind: str) -> None:
    if options.with_reader:
        raise ArgumentError(
            f"path is {kind}, and with_reader=True writes the reader to local paths only",
            hint="jsonckpt.export_reader(DIRECTORY) writes it; copy its files to the checkpoint.",
        )


def _refuse_unchanged(options: SaveOptions, kind: str) -> None:
    if options.unchanged_from is not None:
        raise ArgumentError(
            f"path is {kind}, and only directories on local paths share files: leave out "
            "unchanged_from",
        )
