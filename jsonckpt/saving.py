"""``save``: state, leaves, plan, shards, manifest, commit."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jsonckpt import names, plan, storage
from jsonckpt.contents import (
    Contents,
    Options,
    check_options,
    dumped,
    encode,
    head_text,
    manifest_of,
    shards_of,
)
from jsonckpt.errors import (
    CheckpointExistsError,
    JsonckptError,
)
from jsonckpt.facts import MANIFEST_FORMAT, MANIFEST_NAME, Entry, Manifest, ShardFile
from jsonckpt.grammar import ShardText
from jsonckpt.limits import DEFAULT_LIMITS
from jsonckpt.manifest import shard_files
from jsonckpt.opening import Place
from jsonckpt.pipeline import default_threads, run_lanes
from jsonckpt.progress import progress_bar
from jsonckpt.writing import FileOutput, Output, StreamOutput, ZstdOutput, write_shard

__all__ = ["SaveResult", "save"]


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
        overwrite: ``False`` refuses when a checkpoint is already there.
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
        WriteError: the system refused; what was at ``path`` before is untouched.
        DurabilityUncertainError: written and visible, but the last fsync failed.
        ValueError, TypeError: options that do not exist.

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
    options = Options(
        encoding=encoding,
        compression=compression or "none",
        level=compression_level,
        filter=filter,
        chunk_bytes=plan.parse_size(chunk_size, "chunk_size"),
        max_shard_size=plan.parse_size(max_shard_size, "max_shard_size"),
        checksum=checksum,
        threads=default_threads() if threads is None else threads,
        sync=sync,
        progress=progress,
    )
    check_options(options, compression_level)
    target: Path | None = None
    remote = False
    if not hasattr(path, "write"):
        text_path = os.fspath(path)
        if not isinstance(text_path, str):
            raise TypeError("path must be str or os.PathLike[str], or a binary file object")
        remote = "://" in text_path
        target = None if remote else Path(text_path)
        _check_container(text_path, options)
        if target is not None:
            _check_target(target, overwrite=overwrite)
    contents = encode(state, metadata, options)
    if remote:
        result = _save_remote(contents, text_path, options, overwrite, storage_options)
    elif target is None:
        result = _save_stream(contents, path, options)
    elif is_single(target.name):
        result = _save_file(contents, target, options)
    else:
        result = _save_directory(contents, target, options)
    return SaveResult(
        save_id=contents.save_id,
        tensors=len(contents.sources),
        nbytes=contents.nbytes,
        seconds=time.perf_counter() - began,
        **result,
    )


def is_single(path: str) -> bool:
    """Whether a path names a single-file checkpoint.

    >>> is_single("a.json"), is_single("b.json.zst"), is_single("run/checkpoint")
    (True, True, False)
    """
    return path.endswith((".json", ".json.zst"))


# --- before anything is written ---------------------------------------------------------------


def _check_container(path: str, options: Options) -> None:
    if options.encoding == "list" and options.compression == "zstd" and path.endswith(".json"):
        raise ValueError(
            "encoding='list' with compression='zstd' compresses whole files: "
            "write to a directory or to a path ending in .json.zst"
        )


def _check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse to overwrite what is not ours to overwrite.

    Raises:
        CheckpointExistsError: with the way out.
    """
    if is_single(target.name):
        if target.is_dir():
            raise CheckpointExistsError(
                "there is a directory at this path", file=target, hint="Choose another name."
            )
        if not overwrite and target.exists():
            raise CheckpointExistsError(
                "the file exists", file=target, hint="Pass overwrite=True to replace it."
            )
        return
    if not target.exists():
        return
    if not target.is_dir():
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
        _check_ours(storage.LocalPlace(target))
    elif foreign := sorted(name for name in inside if not _may_be_ours(name)):
        raise CheckpointExistsError(
            f"the directory is not empty and holds no checkpoint (there is {foreign[0]!r})",
            file=target,
            hint="Choose an empty or a new directory.",
        )


def _may_be_ours(name: str) -> bool:
    """Whether a file may be left over from a save that was killed."""
    if name.startswith(".manifest-") and name.endswith(".tmp"):
        return True
    try:
        names.check_shard_name(name)
    except JsonckptError:
        return False
    return True


def _check_ours(place: Place) -> None:
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


def _replaced(place: Place) -> list[str]:
    """The shards that the present manifest names: what an overwrite removes at its very end.

    A manifest that is damaged names none: its checkpoint is lost already, but its shards are left
    for a rescue.
    """
    try:
        return shard_files(place.manifest(DEFAULT_LIMITS.manifest_bytes), DEFAULT_LIMITS)
    except JsonckptError:
        return []


# --- writing ----------------------------------------------------------------------------------


def _write(
    output: Output,
    contents: Contents,
    options: Options,
    *,
    plans: Sequence[plan.RecordPlan],
    shard: int,
    single: bool,
    progress: Callable[[int], None] | None,
) -> ShardText:
    return write_shard(
        output,
        contents.sources,
        plans,
        head=head_text(contents, options, single=single),
        shard=shard,
        algorithm=options.checksum,
        level=options.level,
        threads=options.threads,
        progress=progress,
    )


def _save_stream(contents: Contents, stream: Any, options: Options) -> dict[str, Any]:
    if options.encoding == "list" and options.compression == "zstd":
        raise ValueError(
            "a file object gets plain text: pass compression=None with encoding='list'"
        )
    output = StreamOutput(stream)
    with progress_bar("save", contents.nbytes, show=options.progress) as advance:
        text = _write(
            output, contents, options, plans=contents.plans, shard=0, single=True, progress=advance
        )
    return {
        "path": "",
        "digest": text.seal,
        "stored_bytes": output.written,
        "files": (),
        "durability": "none",
    }


