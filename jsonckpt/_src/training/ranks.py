"""Parts of a training state that differ from rank to rank."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import torch

from ..load_into.plan import Plan

#: The states of all ranks, in the place of a state.
_RANKS: Final = "ranks"


def world() -> tuple[int, int]:
    """The rank of this process, and the number of ranks."""
    group = torch.distributed
    if not (group.is_available() and group.is_initialized()):
        return 0, 1
    return group.get_rank(), group.get_world_size()


def gathered(state: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """A state with the parts of all ranks. Each rank must call it."""
    if not names:
        return state
    own = {name: state[name] for name in sorted(names)}
    every: list[Any] = [own]
    if world()[1] > 1:
        every = [None] * world()[1]
        torch.distributed.all_gather_object(every, own)
    return state | {name: {_RANKS: [one[name] for one in every]} for name in own}


def _of_ranks(value: Any) -> list[Any] | None:
    """The states of all ranks; ``None`` if it is one state."""
    if isinstance(value, Mapping) and value.keys() == {_RANKS} and isinstance(value[_RANKS], list):
        return value[_RANKS]
    return None


def check_ranks(value: Any, wanted: Iterable[str], per_rank: Collection[str], plan: Plan) -> None:
    """Note parts that were saved by another number of ranks.

    Args:
        wanted: the pointers of parts that are restored.
        per_rank: those of them that differ from rank to rank.
    """
    count = world()[1]
    for pointer in wanted:
        name = pointer[1:]
        if not isinstance(value, Mapping) or name not in value:
            continue
        saved = _of_ranks(value[name])
        if pointer not in per_rank and saved is not None:
            plan.differ(pointer, f"the states of {len(saved)} ranks; pass per_rank= to TrainState")
        elif pointer in per_rank and (saved is None or len(saved) != count):
            found = "one for all" if saved is None else f"those of {len(saved)}"
            plan.differ(pointer, f"a state for each of {count} ranks is needed, found {found}")
    if count > 1 and "/rng" in wanted and "/rng" not in per_rank:
        warnings.warn(
            f"each of the {count} ranks gets the random state of the one that saved; pass"
            " per_rank=('rng',) to TrainState, and call state_dict() on each rank",
            RuntimeWarning,
            stacklevel=2,
        )


def own_state(value: Any, pointer: str, per_rank: Collection[str]) -> Any:
    """The state of this rank."""
    if pointer not in per_rank:
        return value
    saved = _of_ranks(value)
    return value if saved is None else saved[world()[0]]
