"""Optimizers: which saved state belongs to which parameter, and whether it fits.

An optimizer's state names each parameter by a number only. This module finds the parameter, for
``load_into`` and ``training.restore_optimizer``. The tensors of a saved state may be any objects
with a shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch

from ..errors import StateMismatchError, quote
from ..format.pointer import join
from .names import WRAPPERS, Prefixes
from .objects import call_loader, loads_itself

#: Settings of torch's optimizers that only control the computation, or that a release of torch
#: added.
_SWITCHES: Final = {
    "capturable",
    "decoupled_weight_decay",
    "differentiable",
    "foreach",
    "fused",
    "maximize",
    "nesterov",
    "param_names",
    "params",
}
#: Settings that schedulers put into a group.
_SCHEDULED: Final = {
    "base_momentum",
    "initial_lr",
    "max_lr",
    "max_momentum",
    "min_lr",
    "swa_lr",
}
#: State that torch's optimizers keep for each parameter after the first step.
_ALWAYS: Final[Mapping[str, tuple[str, ...]]] = {
    "ASGD": ("eta", "mu", "ax"),
    "Adadelta": ("square_avg", "acc_delta"),
    "Adagrad": ("sum",),
    "Adam": ("exp_avg", "exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq"),
    "Adamax": ("exp_avg", "exp_inf"),
    "LBFGS": ("func_evals", "n_iter"),
    "Muon": ("momentum_buffer",),
    "NAdam": ("exp_avg", "exp_avg_sq", "mu_product"),
    "RAdam": ("exp_avg", "exp_avg_sq"),
    "RMSprop": ("square_avg",),
    "Rprop": ("prev", "step_size"),
    "SparseAdam": ("exp_avg", "exp_avg_sq"),
}
#: Tensors of torch's optimizers. Each has the parameter's shape, except those of LBFGS (as long as
#: all parameters) and two of Adafactor. A program may add tensors of its own.
_SHAPED: Final = {
    *(name for names in _ALWAYS.values() for name in names),
    *("col_var", "grad_avg", "max_exp_avg_sq", "momentum_buffer", "row_var", "variance"),
    *("d", "old_dirs", "old_stps", "prev_flat_grad"),
}
#: Names of parameters are compared without what torch's wrappers of a model add to them.
_UNWRAPPED: Final = Prefixes(WRAPPERS)


@dataclass
class Pairing:
    """Which part of a saved optimizer state belongs to which part of an optimizer.

    Attributes:
        groups: ``(saved group, own group)``.
        parameters: ``(key in the saved state, saved group, parameter)``.
        misfits: errors in the tensors, by key in the saved state.
        missing, unexpected, mismatched: as in :class:`StateMismatchError`, ``misfits`` excluded.
    """

    groups: list[tuple[Mapping[str, Any], dict[str, Any]]] = field(default_factory=list)
    parameters: list[tuple[Any, Mapping[str, Any], torch.Tensor]] = field(default_factory=list)
    misfits: dict[Any, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def require(self) -> None:
        """Raise a StateMismatchError if anything differs."""
        mismatched = [
            *self.mismatched,
            *(text for misfit in self.misfits.values() for text in misfit),
        ]
        if self.missing or self.unexpected or mismatched:
            raise StateMismatchError(
                "the saved optimizer does not fit this one; nothing has been changed",
                missing=self.missing,
                unexpected=self.unexpected,
                mismatched=mismatched,
                hint="Build model and optimizer as in the run that saved it.",
            )

    def reordered(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The saved state with groups and parameters in the optimizer's order.

        Settings that an older release of torch did not save are taken from the optimizer.
        """
        keys = {id(parameter): key for key, _, parameter in self.parameters}
        groups = []
        for saved, own in self.groups:
            group = {**saved, "params": [keys[id(parameter)] for parameter in own["params"]]}
            if "param_names" in own:
                group["param_names"] = own["param_names"]
            groups.append({**group, **{key: own[key] for key in own if key not in group}})
        return {**state, "param_groups": groups}


