"""An opened checkpoint: its manifest, and the readers of its records.

Opening reads no payload. A :class:`Container` has a manifest, from ``manifest.json`` or from the
text of a single file, and a :class:`Shard` for each file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from ..boxes import chunks_of_box, common_box, row_boxes, with_a_dimension
from ..errors import (
    CUT_OFF,
    FormatError,
    IncompleteCheckpointError,
    IntegrityError,
    JsonckptError,
    as_shard,
    quote,
)
from ..format.checksums import check_manifest_digest, check_pinned
from ..format.dtypes import DTYPES
from ..format.limits import Copies
from ..format.manifest import parse_manifest
from ..format.model import MANIFEST_NAME, Entry, Header, Manifest, Stored, Whole
from ..shards.record_parser import Record
from ..storage.locate import locate
from ..storage.path_arguments import without_query
from ..storage.protocols import Location, RangeReader, Sink
from .any_layout import AnyLayoutReader, ForwardRanges, open_again
from .indexed import ExpectedRecords, IndexedReader
from .options import ReadOptions
from .record_stream import RecordStream
from .single_file import check_text_is_unchanged, from_index, gather
from .sinks import PartSink, RegionSink

_Result = TypeVar("_Result")
#: How often a checkpoint is read again if a save replaced it during the read.
RETRIES = 3
_REPLACED = "The checkpoint was overwritten since it was opened; open it again."


@dataclass(frozen=True)
class Container:
    """An opened checkpoint.

    Attributes:
        single: the file name of a single-file checkpoint, else ``None``.
        path: for messages.
        version_tag: of the first file, taken before it was read.
        first_bytes: size on disk of that file: the manifest, or the single file.
        any_layout: a single file that was edited or that a JSON tool wrote again.
    """

    location: Location
    manifest: Manifest
    single: str | None
    path: str
    options: ReadOptions
    version_tag: object = None
    first_bytes: int = 0
    any_layout: bool = False

    def copies(self) -> Copies:
        """A counter of the memory that a load allocates beside the records."""
        return Copies(self.options.limits, self.first_bytes)

    def was_replaced(self) -> bool:
        """Whether a save has put another checkpoint here since this one was opened."""
        name = self.single if self.single is not None else MANIFEST_NAME
        return self.version_tag is not None and self.location.version_tag(name) != self.version_tag

    def check_same(self) -> None:
        """Check that a single file that was just opened is the one that the manifest describes.

        Raises:
            IncompleteCheckpointError: another file has replaced it.
        """
        if self.single is not None and self.was_replaced():
            raise IncompleteCheckpointError("another file has replaced this one", hint=_REPLACED)

    @contextmanager
    def errors(self, tensor: str | None = None) -> Iterator[None]:
        """Add the path to errors. If the checkpoint was overwritten, say so."""
        try:
            yield
        except JsonckptError as error:
            error.at(file=self.path, tensor=tensor)
            if self.was_replaced():
                error.hint = _REPLACED
            raise

    def shard_of(self, entry: Entry) -> Shard:
        """The shard that holds a record."""
        return Shard(self, entry.shard)

    def shards(self) -> Iterator[Shard]:
        """Each shard with its entries."""
        by_shard: dict[int, list[Entry]] = {}
        for entry in self.manifest.entries:
            by_shard.setdefault(entry.shard, []).append(entry)
        count = 1 if self.single is not None else len(self.manifest.shards)
        for number in range(count):
            yield Shard(self, number, by_shard.get(number, []))

    def read_range(self, stored: Stored, start: int, stop: int, sink: Sink) -> None:
        """Read the row-major bytes ``[start, stop)`` of a tensor into ``sink``, which begins there.

        Only the chunks that hold them are read, where the file has ranges.
        """
        if not isinstance(stored, Whole):
            self.shard_of(stored).read_part(stored, start, stop, sink)
            return
        itemsize = DTYPES[stored.dtype].itemsize
        shape = with_a_dimension(stored.shape, (), ())[0]
        boxes = [ranges for ranges, _ in row_boxes(shape, start // itemsize, stop // itemsize)]
        for part in stored.parts:
            entry = part.entry
            _, offset, size = with_a_dimension(stored.shape, part.offset, entry.shape)
            elements = entry.codec.chunk_bytes // itemsize
            chunks: set[int] = set()
            for ranges in boxes:
                if (common := common_box(ranges, offset, size)) is not None:
                    inside = [low - begin for low, begin in zip(common[0], offset)]
                    chunks.update(chunks_of_box(size, elements, inside, common[1]))
            if chunks:
                region = RegionSink(PartSink(sink, start, stop), stored, part)
                self.shard_of(entry).read_chunks(entry, sorted(chunks), region)

    def check_files(self, shards: Iterable[int], copies: Copies | None = None) -> None:
        """Check that shards exist and have the sizes from the manifest.

        Call it before memory is allocated: the limit on memory depends on these sizes.

        Args:
            copies: its limit grows with them.

        Raises:
            IncompleteCheckpointError, FormatError, UnsafePathError: a shard fails the check.
        """
        if self.single is None:
            for number in dict.fromkeys(shards):
                Shard(self, number).check_file(copies)


class Shard:
    """One file of a container.

    Errors of its methods name the file, the tensor and the chunk.

    Args:
        entries: the records in it, by offset, if the caller has them.
    """

    def __init__(
        self, container: Container, number: int, entries: Sequence[Entry] | None = None
    ) -> None:
        self._container = container
        self._number = number
        if container.single is not None:
            self._stated, self.name = None, container.single
        else:
            self._stated = container.manifest.shards[number]
            self.name = self._stated.path
        self.path = container.location.where(self.name)
        if entries is not None:
            self.entries = entries

    @cached_property
    def entries(self) -> Sequence[Entry]:
        """The records in it, by offset."""
        return [e for e in self._container.manifest.entries if e.shard == self._number]

    @property
    def is_ranged(self) -> bool:
        """Whether ranges of its text can be read: not compressed, and allowed by its server."""
        return not self.name.endswith(".zst") and self._container.location.ranged(self.name)

    def check_file(self, copies: Copies | None = None) -> None:
        """As :meth:`Container.check_files`."""
        if self._stated is None:
            return
        with self._errors(), self._container.location.file(self.name) as file:
            self._check_size(file, self._stated.bytes)
        if copies is not None:
            copies.found(self.name, self._stated.bytes)

    def read(
        self,
        sinks: Mapping[str, Sink | None],
        advance: Callable[[int], None] | None = None,
        *,
        forward_only: bool = False,
    ) -> None:
        """Read the records that have a sink.

        Args:
            sinks: by record name; ``None`` for a record whose text is checked but not decoded. The
                whole file is read and checked when every record is named.
            advance: called with the number of raw bytes that are done.
            forward_only: read forward even if ranges are known.
        """
        wanted = [entry for entry in self.entries if entry.name in sinks]
        whole = len(wanted) == len(self.entries)
        if not wanted and not whole:
            return
        if forward_only or self._container.options.forward_only or not self.is_ranged:
            for record in self.records(lambda header: sinks.get(header.name)):
                if advance is not None and record.header.name in sinks:
                    advance(record.header.nbytes)
            return
        if self._container.any_layout:
            with self._any_layout() as reader:
                reader.read(wanted, sinks, advance)
            return
        with self._errors(), self._container.location.file(self.name) as file:
            seal = self._indexed(file).read(
                wanted,
                [sinks[entry.name] for entry in wanted],
                whole=whole,
                on_head=self._check_head,
                advance=advance,
                head_digest=self._container.manifest.head_digest,
            )
            if whole:
                self._check_seal(seal)

    def read_part(self, entry: Entry, start: int, stop: int, sink: Sink) -> None:
        """Read the raw bytes ``[start, stop)`` of one tensor into ``sink``, which begins there."""
        size = entry.codec.chunk_bytes
        self.read_chunks(entry, range(start // size, -(-stop // size)), PartSink(sink, start, stop))

    def read_chunks(self, entry: Entry, chunks: Sequence[int], sink: Sink) -> None:
        """Read some chunks of one tensor, whose numbers ascend. ``sink`` is that of the tensor.

        It may get others, too, where the file can only be read forward.
        """
        if not self.is_ranged:
            self.read({entry.name: sink})
            return
        if self._container.any_layout:
            with self._any_layout() as reader:
                reader.read_chunks(entry, chunks, sink)
            return
        with self._errors(), self._container.location.file(self.name) as file:
            self._indexed(file).read_chunks(entry, chunks, sink)

    def check_chunk(self, entry: Entry, chunk: int) -> None:
        """Check one payload of a plain file, without the text around it.

        The error names no tensor if the file ends before the payload.
        """
        container = self._container
        if container.any_layout:
            with self._any_layout() as loose:
                loose.check_chunk(entry, chunk)
            return
        with self._errors(), container.location.file(self.name) as file:
            reader = IndexedReader(file, container.manifest.checksum, container.options)
            reader.check_chunk(entry, chunk)

    def records(self, open_sink: Callable[[Header], Sink | None]) -> Iterator[Record]:
        """The records, read forward. Each is compared with the manifest."""
        container = self._container
        if container.any_layout:
            with self._any_layout(forward=True) as reader:
                yield from reader.records(self.entries, open_sink)
            return
        window = container.options.limits.zstd_window
        expected = ExpectedRecords(self.entries)
        with self._errors():
            with container.location.stream(self.name, zstd_window=window) as source:
                container.check_same()
                stream = RecordStream(
                    source, container.options, algorithm=container.manifest.checksum
                )
                self._check_head(stream.read_head())
                for record in stream.records(open_sink):
                    expected.check(record)
                    yield record
            expected.check_end()
            self._check_seal(stream.parser.seal)
            self._check_text(stream.parser.position)

    @contextmanager
    def _any_layout(self, *, forward: bool = False) -> Iterator[AnyLayoutReader]:
        """A reader of a file that was edited or written again."""
        container = self._container
        options, algorithm = container.options, container.manifest.checksum
        window = options.limits.zstd_window
        with self._errors():
            if forward:
                with container.location.stream(self.name, zstd_window=window) as source:
                    container.check_same()
                    yield AnyLayoutReader(ForwardRanges(source), algorithm, options, forward=True)
            else:
                with container.location.file(self.name) as file:
                    container.check_same()
                    yield AnyLayoutReader(file, algorithm, options, forward=False)

    def _indexed(self, file: RangeReader) -> IndexedReader:
        self._container.check_same()
        if self._stated is not None:
            self._check_size(file, self._stated.text_bytes)
        return IndexedReader(file, self._container.manifest.checksum, self._container.options)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except JsonckptError as error:
            if self._stated is not None:
                error = as_shard(error)
                if self._stated.directory:
                    error = _of_another_directory(error, self._stated.directory)
            raise error.at(file=self.path) from error.__cause__

    def _check_size(self, file: RangeReader, expected: int) -> None:
        """Check the size of a shard. If it differs, say why where that is certain."""
        if file.size != expected:
            if not self.name.endswith(".zst"):
                check_text_is_unchanged(file)
            _check_size("file", file.size, expected)

    def _check_seal(self, found: str) -> None:
        if self._stated is not None and found != self._stated.seal:
            raise IntegrityError(
                f"the manifest says seal {quote(self._stated.seal)}, the file has {quote(found)}",
                hint="Manifest and shard do not belong together.",
            )

    def _check_text(self, found: int) -> None:
        if self._stated is not None:
            _check_size("text", found, self._stated.text_bytes)

    def _check_head(self, head: Mapping[str, Any]) -> None:
        save_id = self._container.manifest.save_id
        if self._stated is not None and self._stated.save_id:
            save_id = self._stated.save_id
        if head.get("save_id") != save_id:
            raise FormatError(
                f"the file belongs to the save {quote(head.get('save_id'))}, "
                f"the manifest to {quote(save_id)}",
                hint="Files of two checkpoints were mixed; take another copy.",
            )


def _of_another_directory(error: JsonckptError, directory: str) -> JsonckptError:
    """An error with a shard that lies in another directory. If it is missing, say which one."""
    if isinstance(error, IncompleteCheckpointError):
        error.hint = (
            f"This checkpoint shares this file with {quote(directory)}, which must lie beside it: "
            "put that directory back, or take another copy."
        )
    return error


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


def open_container(path: str | os.PathLike[str], options: ReadOptions) -> Container:
    """Open what is at ``path``.

    Raises:
        CheckpointNotFoundError: nothing is there.
        IntegrityError: it is not what ``options.expected_digest`` pins.
        JsonckptError: it is not a whole checkpoint.
    """
    limits, digest = options.limits, options.expected_digest
    location, name = locate(path, options.storage_options, follow=limits.follow)
    version_tag = location.version_tag(name or MANIFEST_NAME)
    any_layout = False
    try:
        if name is None:
            text = location.manifest(limits.manifest_bytes)
            size = len(text)
            check_manifest_digest(text, digest)
            manifest = parse_manifest(text, limits)
            check_pinned(manifest.checksum, digest)
        else:
            try:
                manifest, size = _open_single(location, name, options)
            except JsonckptError as error:
                manifest, size = open_again(location, name, options, error)
                any_layout = True
    except JsonckptError as error:
        error.at(file=location.where(name or MANIFEST_NAME))
        raise
    shown = without_query(os.fspath(path))
    return Container(location, manifest, name, shown, options, version_tag, size, any_layout)


def _open_single(location: Location, name: str, options: ReadOptions) -> tuple[Manifest, int]:
    """The manifest of a single file, and its size on disk."""
    if name.endswith(".zst") or not location.ranged(name):
        with location.stream(name, zstd_window=options.limits.zstd_window) as stream:
            return gather(stream, options), stream.size or 0
    with location.file(name) as file:
        return from_index(file, options), file.size


def read_consistent(
    path: str | os.PathLike[str],
    options: ReadOptions,
    read: Callable[[Container], _Result],
    *,
    may_retry: Callable[[], bool] = lambda: True,
) -> _Result:
    """Open what is at ``path`` and read it. Start again if a save replaces it during the read.

    A save removes the shards of the checkpoint that it replaces, so a reader may not find them. The
    result comes from one checkpoint, either the old or the new one.

    Args:
        may_retry: whether ``read`` may be called once more after an error.

    Raises:
        JsonckptError: from ``read`` or :func:`open_container`; or the checkpoint was replaced for
            the fourth time in a row.
    """
    for left in range(RETRIES, -1, -1):
        container = open_container(path, options)
        try:
            return read(container)
        except JsonckptError as error:
            if not container.was_replaced():
                raise
            if not left:
                error.hint = f"It was overwritten {RETRIES + 1} times while it was read."
            if not left or not may_retry():
                raise
    raise AssertionError("unreachable")
