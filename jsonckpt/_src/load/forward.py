"""Reads forward only, into tensors: pipes, compressed files, ``stream``."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..boxes import Box
from ..errors import LimitError
from ..format.checksums import check_seal
from ..format.limits import Copies, Limits, exceeds, way_over
from ..format.manifest import manifest_of_head, parse_head
from ..format.model import Header
from ..format.regions import PREFIX, Regions, parse_region_name
from ..progress import progress_bar
from ..shards.record_parser import Record
from ..storage.protocols import ByteSource, Sink
from ..tensors.buffers import Target, byte_count
from .allocation import SharedStorage, StorageOffset, allocate_target, read_tensor
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
        #: Tensors in regions whose records have not all come, by name.
        self._open: dict[str, _OpenRegions] = {}
        #: Records whose tensor is read by other means.
        self._elsewhere: Collection[str] = ()
        #: Whether the caller keeps all tensors to the end. Only then may they share storages.
        self._keeps_all = False
        self._storages: dict[int, SharedStorage] = {}
        self._storage_sizes: dict[int, int] = {}
        self._claimed = self._claimed_whole = 0
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
                for name, tensor in self._finished(record):
                    self._builder.keep(name, tensor)
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
        # Their parts are spread over files: read forward, all of them would be in memory at once.
        later = [
            whole
            for name, whole in container.manifest.wholes.items()
            if self._builder.wants(name) and all(shard.is_ranged for shard in container.shards())
        ]
        self._elsewhere = {entry.name for whole in later for entry in whole.entries}
        for shard in container.shards():
            shard.check_file(self._builder.copies)
            for record in shard.records(self._open_sink):
                yield from self._named_tensors(record)
        for whole in later:
            target = allocate_target(self._selection, whole)
            if target.needs_data:
                read_tensor(container, whole, target)
            tensor = self._selection.placement.relocate(target.finish(), whole.device)
            del target
            yield from self._builder.tensors_of(whole.name, tensor)

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
        self._builder.check(manifest.tensors)
        for storage in self._storages.values():
            storage.clear_gaps()

    def _open_sink(self, header: Header) -> Sink | None:
        """Memory for the next record, if it is wanted.

        Raises:
            LimitError: the records so far claim more than a file of this size may hold.
        """
        self._count(header)
        if header.name in self._elsewhere:
            return None
        if self._builder is not None and header.name.startswith(PREFIX):
            return self._region_sink(header, self._builder)
        wants = self._selection.chosen if self._builder is None else self._builder.wants
        if not wants(header.name):
            return None
        target = allocate_target(self._selection, header, self._shared_memory(header))
        self._targets[header.name] = target
        return target if target.needs_data else None

    def _region_sink(self, header: Header, builder: StateBuilder) -> Sink | None:
        """Memory for the next record, a region of a tensor."""
        regions = builder.regions_of(header.name)
        if regions is None:
            return None
        offset, name = parse_region_name(header.name)
        regions.check_part(offset, header)
        if name not in self._open:
            nbytes = byte_count(regions.dtype, regions.shape)
            self._claimed_whole += nbytes
            if self._size is not None:
                check_claim(self._claimed_whole, self._size, self._options.limits, name)
            whole = Header(name, regions.dtype, regions.shape, regions.device, header.codec, nbytes)
            target = allocate_target(self._selection, whole)
            self._open[name] = _OpenRegions(regions, target)
        opened = self._open[name]
        opened.boxes.append((offset, header.shape))
        return opened.target.part(offset, header.shape) if opened.target.needs_data else None

    def _count(self, header: Header) -> None:
        storage = header.layout.storage
        if storage is None:
            self._claimed += header.nbytes
        else:
            self._claimed += storage[2] - self._storage_sizes.get(storage[0], 0)
            self._storage_sizes[storage[0]] = storage[2]
        # The size of a pipe is unknown. The system provides memory only when it is written to, so a
        # false claim costs no more than the data that really comes. The sum is checked at the end.
        if self._size is not None:
            check_claim(self._claimed, self._size, self._options.limits, header.name)

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

    def _finished(self, record: Record) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensor that a record completes, under its name."""
        name, device = record.header.name, record.header.device
        target = self._targets.pop(name, None)
        if target is None and self._open and name.startswith(PREFIX):
            name = parse_region_name(name)[1]
            opened = self._open.get(name)
            if opened is not None and len(opened.boxes) == len(opened.regions.offsets):
                opened.regions.check_tiled(opened.boxes)
                del self._open[name]
                target, device = opened.target, opened.regions.device
        if target is not None:
            yield name, self._selection.placement.relocate(target.finish(), device)

    def _named_tensors(self, record: Record) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._finished(record):
            if self._builder is None:
                yield name, tensor
            else:
                yield from self._builder.tensors_of(name, tensor)


@dataclass
class _OpenRegions:
    """A tensor some of whose regions have been read: their offsets and shapes."""

    regions: Regions
    target: Target
    boxes: list[Box] = field(default_factory=list)


def check_claim(nbytes: int, size: int, limits: Limits, tensor: str) -> None:
    """Check that a file may hold so many bytes of tensors.

    Raises:
        LimitError: no file of ``size`` bytes may.
    """
    if exceeds(nbytes, limits.total_bytes(size)):
        raise LimitError(
            f"{nbytes} bytes of tensors in a file of {size} bytes",
            tensor=tensor,
            hint=way_over("total_floor"),
        )
