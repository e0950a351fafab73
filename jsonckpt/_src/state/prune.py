"""State trees without the tensors that are lost, and trees made of names alone. JSON in and out.

What :func:`decode_state` leaves out of the Python state is left out of its JSON here,
by the same rules: an element of what holds it, or the whole of a value that cannot do without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from ..format.json_text import Json
from ..format.pointer import unescape
from .tree import OMIT, has_tensors, record_of, tensor_names

_REFERENCES: Final = frozenset({"$tensor", "$tied", "$view"})
_SEQUENCES: Final = frozenset({"$tuple", "$set", "$frozenset"})
_ITEMS: Final = frozenset({"$dict", "$counter", "$namespace", "$simple_namespace"})
_WITH_ITEMS: Final = frozenset({"$ordered_dict", "$defaultdict"})
#: Levels below which a name is not unfolded into dictionaries.
_DEEPEST: Final = 60


def prune(state: Json, there: Callable[[str], bool]) -> Json:
    """A state without the tensors whose record is not there.

    Args:
        there: whether a record is.

    Returns:
        the state; ``None`` (JSON's null) when nothing remains.

    >>> prune({"a": {"$tensor": "/a"}, "b": [{"$tensor": "/b/0"}, 1]}, lambda name: name == "/a")
    {'a': {'$tensor': '/a'}, 'b': [1]}
    """
    result = _value(state, there)
    return None if result is OMIT else result


def _value(value: Json, there: Callable[[str], bool]) -> Any:
    if type(value) is list:
        return _kept(value, there)
    if type(value) is not dict:
        return value
    if len(value) == 1:
        tag, body = next(iter(value.items()))
        if tag[:1] == "$":
            return _tagged(value, tag, body, there)
    members = _members(value, there)
    if len(members) == 1 and next(iter(members))[:1] == "$":
        # The last that remains of several members must not be taken for a tag.
        return {"$dict": [[key, item] for key, item in members.items()]}
    return members


def _tagged(value: Json, tag: str, body: Any, there: Callable[[str], bool]) -> Any:
    if tag in _REFERENCES:
        return value if there(record_of(body if type(body) is str else "", body)) else OMIT
    if not has_tensors(body):
        return value
    if tag in _SEQUENCES and type(body) is list:
        return {tag: _kept(body, there)}
    if tag in _ITEMS:
        return {tag: _items(body, there)}
    if tag in _WITH_ITEMS and type(body) is dict:
        changed = {key: _value(item, there) for key, item in body.items() if key != "items"}
        if any(item is OMIT for item in changed.values()):
            return OMIT
        return {tag: {**body, **changed, "items": _items(body.get("items"), there)}}
    if tag == "$deque" and type(body) is dict and type(body.get("items")) is list:
        return {tag: {**body, "items": _kept(body["items"], there)}}
    # Arrays, parameters, sparse tensors, objects of registered types: whole or not at all.
    whole = all(there(record) for record in _records(body))
    return value if whole else OMIT


def _records(body: Json) -> Iterable[str]:
    return (record_of(name, inner) for name, _, inner in tensor_names(body))


def _kept(values: list[Json], there: Callable[[str], bool]) -> list[Json]:
    items = [_value(value, there) for value in values]
    return [item for item in items if item is not OMIT]


def _members(values: dict[str, Json], there: Callable[[str], bool]) -> dict[str, Json]:
    items = {key: _value(value, there) for key, value in values.items()}
    return {key: item for key, item in items.items() if item is not OMIT}


def _items(body: Json, there: Callable[[str], bool]) -> Json:
    if type(body) is dict:
        return _members(body, there)
    if type(body) is not list:
        return body
    kept: list[Json] = []
    for pair in body:
        if type(pair) is not list or len(pair) != 2:
            kept.append(pair)  # malformed: loading says so
            continue
        key, item = _value(pair[0], there), _value(pair[1], there)
        if key is not OMIT and item is not OMIT:
            kept.append([key, item])
    return kept


def named_state(names: Iterable[str]) -> Json:
    """Dictionaries of tensors as their names alone say: what is left when the state is lost.

    Each segment of a name is a string key. A name that cannot be unfolded so (below another
    tensor, ``$storage/0``, very deep) is a key of the outermost dictionary as it is.

    >>> named_state(["/model/w", "/model/b"])
    {'model': {'w': {'$tensor': '/model/w'}, 'b': {'$tensor': '/model/b'}}}
    """
    listed = list(names)
    if listed == [""]:
        return {"$tensor": ""}
    root = _Folder()
    for name in listed:
        segments = [unescape(part) for part in name.split("/")[1:]] if name[:1] == "/" else []
        if len(segments) > _DEEPEST:
            segments = []
        at = root
        for segment in segments[:-1]:
            inner = at.members.setdefault(segment, _Folder())
            if not isinstance(inner, _Folder):
                segments = []
                break
            at = inner
        if not segments or segments[-1] in at.members:
            root.members.setdefault(name, name)
        else:
            at.members[segments[-1]] = name
    return root.json()


class _Folder:
    """A dictionary of names and folders under way."""

    def __init__(self) -> None:
        self.members: dict[str, _Folder | str] = {}

    def json(self) -> Json:
        """Its JSON."""
        made: dict[str, Json] = {
            key: {"$tensor": item} if isinstance(item, str) else item.json()
            for key, item in self.members.items()
            if isinstance(item, str) or item.members
        }
        if any(key[:1] == "$" for key in made):
            return {"$dict": [[key, item] for key, item in made.items()]}
        return made
