"""``save``: state, leaves, plan, shards, manifest, commit."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jsonckpt import jsontext, names, plan, storage
from jsonckpt._version import __version__
from jsonckpt.checksums import ALGORITHMS, hasher
from jsonckpt.codecs import Coder
from jsonckpt.dtypes import DTYPES
from jsonckpt.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    FormatError,
    JsonckptError,
    LimitError,
)
from jsonckpt.grammar import ShardText, shard_head
from jsonckpt.limits import DEFAULT_LIMITS, exceeds
from jsonckpt.manifest import (
    MANIFEST_FORMAT,
    MANIFEST_NAME,
    Entry,
    Manifest,
    ShardFile,
    dump_manifest,
    parse_identity,
    parse_manifest,
)
from jsonckpt.opening import Place
from jsonckpt.pipeline import default_threads
from jsonckpt.progress import progress_bar
from jsonckpt.sharing import StateWriter
from jsonckpt.tensors import Source
from jsonckpt.registry import default_rules
from jsonckpt.tree import encode_state
from jsonckpt.writing import FileOutput, Output, StreamOutput, ZstdOutput, write_shard

__all__ = ["SaveResult", "save"]

_SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class SaveResult:
    """What :func:`save` did.

    Attributes:
        path: where the checkpoint lies (``""`` when it was written to a file object).
        save_id: 32 hexadecimal digits, in every file of this save.
        digest: ``"sha256:…"`` of the manifest; of a single file its seal. It pins every byte when the
            checkpoint was saved with ``checksum="sha256"``.
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


@dataclass(frozen=True)
class _Options:
    """The options of a save, checked."""

    encoding: str
    compression: str
    level: int | None
    filter: str
    chunk_bytes: int
    max_shard_size: int
    checksum: str
    threads: int
    sync: bool
    progress: bool


