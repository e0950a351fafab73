"""Finds out what lies at a path and what it says about itself, before any payload is read.

A checkpoint is opened as a :class:`Container`: its manifest (from ``manifest.json``, or gathered
from a single file) and the means to read records from it, indexed or streaming.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import (
    CUT_OFF,
    FormatError,
    IncompleteCheckpointError,
    IntegrityError,
    JsonckptError,
    quote,
)
from ..format.checksums import check_expected, check_manifest_digest, check_pinned
from ..format.limits import Copies, Limits
from ..format.manifest import parse_manifest
from ..format.model import MANIFEST_NAME, Entry, Header, Manifest
from ..format.record_parser import Record
from ..format.shard_parser import ShardParser
from ..storage.locate import locate
from ..storage.path_arguments import without_query
from ..storage.protocols import Location, Sink
from .indexed import PartSink, check_chunk, must_agree, read_part, read_shard
from .record_stream import read_records
from .single_file import from_index, gather

_Found = TypeVar("_Found")
#: How often a checkpoint is read anew that a save replaces while it is read.
RETRIES = 3


@dataclass(frozen=True)
class Container:
    """An opened checkpoint.

    ``single`` is the name of the one file of a single-file checkpoint, else ``None``. ``stamp`` is
    the place's mark of the file that says what there is, from before it was read.
    """

    place: Location
    manifest: Manifest
    single: str | None
    path: str
    version_tag: object = None
    #: Bytes on disk of the manifest, or of the single file.
    first_bytes: int = 0

    def copies(self, limits: Limits) -> Copies:
        """Counts what a load makes beside the records; grows with the files that are checked."""
        return Copies(limits, self.first_bytes)

    def was_replaced(self) -> bool:
        """Whether a save has put another checkpoint here since this one was opened."""
        name = self.single if self.single is not None else MANIFEST_NAME
        return self.version_tag is not None and self.place.version_tag(name) != self.version_tag

    def check_same(self) -> None:
        """Whether a single file that was opened just now is the one that the manifest is of.

        Raises:
            IncompleteCheckpointError: another was put in its place.
        """
        if self.single is not None and self.was_replaced():
            raise IncompleteCheckpointError(
                "another file was put in the place of this one",
                hint="The checkpoint was overwritten since it was opened; open it again.",
            )

    def explain(self, error: JsonckptError) -> None:
        """Say in an error that the checkpoint was overwritten, where that is why."""
        if self.was_replaced():
            error.hint = "The checkpoint was overwritten since it was opened; open it again."

    def file_of(self, shard: int) -> str:
        """The name of the file that holds a shard."""
        return self.single if self.single is not None else self.manifest.shards[shard].file

    def forward_only(self, shard: int) -> bool:
        """Whether a shard can be read from its beginning only: compressed, or not by ranges."""
        name = self.file_of(shard)
        return name.endswith(".zst") or not self.place.ranged(name)

    def shards(self) -> Iterator[tuple[int, Sequence[Entry]]]:
        """Each shard with its entries."""
        by_shard: dict[int, list[Entry]] = {}
        for entry in self.manifest.entries:
            by_shard.setdefault(entry.shard, []).append(entry)
        count = 1 if self.single is not None else len(self.manifest.shards)
        for shard in range(count):
            yield shard, by_shard.get(shard, [])

    def check_files(self, shards: Iterable[int], copies: Copies | None = None) -> None:
        """Whether shards are there and have the size on disk that the manifest says.

        To be called before memory is allocated: the limit on it rests on these sizes.

        Args:
            copies: its limit grows by them.

        Raises:
            IncompleteCheckpointError, FormatError, UnsafePathError: one is not.
        """
        if self.single is not None:
            return
        for shard in dict.fromkeys(shards):
            said = self.manifest.shards[shard]
            try:
                with self.place.file(said.file) as file:
                    _check_size("file", file.size, said.bytes)
            except JsonckptError as error:
                error.at(file=self.place.where(said.file))
                raise
            if copies is not None:
                copies.found(said.file, said.bytes)

    def read(
        self,
        shard: int,
        entries: Sequence[Entry],
        sinks: Mapping[str, Sink | None],
        *,
        limits: Limits,
        threads: int,
        verify: bool = True,
        streaming: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Read the records of one shard that have a sink.

        Args:
            entries: all entries of the shard.
            sinks: by record name; ``None`` for a record whose text is checked but not decoded. When
                every record has one or the other, the whole file is read and checked.
            streaming: read forward although ranges are known.

        Raises:
            JsonckptError: with file, tensor and chunk.
        """
        name = self.file_of(shard)
        wanted = [entry for entry in entries if entry.name in sinks]
        whole = len(wanted) == len(entries)
        if not wanted and not whole:
            return
        if streaming or self.forward_only(shard):
            self._read_forward(shard, entries, sinks, limits, verify, progress)
            return
        try:
            with self.place.file(name) as file:
                self.check_same()
                self._check_text(shard, file.size)
                seal = read_shard(
                    file,
                    wanted,
                    [sinks.get(entry.name) for entry in wanted],
                    algorithm=self.manifest.checksum,
                    limits=limits,
                    threads=threads,
                    whole=whole,
                    verify=verify,
                    on_head=lambda reader: self._check_head(reader.head),
                    progress=progress,
                    head_digest=self.manifest.head_digest,
                )
            if whole:
                self._check_seal(shard, seal)
        except JsonckptError as error:
            error.at(file=self.place.where(name))
            raise

    def read_part(
        self,
        entry: Entry,
        start: int,
        stop: int,
        sink: Sink,
        *,
        limits: Limits,
        verify: bool = True,
    ) -> None:
        """Read the raw bytes ``[start, stop)`` of one tensor into ``sink``, which begins there.

        Raises:
            JsonckptError: with file, tensor and chunk.
        """
        name = self.file_of(entry.shard)
        if self.forward_only(entry.shard):
            entries = [e for e in self.manifest.entries if e.shard == entry.shard]
            sinks = {entry.name: PartSink(sink, start, stop)}
            self.read(entry.shard, entries, sinks, limits=limits, threads=1, verify=verify)
            return
        try:
            with self.place.file(name) as file:
                self.check_same()
                self._check_text(entry.shard, file.size)
                read_part(
                    file,
                    entry,
                    start,
                    stop,
                    sink,
                    algorithm=self.manifest.checksum,
                    limits=limits,
                    verify=verify,
                )
        except JsonckptError as error:
            error.at(file=self.place.where(name))
            raise

    def read_chunk(self, entry: Entry, chunk: int, *, limits: Limits) -> None:
        """Check one payload of a plain file by itself, without the text around it.

        Raises:
            JsonckptError: with file, tensor and chunk; without a tensor when the file ends before.
        """
        name = self.file_of(entry.shard)
        try:
            with self.place.file(name) as file:
                check_chunk(file, entry, chunk, algorithm=self.manifest.checksum, limits=limits)
        except JsonckptError as error:
            error.at(file=self.place.where(name))
            raise

    def _check_seal(self, shard: int, found: str) -> None:
        if self.single is None and found != self.manifest.shards[shard].seal:
            raise IntegrityError(
                f"the manifest says seal {quote(self.manifest.shards[shard].seal)}, "
                f"the file has {quote(found)}",
                hint="Manifest and shard do not belong together.",
            )

    def _check_text(self, shard: int, found: int) -> None:
        if self.single is None:
            _check_size("text", found, self.manifest.shards[shard].text_bytes)

    def _check_head(self, head: Mapping[str, Any]) -> None:
        if head.get("save_id") != self.manifest.save_id:
            raise FormatError(
                f"the file belongs to the save {quote(head.get('save_id'))}, "
                f"the manifest to {quote(self.manifest.save_id)}",
                hint="Files of two checkpoints were mixed up; take another copy.",
            )

    def _read_forward(
        self,
        shard: int,
        entries: Sequence[Entry],
        sinks: Mapping[str, Sink | None],
        limits: Limits,
        verify: bool,
        progress: Callable[[int], None] | None,
    ) -> None:
        for record in self.forward(
            shard,
            entries,
            open_sink=lambda header: sinks.get(header.name),
            limits=limits,
            verify=verify,
        ):
            if progress is not None and record.header.name in sinks:
                progress(record.header.nbytes)

    def forward(
        self,
        shard: int,
        entries: Sequence[Entry],
        *,
        open_sink: Callable[[Header], Sink | None],
        limits: Limits,
        verify: bool,
    ) -> Iterator[Record]:
        """The records of one shard, read forward and compared with the manifest as they come.

        Raises:
            JsonckptError: with file, tensor and chunk.
        """
        name = self.file_of(shard)
        readers: list[ShardParser] = []

        def on_head(reader: ShardParser) -> None:
            readers.append(reader)
            self._check_head(reader.head)

        try:
            expected = iter(entries)
            with self.place.stream(name, zstd_window=limits.zstd_window) as stream:
                self.check_same()
                for record, sink in read_records(
                    stream,
                    limits=limits,
                    open_sink=open_sink,
                    on_head=on_head,
                    algorithm=self.manifest.checksum,
                    verify=verify,
                ):
                    del sink  # the caller's alone
                    must_agree(record, next(expected, None))
                    yield record
            missing = next(expected, None)
            if missing is not None:
                raise FormatError(
                    "the manifest names a tensor that the shard lacks", tensor=missing.name
                )
            self._check_seal(shard, readers[0].seal)
            self._check_text(shard, readers[0].position)
        except JsonckptError as error:
            error.at(file=self.place.where(name))
            raise


