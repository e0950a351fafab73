"""save_async: the loop goes on, saves stand in line, and memory is used again and let go."""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt._src.format import json_text
from jsonckpt._src.save import api, background
from jsonckpt._src.save.write import write_checkpoint
from tests.save_async.obstacles import Blocked, fail
from tests.support import same
from tests.two_states import NEW, files


def test_the_call_returns_before_anything_is_written(tmp_path: Path, blocked: Blocked) -> None:
    pending = jsonckpt.save_async(NEW, tmp_path / "c")
    assert not pending.done()
    assert "under way" in repr(pending)
    with pytest.raises(TimeoutError, match="under way"):
        pending.result(timeout=0)
    assert files(tmp_path) == []
    blocked.go.set()
    pending.result(timeout=30)
    assert pending.done()


def test_a_second_call_waits_and_saves_its_own_moment(tmp_path: Path, blocked: Blocked) -> None:
    w = torch.zeros(1000)
    first = jsonckpt.save_async({"w": w}, tmp_path / "one")
    w.fill_(1)
    seconds: list[jsonckpt.PendingSave[jsonckpt.SaveResult]] = []
    thread = threading.Thread(
        target=lambda: seconds.append(jsonckpt.save_async({"w": w}, tmp_path / "two"))
    )
    thread.start()
    thread.join(0.1)
    assert not seconds
    w.fill_(2)
    blocked.go.set()
    thread.join()
    assert first.done()
    assert seconds[0].result().tensors == 1
    assert jsonckpt.load(tmp_path / "one")["w"].unique().tolist() == [0]
    assert jsonckpt.load(tmp_path / "two")["w"].unique().tolist() == [2]


def test_many_calls_from_many_threads(tmp_path: Path) -> None:
    def loop(number: int) -> None:
        for step in range(5):
            state = {"w": torch.full((999,), 10.0 * number + step)}
            jsonckpt.save_async(state, tmp_path / f"{number}-{step}", sync=False)
            state["w"].fill_(-1)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    api._background.run_next(lambda: None)
    for number in range(4):
        for step in range(5):
            found = jsonckpt.load(tmp_path / f"{number}-{step}")["w"]
            assert found.unique().tolist() == [10 * number + step]


def test_the_memory_of_the_copy_is_used_again(tmp_path: Path) -> None:
    api._buffers.release()
    arena = api._buffers._plain

    def saved(count: int, **options: Any) -> tuple[int, int]:
        jsonckpt.save_async({"w": torch.ones(count)}, tmp_path / "c", **options).result()
        return arena._memory.ctypes.data, len(arena._memory)

    first = saved(50_000)
    assert 200_000 <= first[1] <= 210_000
    assert saved(50_000) == first
    assert saved(10) == first
    assert saved(100_000)[1] >= 400_000
    assert saved(100_000, keep_buffers=False)[1] == 0
    assert same(jsonckpt.load(tmp_path / "c"), {"w": torch.ones(100_000)})


def test_the_state_itself_is_let_go(tmp_path: Path, blocked: Blocked) -> None:
    array = np.ones(10)
    alive = weakref.ref(array)
    state = {"array": array, "tensor": torch.from_numpy(array), "t": torch.from_numpy(array)[::2]}
    jsonckpt.save_async(state, tmp_path / "c")
    assert blocked.reached.wait(30)
    del array, state
    gc.collect()
    assert alive() is None


def test_an_error_does_not_keep_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail(OSError(errno.ENOSPC, "No space left on device")))
        pending = jsonckpt.save_async(NEW, tmp_path / "c")
        with pytest.raises(jsonckpt.WriteError):
            pending.result()
    alive = weakref.ref(api._buffers._plain._memory)
    api._buffers.release()
    gc.collect()
    assert alive() is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="niceness of threads")
def test_the_background_is_nice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    found = []

    def noted(*arguments: Any) -> Any:
        found.append(niceness())
        return write_checkpoint(*arguments)

    monkeypatch.setattr(api, "write_checkpoint", noted)
    mine = niceness()
    jsonckpt.save_async(NEW, tmp_path / "c").result()
    assert found == [min(19, mine + 10)]
    assert niceness() == mine
    with monkeypatch.context() as patch:
        patch.setattr(os, "setpriority", fail(PermissionError(errno.EPERM, "no")))
        jsonckpt.save_async(NEW, tmp_path / "c").result()


def test_garbage_collection_is_switched_by_the_main_thread_only() -> None:
    found = []

    def look() -> None:
        with json_text.collector_paused():
            found.append(gc.isenabled())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    look()
    assert found == [True, False]
    assert gc.isenabled()


def test_a_background_tells_all_of_itself() -> None:
    """What saving uses, without a file: results, errors and the order."""
    own = background.Background()
    pending = own.run_next(lambda: own.start("x", lambda _: 1))
    assert pending.result() == 1
    failed = own.run_next(lambda: own.start("x", fail(ValueError("no"))))
    with pytest.raises(jsonckpt.JsonckptError, match="no"):
        own.run_next(lambda: pytest.fail("not reached"))
    own.run_next(lambda: None)
    with pytest.raises(ValueError, match="no"):
        failed.result()
