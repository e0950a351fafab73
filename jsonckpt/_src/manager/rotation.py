"""Which checkpoints of a run stay. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError, quote
from .saved_step import DAMAGED, KEPT, REMOVING, SavedStep


@dataclass(frozen=True)
class Best:
    """Which metric says how good a step is, and how many of the best stay."""

    metric: str
    mode: str = "min"
    count: int = 1

    @classmethod
    def of(cls, value: Any) -> Best | None:
        """The argument ``keep_best``, checked.

        >>> Best.of(("val_loss", "min"))
        Best(metric='val_loss', mode='min', count=1)
        """
        if value is None:
            return None
        if isinstance(value, (tuple, list)) and len(value) in (2, 3):
            best = cls(*value)
            if isinstance(best.metric, str) and best.mode in ("min", "max"):
                check_count(best.count, "the number in keep_best")
                return best
        raise ArgumentError(
            f"keep_best is {quote(value)}, expected (METRIC, 'min' or 'max', COUNT)",
            hint='Write keep_best=("val_loss", "min", 1).',
        )

    def ranked(self, rows: Sequence[SavedStep]) -> list[SavedStep]:
        """Those rows that have the metric, the best first. Of equal ones the older is better."""
        sign = 1 if self.mode == "min" else -1
        having = [row for row in rows if not math.isnan(row.metrics.get(self.metric, math.nan))]
        return sorted(having, key=lambda row: (sign * row.metrics[self.metric], row.save))


@dataclass(frozen=True)
class Rotation:
    """What stays: the last ones, the best ones, and those of every so many steps.

    Attributes:
        last: how many of the newest; ``None`` for all.
        every: each step that is a multiple of this stays, too.
    """

    last: int | None = None
    best: Best | None = None
    every: int | None = None

    def victims(self, rows: Sequence[SavedStep]) -> list[SavedStep]:
        """The rows whose checkpoints are to be removed, the oldest first.

        The newest always stays. A step that was saved again gives way to the new one, unless it is
        one of the best. A damaged one does not count, and goes when enough newer ones are there.
        """
        whole = [row for row in rows if row.status == KEPT]
        current = newest_of_each(whole)
        last = current if self.last is None else current[-self.last :]
        stay = {row.save for row in last}
        if self.every is not None:
            stay |= {row.save for row in current if row.step % self.every == 0}
        if self.best is not None:
            stay |= {row.save for row in self.best.ranked(whole)[: self.best.count]}
        # An interrupted removal goes on.
        gone = {row.save for row in rows if row.status == REMOVING}
        gone |= {row.save for row in whole if row.save not in stay}
        if len(last) == self.last:
            gone |= {row.save for row in rows if row.status == DAMAGED and row.save < last[0].save}
        return [row for row in rows if row.save in gone]


def newest_of_each(rows: Sequence[SavedStep]) -> list[SavedStep]:
    """Of each step the row that was saved last, in the order of the saves."""
    last = {row.step: row.save for row in rows}
    return [row for row in rows if last[row.step] == row.save]


def check_count(value: object, name: str) -> int:
    """A positive integer.

    Raises:
        ArgumentError: it is none.
    """
    if type(value) is not int or value < 1:
        raise ArgumentError(f"{name} must be a positive integer, not {quote(value)}")
    return value
