"""A run that is killed anywhere, or whose file system fails: rotation and history stay consistent.

The invariants of a run's directory, at every moment:

1. Each ``step-…`` with a manifest (or each ``.json``) is whole and holds its own step.
2. The newest commit that the loop has heard of is there, and so are those that rotation keeps.
3. ``history.json`` can be read, and agrees with what is there once a manager has read both.
4. The next manager goes on, and leaves nothing behind of what was killed.
"""

from __future__ import annotations

import errno
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import CheckpointManager
from tests.support import slow

OPTIONS: dict[str, dict[str, Any]] = {
    "directories": {},
    "files": {"single_file": True},
    "background": {"async_save": True},
    "shared": {"share_unchanged": True, "async_save": True},
}
KEEP: dict[str, Any] = {"keep_last": 2, "keep_best": ("loss", "min", 1), "every_steps": 1}


def state_of(step: int) -> dict[str, Any]:
    return {"head": torch.full((500,), float(step)), "body": torch.arange(3_000.0)}


def loss_of(step: int) -> float:
    return float((step * 7) % 11) + 1 / (step + 1)


def loop(
    run: str, kind: str, say: Callable[[str], None] = lambda _: None, most: int = 1 << 30
) -> int:
    """A loop that resumes, saves each step, and tells each commit."""
    state = state_of(0)
    with CheckpointManager(run, **KEEP, **OPTIONS[kind]) as manager:
        start = manager.restore(state) or 1
        if start > 1:
            assert state["head"][0] == start - 1
        say(f"start {start}")
        for step in range(start, start + most):
            manager.step(step, state_of(step), metrics={"loss": loss_of(step)})
            newest = manager.history[-1] if kind in ("directories", "files") else None
            if newest is not None and newest.status == "kept":
                say(f"saved {newest.step}")
        return step


def check(run: Path, *, told: int = 0, ended: bool = False) -> list[int]:
    """Check the invariants. Returns the steps that are there.

    Args:
        told: the newest step that was committed for certain.
        ended: whether a manager has ended cleanly.
    """
    found = []
    for path in sorted(run.glob("step-*")):
        if path.is_dir() and not (path / "manifest.json").exists():
            shared = {name for name in os.listdir(path) if name == ".shared-shards"}
            assert not ended or shared, f"{path} was left behind"
            continue
        loaded = jsonckpt.load(path)
        step = int(path.name[5:13])
        assert loaded["head"][0] == step
        assert torch.equal(loaded["body"], state_of(0)["body"])
        found.append(step)
    manager = CheckpointManager(run, keep_best=("loss", "min"))
    kept = manager.steps()
    going = [one.step for one in manager.history if one.status == "removing"]
    assert set(found) - set(going) <= {one.step for one in kept} <= set(found)
    assert not (ended and going)
    assert all(one.metrics == {"loss": loss_of(one.step)} for one in kept)
    latest = manager.latest()
    assert (latest.step if latest else 0) >= told
    if kept:
        saves = [one for one in manager.history if one.status in ("kept", "removed")]
        best, newest = manager.best(), manager.latest()
        assert best is not None
        assert newest is not None
        assert best.metrics["loss"] == min(one.metrics["loss"] for one in saves)
        assert newest.step == max(one.step for one in saves)
    if ended:
        assert len(kept) <= 3
        rows = json.loads((run / "history.json").read_text())
        assert [row["step"] for row in rows if row["status"] == "kept"] == sorted(found)
        left = {path.name for path in run.iterdir()} - {"history.json"}
        assert not [name for name in left if not name.startswith("step-")]
    return sorted(found)


# --- kills ----------------------------------------------------------------------------------------

CHILD = """
import sys
from tests.manager.test_kills import loop
loop(sys.argv[1], sys.argv[2], lambda text: print(text, flush=True))
"""


def tell(pipe: int, text: str) -> None:
    os.write(pipe, f"{text}\n".encode())


