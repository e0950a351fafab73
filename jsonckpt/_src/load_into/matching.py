"""Matches a checkpoint's state with a target, before anything is changed."""

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
from .placeholders import (
    LEFT_OUT,
    Placeholder,
    leaves_in,
    names_in,
    placeholders_in,
    same_state,
    with_tensors,
)

Assign = Callable[[Any], None]


@dataclass
class Match:
    """What is read, and where it goes.

    Attributes:
        cast: whether a target may have another dtype.
        strict: whether all must fit.
        in_place: tensors of the checkpoint, with the existing tensors that they are copied into.
        own_loaders: objects that are loaded by their own ``load_state_dict``.
        allocated: by name, tensors that are read into new memory, and its device.
        actions: are called with these tensors when everything has been read.
        missing, unexpected, mismatched: as in :class:`StateMismatchError`.
    """

    cast: bool
    strict: bool
    in_place: list[tuple[Placeholder, torch.Tensor]] = field(default_factory=list)
    own_loaders: list[OwnLoader] = field(default_factory=list)
    allocated: dict[str, tuple[Placeholder, torch.device]] = field(default_factory=dict)
    actions: list[Callable[[Mapping[str, torch.Tensor]], None]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    _seen: dict[int, tuple[str, Any]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether the plan copies nothing and has no error so far."""
        found = (self.in_place, self.own_loaders, self.allocated, self.actions)
        wrong = (self.missing, self.unexpected, self.mismatched)
        return not any(found) and not any(wrong)

    def is_first(self, target: object, pointer: str, value: Any) -> bool:
        """Whether an object that is changed as a whole is met for the first time."""
        first, other = self._seen.setdefault(id(target), (pointer, value))
        if first == pointer:
            return True
        if not same_state(other, value):
            self.differ(
                pointer,
                f"the same {type(target).__name__} as at {first}, for which the "
                "checkpoint has another state",
            )
        return False

    def copy(self, source: Placeholder, tensor: torch.Tensor) -> None:
        """Copy into an existing tensor, if it fits.

        Raises:
            UnsupportedTypeError: the tensor cannot be filled: it has no memory of its own.
        """
        if not tensor.is_nested and not _is_dense(tensor):
            self.differ(
                source.name, f"a dense tensor in the checkpoint, {_kind(tensor)} in the target"
            )
            return
        try:
            require_fillable(tensor)
        except UnsupportedTypeError as error:
            raise error.at(tensor=source.name)  # noqa: B904, the same error with its tensor
        if tuple(tensor.shape) != source.shape:
            self.differ(
                source.name,
                f"shape {list(source.shape)} in the checkpoint, {list(tensor.shape)} in the target",
            )
        elif self.check_dtype(source, tensor):
            self.in_place.append((source, tensor))

    def differ(self, pointer: str, what: str) -> None:
        """Note that something does not fit."""
        self.mismatched.append(f"{pointer}: {what}")

    def check_dtype(self, source: Placeholder, tensor: torch.Tensor) -> bool:
        """Whether a tensor may take the source's dtype."""
        dtype = dtype_name(tensor)
        fits = self.cast or dtype == source.dtype
        if not fits:
            self.differ(source.name, f"{source.dtype} in the checkpoint, {dtype} in the target")
        return fits

    def allocate(self, value: Any, device: torch.device | None = None) -> None:
        """Read the tensors in ``value`` into new memory."""
        for source in placeholders_in(value):
            self.allocated[source.name] = (source, device or torch.device("cpu"))


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized


def _kind(tensor: torch.Tensor) -> str:
    if tensor.is_quantized:
        return f"a quantized tensor ({str(tensor.dtype).removeprefix('torch.')})"
    layout = str(tensor.layout).removeprefix("torch.")
    return "a dense tensor" if layout == "strided" else f"a tensor of layout {layout}"


def check_target(target: Any, pointer: str = "", above: tuple[int, ...] = ()) -> None:
    """Check that a target can be filled.

    Raises:
        ArgumentError: it cannot, or something in it cannot.
    """
    where = f"target: {quote(pointer, 200)}" if pointer else "target"
    if isinstance(target, (torch.Tensor, torch.nn.Module, torch.optim.Optimizer)):
        return
    if isinstance(target, (Mapping, list, tuple)):
        if id(target) in above:
            raise ArgumentError(f"{where} contains itself")
        pairs = target.items() if isinstance(target, Mapping) else enumerate(target)
        for key, item in pairs:
            check_target(item, join(pointer, str(key)), (*above, id(target)))
        return
    spent = isinstance(target, (Iterator, KeysView, ValuesView, ItemsView))
    if isinstance(target, type) or spent or not (pointer or hasattr(target, "load_state_dict")):
        hint = "Give a dict or list of tensors, modules, optimizers and objects with"
        hint = f"{hint} load_state_dict, or one of these alone."
        if isinstance(target, (str, os.PathLike)):
            hint = "The order is load_into(target, path)."
        raise ArgumentError(f"{where} is {quote(target, 60)}, which cannot be filled", hint=hint)


def match(value: Any, target: Any, pointer: str, plan: Match, assign: Assign | None) -> None:
    """Plan how ``value`` goes into ``target``.

    Args:
        assign: replaces the target by another object, if that is possible.
    """
    if value is LEFT_OUT:
        return
    if isinstance(target, torch.nn.Module):
        _match_module(value, target, pointer, plan)
    elif isinstance(target, torch.optim.Optimizer):
        _match_optimizer(value, target, pointer, plan)
    elif isinstance(target, torch.Tensor):
        _match_tensor(value, target, pointer, plan)
    elif isinstance(target, Mapping):
        _match_mapping(value, target, pointer, plan)
    elif isinstance(target, (list, tuple)):
        _match_sequence(value, target, pointer, plan, assign)
    elif hasattr(target, "load_state_dict") and not isinstance(target, type):
        _match_own_loader(value, target, pointer, plan)
    elif assign is not None:
        put = assign
        plan.allocate(value)
        plan.actions.append(lambda tensors: put(with_tensors(value, tensors)))


def _match_tensor(value: Any, target: torch.Tensor, pointer: str, plan: Match) -> None:
    if isinstance(value, Placeholder):
        plan.copy(value, target)
    elif isinstance(value, torch.Tensor):
        plan.differ(
            pointer,
            f"{_kind(value)} in the checkpoint, {_kind(target)} in the target; "
            "only dense tensors are filled in place, jsonckpt.load gives the others",
        )
    else:
        plan.differ(pointer, "no tensor in the checkpoint, a tensor in the target")


def _match_mapping(value: Any, target: Any, pointer: str, plan: Match) -> None:
    if not isinstance(value, Mapping):
        plan.differ(pointer, f"{type(value).__name__} in the checkpoint, a dict expected")
        return
    for key, item in target.items():
        below = join(pointer, str(key))
        if key in value:
            can = isinstance(target, MutableMapping)
            match(value[key], item, below, plan, partial(target.__setitem__, key) if can else None)
        else:
            plan.missing += names_below(item, below)
    for key, item in value.items():
        if key not in target:
            plan.unexpected += names_in(item)


def _match_sequence(
    value: Any, target: Any, pointer: str, plan: Match, assign: Assign | None
) -> None:
    if not isinstance(value, (list, tuple)) or len(value) != len(target):
        plan.differ(pointer, f"the checkpoint does not have a sequence of {len(target)} here")
        return
    for position, (item, old) in enumerate(zip(value, target)):
        put = partial(target.__setitem__, position) if isinstance(target, list) else None
        match(item, old, join(pointer, str(position)), plan, put)
    whole = not any(placeholders_in(value)) and all(item is not LEFT_OUT for item in value)
    if isinstance(target, tuple) and assign is not None and whole:
        plain = assign
        plan.actions.append(lambda _: plain(value))


def names_below(target: Any, pointer: str) -> list[str]:
    """Names of the tensors in a target, and of the objects that are loaded as a whole."""
    if isinstance(target, torch.Tensor):
        return [pointer]
    if isinstance(target, torch.nn.Module):
        if loads_itself(target):
            return [pointer]
        target = target.state_dict()
    if isinstance(target, Mapping):
        pairs: Any = target.items()
    elif isinstance(target, (list, tuple)):
        pairs = enumerate(target)
    elif hasattr(target, "load_state_dict"):
        return [pointer]
    else:
        return []
    return [name for key, item in pairs for name in names_below(item, join(pointer, str(key)))]


def _match_module(value: Any, module: torch.nn.Module, pointer: str, plan: Match) -> None:
    if not isinstance(value, Mapping):
        plan.differ(pointer, "no state dict in the checkpoint, a module in the target")
        return
    if loads_itself(module):
        _match_own_loader(value, module, pointer, plan)
        return
    own = module.state_dict()
    for key, item in own.items():
        below = join(pointer, key)
        prefix, _, last = key.rpartition(".")
        if key in value and last == "_extra_state":
            _want_extra_state(value[key], module.get_submodule(prefix), below, plan)
        elif key in value:
            match(value[key], item, below, plan, None)
        elif not may_lack(module, value, key):
            plan.missing.append(below)
    for key, item in value.items():
        if key not in own:
            plan.unexpected += names_in(item)


def _want_extra_state(value: Any, owner: torch.nn.Module, pointer: str, plan: Match) -> None:
    if value is LEFT_OUT:
        return
    plan.allocate(value)

    def put(tensors: Mapping[str, torch.Tensor]) -> None:
        try:
            owner.set_extra_state(with_tensors(value, tensors))
        except Exception as error:
            raise refusal(owner, pointer, "set_extra_state", error) from error

    plan.actions.append(put)


def _match_own_loader(value: Any, target: Any, pointer: str, plan: Match) -> None:
    """An object that is loaded by its own ``load_state_dict``, from new memory."""
    if not plan.is_first(target, pointer, value):
        return
    if isinstance(target, torch.nn.Module):
        own = target.state_dict()
        for key, item in value.items():
            if isinstance(item, Placeholder) and type(own.get(key)) in (
                torch.Tensor,
                torch.nn.Parameter,
            ):
                plan.check_dtype(item, own[key])
    plan.own_loaders.append(OwnLoader(target, pointer, value))


@dataclass
class OwnLoader:
    """An object, and the state that goes to its ``load_state_dict``."""

    target: Any
    pointer: str
    value: Any

    def load(self, tensors: Mapping[str, torch.Tensor], plan: Match) -> None:
        """Call its ``load_state_dict``.

        Raises:
            StateMismatchError: the object refused the state.
        """
        state = with_tensors(self.value, tensors)
        if isinstance(self.target, torch.optim.Optimizer):
            load_optimizer(self.target, self.pointer, state)
        elif isinstance(self.target, torch.nn.Module):
            self._load_module(state, plan)
        else:
            call_loader(self.target, self.pointer, state)

    def _load_module(self, state: Any, plan: Match) -> None:
        left_out = {key for key, item in self.value.items() if item is LEFT_OUT}
        if plan.strict and not left_out:
            call_loader(self.target, self.pointer, state)
            return
        try:
            result = call_loader(self.target, self.pointer, state, partial=True)
        except StateMismatchError as error:
            if plan.strict or not isinstance(error.__cause__, RuntimeError):
                raise
            # A module copies what fits before it reports what does not.
            plan.mismatched.append(error.message)
            return
        missing = [
            join(self.pointer, key)
            for key in getattr(result, "missing_keys", ())
            if key not in left_out
        ]
        unexpected = [join(self.pointer, key) for key in getattr(result, "unexpected_keys", ())]
        if plan.strict and (missing or unexpected):
            raise StateMismatchError(
                "the checkpoint and the target differ; the part of this module that fits is loaded",
                missing=missing,
                unexpected=unexpected,
            )
        plan.missing += missing
        plan.unexpected += unexpected


def _match_optimizer(
    value: Any, optimizer: torch.optim.Optimizer, pointer: str, plan: Match
) -> None:
    groups = value.get("param_groups") if isinstance(value, Mapping) else None
    states = value.get("state") if isinstance(value, Mapping) else None
    if loads_itself(optimizer) and isinstance(value, Mapping):
        _match_own_loader(value, optimizer, pointer, plan)
        return
    if not isinstance(states, Mapping) or not isinstance(groups, list):
        plan.differ(pointer or "/", "the checkpoint has no state of an optimizer here")
        return
    if not plan.is_first(optimizer, pointer, value):
        return
    pairing = pair_optimizer(groups, states, optimizer, pointer)
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
            plan.allocate(item, old.device if isinstance(old, torch.Tensor) else None)
        plan.actions.append(partial(_update, own, hyper))
    if not pairing.parameters:
        return
    for key, saved, parameter in pairing.parameters:
        if key not in pairing.misfits:
            below = join(join(pointer, "state"), str(key))
            _match_entry(states.get(key), saved, optimizer, parameter, below, plan)
    known = {key for key, _, _ in pairing.parameters}
    for key, item in states.items():
        if key in known:
            continue
        if type(key) is int or (isinstance(key, str) and key.isdecimal()):
            plan.unexpected += names_in(item)
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
    plan: Match,
) -> None:
    """The state of one parameter: copied into existing tensors, else into new ones."""
    own = optimizer.state.get(parameter, {})
    if not isinstance(entry, Mapping):
        if entry is not LEFT_OUT:
            plan.missing += names_below(own, pointer)
        return
    new = {}
    for key, item in entry.items():
        if item is LEFT_OUT:
            continue
        old = own.get(key)
        # As torch does: a step counter stays on the host, unless a kernel reads it on the device.
        on_host = key == "step" and not (saved_group.get("capturable") or saved_group.get("fused"))
        device = torch.device("cpu") if on_host else parameter.device
        if (
            isinstance(item, Placeholder)
            and isinstance(old, torch.Tensor)
            and dtype_name(old) == item.dtype
            and (key != "step" or old.device == device)
        ):
            plan.copy(item, old)
        else:
            new[key] = item
            plan.allocate(item, device)
    gone = [key for key in own if key not in entry]
    for key in gone:
        plan.missing += names_below(own[key], join(pointer, str(key)))
    stale = [key for key in gone if not names_below(own[key], "")]
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
