"""How far two tensors are apart, part by part."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ..inspect.element_values import Numbers, numbers_of
from .contents import Bytes
from .facts import Distance


def distance_of(dtype: str, parts: Iterable[tuple[Bytes, Bytes]]) -> Distance:
    """The distance of two tensors of one dtype and shape.

    Sums are of float64, over the elements that are finite in both.

    Args:
        dtype: a name of the format.
        parts: the same raw bytes of both, whole elements.

    >>> one, two = np.array([3.0, 4.0]), np.array([3.0, 5.0])
    >>> found = distance_of("float64", [(one.view(np.uint8), two.view(np.uint8))])
    >>> found.norm_before, found.norm, found.largest, found.changed
    (5.0, 1.0, 1.0, 1)
    """
    products, one, two, apart, largest = 0.0, 0.0, 0.0, 0.0, 0.0
    changed = count = 0
    for before, after in parts:
        a, b = (numbers_of(dtype, part.data) for part in (before, after))
        count += len(a)
        with np.errstate(invalid="ignore"):
            differ = (a != b) & ~(np.isnan(a) & np.isnan(b)) if a.dtype.kind in "fc" else a != b
        changed += int(np.count_nonzero(differ))
        wide = np.complex128 if a.dtype.kind == "c" else np.float64
        a, b = a.astype(wide), b.astype(wide)
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            a, b = a[finite], b[finite]
        with np.errstate(over="ignore", invalid="ignore"):
            difference = np.abs(a - b)
            products += _product(a, b)
            one += _product(a, a)
            two += _product(b, b)
            apart += _product(difference, difference)
        largest = max(largest, float(difference.max(initial=0.0)))
    both = math.sqrt(one) * math.sqrt(two)
    cosine = products / both if both and math.isfinite(both) and math.isfinite(products) else None
    return Distance(
        norm_before=math.sqrt(one),
        norm_after=math.sqrt(two),
        norm=math.sqrt(apart),
        largest=largest,
        cosine=cosine,
        changed=changed,
        count=count,
    )


def _product(a: Numbers, b: Numbers) -> float:
    """The real part of the inner product. Not np.dot: the threads of a BLAS spin for each part."""
    return float((a.conj() * b).real.sum() if a.dtype.kind == "c" else (a * b).sum())
