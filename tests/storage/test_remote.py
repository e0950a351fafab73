"""Checkpoints behind URLs, on the file system in memory that fsspec brings along."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import training
from jsonckpt._src.commands.convert import main
from jsonckpt.convert import convert
from tests.support import same

fsspec = pytest.importorskip("fsspec")

OLD = {"w": torch.arange(40.0), "b": [torch.ones(3)], "epoch": 1}
NEW = {"w": torch.arange(40.0) + 1, "b": [torch.zeros(3)], "epoch": 2}


@pytest.fixture(params=["c", "c.json", "c.json.zst"])
def url(request: pytest.FixtureRequest) -> str:
    return f"memory://{uuid.uuid4().hex}/{request.param}"


def names(url: str) -> list[str]:
    fs, path = fsspec.core.url_to_fs(url)
    return sorted(name.rpartition("/")[2] for name in fs.find(path))


def test_there_and_back(url: str) -> None:
    options: dict[str, Any] = {"max_shard_size": 100, "chunk_size": 32, "metadata": {"run": 1}}
    first = jsonckpt.save(OLD, url, **options)
    assert first.path == url
    assert first.durability == "best-effort"
    second = jsonckpt.save(NEW, url, **options)
    assert names(url) == sorted(second.files)
    assert same(jsonckpt.load(url), NEW)
    assert [name for name, _ in jsonckpt.stream(url)] == ["/w", "/b/0"]
    with jsonckpt.open(url) as checkpoint:
        assert checkpoint.metadata == {"run": 1}
        assert checkpoint["/w"][3:5].tolist() == [4, 5]
    assert jsonckpt.verify(url)
    target = {"w": torch.zeros(40), "b": [torch.ones(3)], "epoch": 0}
    jsonckpt.load_into(target, url)
    assert same(target, NEW)


def test_overwrite_false(url: str) -> None:
    jsonckpt.save(OLD, url, overwrite=False)
    with pytest.raises(jsonckpt.CheckpointExistsError):
        jsonckpt.save(NEW, url, overwrite=False)
    assert same(jsonckpt.load(url), OLD)


def test_nothing_there(url: str) -> None:
    for read in (jsonckpt.load, jsonckpt.open, jsonckpt.verify, lambda u: [*jsonckpt.stream(u)]):
        with pytest.raises(jsonckpt.CheckpointNotFoundError):
            read(url)


def test_a_shard_that_is_gone() -> None:
    url = f"memory://{uuid.uuid4().hex}/c"
    result = jsonckpt.save(OLD, url)
    fs, path = fsspec.core.url_to_fs(url)
    fs.rm_file(f"{path}/{result.files[0]}")
    with pytest.raises(jsonckpt.IncompleteCheckpointError):
        jsonckpt.load(url)


def test_another_programs_directory() -> None:
    url = f"memory://{uuid.uuid4().hex}/c"
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(f"{path}/manifest.json", b'{"name": "a web page"}')
    with pytest.raises(jsonckpt.CheckpointExistsError):
        jsonckpt.save(NEW, url)


def test_a_protocol_that_is_not_there() -> None:
    with pytest.raises(jsonckpt.JsonckptError, match="cannot open this URL"):
        jsonckpt.load("abacus://x/c")


def test_a_url_that_pathlib_took_a_slash_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be a directory of the name ``s3:``."""
    monkeypatch.chdir(tmp_path)
    url, here = Path("memory://x/c.json"), tmp_path / "c.json"
    jsonckpt.save(OLD, here)
    calls: list[Callable[[], Any]] = [
        lambda: jsonckpt.save(OLD, url),
        lambda: jsonckpt.save(OLD, str(url)),
        lambda: jsonckpt.save(OLD, Path("s3://bucket/run")),
        lambda: jsonckpt.save_async(OLD, url),
        lambda: jsonckpt.load(url),
        lambda: jsonckpt.open(url),
        lambda: list(jsonckpt.stream(url)),
        lambda: jsonckpt.load_into(dict(OLD), url),
        lambda: jsonckpt.verify(url),
        lambda: jsonckpt.recover(url, tmp_path / "new"),
        lambda: jsonckpt.recover(here, url),
        lambda: jsonckpt.gc(url),
        lambda: training.latest(url.parent),
        lambda: training.checkpoints(Path("s3://bucket")),
        lambda: convert(url, tmp_path / "new.json"),
        lambda: convert(here, url),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(jsonckpt.JsonckptError, match=r"a URL.*string that"):
            call()
        assert [path.name for path in tmp_path.iterdir()] == ["c.json"], number
    assert main(["memory:/x/c.json", "-o", "new.json"]) == 2
    jsonckpt.save(OLD, "./s3:/run")  # one that is meant
    assert same(jsonckpt.load(tmp_path / "s3:" / "run"), OLD)


def test_what_lies_there_decides_not_its_name() -> None:
    base = f"memory://{uuid.uuid4().hex}"
    jsonckpt.save(OLD, f"{base}/c.json")
    jsonckpt.save(NEW, f"{base}/run")
    fs, path = fsspec.core.url_to_fs(base)
    fs.copy(f"{path}/c.json", f"{path}/model.ckpt")
    fs.copy(f"{path}/run", f"{path}/odd.json", recursive=True)
    assert same(jsonckpt.load(f"{base}/model.ckpt"), OLD)
    assert same(jsonckpt.load(f"{base}/odd.json"), NEW)
    assert same(jsonckpt.load(f"{base}/odd.json/manifest.json"), NEW)
    assert jsonckpt.verify(f"{base}/model.ckpt").ok


def test_the_newest_behind_a_url() -> None:
    run = f"memory://{uuid.uuid4().hex}/run"
    assert training.latest(run) is None
    for name, step in (("checkpoint-9", 9), ("checkpoint-10", 10), ("iter_8.json", 8)):
        jsonckpt.save({**OLD, "step": step}, f"{run}/{name}")
    fs, path = fsspec.core.url_to_fs(run)
    fs.pipe_file(f"{path}/checkpoint_notes.json", b"{}")
    with pytest.warns(RuntimeWarning, match=r"checkpoint_notes.json is skipped"):
        found = training.checkpoints(run)
    assert found == [f"{run}/iter_8.json", f"{run}/checkpoint-9", f"{run}/checkpoint-10"]
    fs.rm_file(f"{path}/checkpoint_notes.json")
    assert training.latest(run) == f"{run}/checkpoint-10"
    assert training.latest(run.rpartition("/")[0], "*/checkpoint-9") == f"{run}/checkpoint-9"
    assert jsonckpt.load(training.latest(run))["step"] == 10


def test_files_of_this_machine_behind_a_url(tmp_path: Path) -> None:
    for name in ("a/b/c", "d/c.json"):
        url = f"file://{tmp_path}/{name}"
        for state in (OLD, NEW):
            result = jsonckpt.save(state, url)
        assert same(jsonckpt.load(url), NEW)
        assert same(jsonckpt.load(tmp_path / name), NEW)
        found = tmp_path / name
        inside = os.listdir(found if found.is_dir() else found.parent)
        assert sorted(inside) == sorted(result.files)
