"""The state of one rank as leaves: what ``state_dict`` of a planner holds, and where it belongs."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint._traverse import set_element

from ..errors import ArgumentError, quote
from ..format.json_text import Json, dump
from ..save.reader_limits import most_levels
from ..state.references import references_in
from ..state.registry import default_rules
from ..state.tree import encode_state
from ..tensors.aliasing import StateWriter
from ..tensors.buffers import Source
from ..tensors.composite import is_composite
from ..tensors.supported import require_plain
from .leaves import Leaf, Pair, Path, dotted, keys_of, leaves_of


@dataclass(frozen=True)
class Place(Sequence[Any]):
    """Where a leaf belongs, in a plan's ``planner_data``.

    torch's own planners take it for what they keep there: a sequence of keys, which are strings for
    mappings and numbers for lists.

    Attributes:
        path: to it, in the JSON of the state.
        tensor: the JSON text of a tensor, which refers to it by its name; empty for a value.
        twin: the record of an earlier sharded tensor that is the same memory on this rank;
            ``"*"`` if this rank has no element of it, so that it cannot tell.
    """

    path: Path
    tensor: str = ""
    twin: str = ""

    @property
    def name(self) -> str:
        """The name of the tensor's record."""
        return next(references_in(json.loads(self.tensor))).name

    def __len__(self) -> int:
        return len(keys_of(self.path))

    def __getitem__(self, index: Any) -> Any:
        keys = [key.key if isinstance(key, Pair) else key for key in keys_of(self.path)]
        return keys[index]


class JsonBytes(io.BytesIO):
    """A value as JSON, as the storage takes it.

    Attributes:
        sources: the records of the arrays in it.
    """

    def __init__(self, value: Json = None, sources: Mapping[str, Source] | None = None) -> None:
        names = dict.fromkeys(one.record for one in references_in(value))
        super().__init__(dump(value))
        self.sources = [sources[name] for name in names] if sources else []


@dataclass(frozen=True)
class Flat:
    """A state as leaves, each under the name that torch's distributed checkpoints use."""

    values: dict[str, torch.Tensor | JsonBytes]
    places: dict[str, Place]


def flatten_for_save(state: Mapping[str, Any]) -> Flat:
    """The leaves of a state that is saved. A tensor that is another one has a place, and no value.

    Raises:
        UnsupportedTypeError: a value that no rule covers.
    """
    return _flatten(state, _Taken())


def flatten_for_load(state: Mapping[str, Any]) -> Flat:
    """The leaves of a state that is filled. A value of any type is a leaf, whose JSON is null."""
    return _flatten(state, _Filled())


def _flatten(state: Mapping[str, Any], taken: _Taken) -> Flat:
    tree = encode_state(dict(state), taken, rules=default_rules(), max_depth=most_levels())
    flat = Flat({}, {})
    for leaf in leaves_of(tree) if state else ():
        name = dotted(keys_of(leaf.path))
        if name in flat.places:
            raise ArgumentError(
                f"two places of the state have the name {quote(name)}",
                hint="Rename one of their keys: names join all keys with dots.",
            )
        flat.places[name] = place_of(leaf, taken.twins)
        if leaf.reference is None:
            flat.values[name] = JsonBytes(leaf.json, taken.sources)
        elif (record := leaf.reference.get("$tensor")) is not None:
            flat.values[name] = taken.tensors[record]
    return flat


def place_of(leaf: Leaf, twins: Mapping[str, str] | None = None) -> Place:
    """Where a leaf belongs."""
    if leaf.reference is None:
        return Place(leaf.path)
    twin = (twins or {}).get(leaf.reference.get("$tensor", ""), "")
    return Place(leaf.path, dump(leaf.json).decode(), twin)


