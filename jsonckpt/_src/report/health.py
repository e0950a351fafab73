"""What deserves a look: rules over the statistics of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..errors import counted
from ..inspect.facts import TensorFacts
from ..inspect.statistics import TensorStatistics
from .collect import Collected
from .grids import Picture
from .optimizers import Moments

_LARGE = 1e4  # the root mean square of a weight; healthy weights are near 1 or below
_DENORMAL_SHARE = 0.01
_FLOAT16_LIMIT = 65_504 / 4
_LARGEST_UPDATE = 0.1
_GROWTH = 10.0


@dataclass(frozen=True)
class Finding:
    """A rule that some tensors meet.

    Attributes:
        level: ``"bad"``, ``"warn"`` or ``"note"``.
        title, why: what was found, and what it means.
        tensors: ``(name, detail)`` of each.
    """

    level: str
    title: str
    why: str
    tensors: tuple[tuple[str, str], ...]


_Rule = Callable[[TensorFacts, TensorStatistics, Picture | None], str | None]


def _nan(_: TensorFacts, found: TensorStatistics, __: Picture | None) -> str | None:
    return f"{found.nans:,} of {found.count:,}" if found.nans else None


def _inf(_: TensorFacts, found: TensorStatistics, __: Picture | None) -> str | None:
    return f"{found.infs:,} of {found.count:,}" if found.infs else None


def _large(_: TensorFacts, found: TensorStatistics, __: Picture | None) -> str | None:
    if not found.norm or not found.finite or not _is_float(found):
        return None
    mean_square = found.norm / math.sqrt(found.finite)
    return f"root mean square {mean_square:.3g}" if mean_square > _LARGE else None


def _near_overflow(tensor: TensorFacts, found: TensorStatistics, _: Picture | None) -> str | None:
    if tensor.dtype != "float16" or found.min is None or found.max is None:
        return None
    most = max(abs(found.min), abs(found.max))
    return f"largest magnitude {most:.3g}" if most > _FLOAT16_LIMIT else None


def _dead(tensor: TensorFacts, found: TensorStatistics, picture: Picture | None) -> str | None:
    if picture is None or found.zeros == found.count or tensor.numel < 4:
        return None
    said = [
        counted(count, f"dead {what}")
        for what, count in (("row", picture.dead_rows), ("column", picture.dead_columns))
        if count
    ]
    return " and ".join(said) + f" of {tuple(tensor.shape)}" if said else None


def _constant(_: TensorFacts, found: TensorStatistics, __: Picture | None) -> str | None:
    return f"all {found.count:,} are {found.min:.6g}" if found.is_constant else None


def _denormal(_: TensorFacts, found: TensorStatistics, __: Picture | None) -> str | None:
    share = found.denormals / max(found.count, 1)
    return f"{share:.1%} of {found.count:,}" if share > _DENORMAL_SHARE else None


def _is_float(found: TensorStatistics) -> bool:
    return type(found.min) is float


_RULES: tuple[tuple[str, str, str, _Rule], ...] = (
    ("bad", "NaN", "Not a number: training cannot go on from here.", _nan),
    ("bad", "Infinity", "An overflow: the next step makes NaN of it.", _inf),
    ("bad", "Very large values", "Root mean square above 10,000.", _large),
    ("warn", "Near the end of float16", "Values above a quarter of 65,504.", _near_overflow),
    ("warn", "Dead rows or columns", "All zero: these units give or take nothing.", _dead),
    ("warn", "Denormal numbers", "Over 1 % are below the smallest normal number: the dtype's "
     "range is too small here, or the values fade away.", _denormal),
    ("note", "Constant tensors", "All elements are equal, as biases and norms are before "
     "training.", _constant),
)  # fmt: skip


def findings(last: Collected, moments: Iterable[Moments]) -> list[Finding]:
    """What the rules find in one checkpoint, the worst first."""
    found: list[Finding] = []
    for level, title, why, rule in _RULES:
        met = []
        for tensor in last.facts.tensors:
            statistics = last.statistics.get(tensor.entry.name)
            if tensor.owns and statistics is not None:
                detail = rule(tensor, statistics, last.pictures.get(tensor.entry.name))
                if detail is not None:
                    met.append((tensor.name, detail))
        if met:
            found.append(Finding(level, title, why, tuple(met)))
    updates = [
        (one.weight, f"about {ratio:.2g} of the weight")
        for one in moments
        if (ratio := one.update(last.statistics)) is not None and ratio > _LARGEST_UPDATE
    ]
    if updates:
        why = "The last step changed a weight by more than a tenth of its size, estimated."
        found.append(Finding("warn", "Large updates", why, tuple(updates)))
    return sorted(found, key=lambda one: ("bad", "warn", "note").index(one.level))


def growth(first: Collected, last: Collected) -> list[Finding]:
    """Norms that grew more than tenfold from the first checkpoint of a run to the last."""
    grown = []
    for tensor in last.facts.tensors:
        before = first.statistics.get(tensor.entry.name)
        after = last.statistics.get(tensor.entry.name)
        if not tensor.owns or before is None or after is None or not _is_float(after):
            continue
        if before.norm and after.norm and after.norm > _GROWTH * before.norm:
            grown.append((tensor.name, f"{before.norm:.3g} to {after.norm:.3g}"))
    if not grown:
        return []
    why = "The norm grew more than tenfold from the first checkpoint to the last."
    return [Finding("warn", "Growing norms", why, tuple(grown))]
