"""The state that a loop hands over: what is saved of it, and how it is filled."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ArgumentError, quote
from ..format.json_text import is_text
from ..load_into.api import load_into

#: More than any checkpoint may be nested.
_MOST_DEEP = 300


def tree_of(state: Any) -> Any:
    """What is saved: each object with a ``state_dict`` by what that returns.

    Raises:
        ArgumentError: it contains itself.

    >>> import torch
    >>> sorted(tree_of({"model": torch.nn.Linear(1, 1), "epoch": 3})["model"])
    ['bias', 'weight']
    """
    return _tree_of(state, 0)


def _tree_of(state: Any, depth: int) -> Any:
    if depth > _MOST_DEEP:
        raise ArgumentError("the state is nested too deeply, or contains itself")
    if not isinstance(state, type) and callable(getattr(state, "state_dict", None)):
        return state.state_dict()
    if type(state) is dict:
        return {key: _tree_of(item, depth + 1) for key, item in state.items()}
    if type(state) in (list, tuple):
        return type(state)(_tree_of(item, depth + 1) for item in state)
    return state


def frozen_in(state: Any) -> Callable[[str], bool] | None:
    """Whether a name is that of a parameter that is not trained, if the state can tell."""
    names = getattr(state, "frozen", None)
    if not callable(names) or isinstance(state, type):
        return None
    frozen = frozenset(names())
    return frozen.__contains__ if frozen else None


def fill(state: Any, path: str, options: Mapping[str, Any]) -> None:
    """Restore a state in place.

    Raises:
        JsonckptError: as :func:`jsonckpt.load_into`.
    """
    own = getattr(state, "restore", None)
    if callable(own) and not isinstance(state, type):
        own(path, **options)
    else:
        load_into(state, path, **options)


def whole_number(step: Any) -> int:
    """A step, as an ``int``.

    Raises:
        ArgumentError: it is none, or negative.
    """
    try:
        number = operator.index(step)
    except TypeError as error:
        raise ArgumentError(f"step must be an integer, not {quote(step)}") from error
    if isinstance(step, bool) or not 0 <= number < 1 << 63:
        raise ArgumentError(f"step must be an integer from 0 to 2^63-1, not {quote(step)}")
    return number


def numbers(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics as plain numbers. Tensors and NumPy scalars of one element are numbers, too.

    Raises:
        ArgumentError: a name is not a string, or a value not a number.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise ArgumentError(f"metrics must be a dictionary, not {quote(type(metrics).__name__)}")
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or not is_text(name):
            raise ArgumentError(f"metrics: the name {quote(name)} is not a text")
        try:
            if callable(detach := getattr(value, "detach", None)):
                value = detach()  # torch warns of a loss that is still part of a graph
            if isinstance(value, (str, bytes)):
                raise TypeError("a text")
            number: float = float(value)
            if type(value) is int and abs(value) < 1 << 63:
                number = value
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise ArgumentError(
                f"metrics: {quote(name)} is {quote(value)}, which is not a number"
            ) from error
        found[name] = number
    return found
