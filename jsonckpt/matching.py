"""What of a checkpoint goes where in a target: found whole before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from jsonckpt.limits import Copies
from jsonckpt.memory import dtype_name
from jsonckpt.names import join
from jsonckpt.opening import Container
from jsonckpt.restoring import Wishes
from jsonckpt.sharing import StateReader
from jsonckpt.tree import OMIT, TENSOR_TAGS, record_of, tensor_names
from jsonckpt.views import View

__all__ = ["LEFT_OUT", "Match", "Slot", "SlotDoor", "match"]

Assign = Callable[[Any], None]


class Slot:
    """Stands for a tensor of the checkpoint while the state is matched against the target."""

    def __init__(
        self, name: str, record: str, dtype: str, shape: tuple[int, ...], view: Any
    ) -> None:
        self.name = name
        self.record = record
        self.dtype = dtype
        self.shape = shape
        self.view = view


class LeftOut:
    """Stands for what ``include`` and ``exclude`` leave out, so that its neighbours keep theirs."""


LEFT_OUT = LeftOut()


@dataclass
class Match:
    """What goes where, found before anything is changed."""

    cast: bool
    fills: list[tuple[Slot, torch.Tensor]] = field(default_factory=list)
    fresh: dict[str, tuple[Slot, torch.device]] = field(default_factory=dict)
    actions: list[Callable[[Mapping[str, torch.Tensor]], None]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def fill(self, slot: Slot, tensor: torch.Tensor) -> None:
        """Fill an existing tensor, if it fits."""
        if tuple(tensor.shape) != slot.shape:
            self.mismatched.append(
                f"{slot.name}: shape {list(slot.shape)} in the checkpoint, "
                f"{list(tensor.shape)} in the target"
            )
        elif dtype_name(tensor) != slot.dtype and not self.cast:
            self.mismatched.append(
                f"{slot.name}: {slot.dtype} in the checkpoint, {dtype_name(tensor)} in the target"
            )
        else:
            self.fills.append((slot, tensor))

    def want(self, value: Any, device: torch.device | None = None) -> None:
        """Read the tensors in ``value`` into memory of their own."""
        for slot in slots_in(value):
            self.fresh[slot.name] = (slot, device or torch.device("cpu"))

    def then(self, action: Callable[[Mapping[str, torch.Tensor]], None]) -> None:
        """Do something when all tensors have been read; it gets those of :meth:`want` by name."""
        self.actions.append(action)


def slots_in(value: Any) -> Iterator[Slot]:
    """The tensors in a state."""
    if isinstance(value, Slot):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from slots_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from slots_in(item)


def filled(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """A state with its slots replaced by tensors."""
    if isinstance(value, Slot):
        return tensors[value.name]
    if isinstance(value, dict):
        copy = value.copy()
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


def match(value: Any, target: Any, place: str, plan: Match, assign: Assign | None) -> None:
    """Find out what of ``value`` goes where in ``target``.

    Args:
        assign: puts another object into the target's place, where that can be done.
    """
    if value is LEFT_OUT:
        return
    if isinstance(target, torch.nn.Module):
        _match_module(value, target, place, plan)
    elif isinstance(target, torch.optim.Optimizer):
        _match_optimizer(value, target, place, plan)
    elif isinstance(target, torch.Tensor):
        if isinstance(value, Slot):
            plan.fill(value, target)
        else:
            plan.mismatched.append(f"{place}: no tensor in the checkpoint, a tensor in the target")
    elif isinstance(target, MutableMapping):
        _match_mapping(value, target, place, plan)
    elif isinstance(target, (list, tuple)):
        _match_sequence(value, target, place, plan, assign)
    elif hasattr(target, "load_state_dict"):
        plan.want(value)
        plan.then(lambda tensors: target.load_state_dict(filled(value, tensors)))
    elif assign is not None:
        put = assign
        plan.want(value)
        plan.then(lambda tensors: put(filled(value, tensors)))


def _match_mapping(value: Any, target: Any, place: str, plan: Match) -> None:
    if not isinstance(value, Mapping):
        plan.mismatched.append(
            f"{place}: {type(value).__name__} in the checkpoint, a dict expected"
        )
        return
    for key, item in target.items():
        below = join(place, str(key))
        if key in value:
            match(value[key], item, below, plan, partial(target.__setitem__, key))
        else:
            plan.missing += tensors_below(item, below)
    for key, item in value.items():
        if key not in target:
            plan.unexpected += [slot.name for slot in slots_in(item)]


def _match_sequence(
    value: Any, target: Any, place: str, plan: Match, assign: Assign | None
) -> None:
    if not isinstance(value, (list, tuple)) or len(value) != len(target):
        plan.mismatched.append(
            f"{place}: the checkpoint does not have a sequence of {len(target)} here"
        )
        return
    for position, (item, old) in enumerate(zip(value, target)):
        put = partial(target.__setitem__, position) if isinstance(target, list) else None
        match(item, old, join(place, str(position)), plan, put)
    whole = not any(slots_in(value)) and all(item is not LEFT_OUT for item in value)
    if isinstance(target, tuple) and assign is not None and whole:
        plain = assign
        plan.then(lambda _: plain(value))


def tensors_below(target: Any, place: str) -> list[str]:
    """Names of the tensors in a target."""
    if isinstance(target, torch.Tensor):
        return [place]
    if isinstance(target, torch.nn.Module):
        target = target.state_dict()
    if isinstance(target, torch.optim.Optimizer):
        return [place]
    if isinstance(target, Mapping):
        pairs: Any = target.items()
    elif isinstance(target, (list, tuple)):
        pairs = enumerate(target)
    else:
        return []
    return [name for key, item in pairs for name in tensors_below(item, join(place, str(key)))]


def _match_module(value: Any, module: torch.nn.Module, place: str, plan: Match) -> None:
    if not isinstance(value, Mapping):
        plan.mismatched.append(f"{place}: no state dict in the checkpoint, a module in the target")
        return
    own = module.state_dict()
    for key, item in own.items():
        below = join(place, key)
        if key.endswith("_extra_state"):
            if value.get(key, LEFT_OUT) is not LEFT_OUT:
                owner = module.get_submodule(key.removesuffix("_extra_state").rstrip("."))
                plan.want(value[key])
                plan.then(partial(_set_extra_state, owner, value[key]))
        elif key in value:
            match(value[key], item, below, plan, None)
        else:
            plan.missing.append(below)
    for key, item in value.items():
        if key not in own:
            plan.unexpected += [slot.name for slot in slots_in(item)]


def _set_extra_state(
    owner: torch.nn.Module, value: Any, tensors: Mapping[str, torch.Tensor]
) -> None:
    owner.set_extra_state(filled(value, tensors))


def _match_optimizer(value: Any, optimizer: torch.optim.Optimizer, place: str, plan: Match) -> None:
    groups = value.get("param_groups") if isinstance(value, Mapping) else None
    states = value.get("state") if isinstance(value, Mapping) else None
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if (
        not isinstance(states, Mapping)
        or not isinstance(groups, list)
        or [len(group.get("params", ())) for group in groups] != sizes
    ):
        plan.mismatched.append(
            f"{place}: the checkpoint has no optimizer state with groups of {sizes} parameters"
        )
        return
    parameter: dict[Any, tuple[torch.Tensor, dict[str, Any]]] = {}
    for saved, group in zip(groups, optimizer.param_groups):
        for number, tensor in zip(saved["params"], group["params"]):
            parameter[number] = tensor, group
        hyper = {key: item for key, item in saved.items() if key != "params"}
        plan.want(hyper)
        plan.then(partial(_update, group, hyper))
    for number, (tensor, _) in parameter.items():
        if number not in states and tensor in optimizer.state:
            below = join(join(place, "state"), str(number))
            plan.missing += tensors_below(optimizer.state[tensor], below)
    for number, saved in states.items():
        below = join(join(place, "state"), str(number))
        if number not in parameter or not isinstance(saved, Mapping):
            plan.unexpected += [slot.name for slot in slots_in(saved)]
            continue
        tensor, group = parameter[number]
        own = optimizer.state.get(tensor, {})
        fresh = {}
        for key, item in saved.items():
            if item is LEFT_OUT:
                continue
            if isinstance(item, Slot) and isinstance(own.get(key), torch.Tensor):
                plan.fill(item, own[key])
                continue
            fresh[key] = item
            # As torch does: a step counter stays on the host unless the kernel reads it there.
            on_host = key == "step" and not (group.get("capturable") or group.get("fused"))
            plan.want(item, None if on_host else tensor.device)
        plan.then(partial(_update_state, optimizer, tensor, fresh))
        plan.missing += [
            join(below, key)
            for key, item in own.items()
            if isinstance(item, torch.Tensor) and key not in saved
        ]


def _update(group: dict[str, Any], hyper: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    group.update(filled(hyper, tensors))


def _update_state(
    optimizer: torch.optim.Optimizer,
    parameter: torch.Tensor,
    fresh: Any,
    tensors: Mapping[str, torch.Tensor],
) -> None:
    optimizer.state[parameter].update(filled(fresh, tensors))


class SlotDoor:
    """Reads a state with slots in the place of tensors; what is no plain tensor is read at once."""

    def __init__(
        self,
        container: Container,
        wishes: Wishes,
        read: Callable[[Iterable[str]], dict[str, torch.Tensor]],
        copies: Copies,
    ) -> None:
        self.charge = copies.charge
        self._copies = copies
        self._tensors: dict[str, torch.Tensor] = {}
        self._by_name = container.manifest.by_name
        self._chosen = wishes.chosen
        self._read = read

    def get(self, tag: str, body: Any, place: str) -> Any:
        found = list(tensor_names({tag: body}))
        # Inside an object that is made whole (a namespace, a registered type) nothing can be
        # filled in place.
        inside = {part for part in place.split("/") if part.startswith("$")} - _TRANSPARENT
        if not all(self._chosen(name) for name, _, _ in found):
            return OMIT if inside else LEFT_OUT
        if inside:
            return self._door(found).get(tag, body, place)
        if tag in ("$tensor", "$tied", "$view") or (len(found) == 1 and tag in _WRAPPERS):
            name, kind, inner = found[0]
            record = record_of(name, inner)
            if kind == "$view":
                view = View.from_json(inner, place)
                return Slot(name, record, view.dtype, view.shape, inner)
            entry = self._by_name[record]
            return Slot(name, record, entry.dtype, entry.shape, None)
        return self._door(found).get(tag, body, place)

    def get_array(self, body: Any, place: str) -> Any:
        found = list(tensor_names(body))
        if not all(self._chosen(name) for name, _, _ in found):
            return OMIT
        return self._door(found).get_array(body, place)

    def _door(self, found: list[tuple[str, str, Any]]) -> StateReader:
        records = dict.fromkeys(record_of(name, body) for name, _, body in found)
        missing = [name for name in records if name not in self._tensors]
        if missing:
            self._tensors |= self._read(missing)
        return StateReader(self._tensors, {name for name, _, _ in found}, self._copies)


_WRAPPERS = ("$parameter", "$requires_grad")
#: Tags through which the target is matched with the state.
_TRANSPARENT = {"$tuple", "$dict", "$ordered_dict", "$defaultdict", *TENSOR_TAGS}
