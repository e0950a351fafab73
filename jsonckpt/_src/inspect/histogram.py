"""Counts numbers in intervals whose range is not known beforehand."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bars of a :class:`Histogram`, at most.
BARS = 64
#: Fine bins on each side of zero while counting.
_HALF = 1024
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many numbers lie in intervals of one width.

    Attributes:
        start: where the first interval begins; a whole multiple of ``width``.
        width: of each interval, a power of two times a small integer.
        counts: numbers ``x`` with ``start + i * width <= x < start + (i + 1) * width``.
    """

    start: float
    width: float
    counts: tuple[int, ...]


class FineBins:
    """Counts in bins of a power of two, which grow by joining pairs.

    Bin ``i`` holds the numbers from ``(i - 1024) * width`` on. All widths begin their bins at zero,
    so the counts do not depend on the order in which numbers come.
    """

    def __init__(self) -> None:
        self._reach: int | None = None  # all numbers are below 2 ** reach
        self._counts = np.zeros(2 * _HALF, np.int64)

    def add(self, numbers: NDArray[np.float64], largest: int | None, counts: Any = None) -> None:
        """Add finite numbers, whose magnitudes are below ``2 ** largest``."""
        scale = self._grow(-1000 if largest is None else max(largest, -1000))
        found = np.floor(numbers * scale).astype(np.intp)
        found += _HALF
        if counts is None:
            self._counts += np.bincount(found, minlength=2 * _HALF)
        else:
            np.add.at(self._counts, found, counts)

    def merge(self, other: FineBins) -> None:
        """Add the counts of another."""
        if other._reach is None:
            return
        self._grow(other._reach)
        mine = FineBins()
        mine._reach, mine._counts = other._reach, other._counts
        mine._grow(self._reach or 0)
        self._counts = self._counts + mine._counts

    def _grow(self, reach: int) -> float:
        """Make room for numbers below ``2 ** reach``. Returns what one over the width is."""
        if self._reach is None or (reach > self._reach and not self._counts.any()):
            self._reach = reach
        while self._reach < reach:
            pairs = self._counts.reshape(-1, 2).sum(axis=1)
            if reach - self._reach > 11:  # after ten times, there is one bin on each side
                pairs = np.array([self._counts[:_HALF].sum(), self._counts[_HALF:].sum()])
                self._reach = reach
            else:
                self._reach += 1
            self._counts = np.zeros(2 * _HALF, np.int64)
            self._counts[_HALF - len(pairs) // 2 : _HALF + len(pairs) // 2] = pairs
        return math.ldexp(1.0, 10 - self._reach)

    def result(self) -> Histogram:
        """The occupied range in at most 64 intervals."""
        occupied = np.flatnonzero(self._counts)
        if not len(occupied):
            return Histogram(0.0, 0.0, ())
        first, stop = int(occupied[0]), int(occupied[-1]) + 1
        group = 1
        while -(-(stop - _HALF) // group) - (first - _HALF) // group > BARS:
            group += 1
        begin, end = (first - _HALF) // group, -(-(stop - _HALF) // group)
        edges = np.arange(begin, end + 1) * group + _HALF
        sums = np.concatenate([[0], np.cumsum(self._counts)])[np.clip(edges, 0, 2 * _HALF)]
        width = math.ldexp(float(group), (self._reach or 0) - 10)
        start = max(begin * width, -sys.float_info.max)
        return Histogram(start, width, tuple(np.diff(sums).tolist()))


def sparkline(counts: Sequence[int], width: int = 16) -> str:
    """Bars of text for counts; each is at least one dot high where something is counted.

    >>> sparkline([1, 4, 8, 3, 0, 0, 0, 1], 8)
    '▁▄█▃   ▁'
    """
    if not counts or not max(counts):
        return " " * width
    edges = [place * len(counts) // width for place in range(width + 1)]
    if width > len(counts):
        edges, width = list(range(len(counts) + 1)), len(counts)
    bars = [sum(counts[edges[i] : edges[i + 1]]) for i in range(width)]
    top = max(bars)
    return "".join(_BARS[-(-bar * 8 // top)] for bar in bars)
