"""Checkpoints of many ranks in the readers that do not use the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.standalone import jsonckpt_reader
from tests import independent_reader
from tests.support import difference
from tests.viewer.node import run
from tools.reliability import jobs


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state with tensors that are split over three ranks, and others."""
    path = tmp_path_factory.mktemp("ranks") / "saved"
    state: dict[str, Any] = {
        "model": {"w": torch.randn(8, 6), "b": torch.randn(5), "half": torch.randn(7, 2).half()},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}},
        "epoch": (1, 2),
    }
    jobs.save_on_ranks(state, path)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["requires"] == ["shared_shards", "regions"]
    assert difference(jsonckpt.load(path), state) is None
    return path


def test_the_standalone_reader(saved: Path) -> None:
    assert difference(jsonckpt_reader.load(saved), jsonckpt.load(saved)) is None


def test_the_independent_reader(saved: Path) -> None:
    assert difference(independent_reader.load(saved), jsonckpt.load(saved)) is None


def test_the_reader_in_javascript(saved: Path, tmp_path: Path) -> None:
    (facts,) = json.loads(run("dump.mjs", tmp_path / "bytes", saved))
    assert "error" not in facts
    assert {"/model/w", "/model/b", "/model/half"} <= set(facts["names"])
