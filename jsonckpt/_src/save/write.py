"""Writes a planned save to a target: shards, manifest, commit. Or a part of a save of many."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..errors import JsonckptError, WriteError, quote
from ..format.checksums import CRYPTOGRAPHIC
from ..format.chunk_codec import ChunkCodec
from ..format.model import MANIFEST_NAME, Entry, ShardFile, claimed_bytes
from ..parallel import CancelToken, JobSequence, run_sequences
from ..progress import progress_bar
from ..shown import ShortRepr
from ..standalone.export import export_reader
from . import reader_limits
from .outputs import ZstdOutput
from .plan import SavePlan, ShardPlan
from .shard_writer import ShardWriter, useful_threads
from .snapshot import Snapshot
from .target import Target

_SAVE_AGAIN = "The previous checkpoint, if any, is untouched. Save again."


@dataclass(frozen=True, kw_only=True, repr=False)
class SaveResult(ShortRepr):
    """What :func:`save` did.

    Attributes:
        path: of the checkpoint, as it was given (``""`` when it was written to a file object).
        save_id: 32 hexadecimal digits, in every file of this save. With ``save_id="content"`` they
            are zeros: the digest tells such saves apart.
        digest: ``"sha256:…"`` of the manifest; of a single file its seal.
        tensors: number of records.
        nbytes: raw bytes of all tensors.
        stored_bytes: bytes written.
        reused_bytes: with ``unchanged_from``: bytes of the files that are used again.
        files: names of the files, the manifest last.
        seconds: how long it took.
        durability: ``"synced"``; ``"best-effort"`` where the file system cannot fsync a directory;
            ``"none"`` with ``sync=False`` or a file object.
        pin: the digest to pass as ``expected_digest=``. It pins every byte. ``None``
            unless the checkpoint was saved with ``checksum="sha256"`` or ``"blake3"``: the default
            checksum finds accidents, not forgeries.
        reader_files: with ``with_reader``: the paths of the two files that read the checkpoint
            without jsonckpt.
        notes: what was not done as asked, one line each: a file is larger than ``max_shard_size``,
            because a tensor is never split, or a single file ignores ``max_shard_size``.
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
    pin: str | None = None
    notes: tuple[str, ...] = ()
    reader_files: tuple[str, ...] = ()
    reused_bytes: int = 0


def write_checkpoint(
    plan: SavePlan,
    target: Target,
    cancel: CancelToken,
    began: float,
    *,
    before_commit: Callable[[], None] = lambda: None,
) -> SaveResult:
    """Write everything, or leave the old checkpoint.

    Args:
        began: when the save began, by ``time.perf_counter``.
        before_commit: called when everything is written; an error keeps the old checkpoint.
    """
    snapshot = plan.snapshot
    manifest = b""
    try:
        target.begin(plan, cancel)
        shards, entries = write_shards(plan, target, cancel)
        stored = sum(shard.bytes for shard in shards)
        reused = sum(row.bytes for row in plan.reuse.rows)
        plan.check_expansion(stored + reused)
        if target.single:
            digest = shards[0].seal
            if target.name.endswith(".zst"):
                _check_compressed_head(plan, entries, shards[0])
        else:
            manifest = snapshot.manifest(
                plan.options.checksum,
                [*plan.reuse.rows, *shards],
                [*plan.reuse.entries, *entries],
            )
            digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        before_commit()
        durability = target.commit(manifest, cancel)
    except BaseException as error:
        target.abandon(error)
        raise
    target.clean_up()
    files = [shard.file for shard in shards if shard.file]
    return SaveResult(
        path=target.path,
        save_id=snapshot.save_id,
        digest=digest,
        tensors=len(plan.records),
        nbytes=snapshot.nbytes,
        stored_bytes=stored + len(manifest),
        reused_bytes=reused,
        files=tuple(files) if target.single else (*files, MANIFEST_NAME),
        seconds=time.perf_counter() - began,
        durability=durability,
        pin=digest if plan.options.checksum in CRYPTOGRAPHIC else None,
        notes=_notes(plan, target, shards, entries),
        reader_files=_write_reader(target),
    )


