"""Several checkpoints of a run: their plain numbers, norms and health over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..inspect.facts import group_name
from ..inspect.plain_values import Member, is_tensor, members_of, number
from .collect import Collected

#: Numbers of all curves of single tensors together.
_MOST_POINTS = 200_000
_MOST_CURVES = 24
_MOST_GROUPS = 8
#: Curves of plain numbers that people look for first.
_FIRST = ("loss", "lr", "acc", "perplexity", "step", "epoch")


def curves_of_run(run: Sequence[Collected]) -> dict[str, Any]:
    """The curves, each with a value for each checkpoint, ``None`` where it has none."""
    last = run[-1]
    names = sorted(
        (tensor for tensor in last.facts.tensors if tensor.owns),
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
            if tensor.owns and found is not None and type(found.min) is float:
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
    ordered = sorted(curves, key=_rank)
    return {path: curves[path] for path in ordered[:_MOST_CURVES]}


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
