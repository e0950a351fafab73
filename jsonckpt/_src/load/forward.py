"""Reading forward only, into tensors: pipes, compressed files, ``stream``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..errors import ArgumentError, LimitError
from ..format.checksums import check_seal
from ..format.limits import Copies, Limits, exceeds, way_over
from ..format.manifest import manifest_of_head, parse_head
from ..format.model import Header
from ..format.record_parser import Record
from ..format.shard_parser import ShardParser
from ..linux import widen_pipe
from ..storage.protocols import ByteSource, Sink
from ..tensors.buffers import Target
from .container import Container
from .record_stream import read_records
from .restore import LoadOptions, SharedStorage, StateBuilder, StorageOffset, allocate_target
from .single_file import entry_of


class Forward:
    """Reading forward only: allocates as headers come, and keeps what has been read.

    Args:
        whole: all tensors are kept to the end, so those of one storage may share its memory.
    """

    def __init__(
        self,
        options: LoadOptions,
        limits: Limits,
        verify: bool,
        expected_digest: str | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self._whole = whole
        self._storages: dict[int, int] = {}
        self._rooms: dict[int, SharedStorage] = {}
        self._expected_digest = expected_digest
        self.options = options
        self.loading: StateBuilder | None = None
        self._limits = limits
        self._verify = verify
        self._copies = Copies(limits)
        self._targets: dict[str, Target] = {}
        self._size: int | None = None
        self._claimed = 0

    def tensors(self, source: ByteSource) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of a single file or of a lone shard, let go one by one."""
        for record in self.records(source, alone=True):
            yield from self.close(record, keep=False)

    def container(self, container: Container) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of an opened checkpoint, let go one by one."""
        if container.single is None:  # the claims of a single file have been checked with its size
            self._size = sum(shard.bytes for shard in container.manifest.shards)
        self._copies = container.copies(self._limits)
        self.loading = StateBuilder(container.manifest.state, self.options, self._copies)
        self.loading.check(container.manifest.by_name)
        self.loading.check_selectors()
        for shard, entries in container.shards():
            container.check_files([shard], self._copies)
            for record in container.forward(
                shard,
                entries,
                open_sink=self.open_sink,
                limits=self._limits,
                verify=self._verify,
            ):
                yield from self.close(record, keep=False)

    def records(self, source: ByteSource, *, alone: bool = False) -> Iterator[Record]:
        """The records of a single file; of a lone shard, too, if ``alone``.

        When it ends without an error, the file has passed every check that the indexed reader
        makes.
        """
        readers: list[ShardParser] = []

        def on_head(reader: ShardParser) -> None:
            readers.append(reader)
            self._size = source.size
            if "state" in reader.head or not alone:
                self.loading = StateBuilder(parse_head(reader.head)[3], self.options, self._copies)
                self.loading.check_selectors()

        entries = []
        for record, sink in read_records(
            source,
            limits=self._limits,
            open_sink=self.open_sink,
            on_head=on_head,
            verify=self._verify,
            alone=True,
        ):
            del sink  # the caller's alone
            self._copies.on_disk = source.size or readers[0].position
            entries.append(entry_of(record))
            yield record
        check_seal(readers[0].seal, self._expected_digest)
        if self.loading is not None:
            reader = readers[0]
            manifest = manifest_of_head(
                reader.head, entries, reader.position, self._limits, on_disk=source.size
            )
            self.loading.check(manifest.by_name)
            for room in self._rooms.values():
                room.clear_gaps()
        else:  # a lone shard does not say beforehand what is in it
            self.options.check([entry.name for entry in entries])

    def open_sink(self, header: Header) -> Sink | None:
        """Memory for the next record, where it is wanted.

        Raises:
            LimitError: all records so far claim more than a file of this size may hold.
        """
        storage = header.layout.storage
        if storage is None:
            self._claimed += header.nbytes
        else:
            self._claimed += storage[2] - self._storages.get(storage[0], 0)
            self._storages[storage[0]] = storage[2]
        # Of a pipe nobody knows the size beforehand. The system gives memory only when it is
        # written to, so what a false size can take is what really comes; the sum is checked at
        # the end.
        size = self._size
        if size is not None and exceeds(self._claimed, self._limits.total_bytes(size)):
            raise LimitError(
                f"{self._claimed} bytes of tensors in a file of {size} bytes",
                tensor=header.name,
                hint=way_over("total_floor"),
            )
        if self.loading is not None:
            wanted = self.loading.wants(header.name)
        else:
            wanted = self.options.chosen(header.name)
        if not wanted:
            return None
        target = allocate_target(
            self.options,
            header.name,
            header.dtype,
            header.shape,
            header.device,
            header.layout.stride,
            self._place(header),
        )
        self._targets[header.name] = target
        return target if target.needs_data else None

    def _place(self, header: Header) -> StorageOffset | None:
        """Where a record of a storage goes, if it shares memory with the others."""
        loading, placement = self.loading, self.options.placement
        if header.layout.storage is None or not self._whole or placement.relocates:
            return None
        if loading is None or not loading.wants_all:
            return None  # of what comes later nobody knows whether it is wanted
        number, offset, size = header.layout.storage
        device = placement.device_for(header.device)
        if number not in self._rooms:
            self._rooms[number] = SharedStorage(self.options, device, 0, size)
        room = self._rooms[number]
        return room.place(offset, header.nbytes) if room.device == device else None

    def close(self, record: Record, *, keep: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """A record has been read and checked: its tensors, under their names.

        Args:
            keep: hold on to them for :meth:`Loading.finish`.
        """
        target = self._targets.pop(record.header.name, None)
        if target is None:
            return
        tensor = self.options.placement.relocate(target.finish(), record.header.device)
        if self.loading is None:
            yield record.header.name, tensor
        else:
            yield from self.loading.done(record.header.name, tensor, keep=keep)


def is_file_object(source: object) -> bool:
    """Whether a source is to be read as it is, not opened by name."""
    return hasattr(source, "readinto") or hasattr(source, "read")


class _ReadSource:
    """A source that only has ``read``."""

    size = None

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._began = False

    def readinto(self, buffer: memoryview, /) -> int:
        data = self._stream.read(len(buffer))
        if not isinstance(data, bytes):
            raise ArgumentError(
                "path is a file object for text, and a checkpoint is read as bytes: the file "
                "object must be binary",
                hint='Open it with "rb", or pass its .buffer.',
            )
        if not (data or self._began):
            _refuse_end(self._stream)
        self._began = True
        buffer[: len(data)] = data
        return len(data)


class _RawSource:
    """A source with ``readinto``.

    A buffered reader would wait until the whole buffer is full; ``readinto1`` gives what has come,
    so that decoding begins while the other side still writes.
    """

    size = None

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._began = False
        self._readinto = getattr(stream, "readinto1", stream.readinto)
        widen_pipe(stream)

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._readinto(buffer) or 0
        if not (count or self._began):
            _refuse_end(self._stream)
        self._began = True
        return count


def _refuse_end(stream: Any) -> None:
    """Say of a file object that gives nothing that it stands at its end, if it does."""
    try:
        at = stream.tell()
    except (AttributeError, OSError, ValueError):  # a pipe that was closed at once
        return
    if at:
        raise ArgumentError(
            f"path is a file object at its end: nothing lies behind its position {at}",
            hint="Call seek(0) on it first.",
        )


def as_source(stream: Any) -> ByteSource:
    """A binary file object as a source of bytes.

    Raises:
        ArgumentError: it is closed.
    """
    if getattr(stream, "closed", False) is True:
        raise ArgumentError("path is a file object that is closed", hint="Open it again.")
    return _RawSource(stream) if hasattr(stream, "readinto") else _ReadSource(stream)
