"""Modules and optimizers: which can be filled in place, and which load themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import StateMismatchError, quote

_Module: Final = torch.nn.Module
_Optimizer: Final = torch.optim.Optimizer
#: How torch's own modules are loaded: each tensor that fits is copied.
_PLAIN_LOADERS: Final = (
    _Module._load_from_state_dict,
    _NormBase._load_from_state_dict,
    _InstanceNorm._load_from_state_dict,
)
_SAVERS: Final = ("state_dict", "_save_to_state_dict")
_LOADERS: Final = ("load_state_dict", "_load_from_state_dict")
_SAVE_HOOKS: Final = ("_state_dict_hooks", "_state_dict_pre_hooks")
_LOAD_HOOKS: Final = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
_OPTIMIZER_HOOKS: Final = (
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


def loads_itself(target: torch.nn.Module | torch.optim.Optimizer) -> bool:
    """Whether an object must be loaded by its ``load_state_dict``, not in place.

    True if a class, an instance or a hook changes how it is loaded, or if ``state_dict`` returns
    copies.

    >>> loads_itself(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1)))
    False
    >>> loads_itself(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(1, 1)))
    True
    """
    if isinstance(target, _Module):
        return _module_loads_itself(target)
    kind: Any = type(target)
    return (
        kind.state_dict is not _Optimizer.state_dict
        or kind.load_state_dict is not _Optimizer.load_state_dict
        or _has(target, ("state_dict", "load_state_dict"), _OPTIMIZER_HOOKS)
    )


def _has(target: object, methods: Iterable[str], hooks: Iterable[str]) -> bool:
    """Whether an instance has methods or hooks of its own."""
    own = vars(target)
    return any(name in own for name in methods) or any(
        getattr(target, name, None) for name in hooks
    )


def _module_loads_itself(module: torch.nn.Module) -> bool:
    root: Any = type(module)
    if root.load_state_dict is not _Module.load_state_dict:
        return True
    plain = True
    for part in module.modules():
        kind: Any = type(part)
        if kind._load_from_state_dict not in _PLAIN_LOADERS or _has(part, _LOADERS, _LOAD_HOOKS):
            return True
        plain = (
            plain
            and kind.state_dict is _Module.state_dict
            and kind._save_to_state_dict is _Module._save_to_state_dict
            and not _has(part, _SAVERS, _SAVE_HOOKS)
        )
    return not plain and not _returns_its_memory(module)


def _returns_its_memory(module: torch.nn.Module) -> bool:
    """Whether ``state_dict()`` returns the module's own tensors, each under its own name."""
    own = dict(module.named_parameters(remove_duplicate=False))
    for prefix, part in module.named_modules(remove_duplicate=False):
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                own[f"{prefix}.{name}" if prefix else name] = buffer
    entries = module.state_dict()
    return entries.keys() == own.keys() and all(
        isinstance(entry, torch.Tensor) and _memory(entry) == _memory(own[name])
        for name, entry in entries.items()
    )


def _memory(tensor: torch.Tensor) -> object:
    if torch.nn.parameter.is_lazy(tensor):
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride()


def may_lack(module: torch.nn.Module, state: Mapping[str, Any], name: str) -> bool:
    """Whether torch accepts that an entry is missing: the counter that old batch norms lack."""
    prefix, _, last = name.rpartition(".")
    if last != "num_batches_tracked" or not isinstance(module.get_submodule(prefix), _NormBase):
        return False
    metadata = getattr(state, "_metadata", None)
    own = metadata.get(prefix) if isinstance(metadata, Mapping) else None
    version = own.get("version") if isinstance(own, Mapping) else None
    return type(version) is not int or version < 2


def call_loader(target: Any, pointer: str, state: Any, *, partial: bool = False) -> Any:
    """Call ``target.load_state_dict(state)``.

    Args:
        partial: pass ``strict=False``, which modules accept.

    Raises:
        StateMismatchError: the object refused the state.
    """
    try:
        if partial:
            return target.load_state_dict(state, strict=False)
        result = target.load_state_dict(state)
    except (StateMismatchError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise refusal(target, pointer, "load_state_dict", error) from error
    return result


def refusal(target: object, pointer: str, method: str, error: Exception) -> StateMismatchError:
    """The error for an object that refused its state."""
    return StateMismatchError(
        f"{quote(pointer or '/', 200)}: {type(target).__name__}.{method} refused what was saved: "
        f"{type(error).__name__}: {quote(str(error), 1000)}",
        hint="The object may be partly changed.",
    )