@dataclass(frozen=True)
class _Contents:
    """What is to be saved, encoded but for the payloads."""

    save_id: str
    created_at: str
    state: Any
    metadata: dict[str, Any]
    sources: Sequence[Source]
    plans: Sequence[plan.RecordPlan]

    @property
    def nbytes(self) -> int:
        return sum(source.nbytes for source in self.sources)


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
        state: any nesting of dicts, lists, tuples, … with tensors in it; ``docs/format.md`` section 6
            lists the types. Values and types come back exactly.
        path: a path ending in ``.json`` or ``.json.zst`` is one file, any other a directory. A
            binary file object (a pipe, say) gets the text of a single file.
        encoding: ``"base64"``, or ``"list"`` for number lists that a person can read.
        compression: ``"zstd"`` or ``None``. With ``list`` it compresses whole files and needs a
            directory or a ``.json.zst``.
        compression_level: zstd level; ``None`` takes what measured best on weights.
        filter: ``"auto"`` (byte shuffle where it helps), ``"none"`` or ``"shuffle"``.
        chunk_size: raw bytes of a chunk, at most 64 MiB: the unit of memory and of partial reads.
        max_shard_size: a new file begins before it is exceeded; one tensor is never split over files.
        checksum: ``"xxh3_128"`` (fast), or ``"sha256"``/``"blake3"`` to pin every byte by the digest.
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
    options = _Options(
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
    _check_options(options, compression_level)
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
    contents = _encode(state, metadata, options)
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


def _check_options(options: _Options, level: int | None) -> None:
    plan.check_options(
        encoding=options.encoding,
        compression=options.compression,
        filter=options.filter,
        chunk_bytes=options.chunk_bytes,
        limits=DEFAULT_LIMITS,
    )
    if options.checksum not in ALGORITHMS:
        raise ValueError(f"checksum={options.checksum!r}; it may be {', '.join(ALGORITHMS)}")
    hasher(options.checksum)  # says now when its package is missing
    if options.threads < 1:
        raise ValueError(f"threads must be at least 1, not {options.threads}")
    if level is not None and not -100 <= level <= 22:
        raise ValueError(f"compression_level must be a zstd level up to 22, not {level}")


def _check_container(path: str, options: _Options) -> None:
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
        _replaced(storage.LocalPlace(target))
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


def _replaced(place: Place) -> list[str]:
    """The shards that the present manifest names: what an overwrite removes at its very end.

    Raises:
        CheckpointExistsError: the manifest is some other program's.
    """
    text = b""
    try:
        text = place.manifest(DEFAULT_LIMITS.manifest_bytes)
        return [shard.file for shard in parse_manifest(text, DEFAULT_LIMITS).shards]
    except CheckpointNotFoundError:
        return []
    except JsonckptError as error:
        if isinstance(error, FormatError) and MANIFEST_FORMAT.encode() not in text[:4096]:
            raise CheckpointExistsError(
                f"the {MANIFEST_NAME} in this directory is another program's",
                file=place.where(MANIFEST_NAME),
                hint="Choose another directory.",
            ) from error
        # A damaged manifest of ours: its checkpoint is lost already, its shards stay for a rescue.
        return []


def _encode(state: object, metadata: Mapping[str, Any] | None, options: _Options) -> _Contents:
    """Everything about the state that can fail, before anything is written."""
    writer = StateWriter()
    tree = encode_state(state, writer, rules=default_rules())
    sources = writer.sources()
    limits = DEFAULT_LIMITS
    if exceeds(len(sources), limits.tensors):
        raise LimitError(f"{len(sources)} tensors; readers accept at most {limits.tensors}")
    coder = Coder(level=options.level)
    plans = []
    for position, source in enumerate(sources):
        parse_identity(
            {
                "name": source.name,
                "dtype": source.dtype,
                "shape": list(source.shape),
                "device": source.device,
            },
            limits,
        )
        codec = plan.choose_codec(
            source,
            encoding=options.encoding,
            compression=options.compression,
            filter=options.filter,
            chunk_bytes=options.chunk_bytes,
            worthwhile=True,
        )
        if codec.compression != "none" and not _sample_compresses(coder, source, codec):
            codec = plan.choose_codec(
                source,
                encoding=options.encoding,
                compression=options.compression,
                filter=options.filter,
                chunk_bytes=options.chunk_bytes,
                worthwhile=False,
            )
        plans.append(plan.RecordPlan(position, codec, source.nbytes))
    chunks = sum(record.chunks for record in plans)
    if exceeds(chunks, limits.chunks):
        raise LimitError(
            f"{chunks} chunks; readers accept at most {limits.chunks}",
            hint="Pass a larger chunk_size.",
        )
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return _Contents(storage.new_save_id(), now, tree, _plain(metadata), sources, plans)


def _sample_compresses(coder: Coder, source: Source, codec: Any) -> bool:
    # From the middle: the edges of a tensor (padding rows, zeros) say little of the rest.
    size = min(source.nbytes, _SAMPLE_BYTES)
    unit = 16  # a multiple of every item size
    start = (source.nbytes - size) // 2 // unit * unit
    size -= size % DTYPES[source.dtype].itemsize
    return coder.compresses(source.read(start, start + size), codec, source.dtype)


def _plain(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    value = dict(metadata or {})
    try:
        back = jsontext.parse(jsontext.dump(value), what="metadata")
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata must be a plain JSON object: {error}") from error
    if back != value:
        raise TypeError("metadata must be a plain JSON object: its keys must be strings")
    return value


def _head(contents: _Contents, options: _Options, *, single: bool) -> bytes:
    if not single:
        return shard_head(contents.save_id, options.checksum)
    text = jsontext.dump
    head = shard_head(
        contents.save_id,
        options.checksum,
        {
            "created_at": text(contents.created_at),
            "created_by": text(created_by()),
            "totals": text({"tensors": len(contents.sources), "bytes": contents.nbytes}),
            "metadata": jsontext.dump_pretty(contents.metadata),
            "state": jsontext.dump_pretty(contents.state),
        },
    )
    if exceeds(len(head), DEFAULT_LIMITS.manifest_bytes):
        raise LimitError(
            f"the state beside its tensors takes {len(head)} bytes; readers accept at most "
            f"{DEFAULT_LIMITS.manifest_bytes}",
            hint="Put large data into tensors or NumPy arrays.",
        )
    return head


def created_by() -> str:
    """This program and its version."""
    return f"jsonckpt {__version__}"


# --- writing ----------------------------------------------------------------------------------


def _write(
    output: Output,
    contents: _Contents,
    options: _Options,
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
        head=_head(contents, options, single=single),
        shard=shard,
        algorithm=options.checksum,
        level=options.level,
        threads=options.threads,
        progress=progress,
    )


def _save_stream(contents: _Contents, stream: Any, options: _Options) -> dict[str, Any]:
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
    contents: _Contents,
    url: str,
    options: _Options,
    overwrite: bool,
    storage_options: Mapping[str, Any] | None,
) -> dict[str, Any]:
    from jsonckpt.remote import RemoteTarget

    target = RemoteTarget(url, storage_options)
    single = is_single(url)
    target.check(single=single, overwrite=overwrite)
    shards: list[ShardFile] = []
    entries: list[Entry] = []
    try:
        with progress_bar("save", contents.nbytes, show=options.progress) as advance:
            for number, name, plans in _shards(contents, options, single=single):
                with target.open(None if single else name) as stream:
                    output: Output = StreamOutput(stream)
                    if name.endswith(".zst") or (single and url.endswith(".zst")):
                        output = ZstdOutput(output, level=options.level)
                    text = _write(
                        output, contents, options, plans=plans, shard=number, single=single,
                        progress=advance,
                    )  # fmt: skip
                shards.append(ShardFile(name, output.written, text.position, text.seal))
                entries += text.entries
        if not single:
            manifest = _manifest(contents, options, shards, entries)
            dumped = _dump(manifest)
            replaced = _replaced(target.place())
            target.commit(dumped)
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
        "digest": f"sha256:{hashlib.sha256(dumped).hexdigest()}",
        "stored_bytes": len(dumped) + sum(shard.bytes for shard in shards),
        "files": (*(shard.file for shard in shards), MANIFEST_NAME),
        "durability": "best-effort",
    }


