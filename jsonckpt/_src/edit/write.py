"""Writes the result of an edit as a checkpoint, through the writer and the commit of a save."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, StateMismatchError, quote
from ..format.filenames import is_single
from ..format.json_text import Json
from ..format.model import PLAIN, Layout
from ..parallel import CancelToken, thread_count
from ..save import reader_limits
from ..save.local_targets import local_target
from ..save.options import SaveOptions
from ..save.plan import RecordPlan, SavePlan
from ..save.snapshot import Snapshot, new_save_id
from ..save.write import SaveResult, write_checkpoint
from ..storage.new_file import shared_bits
from ..storage.path_arguments import is_url, path_text
from ..storage.protocols import RawSource
from .records import Opened, StoredRecord


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How an edit writes.

    Attributes:
        overwrite: whether a checkpoint at the path is replaced.
        single_file: one file, whatever the name; ``None``: its ending decides.
    """

    overwrite: bool = False
    threads: int | None = None
    sync: bool = True
    single_file: bool | None = None


def local(path: str | os.PathLike[str], argument: str) -> str:
    """The text of a path that is written.

    Raises:
        ArgumentError: it is a URL.
    """
    text = path_text(path, argument)
    if is_url(text):
        raise ArgumentError(
            f"{argument} is a URL, and edits write local files only",
            hint="Write here, then copy the checkpoint.",
        )
    return text


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A checkpoint to be written.

    Attributes:
        inputs: the checkpoints that its records come from.
        records: in the order in which they are written.
        plans: how those are written that are not copied.
        save_id, created_at: ``""`` gives new ones.
    """

    inputs: Sequence[Opened]
    state: Json
    metadata: dict[str, Any]
    records: Sequence[StoredRecord]
    plans: dict[str, RecordPlan]
    save_id: str = ""
    created_at: str = ""


def now() -> str:
    """The time, as a checkpoint says it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_out(out: str, options: WriteOptions) -> None:
    """Check that a checkpoint may be written at a path, before any work.

    Raises:
        CheckpointExistsError: something is there.
        ArgumentError: it is no name for a checkpoint.
    """
    given = SaveOptions(overwrite=options.overwrite, single_file=options.single_file)
    local_target(Path(out), given, out).check()


def write_draft(draft: Draft, out: str, options: WriteOptions) -> SaveResult:
    """Write a checkpoint, atomically.

    Raises:
        CheckpointExistsError: something is at ``out``.
        IncompleteCheckpointError: an input was changed meanwhile; nothing was written.
        LimitError: readers would refuse the result.
        WriteError: the system refused.
    """
    began = time.perf_counter()
    first = draft.inputs[0]
    # The new files may be read by those who can read all of the old ones.
    shared = 0o077
    for opened in draft.inputs:
        if not is_url(opened.path):
            shared &= shared_bits(opened.local_path())
            for shard in opened.container.manifest.shards:
                if shard.directory:
                    shared &= shared_bits(opened.local_path() / shard.path)
    compresses = not is_single(out) and all(opened.compresses_files for opened in draft.inputs)
    save_options = SaveOptions(
        encoding="list" if compresses else "base64",
        compression="zstd" if compresses else "none",
        checksum=first.manifest.checksum,
        overwrite=options.overwrite,
        threads=thread_count(options.threads),
        sync=options.sync,
        shared=shared,
        single_file=options.single_file,
    )
    planned = [
        draft.plans.get(record.name) or record.plan(save_options.checksum)
        for record in draft.records
    ]
    for one in planned:
        reader_limits.check_tensor_name(one.source.name)
    reader_limits.check_tensor_count(len(planned))
    sources: list[RawSource] = [one.source for one in planned]
    snapshot = Snapshot(
        draft.save_id or new_save_id(),
        draft.created_at or now(),
        draft.state,
        draft.metadata,
        sources,  # type: ignore[arg-type]
    )
    target = local_target(Path(out), save_options, out)
    target.check()

    def before_commit() -> None:
        for opened in draft.inputs:
            opened.check_unchanged()

    plan = SavePlan(snapshot, save_options, planned)
    return write_checkpoint(plan, target, CancelToken(), began, before_commit=before_commit)


def whole_storages(records: Sequence[StoredRecord], inputs: Sequence[Opened]) -> None:
    """Number the storages of the records anew, and give up those that are no longer whole.

    A reader counts a storage in full, so a part of one must not name it.
    """
    sizes: dict[tuple[int, int], int] = {}
    for position, opened in enumerate(inputs):
        for entry in opened.records:
            if entry.layout.storage is not None:
                key = position, entry.layout.storage[0]
                sizes[key] = sizes.get(key, 0) + 1
    position_of = {id(opened): position for position, opened in enumerate(inputs)}
    members: dict[tuple[int, int], list[StoredRecord]] = {}
    for record in records:
        storage = record.entry.layout.storage
        if storage is not None:
            members.setdefault((position_of[id(record.opened)], storage[0]), []).append(record)
    for number, (key, group) in enumerate(members.items()):
        for record in group:
            stride, storage = record.entry.layout.stride, record.entry.layout.storage
            if len(group) == sizes[key] and storage is not None:
                record.layout = Layout(stride, (number, storage[1], storage[2]))
            else:
                record.layout = PLAIN if stride is None else Layout(stride)


def unique_names(names: Sequence[tuple[str, str]]) -> None:
    """Check that no two records get one name.

    Args:
        names: the new name of each record, and where it comes from.

    Raises:
        StateMismatchError: two do; it names both.
    """
    seen: dict[str, str] = {}
    for name, origin in names:
        if name in seen:
            raise StateMismatchError(
                f"{quote(seen[name], 200)} and {quote(origin, 200)} would both have the tensor "
                f"{quote(name, 200)}",
                hint="Nothing was written.",
            )
        seen[name] = origin
