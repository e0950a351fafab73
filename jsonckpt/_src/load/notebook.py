"""An open checkpoint as a notebook shows it, and the places inside a state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ..errors import counted, printable
from ..format.model import Manifest, saved_text
from ..progress import human
from ..state.paths import DistinctPaths, label

#: What a notebook shows at most. It keeps its outputs in the file of the notebook.
_GROUPS, _VALUES, _TEXT = 30, 60, 120


def overview(entries: Mapping[str, Any], manifest: Manifest) -> str:
    """The tensors of a checkpoint, counted."""
    totals = manifest.totals()
    elements = sum(entry.numel() for entry in entries.values())
    return (
        f"{counted(len(entries), 'tensor')}, {counted(elements, 'element')}, "
        f"{human(totals['bytes'])}"
    )


def html(path: str, entries: Mapping[str, Any], manifest: Manifest, state: Any) -> str:
    """The overview, the groups of tensors and the plain values, as tables."""
    facts = [
        overview(entries, manifest),
        f"saved {saved_text(manifest.created_at, manifest.created_by)}",
    ]
    groups: dict[str, list[int]] = {}
    for name, entry in entries.items():
        group = "/".join(name.split("/")[:2])
        row = groups.setdefault(group, [0, 0, 0])
        for place, number in enumerate((1, entry.numel(), entry.nbytes)):
            row[place] += number
    rows = [
        (group, f"{tensors:,}", f"{elements:,}", human(nbytes))
        for group, (tensors, elements, nbytes) in [*groups.items()][:_GROUPS]
    ]
    values = [*plain_values(state, "", _VALUES + 1)]
    cut = [("…", "")] if len(values) > _VALUES else []
    return (
        f"<div><b>{_text(path)}</b><br>{'<br>'.join(map(_text, facts))}"
        f"{_table(('group', 'tensors', 'elements', 'bytes'), rows)}"
        f"{_table(('value', ''), [*values[:_VALUES], *cut])}</div>"
    )


def children(value: Any, place: str) -> dict[str, Any]:
    """What a value of a state holds, by its places (``docs/format.md`` section 6.3)."""
    if isinstance(value, Mapping):
        paths = DistinctPaths(place)
        return {paths.child(label(key, is_tensor=False)): item for key, item in value.items()}
    if isinstance(value, list | tuple):
        return {f"{place}/{number}": item for number, item in enumerate(value)}
    return {}


def plain_values(value: Any, place: str, most: int) -> Iterator[tuple[str, str]]:
    """The places and texts of values that are no tensors. Lists of numbers are one value."""
    pending = [(place, value)]
    while pending and most > 0:
        place, value = pending.pop()
        inside = children(value, place)
        if inside and not all(isinstance(item, int | float) for item in inside.values()):
            pending += reversed(inside.items())
        elif not hasattr(value, "dtype"):
            most -= 1
            yield place or "/", repr(value)


def _text(text: str) -> str:
    shown = printable(text)
    return escape(shown if len(shown) <= _TEXT else f"{shown[: _TEXT - 1]}…")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    names = "".join(f"<th>{_text(name)}</th>" for name in head)
    return f"<table><tr>{names}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
