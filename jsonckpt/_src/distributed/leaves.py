"""The JSON of a state, taken apart into named leaves, and put together again. Pure.

Each rank of a distributed job names the leaves of its own state: the tensors, and the largest
values without a mapping around them. A leaf's path leads through the JSON, so that the coordinator
can build the state of all ranks from their leaves, with the type of each container.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from ..errors import FormatError, StateMismatchError, quote
from ..format.json_text import Json, dump
from ..format.pointer import join
from ..state.references import REFERENCE_TAGS

#: Tags around a tensor that keep its shape.
_WRAPPERS: Final = frozenset({"$parameter", "$requires_grad"})
#: Tags of mappings whose items are a member ``items`` of the body.
_WITH_ITEMS: Final = frozenset({"$ordered_dict", "$defaultdict"})


class Pair(NamedTuple):
    """A step into an array of [key, value] pairs. ``key`` is the JSON text of the key."""

    key: str


class Tag(NamedTuple):
    """A step below a tag.

    Attributes:
        tag: such as ``$ordered_dict``.
        beside: the JSON text of the members beside ``items``; ``None`` if the body is the items.
    """

    tag: str
    beside: str | None = None


#: ``str``: a member of an object. ``int``: an element of an array.
Step: TypeAlias = "str | int | Pair | Tag"
Path: TypeAlias = "tuple[Step, ...]"
#: A path without tags: what a program calls the place.
Keys: TypeAlias = "tuple[str | int | Pair, ...]"


@dataclass(frozen=True)
class Leaf:
    """A tensor, or a value that is read and written as a whole.

    Attributes:
        path: to it, in the JSON of the state.
        json: its JSON.
        reference: of a tensor that has a shape of its own: the ``$tensor``, ``$tied``, … inside.
    """

    path: Path
    json: Json
    reference: dict[str, Any] | None = None

    @property
    def is_tensor(self) -> bool:
        """Whether it is a dense tensor."""
        return self.reference is not None


def leaves_of(state: Json) -> Iterator[Leaf]:
    """The leaves of a state, in order.

    Mappings are always taken apart, lists and tuples only if a tensor is somewhere in them. An
    empty container is a leaf.

    >>> [(keys_of(leaf.path), leaf.json) for leaf in leaves_of({"a": {"b": 1, "c": [1, 2]}})]
    [(('a', 'b'), 1), (('a', 'c'), [1, 2])]
    """
    holders = _tensor_holders(state)
    pending: list[tuple[Path, Json]] = [((), state)]
    while pending:
        path, value = pending.pop()
        below = None
        if type(value) is dict:
            below = list(_below_object(path, value, holders))
        elif type(value) is list and id(value) in holders:
            below = [((*path, position), item) for position, item in enumerate(value)]
        if below:
            pending += reversed(below)
        else:
            yield Leaf(path, value, _reference(value))


def _below_object(
    path: Path, value: dict[str, Json], holders: Collection[int]
) -> Iterator[tuple[Path, Json]]:
    tag, body = next(iter(value.items())) if len(value) == 1 else ("", None)
    if tag[:1] != "$":
        yield from (((*path, key), item) for key, item in value.items())
    elif tag == "$tuple" and type(body) is list and id(body) in holders:
        inside = (*path, Tag(tag))
        yield from (((*inside, position), item) for position, item in enumerate(body))
    elif tag == "$dict":
        yield from _below_items((*path, Tag(tag)), body)
    elif tag in _WITH_ITEMS and type(body) is dict and "items" in body:
        beside = {key: item for key, item in body.items() if key != "items"}
        yield from _below_items((*path, Tag(tag, dump(beside).decode())), body["items"])


def _below_items(path: Path, items: Json) -> Iterator[tuple[Path, Json]]:
    """The items of a mapping: an object, or pairs."""
    if type(items) is dict:
        yield from (((*path, key), item) for key, item in items.items())
    elif type(items) is list:
        for pair in items:
            if type(pair) is not list or len(pair) != 2:
                raise FormatError(f"expected a [key, value] pair, found {quote(pair)}")
            yield (*path, Pair(dump(pair[0]).decode())), pair[1]


def _tensor_holders(state: Json) -> set[int]:
    """The ids of the containers in which a dense tensor is, however deep. Linear in the state."""
    holders: set[int] = set()
    parents: dict[int, int] = {}
    pending = [state]
    while pending:
        value = pending.pop()
        if _reference(value) is not None:
            above = parents.get(id(value))
            while above is not None and above not in holders:
                holders.add(above)
                above = parents.get(above)
            continue
        for inside in _inside(value):
            if type(inside) is dict or type(inside) is list:
                parents[id(inside)] = id(value)
                pending.append(inside)
    return holders


def _inside(value: Json) -> list[Json]:
    """What a container holds that may be taken apart."""
    if type(value) is list:
        return value
    if type(value) is not dict:
        return []
    tag = next(iter(value)) if len(value) == 1 else ""
    if tag == "$tuple" or tag[:1] != "$":
        return list(value.values())
    return [item for _, item in _below_object((), value, frozenset())]


def _reference(value: Json) -> dict[str, Any] | None:
    """The reference to a dense tensor, without the tags around it."""
    while type(value) is dict and len(value) == 1:
        ((tag, body),) = value.items()
        if tag in REFERENCE_TAGS:
            return value
        if tag not in _WRAPPERS:
            return None
        value = body["data"] if type(body) is dict and "data" in body else body
    return None


def with_reference(leaf: Json, reference: Json) -> Json:
    """The JSON of a tensor leaf with another reference in it.

    >>> with_reference({"$requires_grad": {"$tensor": "/w"}}, {"$tensor": "/v"})
    {'$requires_grad': {'$tensor': '/v'}}
    """
    if type(leaf) is dict and len(leaf) == 1:
        ((tag, body),) = leaf.items()
        if tag in _WRAPPERS and type(body) is dict:
            if "data" in body:
                return {tag: {**body, "data": with_reference(body["data"], reference)}}
            return {tag: with_reference(body, reference)}
    return reference


def keys_of(path: Sequence[Step]) -> Keys:
    """The path as a program sees it: a key that is a string is one, whatever its mapping is.

    >>> keys_of((Tag("$dict"), Pair('"a.b"'), Tag("$ordered_dict", "{}"), Pair("0")))
    ('a.b', Pair(key='0'))
    """
    keys: list[str | int | Pair] = []
    for step in path:
        if type(step) is Pair and step.key[:1] == '"':
            keys.append(json.loads(step.key))
        elif not isinstance(step, Tag):
            keys.append(step)
    return tuple(keys)


def dotted(keys: Keys) -> str:
    """The name that torch's distributed checkpoints give to a place.

    >>> dotted(("model", "0.weight")), dotted(("state", Pair("0"), "step"))
    ('model.0.weight', 'state.0.step')
    """
    return ".".join(key.key if isinstance(key, Pair) else str(key) for key in keys)


def pointer(keys: Keys) -> str:
    """The place as a JSON Pointer, for messages and for the names of records."""
    text = ""
    for key in keys:
        text = join(text, key.key if isinstance(key, Pair) else str(key))
    return text


def build(leaves: Iterable[tuple[Path, Json]]) -> Json:
    """The JSON of the state that has these leaves; the inverse of :func:`leaves_of`.

    The members of an object come in the order of their first leaves.

    Raises:
        StateMismatchError: two leaves do not fit into one state.

    >>> build([(("a", "b"), 1), (("a", Tag("$dict"), Pair("0")), 2)])
    Traceback (most recent call last):
    jsonckpt.StateMismatchError: the ranks have different kinds of values at '/a'
    """
    return _build(list(leaves), ())


def _build(leaves: list[tuple[Path, Json]], above: Path) -> Json:
    depth = len(above)
    if len(leaves) == 1 and len(leaves[0][0]) == depth:
        return leaves[0][1]
    groups: dict[Step, list[tuple[Path, Json]]] = {}
    for path, value in leaves:
        if len(path) == depth:
            raise _do_not_fit(above)
        step = path[depth]
        key = Tag(step.tag) if isinstance(step, Tag) else step
        groups.setdefault(key, []).append((path, value))
    below = {step: _build(group, (*above, step)) for step, group in groups.items()}
    kinds = {type(step) for step in groups}
    first = leaves[0][0][depth]
    if isinstance(first, Tag) and len(groups) == 1:
        return _tagged(first, below.popitem()[1])
    if kinds == {str}:
        return {str(step): value for step, value in below.items()}
    if kinds == {Pair}:
        pairs = [(step.key, value) for step, value in below.items() if isinstance(step, Pair)]
        return [[json.loads(key), value] for key, value in pairs]
    if kinds != {int}:
        raise _do_not_fit(above)
    positions = sorted(step for step in below if isinstance(step, int))
    if positions != list(range(len(positions))):
        raise StateMismatchError(
            f"the list at {quote(pointer(keys_of(above)))} has gaps: no rank has all its elements"
        )
    return [below[position] for position in positions]


def _tagged(step: Tag, body: Json) -> Json:
    if step.beside is None:
        return {step.tag: body}
    beside = json.loads(step.beside)
    members = {**beside, "items": body} if "factory" in beside else {"items": body, **beside}
    return {step.tag: members}


def _do_not_fit(path: Path) -> StateMismatchError:
    return StateMismatchError(
        f"the ranks have different kinds of values at {quote(pointer(keys_of(path)))}"
    )
