"""The growth group: whether time grows in proportion to the size of a state, or faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks import states
from benchmarks.arena import Arena, Turn, remove, spread
from benchmarks.peers import CHUNK_SIZES, PEERS
from benchmarks.settings import Settings
from benchmarks.tables import Section, Table, bytes_text

__all__ = ["exponent", "run"]

_TURNS = (
    Turn("own save", "own", "save"),
    Turn("own load", "own", "load"),
    Turn("torch save", "torch", "save"),
    Turn("torch load", "torch", "load"),
)
_ROUNDS = 2
#: By key of a turn and size: seconds, the median.
_Found = dict[str, dict[int, float]]


def run(settings: Settings) -> Section:
    """Time saves and loads of ever larger states, and of ever more tensors of 1 KB."""
    checkpoint = states.map_state(states.trained(settings.cache, quick=settings.quick))
    sizes = (16, 32, 64) if settings.quick else (32, 64, 128, 256, 512)
    counts = (250, 500, 1_000) if settings.quick else (1_000, 2_000, 4_000, 8_000, 16_000)
    path, directory = settings.fast.path / "growth.pt", settings.fast.path / "growth"
    with Arena(path, directory, on_disk=settings.fast.on_disk) as arena:
        take = partial(_measure, arena, path, _ROUNDS)
        by_setting = []
        if not settings.quick:
            by_setting = _settings(arena, path, states.large(checkpoint, sizes[-2] * 1_000_000))
        by_size = take([size * 1_000_000 for size in sizes], partial(states.large, checkpoint))
        by_count = take(counts, partial(states.small, checkpoint))
    remove(path)
    section = Section(
        "growth",
        "Growth",
        f"Milliseconds, files {settings.fast.label}. The exponent is 1 where time grows in "
        "proportion, and 2 where it is quadratic.",
    )
    _add(section, "bytes", "Time against bytes of tensors", by_size, bytes_text)
    _add(section, "count", "Time against the number of tensors of 1 KB", by_count, "{:,}".format)
    section.tables += by_setting
    return section


def _settings(arena: Arena, path: Path, state: states.State) -> list[Table]:
    """Save and load with one, two and four threads, and with chunks of several sizes."""
    arena.use(states.write_state(state, path))
    tables = []
    for title, peers in (
        ("Threads", {f"{n}": f"own-{n}-threads" for n in (1, 2, 4)}),
        ("Size of a chunk", {size: f"own-chunks-{size}" for size in CHUNK_SIZES}),
    ):
        rows = []
        for do in ("save", "load"):
            found = arena.compare([Turn(p, p, do) for p in peers.values()], _ROUNDS)
            rows.append([do, *(f"{spread([t * 1e3 for t in s]):,.0f}" for s in found.values())])
        size = bytes_text(states.nbytes(state))
        tables.append(Table(f"{title}: milliseconds for {size}", ["", *peers], rows))
    return tables


def _measure(
    arena: Arena,
    path: Path,
    rounds: int,
    sizes: Sequence[int],
    make: Callable[[int], states.State],
) -> _Found:
    found: _Found = {turn.key: {} for turn in _TURNS}
    for size in sizes:
        arena.use(states.write_state(make(size), path))
        for key, seconds in arena.compare(_TURNS, rounds).items():
            found[key][size] = spread(seconds).median
    return found


def _add(
    section: Section, name: str, title: str, found: _Found, shown: Callable[[int], str]
) -> None:
    sizes = list(found[_TURNS[0].key])
    rows = []
    for turn in _TURNS:
        label = f"{PEERS[turn.peer].label.partition(' /')[0]}, {turn.do}"
        if turn.peer == "torch":
            label = f"torch.{turn.do}"
        slope = exponent(found[turn.key])
        milliseconds = [found[turn.key][size] * 1e3 for size in sizes]
        rows.append([label, *(f"{each:,.0f}" for each in milliseconds), f"{slope:.2f}"])
        section.figures[f"growth/{name}/{turn.key}"] = slope
    section.tables.append(Table(title, ["", *map(shown, sizes), "exponent"], rows))


def exponent(seconds: Mapping[int, float]) -> float:
    """The least-squares slope of log(seconds) over log(size).

    >>> round(exponent({1: 1.0, 2: 4.0, 4: 16.0}), 6)
    2.0
    """
    points = [(math.log(size), math.log(found)) for size, found in seconds.items()]
    mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points))
    above = sum((x - mean_x) * (y - mean_y) for x, y in points)
    below = sum((x - mean_x) ** 2 for x, _ in points)
    return float(above / below)
