"""The places of a state in its JSON: found, listed and rebuilt by their paths. Pure.

A path leads through the Python value, as the names of tensors do (``docs/format.md`` 6.3): the keys
of dictionaries and the positions in sequences, whatever tags the JSON has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from ..errors import StateMismatchError, quote
from ..format.json_text import Json, dump
from ..inspect.plain_values import contents, is_pairs, key_label, key_paths, tag_of
from ..state.checks import refuse
from ..state.references import REFERENCE_TAGS
from ..state.selector import near_names

_SEQUENCES: Final = frozenset({"$tuple", "$set", "$frozenset"})
_ITEMS: Final = frozenset({"$dict", "$counter", "$namespace", "$simple_namespace"})
_WITH_ITEMS: Final = frozenset({"$ordered_dict", "$defaultdict"})
#: Names of a listing for suggestions.
_MOST_NAMES: Final = 5_000


def with_contents(value: Json, new: Json) -> Json:
    """The same container with other members."""
    tag = tag_of(value)
    if not tag:
        if type(new) is list and type(value) is dict:
            return {"$dict": new}
        if type(new) is dict and len(new) == 1 and next(iter(new))[:1] == "$":
            # One of several members remains, and must not look like a tag.
            return {"$dict": [[key, item] for key, item in new.items()]}
        return new
    body: Any = value[tag]  # type: ignore[call-overload, index]
    if tag in _SEQUENCES or tag in _ITEMS:
        return {tag: new}
    if tag in _WITH_ITEMS or tag == "$deque":
        return {tag: {**body, "items": new}}
    return {tag: with_contents(body, new)}


def with_members(value: Json, members: Sequence[tuple[Json, Json]]) -> Json:
    """The same dictionary with other members. It has pairs where its keys need them.

    >>> with_members({"$ordered_dict": {"items": {}}}, [("a", 1)])
    {'$ordered_dict': {'items': {'a': 1}}}
    >>> with_members({"a": 1}, [("$a", 1)])
    {'$dict': [['$a', 1]]}
    """
    pairs: list[Json] = [[key, item] for key, item in members]
    if is_pairs(value):
        return with_contents(value, pairs)
    made: dict[str, Json] = {}
    for key, item in members:
        if type(key) is not str or key[:1] == "$":
            return with_contents(value, pairs)
        made[key] = item
    return with_contents(value, made)


def is_dictionary(value: Json) -> bool:
    """Whether a value is a dictionary of any kind."""
    body = contents(value)
    return type(body) is dict or is_pairs(value)


def is_divisible(value: Json) -> bool:
    """Whether a value is a dictionary that keeps its type whatever members it has."""
    return is_dictionary(value) and tag_of(value) in _ITEMS | _WITH_ITEMS | {""}


@dataclass(slots=True)
class Place:
    """A member of a container.

    Attributes:
        path: of the member.
        key: its key in JSON; its position in an array.
        holder, slot: ``holder[slot]`` is its value.
        members, position: ``members[position]`` is it with its key, to be deleted.
    """

    path: str
    key: Json
    holder: Any
    slot: Any
    members: Any
    position: Any

    @property
    def value(self) -> Json:
        """The member's value."""
        found: Json = self.holder[self.slot]
        return found


def places_in(value: Json, path: str) -> Iterator[Place]:
    """The members of the container at ``path``, in order; nothing for a leaf.

    Raises:
        FormatError: a dictionary holds something that is no pair.
    """
    body = contents(value)
    if type(body) is dict:
        for key, at in key_paths(body, path):
            yield Place(at, key, body, key, body, key)
    elif is_pairs(value):
        pairs = cast("list[Any]", body)
        for position, pair in enumerate(pairs):
            if type(pair) is not list or len(pair) != 2:
                refuse(f"{path}/{position}", "a pair of a key and a value", pair)
        paths = key_paths((pair[0] for pair in pairs), path)
        for position, (pair, (_, at)) in enumerate(zip(pairs, paths)):
            yield Place(at, pair[0], pair, 1, body, position)
    elif type(body) is list:
        for position in range(len(body)):
            yield Place(f"{path}/{position}", position, body, position, body, position)


def find(state: Json, path: str) -> tuple[Place, Json]:
    """The place at a path, and the container that holds it.

    Raises:
        StateMismatchError: nothing is there. The hint names what is near.
    """
    if not path:
        raise StateMismatchError(
            "the state itself has no name to set or delete",
            hint="Name a place in it, /epoch for example.",
        )
    wanted = path if path[:1] == "/" else f"/{path}"
    value, at = state, ""
    while True:
        for place in places_in(value, at):
            if place.path == wanted:
                return place, value
            if wanted.startswith(f"{place.path}/"):
                value, at = place.value, place.path
                break
        else:
            raise nothing_at(state, wanted)


def value_at(state: Json, path: str) -> Json:
    """The value at a path; the state itself for ``""``, and for ``"/"`` unless it is a key.

    Raises:
        StateMismatchError: nothing is there.
    """
    if path == "" or (path == "/" and all(p.path != "/" for p in places_in(state, ""))):
        return state
    return find(state, path)[0].value


