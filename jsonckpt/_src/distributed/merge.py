"""What the coordinator makes of the ranks' parts: the JSON of the state, with regions of tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ..errors import StateMismatchError, WriteError, quote
from ..format.json_text import Json
from ..format.model import Entry
from ..save.write import WrittenPart
from .leaves import build, with_reference
from .state import Place, places_of


@dataclass(frozen=True)
class RankResult:
    """What one rank has written, as the coordinator gets it.

    Attributes:
        part: its shards.
        regions: record -> the leaf that it belongs to, and where it begins in that tensor.
        values: leaf -> JSON text, of the values that this rank writes.
    """

    part: WrittenPart
    regions: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Region:
    offset: tuple[int, ...]
    entry: Entry
    rank: int


def region_name(offset: Sequence[int], name: str) -> str:
    """The name of the record of a part of a tensor.

    >>> region_name((0, 128), "/model/w")
    '$region/0,128/model/w'
    """
    return f"$region/{','.join(map(str, offset))}{name}"


def merged_state(
    planner_data: Any, metadata: Mapping[str, Any], ranks: Sequence[RankResult]
) -> Json:
    """The JSON of the state.

    Args:
        planner_data: the places of all leaves.
        metadata: of the leaves, as the plan has it.

    Raises:
        StateMismatchError: the ranks' states do not fit together.
        WriteError: something of the state is missing, or is there twice.
    """
    regions: dict[str, list[_Region]] = {}
    values: dict[str, str] = {}
    for rank in ranks:
        values |= rank.values
        for entry in rank.part.entries:
            leaf, offset = rank.regions.get(entry.name, ("", ()))
            regions.setdefault(leaf, []).append(_Region(offset, entry, rank.part.rank))
    leaves = []
    for name, place in places_of(planner_data, metadata).items():
        if name in values:
            value = json.loads(values[name])
        elif name in regions:
            value = with_reference(
                json.loads(place.tensor), _reference(name, place, metadata[name], regions[name])
            )
        elif place.tensor and "$tied" in place.tensor:
            value = json.loads(place.tensor)
        else:
            raise WriteError(f"no rank wrote {quote(name)}", hint="The previous checkpoint is whole.")
        leaves.append((place.path, value))
    return build(leaves) if leaves else {}


def _reference(
    name: str, place: Place, facts: TensorStorageMetadata, regions: Sequence[_Region]
) -> dict[str, Json]:
    """The reference to a tensor: to one record that is all of it, or to its parts."""
    shape = tuple(facts.size)
    if len({region.entry.dtype for region in regions}) > 1:
        first, second = {r.entry.dtype: r for r in regions}.values()
        raise StateMismatchError(
            f"the ranks have different dtypes of {quote(name)}: "
            f"rank {first.rank} {first.entry.dtype}, rank {second.rank} {second.entry.dtype}"
        )
    if len(regions) == 1 and regions[0].entry.shape == shape:
        return {"$tensor": regions[0].entry.name}
    parts = sorted(regions, key=lambda region: region.offset)
    body: dict[str, Json] = {
        "name": place.name,
        "dtype": parts[0].entry.dtype,
        "shape": list(shape),
        "parts": [{"of": part.entry.name, "offset": list(part.offset)} for part in parts],
    }
    _check_tiling(name, shape, parts)
    return {"$regions": body}


def _check_tiling(name: str, shape: tuple[int, ...], parts: Sequence[_Region]) -> None:
    """Check that the parts are the whole tensor, as readers do."""
    seen: dict[tuple[int, ...], int] = {}
    for part in parts:
        if (other := seen.setdefault(part.offset, part.rank)) != part.rank:
            raise WriteError(f"ranks {other} and {part.rank} wrote the same part of {quote(name)}")
    wanted = torch.Size(shape).numel()
    found = sum(torch.Size(part.entry.shape).numel() for part in parts)
    if found != wanted:
        raise WriteError(f"the ranks wrote {found} of {wanted} elements of {quote(name)}")
