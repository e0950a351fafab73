"""Which pieces of memory share bytes. Pure arithmetic on addresses: nothing is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: What numpy may spend on one pair of irregular regions, in candidate solutions: milliseconds.
_MAX_WORK: Any = 100_000  # the stubs of numpy know two special values only


@dataclass(frozen=True, slots=True)
class Region:
    """The bytes of a strided tensor, made by :meth:`of`.

    Attributes:
        start, stop: addresses of the first byte and after the last one.
        dims: ``(size, step in bytes)``, the largest step first, down to the bytes of an element; no
            step is 0 and no two could be one.
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
        """The region of a row-major contiguous tensor: what :meth:`of` finds for it, quickly.

        >>> Region.flat(100, 24) == Region.of(100, 4, (3, 2), (2, 1))
        True
        """
        return cls(start, start + nbytes, ((nbytes, 1),), True)


def sharing_groups(regions: Sequence[Region]) -> list[list[int]]:
    """Positions of the regions that share at least one byte, directly or through others.

    Decided exactly, but for irregular regions whose equation numpy finds too hard: those
    count as sharing, which is the safe side.

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

    for run in runs((region.start, region.stop, i) for i, region in enumerate(regions)):
        if all(regions[i].gapless for i in run):
            for i in run[1:]:
                unite(run[0], i)
            continue
        for part in _interleaved(regions, run):
            _compare_pairs(regions, part, unite)
    groups: dict[int, list[int]] = {}
    for i in range(len(regions)):
        groups.setdefault(root(i), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def overlaps_itself(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether two elements of a strided tensor are one piece of memory.

    As exact as :func:`sharing_groups`: what numpy finds too hard counts as overlapping.

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
    # Two elements that are one differ in some dimension first. Moved to the lowest indices, they
    # are an element with index 0 there, and one with a higher index, of the dimensions from it on.
    for first, (step, size) in enumerate(dims):
        inner = dims[first + 1 :]
        low = Region.of(0, 1, [n for _, n in inner], [s for s, _ in inner])
        steps = [step, *(s for s, _ in inner)]
        high = Region.of(step, 1, [size - 1, *(n for _, n in inner)], steps)
        if _share(_as_array(low), _as_array(high)):
            return True
    return False


def runs(intervals: Iterable[tuple[int, int, int]]) -> Iterator[list[int]]:
    """Ids of the intervals ``(start, stop, id)``, as chains in which each meets an earlier one."""
    run: list[int] = []
    end = 0
    for start, stop, i in sorted(intervals):
        if run and start >= end:
            yield run
            run = []
        end = max(end, stop) if run else stop
        run.append(i)
    if run:
        yield run


def _interleaved(regions: Sequence[Region], run: list[int]) -> Iterator[list[int]]:
    """Separate columns of one matrix from each other, without comparing every pair.

    Where all regions repeat with one period and none is wider than the period, regions whose
    places within the period are apart cannot meet.
    """
    period = regions[run[0]].dims[0][1]
    base = regions[run[0]].start
    intervals = []
    for i in run:
        size, step = regions[i].dims[0]
        width = regions[i].stop - regions[i].start - (size - 1) * step
        place = (regions[i].start - base) % period
        if step != period or place + width > period:
            yield run
            return
        intervals.append((place, place + width, i))
    yield from runs(intervals)


def _compare_pairs(
    regions: Sequence[Region], run: list[int], unite: Callable[[int, int], bool]
) -> None:
    missing = len(run) - 1
    arrays = {i: _as_array(regions[i]) for i in run}
    order = sorted(run, key=lambda i: regions[i].start)
    for position, one in enumerate(order):
        for other in order[position + 1 :]:
            if missing == 0:
                return
            if regions[other].start >= regions[one].stop:
                break
            if _share(arrays[one], arrays[other]) and unite(one, other):
                missing -= 1


class _Addresses:
    __slots__ = ("__array_interface__",)

    def __init__(self, region: Region) -> None:
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "data": (region.start + 1, True),  # numpy refuses address 0
            "shape": tuple(size for size, _ in region.dims),
            "strides": tuple(step for _, step in region.dims),
        }


def _as_array(region: Region) -> np.ndarray[Any, Any]:
    """An array of these addresses, for numpy to compare; never to be read."""
    return np.asarray(_Addresses(region))


def _share(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    try:
        return np.shares_memory(one, other, max_work=_MAX_WORK)
    except np.exceptions.TooHardError:
        return True
