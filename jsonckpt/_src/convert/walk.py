"""Walks states: nested dictionaries and sequences."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import torch

from ..format.pointer import join

#: The value of a child that :func:`rebuilt` leaves out.
OMIT: Final = object()


def children(value: object) -> Iterable[tuple[Any, Any]]:
    """The items of a dictionary or sequence, with keys or indices. Other values have none."""
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def named_tensors(state: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor, with its name (a JSON Pointer).

    >>> [name for name, _ in named_tensors({"a": {0: torch.ones(1)}, "b": [torch.ones(1)]})]
    ['/a/0', '/b/0']
    """
    if isinstance(state, torch.Tensor):
        yield name, state
    for key, value in children(state):
        yield from named_tensors(value, join(name, str(key)))


def rebuilt(value: Any, change: Callable[[Any, Any], Any]) -> Any:
    """Copy a dictionary, list or tuple. ``change(key, child)`` gives each new child.

    A child for which it gives :data:`OMIT` is left out. Values of other types are not copied.

    >>> rebuilt({"a": 1, "b": 2}, lambda key, child: OMIT if key == "b" else child + 1)
    {'a': 2}
    """
    if not isinstance(value, dict) and type(value) not in (list, tuple):
        return value
    kept = []
    for key, child in children(value):
        new = change(key, child)
        if new is not OMIT:
            kept.append((key, new))
    if isinstance(value, defaultdict):
        return defaultdict(value.default_factory, kept)
    if isinstance(value, OrderedDict):
        copy = OrderedDict(kept)
        if hasattr(value, "_metadata"):
            copy._metadata = value._metadata  # type: ignore[attr-defined]
        return copy
    return dict(kept) if isinstance(value, dict) else type(value)(new for _, new in kept)
