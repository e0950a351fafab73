"""Which regions of memory share bytes (``docs/format.md`` section 6.4).

Arithmetic on addresses: no memory is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .memory import ArrayInterface

#: Candidate solutions that numpy may try for a pair of irregular regions. They take some
#: milliseconds.
_MAX_WORK: Any = 100_000  # the stubs of numpy know two special values only


@dataclass(frozen=True, slots=True)
class Region:
    """The bytes of a strided tensor, made by :meth:`of`.

    Attributes:
        start, stop: addresses of the first byte and after the last one.
        dims: ``(size, step in bytes)``, the largest step first, the bytes of an element last. No
            step is 0, and no two dimensions could be merged.
        gapless: every byte from ``start`` to ``stop`` belongs to the region.
    """

    start: int
    stop: int
    dims: tuple[tuple[int, int], ...]
    gapless: bool

    @classmethod
    def of(cls, start: int, itemsize: int, shape: Sequence[int], stride: Sequence[int]) -> Region:
        """The region of a tensor with at least one element; ``stride`` counts elements.

        >>> Region.of(100, 4, (3, 2), (2, 1))
        Region(start=100, stop=124, dims=((24, 1),), gapless=True)
        >>> Region.of(100, 4, (3,), (2,))
        Region(start=100, stop=120, dims=((3, 8), (4, 1)), gapless=False)
        """
        dims = [(itemsize, 1)]
        steps = sorted((step, size) for size, step in zip(shape, stride) if step and size > 1)
        gapless = True
        extent = itemsize
        for step, size in steps:
            step *= itemsize
            gapless = gapless and step <= extent
            extent += (size - 1) * step
            inner_size, inner_step = dims[-1]
            if step == inner_size * inner_step:
                dims[-1] = (size * inner_size, inner_step)
            else:
                dims.append((size, step))
        return cls(start, start + extent, tuple(reversed(dims)), gapless)

    @classmethod
    def flat(cls, start: int, nbytes: int) -> Region:
        """:meth:`of` for a row-major contiguous tensor, but quicker.

        >>> Region.flat(100, 24) == Region.of(100, 4, (3, 2), (2, 1))
        True
        """
        return cls(start, start + nbytes, ((nbytes, 1),), True)


def sharing_groups(regions: Sequence[Region]) -> list[list[int]]:
    """Positions of the regions that share at least one byte, directly or through others.

    The answer is exact, except for irregular regions whose equation is too hard for numpy: these
    count as sharing.

    Returns:
        groups of two or more positions, each ascending, in order of their first.

    >>> column = lambda k: Region.of(4 * k, 4, (10,), (3,))
    >>> sharing_groups([column(0), column(1), column(2), column(0)])
    [[0, 3]]
    """
    parents = list(range(len(regions)))

    def root(of: int) -> int:
        while parents[of] != of:
            parents[of] = of = parents[parents[of]]
        return of

    def unite(one: int, other: int) -> bool:
        one, other = sorted((root(one), root(other)))
        parents[other] = one
        return one != other

    intervals = [(region.start, region.stop, i) for i, region in enumerate(regions)]
    for chain in overlapping_chains(intervals):
        if all(regions[i].gapless for i in chain):
            for i in chain[1:]:
                unite(chain[0], i)
            continue
        for part in _interleaved(regions, chain):
            _compare_pairs(regions, part, unite)
    groups: dict[int, list[int]] = {}
    for i in range(len(regions)):
        groups.setdefault(root(i), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def overlaps_itself(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether two elements of a strided tensor share memory. As exact as :func:`sharing_groups`.

    >>> overlaps_itself((3, 2), (1, 3)), overlaps_itself((3, 2), (1, 1))
    (False, True)
    >>> overlaps_itself((3, 3), (2, 3))  # 0 2 4, 3 5 7, 6 8 10
    False
    """
    if 0 in shape:
        return False
    dims = sorted((step, size) for size, step in zip(shape, stride) if size > 1)
    extent = 1
    nested = True
    for step, size in dims:
        nested = nested and step >= extent
        extent += (size - 1) * step
    if nested:
        return False
    if dims[0][0] == 0:
        return True
    # The indices of two elements that share memory differ in some dimension first. Shifted to the
    # lowest indices, one has index 0 there and the other a higher one.
    for first, (step, size) in enumerate(dims):
        inner = dims[first + 1 :]
        low = Region.of(0, 1, [n for _, n in inner], [s for s, _ in inner])
        steps = [step, *(s for s, _ in inner)]
        high = Region.of(step, 1, [size - 1, *(n for _, n in inner)], steps)
        if _may_share(_as_array(low), _as_array(high)):
            return True
    return False


def overlapping_chains(intervals: Iterable[tuple[int, int, int]]) -> Iterator[list[int]]:
    """Ids of the intervals ``(start, stop, id)``, in chains: each overlaps an earlier one."""
    chain: list[int] = []
    end = 0
    for start, stop, i in sorted(intervals):
        if chain and start >= end:
            yield chain
            chain = []
        end = max(end, stop) if chain else stop
        chain.append(i)
    if chain:
        yield chain


def _interleaved(regions: Sequence[Region], chain: list[int]) -> Iterator[list[int]]:
    """Separate the columns of a matrix without comparing every pair.

    If all regions repeat with one period, and none is wider than it, regions at different positions
    within the period cannot overlap.
    """
    period = regions[chain[0]].dims[0][1]
    base = regions[chain[0]].start
    intervals = []
    for i in chain:
        size, step = regions[i].dims[0]
        width = regions[i].stop - regions[i].start - (size - 1) * step
        position = (regions[i].start - base) % period
        if step != period or position + width > period:
            yield chain
            return
        intervals.append((position, position + width, i))
    yield from overlapping_chains(intervals)


def _compare_pairs(
    regions: Sequence[Region], chain: list[int], unite: Callable[[int, int], bool]
) -> None:
    missing = len(chain) - 1
    arrays = {i: _as_array(regions[i]) for i in chain}
    order = sorted(chain, key=lambda i: regions[i].start)
    for position, one in enumerate(order):
        for other in order[position + 1 :]:
            if missing == 0:
                return
            if regions[other].start >= regions[one].stop:
                break
            if _may_share(arrays[one], arrays[other]) and unite(one, other):
                missing -= 1


def _as_array(region: Region) -> np.ndarray[Any, Any]:
    """An array of these addresses. numpy only compares them; nothing reads the memory."""
    sizes, steps = zip(*region.dims)
    # numpy refuses address 0
    interface = ArrayInterface(None, data=(region.start + 1, True), shape=sizes, strides=steps)
    return np.asarray(interface)


def _may_share(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    try:
        return np.shares_memory(one, other, max_work=_MAX_WORK)
    except np.exceptions.TooHardError:
        return True
