"""Lightning with checkpoints of plain JSON: the trainer's own saves, loads and resumes."""

from __future__ import annotations

import enum
import functools
import random
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from contextlib import nullcontext as nothing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import jsonckpt
from tests.support import difference, framework, same, slow

framework("lightning.pytorch")

import lightning.pytorch as pl
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


class Model(pl.LightningModule):
    """A small model with dropout, a batch norm and a tied weight. Keeps the losses of this run."""

    def __init__(self, width: int = 8, **hparams: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = hparams.get("lr", 0.01)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, width),
            torch.nn.BatchNorm1d(width),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(width, 4),
        )
        self.tied = torch.nn.Linear(4, width)
        self.tied.weight = next(self.net.parameters())
        self.losses: list[float] = []

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        loss: torch.Tensor = torch.nn.functional.mse_loss(self.net(batch), batch)
        loss = loss + self.tied(batch).mean() ** 2
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Validated(Model):
    def validation_step(self, batch: torch.Tensor, _: int) -> None:
        self.log("val_loss", torch.nn.functional.mse_loss(self.net(batch), batch))


class Stop(Callback):
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
        assert state["hyper_parameters"] == {"width": 8}
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
    loaders = framework("torchdata.stateful_dataloader")
    return loaders.StatefulDataLoader(Data(), batch_size=4, shuffle=True, **options)


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
@pytest.mark.parametrize(
    "moment", [slow(name) if "steps" in name or name == "bfloat16" else name for name in MOMENTS]
)
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


class Colour(enum.Enum):
    RED = 1


class Odd(pl.LightningModule):
    """A module with hyper-parameters that are no plain values."""

    def __init__(self, act: Any, colour: Any = Colour.RED, **others: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, 1)
        self.act, self.colour, self.others = act, colour, others


def saved(directory: Path, model: Any, **options: Any) -> Path:
    run = trainer(directory, JsonCheckpointIO(**options), barebones=False)
    run.strategy.connect(model)
    run.save_checkpoint(directory / "c.ckpt")
    return directory / "c.ckpt"


def test_hyper_parameters_that_are_not_values(tmp_path: Path) -> None:
    odd = {
        "partial": functools.partial(torch.optim.SGD, lr=0.1),
        "kind": torch.nn.ReLU,
        "nested": {"size": 3, "act": torch.relu, "all": [1, object()]},
        "values": (1, 2.5, None, "x", np.float32(2), torch.ones(2)),
    }
    with pytest.warns(UserWarning, match="hyper-parameter") as told:
        path = saved(tmp_path, Odd(torch.nn.functional.relu, **odd))
    texts = [str(one.message) for one in told if "is not saved" in str(one.message)]
    assert len(texts) == 6
    assert "'/hyper_parameters/act' is not saved: it is the function torch.nn.fun" in texts[0]
    assert "load_from_checkpoint(cls, path, act=…)" in texts[0]
    state = jsonckpt.load(path)
    found = state["hyper_parameters"]
    assert found["colour"].endswith("the enum member tests.integrations.test_lightning.Colour.RED")
    assert found["partial"].startswith("not saved: functools.partial of the class torch.optim.sgd")
    assert found["nested"]["size"] == 3
    assert same(found["values"], odd["values"])
    with pytest.raises(jsonckpt.ArgumentError, match=r"'act' was not saved.*act=…"):
        load_from_checkpoint(Odd, path)
    with pytest.warns(UserWarning, match="was not saved") as told:
        model = load_from_checkpoint(Odd, path, act=torch.tanh, nested={})
    assert sorted(str(one.message).split("'")[1] for one in told) == ["colour", "kind", "partial"]
    assert model.act is torch.tanh
    assert model.colour is Colour.RED
    assert model.others.keys() == {"nested", "values"}
    assert same(dict(model.state_dict()), dict(state["state_dict"]))


def test_hyper_parameters_may_be_an_error(tmp_path: Path) -> None:
    with pytest.raises(jsonckpt.ArgumentError, match="'/hyper_parameters/act' is the function"):
        saved(tmp_path, Odd(torch.relu, 1), hparams="error")
    assert not (tmp_path / "c.ckpt").exists()
    saved(tmp_path, Odd("relu", 1), hparams="error")
    assert load_from_checkpoint(Odd, tmp_path / "c.ckpt").act == "relu"


