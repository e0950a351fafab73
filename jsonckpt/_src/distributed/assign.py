"""Puts values of a checkpoint into the containers of a state."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from typing import Any

from ..errors import FormatError, quote
from ..format.json_text import Json
from ..state.registry import default_rules
from ..state.tree import decode_state
from ..tensors.aliasing import StateReader
from .leaves import Pair, Path, Tag


def plain_value(value: Json) -> Any:
    """The Python value of JSON without tensors."""
    return decode_state(value, StateReader({}, ()), rules=default_rules())


def assign(root: MutableMapping[Any, Any], path: Path, value: Any) -> None:
    """Put a value at a path. Mappings on the way that do not exist yet are made.

    A tuple on the way is replaced by a new one.

    >>> state = {"a": {0: (1, 2)}, "b": None}
    >>> assign(state, ("a", Tag("$dict"), Pair("0"), Tag("$tuple"), 1), 5)
    >>> assign(state, ("b", "c"), 6)
    >>> state
    {'a': {0: (1, 5)}, 'b': {'c': 6}}
    """
    _put(root, path, value)


def _put(container: Any, path: Path, value: Any, tag: Tag | None = None) -> Any:
    """The container with the value in it: the same object, or a new one in its place."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(step, Tag):
        return _put(container, rest, value, step)
    if isinstance(step, int):
        item = _put(container[step], rest, value)
        if not isinstance(container, tuple):
            container[step] = item
            return container
        items = [*container[:step], item, *container[step + 1 :]]
        return type(container)(*items) if hasattr(container, "_fields") else tuple(items)
    key = _key(step) if isinstance(step, Pair) else step
    mapping = container if isinstance(container, MutableMapping) else _new_mapping(tag)
    mapping[key] = _put(mapping.get(key), rest, value)
    return mapping


def _key(step: Pair) -> Any:
    key = plain_value(json.loads(step.key))
    try:
        hash(key)
    except TypeError as error:
        raise FormatError(f"{quote(step.key)} cannot be the key of a dictionary") from error
    return key


def _new_mapping(tag: Tag | None) -> MutableMapping[Any, Any]:
    if tag is None or tag.beside is None:
        return {}
    made: MutableMapping[Any, Any] = plain_value({tag.tag: {**json.loads(tag.beside), "items": []}})
    return made
