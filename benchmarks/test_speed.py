"""Speed under pytest-benchmark.

pytest-benchmark times the rounds of jsonckpt. With peers, each of them takes its turn in every
round, so that all are measured at the same time. ``extra_info`` has the seconds of all.
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
        # The order rotates, so that no program always follows the same one or is always the last.
        # pytest-benchmark times only jsonckpt: the turns after it in a round wait until
        # pytest-benchmark asks for the next round.
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
