"""Several processes that train one model: who writes, and how they agree."""

from __future__ import annotations

from typing import Any

from ..errors import JsonckptError


class Ranks:
    """The ranks of a distributed job. Rank 0 writes.

    Args:
        group: a process group whose ranks all call the same methods of their managers. Then they
            decide together when to save and when to stop. ``None``: nothing is exchanged.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group

    @property
    def together(self) -> bool:
        """Whether all ranks call the same methods."""
        return self._group is not None

    @property
    def writes(self) -> bool:
        """Whether this process writes the checkpoints."""
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return True
        return bool(dist.get_rank(self._group) == 0)

    def any_of(self, *flags: bool) -> list[bool]:
        """Each flag: whether it is set on any rank."""
        if not self.together:
            return list(flags)
        return [number > 0 for number in self._largest([int(flag) for flag in flags])]

    def check_same(self, number: int | None, what: str) -> None:
        """Check that all ranks have the same number.

        Raises:
            JsonckptError: they have not.
        """
        if not self.together:
            return
        mine = -1 if number is None else number
        most, least = self._largest([mine, -mine])
        if most != -least:
            raise JsonckptError(
                f"the ranks have restored different {what}: from {-least} to {most}",
                hint="All ranks must see the same directory.",
            )

    def _largest(self, values: list[int]) -> list[int]:
        import torch
        import torch.distributed as dist

        device = "cuda" if dist.get_backend(self._group) == "nccl" else "cpu"
        tensor = torch.tensor(values, dtype=torch.int64, device=device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group)
        return [int(value) for value in tensor.tolist()]
