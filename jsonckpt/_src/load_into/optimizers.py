"""Matches the saved state of an optimizer with an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from ..format.pointer import join
from ..tensors.memory import dtype_name
from .objects import refusal
from .pairing import on_both, pair_optimizer
from .placeholders import LEFT_OUT, Placeholder, leaves_in, placeholders_in, with_tensors
from .plan import Plan, below, described


def match_optimizer(value: Any, optimizer: torch.optim.Optimizer, pointer: str, plan: Plan) -> None:
    groups = value.get("param_groups") if isinstance(value, Mapping) else None
    states = value.get("state") if isinstance(value, Mapping) else None
    if not isinstance(states, Mapping) or not isinstance(groups, list):
        kind = type(optimizer).__name__
        what = f"{described(value)} in the checkpoint, the state of {kind} expected"
        plan.differ(pointer, what)
        return
    if not plan.is_first(optimizer, pointer, value):
        return
    pairing = pair_optimizer(groups, states, optimizer, pointer, plan.prefixes.strip)
    plan.missing |= dict.fromkeys(pairing.missing)
    plan.unexpected |= dict.fromkeys(pairing.unexpected)
    misfits = [text for found in pairing.misfits.values() for text in found]
    plan.differ_all([*pairing.mismatched, *misfits], "optimizer")
    for saved, own in pairing.groups:
        hyper = {key: item for key, item in saved.items() if key != "params"}
        if "param_names" in own:
            hyper.pop("param_names", None)
        for key, item in hyper.items():
            old = own.get(key)
            plan.allocate(item, old.device if isinstance(old, torch.Tensor) else None)
        plan.actions.append(partial(_update, own, hyper))
    if not pairing.parameters:
        return
    for key, saved, parameter in pairing.parameters:
        if key not in pairing.misfits:
            place = join(join(pointer, "state"), str(key))
            _match_entry(states.get(key), saved, optimizer, parameter, place, plan)
    known = {key for key, _, _ in pairing.parameters}
    for key, item in states.items():
        if key in known:
            continue
        if type(key) is int or (isinstance(key, str) and key.isdecimal()):
            plan.add_unexpected(item, join(join(pointer, "state"), str(key)))
        else:  # as torch does with state that belongs to no parameter
            plan.allocate(item)
            plan.actions.append(partial(_update, optimizer.state, {key: item}))
    if not any(item is LEFT_OUT for item in leaves_in(states)):
        plan.actions.append(partial(_call_setstate, optimizer, pointer))


def _match_entry(
    entry: Any,
    saved_group: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    parameter: torch.Tensor,
    pointer: str,
    plan: Plan,
) -> None:
    """The state of one parameter: copied into existing tensors, else into new ones."""
    own = optimizer.state.get(parameter, {})
    if not isinstance(entry, Mapping):
        if entry is not LEFT_OUT:
            plan.add_missing(own, pointer)
        return
    new = {}
    for key, item in entry.items():
        if item is LEFT_OUT:
            continue
        old = own.get(key)
        saved_devices = [source.device for source in placeholders_in(entry)]
        if isinstance(item, Placeholder) and on_both(saved_devices):
            on_host = item.device == "cpu"  # as it was
        else:
            # As torch does: a step counter stays on the host, unless a kernel reads it there.
            in_kernel = saved_group.get("capturable") or saved_group.get("fused")
            on_host = key == "step" and not in_kernel and "cpu" in saved_devices
        device = torch.device("cpu") if on_host else parameter.device
        if (
            isinstance(item, Placeholder)
            and isinstance(old, torch.Tensor)
            and dtype_name(old) == item.dtype
            and (key != "step" or old.device == device)
        ):
            plan.copy(item, old)
        else:
            # What is no dense tensor was read at once, on the host.
            new[key] = item.to(device) if isinstance(item, torch.Tensor) else item
            plan.allocate(item, device)
    gone = [key for key in own if key not in entry]
    for key in gone:
        plan.add_missing(own[key], join(pointer, str(key)))
    stale = [key for key in gone if not below(own[key], "")]
    plan.actions.append(partial(_update_state, optimizer, parameter, new, stale))


def _update(target: Any, values: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    target.update(with_tensors(values, tensors))


def _update_state(
    optimizer: torch.optim.Optimizer,
    parameter: torch.Tensor,
    new: Any,
    stale: list[Any],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    own = optimizer.state[parameter]
    for key in stale:
        del own[key]
    own.update(with_tensors(new, tensors))


def _call_setstate(
    optimizer: torch.optim.Optimizer, pointer: str, _: Mapping[str, torch.Tensor]
) -> None:
    """Let the class complete the state, as torch's ``load_state_dict`` does at its end."""
    state = {"state": optimizer.state, "param_groups": optimizer.param_groups}
    try:
        optimizer.__setstate__(state)
    except Exception as error:
        raise refusal(optimizer, pointer, "__setstate__", error) from error