@dataclass(frozen=True)
class WrittenPart:
    """What one of several processes wrote of a checkpoint: its shards, and the records in them.

    Attributes:
        rank: of the process.
        save_id: in the heads of its shards.
        checksum: the algorithm of all checksums.
        entries: the records; their ``shard`` is a position in ``shards``.
    """

    rank: int
    save_id: str
    checksum: str
    shards: tuple[ShardFile, ...]
    entries: tuple[Entry, ...]


def write_part(plan: SavePlan, target: Target, cancel: CancelToken) -> WrittenPart:
    """Write the shards of this process, durably, and no manifest: they are no checkpoint yet.

    After an error nothing of them is left.

    Args:
        plan: of a snapshot with a ``rank``.
    """
    try:
        target.begin(plan, cancel)
        shards, entries = write_shards(plan, target, cancel)
        target.flush()
    except BaseException as error:
        target.abandon(error)
        raise
    snapshot = plan.snapshot
    rank = snapshot.rank or 0
    checksum = plan.options.checksum
    return WrittenPart(rank, snapshot.save_id, checksum, tuple(shards), tuple(entries))


def commit_parts(
    parts: Sequence[WrittenPart],
    snapshot: Snapshot,
    target: Target,
    cancel: CancelToken,
    began: float,
) -> SaveResult:
    """Make one checkpoint of the parts that several processes wrote: its manifest, and the commit.

    After an error the old checkpoint is whole, and the shards of all parts are removed.

    Args:
        parts: of all processes.
        snapshot: the state and the metadata. Its ``save_id`` is replaced.
        target: that of this process's own part, which is written.
        began: when the save began, by ``time.perf_counter``.

    Raises:
        WriteError: the parts do not belong together, or a shard is not where it should be.
        LimitError: readers would refuse the result.
    """
    try:
        save_id, shards, entries = _merged(parts)
        stored, checksum = sum(shard.bytes for shard in shards), parts[0].checksum
        chunks = sum(len(entry.chunks) for entry in entries)
        widest = max((entry.codec.chunk_bytes for entry in entries), default=0)
        claimed = claimed_bytes((entry.nbytes, entry.layout) for entry in entries)
        reader_limits.check_tensor_count(len(entries))
        reader_limits.check_shard_count(len(shards))
        reader_limits.check_chunk_count(len(entries), chunks, widest)
        reader_limits.check_expansion(claimed, len(entries), chunks, stored)
        target.check_written(shards)
        manifest = replace(snapshot, save_id=save_id).manifest(checksum, shards, entries)
        durability = target.commit(manifest, cancel)
    except BaseException as error:
        target.abandon(error, [shard.file for part in parts for shard in part.shards])
        raise
    target.clean_up()
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    return SaveResult(
        path=target.path,
        save_id=save_id,
        digest=digest,
        tensors=len(entries),
        nbytes=sum(entry.nbytes for entry in entries),
        stored_bytes=stored + len(manifest),
        files=(*(shard.file for shard in shards), MANIFEST_NAME),
        seconds=time.perf_counter() - began,
        durability=durability,
        pin=digest if checksum in CRYPTOGRAPHIC else None,
        notes=target.notes(),
        reader_files=_write_reader(target),
    )


def _merged(parts: Sequence[WrittenPart]) -> tuple[str, list[ShardFile], list[Entry]]:
    """The id of the manifest, its shards and its entries. Each part has an id of its own."""
    if len({part.save_id for part in parts}) < len(parts):
        raise WriteError("two ranks say that they wrote the same part", hint=_SAVE_AGAIN)
    if len({part.checksum for part in parts}) > 1:
        raise WriteError("the ranks have different checksums", hint="Give all the same options.")
    wrote = [part for part in parts if part.shards]
    save_id = (wrote or parts)[0].save_id
    shards: list[ShardFile] = []
    entries: list[Entry] = []
    for part in parts:
        first, own = len(shards), "" if part.save_id == save_id else part.save_id
        shards += [replace(shard, save_id=own) for shard in part.shards]
        entries += [replace(entry, shard=first + entry.shard) for entry in part.entries]
    return save_id, shards, entries


