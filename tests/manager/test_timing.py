"""When a save is due, and when a run stops: by steps, by the clock, by signals."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import CheckpointManager
from jsonckpt._src.manager.saved_step import SavedStep
from jsonckpt._src.manager.timing import Timing, seconds_until

STATE = {"w": torch.ones(3)}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def timing(clock: Clock, **options: Any) -> Timing:
    given = {"every_steps": None, "every_minutes": None, "deadline": None, **options}
    return Timing(**given, clock=clock)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("11h30m", 41_400.0), ("90s", 90.0), ("1d", 86_400.0), ("1.5h", 5_400.0),
        ("2H 5m", 7_500.0),
        (30, 30.0), (0.5, 0.5), (datetime.timedelta(minutes=2), 120.0), (None, None), (-5, -5.0),
    ],
)  # fmt: skip
def test_deadlines(text: Any, seconds: float | None) -> None:
    assert seconds_until(text) == seconds


def test_a_deadline_at_a_time_of_the_day() -> None:
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    for at in (soon, soon.astimezone().replace(tzinfo=None)):
        assert 3_590 < (seconds_until(at) or 0) <= 3_600


@pytest.mark.parametrize(
    "text", ["", "soon", "11:30", "1h1h", "m", "..h", "30", "-1h", float("nan"), 1e11, True, [1]]
)
def test_what_is_no_deadline(text: Any) -> None:
    with pytest.raises(jsonckpt.ArgumentError, match="which is no time"):
        seconds_until(text)


def test_every_steps() -> None:
    clock = Clock()
    steps = timing(clock, every_steps=100)
    assert [step for step in range(301) if steps.stepped(step)[0]] == [100, 200, 300]
    assert [step for step in (310, 390, 405, 499, 707) if steps.stepped(step)[0]] == [405, 707]
    resumed = timing(clock, every_steps=100)
    resumed.resumed(SavedStep(step=450, path="step-00000450", save=1, run="0" * 12))
    assert [step for step in range(451, 550) if resumed.stepped(step)[0]] == [500]


def test_every_minutes() -> None:
    clock = Clock()
    minutes = timing(clock, every_minutes=10)
    due = []
    for step in range(30):
        clock.now += 60
        if minutes.stepped(step)[0]:
            due.append(step)
            minutes.save_begins()
            clock.now += 120  # the save takes two minutes, which count
    assert due == [9, 17, 25]


def test_stops_in_time_for_one_more_step_and_two_saves() -> None:
    clock = Clock()
    run = timing(clock, deadline=3_600.0)
    run.saved(100.0)
    stopped_at = None
    for step in range(1_000):
        clock.now += 30
        _, stop = run.stepped(step)
        run.done()
        if stop:
            stopped_at = clock.now - 1000
            break
    assert stopped_at == 3_390  # one more step would end at 3,420, and 3,400 is the last moment
    assert run.reason == "the time is up"


def test_the_time_of_a_save_is_not_known_at_first() -> None:
    clock = Clock()
    run = timing(clock, deadline=1_000.0)
    clock.now += 940
    assert run.stepped(1) == (False, False)
    clock.now += 20
    assert run.stepped(2)[1]
    resumed = timing(clock, deadline=1_000.0)
    resumed.resumed(SavedStep(step=1, path="step-00000001", save=1, run="0" * 12, seconds=200.0))
    clock.now += 601
    assert resumed.stepped(2)[1]


def test_a_deadline_saves_and_stops(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, every_steps=100, deadline=0.3, async_save=True)
    stop, step = False, 0
    while not stop:
        step += 1
        stop = manager.step(step, STATE)
        time.sleep(0.01)
    assert manager.stop_reason == "the time is up"
    assert manager.steps()[-1].step == step  # committed before True was returned
    assert manager.step(step + 1, STATE) is True
    assert manager.steps()[-1].step == step  # once
    manager.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_step_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with CheckpointManager(tmp_path) as manager:
        assert manager.step(1, STATE) is False
        assert signal.getsignal(number) is not before
        os.kill(os.getpid(), number)
        assert manager.steps() == []
        assert manager.step(2, STATE) is True
        assert signal.getsignal(number) is before
        assert manager.stop_reason == f"{number.name} was received"
    assert [one.step for one in manager.steps()] == [2]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler. A process that a shell starts in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_is_one(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        manager.step(1, STATE)
        os.kill(os.getpid(), signal.SIGINT)
        while manager.stop_reason is None:  # two signals at once would count as one
            time.sleep(0.001)
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_old_handlers_come_back_when_it_is_closed_or_forgotten(tmp_path: Path) -> None:
    def mine(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        manager = CheckpointManager(tmp_path)
        assert signal.getsignal(signal.SIGTERM) is mine
        manager.step(1, STATE)
        assert signal.getsignal(signal.SIGTERM) is not mine
        manager.close()
        assert signal.getsignal(signal.SIGTERM) is mine
        manager = CheckpointManager(tmp_path)
        manager.step(1, STATE)
        del manager
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_there_is_only_the_clock(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[Any] = []

    def work() -> None:
        with CheckpointManager(tmp_path, every_steps=1) as manager:
            found.append(manager.step(1, STATE))
            found.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False, True]


LOOP = """
import os, signal, sys, time
import torch, jsonckpt
manager = jsonckpt.CheckpointManager(sys.argv[1], async_save=True)
child = 0
for step in range(1, 100_000):
    stop = manager.step(step, {"w": torch.full((3,), float(step))})
    if step == 1:
        child = os.fork()  # such as a worker of a loader
        if child == 0:
            time.sleep(60)
        print("ready", flush=True)
    if stop:
        break
    time.sleep(0.001)
print(manager.stop_reason, manager.steps()[-1].step == step, flush=True)
try:
    alive = os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    status = os.waitpid(child, 0)[1]
except ChildProcessError:
    alive, status = False, None
print("worker", alive, status, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_real_process_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LOOP), str(tmp_path)],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        if number == signal.SIGINT:  # a terminal sends it to the worker, too
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    # The worker outlives a Ctrl-C, because the run needs it until it stops, and ends on SIGTERM.
    assert out.splitlines() == [f"{number.name} was received True", "worker True 15"]
