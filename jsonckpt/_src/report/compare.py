"""Two checkpoints side by side: how far each tensor moved, and which plain values changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..format.model import Entry
from ..inspect.element_values import Numbers, numbers_of
from ..load.container import Container, Shard
from .collect import Collected
from .tree import values_of

#: Raw bytes of each tensor that are in memory at a time.
_PART = 1 << 20


@dataclass(frozen=True)
class Change:
    """How one tensor differs in two checkpoints.

    Attributes:
        name: of the tensor.
        status: ``"same"``, ``"changed"``, ``"reshaped"`` (another shape or dtype), ``"added"``,
            ``"removed"`` or ``"unread"`` (it differs; a compressed file cannot be read in parts).
        norms: L2 norms of the first and of the second.
        distance: L2 norm of the difference.
        cosine: of the angle between both.
    """

    name: str
    status: str
    norms: tuple[float | None, float | None] = (None, None)
    distance: float | None = None
    cosine: float | None = None

    @property
    def relative(self) -> float | None:
        """The distance relative to the first norm."""
        if self.status == "same":
            return 0.0
        if self.distance is None or not self.norms[0]:
            return None
        return self.distance / self.norms[0]


@dataclass(frozen=True)
class Compared:
    """Two checkpoints: the changes of their tensors, and plain values as ``(path, text, text)``."""

    tensors: tuple[Change, ...]
    values: tuple[tuple[str, str, str], ...]


class _Part:
    """A sink that keeps the bytes."""

    def __init__(self, nbytes: int) -> None:
        self.raw = bytearray(nbytes)

    def window(self, start: int, stop: int) -> memoryview:
        return memoryview(self.raw)[start:stop]

    def write(self, start: int, data: memoryview) -> None:
        self.raw[start : start + len(data)] = data


def changes(
    containers: tuple[Container, Container],
    both: tuple[Collected, Collected],
    advance: Callable[[int], None] | None = None,
) -> Iterator[Change]:
    """The changes of all tensors, in the order of the second checkpoint; removed ones at the end.

    Equal checksums decide without reading. ``advance`` is called with the bytes of each tensor of
    the second one.

    Raises:
        JsonckptError: a tensor cannot be read, or its bytes are not those that were saved.
    """
    one, two = ({t.name: t.entry for t in each.facts.tensors if t.owns} for each in both)
    for name, after in two.items():
        before = one.get(name)
        found = tuple(
            each.statistics[entry.name].norm if entry is not None else None
            for each, entry in zip(both, (before, after))
        )
        norms = found[0], found[1]
        if advance is not None:
            advance(after.nbytes)
        if before is None:
            yield Change(name, "added", norms)
        elif (before.shape, before.dtype) != (after.shape, after.dtype):
            yield Change(name, "reshaped", norms)
        elif _equal(containers, before, after):
            yield Change(name, "same", norms, 0.0, 1.0 if norms[0] else None)
        else:
            shards = containers[0].shard_of(before), containers[1].shard_of(after)
            if shards[0].is_ranged and shards[1].is_ranged:
                with containers[0].errors(), containers[1].errors():
                    yield _changed(name, shards, before, after)
            else:
                yield Change(name, "unread", norms)
    for name, before in one.items():
        if name not in two:
            yield Change(name, "removed", (both[0].statistics[before.name].norm, None))


def _equal(containers: tuple[Container, Container], before: Entry, after: Entry) -> bool:
    same_sums = containers[0].manifest.checksum == containers[1].manifest.checksum
    if not same_sums or before.codec.chunk_bytes != after.codec.chunk_bytes:
        return False
    return [chunk[2] for chunk in before.chunks] == [chunk[2] for chunk in after.chunks]


def _changed(
    name: str,
    shards: tuple[Shard, Shard],
    before: Entry,
    after: Entry,
) -> Change:
    """Sums over the elements that are finite in both."""
    products, one, two, apart = 0.0, 0.0, 0.0, 0.0
    step = max(_PART // before.codec.chunk_bytes, 1) * before.codec.chunk_bytes
    for start in range(0, before.nbytes, step):
        stop = min(start + step, before.nbytes)
        numbers = []
        for shard, entry in zip(shards, (before, after)):
            part = _Part(stop - start)
            shard.read_part(entry, start, stop, part)
            found = numbers_of(entry.dtype, memoryview(part.raw))
            wide = np.complex128 if found.dtype.kind == "c" else np.float64
            numbers.append(found.astype(wide))
        a, b = numbers
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            a, b = a[finite], b[finite]
        with np.errstate(over="ignore", invalid="ignore"):
            distance = a - b
            products += _product(a, b)
            one += _product(a, a)
            two += _product(b, b)
            apart += _product(distance, distance)
    both = math.sqrt(one) * math.sqrt(two)
    cosine = products / both if both and math.isfinite(both) else None
    return Change(name, "changed", (math.sqrt(one), math.sqrt(two)), math.sqrt(apart), cosine)


def _product(a: Numbers, b: Numbers) -> float:
    """The real part of the inner product. Not np.dot: the threads of a BLAS spin for each part."""
    return float((a.conj() * b).real.sum() if a.dtype.kind == "c" else (a * b).sum())


def changed_values(one: Collected, two: Collected) -> list[tuple[str, str, str]]:
    """Paths of plain values that differ, with both texts; ``"–"`` where there is none."""
    before, after = (values_of(each.facts.manifest.state) for each in (one, two))
    paths = [*after, *(path for path in before if path not in after)]
    pairs = [(path, before.get(path, "–"), after.get(path, "–")) for path in paths]
    return [pair for pair in pairs if pair[1] != pair[2]]