class _Taken:
    """Takes the tensors of a state that is saved. A :class:`TensorWriter`.

    Attributes:
        tensors: dense and sharded ones, by the names of their records.
        sources: the records of arrays, and of the parts of sparse and quantized tensors.
        twins: of sharded tensors, as :class:`Place` has them.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.sources: dict[str, Source] = {}
        self.twins: dict[str, str] = {}
        self._known: dict[tuple[object, ...], str] = {}

    def is_tensor(self, value: object) -> bool:
        return isinstance(value, torch.Tensor)

    def put(self, value: Any, name: str) -> Json:
        sharded = is_sharded(value)
        if isinstance(value, ShardedTensor):  # warns if it is asked for more
            self.tensors[name] = value
            return {"$tensor": name}
        if not sharded:
            require_plain(value)
            if is_composite(value):
                return self._keep(StateWriter(), value, name)
        data: Json = {"$tensor": name}
        owner = name if sharded else self._owner(value, name)
        if sharded:
            self._note_twin(value, name)
        if owner == name:
            self.tensors[name] = value
        else:
            data = {"$tied": {"name": name, "of": owner}}
        if isinstance(value, torch.nn.Parameter):
            return {"$parameter": {"data": data, "requires_grad": value.requires_grad}}
        return {"$requires_grad": data} if value.requires_grad else data

    def put_array(self, array: np.ndarray[Any, Any], name: str) -> Json:
        writer = StateWriter()
        reference = writer.put_array(array, name)
        self.sources |= {source.name: source for source in writer.sources()}
        return reference

    def _keep(self, writer: StateWriter, value: torch.Tensor, name: str) -> Json:
        # Parts that share memory would become views of a record without a name of their own.
        result = writer.put(value.clone() if not value.requires_grad else value, name)
        self.sources |= {source.name: source for source in writer.sources()}
        return result

    def _note_twin(self, value: torch.Tensor, name: str) -> None:
        local = getattr(value, "_local_tensor", None)
        if type(local) is not torch.Tensor:
            return
        spec = (tuple(value.shape), str(getattr(value, "placements", "")))
        key = (local.data_ptr(), local.dtype, tuple(local.shape), local.stride(), spec)
        if not local.numel():
            self.twins[name] = "*"
        elif (first := self._known.setdefault(key, name)) != name:
            self.twins[name] = first

    def _owner(self, value: torch.Tensor, name: str) -> str:
        """The name of the tensor that is the same memory and came first."""
        if not value.numel():
            return name
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        return self._known.setdefault((*key, value.is_conj(), value.is_neg()), name)


class _Filled(_Taken):
    """Takes the tensors and the values of a state that is filled."""

    def is_tensor(self, value: object) -> bool:
        del value
        return True  # the encoder asks for what it cannot write, too

    def put(self, value: Any, name: str) -> Json:
        if not isinstance(value, torch.Tensor):
            return None
        if not is_sharded(value) and is_composite(value):
            return None
        self.tensors[name] = value
        return {"$tensor": name}

    def put_array(self, array: np.ndarray[Any, Any], name: str) -> Json:
        del array, name
        return None


def is_sharded(value: object) -> bool:
    """Whether a process may hold a part of a tensor only: a ``DTensor``, a ``ShardedTensor``."""
    return hasattr(value, "__create_write_items__") or isinstance(value, ShardedTensor)


class _Marks:
    """Stand-ins for the values of a state of which only the places are known."""

    def is_tensor(self, value: object) -> bool:
        return isinstance(value, _Mark)

    def put(self, value: Any, name: str) -> Json:
        value.record = name
        return {"$tensor": name}

    def put_array(self, array: np.ndarray[Any, Any], name: str) -> Json:
        raise NotImplementedError


class _Mark:
    def __init__(self, name: str) -> None:
        self.name = name
        self.record = ""


def places_of(planner_data: Any, names: Mapping[str, Any]) -> dict[str, Place]:
    """The places of the leaves in a plan, whatever planner made it.

    Args:
        planner_data: of the plan or of the metadata: places, or the paths of torch's own planner,
            or nothing.
        names: of all leaves.
    """
    data: dict[str, Any] = dict(planner_data or {})
    if any(isinstance(place, Place) for place in data.values()):
        return data
    nested: dict[str, Any] = {}
    marks = [_Mark(name) for name in data or names]
    for mark in marks:
        set_element(nested, data.get(mark.name, (mark.name,)), mark)
    tree = encode_state(nested, _Marks(), rules=default_rules(), max_depth=most_levels())
    leaves = {leaf.reference["$tensor"]: leaf for leaf in leaves_of(tree) if leaf.reference}
    return {mark.name: place_of(leaves[mark.record]) for mark in marks}
