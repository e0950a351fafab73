"""Where a save goes: what may be overwritten; how each kind of target is written and committed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, CheckpointExistsError, JsonckptError, WriteError, quote
from ..format import filenames
from ..format.limits import DEFAULT_LIMITS
from ..format.manifest import shard_files
from ..format.model import MANIFEST_FORMAT, MANIFEST_NAME, Entry, Manifest, ShardFile
from ..format.shard_text import ShardText
from ..parallel import Lane, run_lanes
from ..progress import progress_bar
from ..storage import commit, local
from ..storage.protocols import Location, Output
from . import plan
from .background import CancelToken
from .disk_space import DiskSpace
from .shard_writer import FileOutput, StreamOutput, ZstdOutput, write_shard
from .snapshot import (
    SaveOptions,
    Snapshot,
    check_expansion,
    check_index,
    check_text,
    dumped,
    head_text,
    manifest_of,
    shards_of,
)

if TYPE_CHECKING:
    from ..storage.upload import RemoteTarget


def check_container(path: str, options: SaveOptions) -> None:
    if options.zips_files and path.endswith(".json"):
        raise ArgumentError(
            "encoding='list' with compression='zstd' compresses whole files: "
            "write to a directory or to a path ending in .json.zst"
        )


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse to overwrite what is not ours to overwrite.

    Raises:
        CheckpointExistsError: with the way out.
        ArgumentError: it is the name of a manifest or a shard.
        WriteError: the system does not say what lies there.
    """
    with commit.writing(target):
        if filenames.is_single(target.name):
            filenames.check_single_name(str(target))
            _check_file(target, overwrite=overwrite)
        else:
            _check_directory(target, overwrite=overwrite)


def _check_file(target: Path, *, overwrite: bool) -> None:
    mode = commit.kind_of(target)
    if mode is not None and stat.S_ISDIR(mode):
        raise CheckpointExistsError(
            "there is a directory at this path", file=target, hint="Choose another name."
        )
    if target.is_symlink():
        filenames.check_single_name(os.path.realpath(target))
    if not overwrite and mode is not None:
        raise CheckpointExistsError(
            "the file exists", file=target, hint="Pass overwrite=True to replace it."
        )


def _check_directory(target: Path, *, overwrite: bool) -> None:
    mode = commit.kind_of(target)
    if mode is None:
        return
    if not stat.S_ISDIR(mode):
        raise CheckpointExistsError(
            "there is a file at this path, and a path without .json is a directory",
            file=target,
            hint="Choose another name, or one ending in .json for a single file.",
        )
    inside = os.listdir(target)
    if MANIFEST_NAME in inside:
        if not overwrite:
            raise CheckpointExistsError(
                "there is a checkpoint", file=target, hint="Pass overwrite=True to replace it."
            )
        _check_ours(local.LocalLocation(target))
    elif foreign := sorted(name for name in inside if not _may_be_ours(name)):
        raise CheckpointExistsError(
            f"the directory is not empty and holds no checkpoint (there is {quote(foreign[0])})",
            file=target,
            hint="Choose an empty or a new directory.",
        )


def _may_be_ours(name: str) -> bool:
    """Whether a file may be left over from a save that was killed."""
    return filenames.is_shard_name(name) or (
        name.startswith(".manifest-") and name.endswith(".tmp")
    )


def _check_ours(place: Location) -> None:
    """Whether the manifest in a directory is ours to replace, judged by its beginning.

    Raises:
        CheckpointExistsError: it is some other program's.
    """
    try:
        with place.file(MANIFEST_NAME) as file:
            start = bytearray(min(file.size, 4096))
            file.read_range(0, memoryview(start))
    except JsonckptError:
        return
    if start and MANIFEST_FORMAT.encode() not in start:
        raise CheckpointExistsError(
            f"the {MANIFEST_NAME} in this directory is another program's",
            file=place.where(MANIFEST_NAME),
            hint="Choose another directory.",
        )


def _replaced(place: Location) -> list[str]:
    """The shards that the present manifest names: what an overwrite removes at its very end.

    A manifest that is damaged or cannot be read names none: its checkpoint is lost already, but its
    shards are left for a rescue.
    """
    try:
        return shard_files(place.manifest(DEFAULT_LIMITS.manifest_bytes), DEFAULT_LIMITS)
    except (JsonckptError, OSError):
        return []


def _write(
    output: Output,
    contents: Snapshot,
    options: SaveOptions,
    *,
    plans: Sequence[plan.RecordPlan],
    shard: int,
    single: bool,
    progress: Callable[[int], None] | None,
    cancel: CancelToken,
    lane: Lane | None = None,
) -> ShardText:
    def advance(count: int) -> None:
        cancel.check()
        if progress is not None:
            progress(count)

    return write_shard(
        output,
        contents.sources,
        plans,
        head=head_text(contents, options, single=single),
        shard=shard,
        algorithm=options.checksum,
        level=options.level,
        threads=options.threads,
        progress=advance,
        check_index=partial(check_index, contents) if single else None,
        lane=lane,
    )


