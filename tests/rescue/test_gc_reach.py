"""``gc`` reaches what every killed call of this package left, and asks where it may be needed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.cli import main
from jsonckpt._src.commands.convert import main as convert
from jsonckpt._src.storage import spool

STATE = {"a": torch.arange(40), "b": torch.ones(40)}


class _Killed(BaseException):
    """Stands for a kill: nobody cleans up behind it, see :func:`_no_cleaning`."""


def _no_cleaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jsonckpt._src.storage.commit.NewFile.abandon", lambda self: self._close())
    monkeypatch.setattr("jsonckpt._src.storage.commit.remove_directories", lambda _: None)


def _names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def _killed_first_save(path: Path) -> list[str]:
    jsonckpt.save(STATE, path, max_shard_size=700)
    (path / "manifest.json").rename(path / ".manifest-0123456789ab.tmp")
    return _names(path)


# --- a directory without manifest ---------------------------------------------------------------


def test_a_first_save_that_was_killed_is_removed_with_consent(tmp_path: Path) -> None:
    path = tmp_path / "c"
    left = _killed_first_save(path)
    with pytest.raises(jsonckpt.IncompleteCheckpointError) as caught:
        jsonckpt.gc(path, older_than=0)
    assert left[0] in str(caught.value)
    assert "recover" in str(caught.value)
    assert "--abandoned" in str(caught.value)
    assert jsonckpt.gc(path, older_than="1h", abandoned=True).removed == ()
    report = jsonckpt.gc(path, older_than=0, abandoned=True, dry_run=True)
    assert sorted(report.removed) == left == _names(path)
    assert sorted(jsonckpt.gc(path, older_than=0, abandoned=True).removed) == left
    assert _names(path) == []
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        jsonckpt.gc(path, older_than=0, abandoned=True)


def test_only_the_manifest_of_a_killed_save_is_left(tmp_path: Path) -> None:
    path = tmp_path / "c"
    for name in _killed_first_save(path):
        if name.startswith("shard-"):
            (path / name).unlink()
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="did not finish"):
        jsonckpt.gc(path, older_than=0)
    assert jsonckpt.gc(path, older_than=0, abandoned=True).removed == (
        ".manifest-0123456789ab.tmp",
    )


@pytest.mark.parametrize("other", ["notes.txt", "shard-foreign-00001.json", "sub/"])
def test_a_directory_that_holds_anything_else_is_not_touched(tmp_path: Path, other: str) -> None:
    path = tmp_path / "c"
    _killed_first_save(path)
    if other.endswith("/"):
        (path / other).mkdir()
    else:
        (path / other).write_text("mine")
    before = _names(path)
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match=other.strip("/")):
        jsonckpt.gc(path, older_than=0, abandoned=True)
    assert _names(path) == before


def test_consent_changes_nothing_where_a_checkpoint_is(tmp_path: Path) -> None:
    path = tmp_path / "c"
    jsonckpt.save(STATE, path)
    assert jsonckpt.gc(path, older_than=0, abandoned=True).removed == ()
    manifest = path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    before = _names(path)
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="cannot be read"):
        jsonckpt.gc(path, older_than=0, abandoned=True)
    assert _names(path) == before
    assert jsonckpt.verify(path).problems


# --- a single file that is missing ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["c.json", "c.json.zst", "y" * 120 + ".json"])
def test_what_is_left_of_a_missing_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    with monkeypatch.context() as patch:
        _no_cleaning(patch)
        patch.setattr("jsonckpt._src.storage.commit.commit", _kill)
        with pytest.raises(_Killed):
            jsonckpt.save(STATE, path)
    [left] = _names(tmp_path)
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match="--abandoned") as caught:
        jsonckpt.gc(path, older_than=0)
    assert left in str(caught.value)
    assert jsonckpt.recover(path, tmp_path / "new")
    shutil.rmtree(tmp_path / "new")
    assert jsonckpt.gc(path, older_than=0, abandoned=True).removed == (left,)
    assert _names(tmp_path) == []
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match="no such file or directory"):
        jsonckpt.gc(path, older_than=0, abandoned=True)


def _kill(*_: Any, **__: Any) -> Any:
    raise _Killed


# --- spools and conversions -----------------------------------------------------------------------


@pytest.mark.parametrize("out", ["out", "o" * 120])
def test_a_killed_recover_leaves_no_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    path = tmp_path / "c.json.zst"
    jsonckpt.save(STATE, path)
    with monkeypatch.context() as patch:
        _no_cleaning(patch)
        patch.setattr(spool.SpoolFile, "write", _kill)
        patch.setattr(spool.SpoolFile, "close", lambda _: None)
        with pytest.raises(_Killed):
            jsonckpt.recover(path, tmp_path / out)
    assert _names(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["c.pt", "c.safetensors", "p" * 120 + ".pt"])
def test_the_temporary_file_of_a_killed_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    jsonckpt.save(STATE, tmp_path / "c.json")
    target = tmp_path / name
    with monkeypatch.context() as patch:
        _no_cleaning(patch)
        patch.setattr("jsonckpt._src.storage.commit.commit", _kill)
        with pytest.raises(_Killed):
            convert([str(tmp_path / "c.json"), "--output", str(target)])
    [left] = [found for found in _names(tmp_path) if found != "c.json"]
    assert jsonckpt.gc(target, older_than=0, dry_run=True).removed == (left,)
    convert([str(tmp_path / "c.json"), "--output", str(target)])
    (tmp_path / ".other.pt.0123456789ab.tmp").touch()
    assert jsonckpt.gc(target, older_than=0).removed == (left,)
    assert _names(tmp_path) == sorted([".other.pt.0123456789ab.tmp", "c.json", name])


# --- the command ----------------------------------------------------------------------------------


def test_the_command_asks_for_consent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c"
    left = _killed_first_save(path)
    assert main.main(["gc", str(path), "--older-than", "0s"]) == 1
    assert "--abandoned" in capsys.readouterr().err
    assert main.main(["gc", str(path), "--older-than", "0s", "--abandoned", "--json"]) == 0
    assert sorted(json.loads(capsys.readouterr().out)["removed"]) == left
