"""Small training runs of many kinds, and a program that trains one of them until it is killed.

:func:`main` resumes from the newest checkpoint in a folder, trains, writes each loss, and saves
after every few backward passes. Each process begins with other weights and another random state, so
that whatever is not restored shows.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # an optimizer imports it at its first step, which takes seconds

import jsonckpt
from jsonckpt import training

SAVE_EVERY = 3


@dataclass
class Run:
    """A training run. ``loss()`` runs the next batch forward; the rest is common."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[], torch.Tensor]
    parts: dict[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    autocast: bool = False
    after: Callable[[], None] = lambda: None
    state: jsonckpt.TrainState = field(init=False)

    def __post_init__(self) -> None:
        self.state = jsonckpt.TrainState(
            model=self.model, optimizer=self.optimizer, extra={"done": 0}, **self.parts
        )

    def step(self) -> str:
        """One backward pass, and a step of the optimizer where it is due; the loss in hex."""
        scaler, scheduler = self.parts.get("scaler"), self.parts.get("scheduler")

        def closure() -> torch.Tensor:
            cast = torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext()
            with cast:
                loss = self.loss() / self.accumulate
            torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
            return loss.detach()

        if isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer.zero_grad()
            value = float(self.optimizer.step(closure))  # type: ignore[no-untyped-call]
        else:
            value = float(closure())
            self.state.accumulation_step = (self.state.accumulation_step + 1) % self.accumulate
            if not self.state.accumulation_step:
                if scaler is None:
                    self.optimizer.step()
                else:
                    scaler.step(self.optimizer)
                    scaler.update()
                self.optimizer.zero_grad()
                if scheduler is not None:
                    scheduler.step()
                self.after()
        self.state.extra["done"] += 1
        return value.hex()


def begin(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def net(width: int = 8) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(6, width),
        torch.nn.BatchNorm1d(width),
        torch.nn.Dropout(0.3),
        torch.nn.Linear(width, 1),
    )


def batch_loss(model: torch.nn.Module) -> torch.Tensor:
    """On a batch drawn from all global generators."""
    batch = torch.randn(4, 6) * (1 + random.random()) + float(np.random.rand())
    return torch.nn.functional.mse_loss(model(batch).float(), batch.sum(1, keepdim=True))


def with_optimizer(make: Callable[[Any], torch.optim.Optimizer], **options: Any) -> Run:
    model = net()
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)
    return Run(model, optimizer, lambda: batch_loss(model), {"scheduler": scheduler}, **options)


def sparse() -> Run:
    table = torch.nn.Embedding(20, 3, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.1)
    return Run(
        table, optimizer, lambda: table(torch.randint(20, (5,))).square().sum() * random.random()
    )


def muon() -> Run:
    model = torch.nn.Linear(6, 6, bias=False)
    optimizer = torch.optim.Muon(model.parameters(), lr=0.01)
    return Run(model, optimizer, lambda: (model(torch.randn(4, 6)) - 1).square().mean())


def lbfgs() -> Run:
    model = torch.nn.Linear(6, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, history_size=3, max_iter=3)
    return Run(model, optimizer, lambda: batch_loss(model))


def scaled() -> Run:
    """A gradient scaler whose scale grows, and shrinks where a gradient overflows."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=2)
    return Run(
        model, optimizer, lambda: batch_loss(model), {"scaler": scaler}, accumulate=2, autocast=True
    )


def channels_last() -> Run:
    model: Any = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.Dropout2d(0.2),
        torch.nn.Conv2d(8, 4, 3),
    )
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True, amsgrad=True)

    def loss() -> torch.Tensor:
        images = torch.randn(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
        return torch.mean(model(images).square())

    return Run(model, optimizer, loss)


def bfloat16_weights() -> Run:
    """Adafactor keeps float32 state for weights in bfloat16."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.01)

    def loss() -> torch.Tensor:
        return torch.mean(model(torch.randn(4, 6, dtype=torch.bfloat16)).float().square())

    return Run(model, optimizer, loss)