def _write_all(
    output: Output, contents: Snapshot, options: SaveOptions, cancel: CancelToken
) -> ShardText:
    """A whole single-file checkpoint."""
    with progress_bar("save", contents.nbytes, show=options.progress) as advance:
        return _write(
            output,
            contents,
            options,
            plans=contents.plans,
            shard=0,
            single=True,
            progress=advance,
            cancel=cancel,
        )


def _head_of(text: ShardText) -> int:
    """Bytes of text before the first record."""
    return text.entries[0].offset if text.entries else text.position


def save_stream(
    contents: Snapshot, stream: Any, options: SaveOptions, cancel: CancelToken
) -> dict[str, Any]:
    if options.zips_files:
        raise ArgumentError(
            "a file object gets plain text: pass compression=None with encoding='list'"
        )
    output = StreamOutput(stream)
    try:
        text = _write_all(output, contents, options, cancel)
    except JsonckptError:
        raise
    except OSError as error:
        name = getattr(stream, "name", None)
        raise WriteError(
            f"cannot write to the file object: {error.strerror or error}",
            errno=error.errno,
            file=name if isinstance(name, str) else None,
            hint="What it got so far is not a whole checkpoint.",
        ) from error
    check_expansion(contents, output.written)
    return {
        "path": "",
        "digest": text.seal,
        "stored_bytes": output.written,
        "files": (),
        "durability": "none",
    }


def save_remote(
    contents: Snapshot,
    url: str,
    options: SaveOptions,
    overwrite: bool,
    storage_options: Mapping[str, Any] | None,
    cancel: CancelToken,
) -> dict[str, Any]:
    from ..storage.upload import RemoteTarget

    target = RemoteTarget(url, storage_options)
    if target.single:
        filenames.check_single_name(url)
    target.check(overwrite=overwrite)
    write = _upload_file if target.single else _upload_directory
    try:
        result = write(target, contents, options, cancel)
    except BaseException:
        target.abandon()
        raise
    return {"path": url, "durability": "best-effort", **result}


def _upload_file(
    target: RemoteTarget, contents: Snapshot, options: SaveOptions, cancel: CancelToken
) -> dict[str, Any]:
    if target.shows_early:
        cancel.close()
    with target.file(contents.save_id[:12]) as stream:
        output: Output = StreamOutput(stream)
        if target.name.endswith(".zst"):
            output = ZstdOutput(output, level=options.level)
        text = _write_all(output, contents, options, cancel)
        # Before it takes the place of the old one.
        check_expansion(contents, output.written)
        if target.name.endswith(".zst"):
            check_text(contents, options, _head_of(text), output.written)
        cancel.close()
        target.publish(stream)
    return {"digest": text.seal, "stored_bytes": output.written, "files": (target.name,)}


def _upload_directory(
    target: RemoteTarget, contents: Snapshot, options: SaveOptions, cancel: CancelToken
) -> dict[str, Any]:
    _check_ours(target.place())
    shards: list[ShardFile] = []
    entries: list[Entry] = []
    with progress_bar("save", contents.nbytes, show=options.progress) as advance:
        for number, name, plans in shards_of(contents, options, single=False):
            with target.shard(name) as stream:
                output: Output = StreamOutput(stream)
                if name.endswith(".zst"):
                    output = ZstdOutput(output, level=options.level)
                text = _write(
                    output,
                    contents,
                    options,
                    plans=plans,
                    shard=number,
                    single=False,
                    progress=advance,
                    cancel=cancel,
                )
            shards.append(ShardFile(name, output.written, text.position, text.seal))
            entries += text.entries
    check_expansion(contents, sum(shard.bytes for shard in shards))
    manifest = dumped(manifest_of(contents, options, shards, entries))
    replaced = _replaced(target.place())
    cancel.close()
    target.commit(manifest, contents.save_id[:12])
    target.remove(replaced)
    return {
        "digest": f"sha256:{hashlib.sha256(manifest).hexdigest()}",
        "stored_bytes": len(manifest) + sum(shard.bytes for shard in shards),
        "files": (*(shard.file for shard in shards), MANIFEST_NAME),
    }


