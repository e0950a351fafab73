"""Finds numbers in text that have more digits than float32 holds.

A number is kept if it is a float32 exactly, or a decimal of at most nine significant digits that
float32 gives back when it is printed with as many digits. All others lose digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .number_array import Kind

#: The smallest number above zero that float32 holds.
_SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
#: Of a long piece, about so many values are looked at, evenly spread. To look at all of them takes
#: a fifth as long as to read them. Numbers that lose digits seldom come alone.
_SAMPLE = 1 << 13


class DigitWatch:
    """Passes pieces of numbers on, and looks for some that have more digits than float32 holds.

    Attributes:
        lost: there was such a number among those that were looked at.
    """

    def __init__(self, pieces: Iterator[tuple[Kind, npt.NDArray[np.generic]]]) -> None:
        self._pieces = pieces
        self.lost = False

    def __iter__(self) -> DigitWatch:
        return self

    def __next__(self) -> tuple[Kind, npt.NDArray[np.generic]]:
        kind, values = next(self._pieces)
        if not self.lost and kind in ("float", "wide"):
            self.lost = has_more_digits(values[:: max(1, len(values) // _SAMPLE)])
        return kind, values


def has_more_digits(values: npt.NDArray[np.generic]) -> bool:
    """True if a float64 number in ``values`` has more digits than float32 holds.

    >>> has_more_digits(np.array([0.1, 1 / 3])), has_more_digits(np.array([0.1, 0.5, 3e-8]))
    (True, False)
    """
    floats = values.astype(np.float64)
    with np.errstate(all="ignore"):
        off = floats - floats.astype(np.float32)
        inexact = off != 0
        return not bool(_given_back(floats[inexact], off[inexact]).all())


def _given_back(
    values: npt.NDArray[np.float64], off: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """For each number: float32 gives its digits back.

    Args:
        values: the numbers. None is a float32.
        off: how much the nearest float32 is off.
    """
    size = np.abs(values)
    scale = _SCALES[size.view(np.int64) >> 52]
    # The digits as a whole number of nine or ten digits, and how much of it float32 loses.
    digits = np.rint(size * scale)
    lost = np.abs(off) * scale
    kept: npt.NDArray[np.bool_] = (digits < 1e9) & (lost < 0.5)
    for unit in (10.0, 100.0, 1e3, 1e4):  # float32 gives back all decimals of six digits
        ends = np.rint(digits / unit) * unit == digits  # np.fmod takes ten times as long
        kept |= ends & (lost < unit / 2)
    decimal = digits / scale == size
    if not decimal.all():
        # Other powers of ten are not exact. There, the last bits of a float64 are not compared.
        exact = (scale <= 1e22) & (scale >= 1.0)
        near = np.abs(digits / scale - size) <= 2 * np.spacing(size)
        decimal |= ~exact & near & np.isfinite(size)
    kept &= decimal
    if not kept.all():
        # Subnormal numbers have few digits, or one. How many is not looked at.
        kept |= (size > _SMALLEST / 2) & (size < np.finfo(np.float32).tiny)
    return kept


def _scale(exponent: int) -> float:
    """The power of ten that makes a number of nine or ten digits, for each exponent of a float64.

    The smallest and largest numbers have none: float32 does not hold them at all.
    """
    if not 1023 - 150 <= exponent <= 1023 + 128:
        return float("nan")
    return float(f"1e{8 - math.floor((exponent - 1023) * math.log10(2))}")


_SCALES = np.array([_scale(exponent) for exponent in range(2048)])
