"""Two checkpoints side by side: how far each tensor moved, and which plain values changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..diff.contents import Contents, same_checksums, step_for
from ..diff.distance import distance_of
from ..inspect.facts import TensorFacts
from ..load.container import Container
from .collect import Collected
from .tree import values_of


@dataclass(frozen=True)
class Change:
    """How one tensor differs in two checkpoints.

    Attributes:
        name: of the tensor.
        status: ``"same"``, ``"changed"``, ``"reshaped"`` (another shape or dtype), ``"added"`` or
            ``"removed"``.
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


def changes(
    containers: tuple[Container, Container],
    both: tuple[Collected, Collected],
    advance: Callable[[int], None] | None = None,
) -> Iterator[Change]:
    """The changes of all records, in the order of the second checkpoint; removed ones at the end.

    Equal checksums decide without reading. ``advance`` is called with the bytes of each tensor of
    the second one.

    Raises:
        JsonckptError: a tensor cannot be read, or its bytes are not those that were saved.
    """
    one, two = ({t.name: _record(t) for t in each.facts.tensors if t.owns} for each in both)
    algorithms = containers[0].manifest.checksum, containers[1].manifest.checksum
    pairs = [(one[name], after) for name, after in two.items() if name in one]
    alike = [pair for pair in pairs if _form(pair[0]) == _form(pair[1])]
    same = {after.name: same_checksums(algorithms, before, after) for before, after in alike}
    to_read = [pair for pair in alike if not same[pair[1].name]]
    with (
        containers[0].errors(),
        containers[1].errors(),
        Contents(containers[0], [before for before, _ in to_read]) as first,
        Contents(containers[1], [after for _, after in to_read]) as second,
    ):
        for name, after in two.items():
            before = one.get(name)
            if advance is not None:
                advance(after.nbytes)
            norms = _norm(both[0], before), _norm(both[1], after)
            if before is None:
                yield Change(name, "added", norms)
            elif name not in same:
                yield Change(name, "reshaped", norms)
            elif same[name]:
                yield Change(name, "same", norms, 0.0, 1.0 if norms[0] else None)
            else:
                step = step_for(before, after)
                parts = zip(first.parts(before, step), second.parts(after, step))
                found = distance_of(after.dtype, parts)
                norms = found.norm_before, found.norm_after
                yield Change(name, "changed", norms, found.norm, found.cosine)
    for name, removed in one.items():
        if name not in two:
            yield Change(name, "removed", (_norm(both[0], removed), None))


def _record(tensor: TensorFacts) -> TensorFacts:
    """All of the record of a tensor, which may be a view of it."""
    entry = tensor.entry
    return replace(tensor, kind="tensor", dtype=entry.dtype, shape=entry.shape, nbytes=entry.nbytes)


def _form(tensor: TensorFacts) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype, tensor.shape


def _norm(side: Collected, tensor: TensorFacts | None) -> float | None:
    return None if tensor is None else side.statistics[tensor.entry.name].norm


def changed_values(one: Collected, two: Collected) -> list[tuple[str, str, str]]:
    """Paths of plain values that differ, with both texts; ``"–"`` where there is none."""
    before, after = (values_of(each.facts.manifest.state) for each in (one, two))
    paths = [*after, *(path for path in before if path not in after)]
    pairs = [(path, before.get(path, "–"), after.get(path, "–")) for path in paths]
    return [pair for pair in pairs if pair[1] != pair[2]]
