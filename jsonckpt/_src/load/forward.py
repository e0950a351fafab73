"""Reads forward only, into tensors: pipes, compressed files, ``stream``."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import torch

from ..errors import ArgumentError, JsonckptError, LimitError, quote
from ..format.checksums import check_seal
from ..format.limits import Copies, exceeds, way_over
from ..format.manifest import manifest_of_head, parse_head
from ..format.model import Header
from ..linux import widen_pipe
from ..progress import progress_bar
from ..shards.record_parser import Record
from ..storage.file_objects import check_file_object, wrong_direction
from ..storage.os_errors import describe
from ..storage.protocols import ByteSource, Sink
from ..tensors.buffers import Target
from .allocation import SharedStorage, StorageOffset, allocate_target
from .container import Container
from .options import ReadOptions
from .record_stream import RecordStream
from .restore import StateBuilder
from .selection import TensorSelection
from .single_file import entry_of


class ForwardReader:
    """Reads tensors forward only. Memory is allocated as headers come."""

    def __init__(self, selection: TensorSelection, options: ReadOptions) -> None:
        self._selection = selection
        self._options = options
        self._copies = Copies(options.limits)
        self._builder: StateBuilder | None = None
        self._targets: dict[str, Target] = {}
        #: Whether the caller keeps all tensors to the end. Only then may they share storages.
        self._keeps_all = False
        self._storages: dict[int, SharedStorage] = {}
        self._storage_sizes: dict[int, int] = {}
        self._claimed = 0
        #: Bytes on disk, if they are known.
        self._size: int | None = None

    def again(self) -> ForwardReader:
        """A reader with the same arguments that has read nothing."""
        return ForwardReader(self._selection, self._options)

    def load(self, source: ByteSource) -> Any:
        """The state of a single file."""
        self._keeps_all = True
        with progress_bar("load", None, show=self._options.progress) as advance:
            for record in self._records(source, alone=False):
                assert self._builder is not None
                tensor = self._tensor_of(record)
                if tensor is not None:
                    self._builder.keep(record.header.name, tensor)
                if advance is not None:
                    advance(record.header.nbytes)
        assert self._builder is not None
        return self._builder.finish()

    def tensors(self, source: ByteSource) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of a single file or of a lone shard, one by one."""
        for record in self._records(source, alone=True):
            yield from self._named_tensors(record)

    def tensors_in(self, container: Container) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of an opened checkpoint, one by one."""
        if (
            container.single is None
        ):  # opening a single file has checked its size against the limits
            self._size = sum(shard.bytes for shard in container.manifest.shards)
        self._builder = StateBuilder.of(container, self._selection)
        self._builder.check_selectors()
        for shard in container.shards():
            shard.check_file(self._builder.copies)
            for record in shard.records(self._open_sink):
                yield from self._named_tensors(record)

    def _records(self, source: ByteSource, *, alone: bool) -> Iterator[Record]:
        """The records of a single file; also those of a lone shard, if ``alone``.

        If it ends without an error, the file has passed every check of the indexed reader.
        """
        stream = RecordStream(source, self._options, alone=True)
        head = stream.read_head()
        self._size = source.size
        if "state" in head or not alone:
            state = parse_head(head)[3]
            self._builder = StateBuilder(state, self._selection, self._copies)
            self._builder.check_selectors()
        entries = []
        for record in stream.records(self._open_sink):
            self._copies.on_disk = source.size or stream.parser.position
            entries.append(entry_of(record))
            yield record
        check_seal(stream.parser.seal, self._options.expected_digest)
        if self._builder is None:  # what a lone shard holds is known only at its end
            self._selection.check([entry.name for entry in entries])
            return
        size = stream.parser.position
        manifest = manifest_of_head(head, entries, size, self._options.limits, on_disk=source.size)
        self._builder.check(manifest.by_name)
        for storage in self._storages.values():
            storage.clear_gaps()

    def _open_sink(self, header: Header) -> Sink | None:
        """Memory for the next record, if it is wanted.

        Raises:
            LimitError: the records so far claim more than a file of this size may hold.
        """
        self._count(header)
        wants = self._selection.chosen if self._builder is None else self._builder.wants
        if not wants(header.name):
            return None
        target = allocate_target(self._selection, header, self._shared_memory(header))
        self._targets[header.name] = target
        return target if target.needs_data else None

    def _count(self, header: Header) -> None:
        storage = header.layout.storage
        if storage is None:
            self._claimed += header.nbytes
        else:
            self._claimed += storage[2] - self._storage_sizes.get(storage[0], 0)
            self._storage_sizes[storage[0]] = storage[2]
        # The size of a pipe is unknown. The system provides memory only when it is written to, so a
        # false claim costs no more than the data that really comes. The sum is checked at the end.
        size = self._size
        if size is not None and exceeds(self._claimed, self._options.limits.total_bytes(size)):
            raise LimitError(
                f"{self._claimed} bytes of tensors in a file of {size} bytes",
                tensor=header.name,
                hint=way_over("total_floor"),
            )

    def _shared_memory(self, header: Header) -> StorageOffset | None:
        """Memory in a storage that the record shares with others, if it can share."""
        placement = self._selection.placement
        if header.layout.storage is None or not self._keeps_all or placement.relocates:
            return None
        if self._builder is None or not self._builder.wants_all:
            return None  # later records may not be wanted
        number, offset, size = header.layout.storage
        device = placement.device_for(header.device)
        if number not in self._storages:
            self._storages[number] = SharedStorage(self._selection, device, 0, size)
        storage = self._storages[number]
        return storage.take(offset, header.nbytes) if storage.device == device else None

    def _tensor_of(self, record: Record) -> torch.Tensor | None:
        target = self._targets.pop(record.header.name, None)
        if target is None:
            return None
        return self._selection.placement.relocate(target.finish(), record.header.device)

    def _named_tensors(self, record: Record) -> Iterator[tuple[str, torch.Tensor]]:
        tensor = self._tensor_of(record)
        if tensor is None:
            return
        if self._builder is None:
            yield record.header.name, tensor
        else:
            yield from self._builder.tensors_of(record.header.name, tensor)


class FileSource:
    """A binary file object as a source of bytes. Its errors become :class:`JsonckptError`.

    Args:
        argument: the name of the argument that gave it, for messages.

    Raises:
        ArgumentError: it cannot be read, or gives text.
    """

    size = None

    def __init__(self, file: Any, argument: str = "path") -> None:
        check_file_object(file, "rb", argument)
        self._file = file
        self._argument = argument
        self._began = False
        # A buffered reader's readinto waits until the buffer is full. Its readinto1 returns what is
        # there, so decoding begins while the writer still writes.
        self._readinto = getattr(file, "readinto1", getattr(file, "readinto", None))
        if self._readinto is not None:
            widen_pipe(file)

    def readinto(self, buffer: memoryview, /) -> int:
        """See :class:`ByteSource`."""
        try:
            count = self._read(buffer) if self._readinto is None else self._readinto(buffer) or 0
        except (JsonckptError, MemoryError):
            raise
        except io.UnsupportedOperation as error:
            raise wrong_direction("rb") from error
        except Exception as error:  # of whatever stands behind it
            name = getattr(self._file, "name", None)
            raise JsonckptError(
                f"cannot read the file object: {describe(error)}",
                file=name if isinstance(name, str) else None,
                hint="Check what it reads from, and that it is open for reading bytes.",
            ) from error
        if not (count or self._began):
            self._refuse_end()
        self._began = True
        return count

    def _read(self, buffer: memoryview) -> int:
        data = self._file.read(len(buffer))
        if not isinstance(data, bytes):
            raise ArgumentError(
                f"path is a file object whose read() gives {quote(type(data).__name__)}, "
                "expected bytes",
                hint='Open it with "rb".',
            )
        buffer[: len(data)] = data
        return len(data)

    def _refuse_end(self) -> None:
        """Refuse a file object that is at its end."""
        try:
            at = self._file.tell()
        except (AttributeError, OSError, ValueError):  # a pipe that was closed without data
            return
        if at:
            raise ArgumentError(
                f"{self._argument} is a file object at its end: there is nothing after its "
                f"position {at}",
                hint="Call seek(0) on it first.",
            )
