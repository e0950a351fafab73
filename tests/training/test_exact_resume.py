"""A run that goes on from a checkpoint is the run that never stopped, bit for bit."""

from __future__ import annotations

import importlib.util
import multiprocessing
import random
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import training
from tests.support import THOROUGH, difference, slow
from tests.training import runs

HAS_LOADER = importlib.util.find_spec("torchdata") is not None
needs_loader = pytest.mark.skipif(not HAS_LOADER, reason="torchdata is not installed")
pytestmark = [
    # torchdata and torch's own schedulers.
    pytest.mark.filterwarnings("ignore:.*set_vital:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with training.fork_rng():
        yield
    torch.set_num_threads(threads)


def test_every_optimizer_of_torch_is_here() -> None:
    found = {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    }
    assert found - {"Optimizer"} <= runs.KINDS.keys()


@pytest.mark.parametrize("first", [4, slow(1), slow(6), slow(7)])
@pytest.mark.parametrize(
    "kind",
    [*runs.KINDS, *(pytest.param(kind, marks=needs_loader) for kind in runs.LOADERS)],
)
def test_a_resumed_run_is_the_same(tmp_path: Path, kind: str, first: int) -> None:
    straight = runs.make(kind, seed=1)
    for _ in range(first):
        straight.step()
    jsonckpt.save(straight.state.state_dict(), tmp_path / "checkpoint")
    losses = [straight.step() for _ in range(9)]

    resumed = runs.make(kind, seed=2)
    resumed.state.restore(tmp_path / "checkpoint")
    assert [resumed.step() for _ in range(9)] == losses
    assert difference(resumed.state.state_dict(), straight.state.state_dict()) is None

    # From a state in memory, into a run that has trained already. (A loop over a loader that is
    # under way keeps its iterator.)
    again = runs.make(kind, seed=3)
    if kind in runs.KINDS:
        again.step()
    again.state.load_state_dict(jsonckpt.load(tmp_path / "checkpoint"))
    assert [again.step() for _ in range(9)] == losses


STEPS = 14
#: How often a run is killed.
MOST = 3


def kill_and_resume(folder: Path, kind: str, seed: int) -> int:
    """Run a program to its end, killed at random points; how often it was killed."""
    choose = random.Random(seed)
    # Each process is forked from one that has imported torch, and nothing else has run in it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.runs"])
    for kills in range(MOST + 1):
        process = context.Process(target=runs.main, args=(kind, str(folder), STEPS))
        process.start()
        try:
            if kills < MOST:
                wait_for_lines(folder / "losses.txt", choose.randint(2, 6), process)
                time.sleep(choose.random() * 0.02)
            else:
                process.join(120)
                assert process.exitcode == 0
        finally:
            process.kill()
            process.join()
        if (folder / "finished").exists():
            return kills
    raise AssertionError("unreachable")


def wait_for_lines(path: Path, more: int, process: BaseProcess) -> None:
    def count() -> int:
        return path.read_bytes().count(b"\n") if path.exists() else 0

    aim, end = count() + more, time.monotonic() + 120
    while count() < aim and process.exitcode is None and time.monotonic() < end:
        time.sleep(0.002)
    assert process.exitcode in (None, 0)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("loader, 2 workers", marks=needs_loader),
        "channels last, fused",
        "scaler",
        "accumulation",
        *(slow(kind) for kind in ("average", "LBFGS", "Adafactor")),
        *(slow(kind) for kind in ("bfloat16 weights", "compiled", "inductor", "SparseAdam")),
        pytest.param("loader, own generator", marks=[*THOROUGH, needs_loader]),
        pytest.param("loader, weighted", marks=[*THOROUGH, needs_loader]),
    ],
)
def test_a_killed_run_is_the_same(tmp_path: Path, kind: str) -> None:
    straight = runs.make(kind, seed=0)
    expected = {done: straight.step() for done in range(1, STEPS + 1)}

    assert kill_and_resume(tmp_path, kind, seed=len(kind)) >= 2
    lines = [line.split() for line in (tmp_path / "losses.txt").read_text().splitlines()]
    assert {int(done) for done, _ in lines} == expected.keys()
    for done, loss in lines:
        assert loss == expected[int(done)], done
    newest = training.latest(tmp_path)
    assert newest is not None
    saved = jsonckpt.load(newest)
    assert difference(saved["model"], dict_of(straight, "model")) is None
    assert difference(saved["optimizer"], dict_of(straight, "optimizer")) is None


def dict_of(run: runs.Run, name: str) -> Any:
    return run.state.state_dict()[name]
