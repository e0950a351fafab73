"""What the coordinator makes of the ranks' parts: the JSON of one state, with regions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ..errors import FormatError, StateMismatchError, WriteError, quote
from ..format.json_text import Json
from ..format.model import Entry
from ..format.regions import regions_json
from ..save.write import WrittenPart
from .leaves import build, with_reference
from .state import Place, places_of

_SAVE_AGAIN = "The previous checkpoint, if any, is untouched. Save again."


@dataclass(frozen=True)
class RankResult:
    """What one rank has written, as the coordinator gets it.

    Attributes:
        part: its shards.
        regions: record -> the leaf that it belongs to, and where it begins in that tensor.
        values: leaf -> JSON text, of the values that this rank writes.
        token: of the save; ``None`` if its planner keeps none.
    """

    part: WrittenPart
    regions: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    token: str | None = None


@dataclass(frozen=True)
class _Region:
    offset: tuple[int, ...]
    entry: Entry
    rank: int


def check_messages(ranks: Sequence[RankResult], token: str, count: int) -> None:
    """Check that each rank has sent one result, and of this save.

    Raises:
        WriteError: a message was lost, came twice, or is of another save.
    """
    found = [rank.part.rank for rank in ranks]
    if sorted(found) != list(range(count)):
        raise WriteError(
            f"the results of ranks {sorted(found)} came, {count} ranks save", hint=_SAVE_AGAIN
        )
    for rank in ranks:
        if rank.token not in (None, token):
            raise WriteError(
                f"rank {rank.part.rank} sent the result of another save", hint=_SAVE_AGAIN
            )


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
            raise WriteError(
                f"no rank wrote {quote(name)}", hint="The previous checkpoint is whole."
            )
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
    seen: dict[tuple[int, ...], int] = {}
    for region in regions:
        if region.offset in seen:
            raise WriteError(
                f"ranks {seen[region.offset]} and {region.rank} wrote the same part of "
                f"{quote(name)}"
            )
        seen[region.offset] = region.rank
    boxes = [(region.offset, region.entry.shape) for region in regions]
    try:
        return regions_json(place.name, regions[0].entry.dtype, shape, boxes)
    except FormatError as error:
        raise WriteError(
            f"the parts of {quote(name)} are not the whole: {error.message}"
        ) from error
