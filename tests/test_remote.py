"""Checkpoints behind URLs, on the file system in memory that fsspec brings along."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import torch

import jsonckpt
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