def pair_optimizer(
    saved: Sequence[Mapping[str, Any]],
    state: Mapping[Any, Any],
    optimizer: torch.optim.Optimizer,
    pointer: str,
    strip: Callable[[str], str] = str,
) -> Pairing:
    """Find the saved state of each parameter: by name if both sides have names, else by number.

    Args:
        saved: the saved ``param_groups``.
        state: the saved ``state``.
        pointer: of the optimizer.
        strip: removes prefixes from the names of both sides.
    """
    pairing = Pairing()
    names_of = partial(_names, strip=strip)
    own = optimizer.param_groups
    where = pointer or "/"
    if not all(isinstance(group, Mapping) and _is_numbers(group.get("params")) for group in saved):
        pairing.mismatched.append(f"{where}: its groups have no lists of numbers as params")
    elif saved and all(map(names_of, (*saved, *own))):
        _pair_by_name(saved, own, pointer, pairing, names_of)
    elif [len(group["params"]) for group in saved] == [len(group["params"]) for group in own]:
        for theirs, ours in zip(saved, own):
            pairing.groups.append((theirs, ours))
            pairing.parameters += [
                (key, theirs, tensor) for key, tensor in zip(theirs["params"], ours["params"])
            ]
    else:
        sizes = [len(group["params"]) for group in own]
        pairing.mismatched.append(
            f"{where}: groups of {[len(group['params']) for group in saved]} parameters in the "
            f"checkpoint, groups of {sizes} parameters in the target"
        )
    if not pairing.parameters:
        return pairing
    other = _other_kind(pairing, state, optimizer)
    if other:
        pairing.mismatched.append(
            f"{where}: the saved state is of another kind of optimizer: {other}"
        )
        pairing.groups, pairing.parameters = [], []
        return pairing
    _check_shapes(pairing, state, optimizer, join(pointer, "state"))
    return pairing


def _is_numbers(params: Any) -> bool:
    return isinstance(params, (list, tuple)) and all(type(number) is int for number in params)


def parameter_names(groups: Iterable[Any], strip: Callable[[str], str] = str) -> list[str]:
    """The names of the parameters in groups, without wrappers; empty if a group has none."""
    found = [_names(group, strip) if isinstance(group, Mapping) else [] for group in groups]
    return [name for names in found for name in names] if all(found) else []


def _names(group: Mapping[str, Any], strip: Callable[[str], str]) -> list[str]:
    """The names of a group's parameters; empty if they are not distinct."""
    names = group.get("param_names")
    if not isinstance(names, (list, tuple)) or len(names) != len(group.get("params", ())):
        return []
    plain = [strip(_UNWRAPPED.strip(strip(name))) for name in names if isinstance(name, str)]
    return plain if len(set(plain)) == len(names) else []


def _pair_by_name(
    saved: Sequence[Mapping[str, Any]],
    own: list[dict[str, Any]],
    pointer: str,
    pairing: Pairing,
    names_of: Callable[[Mapping[str, Any]], list[str]],
) -> None:
    """Pair groups and parameters, which may be in any order."""
    keys = {name: key for group in saved for name, key in zip(names_of(group), group["params"])}
    home = {name: group for group in saved for name in names_of(group)}
    mine = {name for group in own for name in names_of(group)}
    state = join(pointer, "state")
    pairing.missing = [join(state, name) for name in sorted(mine - keys.keys())]
    pairing.unexpected = [join(state, name) for name in sorted(keys.keys() - mine)]
    for position, ours in enumerate(own):
        names = names_of(ours)
        theirs = next((home[name] for name in names if name in home), None)
        if theirs is None:
            continue
        pairing.groups.append((theirs, ours))
        for name, parameter in zip(names, ours["params"]):
            if name not in home:
                continue
            pairing.parameters.append((keys[name], home[name], parameter))
            if home[name] is not theirs:
                pairing.mismatched.append(
                    f"{join(state, name)}: in another group of parameters than in group {position} "
                    f"of the target"
                )


def _made_by_torch(optimizer: torch.optim.Optimizer) -> str:
    """The name of torch's class that defines the optimizer's ``step``; empty if torch does not."""
    for kind in type(optimizer).__mro__:
        if "step" in vars(kind):
            return kind.__name__ if kind.__module__.partition(".optim")[0] == "torch" else ""
    return ""


def _other_kind(
    pairing: Pairing, state: Mapping[Any, Any], optimizer: torch.optim.Optimizer
) -> str | None:
    """Why the state is not of this kind of optimizer. Settings of other releases do not count."""
    for saved, own in pairing.groups:
        lacking = optimizer.defaults.keys() - saved.keys() - _SWITCHES
        foreign = saved.keys() - own.keys() - _SWITCHES - _SCHEDULED
        if lacking and foreign:
            return f"it has {_listed(foreign)} and lacks {_listed(lacking)}"
    always = _ALWAYS.get(_made_by_torch(optimizer), ())
    for key, _, _ in pairing.parameters:
        entry = state.get(key)
        if isinstance(entry, Mapping) and entry:
            missing = set(always) - entry.keys()
            if missing:
                return f"it has {_listed(entry.keys())} and lacks {_listed(missing)}"
    return None


def _listed(keys: Iterable[Any]) -> str:
    return ", ".join(quote(key) for key in sorted(map(str, keys))[:8])