def killed_loop(run: Path, kind: str, after: float) -> int:
    """Run the loop in a process, and kill it. Returns the newest step that it told."""
    wait, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(wait)
        try:
            loop(str(run), kind, lambda text: tell(told, text))
        finally:
            os._exit(9)
    os.close(told)
    text = b""
    try:
        assert select.select([wait], [], [], 60)[0]
        text += os.read(wait, 1 << 16)
        assert text.startswith(b"start"), text
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
        while piece := os.read(wait, 1 << 16):
            text += piece
    finally:
        os.close(wait)
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    assert os.WTERMSIG(status) == signal.SIGKILL, f"the loop ended by itself: {status}"
    lines = [line.split() for line in text.decode().splitlines()]
    return max(int(number) - (word == "start") for word, number in lines)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("kills", [4, slow(60)])
def test_kills_at_random_moments(tmp_path: Path, kind: str, kills: int) -> None:
    draw, told = random.Random(kind), 0
    # Threads of torch do not survive a fork.
    torch.set_num_threads(1)
    for _ in range(kills):
        told = max(told, killed_loop(tmp_path, kind, draw.uniform(0, 0.25)))
        check(tmp_path, told=told)
    last = loop(str(tmp_path), kind, most=3)
    assert check(tmp_path, told=last, ended=True)[-1] == last
    assert last > kills // 3  # it got on


@pytest.mark.slow
@pytest.mark.thorough
def test_kills_of_a_process_of_its_own(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), "background"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "start 1\n"
        time.sleep(0.5)
    finally:
        process.kill()
        process.communicate()
    check(tmp_path)
    check(tmp_path, told=loop(str(tmp_path), "background", most=3), ended=True)


# --- faults ---------------------------------------------------------------------------------------


class _Killed(BaseException):
    """The process ends here: no handler of the product runs after it."""


class Calls:
    """Counts the calls that change files. At one of them the run ends, or the call fails."""

    NAMES = ("mkdir", "rmdir", "unlink", "replace", "rename", "link", "pwritev", "fsync")

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.number, self.at, self.error = 0, 0, ""
        self.dead = False
        for name in self.NAMES:
            patch.setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.number += 1
            if self.dead:
                raise OSError(errno.EIO, "dead")  # after a kill nothing changes any more
            if self.number == self.at:
                if self.error == "kill":
                    self.dead = True
                    raise _Killed
                raise OSError(getattr(errno, self.error), os.strerror(getattr(errno, self.error)))
            return real(*arguments, **named)

        return call

    def arm(self, at: int, error: str) -> None:
        self.number, self.at, self.error, self.dead = 0, at, error, False


def attempt(run: Path, kind: str, calls: Calls, at: int, error: str) -> bool:
    """Three steps with a fault at a call. Returns whether it came to that call."""
    calls.arm(0, "")
    loop(str(run), kind, most=4)
    before = check(run, ended=True)
    calls.arm(at, error)
    with suppress(_Killed, OSError, jsonckpt.JsonckptError):
        loop(str(run), kind, most=3)
    happened = calls.number >= at
    calls.arm(0, "")
    check(run, told=before[-1])
    last = loop(str(run), kind, most=2)
    check(run, told=last, ended=True)
    return happened


@pytest.mark.filterwarnings("ignore:.*(is not removed|was not saved)")
@pytest.mark.parametrize("kind", ["directories", "files"])
@pytest.mark.parametrize("error", ["kill", "ENOSPC", "EIO"])
@pytest.mark.parametrize("stride", [11, slow(1)])
def test_each_change_of_the_file_system_is_the_last_one_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: str, stride: int
) -> None:
    calls = Calls(monkeypatch)
    at, tried = 1, 0
    while attempt(tmp_path / f"{at}", kind, calls, at, error):
        at, tried = at + stride, tried + 1
    assert tried * stride >= 44, at


# --- a second process that reads ------------------------------------------------------------------


def test_a_reader_never_sees_less_than_a_whole_checkpoint(tmp_path: Path) -> None:
    loop(str(tmp_path), "directories", most=2)
    pid = os.fork()
    if pid == 0:
        try:
            loop(str(tmp_path), "directories")
        finally:
            os._exit(9)
    try:
        until, seen = time.monotonic() + 1, set()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            while time.monotonic() < until:
                state = state_of(0)
                start = CheckpointManager(tmp_path).restore(state)
                assert start is not None
                assert state["head"][0] == start - 1
                seen.add(start)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert len(seen) > 2
    check(tmp_path)
