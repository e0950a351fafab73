"""A state on its way back: which tensors are wanted, where they go, how the tree comes together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from jsonckpt.errors import FormatError, LimitError, StateMismatchError, quote
from jsonckpt.facts import Entry
from jsonckpt.limits import Copies
from jsonckpt.names import Selector, selector
from jsonckpt.pipeline import default_threads
from jsonckpt.placement import MapLocation, Placement, placement
from jsonckpt.registry import default_rules
from jsonckpt.sharing import StateReader
from jsonckpt.tensors import Target
from jsonckpt.tree import OMIT, decode_state, record_of, tensor_names
from jsonckpt.views import View

__all__ = ["Loading", "Wishes", "allocate_target", "new_target", "thread_count"]

Allocate = Callable[[int], torch.UntypedStorage]


@dataclass(frozen=True)
class Wishes:
    """Which tensors are asked for, and where they are to go."""

    chosen: Callable[[str], bool]
    unmatched: Callable[[Iterable[str]], list[str]]
    placement: Placement
    allocate: Allocate | None

    @classmethod
    def of(
        cls,
        include: Selector | None,
        exclude: Selector | None,
        map_location: MapLocation = None,
        allocate: Allocate | None = None,
    ) -> Wishes:
        """From the arguments of the face."""
        return cls(*selector(include, exclude), placement(map_location), allocate)


class Loading:
    """A state on its way back: which records it needs, and the tensors read so far.

    Args:
        state: its JSON.
        wishes: what of it is wanted.
        copies: counts what is made beside the records' memory.
    """

    def __init__(self, state: Any, wishes: Wishes, copies: Copies | None = None) -> None:
        self._copies = copies or Copies()
        self._state = state
        self._wishes = wishes
        #: ``(name, tag, body)`` of every place of a tensor, as :func:`tensor_names` gives them.
        self.references = list(tensor_names(state))
        self._records: dict[str, None] = {}
        self._views: dict[str, list[tuple[str, str, Any]]] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._chosen: set[str] = set()
        self._bounds: dict[str, View] = {}
        seen: dict[str, Any] = {}
        for name, tag, body in self.references:
            if tag == "$view":
                self._bounds[name] = View.from_json(body, f"{name}/$view")
            if seen.setdefault(name, body) != body:
                raise FormatError(f"the state says two things of the tensor {quote(name)}")
            record = record_of(name, body)
            if wishes.chosen(name):
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
            StateMismatchError: ``include`` names what is not there.
        """
        for record in self._records:
            if record not in records:
                raise FormatError(
                    f"the state refers to the tensor {quote(record)}, which is not there"
                )
        for name, view in self._bounds.items():
            if view.of in records:
                view.check(records[view.of].nbytes, f"{name}/$view")
        unmatched = self._wishes.unmatched([name for name, _, _ in self.references])
        if unmatched:
            raise StateMismatchError(
                "include names tensors that the checkpoint lacks",
                missing=unmatched,
                hint='List its names with: python -c "import jsonckpt; '
                "print(*jsonckpt.open(PATH), sep='\\n')\"",
            )

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


def allocate_target(
    wishes: Wishes, name: str, dtype: str, shape: tuple[int, ...], device: str
) -> Target:
    """Memory for a record.

    Raises:
        LimitError: there is not so much.
    """
    return new_target(name, dtype, shape, wishes.placement.device_for(device), wishes.allocate)


def new_target(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    device: torch.device,
    allocate: Allocate | None = None,
) -> Target:
    """:func:`allocate_target` where the device is known."""
    try:
        return Target.allocate(dtype, shape, device=device, allocate=allocate)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise  # torch's own complaint, about a device that is not there for example
        raise LimitError(
            f"no memory for {dtype} {quote(list(shape))}: {quote(str(error))}", tensor=name
        ) from error


def thread_count(threads: int | None) -> int:
    """The argument ``threads`` of the face, checked."""
    if threads is None:
        return default_threads()
    if type(threads) is not int or threads < 1:
        raise ValueError(f"threads must be a positive integer or None, not {threads!r}")
    return threads
