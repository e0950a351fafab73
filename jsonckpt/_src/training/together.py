"""Calls several ``load_state_dict``: all of them succeed, or none has an effect."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch

from ..errors import StateMismatchError, listed, quote
from .parts import GENERATOR, LOADER, OF_LOADER, OF_OPTIMIZER, Part

#: The state of an object that may be copied, so that a failure can be taken back.
_MOST_COPIED: Final = 64 * 2**20
_NOTHING: Final = object()
_NO_MEMORY: Final = (MemoryError, torch.OutOfMemoryError)
_WAY_OUT: Final = "Build the objects as in the run that saved them, or leave them out with skip=."


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
    ordered = sorted(states, key=lambda one: (_is_large(one[2]), one[1].kind))
    before = [
        (name, part, copy.deepcopy(part.save()))
        for name, part, state in ordered
        # To ask a loader for its position starts its workers.
        if part.kind != LOADER and not _is_large(state)
    ]
    refused: list[tuple[str, Exception]] = []
    for name, part, state in ordered:
        if refused and _is_large(state):
            break
        try:
            part.load(_copied(state))
        except Exception as error:
            if isinstance(error, _NO_MEMORY):
                _put_back(before)
                raise
            refused.append((name, error))
        except BaseException:  # Ctrl-C
            _put_back(before)
            raise
    if not refused:
        return
    left = _put_back(before)
    changed = f"all is as before but for {listed(left, 8)}" if left else "nothing has been changed"
    raise StateMismatchError(
        f"what was saved was refused; {changed}",
        mismatched=[f"{name}: {_said(error)}" for name, error in refused],
        hint=_WAY_OUT,
    ) from refused[0][1]


def load_again(states: Iterable[tuple[str, Part, Any]]) -> None:
    """Load once more what depends on the tensors, or on the random numbers of other objects.

    Raises:
        StateMismatchError: an object refuses now what it took before.
    """
    for kind in (OF_OPTIMIZER, OF_LOADER, GENERATOR):
        for name, part, state in states:
            if part.kind != kind:
                continue
            try:
                part.load(_copied(state))
            except _NO_MEMORY:
                raise
            except Exception as error:
                raise StateMismatchError(
                    "a state was refused when it was loaded again, after the tensors were filled;"
                    " the training state is partly overwritten",
                    mismatched=[f"{name}: {_said(error)}"],
                    hint=_WAY_OUT,
                ) from error


def _said(error: Exception) -> str:
    if isinstance(error, StateMismatchError):
        return " ".join(filter(None, (error.message, error.hint)))
    return f"{type(error).__name__}: {quote(str(error), 400)}"


def _put_back(before: list[tuple[str, Part, Any]]) -> list[str]:
    """Load the states of before. Returns the names of objects that refuse even those."""
    left = []
    for name, part, state in reversed(before):
        try:
            part.load(state)
        except Exception:
            left.append(name)
    return left


def _is_large(state: Any) -> bool:
    count, pending = 0, [state]
    while pending and count <= _MOST_COPIED:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            count += item.nbytes
        elif isinstance(item, Mapping):
            pending.extend(item.values())
        elif isinstance(item, (list, tuple)):
            pending.extend(item)
    return count > _MOST_COPIED


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