def _save_remote(
    contents: Contents,
    url: str,
    options: Options,
    overwrite: bool,
    storage_options: Mapping[str, Any] | None,
) -> dict[str, Any]:
    from jsonckpt.remote import RemoteTarget

    target = RemoteTarget(url, storage_options)
    single = is_single(url)
    target.check(single=single, overwrite=overwrite)
    if not single:
        _check_ours(target.place())
    shards: list[ShardFile] = []
    entries: list[Entry] = []
    try:
        with progress_bar("save", contents.nbytes, show=options.progress) as advance:
            for number, name, plans in shards_of(contents, options, single=single):
                with target.open(None if single else name) as stream:
                    output: Output = StreamOutput(stream)
                    if name.endswith(".zst") or (single and url.endswith(".zst")):
                        output = ZstdOutput(output, level=options.level)
                    text = _write(
                        output,
                        contents,
                        options,
                        plans=plans,
                        shard=number,
                        single=single,
                        progress=advance,
                    )
                shards.append(ShardFile(name, output.written, text.position, text.seal))
                entries += text.entries
        if not single:
            manifest = manifest_of(contents, options, shards, entries)
            text_bytes = dumped(manifest)
            replaced = _replaced(target.place())
            target.commit(text_bytes)
    except BaseException:
        target.abandon()
        raise
    if single:
        return {
            "path": url,
            "digest": text.seal,
            "stored_bytes": output.written,
            "files": (url.rpartition("/")[2],),
            "durability": "best-effort",
        }
    target.remove(replaced)
    return {
        "path": url,
        "digest": f"sha256:{hashlib.sha256(text_bytes).hexdigest()}",
        "stored_bytes": len(text_bytes) + sum(shard.bytes for shard in shards),
        "files": (*(shard.file for shard in shards), MANIFEST_NAME),
        "durability": "best-effort",
    }


def _save_file(contents: Contents, target: Path, options: Options) -> dict[str, Any]:
    target = target.resolve()
    storage.make_directory(target.parent, sync=options.sync)
    temporary = target.with_name(f".{target.name}.{contents.save_id[:12]}.tmp")
    file = storage.NewFile(temporary)
    try:
        output: Output = FileOutput(file)
        if target.name.endswith(".zst"):
            output = ZstdOutput(output, level=options.level)
        with progress_bar("save", contents.nbytes, show=options.progress) as advance:
            text = _write(
                output,
                contents,
                options,
                plans=contents.plans,
                shard=0,
                single=True,
                progress=advance,
            )
        file.finish(sync=options.sync)
    except BaseException:
        file.abandon()
        raise
    durable = storage.commit(temporary, target, None, sync=options.sync)
    return {
        "path": str(target),
        "digest": text.seal,
        "stored_bytes": output.written,
        "files": (target.name,),
        "durability": _durability(options, durable),
    }


def _save_directory(contents: Contents, target: Path, options: Options) -> dict[str, Any]:
    storage.make_directory(target, sync=options.sync)
    files: list[storage.NewFile] = []
    text = b""
    try:
        with progress_bar("save", contents.nbytes, show=options.progress) as advance:
            manifest = _write_shards(contents, target, options, files, advance)
        text = dumped(manifest)
        durable = not options.sync or storage.fsync_directory(target)
        has_old = (target / MANIFEST_NAME).exists()
        replaced = _replaced(storage.LocalPlace(target)) if has_old else []
        committed = storage.commit(
            target / f".manifest-{contents.save_id[:12]}.tmp",
            target / MANIFEST_NAME,
            text,
            sync=options.sync,
        )
    except BaseException:
        # The commit may have happened before the error (a failed last fsync, a Ctrl-C): then the
        # shards belong to the checkpoint that everybody sees.
        if not storage.holds(target / MANIFEST_NAME, text):
            for file in files:
                file.abandon()
        raise
    for name in replaced:
        storage.unlink(target / name)
    return {
        "path": str(target),
        "digest": f"sha256:{hashlib.sha256(text).hexdigest()}",
        "stored_bytes": len(text) + sum(shard.bytes for shard in manifest.shards),
        "files": (*(shard.file for shard in manifest.shards), MANIFEST_NAME),
        "durability": _durability(options, durable and committed),
    }


def _write_shards(
    contents: Contents,
    target: Path,
    options: Options,
    files: list[storage.NewFile],
    advance: Callable[[int], None] | None,
) -> Manifest:
    jobs = list(shards_of(contents, options, single=False))
    # Each shard has a thread of its own: writes to one file wait for each other in the kernel.
    inner = options if len(jobs) < 2 else replace(options, threads=1)

    def write(
        job: tuple[int, str, Sequence[plan.RecordPlan]], check: Callable[[], None]
    ) -> tuple[ShardFile, Sequence[Entry]]:
        number, name, plans = job

        def progress(count: int) -> None:
            check()
            if advance is not None:
                advance(count)

        file = storage.NewFile(target / name)
        files.append(file)
        output: Output = FileOutput(file)
        if name.endswith(".zst"):
            output = ZstdOutput(output, level=options.level)
        text = _write(
            output, contents, inner, plans=plans, shard=number, single=False, progress=progress
        )
        file.finish(sync=options.sync)
        return ShardFile(name, output.written, text.position, text.seal), text.entries

    written = run_lanes(jobs, write, threads=min(options.threads, len(jobs)) or 1)
    shards = [shard for shard, _ in written]
    entries = [entry for _, part in written for entry in part]
    return manifest_of(contents, options, shards, entries)


def _durability(options: Options, durable: bool) -> str:
    if not options.sync:
        return "none"
    return "synced" if durable else "best-effort"
