"""A small training run on Accelerate, in a process of its own or in that of a test."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed

import jsonckpt
from jsonckpt.integrations.accelerate import JsonAccelerator

BATCHES = 5


class Run:
    """A model, its optimizer, its schedule and its data, prepared.

    Args:
        kind: the class of the accelerator.
    """

    def __init__(
        self,
        kind: Callable[..., Any] = JsonAccelerator,
        *,
        workers: int = 0,
        stateful: bool = True,
        seedable: bool = True,
        scaled: bool = False,
        **options: Any,
    ) -> None:
        AcceleratorState._reset_state(not torch.distributed.is_initialized())
        GradientState._reset_state()
        set_seed(3)
        self.accelerator = kind(
            cpu=True,
            dataloader_config=DataLoaderConfiguration(
                use_seedable_sampler=seedable, use_stateful_dataloader=stateful
            ),
            **options,
        )
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        ranks = self.accelerator.num_processes
        x = torch.randn(4 * BATCHES * ranks, 4, generator=torch.Generator().manual_seed(0))
        data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
        loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, num_workers=workers)
        self.model, self.optimizer, self.scheduler, self.loader = self.accelerator.prepare(
            model, optimizer, scheduler, loader
        )
        if scaled:
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        self.count = self.epoch = 0

    def train(
        self, epochs: int = 3, *, save_at: int | None = None, stop: bool = False, to: str = ""
    ) -> list[float]:
        """The losses.

        Args:
            save_at: the number of steps after which to save to ``to``; a negative one says after
                which epoch.
            stop: stop after that.
        """
        losses = []
        while self.epoch < epochs:
            for x, y in self.loader:
                with self.accelerator.accumulate(self.model):
                    loss = torch.nn.functional.mse_loss(self.model(x), y)
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.scheduler.step()
                    self.optimizer.zero_grad()
                losses.append(loss.item())
                self.count += 1
                if self.count == save_at:
                    self.save(to, self.epoch + self.loader.end_of_dataloader)
                    if stop:
                        return losses
            self.epoch += 1
            if save_at == -self.epoch:
                self.save(to, self.epoch)
                if stop:
                    return losses
        return losses

    def save(self, to: str, epoch: int) -> None:
        self.accelerator.save_state(to, extra={"epoch": epoch, "count": self.count})

    def load(self, path: str) -> None:
        torch.rand(7)  # another state than that of a new run
        extra = self.accelerator.load_state(path)
        self.epoch, self.count = extra["epoch"], extra["count"]

    def digest(self) -> str:
        """Of the weights, the moments and what is drawn next."""
        tensors = [*self.model.state_dict().values(), torch.rand(3)]
        for state in self.optimizer.state_dict()["state"].values():
            tensors += state.values()
        return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def main() -> None:
    """Two ranks: a run that does not stop, one that does, and one that goes on."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group(
        "gloo", init_method=os.environ["STORE"], rank=rank, world_size=ranks
    )
    whole = Run()
    losses = whole.train()
    digest = whole.digest()
    Run().train(save_at=7, stop=True, to="ckpt")
    again = Run()
    again.load("ckpt")
    assert again.train() == losses[7:]
    assert again.digest() == digest
    if rank == 0:
        Path("full").write_text("no directory")
    try:
        again.save("full/ckpt" if rank == 0 else f"own-{rank}", 3)
    except (jsonckpt.WriteError, OSError) as error:
        print(f"ERROR {error}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    print("DONE")


if __name__ == "__main__":
    main()
