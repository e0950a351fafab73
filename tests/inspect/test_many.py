"""Checkpoints of very many tensors."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt._src.cli.main import main
from jsonckpt._src.inspect.statistics import StatisticsSink


def test_a_sink_that_waits_takes_little_memory() -> None:
    """A file has one for each tensor, and most of them wait."""
    tracemalloc.start()
    try:
        sinks = [StatisticsSink("float32", 4, lambda _: None) for _ in range(1_000)]
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(sinks) == 1_000
    assert used < 2_000_000


def test_many_tensors_are_listed_whole_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {f"layers.{number}.w": torch.full((1,), float(number)) for number in range(300)}
    jsonckpt.save(state, tmp_path / "c")
    path = str(tmp_path / "c")
    assert main(["inspect", path]) == 0
    shown = capsys.readouterr().out
    assert "and 250 more tensors: --tensors lists all" in shown
    assert main(["inspect", path, "--tensors"]) == 0
    assert capsys.readouterr().out.count("float32") == 300
    assert main(["inspect", path, "--depth", "2"]) == 0
    assert "271 other groups" in capsys.readouterr().out
    assert (
        main(["inspect", path, "--stats", "--match", "/layers.7.w", "--match", "/layers.8.w"]) == 0
    )
    shown = capsys.readouterr().out
    assert "min 7  max 7  mean 7  std 0  norm 7  zeros 0  NaN 0  Inf 0" in shown
    assert shown.count("norm") == 2
    assert main(["inspect", path, "--tree"]) == 0
    assert "260 more" in capsys.readouterr().out
