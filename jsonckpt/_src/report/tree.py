"""The state as a flat list of lines, for the page's tree."""

from __future__ import annotations

from ..format.json_text import Json
from ..inspect.plain_values import (
    Member,
    is_tensor,
    kind_of,
    members_of,
    references_at,
    short,
    size_of,
    text_of,
)

_MOST_LINES = 20_000
#: Members of one container that are listed; more are counted.
_MOST_MEMBERS = 2_000
_LONGEST_KEY, _LONGEST_TEXT = 200, 200
#: Plain values only, at least this many: one line.
_LONG_LIST = 32

#: Depth, key, kind, text, name of the tensor or an empty text.
Line = tuple[int, str, str, str, str]


def lines_of(state: Json) -> list[Line]:
    """Each value of a state, in order. Very long ones and very many are cut, and that is said."""
    lines: list[Line] = []
    pending: list[tuple[int, Member | str]] = [(0, Member("state", "", state))]
    while pending:
        depth, member = pending.pop()
        if len(lines) >= _MOST_LINES:
            left = len(pending) + 1
            lines.append((0, "…", "", f"at least {left:,} more values are not listed", ""))
            break
        if isinstance(member, str):
            lines.append((depth, "…", "", member, ""))
            continue
        key, value = short(member.key, _LONGEST_KEY), member.value
        if is_tensor(value):
            names = references_at(value)
            lines.append((depth, key, kind_of(value), "", names[0] if names else ""))
            continue
        members = members_of(value, member.path)
        if members is None or _is_long_list(value):
            lines.append((depth, key, kind_of(value), text_of(value, _LONGEST_TEXT), ""))
            continue
        lines.append((depth, key, kind_of(value), f"{size_of(value):,}", ""))
        below = list(members)
        more = len(below) - _MOST_MEMBERS
        if more > 0:
            pending.append((depth + 1, f"{more:,} more"))
        pending += [(depth + 1, one) for one in reversed(below[:_MOST_MEMBERS])]
    return lines


def values_of(state: Json) -> dict[str, str]:
    """The text of each plain value by its path, tensors left out. Long lists count as one value."""
    found: dict[str, str] = {}
    pending = [Member("", "", state)]
    while pending and len(found) < _MOST_LINES:
        member = pending.pop()
        if is_tensor(member.value):
            continue
        members = members_of(member.value, member.path)
        if members is None or _is_long_list(member.value):
            found[short(member.path, _LONGEST_KEY)] = text_of(member.value, _LONGEST_TEXT)
        else:
            pending += reversed(list(members))
    return found


def _is_long_list(value: Json) -> bool:
    if kind_of(value) not in ("list", "tuple") or size_of(value) < _LONG_LIST:
        return False
    return all(type(one.value) not in (dict, list) for one in members_of(value) or ())
