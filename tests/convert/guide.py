"""The checkpoint of the guide, and a look at what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from jsonckpt._src.tensors.compare import compare

__all__ = ["DATA", "GUIDE", "files", "guide_state", "same"]

DATA = Path(__file__).parents[1] / "data"
GUIDE = DATA / "guide_checkpoint.pt"


def guide_state() -> Any:
    return torch.load(GUIDE, weights_only=True)


def same(expected: Any, found: Any, *, exact: bool = True) -> None:
    assert compare(expected, found, exact_types=exact).differences == []


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}
