"""A small state to damage, and the look at what ``recover`` made of it."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import torch

import jsonckpt
from jsonckpt._src.format.model import Entry

__all__ = ["check_recovered", "entries_of", "small", "tensors_of"]


def small() -> dict[str, Any]:
    tied = torch.arange(5, dtype=torch.float32)
    return {
        "model": collections.OrderedDict(w=tied, b=torch.tensor([1.5, -2.5]), tied=tied),
        "n": [torch.tensor([7], dtype=torch.uint8), 3, (torch.zeros(2), "x")],
        "none": torch.zeros(0),
        "lr": 0.001,
    }


def entries_of(path: Path) -> list[Entry]:
    with jsonckpt.open(path) as checkpoint:
        return list(checkpoint.manifest.entries)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with jsonckpt.open(path) as checkpoint:
        return {name: checkpoint[name].load() for name in checkpoint}


def check_recovered(
    out: Path, report: jsonckpt.RecoverReport, original: dict[str, torch.Tensor]
) -> None:
    """What was restored is what was saved, and the new checkpoint is whole."""
    assert jsonckpt.verify(out)
    with jsonckpt.open(out) as checkpoint:
        assert tuple(checkpoint.manifest.by_name) == report.recovered
        for name in checkpoint:
            tensor = checkpoint[name].load()
            assert tensor.dtype == original[name].dtype
            assert torch.equal(tensor, original[name])
