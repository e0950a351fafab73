"""Several checkpoints of a run: their plain numbers, norms and health over the steps."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from ..format.json_text import Json
from ..inspect.facts import group_name
from ..inspect.plain_values import Member, is_mapping, is_tensor, members_of, number
from .collect import Collected

#: Numbers of all curves of single tensors together.
_MOST_POINTS = 200_000
_MOST_CURVES = 24
_MOST_GROUPS = 8
#: Name, places on the horizontal axis, values, what the axis counts.
Curve: TypeAlias = tuple[str, list[float], list[float], str]
_MOST_PLACES = 400
_HISTORY = re.compile(r"history|histories|losses|logs?$|curve", re.IGNORECASE)
_AXIS = re.compile(r"(global_)?step|iteration|epoch", re.IGNORECASE)
#: Curves of plain numbers that people look for first.
_FIRST = ("loss", "lr", "acc", "perplexity", "step", "epoch")


def curves_of_run(run: Sequence[Collected]) -> dict[str, Any]:
    """The curves, each with a value for each checkpoint, ``None`` where it has none."""
    last = run[-1]
    names = sorted(
        (tensor for tensor in last.facts.tensors if tensor.owns and tensor.numel > 1),
        key=lambda tensor: -tensor.nbytes,
    )[: max(_MOST_POINTS // len(run), 1)]
    records = [{t.name: t.entry.name for t in each.facts.tensors} for each in run]
    norms = {
        tensor.name: [
            each.statistics[record[tensor.name]].norm if tensor.name in record else None
            for each, record in zip(run, records)
        ]
        for tensor in names
    }
    return {"values": _values(run), "groups": _groups(run), "broken": _broken(run), "norms": norms}


def _groups(run: Sequence[Collected]) -> dict[str, list[float | None]]:
    """The norm of all floating-point tensors of each group together."""
    sums: dict[str, list[float]] = {}
    for at, each in enumerate(run):
        for tensor in each.facts.tensors:
            found = each.statistics.get(tensor.entry.name)
            if tensor.owns and tensor.numel > 1 and found and type(found.min) is float:
                group = sums.setdefault(_group(tensor.name), [0.0] * len(run))
                group[at] += min(found.norm or 0.0, 1e150) ** 2
    largest = sorted(sums, key=lambda name: -sums[name][-1])[:_MOST_GROUPS]
    return {name: [math.sqrt(square) for square in sums[name]] for name in largest}


def _group(name: str) -> str:
    """The moments of an optimizer by their kind, other tensors by the first part of the name."""
    kind = name.rsplit("/", 1)[-1]
    if "/state/" in name and kind in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
        return f"{group_name(name, 1)} {kind}"
    return group_name(name, 1)


def _broken(run: Sequence[Collected]) -> list[int]:
    """NaN and infinite elements of each checkpoint."""
    return [sum(one.nans + one.infs for one in each.statistics.values()) for each in run]


def _values(run: Sequence[Collected]) -> dict[str, list[float | None]]:
    """Plain numbers that all checkpoints have and that are not always the same."""
    found = [_numbers(each) for each in run]
    curves = {
        path: [each.get(path) for each in found]
        for path in found[-1]
        if all(path in each for each in found) and len({each[path] for each in found}) > 1
    }
    known = [each.number("learning rate") for each in run]
    if len(set(known)) > 1 and None not in known:
        curves = {"learning rate": known, **curves}
    steps = [each.number("step") for each in run]
    shown: dict[str, list[float | None]] = {}
    for path in sorted(curves, key=_rank):
        counts_steps = _differences(curves[path]) == _differences(steps)
        if not counts_steps and curves[path] not in shown.values() and len(shown) < _MOST_CURVES:
            shown[path] = curves[path]
    return shown


def _differences(values: Sequence[float | None]) -> list[float]:
    numbers = [value for value in values if value is not None]
    return [later - earlier for earlier, later in itertools.pairwise(numbers)]


def _rank(path: str) -> int:
    key = path.rsplit("/", 1)[-1].lower()
    hits = [at for at, word in enumerate(_FIRST) if word in key]
    return 0 if path == "learning rate" else 1 + min(hits, default=len(_FIRST))


def _numbers(each: Collected) -> dict[str, float]:
    """Plain numbers at most three levels below the top."""
    found: dict[str, float] = {}
    pending = [(Member("", "", each.facts.manifest.state), 0)]
    while pending and len(found) < 2_000:
        member, depth = pending.pop()
        value = number(member.value)
        if value is not None:
            if abs(value) < 1e300 and member.path:
                found[member.path] = float(value)
        elif depth < 3 and not is_tensor(member.value):
            members = list(members_of(member.value, member.path) or ())
            if len(members) <= 200:
                pending += [(below, depth + 1) for below in reversed(members)]
    return found


def histories(state: Json) -> list[Curve]:
    """Curves that one checkpoint carries: rows of a history, and lists of numbers in one."""
    found: list[Curve] = []
    pending = [(Member("", "", state), 0, False)]
    while pending and len(found) < _MOST_CURVES:
        member, depth, inside = pending.pop()
        inside = inside or bool(_HISTORY.search(member.key))
        if is_tensor(member.value):
            continue
        members = list(members_of(member.value, member.path) or ())
        if is_mapping(member.value):
            if depth < 3:
                pending += [(below, depth + 1, inside) for below in reversed(members)]
        elif inside and len(members) > 1:
            found += _curves_of_list(member, members)
    return found[:_MOST_CURVES]


def _curves_of_list(member: Member, members: list[Member]) -> list[Curve]:
    """A list of numbers is one curve, a list of rows one for each key that has numbers."""
    step = -(-len(members) // _MOST_PLACES)
    thinned = members[::step]
    places = [float(at) for at in range(0, len(members), step)]
    plain = [number(one.value) for one in thinned]
    if None not in plain:
        return [(member.path, places, [_float(one) for one in plain], "entry")]
    rows = [{one.key: number(one.value) for one in members_of(row.value) or ()} for row in thinned]
    axis = "entry"
    for key in filter(_AXIS.fullmatch, rows[-1]):
        at = [row.get(key) for row in rows]
        if None not in at and len(set(at)) == len(at):  # each row has a place of its own
            axis, places = key, [_float(one) for one in at]
    curves = []
    for key in rows[-1]:
        values = [row.get(key) for row in rows]
        if key != axis and None not in values and len(set(values)) > 1 and not _AXIS.fullmatch(key):
            curves.append((key, places, [_float(one) for one in values], axis))
    return curves


def _float(value: float | None) -> float:
    return max(-1e300, min(1e300, value or 0.0)) * 1.0
