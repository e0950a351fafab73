"""Two states, one saved over the other, and the options that cut them into many pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

__all__ = ["KINDS", "NEW", "OLD", "OPTIONS", "files"]

OLD = {"a": torch.arange(50.0), "b": torch.zeros(30, dtype=torch.int16), "epoch": 1}
NEW = {"a": torch.arange(50.0) + 1, "b": torch.ones(30, dtype=torch.int16), "epoch": 2}
#: Two shards, several chunks in each, and one call of the system after the other.
OPTIONS: dict[str, Any] = {"chunk_size": 64, "max_shard_size": 300, "threads": 1}
#: A name for each kind of checkpoint: a directory, a file, a compressed file.
KINDS = ["c", "c.json", "c.json.zst"]


def files(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())
