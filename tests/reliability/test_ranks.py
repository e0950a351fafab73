"""Ranks that die, are late or hear wrong messages (``tools/reliability/ranks``)."""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import slow
from tools.reliability import jobs, ranks
from tools.reliability.common import memory_directory

pytestmark = pytest.mark.skipif(not jobs.WORKS, reason="this torch needs process groups for a mesh")


@pytest.fixture
def simulation(request: pytest.FixtureRequest) -> Iterator[ranks.Simulation]:
    logging.getLogger("torch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="jsonckpt-test-", dir=memory_directory()) as scratch:
        seed = getattr(request, "param", 1)
        yield ranks.Simulation(Path(scratch), random.Random(seed))


@pytest.mark.parametrize("sample", [12, slow(None)])
def test_ranks_that_die_at_some_calls(simulation: ranks.Simulation, sample: int | None) -> None:
    simulation.kills(two=6, sample=sample)
    assert simulation.report.words == []
    assert {0, 1, 2} <= set(simulation.report.found)
    assert simulation.report.runs["two ranks die"] == 12


def test_messages_that_are_lost_or_wrong(simulation: ranks.Simulation) -> None:
    simulation.messages()
    assert simulation.report.words == []
    assert len(simulation.report.runs) == 8


@pytest.mark.parametrize("count", [10, slow(200)])
def test_two_jobs_at_once(simulation: ranks.Simulation, count: int) -> None:
    simulation.two_jobs(count)
    assert simulation.report.words == []
    assert {2, 3} & set(simulation.report.found)


@pytest.mark.parametrize("runs", [2, slow(8)])
def test_power_failures(simulation: ranks.Simulation, runs: int) -> None:
    simulation.power(runs, most=2)
    assert simulation.report.words == []
    assert simulation.report.states > 100


# --- the checks can fail ----------------------------------------------------------------------


def test_results_of_another_save_that_are_taken_are_found(
    simulation: ranks.Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsonckpt._src.distributed.writer.check_messages", lambda *_: None)
    simulation.messages()
    assert any("of another save" in words for words in simulation.report.words)


def test_shards_that_are_not_durable_are_found(
    simulation: ranks.Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ranks._OPTIONS, "sync", False)
    simulation.power(1, most=2)
    assert simulation.report.words


def test_a_rank_that_dies_without_a_trace_is_no_failure_of_the_others(
    simulation: ranks.Simulation,
) -> None:
    run = simulation._run("dies", "", ranks.Run({(0, 1): 1}))
    assert [actor.end for actor in run.actors] == ["lost", "dead", "lost"]
    assert simulation.report.words == []
