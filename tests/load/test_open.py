"""``open``: looking into a checkpoint, and reading parts of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from tests.support import same

TIED = torch.ones(2, 2)
STATE: dict[str, Any] = {
    "w": torch.arange(60.0).reshape(10, 3, 2),
    "scalar": torch.tensor(7),
    "tied": [TIED, TIED],
    "array": np.arange(3.0),
    "epoch": 3,
}


@pytest.fixture(params=["c", "c.json", "c.json.zst"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = tmp_path / request.param
    jsonckpt.save(STATE, path, chunk_size=32, max_shard_size=200, metadata={"run": 5})
    return path


def test_a_mapping_of_names(path: Path) -> None:
    with jsonckpt.open(path) as checkpoint:
        assert isinstance(checkpoint, Mapping)
        assert list(checkpoint) == ["/w", "/scalar", "/tied/0", "/tied/1", "/array"]
        assert len(checkpoint) == 5
        assert "/w" in checkpoint
        assert "/x" not in checkpoint
        with pytest.raises(KeyError):
            checkpoint["/x"]
        assert checkpoint.metadata == {"run": 5}
        assert checkpoint.manifest.checksum == "xxh3_128"
        entry = checkpoint["/w"]
        assert (entry.name, entry.dtype, entry.device) == ("/w", torch.float32, "cpu")
        assert entry.shape == torch.Size([10, 3, 2])
        assert (entry.nbytes, len(entry)) == (240, 10)
        assert repr(entry) == "TensorEntry('/w', torch.float32, [10, 3, 2])"
        assert entry.codec.encoding == "base64"


def test_reading(path: Path) -> None:
    with jsonckpt.open(path) as checkpoint:
        assert same(checkpoint["/w"].load(), STATE["w"])
        assert same(checkpoint["/tied/1"].load(), TIED)
        assert checkpoint["/w"].load("meta").device.type == "meta"
        assert same(checkpoint.load(), STATE)
        assert list(checkpoint.load(include="/w")["w"].shape) == [10, 3, 2]
        lazy = checkpoint.state()
        assert isinstance(lazy["w"], jsonckpt.TensorEntry)
        assert lazy["epoch"] == 3
        assert same(lazy["array"], STATE["array"])
        assert same(lazy["tied"][1].load(), TIED)


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        slice(None),
        slice(2, 7),
        slice(-3, None, 2),
        slice(8, 2),
        slice(0, 99),
        (slice(1, 4), 2),
        (3, slice(None), 1),
        ...,
        None,
        (..., 0),
        (),
        (slice(1, 3), ..., 0),
        [1, 4],
        torch.tensor([0, 9]),
        (None, 2),
    ],
    ids=str,
)
def test_parts(path: Path, key: Any) -> None:
    with jsonckpt.open(path) as checkpoint:
        part, expected = checkpoint["/w"][key], STATE["w"][key]
        assert part.shape == expected.shape
        assert torch.equal(part, expected)


def test_what_cannot_be_indexed(path: Path) -> None:
    with jsonckpt.open(path) as checkpoint:
        for key in (10, -11, (0, 3)):
            with pytest.raises(IndexError):
                checkpoint["/w"][key]
        with pytest.raises(ValueError, match="step"):
            checkpoint["/w"][::-1]
        with pytest.raises(TypeError, match="without dimensions"):
            len(checkpoint["/scalar"])


def test_a_part_reads_only_its_chunks(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"w": torch.zeros(4, 6, dtype=torch.uint8)}, path, chunk_size=6)
    text = path.read_bytes()
    at = text.rindex(b'"AAAA')
    path.write_bytes(text[: at + 1] + b"B" + text[at + 2 :])
    with jsonckpt.open(path) as checkpoint:
        assert checkpoint["/w"][:3].tolist() == [[0] * 6] * 3
        with pytest.raises(jsonckpt.IntegrityError, match="chunk 3"):
            checkpoint["/w"][3]
    with jsonckpt.open(path, verify=False) as checkpoint:
        assert checkpoint["/w"][3, 0] == 4


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    result = jsonckpt.save(STATE, tmp_path)
    for name in result.files[:-1]:
        os.unlink(tmp_path / name)
    with jsonckpt.open(tmp_path) as checkpoint:
        assert checkpoint["/w"].nbytes == 240
        with pytest.raises(jsonckpt.IncompleteCheckpointError):
            checkpoint["/w"].load()
        with pytest.raises(jsonckpt.IncompleteCheckpointError):
            checkpoint["/w"][0]
