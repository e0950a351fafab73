"""A manifest that lies about its files' sizes alone: found before anything is allocated.

The size lifts the limit on the total, so whoever allocates first could be made to ask for
terabytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt._src.tensors.buffers import Target


def _optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def _saved(path: Path) -> Path:
    model = torch.nn.Linear(4, 3)
    optimizer = _optimizer(model)
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    base = torch.arange(12.0)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "array": np.arange(8),
        "base": base,
        "view": base[2:7],
    }
    jsonckpt.save(state, path, encoding="list", compression="zstd", sync=False)
    return path


def _lie(path: Path) -> None:
    manifest = path / "manifest.json"
    text = manifest.read_text()
    for shard in json.loads(text)["shards"]:
        assert shard["file"].endswith(".zst")
        told = f'"bytes":{shard["bytes"]},"text_bytes"'
        assert told in text
        text = text.replace(told, f'"bytes":{2**60},"text_bytes"')
    manifest.write_text(text.rpartition('"seal"')[0] + '"seal":null}\n')


def _fresh_optimizer() -> dict[str, Any]:
    model = torch.nn.Linear(4, 3)
    return {"model": model, "optimizer": _optimizer(model)}


def _into(target: Callable[[], dict[str, Any]]) -> Callable[[Path], Any]:
    return lambda path: jsonckpt.load_into(target(), path, strict=False)


DOORS: dict[str, Callable[[Path], Any]] = {
    "load": jsonckpt.load,
    "open": lambda path: jsonckpt.open(path).load(),
    "open_one": lambda path: jsonckpt.open(path)["/base"].load(),
    "open_rows": lambda path: jsonckpt.open(path)["/base"][2:4],
    "stream": lambda path: list(jsonckpt.stream(path)),
    "load_into_array": _into(lambda: {"array": np.zeros(8, np.int64)}),
    "load_into_view": _into(lambda: {"view": torch.zeros(5)}),
    "load_into_optimizer": _into(_fresh_optimizer),
}


@pytest.mark.parametrize("door", DOORS)
def test_nothing_is_allocated(tmp_path: Path, door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _saved(tmp_path / "c")
    DOORS[door](path)
    _lie(path)
    asked: list[tuple[int, ...]] = []

    def allocate(dtype: str, shape: tuple[int, ...], **_: object) -> Any:
        asked.append(shape)
        raise AssertionError(f"{dtype} {shape} was asked for")

    monkeypatch.setattr(Target, "allocate", allocate)
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match=f"the manifest says {2**60}"):
        DOORS[door](path)
    assert not asked


def test_verify_says_so(tmp_path: Path) -> None:
    path = _saved(tmp_path / "c")
    _lie(path)
    report = jsonckpt.verify(path)
    assert any(f"the manifest says {2**60}" in str(problem) for problem in report.problems)


@pytest.mark.parametrize("door", ["load", "load_into"])
def test_a_lie_about_a_file_that_is_not_needed(tmp_path: Path, door: str) -> None:
    """It lifts the limit on the total, for a tensor in a file whose size is true."""
    path = tmp_path / "c"
    state = {"zeros": torch.zeros(1_000_000), "one": torch.ones(100_000)}
    jsonckpt.save(
        state, path, encoding="list", compression="zstd", max_shard_size="1MB", sync=False
    )
    manifest = path / "manifest.json"
    shards = json.loads(manifest.read_text())["shards"]
    assert len(shards) == 2
    lie = manifest.read_text().replace(f'"bytes":{shards[1]["bytes"]}', f'"bytes":{2**50}', 1)
    manifest.write_text(lie.rpartition('"seal"')[0] + '"seal":null}\n')
    limits = jsonckpt.Limits(total_floor=100, expansion=2)
    read: dict[str, Callable[[], Any]] = {
        "load": lambda: jsonckpt.load(path, include="/zeros", limits=limits),
        "load_into": lambda: jsonckpt.load_into(
            {"zeros": torch.zeros(1_000_000)}, path, include="/zeros", limits=limits
        ),
    }
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match=f"the manifest says {2**50}"):
        read[door]()
