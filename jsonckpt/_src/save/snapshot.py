"""What a save will write, but for payloads: all that can fail before a file is touched."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from ..._version import __version__
from ..errors import ArgumentError, JsonckptError, LimitError, quote
from ..format import filenames, json_text
from ..format.checksums import ALGORITHMS, hasher
from ..format.chunk_codec import ChunkCodec
from ..format.dtypes import DTYPES
from ..format.limits import DEFAULT_LIMITS, Limits, exceeds
from ..format.manifest import dump_manifest
from ..format.model import Codec, Entry, Manifest, ShardFile, claimed_bytes
from ..format.shard_text import shard_head
from ..format.validation import check_name
from ..state.registry import default_rules
from ..state.tree import encode_state
from ..storage.commit import new_save_id
from ..tensors.aliasing import StateWriter
from ..tensors.buffers import Source
from . import plan

_SAMPLE_BYTES = 1 << 14
#: About what the place of a tensor takes in the state's text, beside its name.
_PLACE = 40


@dataclass(frozen=True)
class SaveOptions:
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
    delete_first: bool = False
    #: Never replace anything, also nothing that appears while the save is written.
    exclusive: bool = False
    #: What group and others may be allowed to do with the files at most.
    shared: int = 0o077

    @property
    def zips_files(self) -> bool:
        """Whether whole files are compressed: number lists are, other text holds zstd frames."""
        return self.encoding == "list" and self.compression == "zstd"


@dataclass(frozen=True)
class Snapshot:
    """What is to be saved, encoded but for the payloads."""

    save_id: str
    created_at: str
    state: Any
    metadata: dict[str, Any]
    sources: list[Source]
    plans: Sequence[plan.RecordPlan]

    @property
    def nbytes(self) -> int:
        return sum(source.nbytes for source in self.sources)

    @property
    def chunks(self) -> int:
        return sum(record.chunks for record in self.plans)


def check_options(options: SaveOptions, level: int | None) -> None:
    plan.check_options(
        encoding=options.encoding,
        compression=options.compression,
        filter=options.filter,
        chunk_bytes=options.chunk_bytes,
        limits=DEFAULT_LIMITS,
    )
    if not isinstance(options.checksum, str) or options.checksum not in ALGORITHMS:
        raise ArgumentError(
            f"checksum={quote(options.checksum)}; it may be {', '.join(ALGORITHMS)}"
        )
    hasher(options.checksum)  # says now when its package is missing
    if level is not None and (type(level) is not int or not -100 <= level <= 22):
        raise ArgumentError(
            f"compression_level must be a zstd level from -100 to 22, not {quote(level)}"
        )


def encode(state: object, metadata: Mapping[str, Any] | None, options: SaveOptions) -> Snapshot:
    """Everything about the state that can fail, before anything is written."""
    return settle(walk(state, metadata), options)


@json_text.collector_paused()
def walk(state: object, metadata: Mapping[str, Any] | None) -> Snapshot:
    """All of :func:`encode` but for :func:`settle`. No payload is read.

    Nothing of the result but the memory of its sources belongs to the caller: what becomes of the
    state's dictionaries and lists afterwards does not show.
    """
    writer = StateWriter()
    # The state stands one level inside the manifest.
    depth = (DEFAULT_LIMITS.depth or 1_000) - 1
    tree = encode_state(state, writer, rules=default_rules(), max_depth=depth)
    sources = writer.sources()
    if exceeds(len(sources), DEFAULT_LIMITS.tensors):
        raise LimitError(
            f"{len(sources)} tensors; readers accept at most {DEFAULT_LIMITS.tensors}",
            hint="Save parts of the state as checkpoints of their own.",
        )
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Snapshot(new_save_id(), now, tree, _plain(metadata), sources, ())


def settle(contents: Snapshot, options: SaveOptions) -> Snapshot:
    """The same with the plan of each record.

    It is no part of :func:`walk`, for a save in the background has the time that the training has
    not.

    Raises:
        LimitError: too many chunks.
    """
    coder = ChunkCodec(level=options.level)
    plans = []
    for position, source in enumerate(contents.sources):
        check_name(source.name, DEFAULT_LIMITS)
        codec = _codec(source, options, worthwhile=True)
        if codec.compression != "none" and not _sample_compresses(coder, source, codec):
            codec = _codec(source, options, worthwhile=False)
        plans.append(plan.RecordPlan(position, codec, source.nbytes))
    settled = replace(contents, plans=plans)
    if exceeds(settled.chunks, DEFAULT_LIMITS.chunks):
        raise LimitError(
            f"{settled.chunks} chunks; readers accept at most {DEFAULT_LIMITS.chunks}",
            hint=_fewer(len(plans), settled.chunks, options.chunk_bytes),
        )
    return settled


def _codec(source: Source, options: SaveOptions, *, worthwhile: bool) -> Codec:
    return plan.choose_codec(
        source,
        encoding=options.encoding,
        compression=options.compression,
        filter=options.filter,
        chunk_bytes=options.chunk_bytes,
        worthwhile=worthwhile,
    )


def _sample_compresses(coder: ChunkCodec, source: Source, codec: Codec) -> bool:
    # From the middle: the edges of a tensor (padding rows, zeros) say little of the rest.
    size = min(source.nbytes, _SAMPLE_BYTES)
    unit = 16  # a multiple of every item size
    start = (source.nbytes - size) // 2 // unit * unit
    size -= size % DTYPES[source.dtype].itemsize
    return coder.compresses(source.read(start, start + size), codec, source.dtype)


def _plain(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    if metadata is not None and not isinstance(metadata, Mapping):
        raise ArgumentError(
            f"metadata must be a dictionary, not {quote(type(metadata).__name__)}",
            hint="Pass plain JSON: metadata={'run': 3}.",
        )
    value = dict(metadata or {})
    try:
        json_text.require_json(value, "metadata")
    except JsonckptError as error:
        raise ArgumentError(str(error)) from error
    return copy.deepcopy(value)


def head_text(contents: Snapshot, options: SaveOptions, *, single: bool) -> bytes:
    if not single:
        return shard_head(contents.save_id, options.checksum)
    text = json_text.dump
    head = shard_head(
        contents.save_id,
        options.checksum,
        {
            "created_at": text(contents.created_at),
            "created_by": text(created_by()),
            "totals": text({"tensors": len(contents.sources), "bytes": contents.nbytes}),
            "metadata": json_text.dump_pretty(contents.metadata),
            "state": json_text.dump_pretty(contents.state),
        },
    )
    hint = _smaller(len(head), len(head), [source.name for source in contents.sources])
    _check_length("the state beside its tensors", head, hint)
    return head


def check_index(contents: Snapshot, text: bytes) -> None:
    """Whether a reader takes the index of a single file, which it needs before anything else.

    Raises:
        LimitError: it does not.
    """
    widest = max((plan.codec.chunk_bytes for plan in contents.plans), default=0)
    hint = _fewer(len(contents.plans), contents.chunks, widest)
    _check_length("the index of the file", text, hint)


def _fewer(tensors: int, chunks: int, chunk_bytes: int) -> str:
    """The way out where there are too many records or chunks: whichever there are too many of."""
    if chunks > 2 * tensors and not exceeds(2 * chunk_bytes, DEFAULT_LIMITS.chunk_bytes):
        return "Pass a larger chunk_size."
    return (
        f"There are {tensors} tensors: join small ones (torch.stack, torch.cat), or save parts of "
        "the state as checkpoints of their own."
    )


def _smaller(
    text: int, state: int, tensors: Sequence[str], chunks: int = 0, chunk_bytes: int = 0
) -> str:
    """The way out where a text with the state in it is too long: whatever it is mostly made of."""
    places = sum(len(name) + _PLACE for name in tensors)
    if 2 * (state - places) > text:
        return "Put large data into tensors or NumPy arrays."
    return _fewer(len(tensors), chunks, chunk_bytes)


def check_text(contents: Snapshot, options: SaveOptions, head: int, stored: int) -> None:
    """Whether a reader takes so much text from a compressed single file, and so many marks.

    To be called before the commit, as :func:`check_expansion`.

    Args:
        head: bytes of text before the first record.
        stored: bytes of the file.

    Raises:
        LimitError: it does not; what was there before stays.
    """
    limits = DEFAULT_LIMITS.for_text(stored)
    # No text has more marks than bytes. To be made once more, the state must be long.
    if exceeds(head, limits.marks) or exceeds(head, limits.manifest_bytes):
        text = head_text(contents, options, single=True)
        what = f"what stands beside the tensors, compressed to {stored} bytes,"
        _check_length(what, text, "Save without .zst, or as a directory.", limits)


def _check_length(what: str, text: bytes, hint: str, limits: Limits | None = None) -> None:
    """Whether a reader takes so much text, and so many marks in it, at once."""
    limits = limits or DEFAULT_LIMITS
    if exceeds(len(text), limits.manifest_bytes):
        raise LimitError(
            f"{what} takes {len(text)} bytes; readers accept at most {limits.manifest_bytes}",
            hint=hint,
        )
    if len(text) < (limits.marks or 0):
        return
    marks = json_text.marks_of(text)
    if exceeds(marks, limits.marks):
        raise LimitError(
            f"the state and the tensors take {marks} brackets and strings of JSON; readers accept "
            f"at most {limits.marks}",
            hint=hint,
        )


def created_by() -> str:
    """This program and its version."""
    return f"jsonckpt {__version__}"


def shards_of(
    contents: Snapshot, options: SaveOptions, *, single: bool
) -> Iterator[tuple[int, str, Sequence[plan.RecordPlan]]]:
    """Number, file name and records of each shard."""
    if single:
        yield 0, "", contents.plans
        return
    estimates = [plan.text_estimate(p, contents.sources[p.source].dtype) for p in contents.plans]
    wanted = plan.lane_size(estimates, options.threads, options.max_shard_size)
    assigned = plan.assign_shards(estimates, wanted)
    if exceeds(len(assigned), DEFAULT_LIMITS.shards):
        raise LimitError(
            f"{len(assigned)} shards; readers accept at most {DEFAULT_LIMITS.shards}",
            hint="Pass a larger max_shard_size.",
        )
    for number, members in enumerate(assigned):
        name = filenames.shard_name(contents.save_id, number + 1, compressed=options.zips_files)
        yield number, name, [contents.plans[member] for member in members]


def check_expansion(contents: Snapshot, stored: int) -> None:
    """Whether a reader believes that so many bytes hold the tensors.

    To be called before the commit: only when all is written its size is known.

    Args:
        stored: bytes of the files that hold records.

    Raises:
        LimitError: it does not; what was there before stays.
    """
    limit = DEFAULT_LIMITS.total_bytes(stored)
    nbytes = claimed_bytes((source.nbytes, source.layout) for source in contents.sources)
    if exceeds(nbytes, limit):
        raise LimitError(
            f"{nbytes} bytes of tensors were compressed to {stored} bytes; readers accept "
            f"at most {limit} of so few",
            hint="Pass compression=None; the previous checkpoint, if any, is untouched.",
        )
    most = DEFAULT_LIMITS.most_chunks(stored)
    if exceeds(contents.chunks, most):
        way = "compression=None"
        if contents.chunks > len(contents.sources):
            way = f"a larger chunk_size, or {way}"
        raise LimitError(
            f"{contents.chunks} chunks were compressed to {stored} bytes; readers accept at most "
            f"{most} in so few",
            hint=f"Pass {way}; the previous checkpoint, if any, is untouched.",
        )


def manifest_of(
    contents: Snapshot, options: SaveOptions, shards: Sequence[ShardFile], entries: Sequence[Entry]
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


@json_text.collector_paused()
def dumped(manifest: Manifest) -> bytes:
    text = dump_manifest(manifest)
    if len(text) < min(DEFAULT_LIMITS.manifest_bytes or 0, DEFAULT_LIMITS.marks or 0):
        return text
    entries = manifest.entries
    widest = max((entry.codec.chunk_bytes for entry in entries), default=0)
    hint = _smaller(
        len(text),
        len(json_text.dump(manifest.state)),
        [entry.name for entry in entries],
        sum(len(entry.chunks) for entry in entries),
        widest,
    )
    _check_length("the manifest", text, hint)
    return text
