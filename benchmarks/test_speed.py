"""Speed under pytest-benchmark.

The rounds that it times are jsonckpt's; with peers, each of them takes its turn in every round, so
that all were measured side by side. ``extra_info`` holds the seconds of all.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.arena import Turn, installed
from benchmarks.conftest import PLUGIN
from benchmarks.figures import FIGURES, Figure, Stage
from benchmarks.settings import Settings

ORDER = [
    (position, figure)
    for group in dict.fromkeys(figure.group for figure in FIGURES)
    for position in (0, 1)
    for figure in FIGURES
    if figure.group == group
]


@pytest.mark.parametrize(
    ("position", "figure"), ORDER, ids=[f"{figure.key}-{position}" for position, figure in ORDER]
)
def test_speed(
    benchmark: Any,
    stage: Stage,
    settings: Settings,
    position: int,
    figure: Figure,
    pytestconfig: pytest.Config,
) -> None:
    if not figure.measured_at(position, settings):
        pytest.skip("not measured in this place")
    place = settings.places[position]
    with_peers = pytestconfig.pluginmanager.has_plugin(PLUGIN) or pytestconfig.getoption(
        "--with-peers"
    )
    wanted = figure.turns_of(settings, position)
    turns, notes = installed(wanted if with_peers else wanted[:1])
    own = turns[0]
    rounds = figure.rounds_at(position, settings)
    arena, size = stage.arena(figure, place)
    arena.prepare(turns)
    seconds: dict[str, list[float]] = {turn.key: [] for turn in turns}
    behind: list[Turn] = []

    def take(others: list[Turn]) -> None:
        for turn in others:
            seconds[turn.key].append(arena.take(turn))

    def finish() -> None:
        arena.end(own)
        take(behind)

    def before() -> None:
        # All go round, jsonckpt with them, so that nobody always follows the same neighbour or is
        # always the last. pytest-benchmark times one of them: those behind it in a round wait
        # until it has called back for the next.
        number = len(seconds[own.key])
        if number:
            finish()
        first = number % len(turns)
        order = [*turns[first:], *turns[:first]]
        place_of_own = order.index(own)
        take(order[:place_of_own])
        behind[:] = order[place_of_own + 1 :]
        arena.begin(own)

    def measured(turn: Turn) -> None:
        seconds[turn.key].append(arena.run(turn))

    benchmark.pedantic(measured, args=(own,), setup=before, rounds=rounds)
    finish()
    benchmark.extra_info.update(
        figure=figure.key, place=place.key, bytes=size, seconds=seconds, notes=notes
    )
    assert all(len(found) == rounds for found in seconds.values())