def test_a_registered_enum_is_saved(tmp_path: Path) -> None:
    class Size(enum.Enum):
        SMALL = "s"

    jsonckpt.register(Size, "tests.lightning.Size")
    path = saved(tmp_path, Odd("relu", Size.SMALL))
    assert load_from_checkpoint(Odd, path).colour is Size.SMALL


def test_configurations_of_omegaconf(tmp_path: Path) -> None:
    omegaconf = framework("omegaconf")
    config = omegaconf.OmegaConf.create({"a": [1, {"b": "${c}"}], "c": 5})
    path = saved(tmp_path, Odd("relu", 1, config=config))
    assert jsonckpt.load(path)["hyper_parameters"]["config"] == {"a": [1, {"b": "${c}"}], "c": 5}
    model = load_from_checkpoint(Odd, path)
    assert isinstance(model.others["config"], omegaconf.DictConfig)
    assert model.others["config"].a[1].b == 5
    assert model.others["config"] == config
    # All hyper-parameters may be one configuration, of a module and of a data module.
    both = {
        "hyper_parameters": config,
        "hparams_type": type(config),
        "datamodule_hyper_parameters": config,
        "datamodule_hparams_type": type(config),
    }
    plugin = JsonCheckpointIO()
    plugin.save_checkpoint(both, tmp_path / "both.ckpt")
    assert plugin.load_checkpoint(tmp_path / "both.ckpt") == both


@pytest.mark.parametrize(
    "note",
    [
        7, {}, {"not_saved": {}, "omegaconf": 7}, {"not_saved": {"/x": 1}, "omegaconf": {}},
        {"not_saved": {}, "omegaconf": {"/nowhere/x": "DictConfig"}},
        {"not_saved": {}, "omegaconf": {"": "DictConfig"}},
    ],
)  # fmt: skip
def test_a_forged_note_is_refused(tmp_path: Path, note: Any) -> None:
    if isinstance(note, dict) and note.get("omegaconf"):
        framework("omegaconf")
    state = {"state_dict": {}, "hyper_parameters": {}, "jsonckpt_hyper_parameters": note}
    jsonckpt.save(state, tmp_path / "c.ckpt", single_file=True)
    for load in (JsonCheckpointIO().load_checkpoint, functools.partial(load_from_checkpoint, Odd)):
        with pytest.raises(jsonckpt.FormatError):
            load(tmp_path / "c.ckpt")


class Items(pl.LightningDataModule):
    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.size, self.at = size, 0

    def train_dataloader(self) -> Any:
        return loader()

    def state_dict(self) -> dict[str, Any]:
        return {"at": 5}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.at = state_dict["at"]


def test_modules_and_data_modules_from_a_checkpoint(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, save_last=True)
    model = Model(width=6)
    trainer(tmp_path, JsonCheckpointIO(), keep, max_epochs=1).fit(model, datamodule=Items(4))
    last = tmp_path / "last.ckpt"
    data = load_from_checkpoint(Items, last)
    assert (data.hparams["size"], data.at) == (4, 5)
    found = load_from_checkpoint(Model, last, "cpu", strict=True, weights_only=False)
    assert same(dict(found.state_dict()), dict(model.state_dict()))
    assert found.tied.weight is found.net[0].weight
    with pytest.raises(jsonckpt.StateMismatchError, match="do not fit"):
        load_from_checkpoint(Model, last, width=7)
    (tmp_path / "h.csv").write_text("key,value\nwidth,6\nlr,0.5\n")
    assert load_from_checkpoint(Model, last, hparams_file=tmp_path / "h.csv").lr == 0.5
    with pytest.raises(jsonckpt.ArgumentError, match=r"\.csv"):
        load_from_checkpoint(Model, last, hparams_file="h.txt")
    with pytest.raises(jsonckpt.ArgumentError, match="The order is"):
        load_from_checkpoint(last, Model)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        load_from_checkpoint(Model, tmp_path / "none.ckpt")
    jsonckpt.save({"w": 1}, tmp_path / "w.json")
    with pytest.raises(jsonckpt.FormatError, match="not a checkpoint of Lightning"):
        load_from_checkpoint(Model, tmp_path / "w.json")


