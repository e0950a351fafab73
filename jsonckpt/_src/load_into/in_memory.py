"""Fills a target from a state in memory, with the checks of ``load_into``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import StateMismatchError
from ..format.pointer import join
from ..state.tensor_subclasses import copied
from ..tensors.memory import dtype_name
from ..tensors.supported import require_cast
from .aliases import resolve_aliases, settle_ties
from .api import Settings
from .diagnosis import why_names_differ
from .matching import check_target, match
from .placeholders import Placeholder, placeholders_in
from .plan import is_composite


def fill_from_memory(target: Any, state: Any, settings: Settings) -> None:
    """Copy a state into a target. Everything is matched first.

    Raises:
        StateMismatchError: with all names; nothing has been changed. Or a ``load_state_dict``
            refused its state.
        ArgumentError: the target cannot be filled.
    """
    check_target(target)
    plan = settings.plan()
    tensors: dict[str, torch.Tensor] = {}
    value = _with_placeholders(state, "", tensors)

    def same_values(one: Placeholder, two: Placeholder, _: torch.dtype) -> bool:
        return torch.equal(tensors[one.name], tensors[two.name])

    match(value, target, "", plan, None)
    plan.prefixes.require_used()
    if settings.check is not None:
        settings.check(value, plan)
    copies = resolve_aliases(plan, same_values)
    if plan.differs:
        settle_ties(plan, copies)
    if plan.strict and plan.differs:
        raise StateMismatchError(
            "the state and the target differ; nothing has been changed",
            missing=list(plan.missing),
            unexpected=list(plan.unexpected),
            mismatched=plan.mismatched,
            hint=plan.ways_out(why_names_differ(value, target, plan)),
        )
    for one in plan.own_loaders:
        names = {source.name for source in placeholders_in(one.value)}
        # A module copies what it is given. Another object may keep it.
        kept = isinstance(one.target, torch.nn.Module)
        one.load({name: tensors[name] if kept else tensors[name].clone() for name in names}, plan)
    if settings.before_filling is not None:
        settings.before_filling()
    with torch.no_grad():
        for copy in copies:
            require_cast(tensors[copy.source.name].dtype, copy.tensor.dtype)
            copy.tensor.copy_(tensors[copy.source.name])
    new = {
        name: tensors[name].detach().to(device, copy=True)
        for name, (_, device) in plan.allocated.items()
    }
    for action in plan.actions:
        action(new)


def _with_placeholders(value: Any, pointer: str, tensors: dict[str, torch.Tensor]) -> Any:
    """A state with placeholders for its dense tensors, which go into ``tensors``."""
    if isinstance(value, torch.Tensor):
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or is_composite(value):
            return copied(value)  # the state stays the caller's
        tensors[pointer] = value
        shape = tuple(value.shape)
        device = str(value.device)
        return Placeholder(
            pointer, pointer, dtype_name(value), shape, device, None, "$tensor", pointer
        )
    step: Callable[[Any, Any], Any] = lambda key, item: _with_placeholders(  # noqa: E731
        item, join(pointer, str(key)), tensors
    )
    if isinstance(value, Mapping):
        if type(value) is dict or not hasattr(value, "copy"):
            return {key: step(key, item) for key, item in value.items()}
        copy: Any = value.copy()
        if hasattr(value, "_metadata"):
            copy._metadata = value._metadata
        for key, item in value.items():
            copy[key] = step(key, item)
        return copy
    if type(value) in (list, tuple):
        return type(value)(step(key, item) for key, item in enumerate(value))
    return value
