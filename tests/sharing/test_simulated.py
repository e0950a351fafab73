"""Power failures and kills in a run whose steps share shards (``tools/reliability/sharing``)."""

from __future__ import annotations

import inspect
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import jsonckpt
from jsonckpt._src.sharing import holders, unchanged
from tests.support import slow
from tools.reliability import sharing
from tools.reliability.calls import Operation
from tools.reliability.common import memory_directory


@pytest.fixture(autouse=True, scope="module")
def plain_save() -> Iterator[None]:
    """``conftest`` looks at every file that is saved; here that would be in the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonckpt, "save", inspect.unwrap(jsonckpt.save))
        yield


@pytest.fixture
def rooms() -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(prefix="jsonckpt-test-", dir=memory_directory()) as scratch:
        for name in ("room", "recording"):
            (Path(scratch) / name).mkdir()
        yield Path(scratch) / "room", Path(scratch) / "recording"


@pytest.mark.parametrize("most", [2, slow(16)])
def test_every_state_that_a_power_failure_may_leave(most: int, rooms: tuple[Path, Path]) -> None:
    report = sharing.simulate(*rooms, most=most, dice=random.Random(1))
    assert report.words == []
    assert report.states > 500
    assert report.repeated > 5
    assert set(report.outcomes) == {"save", "remove", "gc"}


@pytest.mark.parametrize("seed", [1, slow(2), slow(3)])
def test_runs_at_random(seed: int, rooms: tuple[Path, Path]) -> None:
    dice = random.Random(seed)
    report = sharing.simulate(*rooms, most=2, dice=dice, run=sharing.drawn(dice))
    assert report.words == []
    assert report.states > 200


def _without_the_first_fsync(move: sharing.Move, log: list[Operation]) -> list[Operation]:
    if move.kind != "remove":
        return log
    first = next(i for i, step in enumerate(log) if step.kind == "fsync directory")
    return log[:first] + log[first + 1 :]


SHORT = sharing.RUN[:4]


def test_a_removal_that_is_not_durable_in_order_is_found(rooms: tuple[Path, Path]) -> None:
    report = sharing.simulate(
        *rooms, most=8, dice=random.Random(1), run=SHORT, change=_without_the_first_fsync
    )
    assert any("step 1" in words for words in report.words)


def test_a_directory_that_is_not_marked_is_found(
    rooms: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unchanged, "mark", lambda _, **__: None)
    run = (*SHORT, sharing.Move("save", 2, body=5, version=1))
    report = sharing.simulate(*rooms, most=2, dice=random.Random(1), run=run)
    assert any("step 3: IncompleteCheckpointError" in words for words in report.words)


def test_a_removal_that_does_not_look_beside_itself_is_found(
    rooms: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsonckpt._src.sharing.remove_step.files_in_use", lambda _: frozenset())
    run = (*SHORT, sharing.Move("remove", 2))
    report = sharing.simulate(*rooms, most=2, dice=random.Random(1), run=run)
    assert any("step 3: IncompleteCheckpointError" in words for words in report.words)


def test_the_names_of_others_are_known(tmp_path: Path) -> None:
    (tmp_path / "step").mkdir()
    assert holders.files_in_use(tmp_path / "step") == frozenset()
