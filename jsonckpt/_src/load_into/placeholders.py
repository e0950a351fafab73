"""The state of a checkpoint with placeholders for its tensors, which have not been read yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..format.limits import Copies
from ..format.model import Stored
from ..state.references import REFERENCE_TAGS, TENSOR_TAGS, Reference, references_in
from ..state.tree import OMIT
from ..tensors.aliasing import StateReader
from ..tensors.view import View


@dataclass(frozen=True, slots=True, eq=False)
class Placeholder:
    """Stands for a tensor of the checkpoint while the state is matched against the target.

    Attributes:
        name: its JSON Pointer.
        record: the name of its record.
        dtype, shape: of the tensor.
        device: of the tensor when it was saved.
        view: its part of the record; ``None`` for all of it.
        tag, body: its JSON in the state.
    """

    name: str
    record: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    view: View | None
    tag: str
    body: Any

    def content_key(self) -> tuple[object, ...]:
        """Equal for placeholders with the same values."""
        if self.view is None:
            return self.record, self.dtype, self.shape
        return self.record, self.dtype, self.shape, self.view.stride, self.view.offset


class LeftOut:
    """Stands for a tensor that is left out, so that its neighbours keep their positions."""


LEFT_OUT = LeftOut()


def placeholders_in(value: Any) -> Iterator[Placeholder]:
    """The tensors in a state."""
    if isinstance(value, Placeholder):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from placeholders_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from placeholders_in(item)


def names_in(value: Any) -> list[str]:
    """The names of the tensors in a state."""
    return [source.name for source in placeholders_in(value)]


def with_tensors(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """A state with its placeholders replaced by tensors."""
    if isinstance(value, Placeholder):
        return tensors[value.name]
    if isinstance(value, dict):
        copy: Any = value.copy()
        if hasattr(value, "_metadata"):
            copy._metadata = value._metadata
        for key, item in value.items():
            if item is LEFT_OUT:
                del copy[key]
            else:
                copy[key] = with_tensors(item, tensors)
        return copy
    if type(value) is list:
        return [with_tensors(item, tensors) for item in value if item is not LEFT_OUT]
    if type(value) is tuple:
        return tuple(with_tensors(item, tensors) for item in value if item is not LEFT_OUT)
    return value


def leaves_in(value: Any) -> Iterator[Any]:
    """The values in a state's containers, at any depth."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves_in(item)
    else:
        yield value


def same_state(one: Any, two: Any) -> bool:
    """Whether two parts of one checkpoint are the same values, of the same records."""
    if isinstance(one, Placeholder) and isinstance(two, Placeholder):
        return one.content_key() == two.content_key()
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(same_state(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(map(same_state, one, two))
    if isinstance(one, (torch.Tensor, np.ndarray)) or type(one) is not type(two):
        return False
    return bool(one == two or (one != one and two != two))  # NaN equals NaN here


class PlaceholderReader:
    """Gives the state a placeholder for each plain tensor. Other tensors are read at once.

    Args:
        entries: the records by name.
        chosen: whether a tensor is wanted.
        read: reads whole records.
        copies: counts the memory that is allocated beside the records.
    """

    def __init__(
        self,
        entries: Mapping[str, Stored],
        chosen: Callable[[str], bool],
        read: Callable[[Iterable[str]], dict[str, torch.Tensor]],
        copies: Copies,
    ) -> None:
        self.charge = copies.charge
        self._copies = copies
        self._tensors: dict[str, torch.Tensor] = {}
        self._entries = entries
        self._chosen = chosen
        self._read = read

    def get(self, tag: str, body: Any, place: str) -> Any:
        found = list(references_in({tag: body}))
        # Nothing can be filled in place inside an object that is built as a whole, such as a
        # namespace or a registered type.
        inside = {part for part in place.split("/") if part.startswith("$")} - _TRANSPARENT
        if not all(self._chosen(name) for name, _, _ in found):
            return OMIT if inside else LEFT_OUT
        is_plain = tag in REFERENCE_TAGS or (len(found) == 1 and tag in _WRAPPERS)
        if inside or not is_plain:
            return self._reader(found).get(tag, body, place)
        name, kind, inner = found[0]
        record = found[0].record
        view = View.from_json(inner, place) if kind == "$view" else None
        entry = self._entries[record]
        kept = entry if view is None else view
        return Placeholder(name, record, kept.dtype, kept.shape, entry.device, view, tag, body)

    def get_array(self, body: Any, place: str) -> Any:
        found = list(references_in(body))
        if not all(self._chosen(name) for name, _, _ in found):
            return OMIT
        return self._reader(found).get_array(body, place)

    def _reader(self, found: list[Reference]) -> StateReader:
        records = dict.fromkeys(reference.record for reference in found)
        missing = [name for name in records if name not in self._tensors]
        if missing:
            self._tensors |= self._read(missing)
        return StateReader(self._tensors, {name for name, _, _ in found}, self._copies)


_WRAPPERS = ("$parameter", "$requires_grad")
#: Tags inside which the target is matched with the state.
_TRANSPARENT = {"$tuple", "$dict", "$ordered_dict", "$defaultdict", *TENSOR_TAGS}
