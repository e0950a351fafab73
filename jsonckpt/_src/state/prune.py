"""Removes lost tensors from a state, or builds a state from names (``docs/format.md`` 6.2, 6.3).

JSON in, JSON out. What :func:`decode_state` leaves out of the Python state is left out of its JSON
here: an element of a container, or the whole of a value that cannot exist without the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from ..format.json_text import Json
from ..format.pointer import unescape
from .references import references_in
from .tree import OMIT

_SEQUENCES: Final = frozenset({"$tuple", "$set", "$frozenset"})
_ITEMS: Final = frozenset({"$dict", "$counter", "$namespace", "$simple_namespace"})
_WITH_ITEMS: Final = frozenset({"$ordered_dict", "$defaultdict"})
#: A name of more segments is not unfolded into dictionaries.
_DEEPEST: Final = 60


def prune(state: Json, exists: Callable[[str], bool]) -> Json:
    """A state without the tensors whose record does not exist.

    Args:
        exists: whether a record does.

    Returns:
        the state; ``None`` (JSON's null) when nothing remains.

    >>> prune({"a": {"$tensor": "/a"}, "b": [{"$tensor": "/b/0"}, 1]}, lambda name: name == "/a")
    {'a': {'$tensor': '/a'}, 'b': [1]}
    """
    result = _value(state, exists)
    return None if result is OMIT else result


def _value(value: Json, exists: Callable[[str], bool]) -> Any:
    if type(value) is list:
        return _elements(value, exists)
    if type(value) is not dict:
        return value
    if len(value) == 1:
        tag, body = next(iter(value.items()))
        if tag[:1] == "$":
            return _tagged(value, tag, body, exists)
    members = _members(value, exists)
    if len(members) == 1 and next(iter(members))[:1] == "$":
        # If one of several members remains, it must not look like a tag.
        return {"$dict": [[key, item] for key, item in members.items()]}
    return members


def _tagged(value: Json, tag: str, body: Any, exists: Callable[[str], bool]) -> Any:
    records = {reference.record for reference in references_in(value)}
    if all(map(exists, records)):
        return value
    if tag in _SEQUENCES and type(body) is list:
        return {tag: _elements(body, exists)}
    if tag in _ITEMS:
        return {tag: _items(body, exists)}
    if tag in _WITH_ITEMS and type(body) is dict:
        items = body.get("items")
        kept = _members({**body, "items": None}, exists)
        return {tag: {**kept, "items": _items(items, exists)}}
    if tag == "$deque" and type(body) is dict and type(body.get("items")) is list:
        return {tag: {**body, "items": _elements(body["items"], exists)}}
    # References, arrays, parameters, sparse tensors, objects of registered types.
    return OMIT


def _elements(values: list[Json], exists: Callable[[str], bool]) -> list[Json]:
    items = [_value(value, exists) for value in values]
    return [item for item in items if item is not OMIT]


def _members(values: dict[str, Json], exists: Callable[[str], bool]) -> dict[str, Json]:
    items = {key: _value(value, exists) for key, value in values.items()}
    return {key: item for key, item in items.items() if item is not OMIT}


def _items(body: Json, exists: Callable[[str], bool]) -> Json:
    if type(body) is dict:
        return _members(body, exists)
    if type(body) is not list:
        return body
    kept: list[Json] = []
    for pair in body:
        if type(pair) is not list or len(pair) != 2:
            kept.append(pair)  # malformed: loading says so
        elif len(both := _elements(pair, exists)) == 2:
            kept.append(both)
    return kept


def named_state(names: Iterable[str]) -> Json:
    """Dictionaries of tensors, built from names. For a checkpoint whose state is lost.

    Each segment of a name is a string key. A name that cannot be unfolded (below another tensor,
    ``$storage/0``, very deep) is a key of the outermost dictionary.

    >>> named_state(["/model/w", "/model/b"])
    {'model': {'w': {'$tensor': '/model/w'}, 'b': {'$tensor': '/model/b'}}}
    """
    listed = list(names)
    if listed == [""]:
        return {"$tensor": ""}
    root: dict[str, Any] = {}  # names of tensors, and dictionaries of them
    for name in listed:
        segments = [unescape(part) for part in name.split("/")[1:]] if name[:1] == "/" else []
        if not (0 < len(segments) <= _DEEPEST and _unfold(root, segments, name)):
            root.setdefault(name, name)
    return _json(root)


def _unfold(root: dict[str, Any], segments: list[str], name: str) -> bool:
    """Put a name into dictionaries; false if another name is in the way."""
    for segment in segments[:-1]:
        root = root.setdefault(segment, {})
        if type(root) is not dict:
            return False
    return root.setdefault(segments[-1], name) is name


def _json(folder: dict[str, Any]) -> Json:
    made: dict[str, Json] = {
        key: _json(item) if type(item) is dict else {"$tensor": item}
        for key, item in folder.items()
        if item != {}
    }
    if any(key[:1] == "$" for key in made):
        return {"$dict": [[key, item] for key, item in made.items()]}
    return made
