"""Overwriting without room for old and new: the advice, and what ``delete_first`` gives up."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.commands.convert import main
from tests.support import difference
from tools.reliability.calls import Call, Operation, recorded, watched

OLD: dict[str, Any] = {"w": torch.zeros(3_000), "n": 1}
NEW: dict[str, Any] = {"w": torch.randn(3_000), "n": 2}
KINDS: dict[str, dict[str, Any]] = {"c": {"max_shard_size": 9_000}, "c.json": {}}
Usage = namedtuple("Usage", "total used free")


class _Killed(BaseException):
    """Stands for the end of the process: nothing is cleaned up after it."""


def _disk(patch: pytest.MonkeyPatch, room: Path, size: int) -> None:
    """A file system of so many bytes, as far as writes are concerned."""
    real = os.pwritev

    def used() -> int:
        return sum(path.stat().st_size for path in room.rglob("*") if path.is_file())

    def pwritev(fd: int, buffers: Any, offset: int) -> int:
        if used() + sum(map(len, buffers)) > size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, buffers, offset)

    patch.setattr(os, "pwritev", pwritev)
    patch.setattr(shutil, "disk_usage", lambda _: Usage(size, used(), max(0, size - used())))


@pytest.mark.parametrize("name", KINDS)
def test_no_room_for_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    jsonckpt.save(OLD, path, **KINDS[name])
    _disk(monkeypatch, tmp_path, 25_000)
    with (
        pytest.warns(RuntimeWarning, match=r"takes 16,000 bytes or more .* delete_first=True"),
        pytest.raises(jsonckpt.WriteError) as caught,
    ):
        jsonckpt.save(NEW, path, threads=1)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.hint is not None
    for part in ("It takes up to 16,", "were free", "delete_first=True", "is untouched"):
        assert part in caught.value.hint
    assert difference(jsonckpt.load(path), OLD) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = jsonckpt.save(NEW, path, delete_first=True)
    assert result.durability == "synced"
    assert difference(jsonckpt.load(path), NEW) is None
    assert len(list(tmp_path.rglob("*"))) == (3 if name == "c" else 1)
    with pytest.warns(RuntimeWarning), pytest.raises(jsonckpt.WriteError) as caught:
        jsonckpt.save({"w": torch.zeros(9_000)}, path, delete_first=True, threads=1)
    for part in (
        "removed first",
        "there is none at this path now",
        "Save again, here or elsewhere",
    ):
        assert part in str(caught.value)
    assert "untouched" not in str(caught.value)
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        jsonckpt.load(path)


def test_compressed_is_no_certainty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _disk(monkeypatch, tmp_path, 10_000)
    jsonckpt.save(OLD, tmp_path / "c", compression="zstd")
    jsonckpt.save(OLD, tmp_path / "d.json.zst")


@pytest.mark.parametrize("name", KINDS)
def test_killed_at_every_change(tmp_path: Path, name: str) -> None:
    """Whatever call is the last one: the old checkpoint, none, or the new one."""
    seen = set()
    for last in range(1_000):
        room = tmp_path / str(last)
        room.mkdir()
        jsonckpt.save(OLD, room / name, **KINDS[name])
        left = iter(range(last))
        dead = False

        def hook(call: Call, do: Any, left: Any = left) -> Any:
            nonlocal dead
            if call.name in ("open", "pwritev", "fsync", "unlink", "replace"):
                dead = dead or next(left, None) is None
            if dead and call.name != "close":
                raise _Killed  # the cleaning up does not happen, either
            return do()

        try:
            with watched(room, hook):
                jsonckpt.save(NEW, room / name, delete_first=True, threads=1)
        except _Killed:
            pass
        else:
            break
        try:
            found = jsonckpt.load(room / name)
        except (jsonckpt.CheckpointNotFoundError, jsonckpt.IncompleteCheckpointError):
            assert not (room / name / "manifest.json").exists()
            seen.add("none")
            jsonckpt.save(NEW, room / name, delete_first=True)
            assert difference(jsonckpt.load(room / name), NEW) is None
            continue
        which = "old" if difference(found, OLD) is None else "new"
        assert which == "old" or difference(found, NEW) is None
        seen.add(which)
    assert not dead
    assert seen == {"old", "none", "new"}


def test_the_manifest_goes_first_and_durably(tmp_path: Path) -> None:
    path = tmp_path / "c"
    jsonckpt.save(OLD, path)
    with recorded(tmp_path) as log:
        jsonckpt.save(NEW, path, delete_first=True, threads=1)
    kinds = [step for step in log if step.kind in ("unlink", "fsync directory", "create")]
    at = kinds.index(Operation("unlink", "c/manifest.json"))
    assert [step.kind for step in kinds[at : at + 4]] == [
        "unlink", "fsync directory", "unlink", "create",
    ]  # fmt: skip


def test_in_the_background(tmp_path: Path) -> None:
    jsonckpt.save(OLD, tmp_path / "c")
    jsonckpt.save_async(NEW, tmp_path / "c", delete_first=True).result()
    assert difference(jsonckpt.load(tmp_path / "c"), NEW) is None


def test_what_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="overwrite=False"):
        jsonckpt.save(NEW, tmp_path / "c", overwrite=False, delete_first=True)
    with pytest.raises(ValueError, match="local paths"):
        jsonckpt.save(NEW, "memory://c", delete_first=True)


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(tmp_path / "new.pt"), str(tmp_path / "c.json")
    torch.save(NEW, source)
    jsonckpt.save(OLD, out)
    assert main([source, "-o", out, "--delete-first"]) == 2
    assert main([source, "-o", str(tmp_path / "x.pt"), "--overwrite", "--delete-first"]) == 2
    with recorded(tmp_path) as log:
        assert main([source, "-o", out, "--overwrite", "--delete-first", "-q"]) == 0
    assert Operation("unlink", "c.json") in log
    assert difference(jsonckpt.load(out), NEW) is None
    inside = tmp_path / "d"
    jsonckpt.save(OLD, inside)
    shard = next(inside.glob("shard-*"))
    code = main([str(shard), "-o", str(inside), "--overwrite", "--delete-first"])
    assert code == 1
    assert "holds the input" in capsys.readouterr().err
    assert difference(jsonckpt.load(inside), OLD) is None


@pytest.mark.parametrize("name", KINDS)
def test_a_loss_for_another_reason_is_said_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name

    def fails(error: BaseException) -> BaseException:
        def refuse(*_: Any) -> int:
            raise error

        jsonckpt.save(OLD, path, **KINDS[name])
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", refuse)
            with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever it is
                jsonckpt.save(NEW, path, delete_first=True, threads=1)
        return caught.value

    said = str(fails(OSError(errno.EIO, os.strerror(errno.EIO))))
    assert "there is none at this path now" in said
    assert "untouched" not in said
    notes = getattr(fails(MemoryError()), "__notes__", None)
    if hasattr(BaseException, "add_note"):
        assert notes is not None
        assert "there is none at this path now" in notes[0]
