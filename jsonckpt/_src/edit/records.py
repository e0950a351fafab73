"""Records of a checkpoint that is opened, copied to a new one: their payloads stay as they are."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import (
    CUT_OFF,
    DAMAGED,
    FormatError,
    IncompleteCheckpointError,
    JsonckptError,
)
from ..format.checksums import hexdigest
from ..format.chunk_codec import ChunkCodec
from ..format.json_text import Json
from ..format.model import Entry, Layout, Manifest, Stored, Whole
from ..format.regions import plain_state
from ..load.any_layout import ForwardRanges, pieces
from ..load.container import Container, Shard, open_container
from ..load.options import ReadOptions
from ..load.record_stream import checksum_error
from ..load.sinks import MemorySink
from ..save.plan import RecordPlan
from ..shards.any_layout import plain_payload
from ..state.references import references_in
from ..storage.protocols import RangeReader
from ..storage.spool import SpoolFile

_PIECE = 1 << 20
#: A system lets a process open about a thousand files.
_MOST_OPEN = 64
_FULL = "Free some space, or set TMPDIR to a directory with room for the decompressed text."
_CHANGED = "It was changed while it was read: edit it again when nothing writes to it."


class Opened:
    """An opened checkpoint, for reading its records chunk by chunk, from several threads.

    Its files stay open, so that a save that replaces them meanwhile takes nothing away.

    Args:
        stack: closes the files when it ends.
    """

    def __init__(
        self, path: str | os.PathLike[str], options: ReadOptions, stack: ExitStack
    ) -> None:
        self.container: Container = open_container(path, options)
        self.manifest: Manifest = self.container.manifest
        self.path = self.container.path
        self._options = options
        self._stack = stack
        self._files: dict[int, RangeReader] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    @property
    def compresses_files(self) -> bool:
        """Whether whole shards are compressed."""
        return any(shard.file.endswith(".zst") for shard in self.manifest.shards)

    @property
    def is_single(self) -> bool:
        """Whether it is one file."""
        return self.container.single is not None

    @cached_property
    def state(self) -> Json:
        """The state, with each tensor in regions as if it were one record."""
        manifest = self.manifest
        return plain_state(manifest.state) if manifest.wholes else manifest.state

    @cached_property
    def records(self) -> tuple[Stored, ...]:
        """What holds the tensors: the records, those of one tensor put together."""
        owner = {
            entry.name: whole for whole in self.manifest.wholes.values() for entry in whole.entries
        }
        records = (owner.get(entry.name, entry) for entry in self.manifest.entries)
        return tuple({record.name: record for record in records}.values())

    @cached_property
    def by_name(self) -> dict[str, Stored]:
        """The records by name."""
        return {record.name: record for record in self.records}

    @cached_property
    def ties(self) -> dict[str, str]:
        """The record of each tensor that is tied to another place's."""
        state = self.manifest.state
        return {r.name: r.record for r in references_in(state) if r.tag == "$tied"}

    def local_path(self) -> Path:
        """The path of the local directory or file."""
        where = self.container.location.where(self.container.single or "")
        return Path(where)

    def raw(self, entry: Entry, chunk: int) -> bytearray:
        """The raw bytes of a chunk. They match its checksum."""
        with self.container.errors(entry.name):
            try:
                return self._decode(entry, chunk, self._text(entry, chunk))
            except JsonckptError as error:
                raise error.at(chunk=chunk, hint=DAMAGED) from error.__cause__

    def stored(self, entry: Entry, chunk: int, algorithm: str) -> tuple[bytes | bytearray, str]:
        """The payload of a chunk as it is stored, and its checksum.

        It is decoded only if the checksum is of another algorithm.
        """
        with self.container.errors(entry.name):
            try:
                payload = self._text(entry, chunk)
                if b"\n" in payload or (entry.codec.encoding == "base64" and b'"' in payload):
                    raise FormatError("the payload is not on one line", hint=DAMAGED)
                checksum = entry.chunks[chunk][2]
                if algorithm != self.manifest.checksum:
                    checksum = hexdigest(algorithm, self._decode(entry, chunk, payload))
                return payload, checksum
            except JsonckptError as error:
                raise error.at(chunk=chunk) from error.__cause__

    def read(self, entry: Stored, start: int, stop: int) -> memoryview:
        """The raw bytes ``[start, stop)`` of a record, checked chunk by chunk."""
        if isinstance(entry, Whole):
            memory = np.empty(stop - start, np.uint8)
            with self.container.errors(entry.name):
                self.container.read_range(entry, start, stop, MemorySink(memory))
            return memory.data
        size = entry.codec.chunk_bytes
        first, last = start // size, -(-stop // size)
        if last - first == 1:
            at = first * size
            return memoryview(self._cached(entry, first))[start - at : stop - at]
        out = bytearray(stop - start)
        for chunk in range(first, last):
            at, end = entry.raw_range(chunk)
            begin, finish = max(start, at), min(stop, end)
            raw = self._cached(entry, chunk)
            out[begin - start : finish - start] = raw[begin - at : finish - at]
        return memoryview(out)

    def check_unchanged(self) -> None:
        """Check that the checkpoint is still the one that was opened.

        Raises:
            IncompleteCheckpointError: it was replaced or changed.
        """
        if self.container.was_replaced():
            raise IncompleteCheckpointError(
                "another checkpoint has replaced this one during the edit",
                file=self.path,
                hint=_CHANGED,
            )

    def _cached(self, entry: Entry, chunk: int) -> bytearray:
        """The chunk, or the one that this thread decoded last: parts of it are often asked for."""
        key = entry.name, chunk
        if getattr(self._local, "key", None) != key:
            self._local.raw = None  # freed before the next one is made
            self._local.raw = self.raw(entry, chunk)
            self._local.key = key
        raw: bytearray = self._local.raw
        return raw

    def _decode(self, entry: Entry, chunk: int, payload: bytes | bytearray) -> bytearray:
        start, stop = entry.raw_range(chunk)
        out = bytearray(stop - start)
        coder = ChunkCodec(zstd_window=self._options.limits.zstd_window)
        coder.decode_into(memoryview(payload), entry.codec, entry.dtype, memoryview(out))
        found = hexdigest(self.manifest.checksum, out)
        if found != entry.chunks[chunk][2]:
            raise checksum_error(entry.name, chunk, entry.chunks[chunk][2], found)
        return out

    def _text(self, entry: Entry, chunk: int) -> bytes | bytearray:
        """A payload as a writer spells it."""
        offset, length, _ = entry.chunks[chunk]
        with self._file(entry.shard) as file:
            if self.container.any_layout:
                return plain_payload(pieces(file, offset, length), entry, chunk)
            payload = bytearray(length)
            file.read_range(offset, memoryview(payload))
            return payload

    @contextmanager
    def _file(self, number: int) -> Iterator[RangeReader]:
        """A file of the checkpoint. The first ones stay open, others only while this is used."""
        shard = Shard(self.container, number, [])
        if number in self._files or len(self._files) < _MOST_OPEN or not shard.is_ranged:
            yield self._kept(number, shard)
            return
        shard.check_file()
        with self.container.location.file(shard.name) as file:
            yield file

    def _kept(self, number: int, shard: Shard) -> RangeReader:
        with self._lock:
            if number not in self._files:
                shard.check_file()
                location = self.container.location
                if shard.is_ranged:
                    file = self._stack.enter_context(location.file(shard.name))
                else:
                    file = self._stack.enter_context(
                        _CompressedText(self.container, shard.name, self._end_of(number))
                    )
                self.container.check_same()
                self._files[number] = file
            return self._files[number]

    def _end_of(self, number: int) -> int:
        return max(e.offset + e.length for e in self.manifest.entries if e.shard == number)


