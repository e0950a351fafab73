"""How far two tensors are apart, part by part."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..inspect.element_values import Numbers, numbers_of
from ..inspect.moments import safe_exponent, unscaled
from .contents import Bytes
from .facts import Distance


def distance_of(dtype: str, parts: Iterable[tuple[Bytes, Bytes]]) -> Distance:
    """The distance of two tensors of one dtype and shape.

    Sums are of float64, over the elements that are finite in both. Numbers whose squares leave its
    range are scaled by a power of two first.

    Args:
        dtype: a name of the format.
        parts: the same raw bytes of both, whole elements.

    >>> one, two = np.array([3.0, 4.0]), np.array([3.0, 5.0])
    >>> found = distance_of("float64", [(one.view(np.uint8), two.view(np.uint8))])
    >>> found.norm_before, found.norm, found.largest, found.changed
    (5.0, 1.0, 1.0, 1)
    """
    products, one, two, apart = (_Sum() for _ in range(4))
    largest = 0.0
    changed = count = 0
    for before, after in parts:
        a, b = (numbers_of(dtype, part.data) for part in (before, after))
        count += len(a)
        floats = a.dtype.kind in "fc"
        with np.errstate(invalid="ignore"):  # signalling NaN
            differ = (a != b) & ~(np.isnan(a) & np.isnan(b)) if floats else a != b
        changed += int(np.count_nonzero(differ))
        if floats and not (finite := np.isfinite(a) & np.isfinite(b)).all():
            a, b = a[finite], b[finite]
        wide = np.complex128 if a.dtype.kind == "c" else np.float64
        # A complex number is two real ones.
        x, y = (numbers.astype(wide).view(np.float64) for numbers in (a, b))
        with np.errstate(over="ignore"):
            difference = x - y
            largest = max(largest, float(np.abs(difference.view(wide)).max(initial=0.0)))
        for total, left, right in (
            (products, x, y), (one, x, x), (two, y, y), (apart, difference, difference)
        ):  # fmt: skip
            total.add(left, right)
    cosine = None
    if one.value and two.value:
        exponent = products.exponent - (one.exponent + two.exponent) // 2
        cosine = math.ldexp(products.value / math.sqrt(one.value) / math.sqrt(two.value), exponent)
    return Distance(
        norm_before=one.root,
        norm_after=two.root,
        norm=apart.root,
        largest=largest,
        cosine=cosine,
        changed=changed,
        count=count,
    )


@dataclass
class _Sum:
    """A sum of products: ``value`` times two to the ``exponent``."""

    value: float = 0.0
    exponent: int = 0

    def add(self, left: Numbers, right: Numbers) -> None:
        """Add the inner product. Not np.dot: the threads of a BLAS spin for each part."""
        one, two = _power(left), _power(right)
        value = float((np.ldexp(left, -one) * np.ldexp(right, -two)).sum())
        if value:
            top = max(one + two, self.exponent if self.value else one + two)
            self.value = math.ldexp(self.value, self.exponent - top)
            self.value += math.ldexp(value, one + two - top)
            self.exponent = top

    @property
    def root(self) -> float:
        """Of a sum of squares."""
        return unscaled(math.sqrt(self.value), self.exponent // 2)


def _power(numbers: Numbers) -> int:
    largest = float(np.abs(numbers).max(initial=0.0))
    return safe_exponent(math.frexp(largest)[1]) if largest else 0
