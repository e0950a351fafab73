"""A state on its way back: which tensors are wanted, where they go, how the tree comes together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import FormatError, LimitError, quote
from ..format.dtypes import DTYPES
from ..format.limits import Copies, exceeds
from ..format.model import Entry, claimed_bytes
from ..format.pointer import join
from ..state.references import references_in
from ..state.registry import default_rules
from ..state.selector import Selector, Unmatched, refuse_unmatched, selector
from ..state.tree import OMIT, decode_state
from ..tensors.aliasing import StateReader
from ..tensors.buffers import Target
from ..tensors.map_location import MapLocation, Placement, placement
from ..tensors.memory import collapse, fresh_storage, strided
from ..tensors.view import View
from .container import Container

Allocate = Callable[[int], torch.UntypedStorage]
#: A storage, and the byte in it where a tensor begins.
StorageOffset = tuple[torch.UntypedStorage, int]
#: A storage of which not all is wanted begins at a multiple of this, so that views stay aligned.
_ALIGNMENT = 16
#: Where memory for a storage would be more than so many times its records, each gets its own.
_MOST_SPREAD = 2


@dataclass(frozen=True)
class LoadOptions:
    """Which tensors are asked for, and where they are to go."""

    chosen: Callable[[str], bool]
    unmatched: Callable[..., Unmatched]
    placement: Placement
    allocate: Allocate | None

    @classmethod
    def of(
        cls,
        include: Selector | None,
        exclude: Selector | None,
        map_location: MapLocation = None,
        allocate: Allocate | None = None,
    ) -> LoadOptions:
        """From the arguments of the face."""
        return cls(*selector(include, exclude), placement(map_location), allocate)

    def check(self, names: Collection[str], places: Iterable[str] = ()) -> None:
        """Whether each pattern of the selectors matches one of the names.

        Args:
            places: what ``exclude`` may name although it holds no tensor.

        Raises:
            StateMismatchError: one does not.
        """
        refuse_unmatched(self.unmatched(names, places), names)


class StateBuilder:
    """A state on its way back: which records it needs, and the tensors read so far.

    Args:
        state: its JSON.
        wishes: what of it is wanted.
        copies: counts what is made beside the records' memory.
    """

    def __init__(self, state: Any, options: LoadOptions, copies: Copies | None = None) -> None:
        self._copies = copies or Copies()
        self._state = state
        self._wishes = options
        #: ``(name, tag, body)`` of every place of a tensor, as :func:`references_in` gives them.
        self.references = list(references_in(state))
        self._records: dict[str, None] = {}
        self._views: dict[str, list[tuple[str, str, Any]]] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._chosen: set[str] = set()
        self._bounds: dict[str, View] = {}
        seen: dict[str, Any] = {}
        for reference in self.references:
            name, tag, body = reference
            if tag == "$view":
                self._bounds[name] = View.from_json(body, f"{name}/$view")
            if seen.setdefault(name, body) != body:
                raise FormatError(f"the state says two things of the tensor {quote(name)}")
            record = reference.record
            if options.chosen(name):
                self._chosen.add(name)
                self._records[record] = None
                if tag != "$tensor":
                    self._views.setdefault(record, []).append((name, tag, body))

    @property
    def wants_all(self) -> bool:
        """Whether no tensor of the state is left out."""
        return len(self._chosen) == len({name for name, _, _ in self.references})

    def wants(self, record: str) -> bool:
        """Whether a record is needed."""
        return record in self._records

    def check(self, records: Mapping[str, Entry]) -> None:
        """Whether everything that is needed is there.

        Raises:
            FormatError: the state refers to a record that is not there, or to more than it holds.
        """
        for record in self._records:
            if record not in records:
                raise FormatError(
                    f"the state refers to the tensor {quote(record)}, which is not there"
                )
        for name, view in self._bounds.items():
            if view.of in records:
                entry = records[view.of]
                view.check(entry.nbytes, f"{name}/$view")
                _check_viewed(entry, view)

    def check_selectors(self, names: Iterable[str] = ()) -> None:
        """Whether each pattern of ``include`` and ``exclude`` selects something.

        Args:
            names: what there is beside the tensors of the checkpoint.

        Raises:
            StateMismatchError: one does not.
        """
        known = dict.fromkeys(name for name, _, _ in self.references)
        keys = self._state if isinstance(self._state, dict) else ()
        places = [f"{join('', key)}/" for key in keys]
        self._wishes.check([*known, *names], places)

    def check_files(self, container: Container) -> None:
        """Whether the files of what is needed are there, in the sizes that the manifest says.

        To be called before memory is allocated. A file that is not needed is looked at, too, where
        the others alone could not hold so many bytes: else its size would be a mere claim.

        Raises:
            IncompleteCheckpointError, FormatError, UnsafePathError: one is not.
        """
        every = range(len(container.manifest.shards))
        if self.wants_all:
            container.check_files(every, self._copies)
            return
        entries = container.manifest.by_name
        needed = [entry for name, entry in entries.items() if self.wants(name)]
        container.check_files((entry.shard for entry in needed), self._copies)
        nbytes = claimed_bytes((entry.nbytes, entry.layout) for entry in needed)
        if exceeds(nbytes, self._copies.limits.total_bytes(self._copies.on_disk)):
            container.check_files(every, self._copies)

    def keep(self, record: str, tensor: torch.Tensor) -> None:
        """A record has been read and checked."""
        self._tensors[record] = tensor

    def done(
        self, record: str, tensor: torch.Tensor, *, keep: bool
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """A record has been read and checked: its tensors under their names."""
        if keep:
            self.keep(record, tensor)
        if record in self._chosen:
            yield record, tensor
        door = StateReader({record: tensor}, self._chosen, self._copies)
        for name, tag, body in self._views.get(record, ()):
            yield name, door.get(tag, body, name)

    def finish(self) -> Any:
        """The state."""
        door = StateReader(self._tensors, self._chosen, self._copies)
        state = decode_state(self._state, door, rules=default_rules())
        return None if state is OMIT else state


def _check_viewed(entry: Entry, view: View) -> None:
    """Whether a record lies in memory as a view of it needs it."""
    stride, storage = entry.layout.stride, entry.layout.storage
    flat = not stride or not entry.nbytes or collapse(entry.shape, stride)[1] == [1]
    if not flat or (storage is not None and storage[1] % DTYPES[view.dtype].itemsize):
        raise FormatError(
            f"the record {quote(view.of)} does not lie in memory as a view of it needs it",
            tensor=view.name,
        )


class SharedStorage:
    """Memory for records of one storage, in which each is filled by itself.

    Args:
        wishes: say where memory comes from.
        device: where it is.
        low, high: the bytes of the storage that it is for.

    Raises:
        LimitError: there is not so much.
    """

    def __init__(self, options: LoadOptions, device: torch.device, low: int, high: int) -> None:
        self.device = device
        self._low, self._high = low, high
        self._taken: list[tuple[int, int]] = []
        try:
            if options.allocate is not None and device.type != "meta":
                self._storage = options.allocate(high - low)
            else:
                self._storage = fresh_storage(high - low, device)
        except (MemoryError, RuntimeError) as error:
            raise _no_memory(error, f"{high - low} bytes of a storage", None) from error

    def place(self, offset: int, nbytes: int) -> StorageOffset | None:
        """Where a record goes; ``None`` where it has no place here."""
        if not self._low <= offset <= self._high - nbytes:
            return None
        self._taken.append((offset, offset + nbytes))
        return self._storage, offset - self._low

    def clear_gaps(self) -> None:
        """Fill what no record has taken with zeros."""
        if self.device.type == "meta":
            return
        end = self._low
        for start, stop in [*sorted(self._taken), (self._high, self._high)]:
            if start > end:
                gap = strided(self._storage, torch.uint8, end - self._low, (start - end,), (1,))
                gap.zero_()
            end = max(end, stop)


def shared_storages(options: LoadOptions, entries: Sequence[Entry]) -> dict[str, StorageOffset]:
    """Where records go that are to share memory, by name: of each storage what is wanted of it.

    Raises:
        LimitError: there is not so much memory.
    """
    storages: dict[int, list[tuple[int, Entry]]] = {}
    for entry in entries:
        if entry.layout.storage is not None:
            number, offset, _ = entry.layout.storage
            storages.setdefault(number, []).append((offset, entry))
    places: dict[str, StorageOffset] = {}
    for members in storages.values():
        low = min(offset for offset, _ in members) // _ALIGNMENT * _ALIGNMENT
        high = max(offset + entry.nbytes for offset, entry in members)
        own = sum(entry.nbytes for _, entry in members)
        devices = {options.placement.device_for(entry.device) for _, entry in members}
        alone = len(members) < 2 or len(devices) > 1 or options.placement.relocates
        if alone or high - low > _MOST_SPREAD * own:
            continue
        storage_part = SharedStorage(options, devices.pop(), low, high)
        for offset, entry in members:
            place = storage_part.place(offset, entry.nbytes)
            assert place is not None
            places[entry.name] = place
        storage_part.clear_gaps()
    return places


def allocate_targets(options: LoadOptions, entries: Sequence[Entry]) -> dict[str, Target]:
    """Memory for the records that are wanted, by name.

    Raises:
        LimitError: there is not so much.
    """
    places = shared_storages(options, entries)
    return {
        entry.name: allocate_target(
            options,
            entry.name,
            entry.dtype,
            entry.shape,
            entry.device,
            entry.layout.stride,
            places.get(entry.name),
        )
        for entry in entries
    }


def allocate_target(
    options: LoadOptions,
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    device: str,
    stride: tuple[int, ...] | None = None,
    place: StorageOffset | None = None,
) -> Target:
    """Memory for a record.

    Raises:
        LimitError: there is not so much.
    """
    where = options.placement.device_for(device)
    return new_target(name, dtype, shape, where, options.allocate, stride, place)


def new_target(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    device: torch.device,
    allocate: Allocate | None = None,
    stride: tuple[int, ...] | None = None,
    place: StorageOffset | None = None,
) -> Target:
    """:func:`allocate_target` where the device is known."""
    try:
        return Target.allocate(
            dtype, shape, device=device, allocate=allocate, stride=stride, place=place
        )
    except (MemoryError, RuntimeError) as error:
        raise _no_memory(error, f"{dtype} {quote(list(shape))}", name) from error


def _no_memory(error: MemoryError | RuntimeError, what: str, name: str | None) -> Exception:
    """An error of ours for memory that is not there."""
    if isinstance(error, RuntimeError) and "alloc" not in str(error):
        return error  # torch's own complaint, about a device that is not there for example
    return LimitError(f"no memory for {what}: {quote(str(error))}", tensor=name)
