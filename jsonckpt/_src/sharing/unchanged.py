"""Which records of a save an earlier checkpoint has, in shards that the save can use again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..errors import ArgumentError, JsonckptError, WriteError, quote
from ..format.checksums import hexdigest
from ..format.filenames import is_sibling
from ..format.limits import DEFAULT_LIMITS
from ..format.manifest import parse_manifest
from ..format.model import Codec, Entry, Manifest, ShardFile
from ..parallel import CancelToken, run_all
from ..storage import commit
from ..storage.local import LocalLocation
from ..storage.lock import DirectoryLock
from ..storage.os_errors import describe, writing
from ..storage.protocols import RawSource
from .holders import mark
from .whole_shard import check_shard


class Record(Protocol):
    """A tensor to be saved, and its codec."""

    @property
    def source(self) -> RawSource: ...
    @property
    def codec(self) -> Codec: ...


@dataclass(frozen=True)
class Reuse:
    """What a save takes from an earlier checkpoint.

    Attributes:
        rows: shards that it names again, each as seen from the directory of the save.
        entries: the records in them, in order; ``Entry.shard`` is the position in ``rows``.
        names: of these records.
        apart: names of unchanged records that lie in a shard with changed ones. They are written
            once more, in shards without changed ones.
        notes: why nothing, or not all, is used again.
    """

    rows: tuple[ShardFile, ...] = ()
    entries: tuple[Entry, ...] = ()
    names: frozenset[str] = frozenset()
    apart: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


NOTHING = Reuse()


def check_beside(old: Path, new: Path) -> None:
    """Check that two checkpoint directories lie beside each other.

    Raises:
        ArgumentError: they do not, or are one.
    """
    one, other = os.path.realpath(old), os.path.realpath(new)
    if one == other:
        raise ArgumentError(
            "unchanged_from is the checkpoint that this save replaces",
            hint="Save each step into a directory of its own, and pass that of the step before.",
        )
    if os.path.dirname(one) != os.path.dirname(other):
        raise ArgumentError(
            f"unchanged_from is not in {quote(os.path.dirname(other), 200)}, beside the new "
            "checkpoint",
            hint="Steps that share tensors are directories beside each other, in the run's one.",
        )
    if not is_sibling(f"../{os.path.basename(one)}"):
        raise ArgumentError(
            f"the name {quote(os.path.basename(one), 200)} of unchanged_from cannot stand in a "
            "manifest",
            hint="Use at most 100 characters, without control characters and \\.",
        )


class EarlierCheckpoint:
    """An earlier checkpoint beside a new one. Its shards stay while this is in use.

    Args:
        path: of its directory.
        directory: the directory that is saved to.
    """

    def __init__(self, path: Path, directory: Path, stack: ExitStack, *, sync: bool) -> None:
        self._path = Path(os.path.realpath(path))
        # As a reader of the new manifest sees it, and before that directory exists.
        self._parent = self._path.parent
        self._directory = Path(os.path.realpath(directory))
        self._stack = stack
        self._sync = sync
        self._locked: dict[str, bool] = {}
        self._kept: list[Path] = []

    def reuse(
        self, records: Sequence[Record], checksum: str, *, threads: int, cancel: CancelToken
    ) -> Reuse:
        """What a save of ``records`` can take from it.

        A record is unchanged if dtype, shape, layout, device, codec and the checksums of all chunks
        are the same. The checksums of the new one are computed from its values. A shard is used
        again if all its records are unchanged, and its file has the size and the text that the
        manifest says.
        """
        try:
            manifest = self._manifest(checksum)
        except (JsonckptError, OSError) as error:
            return Reuse(notes=(f"nothing of unchanged_from is used again: {_reason(error)}",))
        unchanged = unchanged_names(records, manifest, threads=threads, cancel=cancel)
        by_shard: dict[int, list[Entry]] = {}
        for entry in manifest.entries:
            by_shard.setdefault(entry.shard, []).append(entry)
        usable = [
            (self._row(manifest, number), entries)
            for number, entries in sorted(by_shard.items())
            if all(entry.name in unchanged for entry in entries)
        ]
        kept: list[tuple[ShardFile, list[Entry]]] = []
        notes: list[str] = []
        for row, entries in usable:
            cancel.check()
            try:
                self._keep(row, entries)
            except (JsonckptError, OSError) as error:
                notes.append(f"{row.path} is written again, not used: {_reason(error)}")
            else:
                kept.append((row, entries))
        self._make_durable()
        taken = [
            replace(entry, shard=number)
            for number, (_, entries) in enumerate(kept)
            for entry in entries
        ]
        names = frozenset(entry.name for entry in taken)
        return Reuse(
            tuple(row for row, _ in kept), tuple(taken), names, unchanged - names, tuple(notes)
        )

    def check_still_there(self) -> None:
        """Check, right before the commit, that nobody has removed what is used again.

        Raises:
            WriteError: somebody has.
        """
        for path in self._kept:
            with writing(path):
                there = path.is_file()
            if not there:
                raise WriteError(
                    "a shard of unchanged_from was removed during the save",
                    file=path,
                    hint="Save again. The previous checkpoint, if any, is untouched.",
                )

    def _manifest(self, checksum: str) -> Manifest:
        self._lock(self._path.name)
        text = LocalLocation(self._path).manifest(DEFAULT_LIMITS.manifest_bytes)
        manifest = parse_manifest(text, DEFAULT_LIMITS)
        if not manifest.sealed:
            raise JsonckptError("its manifest was edited by hand: its seal is null")
        if manifest.checksum != checksum:
            raise JsonckptError(f"its checksums are {manifest.checksum}, not {checksum}")
        return manifest

    def _row(self, manifest: Manifest, number: int) -> ShardFile:
        """A row of its manifest, as the new manifest has it."""
        row = manifest.shards[number]
        directory = row.directory or f"../{self._path.name}"
        return replace(row, save_id=row.save_id or manifest.save_id, directory=directory)

    def _keep(self, row: ShardFile, entries: list[Entry]) -> None:
        """Keep a shard from being removed, and check it. Raises if that is not possible."""
        mark(self._lock(row.directory.removeprefix("../")), sync=self._sync)
        # Seen from the earlier directory: the new one may not exist yet.
        location = LocalLocation(self._path)
        check_shard(location, row, entries, zstd_window=DEFAULT_LIMITS.zstd_window)
        self._kept.append(self._parent / row.directory.removeprefix("../") / row.file)

    def _lock(self, name: str) -> Path:
        """Lock a directory beside the new one, once. Raises if that is not possible."""
        directory = self._parent / name
        if os.path.realpath(directory) == os.fspath(self._directory):
            # Of a save that this one replaces: its shards go with it.
            raise JsonckptError("it lies in the directory that this save replaces")
        if name not in self._locked:
            lock = DirectoryLock(directory, shared=True)
            self._stack.callback(lock.release)
            self._locked[name] = lock.take()
        if not self._locked[name]:
            raise JsonckptError("another process is removing files there")
        return directory

    def _make_durable(self) -> None:
        """The save that wrote a shard may have been one without fsyncs."""
        if not self._sync:
            return
        for path in self._kept:
            commit.fsync_file(path)
        for directory in {path.parent for path in self._kept}:
            commit.fsync_directory(directory)


@contextmanager
def earlier_checkpoint(path: Path, directory: Path, *, sync: bool) -> Iterator[EarlierCheckpoint]:
    """An earlier checkpoint, whose shards stay where they are until the end of the block."""
    with ExitStack() as stack:
        yield EarlierCheckpoint(path, directory, stack, sync=sync)


def unchanged_names(
    records: Sequence[Record], manifest: Manifest, *, threads: int, cancel: CancelToken
) -> frozenset[str]:
    """The names of the records that a checkpoint has already: same bytes, same codec."""
    found: list[str] = []
    pairs = []
    for record in records:
        entry = manifest.by_name.get(record.source.name)
        if entry is not None and _facts(record) == _facts_of(entry):
            pairs.append((record, entry))
    # Large ones first, so that the threads end at about the same time.
    pairs.sort(key=lambda pair: -pair[1].nbytes)

    def compare(pair: tuple[Record, Entry]) -> None:
        record, entry = pair
        for chunk, (_, _, checksum) in enumerate(entry.chunks):
            cancel.check()
            start, stop = entry.raw_range(chunk)
            if hexdigest(manifest.checksum, record.source.read(start, stop)) != checksum:
                return
        found.append(entry.name)

    run_all(pairs, compare, threads=threads)
    return frozenset(found)


def _facts(record: Record) -> tuple[Any, ...]:
    source = record.source
    return source.dtype, tuple(source.shape), source.device, source.layout, record.codec


def _facts_of(entry: Entry) -> tuple[Any, ...]:
    return entry.dtype, entry.shape, entry.device, entry.layout, entry.codec


def _reason(error: JsonckptError | OSError) -> str:
    return error.message if isinstance(error, JsonckptError) else describe(error)