class _CompressedText:
    """Ranges of a text that can only be read forward.

    Most edits ask for ranges in order. As soon as one does not, the text goes to a temporary file.

    Args:
        end: the end of the last range.
    """

    def __init__(self, container: Container, name: str, end: int) -> None:
        self._container, self._name, self.size = container, name, end
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._at = 0
        self._forward = self._open()
        self._spool: SpoolFile | None = None

    def __enter__(self) -> _CompressedText:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self) -> ForwardRanges:
        window = self._container.options.limits.zstd_window
        stream = self._container.location.stream(self._name, zstd_window=window)
        return ForwardRanges(self._stack.enter_context(stream))

    def read_range(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the text from ``offset`` on."""
        with self._lock:
            if self._spool is None and offset < self._at:
                self._spool_all()
            if self._spool is None:
                self._forward.read_range(offset, buffer)
                self._at = offset + len(buffer)
                return
            if offset + len(buffer) > self._spool.tell():
                raise IncompleteCheckpointError("the text ends too early", hint=CUT_OFF)
            at = 0
            for piece in self._spool.read(offset, len(buffer)):
                buffer[at : at + len(piece)] = piece
                at += len(piece)

    def _spool_all(self) -> None:
        self._stack.close()
        spool = self._stack.enter_context(SpoolFile(Path(tempfile.gettempdir()), _FULL))
        forward, at = self._open(), 0
        while at < self.size:
            piece = memoryview(bytearray(min(_PIECE, self.size - at)))
            forward.read_range(at, piece)
            spool.write(piece)
            at += len(piece)
        self._spool = spool


@dataclass(slots=True)
class StoredRecord:
    """A record of an opened checkpoint, as a source for a save.

    Attributes:
        name, layout: of the new record.
    """

    opened: Opened
    entry: Stored
    name: str
    layout: Layout

    @classmethod
    def of(cls, opened: Opened, entry: Stored) -> StoredRecord:
        """The record as it is."""
        return cls(opened, entry, entry.name, entry.layout)

    @property
    def dtype(self) -> str:
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def nbytes(self) -> int:
        return self.entry.nbytes

    @property
    def device(self) -> str:
        return self.entry.device

    def read(self, start: int, stop: int) -> memoryview:
        """The raw bytes ``[start, stop)``."""
        return self.opened.read(self.entry, start, stop)

    def plan(self, algorithm: str) -> RecordPlan:
        """How it is written: copied, unless a JSON tool may have changed the spelling.

        A tensor in regions becomes one record.
        """
        stored: Callable[[int], Any] | None = None
        entry = self.entry
        if not (self.opened.container.any_layout or isinstance(entry, Whole)):

            def stored(chunk: int) -> tuple[list[bytes | memoryview], str]:
                payload, checksum = self.opened.stored(entry, chunk, algorithm)
                return [memoryview(payload)], checksum

        return RecordPlan(self, self.entry.codec, self.entry.nbytes, stored)
