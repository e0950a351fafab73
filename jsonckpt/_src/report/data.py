"""What the page's program gets: plain data (``docs/design/report.md`` describes it)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from ..errors import counted
from ..format.model import saved_text
from ..inspect.facts import Group
from ..inspect.histogram import Histogram
from ..inspect.plain_values import short
from ..inspect.statistics import TensorStatistics
from ..progress import human
from .collect import Collected
from .compare import Compared
from .grids import Picture
from .health import Finding, findings, growth
from .optimizers import Moments, moments_of
from .run import curves_of_run, histories
from .tree import lines_of

#: Characters for the heights of bars, in this order.
_HEIGHTS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
_LONGEST = 300
_MOST_FACTS = 60
#: Tensors that are listed for one finding; more are counted.
_MOST_NAMED = 500


def data_of(
    read: Sequence[Collected], compared: Compared | None, *, made_by: str
) -> dict[str, Any]:
    """The data of a page about the last of the checkpoints that were read."""
    last = read[-1]
    moments = moments_of(last.facts)
    found = findings(last, moments)
    if len(read) > 1:
        found += growth(read[0], last)
    return {
        "made_by": made_by,
        "title": _label(last),
        "checkpoints": [_checkpoint(one) for one in read],
        "overview": _overview(last),
        "facts": _facts(last),
        "history": histories(last.facts.manifest.state),
        "tensors": _tensors(last, moments),
        "health": [_finding(one) for one in found],
        "checked": _checked(last),
        "tree": lines_of(last.facts.manifest.state),
        "run": curves_of_run(read) if len(read) > 2 else None,
        "compare": _compare(compared) if compared is not None else None,
    }


def _label(one: Collected) -> str:
    return short(PurePath(one.facts.path).name or one.facts.path, _LONGEST)


def _checkpoint(one: Collected) -> dict[str, Any]:
    return {
        "label": _label(one),
        "path": short(one.facts.path, _LONGEST),
        "step": one.number("step"),
        "epoch": one.number("epoch"),
        "saved": short(saved_text(one.facts.created_at, one.facts.created_by), _LONGEST),
        "bytes": one.facts.nbytes,
    }


def _overview(last: Collected) -> list[tuple[str, str, str]]:
    """Label, value, and a second line."""
    facts = last.facts
    groups = [one for one in facts.groups() if "optim" not in one.name]
    largest = max(groups, key=lambda one: one.numel, default=None)
    shown: list[tuple[str, str, str]] = []
    for what in ("step", "epoch", "learning rate"):
        value = last.number(what)
        if value is not None:
            shown.append((what, f"{value:,.6g}", ""))
    places = [counted(facts.count("tied"), "tie")] if facts.count("tied") else []
    places += [counted(facts.count("view"), "view")] if facts.count("view") else []
    shown += [
        ("elements", _short(facts.numel), _in_group(largest)),
        ("tensors", f"{len(facts.tensors):,}", ", ".join(places)),
        ("tensor bytes", human(facts.nbytes), ", ".join(one.name for one in facts.dtypes()[:4])),
    ]
    if facts.file_bytes:
        ratio = f", {facts.ratio:.1%} of the raw bytes" if facts.ratio is not None else ""
        shown.append(("on disk", human(facts.file_bytes), counted(facts.files, "file") + ratio))
    encodings = [one.name for one in facts.codecs()]
    shown.append(("encoding", short("; ".join(encodings[:2]) or "none", _LONGEST), ""))
    return [(label, short(value, _LONGEST), short(more, _LONGEST)) for label, value, more in shown]


def _facts(last: Collected) -> list[tuple[str, str, str]]:
    """Kind, path and text of what is worth a line."""
    facts = last.facts
    shown = [
        ("saved", "", saved_text(facts.created_at, facts.created_by)),
        ("path", "", facts.path),
        ("digest", "", facts.digest or "none: nothing covers the whole"),
    ]
    if not facts.sealed:
        shown.append(("edited", "", "by hand: no seal covers the text"))
    shown += [("metadata", key, str(value)) for key, value in facts.metadata.items()]
    shown += [
        (one.what, one.path, one.text)
        for one in facts.state
        if one.what not in ("step", "epoch", "value")
    ]
    return [tuple(short(part, _LONGEST) for part in row) for row in shown[:_MOST_FACTS]]  # type: ignore[misc]


def _in_group(group: Group | None) -> str:
    return f"{_short(group.numel)} in {group.name}" if group is not None else ""


def _short(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _tensors(last: Collected, moments: Sequence[Moments]) -> list[dict[str, Any]]:
    updates = {one.weight: one for one in moments}
    rows = []
    for tensor in last.facts.tensors:
        row: dict[str, Any] = {
            "name": short(tensor.name, _LONGEST),
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "bytes": tensor.nbytes,
        }
        if tensor.owns:
            row["own"] = tensor.entry.nbytes
            row["stored"] = tensor.stored_bytes
        if tensor.kind != "tensor":
            row["of"] = short(f"{tensor.kind} to {tensor.entry.name}", _LONGEST)
        statistics = last.statistics.get(tensor.entry.name)
        if statistics is not None:
            row |= _statistics(statistics, last.pictures.get(tensor.entry.name))
        found = updates.get(tensor.name)
        if found is not None:
            row["moments"] = found.moments
            row["update"] = found.update(last.statistics)
        rows.append(row)
    return rows


def _statistics(found: TensorStatistics, picture: Picture | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "count": found.count,
        "min": found.min,
        "max": found.max,
        "mean": found.mean,
        "std": found.std,
        "norm": found.norm,
    }
    row |= {
        name: count
        for name in ("nans", "infs", "zeros", "denormals")
        if (count := getattr(found, name))
    }
    if found.histogram.counts:
        row["bars"] = bars(found.histogram)
        row["from"] = found.histogram.start
        row["to"] = found.histogram.start + found.histogram.width * len(found.histogram.counts)
    if picture is not None:
        row["heat"] = [picture.rows, picture.columns, picture.scale, picture.signed, picture.codes]
        if picture.dead_rows or picture.dead_columns:
            row["dead"] = [picture.dead_rows, picture.dead_columns]
    return row


def bars(histogram: Histogram) -> str:
    """A character for the height of each bar, in 64 steps; a count of one is at least one step.

    >>> bars(Histogram(0.0, 1.0, (0, 1, 4, 1000)))
    '011_'
    """
    top = max(histogram.counts)
    heights = (math.ceil(63 * count / top) if count else 0 for count in histogram.counts)
    return "".join(_HEIGHTS[height] for height in heights)


def _finding(one: Finding) -> dict[str, Any]:
    return {
        "level": one.level,
        "title": one.title,
        "why": one.why,
        "count": len(one.tensors),
        "tensors": [(short(name, _LONGEST), text) for name, text in one.tensors[:_MOST_NAMED]],
    }


def _checked(last: Collected) -> str:
    count = sum(found.count for found in last.statistics.values())
    return f"{counted(len(last.statistics), 'tensor')}, {_short(count)} elements"


def _compare(compared: Compared) -> dict[str, Any]:
    return {
        "tensors": [
            {
                "name": short(one.name, _LONGEST),
                "status": one.status,
                "norms": one.norms,
                "distance": one.distance,
                "relative": one.relative,
                "cosine": one.cosine,
            }
            for one in compared.tensors
        ],
        "values": compared.values,
    }
