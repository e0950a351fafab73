"""The planners: values that are not tensors are JSON, and what does not fit is named."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_local_load_plan,
)
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)

from ..errors import StateMismatchError, quote
from ..format.json_text import Json, dump
from .assign import assign, plain_value
from .leaves import Keys, keys_of, pointer, with_reference
from .state import JsonBytes, Place, flatten_for_load, flatten_for_save


class JsonSavePlanner(DefaultSavePlanner):
    """Plans a distributed save whose values are JSON, and never pickled.

    The keys and the types of all containers come back as they were, integer keys and empty
    dictionaries, too. Two tensors that are the same memory are written once. (Sharded ones twice
    with ``enable_plan_caching``.)

    Args:
        dedup_save_to_lowest_rank: the lowest rank writes what all have; else it is shared out.
        enable_plan_caching: the plan of the first save is used again if the state has the same
            shape. Values and containers are always those of the present save.
        others: as for torch's ``DefaultSavePlanner``.
    """

    def __init__(
        self,
        *,
        dedup_save_to_lowest_rank: bool = False,
        enable_plan_caching: bool = False,
        **others: Any,
    ) -> None:
        if enable_plan_caching:  # torch has it since 2.7
            others["enable_plan_caching"] = True
        super().__init__(dedup_save_to_lowest_rank=dedup_save_to_lowest_rank, **others)

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        storage_meta: StorageMeta | None = None,
        is_coordinator: bool = False,
    ) -> None:
        """Take the leaves of the state.

        Raises:
            UnsupportedTypeError: a value that no rule covers.
        """
        del storage_meta
        flat = flatten_for_save(state_dict)
        self.state_dict = flat.values
        self.mappings = flat.places  # type: ignore[assignment] # only the coordinator reads them
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        """The plan of this rank. Its ``planner_data`` are the places of its leaves."""
        cached = getattr(SavePlanner, "_cached_save_plan", {})
        known = cached.get(self.__class__.__name__)
        if known is not None and known.planner_data != self.mappings:
            # torch compares the tensors only. A container may be of another type now.
            del cached[self.__class__.__name__]
        return super().create_local_plan()

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """The plans of all ranks, and the places of all leaves, in the order of the first rank.

        Raises:
            StateMismatchError: two ranks have one name for different places, or parts of a tensor
                are missing or overlap.
        """
        places: dict[str, Place] = {}
        twins: dict[str, set[str]] = {}
        for rank, plan in enumerate(all_plans):
            for name, place in (plan.planner_data or {}).items():
                first = places.setdefault(name, place)
                twins.setdefault(name, set()).add(place.twin)
                if first.path != place.path and keys_of(first.path) != keys_of(place.path):
                    raise StateMismatchError(
                        f"rank {rank} has {quote(name)} at another place than a rank before it: "
                        f"{quote(pointer(keys_of(place.path)))} and "
                        f"{quote(pointer(keys_of(first.path)))}",
                        hint="Give the keys other names: names join all keys with dots.",
                    )
        if not getattr(self, "_enable_plan_caching", False):
            all_plans = _tie(all_plans, places, twins)
        try:
            plans, metadata = super().create_global_plan(all_plans)
        except ValueError as error:
            raise StateMismatchError(
                f"the ranks' parts of the state do not make a whole: {error}",
                hint="All ranks must save the same tensors, each its own part.",
            ) from error
        metadata = dataclasses.replace(
            metadata, planner_data={**places, **(metadata.planner_data or {}), **places}
        )
        self.metadata = metadata
        return plans, metadata

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """The plan that this rank follows. One that is used again gets the token of this save."""
        plan = super().finish_plan(new_plan)
        self.plan = dataclasses.replace(plan, storage_data=new_plan.storage_data)
        return self.plan

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        """The data of an item. A value is JSON already."""
        if write_item.type == WriteItemType.BYTE_IO:
            assert isinstance(object, JsonBytes)
            return object
        return super().transform_object(write_item, object)


def _tie(
    plans: list[SavePlan], places: dict[str, Place], twins: Mapping[str, set[str]]
) -> list[SavePlan]:
    """The plans without sharded tensors that are another one on all ranks. Changes their places."""
    tied = set()
    for name, said in twins.items():
        others = said - {"*"}
        if len(others) == 1 and (owner := others.pop()):
            tied.add(name)
            place = places[name]
            reference: Json = {"$tied": {"name": place.name, "of": owner}}
            leaf = with_reference(json.loads(place.tensor), reference)
            places[name] = dataclasses.replace(place, tensor=dump(leaf).decode())
    if not tied:
        return plans
    return [
        dataclasses.replace(plan, items=[item for item in plan.items if item.index.fqn not in tied])
        for plan in plans
    ]


class JsonLoadPlanner(DefaultLoadPlanner):
    """Plans a distributed load that unpickles nothing, and refuses what does not fit.

    Args:
        strict: what is only in the checkpoint is an error. ``False``: it is ignored, as torch's
            own planner does.
        allow_partial_load: what is only in the state keeps its value. ``False``: it is an error.
        cast: tensors may have other dtypes in the checkpoint; their values are converted.
    """

    def __init__(
        self, *, strict: bool = True, allow_partial_load: bool = False, cast: bool = False
    ) -> None:
        super().__init__(
            flatten_state_dict=False,
            flatten_sharded_tensors=False,
            allow_partial_load=allow_partial_load,
        )
        self._strict = strict
        self._cast = cast
        self._places: dict[str, Place] = {}

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        """Take the leaves of the state, under the names that they have in the checkpoint."""
        super().set_up_planner(state_dict, metadata, is_coordinator)
        flat = flatten_for_load(state_dict)
        self._places = flat.places
        self.state_dict = flat.values

    def create_local_plan(self) -> LoadPlan:
        """What this rank reads.

        Raises:
            StateMismatchError: what does not fit, all of it.
        """
        assert self.metadata is not None
        stored, leaves = self.metadata.state_dict_metadata, _Stored(self.metadata)
        missing, mismatched = [], []
        found: dict[str, Any] = {}
        places: dict[str, Place] = {}
        for name, place in self._places.items():
            value, other = self.state_dict[name], leaves.at(name, place)
            shown = pointer(keys_of(place.path))
            below = {} if isinstance(value, torch.Tensor) else leaves.below(place)
            if other is not None:
                problem = _problem(value, stored[other], cast=self._cast)
                if problem:
                    mismatched.append(f"{shown}: {problem}")
                below = {other: place}
            elif not below:
                missing.append(shown)
            found |= dict.fromkeys(below, value)
            places |= below
        if self.allow_partial_load:
            missing = []
        if missing or mismatched:
            raise StateMismatchError(
                "the checkpoint and the state differ", missing=missing, mismatched=mismatched
            )
        self._places, self.state_dict = places, found
        plan = create_default_local_load_plan(found, self.metadata, False)
        unused = [name for name in stored if name not in found]
        return dataclasses.replace(plan, planner_data=unused)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """The plans of all ranks.

        Raises:
            StateMismatchError: with ``strict``: the checkpoint has what no rank asks for.
        """
        unused = dict.fromkeys(global_plan[0].planner_data or ())
        for plan in global_plan[1:]:
            others = set(plan.planner_data or ())
            unused = {name: None for name in unused if name in others}
        if self._strict and unused:
            assert self.metadata is not None
            places: Mapping[str, Place] = self.metadata.planner_data or {}
            raise StateMismatchError(
                "the checkpoint has what the state lacks",
                unexpected=[
                    pointer(keys_of(places[name].path)) if name in places else name
                    for name in unused
                ],
                hint="Pass strict=False to leave it out.",
            )
        return [dataclasses.replace(plan, planner_data=None) for plan in global_plan]

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a value that is JSON text into the state. Nothing is unpickled."""
        self.load_value(read_item, plain_value(json.loads(value.getvalue())))

    def load_value(self, read_item: ReadItem, value: Any) -> None:
        """Put a value into the state."""
        place = self._places[read_item.dest_index.fqn]
        assign(self.original_state_dict, place.path, value)


