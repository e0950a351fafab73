"""Mean, variance and norm of numbers that come in blocks.

The moments of two blocks are joined by the formulas of Chan, Golub and LeVeque, "Updating formulae
and a pairwise algorithm for computing sample variances" (1979)::

    mean = mean_a + d * n_b / n        d = mean_b - mean_a,  n = n_a + n_b
    M2   = M2_a + M2_b + d * d * n_a * n_b / n

All sums are float64. Numbers whose squares leave its range are scaled by a power of two first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

#: Binary exponents of numbers whose squares and sums of squares are safe in float64.
_SAFE = 400


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums of ``count`` finite numbers that were divided by ``2 ** exponent``.

    Attributes:
        largest: the binary exponent of the largest magnitude; of zeros alone ``None``.
        deviations: the sum of the squared distances from ``mean``.
    """

    count: int = 0
    exponent: int = 0
    largest: int | None = None
    mean: float = 0.0
    deviations: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, numbers: NDArray[np.float64], counts: NDArray[np.int64] | None = None) -> Moments:
        """Of finite numbers, at least one; ``counts`` says how often each is there."""
        total = len(numbers) if counts is None else int(counts.sum())
        magnitude = max(float(numbers.max()), -float(numbers.min()))
        largest = math.frexp(magnitude)[1] if magnitude else None
        exponent = safe_exponent(largest)
        if exponent:
            numbers = np.ldexp(numbers, -exponent)
        weighted = numbers if counts is None else numbers * counts
        mean = float(weighted.sum()) / total
        distance = numbers - mean
        far = distance if counts is None else distance * counts
        # Not np.dot: the threads of a BLAS spin for each block, and change the last bits.
        squares = float((numbers * weighted).sum())
        deviations = float(np.multiply(distance, far, out=distance).sum())
        return cls(total, exponent, largest, mean, deviations, squares)

    def join(self, other: Moments) -> Moments:
        """Of the numbers of both."""
        if not self.count or not other.count:
            return other if other.count else self
        known = [largest for largest in (self.largest, other.largest) if largest is not None]
        largest = max(known, default=None)
        one, two = self._scaled(safe_exponent(largest)), other._scaled(safe_exponent(largest))
        count = one.count + two.count
        apart = two.mean - one.mean
        return Moments(
            count,
            one.exponent,
            largest,
            one.mean + apart * (two.count / count),
            one.deviations + two.deviations + apart * apart * one.count * (two.count / count),
            one.squares + two.squares,
        )

    @property
    def actual_mean(self) -> float:
        """The mean of the numbers themselves."""
        return unscaled(self.mean, self.exponent)

    @property
    def std(self) -> float:
        """The standard deviation, divided by the number of elements."""
        return unscaled(math.sqrt(self.deviations / max(self.count, 1)), self.exponent)

    @property
    def norm(self) -> float:
        """The L2 norm; infinite if it is over the range of float64."""
        return unscaled(math.sqrt(self.squares), self.exponent)

    def _scaled(self, exponent: int) -> Moments:
        by = self.exponent - exponent
        if not by:
            return self
        return replace(
            self,
            exponent=exponent,
            mean=math.ldexp(self.mean, by),
            deviations=math.ldexp(self.deviations, 2 * by),
            squares=math.ldexp(self.squares, 2 * by),
        )


def safe_exponent(largest: int | None) -> int:
    """The power of two by which numbers below ``2 ** largest`` are divided; mostly 0."""
    return 0 if largest is None or abs(largest) <= _SAFE else largest


def unscaled(number: float, exponent: int) -> float:
    """``number * 2 ** exponent``; infinite if it is over the range of float64."""
    try:
        return math.ldexp(number, exponent)
    except OverflowError:
        return math.copysign(math.inf, number)


def join_all(parts: Sequence[Moments]) -> Moments:
    """The moments of all parts, joined in pairs: errors grow with the logarithm of their number."""
    level = list(parts) or [Moments()]
    while len(level) > 1:
        level = [
            level[at].join(level[at + 1]) if at + 1 < len(level) else level[at]
            for at in range(0, len(level), 2)
        ]
    return level[0]
