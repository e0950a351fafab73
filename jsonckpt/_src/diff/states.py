"""Walks two states side by side: their plain values, and the tensors that stand at one place. Pure.

A list of plain values in which much differs is one difference, so that a longer history is a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, cast

from ..errors import counted
from ..format.json_text import Json
from ..inspect.plain_values import (
    is_mapping,
    is_tensor,
    kind_of,
    members_of,
    references_at,
    scalar,
    size_of,
    tag_of,
    text_of,
)
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
    if is_tensor(before) and is_tensor(after):
        kinds = _wrappers(before), _wrappers(after)
        if kinds[0] != kinds[1]:
            yield Change(place, "type", *kinds, tensor=True)
        yield TensorPair(place, tuple(references_at(before)), tuple(references_at(after)))
        return
    kinds = kind_of(before), kind_of(after)
    one, two = members_of(before, place), members_of(after, place)
    if kinds[0] != kinds[1]:
        if one is None and two is None and not is_tensor(before) and not is_tensor(after):
            yield Change(place, "type", f"{kinds[0]} {shown(before)}", f"{kinds[1]} {shown(after)}")
        else:
            yield Change(place, "type", *kinds)
        return
    if one is None or two is None:
        yield from _arrays(place, before, after)
        if not _identical(_frame(before), _frame(after)):
            yield Change(place, "value", *_apart(before, after))
        return
    if not _identical(
        _frame(before), _frame(after)
    ):  # the factory of a defaultdict, the length of a deque
        yield Change(place, "type", shown(_frame(before)), shown(_frame(after)))
    left = {member.path: member.value for member in one}
    right = {member.path: member.value for member in two}
    keys = _key_kinds(before, left), _key_kinds(after, right)
    for path in right:
        if path in left and keys[0].get(path, "str") != keys[1].get(path, "str"):
            types = [f"key {kinds.get(path, 'str')}" for kinds in keys]
            yield Change(path, "type", types[0], types[1])
    yield from _members(place, left, right)


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


def _whole(path: str, value: Json, kind: str) -> Iterator[Change]:
    """One line for a value that only one side has, however much it holds."""
    names = references_at(value)
    text = "tensor" if is_tensor(value) else shown(value)
    if names and not is_tensor(value):
        text = f"{text} with {counted(len(names), 'tensor')}"
    before, after = ("", text) if kind == "added" else (text, "")
    yield Change(path, "added" if kind == "added" else "removed", before, after, bool(names))


def shown(value: Json) -> str:
    """A value on one line, in short."""
    return text_of(value, _LONGEST)


def _is_leaf(value: Json) -> bool:
    return not is_tensor(value) and members_of(value) is None and not references_at(value)


def _equal(before: Json, after: Json) -> bool:
    """Whether two values need no look: plain ones that are identical."""
    return _is_leaf(before) and _is_leaf(after) and _identical(before, after)


def _identical(before: Json, after: Json) -> bool:
    """Equal in type and value. Python's ``==`` has ``1 == True`` and ``0.0 == -0.0``."""
    if type(before) is not type(after):
        return False
    if isinstance(before, dict | list):
        return json.dumps(before) == json.dumps(after)
    return repr(before) == repr(after)


def _key_kinds(value: Json, members: dict[str, Json]) -> dict[str, str]:
    """The types of keys that are not strings, by the paths of their members."""
    tag = tag_of(value)
    body = cast("dict[str, Json]", value)[tag] if tag else None
    pairs = body.get("items") if type(body) is dict else body
    if not is_mapping(value) or type(pairs) is not list or len(pairs) != len(members):
        return {}
    return {path: kind_of(pair[0]) for path, pair in zip(members, pairs) if type(pair) is list}


def _apart(before: Json, after: Json) -> tuple[str, str]:
    """Texts of two values. Where the short ones are equal, from the first difference on."""
    one, two = shown(before), shown(after)
    if one != two:
        return one, two
    one, two = (_full(value) for value in (before, after))
    at = next((i for i, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))
    start = max(0, at - 10)
    return tuple(f"…{text[start : start + _LONGEST]}" for text in (one, two))  # type: ignore[return-value]


def _full(value: Json) -> str:
    found = scalar(value)
    return found if isinstance(found, str) else json.dumps(value, ensure_ascii=False)


def _frame(value: Json) -> Json:
    """What a value says beside its members and its tensors."""
    tag = tag_of(value)
    if members_of(value) is not None:
        body = cast("dict[str, Json]", value).get(tag) if tag else None
        if type(body) is not dict or "items" not in body or size_of(value) == len(body):
            return None
        return {key: item for key, item in body.items() if key != "items"}
    return None if references_at(value) else value


def _arrays(place: str, before: Json, after: Json) -> Iterator[TensorPair]:
    """NumPy arrays hold tensors in the files."""
    names = references_at(before), references_at(after)
    if names[0] or names[1]:
        yield TensorPair(place, tuple(names[0]), tuple(names[1]))


def _wrappers(value: Json) -> str:
    """The kinds around a tensor: a parameter, one that requires a gradient, a sparse one."""
    kinds: list[str] = []
    while tag_of(value) and len(kinds) < _ONE_BY_ONE:
        tag = tag_of(value)
        if tag in {"$tensor", "$tied", "$view"}:
            break
        kinds.append(tag[1:])
        body = cast("dict[str, Json]", value)[tag]
        inner = body.values() if type(body) is dict else [body]
        found = [item for item in islice(inner, _ONE_BY_ONE) if is_tensor(item)]
        value = found[0] if len(found) == 1 else None
    return " ".join(kinds) or "tensor"
