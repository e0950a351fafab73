"""What of a checkpoint goes where in a target: found whole before anything is changed."""

from __future__ import annotations

import os
from collections.abc import (
    Callable,
    ItemsView,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    ValuesView,
)
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..errors import ArgumentError, StateMismatchError, UnsupportedTypeError, quote
from ..format.pointer import join
from ..tensors.memory import dtype_name
from ..tensors.supported import require_fillable
from .objects import call_loader, load_optimizer, loads_itself, may_lack, pair_optimizer, refusal
from .placeholders import LEFT_OUT, Placeholder, filled, leaves_in, placeholders_in, same_state

Assign = Callable[[Any], None]


@dataclass
class Match:
    """What goes where, found before anything is changed.

    Attributes:
        cast: whether a target may have another dtype.
        strict: whether all must fit.
        fills: tensors that exist, and what goes into them.
        objects: what is loaded through its own ``load_state_dict``.
        fresh: by name, tensors that are read into memory of their own, and where that lies.
        actions: what is to be done when all has been read.
        missing, unexpected, mismatched: as in :class:`StateMismatchError`.
    """

    cast: bool
    strict: bool
    fills: list[tuple[Placeholder, torch.Tensor]] = field(default_factory=list)
    objects: list[OwnLoader] = field(default_factory=list)
    fresh: dict[str, tuple[Placeholder, torch.device]] = field(default_factory=dict)
    actions: list[Callable[[Mapping[str, torch.Tensor]], None]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    _seen: dict[int, tuple[str, Any]] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        """Whether nothing goes anywhere, and nothing is wrong so far."""
        found = (self.fills, self.objects, self.fresh, self.actions)
        wrong = (self.missing, self.unexpected, self.mismatched)
        return not any(found) and not any(wrong)

    def is_new(self, target: object, place: str, value: Any) -> bool:
        """Whether an object that is changed as a whole stands at no place before this one."""
        first, other = self._seen.setdefault(id(target), (place, value))
        if first == place:
            return True
        if not same_state(other, value):
            self.mismatched.append(
                f"{place}: the same {type(target).__name__} as at {first}, for which the "
                "checkpoint has another state"
            )
        return False

    def fill(self, slot: Placeholder, tensor: torch.Tensor) -> None:
        """Fill an existing tensor, if it fits.

        Raises:
            UnsupportedTypeError: no tensor could: it has no memory of its own.
        """
        if not tensor.is_nested and not _is_dense(tensor):
            self.mismatched.append(
                f"{slot.name}: a dense tensor in the checkpoint, {_kind(tensor)} in the target"
            )
            return
        try:
            require_fillable(tensor)
        except UnsupportedTypeError as error:
            raise error.at(tensor=slot.name)  # noqa: B904, the same error with its place
        if tuple(tensor.shape) != slot.shape:
            self.mismatched.append(
                f"{slot.name}: shape {list(slot.shape)} in the checkpoint, "
                f"{list(tensor.shape)} in the target"
            )
        elif self.check_dtype(slot, tensor):
            self.fills.append((slot, tensor))

    def check_dtype(self, slot: Placeholder, tensor: torch.Tensor) -> bool:
        """Whether the dtype may go into a tensor."""
        fits = self.cast or dtype_name(tensor) == slot.dtype
        if not fits:
            self.mismatched.append(
                f"{slot.name}: {slot.dtype} in the checkpoint, {dtype_name(tensor)} in the target"
            )
        return fits

    def want(self, value: Any, device: torch.device | None = None) -> None:
        """Read the tensors in ``value`` into memory of their own."""
        for slot in placeholders_in(value):
            self.fresh[slot.name] = (slot, device or torch.device("cpu"))

    def then(self, action: Callable[[Mapping[str, torch.Tensor]], None]) -> None:
        """Do something when all tensors have been read; it gets those of :meth:`want` by name."""
        self.actions.append(action)


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized


def _kind(tensor: torch.Tensor) -> str:
    if tensor.is_quantized:
        return f"a quantized tensor ({str(tensor.dtype).removeprefix('torch.')})"
    layout = str(tensor.layout).removeprefix("torch.")
    return "a dense tensor" if layout == "strided" else f"a tensor of layout {layout}"


def check_target(target: Any, place: str = "", above: tuple[int, ...] = ()) -> None:
    """Whether a target is something that can be filled.

    Raises:
        ArgumentError: it is not, or what stands in it is not.
    """
    where = f"target: {quote(place, 200)}" if place else "target"
    if isinstance(target, (torch.Tensor, torch.nn.Module, torch.optim.Optimizer)):
        return
    if isinstance(target, (Mapping, list, tuple)):
        if id(target) in above:
            raise ArgumentError(f"{where} contains itself")
        pairs = target.items() if isinstance(target, Mapping) else enumerate(target)
        for key, item in pairs:
            check_target(item, join(place, str(key)), (*above, id(target)))
        return
    spent = isinstance(target, (Iterator, KeysView, ValuesView, ItemsView))
    if isinstance(target, type) or spent or not (place or hasattr(target, "load_state_dict")):
        hint = "Give a dict or list of tensors, modules, optimizers and objects with"
        hint = f"{hint} load_state_dict, or one of these alone."
        if isinstance(target, (str, os.PathLike)):
            hint = "The order is load_into(target, path)."
        raise ArgumentError(f"{where} is {quote(target, 60)}, which cannot be filled", hint=hint)


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
        _match_tensor(value, target, place, plan)
    elif isinstance(target, Mapping):
        _match_mapping(value, target, place, plan)
    elif isinstance(target, (list, tuple)):
        _match_sequence(value, target, place, plan, assign)
    elif hasattr(target, "load_state_dict") and not isinstance(target, type):
        _match_own_loader(value, target, place, plan)
    elif assign is not None:
        put = assign
        plan.want(value)
        plan.then(lambda tensors: put(filled(value, tensors)))


def _match_tensor(value: Any, target: torch.Tensor, place: str, plan: Match) -> None:
    if isinstance(value, Placeholder):
        plan.fill(value, target)
    elif isinstance(value, torch.Tensor):
        plan.mismatched.append(
            f"{place}: {_kind(value)} in the checkpoint, {_kind(target)} in the target; "
            "only dense tensors are filled in place, jsonckpt.load gives the others"
        )
    else:
        plan.mismatched.append(f"{place}: no tensor in the checkpoint, a tensor in the target")


def _match_mapping(value: Any, target: Any, place: str, plan: Match) -> None:
    if not isinstance(value, Mapping):
        plan.mismatched.append(
            f"{place}: {type(value).__name__} in the checkpoint, a dict expected"
        )
        return
    for key, item in target.items():
        below = join(place, str(key))
        if key in value:
            can = isinstance(target, MutableMapping)
            match(value[key], item, below, plan, partial(target.__setitem__, key) if can else None)
        else:
            plan.missing += things_below(item, below)
    for key, item in value.items():
        if key not in target:
            plan.unexpected += [slot.name for slot in placeholders_in(item)]


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
    whole = not any(placeholders_in(value)) and all(item is not LEFT_OUT for item in value)
    if isinstance(target, tuple) and assign is not None and whole:
        plain = assign
        plan.then(lambda _: plain(value))


def things_below(target: Any, place: str) -> list[str]:
    """Names of what a target would have filled: tensors, and objects that are loaded whole."""
    if isinstance(target, torch.Tensor):
        return [place]
    if isinstance(target, torch.nn.Module):
        if loads_itself(target):
            return [place]
        target = target.state_dict()
    if isinstance(target, Mapping):
        pairs: Any = target.items()
    elif isinstance(target, (list, tuple)):
        pairs = enumerate(target)
    elif hasattr(target, "load_state_dict"):
        return [place]
    else:
        return []
    return [name for key, item in pairs for name in things_below(item, join(place, str(key)))]


def _match_module(value: Any, module: torch.nn.Module, place: str, plan: Match) -> None:
    if not isinstance(value, Mapping):
        plan.mismatched.append(f"{place}: no state dict in the checkpoint, a module in the target")
        return
    if loads_itself(module):
        _match_own_loader(value, module, place, plan)
        return
    own = module.state_dict()
    for key, item in own.items():
        below = join(place, key)
        prefix, _, last = key.rpartition(".")
        if key in value and last == "_extra_state":
            _want_extra_state(value[key], module.get_submodule(prefix), below, plan)
        elif key in value:
            match(value[key], item, below, plan, None)
        elif not may_lack(module, value, key):
            plan.missing.append(below)
    for key, item in value.items():
        if key not in own:
            plan.unexpected += [slot.name for slot in placeholders_in(item)]


def _want_extra_state(value: Any, owner: torch.nn.Module, place: str, plan: Match) -> None:
    if value is LEFT_OUT:
        return
    plan.want(value)

    def put(tensors: Mapping[str, torch.Tensor]) -> None:
        try:
            owner.set_extra_state(filled(value, tensors))
        except Exception as error:
            raise refusal(owner, place, "set_extra_state", error) from error

    plan.then(put)


def _match_own_loader(value: Any, target: Any, place: str, plan: Match) -> None:
    """An object that is loaded whole, by its own ``load_state_dict``, from memory of its own."""
    if not plan.is_new(target, place, value):
        return
    if isinstance(target, torch.nn.Module):
        own = target.state_dict()
        for key, item in value.items():
            if isinstance(item, Placeholder) and type(own.get(key)) in (
                torch.Tensor,
                torch.nn.Parameter,
            ):
                plan.check_dtype(item, own[key])
    plan.objects.append(OwnLoader(target, place, value))


@dataclass
class OwnLoader:
    """An object, and the state that goes to its ``load_state_dict``."""

    target: Any
    place: str
    value: Any

    def load(self, tensors: Mapping[str, torch.Tensor], plan: Match) -> None:
        """Call it.

        Raises:
            StateMismatchError: the object refused the state.
        """
        state = filled(self.value, tensors)
        if isinstance(self.target, torch.optim.Optimizer):
            load_optimizer(self.target, self.place, state)
        elif isinstance(self.target, torch.nn.Module):
            self._load_module(state, plan)
        else:
            call_loader(self.target, self.place, state)

    def _load_module(self, state: Any, plan: Match) -> None:
        left_out = {key for key, item in self.value.items() if item is LEFT_OUT}
        if plan.strict and not left_out:
            call_loader(self.target, self.place, state)
            return
        try:
            result = call_loader(self.target, self.place, state, partial=True)
        except StateMismatchError as error:
            if plan.strict or not isinstance(error.__cause__, RuntimeError):
                raise
            # A module copies what fits before it says what does not.
            plan.mismatched.append(error.message)
            return
        missing = [
            join(self.place, key)
            for key in getattr(result, "missing_keys", ())
            if key not in left_out
        ]
        unexpected = [join(self.place, key) for key in getattr(result, "unexpected_keys", ())]
        if plan.strict and (missing or unexpected):
            raise StateMismatchError(
                "the checkpoint and the target differ; what fits of this module is loaded",
                missing=missing,
                unexpected=unexpected,
            )
        plan.missing += missing
        plan.unexpected += unexpected


def _match_optimizer(value: Any, optimizer: torch.optim.Optimizer, place: str, plan: Match) -> None:
    groups = value.get("param_groups") if isinstance(value, Mapping) else None
    states = value.get("state") if isinstance(value, Mapping) else None
    if loads_itself(optimizer) and isinstance(value, Mapping):
        _match_own_loader(value, optimizer, place, plan)
        return
    if not isinstance(states, Mapping) or not isinstance(groups, list):
        plan.mismatched.append(f"{place or '/'}: the checkpoint has no state of an optimizer here")
        return
    if not plan.is_new(optimizer, place, value):
        return
    pairing = pair_optimizer(groups, states, optimizer, place)
    plan.missing += pairing.missing
    plan.unexpected += pairing.unexpected
    plan.mismatched += pairing.mismatched
    for misfits in pairing.misfits.values():
        plan.mismatched += misfits
    for saved, own in pairing.groups:
        hyper = {key: item for key, item in saved.items() if key != "params"}
        if "param_names" in own:
            hyper.pop("param_names", None)
        for key, item in hyper.items():
            old = own.get(key)
            plan.want(item, old.device if isinstance(old, torch.Tensor) else None)
        plan.then(partial(_update, own, hyper))
    if not pairing.parameters:
        return
    for key, saved, parameter in pairing.parameters:
        if key not in pairing.misfits:
            below = join(join(place, "state"), str(key))
            _match_entry(states.get(key), saved, optimizer, parameter, below, plan)
    known = {key for key, _, _ in pairing.parameters}
    for key, item in states.items():
        if key in known:
            continue
        if type(key) is int or (isinstance(key, str) and key.isdecimal()):
            plan.unexpected += [slot.name for slot in placeholders_in(item)]
        else:  # as torch does with what belongs to no parameter
            plan.want(item)
            plan.then(partial(_put, optimizer.state, key, item))
    if not any(item is LEFT_OUT for item in leaves_in(states)):
        plan.then(partial(_as_after_loading, optimizer, place))


def _match_entry(
    entry: Any,
    saved_group: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    parameter: torch.Tensor,
    place: str,
    plan: Match,
) -> None:
    """What is kept for one parameter: filled where it is there, else made."""
    own = optimizer.state.get(parameter, {})
    if not isinstance(entry, Mapping):
        if entry is not LEFT_OUT:
            plan.missing += things_below(own, place)
        return
    fresh = {}
    for key, item in entry.items():
        if item is LEFT_OUT:
            continue
        old = own.get(key)
        # As torch does: a step counter stays on the host unless the kernel reads it there.
        on_host = key == "step" and not (saved_group.get("capturable") or saved_group.get("fused"))
        device = torch.device("cpu") if on_host else parameter.device
        if (
            isinstance(item, Placeholder)
            and isinstance(old, torch.Tensor)
            and dtype_name(old) == item.dtype
            and (key != "step" or old.device == device)
        ):
            plan.fill(item, old)
        else:
            fresh[key] = item
            plan.want(item, device)
    gone = [key for key in own if key not in entry]
    for key in gone:
        plan.missing += things_below(own[key], join(place, str(key)))
    stale = [key for key in gone if not things_below(own[key], "")]
    plan.then(partial(_update_state, optimizer, parameter, fresh, stale))


def _update(group: dict[str, Any], hyper: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    group.update(filled(hyper, tensors))


def _put(state: Any, key: Any, item: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    state[key] = filled(item, tensors)


def _update_state(
    optimizer: torch.optim.Optimizer,
    parameter: torch.Tensor,
    fresh: Any,
    stale: list[Any],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    own = optimizer.state[parameter]
    for key in stale:
        del own[key]
    own.update(filled(fresh, tensors))


def _as_after_loading(
    optimizer: torch.optim.Optimizer, place: str, _: Mapping[str, torch.Tensor]
) -> None:
    """What a class does with a state that was put into it, as torch's ``load_state_dict`` asks."""
    state = {"state": optimizer.state, "param_groups": optimizer.param_groups}
    try:
        optimizer.__setstate__(state)
    except Exception as error:
        raise refusal(optimizer, place, "__setstate__", error) from error
