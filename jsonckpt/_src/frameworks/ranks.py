"""What the ranks of a job tell each other about a checkpoint, without a pickle."""

from __future__ import annotations

import io
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


def raise_on_all(accelerator: Any, error: Exception | None) -> None:
    """Raise the error of a rank on that rank, and on all others one that names the rank.

    Raises:
        WriteError: another rank could not write.
    """
    failed: list[bool] = [error is not None]
    if accelerator.num_processes > 1:
        mine = torch.tensor(failed, dtype=torch.uint8, device=accelerator.device)
        failed = [bool(one) for one in accelerator.gather(mine).tolist()]
    if error is not None:
        raise error
    if any(failed):
        rank = failed.index(True)
        raise WriteError(
            f"rank {rank} could not save the checkpoint", hint="The error of that rank says why."
        )