def nothing_at(state: Json, path: str) -> StateMismatchError:
    """The error for a path that leads nowhere."""
    return StateMismatchError(
        f"the state has nothing at {quote(path, 200)}",
        hint=near_names(path, paths_in(state)),
    )


def paths_in(state: Json, most: int = _MOST_NAMES) -> list[str]:
    """The paths of what is in a state, near its root first."""
    found: list[str] = []
    level = [("", state)]
    while level and len(found) < most:
        below = []
        for path, value in level:
            for place in places_in(value, path):
                found.append(place.path)
                below.append((place.path, place.value))
                if len(found) >= most:
                    return found
        level = below
    return found


#: ``key(key, holds_tensors, path)`` gives the new key of a dictionary's member.
RenameKey = Callable[[Json, Json, str], Json]


def _same_key(key: Json, _value: Json, _path: str) -> Json:
    return key


class Rebuild:
    """Copies a state with other keys, or below another path, and renames its tensors with it.

    The name of a tensor follows its place. A name that is not the one of its place stays.

    Args:
        rename: gives the new key for ``(key, value, path)`` of each member of a dictionary.
        below: the path that the copy gets.

    Attributes:
        names: the new name for each old name of a reference.
    """

    def __init__(self, rename: RenameKey | None = None, below: str = "") -> None:
        self._rename = rename or _same_key
        self._below = below
        self.names: dict[str, str] = {}

    def state(self, state: Json) -> Json:
        """The new state. Call :func:`with_records` on it when all names are known."""
        return self._value(state, "", self._below)

    def _value(self, value: Json, old: str, new: str) -> Json:
        body = contents(value)
        if body is None or type(body) not in (dict, list):
            return self._leaf(value, old, new)
        places = list(places_in(value, old))
        if type(body) is list and not is_pairs(value):
            items: list[Json] = [
                self._value(place.value, place.path, f"{new}/{place.key}") for place in places
            ]
            return with_contents(value, items)
        keys = [self._rename(place.key, place.value, place.path) for place in places]
        _check_keys(places, keys)
        made: list[tuple[Json, Json]] = []
        for place, key, (_, at) in zip(places, keys, list(key_paths(keys, new))):
            if type(key) in (dict, list):
                key = self._leaf(key, f"{place.path}#key", f"{at}#key")
            made.append((key, self._value(place.value, place.path, at)))
        return self._beside(value, with_members(value, made), old)

    def _beside(self, value: Json, made: Json, old: str) -> Json:
        """What an ordered dictionary holds beside its items."""
        tag = tag_of(value)
        if tag == "$ordered_dict" and "metadata" in made[tag]:  # type: ignore[call-overload, index, operator]
            body: Any = made[tag]  # type: ignore[call-overload, index]
            body["metadata"] = self._module_keys(body["metadata"], old)
        return made

    def _module_keys(self, metadata: Json, path: str) -> Json:
        """Module names, which are the keys of a state dict up to their last dot."""
        body = contents(metadata)
        if type(body) is not dict or tag_of(metadata) not in ("", "$ordered_dict"):
            return metadata
        renamed: dict[str, Json] = {}
        for key, item in body.items():
            new = key
            if key:
                found = self._rename(f"{key}.", {"$tensor": ""}, f"{path}/{key}.")
                new = found.removesuffix(".") if type(found) is str else key
            renamed.setdefault(new, item)
        return with_contents(metadata, renamed)

    def _leaf(self, value: Json, old: str, new: str) -> Json:
        """A value without places of its own: the references in it are renamed."""
        if type(value) is list:
            return [self._leaf(item, old, new) for item in value]
        if type(value) is not dict:
            return value
        tag = tag_of(value)
        if tag not in REFERENCE_TAGS:
            return {key: self._leaf(item, old, new) for key, item in value.items()}
        body: Any = value[tag]
        name: str = body if tag == "$tensor" else body["name"]
        if name == old or name.startswith((f"{old}/", f"{old}#")):
            self.names[name] = new + name[len(old) :]
        else:
            self.names.setdefault(name, name)
        if tag == "$tensor":
            return {tag: self.names[name]}
        return {tag: {**body, "name": self.names[name]}}


def with_records(value: Json, names: Callable[[str], str]) -> Json:
    """A state whose ties and views refer to the new names of records."""
    if type(value) is list:
        return [with_records(item, names) for item in value]
    if type(value) is not dict:
        return value
    tag = tag_of(value)
    if tag in ("$tied", "$view"):
        body: Any = value[tag]
        return {tag: {**body, "of": names(body["of"])}}
    return {key: with_records(item, names) for key, item in value.items()}


def _check_keys(places: list[Place], keys: list[Json]) -> None:
    """Check that no two members of a dictionary get one key.

    Raises:
        StateMismatchError: two do; it names both.
    """
    seen: dict[bytes, str] = {}
    for place, key in zip(places, keys):
        first = seen.setdefault(dump(key), place.path)
        if first != place.path:
            raise StateMismatchError(
                f"{quote(first, 200)} and {quote(place.path, 200)} would both get the key "
                f"{quote(key_label(key), 200)}",
                hint="Nothing was written. Rename only one of them, or another way.",
            )
