"""Finds out what lies at a path and what it says about itself, before any payload is read.

A checkpoint is opened as a :class:`Container`: its manifest (from ``manifest.json``, or gathered from a single
file) and the means to read records from it, indexed or streaming.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jsonckpt import jsontext
from jsonckpt.errors import (
    CheckpointNotFoundError,
    FormatError,
    IncompleteCheckpointError,
    IntegrityError,
    JsonckptError,
    LimitError,
    quote,
)
from jsonckpt.grammar import TRAILER_MAX, index_offset
from jsonckpt.indexed import PartSink, RangeReader, must_agree, read_part, read_shard
from jsonckpt.limits import Limits, exceeds
from jsonckpt.manifest import (
    MANIFEST_NAME,
    Entry,
    Manifest,
    Problems,
    check_layout,
    check_totals,
    parse_manifest,
    text_member,
)
from jsonckpt.skeleton import Header, Record, SkeletonReader
from jsonckpt.storage import LocalPlace
from jsonckpt.streaming import ByteSource, Sink, read_records

__all__ = [
    "Container",
    "Place",
    "gather",
    "locate",
    "manifest_of_head",
    "open_container",
    "parse_head",
]


class _OpenFile(RangeReader, AbstractContextManager["RangeReader"], Protocol):
    pass


class _OpenStream(ByteSource, AbstractContextManager["ByteSource"], Protocol):
    pass


class Place(Protocol):
    """Where the files of a checkpoint lie: a local directory, or a remote one."""

    def manifest(self, limit: int | None) -> bytes: ...
    def where(self, name: str) -> str: ...
    def file(self, name: str) -> Any: ...
    def stream(self, name: str, *, zstd_window: int | None) -> Any: ...


@dataclass(frozen=True)
class Container:
    """An opened checkpoint.

    ``single`` is the name of the one file of a single-file checkpoint, else ``None``.
    """

    place: Place
    manifest: Manifest
    single: str | None
    path: str

    def file_of(self, shard: int) -> str:
        """The name of the file that holds a shard."""
        return self.single if self.single is not None else self.manifest.shards[shard].file

    def shards(self) -> Iterator[tuple[int, Sequence[Entry]]]:
        """Each shard with its entries."""
        by_shard: dict[int, list[Entry]] = {}
        for entry in self.manifest.entries:
            by_shard.setdefault(entry.shard, []).append(entry)
        count = 1 if self.single is not None else len(self.manifest.shards)
        for shard in range(count):
            yield shard, by_shard.get(shard, [])

    def read(
        self,
        shard: int,
        entries: Sequence[Entry],
        sinks: Mapping[str, Sink],
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
            sinks: by record name. When every record has one, the whole file is read and checked.
            streaming: read forward although ranges are known.

        Raises:
            JsonckptError: with file, tensor and chunk.
        """
        name = self.file_of(shard)
        wanted = [entry for entry in entries if entry.name in sinks]
        whole = len(wanted) == len(entries)
        if not wanted and not whole:
            return
        if streaming or name.endswith(".zst"):
            self._read_forward(shard, entries, sinks, limits, verify, progress)
            return
        try:
            with self.place.file(name) as file:
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
        """Read the raw bytes ``[start, stop)`` of one tensor into ``sink``, which begins at ``start``.

        Raises:
            JsonckptError: with file, tensor and chunk.
        """
        name = self.file_of(entry.shard)
        if name.endswith(".zst"):
            entries = [e for e in self.manifest.entries if e.shard == entry.shard]
            sinks = {entry.name: PartSink(sink, start, stop)}
            self.read(entry.shard, entries, sinks, limits=limits, threads=1, verify=verify)
            return
        try:
            with self.place.file(name) as file:
                self._check_text(entry.shard, file.size)
                read_part(
                    file, entry, start, stop, sink, algorithm=self.manifest.checksum,
                    limits=limits, verify=verify,
                )  # fmt: skip
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
        if self.single is not None:
            return
        expected = self.manifest.shards[shard].text_bytes
        if found < expected:
            raise IncompleteCheckpointError(
                f"the text has {found} bytes, the manifest says {expected}",
                hint="It was cut off; take another copy.",
            )
        if found > expected:
            raise FormatError(f"the text has {found} bytes, the manifest says {expected}")

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
        sinks: Mapping[str, Sink],
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
        readers: list[SkeletonReader] = []

        def on_head(reader: SkeletonReader) -> None:
            readers.append(reader)
            self._check_head(reader.head)

        try:
            expected = iter(entries)
            with self.place.stream(name, zstd_window=limits.zstd_window) as stream:
                for record, _ in read_records(
                    stream,
                    limits=limits,
                    open_sink=open_sink,
                    on_head=on_head,
                    algorithm=self.manifest.checksum,
                    verify=verify,
                ):
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


