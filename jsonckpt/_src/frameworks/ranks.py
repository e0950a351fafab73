"""What the ranks of a job tell each other about a checkpoint, without a pickle."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import WriteError
from ..load.api import load
from ..save.api import save


def gather_values(accelerator: Any, value: Any) -> list[Any]:
    """What each rank passed, in the order of the ranks. All ranks call it.

    Args:
        accelerator: the ``Accelerator`` of the job.
        value: a small state: what :func:`jsonckpt.save` takes, with tensors on the CPU.
    """
    if accelerator.num_processes == 1:
        return [value]
    file = io.BytesIO()
    save(value, file)
    text = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    sizes = accelerator.gather(torch.tensor([len(text)], device=accelerator.device)).tolist()
    padded = torch.zeros(1, max(sizes), dtype=torch.uint8)
    padded[0, : len(text)] = text
    rows = accelerator.gather(padded.to(accelerator.device)).cpu()
    return [load(io.BytesIO(row[:size].numpy().tobytes())) for row, size in zip(rows, sizes)]


@contextmanager
def together(accelerator: Any) -> Iterator[None]:
    """A part of a save that fails on all ranks if it fails on one. All ranks come to its end.

    Raises:
        WriteError: it failed on another rank. On that rank, its own error is raised.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:  # the other ranks must learn of it first
        error = caught
    failed: list[bool] = [error is not None]
    if accelerator.num_processes > 1:
        mine = torch.tensor(failed, dtype=torch.uint8, device=accelerator.device)
        failed = [bool(one) for one in accelerator.gather(mine).tolist()]
    if error is not None:
        raise error
    if any(failed):
        raise WriteError(
            f"rank {failed.index(True)} could not save the checkpoint",
            hint="The error of that rank says why.",
        )