def _write_reader(target: Target) -> tuple[str, ...]:
    """Write the files that read the checkpoint without jsonckpt, if they are asked for."""
    if target.reader is None:
        return ()
    try:
        return tuple(map(str, export_reader(target.reader)))
    except JsonckptError as error:
        raise WriteError(
            f"the checkpoint is written, but not its reader: {error}",
            file=target.path,
            hint="jsonckpt.export_reader(DIRECTORY) writes the reader.",
        ) from error


def _notes(
    plan: SavePlan, target: Target, shards: Sequence[ShardFile], entries: Sequence[Entry]
) -> tuple[str, ...]:
    most = plan.options.max_shard_size
    others = (*plan.reuse.notes, *target.notes())
    if target.single:
        if not plan.options.sized:
            return ()
        return (f"max_shard_size={most} has no effect: this is one file, only directories split",)
    over = [number for number, shard in enumerate(shards) if shard.bytes > most]
    if not over or (plan.options.by_content and not plan.options.sized):
        return others
    largest = max(over, key=lambda number: shards[number].bytes)
    first = len(plan.reuse.rows)
    name = next(entry.name for entry in entries if entry.shard == first + largest)
    files = "one file is" if len(over) == 1 else f"{len(over)} files are"
    return (
        *others,
        f"{files} larger than max_shard_size={most}, because a tensor is never split: "
        f"{shards[largest].file} has {shards[largest].bytes} bytes, with tensor {quote(name)}",
    )


def write_shards(
    plan: SavePlan, target: Target, cancel: CancelToken
) -> tuple[list[ShardFile], list[Entry]]:
    """Write the files that hold records. One pool of threads serves them all."""
    options = plan.options
    shards = plan.single_file(target.name) if target.single else plan.shards()
    threads = min(options.threads, sum(useful_threads(s, options.threads) for s in shards))
    writers: list[ShardWriter] = []

    def opened() -> Iterator[JobSequence[Any, ChunkCodec, Any, Any]]:
        for shard in shards:
            writer = _open_shard(plan, target, shard, done)
            writers.append(writer)
            yield writer.sequence(threads)

    nbytes = sum(record.nbytes for record in plan.written)
    with progress_bar("save", nbytes, show=options.progress) as advance:

        def done(count: int) -> None:
            cancel.check()
            if advance is not None:
                advance(count)

        # A remote target gets one file at a time.
        for batch in [opened()] if target.concurrent else ([one] for one in opened()):
            run_sequences(batch, threads=threads, worker=lambda: ChunkCodec(level=options.level))
    files = [writer.file() for writer in writers]
    if len(files) != len(shards):
        raise WriteError(
            f"{len(files)} of {len(shards)} shards were written: a thread has ended early",
            file=target.path,
            hint=_SAVE_AGAIN,
        )
    return files, [entry for writer in writers for entry in writer.text.entries]


def _open_shard(plan: SavePlan, target: Target, shard: ShardPlan, done: Any) -> ShardWriter:
    options = plan.options
    output = target.open(shard)
    if shard.name.endswith(".zst"):
        output = ZstdOutput(output, level=options.level)
    return ShardWriter(
        output,
        shard,
        head=plan.snapshot.head(options.checksum, single=target.single),
        checksum=options.checksum,
        done=done,
        settle=partial(target.settle, shard),
        check_index=plan.check_index if target.single else None,
    )


def _check_compressed_head(plan: SavePlan, entries: Sequence[Entry], file: ShardFile) -> None:
    """Check that a reader accepts the head of a single file after its compression.

    Raises:
        LimitError: a reader would not.
    """
    head = entries[0].offset if entries else file.text_bytes
    # The head is made once more only if it is long.
    if reader_limits.may_exceed_compressed(head, file.bytes):
        text = plan.snapshot.head(plan.options.checksum, single=True)
        reader_limits.check_compressed_head(text, file.bytes)
