"""The only place where the converter meets the rest of the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..format.limits import Limits

Allocate = Callable[[int], torch.UntypedStorage]


def load_checkpoint(
    path: Path,
    *,
    allocate: Allocate | None = None,
    include: Callable[[str], bool] | None = None,
    progress: bool = False,
    limits: Limits | None = None,
) -> Any:
    """The state of a jsonckpt checkpoint, in memory that ``allocate`` gives."""
    from ..load.api import load_selected
    from ..load.options import ReadOptions, TensorSelection

    selection = TensorSelection.of(include, allocate=allocate)
    return load_selected(path, selection, ReadOptions.of(progress=progress, limits=limits))


def load_opened(checkpoint: Any, *, include: Callable[[str], bool], allocate: Allocate) -> Any:
    """Part of an opened checkpoint's state, in memory that ``allocate`` gives."""
    from ..load.api import load_container
    from ..load.options import TensorSelection

    selection = TensorSelection.of(include, allocate=allocate)
    return load_container(checkpoint._container, selection)


def open_checkpoint(path: Path, limits: Limits | None = None) -> Any:
    """A jsonckpt checkpoint whose tensors are read when they are asked for."""
    from ..load.checkpoint import open_checkpoint as opened

    return opened(path, limits=limits)


def metadata_of(path: Path, limits: Limits | None = None) -> dict[str, Any]:
    """The user's metadata in a jsonckpt checkpoint."""
    with open_checkpoint(path, limits) as checkpoint:
        return dict(checkpoint.metadata)


def save_checkpoint(state: Any, path: Path, *, shared: int, **options: Any) -> int:
    """Write a jsonckpt checkpoint; options as :func:`jsonckpt.save` has them.

    Args:
        shared: what group and others may be allowed at most.

    Returns:
        the bytes on disk.
    """
    from ..save.api import save_privately

    return save_privately(state, path, shared=shared, **options).stored_bytes
