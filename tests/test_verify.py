"""``verify``: every problem, each with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import jsonckpt

STATE = {name: torch.zeros(12, dtype=torch.uint8) for name in "abc"}


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_in_order(tmp_path: Path, name: str) -> None:
    jsonckpt.save(STATE, tmp_path / name, max_shard_size=12)
    report = jsonckpt.verify(tmp_path / name)
    assert report
    assert report.ok
    assert (report.tensors, report.nbytes) == (3, 36)
    assert report.files == (4 if name == "c" else 1)
    assert report.problems == ()
    assert "ok, 3 tensors, 36 bytes" in str(report)


def test_every_damaged_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(STATE, path, chunk_size=6)
    text = path.read_bytes().split(b'"AAAA')
    assert len(text) == 7
    # The second chunk of the first tensor, the first chunk of the third.
    path.write_bytes(
        b'"AAAA'.join(text[:2])
        + b'"BAAA'
        + b'"AAAA'.join(text[2:5])
        + b'"BAAA'
        + b'"AAAA'.join(text[5:])
    )
    report = jsonckpt.verify(path)
    assert not report
    assert [(p.tensor, p.chunk) for p in report.problems] == [("/a", 1), ("/c", 0)]
    assert all(type(p) is jsonckpt.IntegrityError for p in report.problems)
    assert all(p.file == str(path) for p in report.problems)
    assert str(report).count("\n") == 2


def test_missing_shards_and_manifests(tmp_path: Path) -> None:
    result = jsonckpt.save(STATE, tmp_path, max_shard_size=12)
    (tmp_path / result.files[0]).unlink()
    (tmp_path / result.files[2]).unlink()
    report = jsonckpt.verify(tmp_path)
    assert [type(p).__name__ for p in report.problems] == ["IncompleteCheckpointError"] * 2
    (tmp_path / "manifest.json").write_text("{")
    assert [type(p).__name__ for p in jsonckpt.verify(tmp_path).problems] == ["FormatError"]
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        jsonckpt.verify(tmp_path / "nothing")
