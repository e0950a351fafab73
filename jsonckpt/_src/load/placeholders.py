"""A checkpoint's state with slots in the place of its tensors, which nobody has read yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..format.limits import Copies
from ..state.references import TENSOR_TAGS, Reference, references_in
from ..state.tree import OMIT
from ..tensors.aliasing import StateReader
from ..tensors.view import View
from .container import Container
from .restore import LoadOptions


@dataclass(frozen=True, slots=True, eq=False)
class Placeholder:
    """Stands for a tensor of the checkpoint while the state is matched against the target.

    Attributes:
        name: of its place.
        record: that it lies in.
        dtype, shape: its own.
        view: what of the record it is; ``None`` for all of it.
        tag, body: what the state says of it.
    """

    name: str
    record: str
    dtype: str
    shape: tuple[int, ...]
    view: View | None
    tag: str
    body: Any

    def source(self) -> tuple[object, ...]:
        """What it is made of: equal for slots that have the same values."""
        if self.view is None:
            return self.record, self.dtype, self.shape
        return self.record, self.dtype, self.shape, self.view.stride, self.view.offset


class LeftOut:
    """Stands for what ``include`` and ``exclude`` leave out, so that its neighbours keep theirs."""


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


def filled(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """A state with its slots replaced by tensors."""
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
                copy[key] = filled(item, tensors)
        return copy
    if type(value) is list:
        return [filled(item, tensors) for item in value if item is not LEFT_OUT]
    if type(value) is tuple:
        return tuple(filled(item, tensors) for item in value if item is not LEFT_OUT)
    return value


def leaves_in(value: Any) -> Iterator[Any]:
    """What stands in a state's containers, at any depth."""
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
        return one.source() == two.source()
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(same_state(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(map(same_state, one, two))
    if isinstance(one, (torch.Tensor, np.ndarray)) or type(one) is not type(two):
        return False
    return bool(one == two or (one != one and two != two))  # a NaN is no reason


class PlaceholderReader:
    """Reads a state with slots in the place of tensors; what is no plain tensor is read at once."""

    def __init__(
        self,
        container: Container,
        options: LoadOptions,
        read: Callable[[Iterable[str]], dict[str, torch.Tensor]],
        copies: Copies,
    ) -> None:
        self.charge = copies.charge
        self._copies = copies
        self._tensors: dict[str, torch.Tensor] = {}
        self._by_name = container.manifest.by_name
        self._chosen = options.chosen
        self._read = read

    def get(self, tag: str, body: Any, place: str) -> Any:
        found = list(references_in({tag: body}))
        # Inside an object that is made whole (a namespace, a registered type) nothing can be
        # filled in place.
        inside = {part for part in place.split("/") if part.startswith("$")} - _TRANSPARENT
        if not all(self._chosen(name) for name, _, _ in found):
            return OMIT if inside else LEFT_OUT
        if inside:
            return self._door(found).get(tag, body, place)
        if tag in ("$tensor", "$tied", "$view") or (len(found) == 1 and tag in _WRAPPERS):
            name, kind, inner = found[0]
            record = found[0].record
            if kind == "$view":
                view = View.from_json(inner, place)
                return Placeholder(name, record, view.dtype, view.shape, view, tag, body)
            entry = self._by_name[record]
            return Placeholder(name, record, entry.dtype, entry.shape, None, tag, body)
        return self._door(found).get(tag, body, place)

    def get_array(self, body: Any, place: str) -> Any:
        found = list(references_in(body))
        if not all(self._chosen(name) for name, _, _ in found):
            return OMIT
        return self._door(found).get_array(body, place)

    def _door(self, found: list[Reference]) -> StateReader:
        records = dict.fromkeys(reference.record for reference in found)
        missing = [name for name in records if name not in self._tensors]
        if missing:
            self._tensors |= self._read(missing)
        return StateReader(self._tensors, {name for name, _, _ in found}, self._copies)


_WRAPPERS = ("$parameter", "$requires_grad")
#: Tags through which the target is matched with the state.
_TRANSPARENT = {"$tuple", "$dict", "$ordered_dict", "$defaultdict", *TENSOR_TAGS}