def _check_size(what: str, found: int, expected: int) -> None:
    if found < expected:
        raise IncompleteCheckpointError(
            f"the {what} has {found} bytes, the manifest says {expected}",
            hint=CUT_OFF,
        )
    if found > expected:
        raise FormatError(
            f"the {what} has {found} bytes, the manifest says {expected}",
            hint="Manifest and shard do not belong together; take another copy.",
        )


def open_container(
    path: str | os.PathLike[str],
    *,
    limits: Limits,
    storage_options: Mapping[str, Any] | None = None,
    expected_digest: str | None = None,
) -> Container:
    """Open what lies at ``path``.

    Args:
        expected_digest: the ``SaveResult.digest`` that it must have.

    Raises:
        CheckpointNotFoundError: nothing is there.
        IntegrityError: it is not what ``expected_digest`` pins.
        JsonckptError: what is there is no whole checkpoint.
    """
    check_expected(expected_digest)
    place, name = locate(path, storage_options, follow=limits.follow)
    version_tag = place.version_tag(name or MANIFEST_NAME)
    try:
        if name is None:
            text = place.manifest(limits.manifest_bytes)
            size = len(text)
            check_manifest_digest(text, expected_digest)
            manifest = parse_manifest(text, limits)
            check_pinned(manifest.checksum, expected_digest)
        elif name.endswith(".zst") or not place.ranged(name):
            with place.stream(name, zstd_window=limits.zstd_window) as stream:
                size = stream.size or 0
                manifest = gather(stream, limits, expected_digest=expected_digest)
        else:
            with place.file(name) as file:
                size = file.size
                manifest = from_index(file, limits, expected_digest=expected_digest)
        return Container(place, manifest, name, without_query(os.fspath(path)), version_tag, size)
    except JsonckptError as error:
        error.at(file=place.where(name or MANIFEST_NAME))
        raise


def read_steadily(
    path: str | os.PathLike[str],
    read: Callable[[Container], _Found],
    *,
    limits: Limits,
    storage_options: Mapping[str, Any] | None = None,
    expected_digest: str | None = None,
    may_retry: Callable[[], bool] = lambda: True,
) -> _Found:
    """Open what lies at ``path`` and read it; anew when a save has replaced it meanwhile.

    A save removes the shards of the checkpoint that it replaces, so that a reader that is under
    way may miss them. What is returned comes from one checkpoint, the old or the new one.

    Args:
        read: reads from the container.
        may_retry: asked after an error, whether ``read`` may be called once more.

    Raises:
        JsonckptError: as ``read`` and :func:`open_container`, and when the checkpoint was replaced
            for the fourth time in a row.
    """
    for left in range(RETRIES, -1, -1):
        container = open_container(
            path, limits=limits, storage_options=storage_options, expected_digest=expected_digest
        )
        try:
            return read(container)
        except JsonckptError as error:
            if not container.was_replaced():
                raise
            if not left:
                error.hint = f"It was overwritten {RETRIES + 1} times while it was read."
                raise
            if not may_retry():
                container.explain(error)
                raise
    raise AssertionError("unreachable")
