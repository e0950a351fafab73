"""Calls several ``load_state_dict``: all of them succeed, or none has an effect."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch

from ..errors import StateMismatchError, quote
from .parts import GENERATOR, LOADER, OF_OPTIMIZER, Part

#: The state of an object that may be copied, so that a failure can be taken back.
_MOST_COPIED: Final = 64 * 2**20
_NOTHING: Final = object()


class Collector:
    """Takes a saved state, and keeps it until all states have been compared."""

    def __init__(self) -> None:
        self.value: Any = _NOTHING

    def load_state_dict(self, value: Any) -> None:
        """Keep a state."""
        self.value = value

    @property
    def is_filled(self) -> bool:
        """Whether the checkpoint had such a state."""
        return self.value is not _NOTHING


def load_together(states: Iterable[tuple[str, Part, Any]]) -> None:
    """Load objects, given with their names.

    An object whose state has more than 64 MiB in tensors is not copied first. Such objects come
    last.

    Raises:
        StateMismatchError: with each object that refused its state. All of them are as before, but
            for one with a large state.
    """
    before: list[tuple[Part, Any]] = []
    refused = []
    for name, part, state in sorted(states, key=lambda one: (_is_large(one[2]), one[1].kind)):
        if refused and _is_large(state):
            break
        try:
            # Reading the position of a loader starts its workers.
            if part.kind != LOADER and not _is_large(state):
                before.append((part, copy.deepcopy(part.save())))
            part.load(_copied(state))
        except (MemoryError, torch.OutOfMemoryError):
            _put_back(before)
            raise
        except Exception as error:
            refused.append((name, error))
    if not refused:
        return
    _put_back(before)
    raise StateMismatchError(
        "what was saved was refused; nothing has been changed",
        mismatched=[f"{name}: {_said(error)}" for name, error in refused],
        hint="Build the objects as in the run that saved them, or leave them out with skip=.",
    ) from refused[0][1]


def load_again(states: Iterable[tuple[str, Part, Any]]) -> None:
    """Load once more what depends on the tensors, or on the random numbers of other objects."""
    for kind in (OF_OPTIMIZER, GENERATOR):
        for _, part, state in states:
            if part.kind == kind:
                part.load(_copied(state))


def _said(error: Exception) -> str:
    if isinstance(error, StateMismatchError):
        return " ".join(filter(None, (error.message, error.hint)))
    return f"{type(error).__name__}: {quote(str(error), 400)}"


def _put_back(before: list[tuple[Part, Any]]) -> None:
    for part, state in reversed(before):
        part.load(state)


def _is_large(state: Any) -> bool:
    return _tensor_bytes(state) > _MOST_COPIED


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_tensor_bytes, value.values()))
    return sum(map(_tensor_bytes, value)) if isinstance(value, (list, tuple)) else 0


def _copied(value: Any) -> Any:
    """A state in new containers: a ``load_state_dict`` of torch takes entries out of them."""
    if isinstance(value, dict):
        result = copy.copy(value)
        for key, item in value.items():
            result[key] = _copied(item)
        return result
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return value