def _check_shapes(
    pairing: Pairing, state: Mapping[Any, Any], optimizer: torch.optim.Optimizer, pointer: str
) -> None:
    maker = _made_by_torch(optimizer)
    total = sum(
        parameter.numel() * (2 if parameter.is_complex() else 1)
        for _, _, parameter in pairing.parameters
    )
    wanted: dict[Any, list[tuple[Any, tuple[int, ...], tuple[int, ...]]]] = {}
    for key, _, parameter in pairing.parameters:
        entry = state.get(key)
        for name, shape in _shapes(entry) if isinstance(entry, Mapping) else ():
            fits = tuple(parameter.shape)
            if maker == "LBFGS":
                fits = (total,)
            elif maker == "Adafactor" and name in ("row_var", "col_var") and len(fits) > 1:
                fits = (*fits[:-1], 1) if name == "row_var" else (*fits[:-2], 1, fits[-1])
            wanted.setdefault(name, []).append((key, shape, fits))
    for name, found in wanted.items():
        # Other optimizers may keep tensors of any shape. But if the right shapes are there in
        # another order, the parameters have been swapped.
        swapped = sorted(shape for _, shape, _ in found) == sorted(fits for _, _, fits in found)
        for key, shape, fits in found if swapped or (maker and name in _SHAPED) else ():
            if shape != fits:
                pairing.misfits.setdefault(key, []).append(
                    f"{join(join(pointer, str(key)), str(name))}: shape {list(shape)} in the "
                    f"checkpoint, a parameter of {list(fits)} in the target"
                )


def _shapes(entry: Mapping[Any, Any]) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The shapes of the tensors that an optimizer keeps for a parameter; numbers have none."""
    for name, value in entry.items():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            shape = getattr(item, "shape", None)
            if isinstance(shape, tuple) and len(shape) > 0:
                yield name, tuple(shape)


def load_optimizer(optimizer: torch.optim.Optimizer, pointer: str, saved: dict[str, Any]) -> None:
    """``optimizer.load_state_dict(saved)``, but every state tensor keeps its saved dtype.

    Raises:
        StateMismatchError: the state does not fit; the optimizer is unchanged, unless it has
            a ``load_state_dict`` of its own, which failed.
    """
    state, groups = saved.get("state"), saved.get("param_groups")
    keys: list[tuple[Any, torch.Tensor]] = []
    if not loads_itself(optimizer) and isinstance(state, Mapping) and isinstance(groups, Sequence):
        pairing = pair_optimizer(groups, state, optimizer, pointer)
        pairing.require()
        saved = pairing.reordered(saved)
        keys = [(key, parameter) for key, _, parameter in pairing.parameters]
        if any(isinstance(key, str) and key.isdecimal() for key in state):
            raise StateMismatchError(
                "the keys of the optimizer's state are strings, expected the integers of "
                "param_groups",
                hint="They passed through a JSON that has no integer keys: "
                "{int(key): value for key, value in state.items()}.",
            )
    call_loader(optimizer, pointer, saved)
    if not keys and isinstance(state, Mapping):
        own = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        keys = list(enumerate(own))
    for key, parameter in keys:
        entry = state.get(key) if isinstance(state, Mapping) else None
        loaded = optimizer.state.get(parameter)
        if not isinstance(entry, Mapping) or not isinstance(loaded, dict):
            continue
        tensors = {key: value for key, value in entry.items() if isinstance(value, torch.Tensor)}
        both = on_both([value.device.type for value in tensors.values()])
        for name in loaded.keys() & entry.keys():
            # The optimizer chooses the device and dtype of "step" (capturable, fused).
            if name == "step":
                continue
            if both and name in tensors and tensors[name].device.type == "cpu":
                loaded[name] = tensors[name]
            else:
                loaded[name] = _with_saved_dtype(loaded[name], entry[name])


def on_both(devices: Sequence[str]) -> bool:
    """Whether tensors of one parameter's state were on the host and on another device.

    Then each goes back to its own kind. torch moves all but ``step`` to the parameter's device; so
    does this package where all tensors were on the host, as after ``map_location="cpu"``.

    >>> on_both(["cpu", "cuda:0"]), on_both(["cpu", "cpu"]), on_both(["cuda:0"])
    (True, False, False)
    """
    return "cpu" in devices and any(device != "cpu" for device in devices)


def _with_saved_dtype(loaded: Any, saved: Any) -> Any:
    """``loaded``, but with the tensors of ``saved`` in place of those whose dtype was changed."""
    if isinstance(loaded, torch.Tensor) and isinstance(saved, torch.Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if isinstance(loaded, dict) and isinstance(saved, Mapping):
        return {
            key: _with_saved_dtype(value, saved.get(key, value)) for key, value in loaded.items()
        }
    if type(loaded) in (list, tuple) and isinstance(saved, Sequence):
        return type(loaded)(_with_saved_dtype(one, other) for one, other in zip(loaded, saved))
    return loaded
