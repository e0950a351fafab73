"""Memory for the tensors that are read, and how the bytes of their records get there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from ..boxes import chunks_of_box, overlap
from ..errors import LimitError, quote
from ..format.dtypes import DTYPES
from ..format.model import Header, Part, Stored, Whole, entries_of, parts_of
from ..storage.protocols import Sink
from ..tensors.box_sink import BoxSink, check_box
from ..tensors.buffers import Target
from ..tensors.memory import fresh_storage, narrowed, strided
from ..tensors.storages import ALIGNMENT, MAX_SPREAD
from .container import Container, Shard
from .selection import Allocate, TensorSelection

#: A storage, and the byte in it where a tensor begins.
StorageOffset = tuple[torch.UntypedStorage, int]


class SharedStorage:
    """Memory for the records of one storage. Each record is filled separately.

    Args:
        selection: says where memory comes from.
        device: where it is.
        low, high: the part of the storage, in bytes.

    Raises:
        LimitError: there is not enough memory.
    """

    def __init__(
        self, selection: TensorSelection, device: torch.device, low: int, high: int
    ) -> None:
        self.device = device
        self._low, self._high = low, high
        self._taken: list[tuple[int, int]] = []
        try:
            if selection.allocate is not None and device.type != "meta":
                self._storage = selection.allocate(high - low)
            else:
                self._storage = fresh_storage(high - low, device)
        except (MemoryError, RuntimeError) as error:
            raise _no_memory(error, f"{high - low} bytes of a storage", None) from error

    def take(self, offset: int, nbytes: int) -> StorageOffset | None:
        """The memory of a record; ``None`` if it is not in this part of the storage."""
        if not self._low <= offset <= self._high - nbytes:
            return None
        self._taken.append((offset, offset + nbytes))
        return self._storage, offset - self._low

    def clear_gaps(self) -> None:
        """Fill the bytes outside all records with zeros."""
        if self.device.type == "meta":
            return
        end = self._low
        for start, stop in [*sorted(self._taken), (self._high, self._high)]:
            if start > end:
                gap = strided(self._storage, torch.uint8, end - self._low, (start - end,), (1,))
                gap.zero_()
            end = max(end, stop)


def shared_storages(
    selection: TensorSelection, entries: Sequence[Header]
) -> dict[str, StorageOffset]:
    """The memory of records that share a storage, by name. Takes only the wanted part of a storage.

    Raises:
        LimitError: there is not enough memory.
    """
    storages: dict[int, list[tuple[int, Header]]] = {}
    for entry in entries:
        if entry.layout.storage is not None:
            number, offset, _ = entry.layout.storage
            storages.setdefault(number, []).append((offset, entry))
    found: dict[str, StorageOffset] = {}
    for members in storages.values():
        low = min(offset for offset, _ in members) // ALIGNMENT * ALIGNMENT
        high = max(offset + entry.nbytes for offset, entry in members)
        own = sum(entry.nbytes for _, entry in members)
        devices = {selection.placement.device_for(entry.device) for _, entry in members}
        alone = len(members) < 2 or len(devices) > 1 or selection.placement.relocates
        if alone or high - low > MAX_SPREAD * own:
            continue
        storage = SharedStorage(selection, devices.pop(), low, high)
        for offset, entry in members:
            memory = storage.take(offset, entry.nbytes)
            assert memory is not None
            found[entry.name] = memory
        storage.clear_gaps()
    return found


def allocate_targets(selection: TensorSelection, entries: Sequence[Header]) -> dict[str, Target]:
    """Memory for records, by name.

    Raises:
        LimitError: there is not enough memory.
    """
    shared = shared_storages(selection, entries)
    return {
        entry.name: allocate_target(selection, entry, shared.get(entry.name)) for entry in entries
    }


def allocate_target(
    selection: TensorSelection, record: Header, memory: StorageOffset | None = None
) -> Target:
    """Memory for a record on the device from the selection.

    Raises:
        LimitError: there is not enough memory.
    """
    device = selection.placement.device_for(record.device)
    return new_target(record, device, selection.allocate, memory)


def new_target(
    record: Header,
    device: torch.device,
    allocate: Allocate | None = None,
    memory: StorageOffset | None = None,
) -> Target:
    """Memory for a record on a device.

    Raises:
        LimitError: there is not enough memory.
    """
    try:
        return Target.allocate(
            record.dtype,
            record.shape,
            device=device,
            allocate=allocate,
            stride=record.layout.stride,
            place=memory,
        )
    except (MemoryError, RuntimeError) as error:
        what = f"{record.dtype} {quote(list(record.shape))}"
        raise _no_memory(error, what, record.name) from error


def _no_memory(error: MemoryError | RuntimeError, what: str, name: str | None) -> Exception:
    if isinstance(error, RuntimeError) and "alloc" not in str(error):
        return error  # another error of torch, such as a missing device
    return LimitError(f"no memory for {what}: {quote(str(error))}", tensor=name)


def record_sinks(stored: Stored, target: Target) -> dict[str, Sink]:
    """The sink of each record that a tensor is put together from."""
    if not isinstance(stored, Whole):
        return {stored.name: target}
    return {part.entry.name: target.part(part.offset, part.entry.shape) for part in stored.parts}


class Filling:
    """Tensors that are filled, each from one record or from several.

    Args:
        tensors: what holds them.
        targets: their memory, by name.

    Attributes:
        sinks: of each record that has data, by its name.
        records: the names of all their records.
    """

    def __init__(self, tensors: Iterable[Stored], targets: Mapping[str, Target]) -> None:
        self.sinks: dict[str, Sink | None] = {}
        self.records: dict[str, Stored] = {}
        self._targets = dict(targets)
        self._left: dict[str, int] = {}
        for stored in tensors:
            entries = entries_of(stored)
            self.records.update(dict.fromkeys([entry.name for entry in entries], stored))
            self._left[stored.name] = len(entries)
            target = targets[stored.name]
            if target.needs_data:
                self.sinks |= record_sinks(stored, target)

    def done(self, record: str) -> tuple[Stored, Target] | None:
        """Say that a record has been read. Returns the tensor that this completes, if any."""
        stored = self.records.get(record)
        if stored is None:
            return None
        self._left[stored.name] -= 1
        return None if self._left[stored.name] else (stored, self._targets.pop(stored.name))


def read_tensor(container: Container, stored: Stored, target: Target) -> None:
    """Read a whole tensor, from one record or from all that it is put together from."""
    sinks = record_sinks(stored, target)
    for number in dict.fromkeys(entry.shard for entry in entries_of(stored)):
        Shard(container, number).read(sinks)


def parts_in_box(
    stored: Stored, offset: Sequence[int], size: Sequence[int]
) -> Iterator[tuple[Part, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """The parts of a tensor that share elements with a box, each with what they share."""
    for part in parts_of(stored):
        common = overlap(part.offset, part.entry.shape, offset, size)
        if common is not None:
            yield part, common


def read_box(
    container: Container,
    stored: Stored,
    offset: Sequence[int],
    size: Sequence[int],
    tensor: torch.Tensor,
    *,
    cast: bool = False,
) -> None:
    """Fill a tensor with a box of a stored tensor. Only the chunks that hold the box are read.

    Takes the memory of a few chunks beside the tensor. A file that can only be read forward is read
    to its end.

    Args:
        stored: what holds the tensor: a value of ``container.manifest.tensors``.
        offset, size: of the box, in elements, one for each dimension.
        tensor: of shape ``size``, of any device and strides.
        cast: convert the values if it has another dtype.

    Raises:
        ArgumentError: the box leaves the stored tensor.
        StateMismatchError: another shape, or another dtype without (possible) ``cast``.
        JsonckptError: the bytes are not those that were saved.
    """
    check_box(stored.shape, offset, size)
    for part, (low, sizes) in parts_in_box(stored, offset, size):
        entry = part.entry
        inside = [start - origin for start, origin in zip(low, part.offset)]
        place = narrowed(tensor.detach(), [a - b for a, b in zip(low, offset)], sizes)
        sink = BoxSink(place, entry.dtype, entry.shape, inside, sizes, cast=cast)
        elements = entry.codec.chunk_bytes // DTYPES[entry.dtype].itemsize
        chunks = chunks_of_box(entry.shape, elements, inside, sizes)
        container.shard_of(entry).read_chunks(entry, chunks, sink)
        sink.finish()
