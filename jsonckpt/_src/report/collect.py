"""Reads one checkpoint once: its facts, the statistics of its tensors, and their pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..format.dtypes import DTYPES
from ..format.model import Stored
from ..inspect.element_values import Numbers
from ..inspect.facts import Inspection
from ..inspect.histogram import Histogram
from ..inspect.statistics import TensorStatistics, read_statistics
from ..load.container import Container
from .grids import Grid, Picture

#: Cells of all pictures together: they are most of the page where tensors are many.
_CELLS = 1_500_000
_HUGE = 1e300
_LARGEST_SIDE, _SMALLEST_SIDE = 64, 8


@dataclass(frozen=True)
class Collected:
    """A checkpoint that was read.

    Attributes:
        facts: what its manifest says.
        statistics: by record name.
        pictures: by record name; empty where none were asked for.
    """

    facts: Inspection
    statistics: dict[str, TensorStatistics] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)

    def number(self, what: str) -> float | None:
        """The first fact of a kind (``"step"``, ``"epoch"``, ``"learning rate"``) as a number."""
        for fact in self.facts.state:
            if fact.what == what and type(fact.value) in (int, float):
                value = float(max(-_HUGE, min(_HUGE, fact.value or 0)))
                return value if abs(value) < _HUGE else None
        return None


def collect(
    container: Container,
    facts: Inspection,
    *,
    pictures: bool,
    advance: Callable[[int], None] | None = None,
) -> Collected:
    """Read all tensors of a checkpoint, chunk by chunk.

    Raises:
        JsonckptError: a tensor cannot be read, or its bytes are not those that were saved.
    """
    grids: dict[str, Grid] = {}
    found: dict[str, Picture] = {}
    left: dict[str, int] = {}
    side = picture_side(len(container.manifest.tensors))

    def watch(entry: Stored) -> Callable[[int, Numbers], None] | None:
        if not pictures or not entry.nbytes:
            return None
        row = DTYPES[entry.dtype]
        width = 2 if row.kind == "packed" else 1
        left[entry.name] = entry.nbytes // row.itemsize * width

        def take(place: int, numbers: Numbers) -> None:
            # A grid lives from the first numbers of its tensor to the last.
            grid = grids.get(entry.name)
            if grid is None:
                grid = grids[entry.name] = Grid(entry.shape, width, row.itemsize / width, side)
            grid.take(place, numbers)
            left[entry.name] -= len(numbers)
            if not left[entry.name]:
                picture = grids.pop(entry.name).picture()
                if picture is not None:
                    found[entry.name] = picture

        return take

    with container.errors():
        container.check_files(range(len(container.manifest.shards)))
        statistics = read_statistics(container, advance=advance, also=watch)
    if not pictures:  # of many checkpoints only the last one is shown in full
        empty = Histogram(0.0, 0.0, ())
        statistics = {name: replace(one, histogram=empty) for name, one in statistics.items()}
    return Collected(facts, statistics, found)


def picture_side(tensors: int) -> int:
    """Cells on each side of a picture, so that the page stays small.

    >>> picture_side(10), picture_side(10_000)
    (64, 12)
    """
    return max(_SMALLEST_SIDE, min(_LARGEST_SIDE, math.isqrt(_CELLS // max(tensors, 1))))
