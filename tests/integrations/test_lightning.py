"""Lightning with checkpoints of plain JSON: the trainer's own saves, loads and resumes."""

from __future__ import annotations

import enum
import functools
import json
import random
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import nullcontext as nothing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import jsonckpt
from tests.support import difference, lacking, same, slow

try:
    import lightning.pytorch as pl
except ModuleNotFoundError:
    lacking("lightning", "lightning is not installed")

from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from jsonckpt.integrations.lightning import (
    AsyncJsonCheckpointIO,
    ExactResume,
    JsonCheckpointIO,
    load_from_checkpoint,
)

#: Lightning's advice: few workers, a short epoch, a directory that is not empty.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in (
        "lightning.fabric.utilities.warnings.PossibleUserWarning",
        "FutureWarning",
        "DeprecationWarning",
    )
] + [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in ("Checkpoint directory", "'set_vital' is deprecated")
]
PLUGINS = {
    "sync": JsonCheckpointIO,
    "async": AsyncJsonCheckpointIO,
    "wrapped": lambda: AsyncCheckpointIO(JsonCheckpointIO()),
}


class Data(Dataset[Any]):
    """Samples with a random augmentation."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = float(np.random.rand()) + random.random() + float(torch.rand(()))
        return torch.full((4,), index / 12) + 0.01 * noise


class Model(pl.LightningModule):  # type: ignore[misc, unused-ignore]
    """A small model with dropout, a batch norm and a tied weight. Keeps the losses of this run."""

    def __init__(self, width: int = 8, lr: float = 0.01, validate: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, width),
            torch.nn.BatchNorm1d(width),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(width, 4),
        )
        self.tied = torch.nn.Linear(4, width)
        self.tied.weight = self.net[0].weight
        self.losses: list[float] = []

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        loss = torch.nn.functional.mse_loss(self.net(batch), batch) + self.tied(batch).mean() ** 2
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Validated(Model):
    def validation_step(self, batch: torch.Tensor, _: int) -> None:
        self.log("val_loss", torch.nn.functional.mse_loss(self.net(batch), batch))


class Stop(Callback):  # type: ignore[misc, unused-ignore]
    """Ends the run like a crash, after a number of steps or epochs."""

    def __init__(self, *, step: int = -1, epoch: int = -1) -> None:
        self.step, self.epoch = step, epoch

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    pl.seed_everything(7, verbose=False)
    yield
    torch.use_deterministic_algorithms(False)


def trainer(directory: Path, plugin: Any = None, *callbacks: Any, **options: Any) -> Any:
    return pl.Trainer(
        default_root_dir=directory,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[plugin] if plugin is not None else None,
        callbacks=list(callbacks),
        **{"max_epochs": 3, "enable_checkpointing": bool(callbacks), **options},
    )


def loader(**options: Any) -> Any:
    return DataLoader(Data(), batch_size=4, shuffle=True, **options)


def states(model: Any, run: Any) -> Any:
    return [model.state_dict(), *(one.state_dict() for one in run.optimizers)]


@pytest.mark.parametrize("kind", PLUGINS)
def test_a_run_saves_and_resumes(tmp_path: Path, kind: str) -> None:
    keep = ModelCheckpoint(tmp_path, monitor="loss", save_top_k=2, save_last=True)
    model = Model()
    run = trainer(tmp_path, PLUGINS[kind](), keep)
    run.fit(model, loader())
    names = sorted(path.name for path in tmp_path.iterdir())
    # Lightning's own wrapper may remove one before it is written.
    assert len(names) == 3 or (kind == "wrapped" and len(names) == 4), names
    assert "last.ckpt" in names
    for path in tmp_path.iterdir():
        assert jsonckpt.verify(path).ok
        state = jsonckpt.load(path)
        assert state["hyper_parameters"] == {"width": 8, "lr": 0.01, "validate": False}
    last = jsonckpt.load(tmp_path / "last.ckpt")
    assert last["global_step"] == 9
    if kind != "wrapped":  # Lightning's own wrapper unties them and drops the metadata
        weights = last["state_dict"]
        assert weights["tied.weight"].data_ptr() == weights["net.0.weight"].data_ptr()
        assert weights._metadata["net.1"] == {"version": 2}
    assert same(dict(last["state_dict"]), dict(model.state_dict()))
    again = Model()
    keep = ModelCheckpoint(tmp_path, monitor="loss", save_top_k=2, save_last=True)
    more = trainer(tmp_path, PLUGINS[kind](), keep, max_epochs=4)
    more.fit(again, loader(), ckpt_path="last")
    assert more.global_step == 12
    assert len(again.losses) == 3
    best = load_from_checkpoint(Model, keep.best_model_path)
    assert best.hparams["width"] == 8


def stateful(**options: Any) -> Any:
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ModuleNotFoundError:
        lacking("torchdata", "torchdata is not installed")
    return StatefulDataLoader(Data(), batch_size=4, shuffle=True, **options)


#: When a checkpoint is written, and what the model and the loader are.
MOMENTS: dict[str, tuple[dict[str, Any], Any, Any, dict[str, Any]]] = {
    "epoch end": ({}, Model, loader, {}),
    "epoch end, by steps": (
        {}, Validated, loader, {"max_epochs": -1, "max_steps": 15},
    ),
    "epoch end, validated": ({"monitor": "val_loss"}, Validated, loader, {}),
    "mid-epoch": ({"every_n_train_steps": 2}, Model, stateful, {}),
    "mid-epoch, by steps": (
        {"every_n_train_steps": 2}, Model, stateful, {"max_epochs": -1, "max_steps": 15},
    ),
    "mid-epoch, validated": (
        {"monitor": "val_loss"}, Validated, stateful, {"val_check_interval": 2},
    ),
    "accumulated": ({"every_n_train_steps": 1}, Model, stateful, {"accumulate_grad_batches": 2}),
    "last batch": ({"every_n_train_steps": 3}, Model, loader, {}),
    "bfloat16": ({}, Model, loader, {"precision": "bf16-mixed"}),
}  # fmt: skip


@pytest.mark.parametrize("plugin", [JsonCheckpointIO, slow(AsyncJsonCheckpointIO)])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, moment: str, plugin: Any) -> None:
    when, kind, make, options = MOMENTS[moment]
    options = {"max_epochs": 5, "num_sanity_val_steps": 0, **options}
    if kind is Validated:
        data = {"val_dataloaders": DataLoader(Data(), batch_size=4)}
    else:
        data = {}

    def run(name: str, *callbacks: Any, **arguments: Any) -> tuple[Any, Any]:
        model = kind()
        keep = ModelCheckpoint(tmp_path / name, save_top_k=-1, **when)
        one = trainer(tmp_path, plugin(), keep, ExactResume(), *callbacks, **options)
        with pytest.raises((KeyboardInterrupt, SystemExit)) if callbacks else nothing():
            one.fit(model, make(), **data, **arguments)
        return model, one

    whole, first = run("whole")
    pl.seed_everything(7, verbose=False)
    broken, _ = run("broken", Stop(step=6 if moment == "accumulated" else 9))
    assert same(broken.losses, whole.losses[: len(broken.losses)])
    newest = jsonckpt.training.latest(tmp_path / "broken", "*.ckpt")
    assert newest is not None
    pl.seed_everything(123, verbose=False)
    resumed, second = run("broken", ckpt_path=newest)
    assert 0 < len(resumed.losses) < len(whole.losses)
    assert same(resumed.losses, whole.losses[-len(resumed.losses) :])
    assert difference(states(resumed, second), states(whole, first)) is None
