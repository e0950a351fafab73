"""Strategies for the content of a lie: another value, a changed value, another text."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from tests.hostile.forge import Members, Raw, dumps
from tests.hostile.spelling import ITEMSIZE
from tools.reliability.drawn.plain import LEAVES, TEXT
from tools.reliability.mutants import MEMBERS, ODD_LEAVES, TAGS, TOKENS
from tools.reliability.mutations import VALUES

#: Bytes with a special meaning.
_MARKS = [
    *(bytes([code]) for code in b'\n\r\t "\\,:[]{}0-+.eE=/A\xff\0\x7f'),
    *TOKENS, b"\xc3", b"\xe2\x80\xa8",
]  # fmt: skip
VALUE: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(VALUES),
    st.sampled_from(sorted(ITEMSIZE)),
    st.integers(),
    st.lists(st.integers(0, 9), max_size=3),
    TEXT,
    st.sampled_from(TOKENS).map(Raw),
    st.integers(2, 10**4).map(lambda size: Raw(b"9" * size)),
    st.integers(2, 400).map(lambda depth: Raw(b"[" * depth + b"]" * depth)),
    st.sampled_from([1_023, 1_024, 1_025, 70_000]).map(lambda size: "/" + "x" * (size - 1)),
)


def shown(value: Any) -> str:
    """A value for people to read."""
    text = value if isinstance(value, bytes) else dumps(value)
    words = repr(bytes(text))[1:]
    return words if len(words) <= 80 else f"{words[:60]}… ({len(text)} bytes)"


def edited(draw: st.DrawFn, text: bytes) -> bytes:
    """A text with a single edit: something replaced, inserted, removed, doubled or moved."""
    at = draw(st.integers(0, len(text)))
    kind = draw(st.sampled_from(["put", "replace", "drop", "double", "swap", "cut"]))
    size = draw(st.sampled_from([1, 1, 2, 8, 40]))
    if kind == "put":
        return text[:at] + draw(st.sampled_from(_MARKS)) + text[at:]
    if kind == "replace":
        return text[:at] + draw(st.sampled_from(_MARKS)) + text[at + size :]
    if kind == "drop":
        return text[:at] + text[at + size :]
    if kind == "double":
        return text[: at + size] + text[at:]
    if kind == "swap":
        one, two = text[at : at + size], text[at + size : at + 2 * size]
        return text[:at] + two + one + text[at + 2 * size :]
    return text[:at]


def twisted(draw: st.DrawFn, value: Any, at: str = "") -> tuple[Any, str]:
    """A JSON value with one change inside, and a description of the change."""
    # From the inside out: usually the change is some levels down.
    if _entered(value) and draw(st.integers(0, 4)) < 4:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw(st.sampled_from(keys))
        inner, words = twisted(draw, value[key], f"{at}/{key}")
        result = copy.copy(value)
        result[key] = inner
        return result, words
    changed = _changed(draw, value)
    return changed, f"{at or '/'}: {shown(value)} becomes {shown(changed)}"


def _entered(value: Any) -> bool:
    return isinstance(value, dict | list) and not isinstance(value, Members) and len(value) > 0


def _changed(draw: st.DrawFn, value: Any) -> Any:
    kind = draw(st.sampled_from(["other", "near", "near", "text"]))
    if kind == "other":
        return draw(VALUE)
    if kind == "text":
        return Raw(edited(draw, dumps(value)))
    if isinstance(value, bool) or value is None:
        return draw(st.sampled_from([0, 1, None, not value, "true", []]))
    if isinstance(value, int):
        near: list[Any] = [value + 1, value - 1, -value, 2 * value, value + 2**32, value + 2**64]
        near.append(float(value) if abs(value) < 2**53 else 0.5)
        spelled = [str(value), Raw(b"%de0" % value), Raw(b"%d.0" % value), Raw(b"0%d" % value)]
        return draw(st.sampled_from(near + spelled))
    if isinstance(value, float):
        return draw(st.sampled_from([-value, int(value), value * 2, str(value), value + 2.0**-40]))
    if isinstance(value, str):
        shorter = [value[1:], value[:-1], value.upper()]
        longer = [value + " ", value + "0", value * 2, f"/{value}", f"\0{value}", f"{value}\ud800"]
        codes = b"".join(b"\\u%04x" % ord(c) for c in value if c < "\U00010000")
        return draw(st.sampled_from([*shorter, *longer, Raw(b'"' + codes + b'"')]))
    if isinstance(value, dict):
        return changed_object(draw, value)
    if isinstance(value, list) and not isinstance(value, Members):
        return _changed_array(draw, value)
    return draw(VALUE)


def changed_object(draw: st.DrawFn, value: dict[str, Any]) -> dict[str, Any] | Members:
    """An object with a member that is added, missing, doubled, renamed or moved."""
    pairs = list(value.items())
    kind = draw(st.sampled_from(["more", "drop", "double", "rename", "order"]))
    if kind == "more" or not pairs:
        key = draw(st.sampled_from([*MEMBERS, "requires", "x", "$x", "", "seal", "index"]) | TEXT)
        return Members([*pairs, (key, draw(VALUE))])
    at = draw(st.integers(0, len(pairs) - 1))
    key, inner = pairs[at]
    if kind == "drop":
        del pairs[at]
    elif kind == "double":
        pairs.insert(draw(st.integers(0, len(pairs))), (key, draw(st.just(inner) | VALUE)))
    elif kind == "rename":
        names = [f"{key} ", key.upper(), f"${key}", *value]
        pairs[at] = (draw(st.sampled_from(names)), inner)
    else:
        pairs.insert(draw(st.integers(0, len(pairs) - 1)), pairs.pop(at))
        return dict(pairs)
    return Members(pairs)


def _changed_array(draw: st.DrawFn, value: list[Any]) -> Any:
    kind = draw(st.sampled_from(["more", "drop", "double", "swap"]))
    if kind == "more" or not value:
        at = draw(st.integers(0, len(value)))
        return [*value[:at], draw(VALUE), *value[at:]]
    at = draw(st.integers(0, len(value) - 1))
    if kind == "drop":
        return value[:at] + value[at + 1 :]
    if kind == "double":
        return value[: at + 1] + value[at:]
    other = draw(st.integers(0, len(value) - 1))
    result = list(value)
    result[at], result[other] = result[other], result[at]
    return result


def wild(draw: st.DrawFn, depth: int = 0) -> Any:
    """A value for a state: nested tags that are right, nearly right or wrong."""
    kind = draw(st.sampled_from(["leaf", "odd", "tag", "tag", "members", "list"]))
    if kind == "odd" or depth > 4:
        return copy.deepcopy(draw(st.sampled_from(ODD_LEAVES)))
    if kind == "leaf":
        return draw(LEAVES)
    if kind == "tag":
        return {f"${draw(st.sampled_from(TAGS))}": wild(draw, depth + 1)}
    if kind == "members":
        names = draw(st.lists(st.sampled_from(MEMBERS), min_size=1, max_size=4, unique=True))
        return {name: wild(draw, depth + 1) for name in names}
    return [wild(draw, depth + 1) for _ in range(draw(st.integers(0, 3)))]


#: A gap between two tokens of JSON, outside strings.
_GAP = re.compile(rb'("(?:[^"\\]|\\.)*")|([\[\]{},:])')


def spaced(draw: st.DrawFn, text: bytes, marks: Sequence[bytes] = (b" ", b"\n", b"\t\r")) -> bytes:
    """The same JSON with white space somewhere between its tokens."""
    gaps = [found.end() for found in _GAP.finditer(text) if found[2]]
    if not gaps:
        return text
    at = draw(st.sampled_from(gaps))
    return text[:at] + draw(st.sampled_from(marks)) + text[at:]
