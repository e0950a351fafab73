"""Lies in the state tree: tags, views, references, limits."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from tests.hostile.forge import Members, Raw, dumps
from tests.hostile.spelling import ITEMSIZE
from tools.reliability.drawn.teller import ACCEPT, REFUSE, Lie, Teller
from tools.reliability.drawn.twists import shown, spaced, wild

#: Tags that hold other values.
_HOLDERS = [
    "$parameter", "$requires_grad", "$tuple", "$set", "$dict", "$slice", "$ndarray", "$deque",
]  # fmt: skip


def _state(teller: Teller) -> None:
    teller.forgery.single["state"] = teller.twist(teller.forgery.state, "state")


def _put(teller: Teller, value: Any, told: str, expects: str | None = None) -> None:
    """A further value in the state."""
    state = teller.forgery.state
    if not isinstance(state, dict) or "further" in state:
        return
    if len(state) == 1 and next(iter(state))[:1] == "$":
        expects = None  # with a second member, a tag is not a tag any more
    # At the front and at the end: the first statement about a tensor counts.
    first = teller.draw(st.booleans())
    pair = {"further": value}
    teller.forgery.single["state"] = {**pair, **state} if first else {**state, **pair}
    teller.note(f"state: {told}: {shown(value)}", expects)


def _wild(teller: Teller) -> None:
    _put(teller, wild(teller.draw), "anything")


def _nested_tag(teller: Teller) -> None:
    """A part of the state inside a tag that may or may not hold it."""
    found = list(_nodes(teller.forgery.state))
    node = copy.deepcopy(teller.pick(found)) if found else None
    value: Any = node
    for _ in range(teller.number(1, 3)):
        tag = teller.pick(_HOLDERS)
        body: Any = value
        if tag == "$parameter":
            body = {"data": value, "requires_grad": teller.draw(st.booleans())}
        elif tag == "$ndarray":
            body = {"dtype": teller.pick(["<f4", "|u1"]), "shape": [3], "data": value}
        elif tag == "$deque":
            body = {"items": [value], "maxlen": 2}
        elif tag in ("$tuple", "$set"):
            body = [value]
        elif tag == "$dict":
            body = [[value, 1]]
        elif tag == "$slice":
            body = [value, None, value]
        value = {tag: body}
    _put(teller, value, "tags in one another")


def _nodes(node: Any) -> Iterator[Any]:
    """Every tagged value of a state."""
    if isinstance(node, dict):
        if len(node) == 1 and next(iter(node))[:1] == "$":
            yield node
        for value in node.values():
            yield from _nodes(value)
    elif isinstance(node, list) and not isinstance(node, Members):
        for value in node:
            yield from _nodes(value)


def _state_text(teller: Teller) -> None:
    text = dumps(teller.forgery.state)
    if teller.draw(st.booleans()):
        changed = spaced(teller.draw, text)
        if changed != text:
            teller.note(f"state: {shown(changed)}", ACCEPT)
    else:
        changed = teller.edit(text, "state")
    if changed != text:
        teller.forgery.single["state"] = Raw(changed)


def _view(teller: Teller) -> None:
    """A view inside its record, at its end, or beyond it."""
    record = teller.record(lambda r: teller.raw(r) is not None)
    if record is None:
        return
    nbytes = len(teller.raw(record) or b"")
    dtype = teller.pick([str(record.members["dtype"]), *sorted(ITEMSIZE)])
    if dtype not in ITEMSIZE:
        return
    near = [0, 1, 2, max(0, nbytes // ITEMSIZE[dtype] - 1), nbytes // ITEMSIZE[dtype]]
    sizes = st.sampled_from([*near, nbytes + 1, 2**31, 2**62, 2**63 - 1, 2**63, -1])
    rank = teller.number(0, 3)
    shape = [teller.draw(sizes) for _ in range(rank)]
    stride = [teller.draw(sizes) for _ in range(rank)]
    offset = teller.draw(sizes)
    body = {"name": "/further", "of": record.members["name"], "dtype": dtype}
    body |= {"shape": shape, "stride": stride, "offset": offset}
    numbers = [*shape, *stride, offset]
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride))
    inside = 0 in shape or (last + 1) * ITEMSIZE[dtype] <= nbytes
    expects: str | None = REFUSE
    if all(0 <= number < 2**63 for number in numbers) and inside:
        # A view may have many elements at one address, but perhaps more than torch can count.
        small = math.prod(size for size in shape if size) < 2**20
        odd = dtype == "bool" and record.members["dtype"] != "bool"
        expects = ACCEPT if small and not odd else None
    _put(teller, {"$view": body}, f"of {nbytes} bytes", expects)


def _reference(teller: Teller) -> None:
    """References that contradict each other."""
    record = teller.record(lambda r: isinstance(r.members.get("name"), str))
    if record is None:
        return
    name = record.members["name"]
    tied = {"$tied": {"name": "/tie", "of": name}}
    kind = teller.pick(["twice", "two things", "a record's name", "nowhere", "again"])
    if kind == "twice":
        _put(teller, [tied, copy.deepcopy(tied)], kind, ACCEPT)
    elif kind == "two things":
        _put(teller, [tied, {"$tied": {"name": "/tie", "of": name + "x"}}], kind, REFUSE)
    elif kind == "a record's name":
        _put(teller, [{"$tied": {"name": name, "of": name}}], kind)
    elif kind == "nowhere":
        body = {"name": "/v", "of": "/nowhere", "dtype": "uint8", "shape": [0], "stride": [1]}
        nowhere = [{"$tensor": "/nowhere"}, {"$tied": {"name": "/t", "of": "/nowhere"}}]
        _put(teller, teller.pick([*nowhere, {"$view": body | {"offset": 0}}]), kind, REFUSE)
    else:
        _put(teller, {"$tensor": name}, kind, ACCEPT)


def _limit(teller: Teller) -> None:
    """A value at a limit, or one beyond it."""
    beyond = teller.draw(st.booleans())
    expects = REFUSE if beyond else ACCEPT
    kind = teller.pick(["characters", "levels", "bits", "sizes"])
    if kind == "characters":
        digits = 1_000 + beyond
        start = teller.pick([b"9", b"0.", b"-"])
        _put(teller, Raw(start + b"3" * (digits - len(start))), f"{digits} {kind}", expects)
    elif kind == "levels":
        # The file and the state are two levels.
        levels = 198 + beyond
        _put(teller, Raw(b"[" * levels + b"]" * levels), f"{2 + levels} {kind}", expects)
    elif kind == "bits":
        # Not in section 8: the limit on integers that readers calculate with, see checks.MAX_BITS.
        part = {"$int": "0x" + "1" * beyond + "f" * 4_096}
        body = teller.pick([{"$range": [0, part, 1]}, {"$fraction": [part, 1]}])
        _put(teller, body, kind, expects)
    else:
        _put(teller, {"$size": [2**63 - 1 + beyond]}, kind, expects)


def _twice(teller: Teller) -> None:
    """Keys and elements that are equal in Python, or that cannot be keys."""
    one, two = teller.pick([(1, 1), (1, 1.0), (True, 1), ("a", "a"), (0, -0.0), (None, None)])
    tag = teller.pick(["$set", "$frozenset", "$dict", "$counter"])
    if teller.number(0, 3) == 3:
        one = {"$bytearray": ""} if teller.draw(st.booleans()) else [1]
    body = [one, two] if tag.endswith("set") else [[one, 1], [two, 2]]
    _put(teller, {tag: body}, "twice, or no key", REFUSE)


STATE_LIES: list[Lie] = [
    _state, _state, _wild, _wild, _nested_tag, _state_text, _view, _view, _reference, _limit,
    _twice,
]  # fmt: skip
