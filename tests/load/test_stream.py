"""``stream``: tensor by tensor, forward only."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest
import torch

import jsonckpt
from tests.readers import Trickle
from tests.support import same

STATE = {"a": torch.arange(5), "b": [torch.ones(2), torch.zeros(0)], "epoch": 1}
NAMES = ["/a", "/b/0", "/b/1"]


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_in_the_order_of_the_state(tmp_path: Path, name: str) -> None:
    jsonckpt.save(STATE, tmp_path / name, max_shard_size=30)
    found = list(jsonckpt.stream(tmp_path / name))
    assert [name for name, _ in found] == NAMES
    assert same([tensor for _, tensor in found], [STATE["a"], *STATE["b"]])  # type: ignore[misc]
    assert [name for name, _ in jsonckpt.stream(tmp_path / name, exclude="/b/0")] == NAMES[::2]


def test_from_file_objects() -> None:
    buffer = io.BytesIO()
    jsonckpt.save(STATE, buffer)
    for source in (io.BytesIO(buffer.getvalue()), Trickle(io.BytesIO(buffer.getvalue()), 3)):
        assert [name for name, _ in jsonckpt.stream(source)] == NAMES


def test_a_lone_shard(tmp_path: Path) -> None:
    result = jsonckpt.save(STATE, tmp_path)
    (tmp_path / "manifest.json").unlink()
    found = dict(jsonckpt.stream(tmp_path / result.files[0]))
    assert list(found) == NAMES
    assert same(found["/a"], STATE["a"])


def test_tensors_come_before_the_end_is_known() -> None:
    buffer = io.BytesIO()
    jsonckpt.save({str(n): torch.full((9,), n) for n in range(2_000)}, buffer)
    cut = io.BytesIO(buffer.getvalue()[:-1_000])
    tensors = jsonckpt.stream(cut)
    first = list(itertools.islice(tensors, 10))
    assert [int(tensor[0]) for _, tensor in first] == list(range(10))
    with pytest.raises(jsonckpt.IncompleteCheckpointError):
        list(tensors)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        list(jsonckpt.stream(tmp_path / "c"))