def open_container(
    path: str | os.PathLike[str],
    *,
    limits: Limits,
    storage_options: Mapping[str, Any] | None = None,
) -> Container:
    """Open what lies at ``path``.

    Raises:
        CheckpointNotFoundError: nothing is there.
        JsonckptError: what is there is no whole checkpoint.
    """
    place, name = locate(path, storage_options)
    try:
        if name is None:
            manifest = parse_manifest(place.manifest(limits.manifest_bytes), limits)
            return Container(place, manifest, None, os.fspath(path))
        if name.endswith(".zst"):
            with place.stream(name, zstd_window=limits.zstd_window) as stream:
                return Container(place, gather(stream, limits), name, os.fspath(path))
        with place.file(name) as file:
            return Container(place, _from_index(file, limits), name, os.fspath(path))
    except JsonckptError as error:
        error.at(file=place.where(name or MANIFEST_NAME))
        raise


def locate(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None
) -> tuple[Place, str | None]:
    """The place that a path leads to, and the file in it unless the checkpoint is a directory.

    Raises:
        CheckpointNotFoundError: nothing is there.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError("path must be str or os.PathLike[str], or a binary file object")
    if "://" in text:
        from jsonckpt.remote import remote_place

        return remote_place(text, storage_options)
    return _local(Path(text))


def _local(path: Path) -> tuple[LocalPlace, str | None]:
    """The directory, and the name of the file in it when the checkpoint is a single file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(
            "there is no such file or directory", file=path, hint=_neighbours(path)
        ) from error
    except OSError as error:
        raise CheckpointNotFoundError(f"cannot open: {error.strerror}", file=path) from error
    if stat.S_ISDIR(mode):
        return LocalPlace(path), None
    if path.name == MANIFEST_NAME:
        return LocalPlace(path.parent), None
    return LocalPlace(path.parent), path.name


def _neighbours(path: Path) -> str | None:
    """What somebody who mistyped the name may have meant."""
    try:
        found = sorted(p.name for p in path.parent.iterdir() if p.name.endswith((".json", ".zst")))
    except OSError:
        return None
    return f"Beside it there is {', '.join(found[:3])}." if found else None


# --- single files -----------------------------------------------------------------------------


def parse_head(head: Mapping[str, Any]) -> tuple[str, str, dict[str, Any], Any]:
    """``created_at``, ``created_by``, ``metadata`` and ``state`` of a single file's head.

    Raises:
        FormatError: one is missing or wrong.
    """
    if "state" not in head:
        raise FormatError(
            "the file has no member state: it is one shard of a directory",
            hint="Open the directory that holds its manifest.json, or use jsonckpt.stream.",
        )
    problems = Problems()
    created_at = text_member(dict(head), "created_at", problems)
    created_by = text_member(dict(head), "created_by", problems)
    metadata = head.get("metadata", {})
    if not isinstance(metadata, dict):
        problems.add("metadata", "expected an object")
    problems.raise_if_any()
    return created_at, created_by, metadata, head["state"]


def manifest_of_head(
    head: Mapping[str, Any], entries: Sequence[Entry], size: int, limits: Limits
) -> Manifest:
    """What a manifest would say of a single file.

    Raises:
        FormatError, LimitError: the entries break a rule.
    """
    created_at, created_by, metadata, state = parse_head(head)
    problems = Problems()
    check_layout(entries, [size], problems)
    check_totals(entries, size, limits, problems)
    manifest = Manifest(
        head["save_id"], created_at, created_by, head["checksum"], metadata, state, (),
        tuple(entries),
    )  # fmt: skip
    if len(manifest.by_name) != len(entries):
        problems.add("tensors", "a name stands twice")
    totals = head.get("totals")
    expected = {"tensors": len(entries), "bytes": manifest.nbytes}
    if totals != expected:
        problems.add("totals", f"{quote(totals)} does not agree with the records: {expected}")
    problems.raise_if_any()
    return manifest


def entry_of(record: Record, shard: int = 0) -> Entry:
    """A record as a manifest would list it."""
    header = record.header
    return Entry(
        header.name, header.dtype, header.shape, header.device, header.codec, shard,
        record.offset, record.length, record.chunks, header.nbytes,
    )  # fmt: skip


