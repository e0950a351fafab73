"""Takes the state dicts of modules, optimizers and schedulers that were pickled whole.

Where their classes were not imported, what the pickle says of their attributes is enough: a module
keeps its parameters, buffers and submodules in dictionaries of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from ..errors import FormatError, LimitError, UnsupportedTypeError, quote
from ..format.pointer import join
from ..pickles.unread import attributes_of
from ..pickles.values import Unread
from .select import ATOMS, children, rebuilt

#: Modules with tensors in a form that only their own code can take out.
_PACKED: Final = ("torch.ao.nn.quantized.", "torch.nn.quantized.", "torch.jit.")
_DEPTH: Final = 100
_MOST: Final = 1_000_000
#: Schedulers whose state is all of their attributes but the optimizer.
_SCHEDULERS: Final = frozenset(
    f"torch.optim.lr_scheduler.{name}"
    for name in (
        "StepLR",
        "MultiStepLR",
        "ConstantLR",
        "LinearLR",
        "ExponentialLR",
        "PolynomialLR",
        "CosineAnnealingLR",
        "CosineAnnealingWarmRestarts",
        "ReduceLROnPlateau",
        "OneCycleLR",
    )
)


@dataclass(slots=True)
class _Taken:
    """What was taken.

    Attributes:
        names: of the classes of objects.
        own: those of another program than torch, which may add to their state dicts.
        modules: how many modules, parameters and buffers were walked through.
    """

    names: dict[str, None] = field(default_factory=dict)
    own: dict[str, None] = field(default_factory=dict)
    modules: int = 0

    def add(self, name: str, *, inner: bool = False) -> None:
        """Note the class of an object."""
        if not inner:
            self.names[name] = None
        if not name.startswith("torch."):
            self.own[name] = None


def state_dicts(state: Any) -> tuple[Any, list[str]]:
    """The state, with the state dict of each module, optimizer and scheduler in its place.

    Args:
        state: nested values, with objects or with what stands in for them.

    Returns:
        The new state, and notes on what was taken.

    Raises:
        UnsupportedTypeError: a module of quantized or scripted parts.
        LimitError: modules are nested too deeply.
    """
    taken = _Taken()

    def changed(value: Any) -> Any:
        if isinstance(value, Unread):
            return _of_unread(value, taken)
        if not _is_object(value):
            return rebuilt(value, lambda _, child: changed(child))
        taken.names[f"{type(value).__module__}.{type(value).__qualname__}"] = None
        return value.state_dict()

    state = changed(state)
    if not taken.names:
        return state, ["no object with a state dict was found"]
    notes = [f"took the state dict of {', '.join(map(quote, taken.names))}"]
    if taken.own:
        notes.append(
            f"not known: what state_dict() of {', '.join(map(quote, taken.own))} adds to the "
            "parameters and buffers; --unsafe-pickle with --state-dict calls it"
        )
    return state, notes


def refuse_objects(state: Any, file: object = None) -> None:
    """Refuse modules, optimizers and the like, which only a pickle can hold.

    Raises:
        UnsupportedTypeError: there is one.
    """

    def refuse(value: Any, name: str) -> None:
        if _is_object(value):
            raise UnsupportedTypeError(
                f"a whole object of class {quote(type(value).__qualname__)}",
                file=file,
                tensor=name or None,
                hint="--state-dict takes its state dict.",
            )
        for key, child in children(value):
            if type(child) not in ATOMS:
                refuse(child, join(name, str(key)))

    refuse(state, "")


def _is_object(value: Any) -> bool:
    return not isinstance(value, type) and callable(getattr(value, "state_dict", None))


def _of_unread(value: Unread, taken: _Taken) -> Any:
    attributes = attributes_of(value)
    if _is_module(attributes):
        taken.add(value.name)
        state: OrderedDict[str, Any] = OrderedDict()
        state._metadata = OrderedDict()  # type: ignore[attr-defined]
        _add_module(value, "", state, taken, _DEPTH)
        return state
    if isinstance(attributes.get("state"), dict) and type(attributes.get("param_groups")) is list:
        taken.add(value.name)
        return _optimizer_state(attributes)
    if value.name in _SCHEDULERS and attributes:
        taken.add(value.name)
        return {name: each for name, each in attributes.items() if name != "optimizer"}
    return value


def _is_module(attributes: dict[str, Any]) -> bool:
    kinds = (attributes.get(name) for name in ("_parameters", "_buffers", "_modules"))
    return all(isinstance(kind, dict) for kind in kinds)


def _add_module(value: Any, prefix: str, state: Any, taken: _Taken, depth: int) -> None:
    """Add the tensors of a module and of those below, in the order of ``state_dict()``."""
    attributes = attributes_of(value)
    name = getattr(value, "name", type(value).__name__)
    if not _is_module(attributes) or name.startswith(_PACKED):
        raise UnsupportedTypeError(
            f"the module {quote(prefix.rstrip('.') or 'itself')} is of class {quote(name)}, whose "
            "state dict only its own code can take",
            hint="Pass --unsafe-pickle with --state-dict if you trust whoever made it.",
        )
    taken.modules += 1 + sum(len(attributes[kind]) for kind in ("_parameters", "_buffers"))
    if depth == 0 or taken.modules > _MOST:
        raise LimitError("the modules of this pickle are nested too deeply")
    taken.add(name, inner=True)
    state._metadata[prefix[:-1]] = {"version": _version(name)}
    hidden = attributes.get("_non_persistent_buffers_set")
    hidden = hidden if isinstance(hidden, set | frozenset) else ()
    for kind, left_out in (("_parameters", ()), ("_buffers", hidden)):
        for key, tensor in attributes[kind].items():
            if tensor is not None and key not in left_out:
                plain = isinstance(tensor, torch.Tensor)
                state[f"{prefix}{key}"] = tensor.detach() if plain else tensor
    for key, module in attributes["_modules"].items():
        if module is not None:
            _add_module(module, f"{prefix}{key}.", state, taken, depth - 1)


def _version(name: str) -> int:
    """The version of a module of torch, which its state dict carries."""
    module, _, kind = name.rpartition(".")
    found = getattr(torch.nn, kind, None) if module.startswith("torch.nn.") else None
    version = getattr(found, "_version", 1)
    return version if isinstance(version, int) else 1


def _optimizer_state(attributes: dict[str, Any]) -> dict[str, Any]:
    """The state dict of an optimizer: its parameters are numbers there."""
    numbers: dict[int, int] = {}
    groups = []
    for group in attributes["param_groups"]:
        parameters = group.get("params") if isinstance(group, dict) else None
        if not isinstance(parameters, list | tuple):
            raise FormatError(
                "an optimizer whose groups of parameters are no dictionaries of lists"
            )
        for parameter in parameters:
            numbers.setdefault(id(parameter), len(numbers))
        rest = {key: value for key, value in group.items() if key != "params"}
        groups.append({**rest, "params": [numbers[id(parameter)] for parameter in parameters]})
    state = {numbers.get(id(key), key): value for key, value in attributes["state"].items()}
    return {"state": state, "param_groups": groups}
