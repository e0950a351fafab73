"""Draws the state of a checkpoint as a tree, down to some depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from ..errors import counted
from ..format.json_text import Json
from ..progress import human
from .facts import Inspection, TensorFacts
from .plain_values import (
    brief,
    is_registered,
    is_tensor,
    kind_of,
    members_of,
    references_at,
    short,
    size_of,
)

#: Members of one container that are drawn.
_MOST = 40
#: The lines before a member, before the last one, and before what is below each.
UNICODE = ("├─ ", "└─ ", "│  ", "   ")
ASCII = ("|- ", "`- ", "|  ", "   ")


class TreeLine(NamedTuple):
    """A line of a tree: the strokes before it, the key, what is there."""

    strokes: str
    key: str
    text: str


class _Sums:
    """How much is below each path."""

    def __init__(self, tensors: Sequence[TensorFacts], depth: int) -> None:
        self.by_name = {tensor.name: tensor for tensor in tensors}
        self._below: dict[str, list[int]] = {}
        for tensor in tensors:
            parts = tensor.name.split("/")[: depth + 1]
            path = parts[0]
            for part in (None, *parts[1:]):
                path = path if part is None else f"{path}/{part}"
                row = self._below.setdefault(path, [0, 0])
                row[0] += 1
                row[1] += tensor.entry.nbytes if tensor.owns else 0

    def text(self, path: str) -> str:
        """The tensors below a path."""
        if path not in self._below:
            return ""
        count, nbytes = self._below[path]
        return f" · {counted(count, 'tensor')}, {human(nbytes)}"


def tree_lines(
    facts: Inspection, depth: int = 3, strokes: Sequence[str] = UNICODE
) -> Iterator[TreeLine]:
    """The lines of the tree of the state.

    Args:
        depth: levels below the state that are drawn.
        strokes: :data:`UNICODE` or :data:`ASCII`.
    """
    state = facts.manifest.state
    sums = _Sums(facts.tensors, depth)
    dot = strokes is UNICODE
    yield TreeLine("", "state", _text(state, "", sums, dot))
    yield from _below(state, "", "", depth, sums, strokes)


def _below(
    value: Json, path: str, before: str, depth: int, sums: _Sums, strokes: Sequence[str]
) -> Iterator[TreeLine]:
    members = (
        None if is_tensor(value) or depth < 1 or _on_a_line(value) else members_of(value, path)
    )
    if members is None:
        return
    fork, last, on, off = strokes
    shown = list(islice(members, _MOST + 1))
    more = size_of(value) - _MOST if len(shown) > _MOST else 0
    del shown[_MOST:]
    for position, (key, at, item) in enumerate(shown):
        ends = position == len(shown) - 1 and not more
        text = _text(item, at, sums, strokes is UNICODE)
        yield TreeLine(before + (last if ends else fork), key, text)
        yield from _below(item, at, before + (off if ends else on), depth - 1, sums, strokes)
    if more:
        yield TreeLine(before + last, "…" if strokes is UNICODE else "...", f"{more:,} more")


def _on_a_line(value: Json) -> bool:
    """Whether the text of a container says all: a short list of plain values."""
    return kind_of(value) in {"list", "tuple"} and brief(value)[:1] in {"[", "("}


def _text(value: Json, path: str, sums: _Sums, dot: bool) -> str:
    """What is at a path."""
    names = references_at(value) if is_tensor(value) or kind_of(value) == "NumPy array" else []
    if names:
        tensors = [sums.by_name[name] for name in names if name in sums.by_name]
        kind = kind_of(value)
        if len(tensors) == 1:
            of = tensors[0]
            said = f"{of.dtype} {list(of.shape)}"
            if of.kind != "tensor":
                said += f" · {'tied to' if of.kind == 'tied' else 'view of'} {of.entry.name}"
            text = said if kind == "tensor" else f"{kind} {said}"
        else:
            text = f"{kind} of {counted(len(tensors), 'tensor')}"
    elif members_of(value) is None or _on_a_line(value):
        text = brief(value)
    else:
        kind = kind_of(value)
        counts = f"object of {kind}" if is_registered(value) else f"{kind} of {size_of(value):,}"
        text = short(counts) + sums.text(path)
    return text if dot else text.replace(" · ", ", ").replace("…", "...")