def _problem(target: object, stored: object, *, cast: bool) -> str:
    """Why a leaf of the checkpoint does not fit; empty if it does."""
    if not isinstance(target, torch.Tensor):
        tensor = isinstance(stored, TensorStorageMetadata)
        return "a tensor in the checkpoint, another value in the state" if tensor else ""
    if isinstance(stored, BytesStorageMetadata):
        return "a tensor in the state, another value in the checkpoint"
    assert isinstance(stored, TensorStorageMetadata)
    if stored.size != target.size():
        return f"shape {list(stored.size)} in the checkpoint, {list(target.size())} in the state"
    if stored.properties.dtype != target.dtype and not cast:
        return f"{stored.properties.dtype} in the checkpoint, {target.dtype} in the state"
    return ""


class _Stored:
    """Finds leaves of a checkpoint for a leaf of the state: at the same place, or by its name."""

    def __init__(self, metadata: Metadata) -> None:
        self._stored = metadata.state_dict_metadata
        data: Mapping[str, Any] = metadata.planner_data or {}
        self._places = {name: place for name, place in data.items() if isinstance(place, Place)}
        self._by_keys = {keys_of(place.path): name for name, place in self._places.items()}
        #: Below each place, the leaves without tensors; ``None`` if one is a tensor.
        self._below: dict[Keys, list[str] | None] | None = None

    def at(self, name: str, place: Place) -> str | None:
        """The leaf at a place."""
        exact = self._by_keys.get(keys_of(place.path))
        return name if exact is None and name in self._stored else exact

    def below(self, place: Place) -> dict[str, Place]:
        """The leaves of a mapping without tensors, which is one value of the state."""
        if self._below is None:
            self._below = self._all_below()
        return {name: self._places[name] for name in self._below.get(keys_of(place.path)) or ()}

    def _all_below(self) -> dict[Keys, list[str] | None]:
        below: dict[Keys, list[str] | None] = {}
        for keys, name in self._by_keys.items():
            tensor = isinstance(self._stored[name], TensorStorageMetadata)
            for depth in range(1, len(keys)):
                names = below.setdefault(keys[:depth], [])
                if tensor:
                    below[keys[:depth]] = None
                elif names is not None:
                    names.append(name)
        return below
