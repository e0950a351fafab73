"""``overwrite=False`` to the last moment, and names that belong to a directory checkpoint."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src import linux
from jsonckpt._src.storage import commit as storage
from jsonckpt.convert import convert
from tests.support import difference
from tools.reliability.scenes import inside

NAMES = ["c", "c.json", "c.json.zst"]
MINE, THEIRS = {"w": torch.zeros(300), "n": 1}, {"w": torch.ones(300), "n": 2}


def _before_commit(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let ``act`` happen once, right before the next commit."""
    real = storage.commit
    done: list[bool] = []

    def commit(*arguments: Any, **named: Any) -> bool:
        if not done:
            done.append(True)
            act()
        return real(*arguments, **named)

    patch.setattr(storage, "commit", commit)


SAVES: dict[str, Callable[[Path], object]] = {
    "save": lambda path: jsonckpt.save(MINE, path, overwrite=False),
    "save_async": lambda path: jsonckpt.save_async(MINE, path, overwrite=False).result(),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", SAVES)
def test_a_checkpoint_that_appears_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    path, ready = tmp_path / "room" / name, tmp_path / "ready" / name
    jsonckpt.save(THEIRS, ready)
    files = [*ready.iterdir()] if ready.is_dir() else [ready]

    def other() -> None:
        """What another process does."""
        for file in files:
            os.link(file, path / file.name if ready.is_dir() else path)

    _before_commit(monkeypatch, other)
    with pytest.raises(jsonckpt.CheckpointExistsError, match="was not touched") as caught:
        SAVES[how](path)
    assert isinstance(caught.value, FileExistsError)
    assert difference(jsonckpt.load(path), THEIRS) is None
    assert inside(tmp_path / "room") == inside(tmp_path / "ready")


@pytest.mark.parametrize("name", NAMES)
def test_one_of_many_savers_wins(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (path.parent / "d").mkdir()
    cancel = threading.Barrier(4)
    outcomes: list[Any] = [None] * 4

    def save(number: int) -> None:
        cancel.wait()
        try:
            jsonckpt.save({"n": number, "w": torch.full((500,), number)}, path, overwrite=False)
            outcomes[number] = "saved"
        except jsonckpt.CheckpointExistsError:
            outcomes[number] = "refused"

    for _ in range(5):
        threads = [threading.Thread(target=save, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["refused", "refused", "refused", "saved"]
        found = jsonckpt.load(path)
        assert found["n"] == outcomes.index("saved")
        assert len(inside(tmp_path)) == (4 if name == "c" else 2)
        for file in [path] if path.is_file() else [*path.iterdir()]:
            file.unlink()


@pytest.mark.parametrize("to", ["pt", "safetensors", "legacy-json", "json", "dir"])
def test_conversions_replace_nothing_that_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    source = tmp_path / "in.pt"
    torch.save(MINE, source)
    path = tmp_path / {"dir": "out", "legacy-json": "out.json"}.get(to, f"out.{to}")
    there = path / "manifest.json" if to == "dir" else path

    _before_commit(monkeypatch, lambda: there.write_text("theirs"))
    with pytest.raises(jsonckpt.CheckpointExistsError, match="was not touched"):
        convert(source, path, to=to)  # type: ignore[arg-type]
    assert there.read_text() == "theirs"
    assert not [file for file in inside(tmp_path) if file.endswith(".tmp") or "shard" in file]


def test_recover_replaces_nothing_that_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jsonckpt.save(MINE, tmp_path / "c")
    out = tmp_path / "out.json"
    _before_commit(monkeypatch, lambda: out.write_text("theirs"))
    with pytest.raises(jsonckpt.CheckpointExistsError):
        jsonckpt.recover(tmp_path / "c", out)
    assert out.read_text() == "theirs"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("renames", [True, False], ids=["renameat2", "neither"])
def test_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, renames: bool
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    if not renames:
        monkeypatch.setattr(linux, "linux_call", lambda _: None)
    path = tmp_path / name
    jsonckpt.save(MINE, path, overwrite=False)
    assert difference(jsonckpt.load(path), MINE) is None
    assert not [file for file in inside(tmp_path) if file.endswith(".tmp")]
    there = path / "manifest.json" if name == "c" else path
    there.unlink()
    _before_commit(monkeypatch, lambda: there.write_text("theirs"))
    with pytest.raises(jsonckpt.CheckpointExistsError):
        jsonckpt.save(MINE, path, overwrite=False)
    assert there.read_text() == "theirs"


def test_a_link_that_reports_a_failure_and_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link(source: Any, target: Any) -> None:
        real(source, target)
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))  # as NFS says when it asks twice

    monkeypatch.setattr(os, "link", link)
    jsonckpt.save(MINE, tmp_path / "c.json", overwrite=False)
    assert difference(jsonckpt.load(tmp_path / "c.json"), MINE) is None
    assert inside(tmp_path) == ["c.json"]


# --- names that belong to a directory -------------------------------------------------------------

DOORS: dict[str, Callable[[Path, Path], object]] = {
    "save": lambda _, path: jsonckpt.save(MINE, path),
    "save_async": lambda _, path: jsonckpt.save_async(MINE, path).result(),
    "recover": lambda room, path: jsonckpt.recover(room / "c", path),
    "convert": lambda room, path: convert(room / "in.pt", path, overwrite=True),
    "convert to another program's": lambda room, path: convert(
        room / "in.pt", path, to="legacy-json", overwrite=True
    ),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("where", ["c", "new", "link"])
def test_no_single_file_takes_the_name_of_a_part(tmp_path: Path, door: str, where: str) -> None:
    jsonckpt.save(THEIRS, tmp_path / "c")
    torch.save(MINE, tmp_path / "in.pt")
    shard = next((tmp_path / "c").glob("shard-*")).name
    paths = [tmp_path / where / "manifest.json", tmp_path / where / shard]
    if where == "link":
        paths = [tmp_path / "a.json", tmp_path / "b.json"]
        for path, name in zip(paths, ["manifest.json", shard]):
            path.symlink_to(tmp_path / "c" / name)
    before = inside(tmp_path)
    for path in paths:
        refused = jsonckpt.CheckpointExistsError if door == "recover" else jsonckpt.ArgumentError
        kind = refused if where == "link" else jsonckpt.ArgumentError
        with pytest.raises(kind) as caught:
            DOORS[door](tmp_path, path)
        if kind is jsonckpt.ArgumentError:
            assert "Give the directory" in str(caught.value)
    assert inside(tmp_path) == before
    assert difference(jsonckpt.load(tmp_path / "c" / "manifest.json"), THEIRS) is None


def test_a_remote_one_is_refused_too() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(jsonckpt.ArgumentError, match="part of a directory"):
        jsonckpt.save(MINE, "memory://c/manifest.json")
