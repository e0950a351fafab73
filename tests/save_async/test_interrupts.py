"""save_async, interrupted and cancelled: before the commit all is as it was."""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.save import staging, write
from tests.save_async.obstacles import Blocked, fail
from tests.support import same
from tests.two_states import KINDS, NEW, OLD, OPTIONS, files


def test_ctrl_c_while_the_state_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonckpt.save(OLD, tmp_path / "c")
    before = files(tmp_path / "c")
    interrupted = argparse.Namespace(memmove=fail(KeyboardInterrupt()))
    # By torch's threads, by the thread that calls, by threads of ours.
    for threads, worth in ((2, 0), (1, 1 << 40), (1, 0)):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            patch.setattr(staging, "_WORTH_THREADS", worth)
            patch.setattr(staging, "ctypes", interrupted)
            with pytest.raises(KeyboardInterrupt):
                jsonckpt.save_async(NEW, tmp_path / "c")
        assert files(tmp_path / "c") == before
        jsonckpt.save_async(OLD, tmp_path / "c").result()
        before = files(tmp_path / "c")


@pytest.fixture
def alarm() -> Iterator[None]:
    """A Ctrl-C that comes soon; what is interrupted would otherwise last for ever."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.usefixtures("alarm")
def test_ctrl_c_while_waiting_for_the_result(tmp_path: Path, blocked: Blocked) -> None:
    pending = jsonckpt.save_async(NEW, tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        pending.result()
    assert not pending.done()
    blocked.go.set()
    assert pending.result().tensors == 2
    assert same(jsonckpt.load(tmp_path / "c"), NEW)


@pytest.mark.usefixtures("alarm")
def test_ctrl_c_while_waiting_for_the_save_before(tmp_path: Path, blocked: Blocked) -> None:
    first = jsonckpt.save_async(OLD, tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        jsonckpt.save_async(NEW, tmp_path / "two")
    blocked.go.set()
    first.result()
    assert same(jsonckpt.load(tmp_path / "one"), OLD)
    assert not (tmp_path / "two").exists()
    jsonckpt.save_async(NEW, tmp_path / "two").result()


class Canceller:
    """Cancels at the call of the system with the number ``at`` that the background makes."""

    def __init__(self, patch: pytest.MonkeyPatch, call: str, at: int) -> None:
        self.pending: Any = None
        self.ready = threading.Event()
        self.accepted: list[bool] = []
        self._calls = 0
        self._at = at
        self._lock = threading.Lock()
        self._real = getattr(os, call)
        patch.setattr(os, call, self)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if threading.current_thread().name.startswith("jsonckpt"):
            with self._lock:
                self._calls += 1
                now = self._calls == self._at
            if now:
                assert self.ready.wait(30)
                self.accepted.append(self.pending._cancel.cancel())
        return self._real(*arguments, **named)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", ["open", "pwritev", "fsync", "replace", "unlink"])
@pytest.mark.parametrize("name", KINDS)
def test_cancelled_at_every_call_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str, threads: int
) -> None:
    """Before the commit all is as it was; from the commit on it is too late."""
    path = tmp_path / name
    options = {**OPTIONS, "threads": threads}
    verdicts = []
    for at in range(1, 60):
        jsonckpt.save(OLD, path, **OPTIONS, sync=False)
        where = path if path.is_dir() else tmp_path
        before = files(where)
        with monkeypatch.context() as patch:
            canceller = Canceller(patch, call, at)
            pending = canceller.pending = jsonckpt.save_async(NEW, path, **options)
            canceller.ready.set()
            pending._wait(None)
        accepted = canceller.accepted
        if not accepted:
            assert pending.result().tensors == 2
            break
        assert pending.cancel() is accepted[0]
        verdicts.append(accepted[0])
        if accepted[0]:
            with pytest.raises(jsonckpt.SaveCancelledError, match="cancelled"):
                pending.result()
            assert same(jsonckpt.load(path), OLD)
            assert files(where) == before
        else:
            assert pending.result().tensors == 2
            assert same(jsonckpt.load(path), NEW)
    else:
        pytest.fail("the save never passed")
    assert verdicts == sorted(verdicts, reverse=True)
    # A single file is replaced, and nothing is left to be removed.
    assert verdicts or (call == "unlink" and not path.is_dir())


def test_cancel_waits_until_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev
    pendings: list[Any] = []

    def slow(*arguments: Any) -> int:
        while not (pendings and pendings[0]._cancel._cancelled):
            time.sleep(0.001)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", slow)
        pendings.append(jsonckpt.save_async(NEW, tmp_path / "c", **OPTIONS))
        assert pendings[0].cancel() is True
    assert pendings[0].done()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert pendings[0].cancel() is True
    # Whoever cancels knows: the next call has nothing to tell.
    pending = jsonckpt.save_async(NEW, tmp_path / "c")
    pending.result()
    assert pending.cancel() is False
    assert same(jsonckpt.load(tmp_path / "c"), NEW)


@pytest.mark.parametrize(
    ("scheme", "name", "possible"),
    [
        ("memory", "c", True),
        ("memory", "c.json", True),
        ("faultydav", "c", True),
        # Here opening the file has let go of what was there.
        ("faultydav", "c.json", False),
    ],
)
def test_cancelling_behind_a_url(
    monkeypatch: pytest.MonkeyPatch, scheme: str, name: str, possible: bool
) -> None:
    pytest.importorskip("fsspec")
    import tests.faulty_files  # noqa: F401

    url = f"{scheme}://{uuid.uuid4().hex}/{name}"
    jsonckpt.save(OLD, url)
    verdicts = []
    write_shards = write.write_shards
    begun = threading.Event()

    def cancelling(plan: Any, target: Any, cancel: Any) -> Any:
        verdicts.append(cancel.cancel())
        begun.set()
        return write_shards(plan, target, cancel)

    with monkeypatch.context() as patch:
        patch.setattr(write, "write_shards", cancelling)
        pending = jsonckpt.save_async(NEW, url)
        assert begun.wait(30)
        assert pending.cancel() is possible
    assert verdicts == [possible]
    assert same(jsonckpt.load(url), OLD if possible else NEW)
