"""Builds a Python state from its JSON and its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from ..errors import FormatError, quote
from ..format.dtypes import DTYPES
from ..format.limits import Copies, exceeds
from ..format.model import Stored, claimed_bytes, entries_of
from ..format.pointer import join
from ..format.regions import TAG, Regions, parse_region_name
from ..state.references import OWN_TAGS, references_in
from ..state.registry import default_rules
from ..state.tree import OMIT, decode_state
from ..tensors.aliasing import StateReader
from ..tensors.memory import collapse
from ..tensors.view import View
from .container import Container
from .selection import TensorSelection


class StateBuilder:
    """Knows which records a state needs, keeps their tensors, and builds the state from them.

    Args:
        state: its JSON.
        selection: which part of it is wanted.
        copies: counts the memory that is allocated beside the records.
    """

    def __init__(
        self, state: Any, selection: TensorSelection, copies: Copies | None = None
    ) -> None:
        self.copies = copies or Copies()
        self.references = list(references_in(state))
        self._state = state
        self._selection = selection
        self._records: dict[str, None] = {}
        self._views: dict[str, list[tuple[str, str, Any]]] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._chosen: set[str] = set()
        self._bounds: dict[str, View] = {}
        #: The tensors in regions that are needed, by name.
        self._regions: dict[str, Regions] = {}
        seen: dict[str, Any] = {}
        for reference in self.references:
            name, tag, body = reference
            if tag == "$view":
                self._bounds[name] = View.from_json(body, f"{name}/$view")
            if seen.setdefault(name, body) != body:
                raise FormatError(f"the state contradicts itself on the tensor {quote(name)}")
            record = reference.record
            if selection.chosen(name):
                self._chosen.add(name)
                self._records[record] = None
                if tag == TAG and record not in self._regions:
                    self._regions[record] = Regions.from_json(body)
                if tag not in OWN_TAGS:
                    self._views.setdefault(record, []).append((name, tag, body))
        #: Whether no tensor of the state is left out.
        self.wants_all = len(self._chosen) == len(seen)

    @classmethod
    def of(cls, container: Container, selection: TensorSelection) -> StateBuilder:
        """For the state of an opened checkpoint, whose records it checks.

        Raises:
            FormatError: as :meth:`check`.
        """
        builder = cls(container.manifest.state, selection, container.copies())
        builder.check(container.manifest.tensors)
        return builder

    def wants(self, record: str) -> bool:
        """Whether a record is needed."""
        return record in self._records

    def regions_of(self, region: str) -> Regions | None:
        """The needed tensor that a record with the name of a region is a part of.

        Raises:
            FormatError: the tensor has no such part.
        """
        offset, name = parse_region_name(region)
        regions = self._regions.get(name)
        if regions is not None and offset not in regions.offsets:
            raise FormatError(f"$regions does not list the region {quote(region)}", tensor=name)
        return regions

    def check(self, records: Mapping[str, Stored]) -> None:
        """Check that each needed record exists.

        Raises:
            FormatError: the state refers to a record that does not exist, or to bytes beyond its
                end.
        """
        for record in self._records:
            if record not in records:
                raise FormatError(
                    f"the state refers to the tensor {quote(record)}, which does not exist"
                )
        for name, view in self._bounds.items():
            if view.of in records:
                entry = records[view.of]
                view.check(entry.nbytes, f"{name}/$view")
                _check_viewed(entry, view)

    def check_selectors(self, names: Iterable[str] = ()) -> None:
        """Check that each pattern of ``include`` and ``exclude`` selects something.

        Args:
            names: what exists beside the tensors of the checkpoint.

        Raises:
            StateMismatchError: a pattern selects nothing.
        """
        known = dict.fromkeys(name for name, _, _ in self.references)
        keys = self._state if isinstance(self._state, dict) else ()
        self._selection.check([*known, *names], [f"{join('', key)}/" for key in keys])

    def check_files(self, container: Container) -> None:
        """Check that the files of the wanted records exist and have the sizes from the manifest.

        Call it before memory is allocated. If these files alone could not hold so many bytes, the
        others are checked, too: otherwise their sizes would be mere claims.

        Raises:
            IncompleteCheckpointError, FormatError, UnsafePathError: a file fails the check.
        """
        every = range(len(container.manifest.shards))
        if self.wants_all:
            container.check_files(every, self.copies)
            return
        tensors = container.manifest.tensors
        needed = [tensors[name] for name in self._records]
        shards = (entry.shard for stored in needed for entry in entries_of(stored))
        container.check_files(shards, self.copies)
        nbytes = claimed_bytes((entry.nbytes, entry.layout) for entry in needed)
        if exceeds(nbytes, self.copies.limits.total_bytes(self.copies.on_disk)):
            container.check_files(every, self.copies)

    def keep(self, record: str, tensor: torch.Tensor) -> None:
        """Keep the tensor of a record that has been read and checked."""
        self._tensors[record] = tensor

    def tensors_of(self, record: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The wanted tensors of a record, under their names."""
        if record in self._chosen:
            yield record, tensor
        reader = StateReader({record: tensor}, self._chosen, self.copies)
        for name, tag, body in self._views.get(record, ()):
            yield name, reader.get(tag, body, name)

    def finish(self) -> Any:
        """The state."""
        reader = StateReader(self._tensors, self._chosen, self.copies)
        state = decode_state(self._state, reader, rules=default_rules())
        return None if state is OMIT else state


def _check_viewed(entry: Stored, view: View) -> None:
    """Check that a record's memory is laid out as a view of it needs."""
    stride, storage = entry.layout.stride, entry.layout.storage
    flat = not stride or not entry.nbytes or collapse(entry.shape, stride)[1] == [1]
    if not flat or (storage is not None and storage[1] % DTYPES[view.dtype].itemsize):
        raise FormatError(
            f"the memory of the record {quote(view.of)} is not laid out as a view needs it",
            tensor=view.name,
        )