def gather(source: ByteSource, limits: Limits) -> Manifest:
    """Read a single file forward without decoding anything."""
    readers: list[SkeletonReader] = []
    entries = [
        entry_of(record)
        for record, _ in read_records(
            source, limits=limits, open_sink=_pass_over, on_head=readers.append, verify=False
        )
    ]
    reader = readers[0]
    return manifest_of_head(reader.head, entries, reader.position, limits)


def _pass_over(header: Header) -> None:
    """No sink."""


def _from_index(file: RangeReader, limits: Limits) -> Manifest:
    """Read the skeleton of a single file by its index, jumping over the payloads."""
    rows = _index_rows(file, limits)
    entries: list[Entry] = []
    reader = SkeletonReader(
        limits, whole=True, on_record=lambda record: entries.append(entry_of(record))
    )
    position = 0
    for offset, _, payloads in rows:
        if not payloads:
            continue
        stop = payloads[0][0]
        if stop < position:
            raise FormatError(f"index: the record at {offset} overlaps the one before it")
        _push(reader, file, position, stop, limits)
        header = reader.header
        if header is None or header.chunks != len(payloads):
            raise FormatError("index does not say where the records lie")
        between = b"],\n[" if header.codec.encoding == "list" else b'",\n"'
        for number, (start, length) in enumerate(payloads):
            if number:
                # Compared with the file when the payloads are read.
                reader.text(between)
            if reader.position != start:
                raise FormatError("index does not say where the chunks lie", tensor=header.name)
            reader.payload(length)
            position = start + length
    _push(reader, file, position, file.size, limits)
    reader.close()
    return manifest_of_head(reader.head, entries, file.size, limits)


def _push(reader: SkeletonReader, file: RangeReader, start: int, stop: int, limits: Limits) -> None:
    if exceeds(stop - start, limits.manifest_bytes):
        raise LimitError(
            f"{stop - start} bytes of text between two tensors, "
            f"the limit is {limits.manifest_bytes}"
        )
    text = bytearray(stop - start)
    file.read_range(start, memoryview(text))
    reader.text(bytes(text))


def _index_rows(file: RangeReader, limits: Limits) -> list[tuple[int, int, list[tuple[int, int]]]]:
    size = file.size
    tail = bytearray(min(size, TRAILER_MAX))
    file.read_range(size - len(tail), memoryview(tail))
    offset = index_offset(bytes(tail))
    if offset is None:
        raise _no_trailer(file)
    if offset >= size:
        raise FormatError(f"index_offset is {offset}, the file has {size} bytes")
    if exceeds(size - offset, limits.manifest_bytes):
        raise LimitError(f"the index has {size - offset} bytes, over {limits.manifest_bytes}")
    text = bytearray(size - offset)
    file.read_range(offset, memoryview(text))
    stop = text.rfind(b',"seal":')
    rows = jsontext.parse(bytes(text[:stop]), what="the index", max_depth=4)
    checked = []
    for row in rows if isinstance(rows, list) else [None]:
        if not _is_row(row):
            raise FormatError(f"index: {quote(row)} is not [offset, length, [[offset, length], …]]")
        start, length, payloads = row
        if any(o + n > size for o, n in payloads) or start + length > size:
            raise FormatError(f"index: {quote(row)} leaves the file of {size} bytes")
        checked.append((start, length, [(o, n) for o, n in payloads]))
    return checked


def _is_row(row: object) -> bool:
    if not (isinstance(row, list) and len(row) == 3 and isinstance(row[2], list)):
        return False
    numbers = [row[0], row[1]]
    for payload in row[2]:
        if not (isinstance(payload, list) and len(payload) == 2):
            return False
        numbers += payload
    return all(type(number) is int and number >= 0 for number in numbers)


def _no_trailer(file: RangeReader) -> JsonckptError:
    """Tell a cut-off checkpoint from a file that never was one."""
    start = bytearray(min(file.size, 200))
    file.read_range(0, memoryview(start))
    if b"jsonckpt.shard" in start:
        return IncompleteCheckpointError(
            f"the file of {file.size} bytes does not end in its seal and index_offset",
            hint="It was cut off or changed; take another copy.",
        )
    if b"jsonckpt.manifest" in start:
        return FormatError(
            "this is a manifest", hint="Open the directory that it lies in, under manifest.json."
        )
    return FormatError(
        f"this is no jsonckpt checkpoint (it begins with {quote(bytes(start[:24]))})",
        hint="python -m jsonckpt.convert turns .pt, .safetensors and other JSON into one.",
    )