def test_the_old_checkpoint_stays_until_the_new_one_is_written(tmp_path: Path) -> None:
    plugin = AsyncJsonCheckpointIO()
    one, two, three = (tmp_path / name for name in ("1.ckpt", "2.ckpt", "3.ckpt"))
    plugin.save_checkpoint({"w": torch.ones(3)}, one)
    weight = torch.ones(2_000_000)
    plugin.save_checkpoint({"w": weight}, two)
    plugin.remove_checkpoint(one)
    weight.zero_()
    assert plugin.load_checkpoint(two)["w"].sum() == 2_000_000
    assert not one.exists()
    # What is removed and saved again is there; a failed save removes nothing.
    plugin.save_checkpoint({"w": 1}, one)
    plugin.remove_checkpoint(two)
    plugin.save_checkpoint({"w": 2}, two)
    plugin.teardown()
    assert plugin.load_checkpoint(two) == {"w": 2}
    (tmp_path / "file").touch()
    plugin.save_checkpoint({"w": 3}, tmp_path / "file" / "3.ckpt")
    plugin.remove_checkpoint(two)
    with pytest.raises(jsonckpt.WriteError):
        plugin.teardown()
    plugin.teardown()
    assert two.exists()
    assert not three.exists()


class SlowDisk(AsyncJsonCheckpointIO):
    """Its saves end when someone waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def finish(self) -> None:
        self.waits += self._pending is not None
        super().finish()


def test_a_save_outside_of_training_is_written_when_it_returns(tmp_path: Path) -> None:
    class Waits(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 1:
                trainer.save_checkpoint(tmp_path / "inside.ckpt")
                waits.append(plugin.waits)

        def on_exception(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "error.ckpt")
            waits.append(plugin.waits)

    waits: list[int] = []
    plugin = SlowDisk()
    run = trainer(tmp_path, plugin, Waits(), max_epochs=1, enable_checkpointing=False)
    model = Model()
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "before.ckpt")
    assert plugin.waits == 1
    run.fit(model, loader())
    assert waits == [1]
    assert plugin.waits == 2  # at the end of the run
    run.save_checkpoint(tmp_path / "after.ckpt")
    assert plugin.waits == 3
    assert jsonckpt.load(tmp_path / "after.ckpt")["global_step"] == run.global_step

    class Fails(Model):
        def training_step(self, *_: Any) -> Any:
            raise RuntimeError("no")

    run = trainer(tmp_path, plugin, Waits(), max_epochs=1, enable_checkpointing=False)
    with pytest.raises(RuntimeError, match="no"):
        run.fit(Fails(), loader())
    assert waits == [1, 4]


def test_a_save_before_slurm_restarts_the_job_is_written_when_it_returns(tmp_path: Path) -> None:
    class _SignalConnector:
        def handler(self) -> None:
            plugin.save_checkpoint({"w": 1}, tmp_path / "hpc_ckpt_1.ckpt")

    plugin = SlowDisk()
    _SignalConnector().handler()
    assert plugin.waits == 1
    plugin.save_checkpoint({"w": 1}, tmp_path / "other.ckpt")
    assert plugin.waits == 1
    plugin.teardown()


def test_a_wrapped_plug_in_that_nobody_ends_has_written(tmp_path: Path) -> None:
    plugin = SlowDisk()
    wrapper = AsyncCheckpointIO(plugin)
    wrapper.save_checkpoint({"w": 1}, tmp_path / "last.ckpt")
    wrapper.teardown()
    assert plugin.waits == 1
    assert jsonckpt.load(tmp_path / "last.ckpt") == {"w": 1}


def test_removal_and_remote_paths(tmp_path: Path) -> None:
    plugin = JsonCheckpointIO()
    plugin.remove_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "directory.ckpt").mkdir()
    (tmp_path / "directory.ckpt" / "x").touch()
    plugin.remove_checkpoint(tmp_path / "directory.ckpt")
    assert not (tmp_path / "directory.ckpt").exists()
    url = "memory://lightning/run/last.ckpt"
    plugin.save_checkpoint({"w": torch.ones(2), "global_step": 3}, url)
    assert same(plugin.load_checkpoint(url), {"w": torch.ones(2), "global_step": 3})
    assert jsonckpt.training.latest("memory://lightning/run") == url
    plugin.remove_checkpoint(url)
    plugin.remove_checkpoint(url)
    with pytest.raises(FileNotFoundError):
        plugin.load_checkpoint(url)


def test_arguments_of_the_plug_in() -> None:
    for arguments, text in [
        ({"hparams": "no"}, "hparams='no'"),
        ({"single_file": False}, "does not take 'single_file'"),
        ({"encoding": "xml"}, "encoding='xml'"),
        ({"encoding": "list", "compression": "zstd"}, "compresses whole files"),
    ]:
        with pytest.raises(jsonckpt.ArgumentError, match=text):
            AsyncJsonCheckpointIO(**arguments)  # type: ignore[arg-type]


class ModelParallelStrategy:
    """Stands for Lightning's, which calls the plug-in in this way."""

    def __init__(self, plugin: Any) -> None:
        self._checkpoint_io = self.checkpoint_io = plugin

    def save_checkpoint(self, path: Path) -> None:
        self.checkpoint_io.save_checkpoint({"w": 1}, path)

    def teardown(self) -> None:
        self.checkpoint_io.teardown()


