"""Tensors in a mapped temporary file."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Final

import torch

from ..storage.spool import Spool
from ..tensors.pieces import over

#: The hint when temporary files have no room.
ROOM_HINT: Final = "Name a directory with more room by --spool."


def tensor_spool(directory: Path) -> Spool:
    """Memory for tensors in a mapped file under ``directory``."""
    return Spool(directory, ROOM_HINT)


def new_tensor(spool: Spool, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """A contiguous tensor of zeros in a spool."""
    return over(spool.allocate(prod(shape) * dtype.itemsize), dtype, shape)
