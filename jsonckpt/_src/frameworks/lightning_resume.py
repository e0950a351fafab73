"""``ExactResume``: the callback of Lightning that saves and restores random numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from ..training.rng import rng_state, set_rng_state
from .lightning_io import JsonCheckpointIO, unfit, unfit_error
from .lightning_parts import Callback


class ExactResume(Callback):
    """A resumed run draws the random numbers that the uninterrupted one would have drawn.

    ``Trainer(callbacks=[ExactResume(), …], plugins=[JsonCheckpointIO()])``. The states of the
    generators (Python, NumPy, torch, each CUDA device) of every rank go into each checkpoint, and
    come back when ``fit(ckpt_path=…)`` goes on: before the data loader begins where an epoch was
    complete, after it has begun where it was not. It works with every ``CheckpointIO``.

    From the end of an epoch a run goes on bit for bit. In the middle of one, the data loader must
    keep its place: torchdata's ``StatefulDataLoader`` does. ``save_weights_only=True`` leaves the
    states of all callbacks out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._restored: Mapping[str, Any] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget what an earlier ``fit`` has restored.

        Raises:
            JsonckptError: the strategy does not use the plug-in for JSON.
        """
        del pl_module, stage
        self._restored = None
        plugin = getattr(trainer.strategy, "_checkpoint_io", None)
        if (name := unfit(trainer.strategy)) and isinstance(plugin, JsonCheckpointIO):
            raise unfit_error(name, type(plugin).__name__)

    def state_dict(self) -> dict[str, Any]:
        """The states of the generators of all ranks."""
        own = rng_state()
        ranks: list[Any] = [own]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            ranks = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, own)
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training begins."""
        self._restored = state_dict

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Before the data loader begins."""
        del pl_module
        self._restore(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """After the data loader has begun, which drew a number."""
        del pl_module
        if _goes_on_inside_epoch(trainer.fit_loop):
            self._restore(trainer)
        self._restored = None

    def _restore(self, trainer: Any) -> None:
        if self._restored is None:
            return
        ranks = self._restored.get("ranks", [])
        if len(ranks) != trainer.world_size:
            warnings.warn(
                f"the random states are not restored: they were saved on {len(ranks)} ranks, and "
                f"there are {trainer.world_size} now",
                stacklevel=2,
            )
            self._restored = None
            return
        set_rng_state(ranks[trainer.global_rank])


def _goes_on_inside_epoch(loop: Any) -> bool:
    """Whether the data loader that has just begun continues an epoch, or is begun once more."""
    inside = loop.epoch_loop
    after_last = inside.batch_progress.is_last_batch and getattr(
        inside, "restarted_on_train_batch_end", False
    )
    return loop.restarting and not after_last
