"""A save waits for one in the background to the same place: the later call wins."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import jsonckpt
from jsonckpt._src.save import api
from tests.save_async.obstacles import Blocked, fail


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_a_save_to_the_same_place_comes_after_the_one_in_the_background(
    tmp_path: Path, blocked: Blocked, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pending = jsonckpt.save_async({"step": 1}, tmp_path / name)
    monkeypatch.chdir(tmp_path)  # another name for the place
    later = threading.Thread(target=jsonckpt.save, args=({"step": 2}, name))
    later.start()
    later.join(timeout=0.3)
    assert later.is_alive()
    assert not (tmp_path / name).exists()
    blocked.go.set()
    later.join(timeout=30)
    assert pending.done()
    assert jsonckpt.load(tmp_path / name) == {"step": 2}


def test_a_save_to_another_place_does_not_wait(tmp_path: Path, blocked: Blocked) -> None:
    pending = jsonckpt.save_async({"step": 1}, tmp_path / "a")
    jsonckpt.save({"step": 2}, tmp_path / "b")
    assert not pending.done()
    blocked.go.set()
    pending.result()
    assert jsonckpt.load(tmp_path / "b") == {"step": 2}


def test_an_error_in_the_background_is_left_for_the_next_call_of_save_async(
    tmp_path: Path, blocked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(api, "plan_save", fail(jsonckpt.WriteError("no room", errno=28)))
        pending = jsonckpt.save_async({"step": 1}, tmp_path / "c")
        blocked.go.set()
        while not pending.done():  # it is not asked for its result here
            time.sleep(0.001)
    jsonckpt.save({"step": 2}, tmp_path / "c")
    assert jsonckpt.load(tmp_path / "c") == {"step": 2}
    with pytest.raises(jsonckpt.WriteError, match="no room"):
        jsonckpt.save_async({"step": 3}, tmp_path / "c")