def _save_file(contents: _Contents, target: Path, options: _Options) -> dict[str, Any]:
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
                output, contents, options, plans=contents.plans, shard=0, single=True,
                progress=advance,
            )  # fmt: skip
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


def _save_directory(contents: _Contents, target: Path, options: _Options) -> dict[str, Any]:
    storage.make_directory(target, sync=options.sync)
    files: list[storage.NewFile] = []
    text = b""
    try:
        with progress_bar("save", contents.nbytes, show=options.progress) as advance:
            manifest = _write_shards(contents, target, options, files, advance)
        text = _dump(manifest)
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
    contents: _Contents,
    target: Path,
    options: _Options,
    files: list[storage.NewFile],
    advance: Callable[[int], None] | None,
) -> Manifest:
    shards: list[ShardFile] = []
    entries: list[Entry] = []
    for number, name, plans in _shards(contents, options, single=False):
        file = storage.NewFile(target / name)
        files.append(file)
        output: Output = FileOutput(file)
        if name.endswith(".zst"):
            output = ZstdOutput(output, level=options.level)
        text = _write(
            output, contents, options, plans=plans, shard=number, single=False, progress=advance
        )
        file.finish(sync=options.sync)
        shards.append(ShardFile(name, output.written, text.position, text.seal))
        entries += text.entries
    return _manifest(contents, options, shards, entries)


def _shards(
    contents: _Contents, options: _Options, *, single: bool
) -> Iterator[tuple[int, str, Sequence[plan.RecordPlan]]]:
    """Number, file name and records of each shard."""
    if single:
        yield 0, "", contents.plans
        return
    compressed = options.encoding == "list" and options.compression == "zstd"
    estimates = [plan.text_estimate(p, contents.sources[p.source].dtype) for p in contents.plans]
    for number, members in enumerate(plan.assign_shards(estimates, options.max_shard_size)):
        name = names.shard_name(contents.save_id, number + 1, compressed=compressed)
        yield number, name, [contents.plans[member] for member in members]


def _manifest(
    contents: _Contents, options: _Options, shards: Sequence[ShardFile], entries: Sequence[Entry]
) -> Manifest:
    return Manifest(
        contents.save_id,
        contents.created_at,
        created_by(),
        options.checksum,
        contents.metadata,
        contents.state,
        tuple(shards),
        tuple(entries),
    )


def _dump(manifest: Manifest) -> bytes:
    text = dump_manifest(manifest)
    if exceeds(len(text), DEFAULT_LIMITS.manifest_bytes):
        raise LimitError(
            f"the manifest takes {len(text)} bytes; readers accept at most "
            f"{DEFAULT_LIMITS.manifest_bytes}",
            hint="Pass a larger chunk_size, or put large data into tensors.",
        )
    return text


def _durability(options: _Options, durable: bool) -> str:
    if not options.sync:
        return "none"
    return "synced" if durable else "best-effort"
