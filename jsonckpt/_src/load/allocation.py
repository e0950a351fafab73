"""Memory for the records that are read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import LimitError, quote
from ..format.model import Entry, Header
from ..tensors.buffers import Target
from ..tensors.memory import fresh_storage, strided
from ..tensors.storages import ALIGNMENT, MAX_SPREAD
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
    selection: TensorSelection, entries: Sequence[Entry]
) -> dict[str, StorageOffset]:
    """The memory of records that share a storage, by name. Takes only the wanted part of a storage.

    Raises:
        LimitError: there is not enough memory.
    """
    storages: dict[int, list[tuple[int, Entry]]] = {}
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


def allocate_targets(selection: TensorSelection, entries: Sequence[Entry]) -> dict[str, Target]:
    """Memory for records, by name.

    Raises:
        LimitError: there is not enough memory.
    """
    shared = shared_storages(selection, entries)
    return {
        entry.name: allocate_target(selection, entry, shared.get(entry.name)) for entry in entries
    }


def allocate_target(
    selection: TensorSelection, record: Entry | Header, memory: StorageOffset | None = None
) -> Target:
    """Memory for a record on the device from the selection.

    Raises:
        LimitError: there is not enough memory.
    """
    device = selection.placement.device_for(record.device)
    return new_target(record, device, selection.allocate, memory)


def new_target(
    record: Entry | Header,
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