def save_file(
    contents: Snapshot, target: Path, options: SaveOptions, cancel: CancelToken
) -> dict[str, Any]:
    with commit.writing(target):
        target = Path(os.path.realpath(target))
    filenames.check_single_name(str(target))
    temporary = target.with_name(filenames.temporary_name(target.name, contents.save_id[:12]))
    file = commit.NewFile(
        temporary, early=options.sync, mode=commit.mode_for(target, options.shared)
    )
    made: list[Path] = []
    room = DiskSpace(contents, options, compressed=target.name.endswith(".zst"))
    try:
        commit.make_directory(target.parent, made, sync=options.sync)
        cancel.check()
        room.make(target, ())
        room.look(target.parent)
        file.create()
        output: Output = FileOutput(file)
        if target.name.endswith(".zst"):
            output = ZstdOutput(output, level=options.level)
        text = _write_all(output, contents, options, cancel)
        check_expansion(contents, output.written)
        if target.name.endswith(".zst"):
            check_text(contents, options, _head_of(text), output.written)
        file.finish(sync=options.sync)
        cancel.close()
        durable = commit.commit(
            temporary, target, None, sync=options.sync, exclusive=options.exclusive
        )
    except BaseException as error:
        room.explain(error)
        # After the commit there is no file of this name, and no directory that is empty.
        file.abandon()
        commit.remove_directories(made)
        raise
    return {
        "path": str(target),
        "digest": text.seal,
        "stored_bytes": output.written,
        "files": (target.name,),
        "durability": _durability(options, durable),
    }


def save_directory(
    contents: Snapshot, target: Path, options: SaveOptions, cancel: CancelToken
) -> dict[str, Any]:
    files: list[commit.NewFile] = []
    made: list[Path] = []
    text = b""
    room = DiskSpace(contents, options, compressed=options.zips_files)
    # Of the manifest that is replaced: it says who may read the checkpoint.
    mode = commit.mode_for(target / MANIFEST_NAME, options.shared)
    try:
        durable = commit.make_directory(target, made, sync=options.sync)
        cancel.check()
        old = _replaced(local.LocalLocation(target)) if options.delete_first else []
        room.make(target / MANIFEST_NAME, [target / name for name in old])
        room.look(target)
        with progress_bar("save", contents.nbytes, show=options.progress) as advance:
            manifest = _write_shards(contents, target, options, files, mode, advance, cancel)
        check_expansion(contents, sum(shard.bytes for shard in manifest.shards))
        text = dumped(manifest)
        durable &= options.sync and commit.fsync_directory(target)
        replaced = [] if options.exclusive else _replaced(local.LocalLocation(target))
        cancel.close()
        durable &= commit.commit(
            target / f".manifest-{contents.save_id[:12]}.tmp",
            target / MANIFEST_NAME,
            text,
            sync=options.sync,
            mode=mode,
            exclusive=options.exclusive,
        )
    except BaseException as error:
        room.explain(error)
        # The commit may have happened before the error (a failed last fsync, a Ctrl-C): then the
        # shards belong to the checkpoint that everybody sees.
        if not (text and commit.may_hold(target / MANIFEST_NAME, text)):
            for file in files:
                file.abandon()
            commit.remove_directories(made)
        raise
    commit.unlink_all([target / name for name in replaced], threads=options.threads)
    return {
        "path": str(target),
        "digest": f"sha256:{hashlib.sha256(text).hexdigest()}",
        "stored_bytes": len(text) + sum(shard.bytes for shard in manifest.shards),
        "files": (*(shard.file for shard in manifest.shards), MANIFEST_NAME),
        "durability": _durability(options, durable),
    }


def _write_shards(
    contents: Snapshot,
    target: Path,
    options: SaveOptions,
    files: list[commit.NewFile],
    mode: commit.Mode,
    advance: Callable[[int], None] | None,
    cancel: CancelToken,
) -> Manifest:
    jobs = list(shards_of(contents, options, single=False))
    # Each shard has a thread of its own: writes to one file wait for each other in the kernel. One
    # that is done earlier helps the others, for shards of one size do not take the same time.
    inner = options if len(jobs) < 2 else replace(options, threads=1)

    def write(
        job: tuple[int, str, Sequence[plan.RecordPlan]], lane: Lane
    ) -> tuple[ShardFile, Sequence[Entry]]:
        number, name, plans = job

        def progress(count: int) -> None:
            lane.check()
            if advance is not None:
                advance(count)

        file = commit.NewFile(target / name, early=options.sync, mode=mode)
        files.append(file)
        file.create()
        output: Output = FileOutput(file)
        if name.endswith(".zst"):
            output = ZstdOutput(output, level=options.level)
        text = _write(
            output,
            contents,
            inner,
            plans=plans,
            shard=number,
            single=False,
            progress=progress,
            cancel=cancel,
            lane=lane,
        )
        file.finish(sync=options.sync)
        return ShardFile(name, output.written, text.position, text.seal), text.entries

    written = run_lanes(jobs, write, threads=min(options.threads, len(jobs)) or 1)
    shards = [shard for shard, _ in written]
    if [shard.file for shard in shards] != [name for _, name, _ in jobs]:
        raise WriteError(
            f"{len(shards)} of {len(jobs)} shards were written: a writer has ended early",
            file=target,
            hint="The previous checkpoint, if any, is untouched. Save again.",
        )
    entries = [entry for _, part in written for entry in part]
    return manifest_of(contents, options, shards, entries)


def _durability(options: SaveOptions, durable: bool) -> str:
    if not options.sync:
        return "none"
    return "synced" if durable else "best-effort"