def averaged() -> Run:
    """An average of the weights, and two groups with another rate each."""
    model = net()
    weights = [item for name, item in model.named_parameters() if name.endswith("weight")]
    biases = [item for name, item in model.named_parameters() if not name.endswith("weight")]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 0.02}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    moving: Any = torch.optim.swa_utils.get_ema_multi_avg_fn  # it has no types
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=moving(0.9), use_buffers=True)
    schedulers = [
        torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=4),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
    ]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, schedulers, milestones=[4])
    parts = {"ema": ema, "scheduler": scheduler}
    return Run(
        model,
        optimizer,
        lambda: batch_loss(model),
        parts,
        after=lambda: ema.update_parameters(model),
    )


def compiled(backend: str) -> Run:
    model: Any = torch.compile(torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.3),
                                              torch.nn.Linear(8, 1)), backend=backend)  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return Run(model, optimizer, lambda: batch_loss(model))


class Noisy(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((6,), float(index)).sin()


def loaded(workers: int, accumulate: int = 1, make: Callable[..., Any] | None = None) -> Run:
    """A ``StatefulDataLoader``, shuffled, that goes through several epochs of 6 batches."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    options: dict[str, Any] = {"shuffle": True} if make is None else make()
    loader: Any = StatefulDataLoader(Noisy(), batch_size=4, num_workers=workers, **options)

    def endless() -> Iterator[torch.Tensor]:
        while True:
            yield from loader

    batches = endless()

    def loss() -> torch.Tensor:
        batch = next(batches)
        return torch.nn.functional.mse_loss(model(batch).float(), batch.sum(1, keepdim=True))

    return Run(model, optimizer, loss, {"loader": loader}, accumulate=accumulate, autocast=True)


def own_generator() -> dict[str, Any]:
    return {"shuffle": True, "generator": torch.Generator().manual_seed(random.randrange(99))}


def weighted() -> dict[str, Any]:
    sampler = torch.utils.data.WeightedRandomSampler([1.0 + i for i in range(22)], 22)
    return {"sampler": training.ResumableSampler(sampler)}


_OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01, t0=2),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01, decoupled_weight_decay=True),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
}
KINDS: dict[str, Callable[[], Run]] = {
    **{name: partial(with_optimizer, make) for name, make in _OPTIMIZERS.items()},
    "LBFGS": lbfgs,
    "SparseAdam": sparse,
    **({"Muon": muon} if hasattr(torch.optim, "Muon") else {}),
    "fused Adam": lambda: with_optimizer(lambda p: torch.optim.Adam(p, lr=0.01, fused=True)),
    "fused SGD": lambda: with_optimizer(
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True)
    ),
    "foreach AdamW": lambda: with_optimizer(lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True)),
    "accumulation": lambda: with_optimizer(_OPTIMIZERS["Adam"], accumulate=4, autocast=True),
    "scaler": scaled,
    "channels last, fused": channels_last,
    "bfloat16 weights": bfloat16_weights,
    "average": averaged,
    "compiled": lambda: compiled("aot_eager"),
}
LOADERS: dict[str, Callable[[], Run]] = {
    "loader": lambda: loaded(0),
    "loader, own generator": lambda: loaded(0, make=own_generator),
    "loader, weighted": lambda: loaded(0, make=weighted),
    "loader, 2 workers": lambda: loaded(2, accumulate=2),
}
SLOW: dict[str, Callable[[], Run]] = {"inductor": lambda: compiled("inductor")}


def make(kind: str, seed: int) -> Run:
    begin(seed)
    return (KINDS | LOADERS | SLOW)[kind]()


def main(kind: str, folder: str, steps: int) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for the workers of a loader
    warnings.filterwarnings("ignore", ".*set_vital")
    run = make(kind, seed=os.getpid())
    newest = training.latest(folder)
    if newest is not None:
        run.state.restore(newest)
    else:  # all attempts begin alike
        run = make(kind, seed=0)
    with open(f"{folder}/losses.txt", "a") as losses:
        while run.state.extra["done"] < steps:
            loss = run.step()
            done = run.state.extra["done"]
            losses.write(f"{done} {loss}\n")
            losses.flush()
            time.sleep(0.01)  # so that there is a moment to be killed at
            if done % SAVE_EVERY == 0 or done == steps:
                jsonckpt.save(run.state.state_dict(), f"{folder}/checkpoint_step{done:04}")
    Path(folder, "finished").touch()
