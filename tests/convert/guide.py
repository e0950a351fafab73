"""The checkpoint of the guide, and a look at what became of it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from jsonckpt._src.tensors.compare import compare

__all__ = ["DATA", "GUIDE", "files", "guide_state", "same", "unpacked"]

DATA = Path(__file__).parents[1] / "data"
GUIDE = DATA / "guide_checkpoint.pt"


def guide_state() -> Any:
    return torch.load(GUIDE, weights_only=True)


def same(expected: Any, found: Any, *, exact: bool = True) -> None:
    assert compare(expected, found, exact_types=exact).differences == []


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def unpacked(source: Path, target: Path) -> Path:
    """Unpack a ``.pt`` into a directory, as a site does."""
    with zipfile.ZipFile(source) as archive:
        for name in archive.namelist():
            place = target / name.split("/", 1)[1]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(archive.read(name))
    return target
