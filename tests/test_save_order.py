"""A save waits for one in the background to the same place: the later call wins."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jsonckpt
from jsonckpt import saving


class Held:
    """Holds up what is written in the background."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        write = saving._write

        def held_up(*arguments: Any) -> Any:
            if threading.current_thread().name == "jsonckpt-save":
                assert self.go.wait(30)
            return write(*arguments)

        patch.setattr(saving, "_write", held_up)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held(monkeypatch)
    yield made
    made.go.set()


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_a_save_to_the_same_place_comes_after_the_one_in_the_background(
    tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pending = jsonckpt.save_async({"step": 1}, tmp_path / name)
    monkeypatch.chdir(tmp_path)  # another name for the place
    later = threading.Thread(target=jsonckpt.save, args=({"step": 2}, name))
    later.start()
    later.join(timeout=0.3)
    assert later.is_alive()
    assert not (tmp_path / name).exists()
    held.go.set()
    later.join(timeout=30)
    assert pending.done()
    assert jsonckpt.load(tmp_path / name) == {"step": 2}


def test_a_save_to_another_place_does_not_wait(tmp_path: Path, held: Held) -> None:
    pending = jsonckpt.save_async({"step": 1}, tmp_path / "a")
    jsonckpt.save({"step": 2}, tmp_path / "b")
    assert not pending.done()
    held.go.set()
    pending.result()
    assert jsonckpt.load(tmp_path / "b") == {"step": 2}


def test_an_error_in_the_background_is_left_for_the_next_call_of_save_async(
    tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise jsonckpt.WriteError("no room", errno=28)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "settle", refuse)
        pending = jsonckpt.save_async({"step": 1}, tmp_path / "c")
        held.go.set()
        while not pending.done():  # it is not asked for its result here
            time.sleep(0.001)
    jsonckpt.save({"step": 2}, tmp_path / "c")
    assert jsonckpt.load(tmp_path / "c") == {"step": 2}
    with pytest.raises(jsonckpt.WriteError, match="no room"):
        jsonckpt.save_async({"step": 3}, tmp_path / "c")
