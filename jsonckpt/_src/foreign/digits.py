"""Finds numbers in text that have more digits than float32 holds.

A number is kept if it is a float32 exactly, or a decimal of at most nine significant digits that
float32 gives back when it is printed with as many digits. All others lose digits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .number_array import Kind

#: Powers of ten that float64 holds exactly.
_TENS = 10.0 ** np.arange(23)
#: Values that are looked at together: few enough for the cache.
_BLOCK = 1 << 14


class DigitWatch:
    """Passes pieces of numbers on, and looks for one that has more digits than float32 holds.

    Attributes:
        lost: there was such a number.
    """

    def __init__(self, pieces: Iterator[tuple[Kind, npt.NDArray[np.generic]]]) -> None:
        self._pieces = pieces
        self.lost = False

    def __iter__(self) -> DigitWatch:
        return self

    def __next__(self) -> tuple[Kind, npt.NDArray[np.generic]]:
        kind, values = next(self._pieces)
        if not self.lost and kind in ("float", "wide"):
            self.lost = has_more_digits(values)
        return kind, values


def has_more_digits(values: npt.NDArray[np.generic]) -> bool:
    """True if a float64 number in ``values`` has more digits than float32 holds.

    >>> has_more_digits(np.array([0.1, 1 / 3])), has_more_digits(np.array([0.1, 0.5, 3e-8]))
    (True, False)
    """
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK].astype(np.float64, copy=False)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            narrow = block.astype(np.float32).astype(np.float64)
            inexact = (narrow != block) & np.isfinite(block)
            if inexact.any() and bool(_longer(block[inexact], narrow[inexact]).any()):
                return True
    return False


def _longer(values: npt.NDArray[np.float64], narrow: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """For each number: float32 does not give its digits back."""
    size = np.abs(values)
    # The exponent may be one too large next to a power of ten. Then a digit less is looked at.
    places = 8 - np.floor(np.log10(size)).astype(np.int64)
    digits = np.rint(_shifted(size, places))
    again = _shifted(digits, -places)
    # Powers of ten beyond 1e22 are not exact. There, the last bit of a float64 is not compared.
    slack = np.where(np.abs(places) > 22, np.spacing(size) * 2, 0.0)
    unit = np.ones_like(size)
    for step in (10.0, 100.0, 1000.0):  # float32 gives back all decimals of six digits
        unit[digits % step == 0] = step
    off = _shifted(np.abs(values - narrow), places)
    kept: npt.NDArray[np.bool_] = (np.abs(again - size) <= slack) & (off < unit / 2)
    return ~kept


def _shifted(
    values: npt.NDArray[np.float64], places: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """``values * 10 ** places``. Exact powers of ten round only once."""
    while (far := np.abs(places) > 22).any():
        step = np.where(far, np.sign(places) * 22, 0)
        values, places = _shifted(values, step), places - step
    tens = _TENS[np.abs(places)]
    return np.where(places >= 0, values * tens, values / tens)
