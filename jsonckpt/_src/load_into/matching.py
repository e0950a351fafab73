"""Matches a checkpoint's state with a target, before anything is changed."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    ValuesView,
)
from functools import partial
from typing import Any

import torch

from ..errors import ArgumentError, quote
from ..format.pointer import join
from .aliases import with_tied_names
from .objects import loads_itself, may_lack, refusal
from .optimizers import match_optimizer
from .placeholders import LEFT_OUT, Placeholder, placeholders_in, with_tensors
from .plan import OwnLoader, Plan, below, described

Assign = Callable[[Any], None]


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


def match(value: Any, target: Any, pointer: str, plan: Plan, assign: Assign | None) -> None:
    """Plan how ``value`` goes into ``target``.

    Args:
        assign: replaces the target by another object, if that is possible.
    """
    if value is LEFT_OUT:
        return
    if isinstance(target, torch.nn.Module):
        _match_module(value, target, pointer, plan)
    elif isinstance(target, torch.optim.Optimizer):
        if loads_itself(target) and isinstance(value, Mapping):
            _match_own_loader(value, target, pointer, plan)
        else:
            match_optimizer(value, target, pointer, plan)
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


def _match_tensor(value: Any, target: torch.Tensor, pointer: str, plan: Plan) -> None:
    if isinstance(value, Placeholder):
        plan.copy(value, target)
    else:
        found = described(value)
        composite = isinstance(value, torch.Tensor)
        wanted = described(target) if composite else "a tensor"
        only = "; only jsonckpt.load can give it" if composite else ""
        what = f"{found} in the checkpoint, {wanted} in the target{only}"
        plan.differ(pointer, what, "composite" if composite else "kind")


def _match_mapping(value: Any, target: Any, pointer: str, plan: Plan) -> None:
    if not isinstance(value, Mapping):
        what = f"{described(value)} in the checkpoint, {described(target)} in the target"
        plan.differ(pointer, what)
        return
    value = plan.prefixes.align(value, target, pointer)
    # Programs that write JSON make strings of integer keys. The names of both are the same.
    other_type = {str(key): key for key in value if key not in target}
    for key, item in target.items():
        place = join(pointer, str(key))
        if key in value:
            can = isinstance(target, MutableMapping)
            match(value[key], item, place, plan, partial(target.__setitem__, key) if can else None)
        elif str(key) in other_type:
            found = other_type.pop(str(key))
            what = (
                f"the key is {described(found)} in the checkpoint, {described(key)} in the target"
            )
            plan.differ(place, what, "key")
        else:
            plan.add_missing(item, place)
            if not isinstance(item, (Mapping, list, tuple, torch.Tensor)) and not below(item, ""):
                plan.kept.append(place)
    for text, key in other_type.items():
        plan.add_unexpected(value[key], join(pointer, text))


def _match_sequence(
    value: Any, target: Any, pointer: str, plan: Plan, assign: Assign | None
) -> None:
    if not isinstance(value, (list, tuple)) or len(value) != len(target):
        what = f"{described(value)} in the checkpoint, {described(target)} in the target"
        plan.differ(pointer, what)
        return
    items = target if isinstance(target, list) else list(target)
    can = items is target or assign is not None
    for position, (item, old) in enumerate(zip(value, target)):
        put = partial(items.__setitem__, position) if can else None
        match(item, old, join(pointer, str(position)), plan, put)
    if items is not target and assign is not None:
        plan.actions.append(partial(_put_tuple, value, target, items, assign))


def _put_tuple(value: Any, target: Any, items: list[Any], assign: Assign, _: object) -> None:
    """Replace a tuple by one with the same objects, and with the saved values beside them."""
    if all(item is old for item, old in zip(items, target)):
        return
    if type(target) is tuple:
        assign(tuple(items))
    elif hasattr(target, "_make"):
        assign(target._make(items))
    elif not any(placeholders_in(value)) and LEFT_OUT not in value:
        assign(value)  # a type of its own, such as torch.Size


def _match_module(value: Any, module: torch.nn.Module, pointer: str, plan: Plan) -> None:
    if not isinstance(value, Mapping):
        kind = type(module).__name__
        what = f"{described(value)} in the checkpoint, a state dict for {kind} expected"
        plan.differ(pointer, what)
        return
    own = module.state_dict()
    saved_name = plan.saved_names.get(id(module))
    if saved_name is not None:
        value = renamed(value, {saved_name(key): key for key in own}, saved_name)
    value = plan.prefixes.align(value, own, pointer)
    if loads_itself(module):
        _match_own_loader(value, module, pointer, plan)
        return
    for key, item in own.items():
        place = join(pointer, key)
        prefix, _, last = key.rpartition(".")
        if key in value and last == "_extra_state":
            _want_extra_state(value[key], module.get_submodule(prefix), place, plan)
        elif key in value:
            match(value[key], item, place, plan, None)
        elif not may_lack(module, value, key):
            plan.missing[place] = item if isinstance(item, torch.Tensor) else None
    for key, item in value.items():
        if key not in own:
            plan.add_unexpected(item, join(pointer, key))


def renamed(value: Any, keys: Mapping[str, str], saved_name: Callable[[str], str]) -> Any:
    """A saved state dict under a module's own names.

    Args:
        keys: the module's names, by those in the checkpoint.
        saved_name: the name in the checkpoint of one of the module's.
    """
    result: Any = OrderedDict((keys.get(key, key), item) for key, item in value.items())
    metadata = getattr(value, "_metadata", None)
    if isinstance(metadata, Mapping):
        paths = {saved_name(path): path for path in parents(keys.values())}
        result._metadata = OrderedDict(
            (paths.get(path, path), item) for path, item in metadata.items()
        )
    return result


def parents(keys: Iterable[str]) -> Iterator[str]:
    """The paths of the modules that hold these tensors. Inner ones come last."""
    for key in keys:
        parts = key.split(".")[:-1]
        yield from (".".join(parts[:count]) for count in range(len(parts) + 1))


def _want_extra_state(value: Any, owner: torch.nn.Module, pointer: str, plan: Plan) -> None:
    if value is LEFT_OUT:
        return
    plan.allocate(value)

    def put(tensors: Mapping[str, torch.Tensor]) -> None:
        try:
            owner.set_extra_state(with_tensors(value, tensors))
        except Exception as error:
            raise refusal(owner, pointer, "set_extra_state", error) from error

    plan.actions.append(put)


def _match_own_loader(value: Any, target: Any, pointer: str, plan: Plan) -> None:
    """An object that is loaded by its own ``load_state_dict``, from new memory."""
    if not plan.is_first(target, pointer, value):
        return
    if isinstance(target, torch.nn.Module):
        own = target.state_dict()
        value = with_tied_names(value, own)
        for key, item in value.items():
            if isinstance(item, Placeholder) and type(own.get(key)) in (
                torch.Tensor,
                torch.nn.Parameter,
            ):
                plan.check_dtype(item, own[key])
    plan.own_loaders.append(OwnLoader(target, pointer, value))
