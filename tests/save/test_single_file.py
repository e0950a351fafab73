"""``single_file``: one file, or a directory, under any name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

import jsonckpt
from tests.support import same

STATE = {"w": torch.arange(5_000.0), "step": 7}
NAMES = ["last.ckpt", "epoch=1-step=7.ckpt", "model.pt", "no-ending", "a.b.c"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("save", ["save", "save_async"])
def test_one_file_under_any_name(tmp_path: Path, name: str, save: str) -> None:
    path = tmp_path / name
    result: Any = getattr(jsonckpt, save)(STATE, path, single_file=True)
    result = result.result() if save == "save_async" else result
    assert path.is_file()
    assert result.files == (name,)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert same(jsonckpt.load(path), STATE)
    with jsonckpt.open(path) as opened:
        assert same(opened["/w"][7:9], STATE["w"][7:9])  # type: ignore[index]
    assert same(dict(jsonckpt.stream(path)), {"/w": STATE["w"]})
    target = {"w": torch.zeros(5_000), "step": 0}
    assert jsonckpt.load_into(target, path).loaded == ("/w",)
    assert same(target, STATE)
    assert jsonckpt.verify(path).ok


@pytest.mark.parametrize("encoding", ["base64", "list"])
def test_the_content_says_that_it_is_compressed(tmp_path: Path, encoding: str) -> None:
    jsonckpt.save(STATE, tmp_path / "c.json", encoding=encoding)
    path = tmp_path / "last.ckpt"
    path.write_bytes(zstandard.compress((tmp_path / "c.json").read_bytes()))
    assert same(jsonckpt.load(path), STATE)
    with jsonckpt.open(path) as opened:
        assert same(opened["/w"][7:9], STATE["w"][7:9])  # type: ignore[index]
    assert jsonckpt.verify(path, deep=True).ok
    assert [found.valid for found in jsonckpt.find(tmp_path)] == [True, True]
    assert jsonckpt.recover(path, tmp_path / "new.json").complete
    path.write_bytes(path.read_bytes()[:-9])
    assert not jsonckpt.verify(path).ok
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="inside a zstd frame"):
        jsonckpt.load(path)


def test_a_name_ending_in_zst_is_compressed(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt.zst"
    jsonckpt.save(STATE, path, single_file=True, encoding="list", compression="zstd")
    assert path.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
    assert same(jsonckpt.load(path), STATE)
    with pytest.raises(jsonckpt.ArgumentError, match=r"ending in \.zst"):
        jsonckpt.save(
            STATE, tmp_path / "c.ckpt", single_file=True, encoding="list", compression="zstd"
        )


def test_a_directory_under_any_name(tmp_path: Path) -> None:
    for name in ("c.json", "c.ckpt"):
        jsonckpt.save(STATE, tmp_path / name, single_file=False)
        assert (tmp_path / name / "manifest.json").is_file()
        assert same(jsonckpt.load(tmp_path / name), STATE)


def test_without_it_such_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(jsonckpt.ArgumentError, match="names a PyTorch file"):
        jsonckpt.save(STATE, tmp_path / "c.ckpt")
    with pytest.raises(jsonckpt.ArgumentError, match="part of a directory"):
        jsonckpt.save(STATE, tmp_path / "manifest.json", single_file=True)
    with pytest.raises(jsonckpt.ArgumentError, match="single_file='yes'"):
        jsonckpt.save(STATE, tmp_path / "c.ckpt", single_file="yes")  # type: ignore[arg-type]
    with (
        open(tmp_path / "pipe", "wb") as file,
        pytest.raises(jsonckpt.ArgumentError, match="cannot be a directory"),
    ):
        jsonckpt.save(STATE, file, single_file=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    jsonckpt.save(STATE, path, single_file=True)
    with pytest.raises(jsonckpt.UnsupportedTypeError):
        jsonckpt.save({"w": object()}, path, single_file=True)
    assert same(jsonckpt.load(path), STATE)
    with pytest.raises(jsonckpt.CheckpointExistsError, match="the file exists"):
        jsonckpt.save(STATE, path, single_file=True, overwrite=False)
    directory = tmp_path / "run"
    jsonckpt.save(STATE, directory)
    with pytest.raises(jsonckpt.CheckpointExistsError):
        jsonckpt.save(STATE, directory, single_file=True)
    assert same(jsonckpt.load(directory), STATE)


def test_edits_keep_the_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    jsonckpt.save({"model": {"module.w": torch.ones(2)}, "step": 1}, path, single_file=True)
    jsonckpt.edit.set_value(path, "/step", 2)
    jsonckpt.edit.rename(path, strip_prefix="module.")
    assert path.is_file()
    assert same(jsonckpt.load(path), {"model": {"w": torch.ones(2)}, "step": 2})


def test_what_a_killed_first_save_left_is_recovered(tmp_path: Path) -> None:
    jsonckpt.save(STATE, tmp_path / "c.json")
    shutil.move(tmp_path / "c.json", tmp_path / ".last.ckpt.0123456789ab.tmp")
    report = jsonckpt.recover(tmp_path / "last.ckpt", tmp_path / "new.json")
    assert report.complete
    assert same(jsonckpt.load(tmp_path / "new.json"), STATE)


def test_remote(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    url = "memory://single_file/last.ckpt"
    jsonckpt.save(STATE, url, single_file=True)
    assert same(jsonckpt.load(url), STATE)
    with jsonckpt.open(url) as opened:
        assert same(opened["/w"][7:9], STATE["w"][7:9])  # type: ignore[index]
    jsonckpt.save(STATE, "memory://single_file/run.json", single_file=False)
    assert same(jsonckpt.load("memory://single_file/run.json"), STATE)
    import fsspec

    jsonckpt.save(STATE, tmp_path / "c.json")
    packed = zstandard.compress((tmp_path / "c.json").read_bytes())
    fsspec.filesystem("memory").pipe_file("/single_file/packed.ckpt", packed)
    assert same(jsonckpt.load("memory://single_file/packed.ckpt"), STATE)
