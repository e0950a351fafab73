"""Walks two states side by side: their plain values, and the tensors that stand at one place. Pure.

A list of plain values in which much differs is one difference, so that a longer history is a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple, cast

from ..errors import counted
from ..format.json_text import Json
from ..inspect.plain_values import (
    frame_of,
    is_tensor,
    keys_of,
    kind_of,
    members_of,
    references_at,
    scalar,
    tag_of,
    text_of,
)
from ..state.references import REFERENCE_TAGS
from .facts import Change

#: Differences of the values of one container that are listed one by one.
_ONE_BY_ONE = 8
_LONGEST = 60


class TensorPair(NamedTuple):
    """Tensors at one place of both states, by the names of what they are made of."""

    place: str
    before: tuple[str, ...]
    after: tuple[str, ...]


def walk(before: Json, after: Json, place: str = "") -> Iterator[Change | TensorPair]:
    """The differences of plain values, and the pairs of tensors, in the order of ``after``."""
    pending: list[Change | TensorPair | tuple[str, Json, Json]] = [(place, before, after)]
    while pending:
        item = pending.pop()
        if isinstance(item, Change | TensorPair):
            yield item
            continue
        pending += reversed([*_at(*item)])


def _at(
    place: str, before: Json, after: Json
) -> Iterator[Change | TensorPair | tuple[str, Json, Json]]:
    tensors = is_tensor(before) and is_tensor(after)
    kinds = (_wrappers(before), _wrappers(after)) if tensors else (kind_of(before), kind_of(after))
    one, two = members_of(before, place), members_of(after, place)
    if kinds[0] != kinds[1]:
        if one is None and two is None and not is_tensor(before) and not is_tensor(after):
            kinds = f"{kinds[0]} {shown(before)}", f"{kinds[1]} {shown(after)}"
        yield Change(place, "type", *kinds, tensor=tensors)
        if not tensors:
            return
    if one is None or two is None:
        yield from _pair(place, before, after)
        if kinds[0] == kinds[1] and not _identical(before, after):
            yield Change(place, "value", *_apart(before, after))
        return
    frames = frame_of(before), frame_of(after)
    if not _identical(*frames):  # the factory of a defaultdict, the length of a deque
        yield Change(place, "type", *_apart(*frames))
    left = {member.path: member.value for member in one}
    right = {member.path: member.value for member in two}
    yield from _keys(dict(zip(left, keys_of(before))), dict(zip(right, keys_of(after))))
    yield from _members(place, left, right)


def _keys(left: dict[str, Json], right: dict[str, Json]) -> Iterator[Change | TensorPair]:
    """Keys that are different ones, but have the same path."""
    for path, after in right.items():
        if path not in left:
            continue
        before = left[path]
        if kind_of(before) != kind_of(after):
            yield Change(path, "type", f"key {kind_of(before)}", f"key {kind_of(after)}")
            continue
        yield from _pair(path, before, after)
        if not _identical(before, after):
            one, two = _apart(before, after)
            yield Change(path, "value", f"key {one}", f"key {two}")


def _pair(place: str, before: Json, after: Json) -> Iterator[TensorPair]:
    """The tensors in two values that are no containers: tensors, NumPy arrays, slices."""
    names = references_at(before), references_at(after)
    if names[0] and len(names[0]) == len(names[1]):
        yield TensorPair(place, tuple(names[0]), tuple(names[1]))


def _members(
    place: str, left: dict[str, Json], right: dict[str, Json]
) -> Iterator[Change | TensorPair | tuple[str, Json, Json]]:
    changed = [path for path in right if path not in left or not _equal(left[path], right[path])]
    gone = [path for path in left if path not in right]
    values = [*right.values(), *left.values()]
    if len(changed) + len(gone) > _ONE_BY_ONE and all(_is_leaf(value) for value in values):
        both = sum(path in left for path in changed)
        text = f"{counted(both, 'value')} of {len(left):,} changed" if both else ""
        more = len(right) - len(left)
        more_text = (
            f"{counted(abs(more), 'value')} {'more' if more > 0 else 'less'}" if more else ""
        )
        after = ", ".join(filter(None, [text, more_text])) or f"{counted(len(right), 'value')}"
        yield Change(place, "value", counted(len(left), "value"), after)
        return
    shared = [path for path in left if path in right]
    if shared != [path for path in right if path in left]:
        yield Change(place, "value", "keys in one order", "in another")
    for path, value in right.items():
        if path not in left:
            yield from _whole(path, value, "added")
        elif not _equal(left[path], value):
            yield path, left[path], value
    for path in gone:
        yield from _whole(path, left[path], "removed")


def _whole(path: str, value: Json, kind: Literal["added", "removed"]) -> Iterator[Change]:
    """One line for a value that only one side has, however much it holds."""
    names = references_at(value)
    text = "tensor" if is_tensor(value) else shown(value)
    if names and not is_tensor(value):
        text = f"{text} with {counted(len(names), 'tensor')}"
    before, after = ("", text) if kind == "added" else (text, "")
    yield Change(path, kind, before, after, bool(names))


def shown(value: Json) -> str:
    """A value on one line, in short."""
    return text_of(value, _LONGEST)


def _is_leaf(value: Json) -> bool:
    return not is_tensor(value) and members_of(value) is None and not references_at(value)


def _equal(before: Json, after: Json) -> bool:
    """Whether two values need no look: plain ones that are identical."""
    return _is_leaf(before) and _is_leaf(after) and _identical(before, after)


def _identical(before: Json, after: Json) -> bool:
    """Equal in type and value, whatever tensors they refer to.

    Python's ``==`` has ``1 == True`` and ``0.0 == -0.0``.
    """
    pending = [(before, after)]
    while pending:
        one, two = pending.pop()
        if type(one) is not type(two):
            return False
        if tag_of(one) in REFERENCE_TAGS and tag_of(two) in REFERENCE_TAGS:
            continue
        if isinstance(one, dict) and isinstance(two, dict):
            if list(one) != list(two):
                return False
            pending += zip(one.values(), two.values())
        elif isinstance(one, list) and isinstance(two, list):
            if len(one) != len(two):
                return False
            pending += zip(one, two)
        elif one != two or (type(one) is float and repr(one) != repr(two)):
            return False
    return True


def _apart(before: Json, after: Json) -> tuple[str, str]:
    """Texts of two values. Where the short ones are equal, of what differs in them."""
    one, two = shown(before), shown(after)
    if one != two:
        return one, two
    bodies = [_body(value) for value in (before, after)]
    differ = [
        key
        for key in {**bodies[0], **bodies[1]}
        if not _identical(bodies[0].get(key), bodies[1].get(key))
    ]
    one, two = (", ".join(f"{key} {shown(body.get(key))}" for key in differ) for body in bodies)
    if one != two:
        return one, two
    one, two = (_full(value) for value in (before, after))
    if max(len(one), len(two)) <= _LONGEST:
        return one, two
    at = next((i for i, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))
    start = max(0, at - 10)
    return tuple(f"…{text[start : start + _LONGEST]}" for text in (one, two))  # type: ignore[return-value]


def _body(value: Json) -> dict[str, Json]:
    """The members of the body of a tag, or of an object."""
    tag = tag_of(value)
    body = cast("dict[str, Json]", value)[tag] if tag else value
    return body if type(body) is dict else {}


def _full(value: Json) -> str:
    found = scalar(value)
    return found if isinstance(found, str) else json.dumps(value, ensure_ascii=False)


def _wrappers(value: Json) -> str:
    """The kinds around a tensor: a parameter, one that requires a gradient, a sparse one."""
    kinds: list[str] = []
    while tag_of(value) and len(kinds) < _ONE_BY_ONE:
        tag = tag_of(value)
        if tag in REFERENCE_TAGS:
            break
        kinds.append(tag[1:])
        body = cast("dict[str, Json]", value)[tag]
        inner = body.values() if type(body) is dict else [body]
        found = [item for item in islice(inner, _ONE_BY_ONE) if is_tensor(item)]
        value = found[0] if len(found) == 1 else None
    return " ".join(kinds) or "tensor"
