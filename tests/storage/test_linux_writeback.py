"""Bytes of a file that will be synced are handed to the disk while the save is still at work."""

from __future__ import annotations

import errno
import os
import sys
import threading
from ctypes import c_int64, get_errno
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src import linux
from jsonckpt._src.linux import linux_call
from jsonckpt._src.storage import commit

#: Text of 12 MiB: one hand-over, and a rest.
STATE = {"w": torch.arange(9 << 18, dtype=torch.int32)}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What is handed over and what is synced, in order: what, from where, how many bytes."""
    made: list[tuple[str, int, int]] = []

    def begin(fd: int, start: Any, length: Any, flags: int) -> int:
        assert os.fstat(fd).st_size >= start.value + length.value
        assert flags == 2
        made.append(("begin", start.value, length.value))
        return -1  # refused: of no consequence

    real = os.fsync

    def fsync(fd: int) -> None:
        made.append(("fsync", 0, os.fstat(fd).st_size))
        real(fd)

    known = {"sync_file_range": begin}
    monkeypatch.setattr(linux, "linux_call", known.get)
    monkeypatch.setattr(os, "fsync", fsync)
    return made


@pytest.mark.parametrize("name", ["ckpt", "ckpt.json"])
def test_a_save_that_syncs_hands_over_what_it_has_written(
    name: str, tmp_path: Path, calls: list[tuple[str, int, int]]
) -> None:
    jsonckpt.save(STATE, tmp_path / name, threads=1)
    first = [what for what, _, _ in calls].index("begin")
    _, start, length = calls[first]
    assert start == 0
    assert length >= 8 << 20
    assert length % 4096 == 0
    # The file itself is synced after that.
    synced = [size for what, _, size in calls[first:] if what == "fsync"]
    assert synced[0] > length
    assert torch.equal(jsonckpt.load(tmp_path / name)["w"], STATE["w"])


def test_ranges_follow_one_another(calls: list[tuple[str, int, int]], tmp_path: Path) -> None:
    result = jsonckpt.save({"w": torch.ones(12 << 20)}, tmp_path / "ckpt", threads=1)
    begun = [(start, length) for what, start, length in calls if what == "begin"]
    assert len(begun) > 3
    at = 0
    for start, length in begun:
        assert start == at
        at += length
    # All but a rest that waits for the fsync.
    assert result.stored_bytes - at < 10 << 20


def test_a_save_without_sync_hands_over_nothing(
    tmp_path: Path, calls: list[tuple[str, int, int]]
) -> None:
    jsonckpt.save(STATE, tmp_path / "ckpt", sync=False)
    assert calls == []


def test_without_the_function_saves_are_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux, "linux_call", lambda _: None)
    assert jsonckpt.save(STATE, tmp_path / "ckpt").durability == "synced"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's own call")
def test_the_system_takes_the_call(tmp_path: Path) -> None:
    begin = linux_call("sync_file_range")
    assert begin is not None
    with open(tmp_path / "file", "wb") as file:
        file.write(bytes(8192))
        file.flush()
        assert begin(file.fileno(), c_int64(0), c_int64(4096), 2) == 0
    assert begin(-1, c_int64(0), c_int64(4096), 2) == -1
    assert get_errno() == errno.EBADF


def test_replaced_shards_are_removed_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {str(number): torch.full((3 << 18,), float(number)) for number in range(4)}
    first = jsonckpt.save(state, tmp_path / "ckpt", max_shard_size="8MB", threads=2)
    shards = set(first.files) - {"manifest.json"}
    assert len(shards) >= 2
    both = threading.Barrier(2)
    removed: list[str] = []
    real = commit.unlink

    def unlink(path: Path) -> None:
        if path.name in shards and len(removed) < 2:
            removed.append(path.name)
            both.wait(timeout=60)
        real(path)

    monkeypatch.setattr(commit, "unlink", unlink)
    second = jsonckpt.save(state, tmp_path / "ckpt", max_shard_size="8MB", threads=2)
    assert len(removed) >= 2
    assert set(os.listdir(tmp_path / "ckpt")) == set(second.files)