@pytest.mark.parametrize("kind", [JsonCheckpointIO, AsyncJsonCheckpointIO])
def test_strategies_that_write_shards_themselves(tmp_path: Path, kind: Any) -> None:
    strategy = ModelParallelStrategy(kind())
    with pytest.raises(jsonckpt.JsonckptError, match="ModelParallelStrategy does not work with"):
        strategy.save_checkpoint(tmp_path / "c.ckpt")
    with pytest.warns(UserWarning, match="are not JSON"):
        strategy.teardown()
    run = types.SimpleNamespace(strategy=strategy)
    with pytest.raises(jsonckpt.JsonckptError, match=r"jsonckpt\.integrations\.dcp"):
        ExactResume().setup(run, None, "fit")


def test_random_states_of_another_number_of_ranks(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, save_last=True)
    trainer(tmp_path, JsonCheckpointIO(), keep, ExactResume(), max_epochs=1).fit(Model(), loader())
    plugin, last = JsonCheckpointIO(), tmp_path / "last.ckpt"
    state = plugin.load_checkpoint(last)
    state["callbacks"]["ExactResume"]["ranks"] *= 2
    plugin.save_checkpoint(state, last)
    run = trainer(tmp_path, plugin, ModelCheckpoint(tmp_path, save_last=True), ExactResume())
    with pytest.warns(UserWarning, match="saved on 2 ranks, and there are 1 now"):
        run.fit(Model(), loader(), ckpt_path="last")


def test_without_the_framework() -> None:
    code = (
        "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "import jsonckpt.integrations.lightning"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "jsonckpt[lightning]"' in done.stderr


def _rank(rank: int, directory: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2
    )
    pl.seed_everything(rank, verbose=False)
    callback = ExactResume()
    state = callback.state_dict()
    expected = random.random(), float(torch.rand(())), float(np.random.rand())
    plugin = JsonCheckpointIO()
    if rank == 0:
        plugin.save_checkpoint({"callbacks": state}, f"{directory}/c.ckpt")
    torch.distributed.barrier()
    callback.load_state_dict(plugin.load_checkpoint(f"{directory}/c.ckpt")["callbacks"])
    run = types.SimpleNamespace(world_size=2, global_rank=rank)
    callback.on_fit_start(run, None)
    drawn = random.random(), float(torch.rand(())), float(np.random.rand())
    assert drawn == expected
    torch.distributed.destroy_process_group()


def test_each_rank_has_its_own_random_states(tmp_path: Path) -> None:
    multiprocessing: Any = torch.multiprocessing
    context = multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2, join=False)
    try:
        deadline = time.monotonic() + 120
        while not context.join(timeout=5):
            assert time.monotonic() < deadline, "a rank hangs"
    finally:
        for process in context.processes:
            process.kill()
    ranks = jsonckpt.load(tmp_path / "c.ckpt")["callbacks"]["ranks"]
    assert not torch.equal(ranks[0]["torch"], ranks[1]["torch"])


@pytest.mark.parametrize(
    "state",
    [
        [1],
        5,
        {"state_dict": 5},
        {"state_dict": [1]},
        {"state_dict": {}, "hyper_parameters": 5},
        {"state_dict": {}, "hyper_parameters": [1]},
        {"state_dict": {}, "jsonckpt_hyper_parameters": {"not_saved": {"x": "y"}, "omegaconf": {}}},
    ],
)
def test_what_is_no_checkpoint_of_lightning_is_refused(tmp_path: Path, state: Any) -> None:
    jsonckpt.save(state, tmp_path / "x.ckpt", single_file=True)
    with pytest.raises(jsonckpt.FormatError):
        load_from_checkpoint(pl.LightningModule, tmp_path / "x.ckpt")
