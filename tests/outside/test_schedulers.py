"""Every learning rate scheduler of torch, averaged models and gradient scalers: resumed exactly."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedules
from torch.optim import swa_utils

from jsonckpt import UnsupportedTypeError, load, load_into, save
from tests.outside.support import alike, normal, through, written

Optimizer = torch.optim.Optimizer
BEFORE, AFTER = 5, 9


class Factor:
    """A schedule that has a state of its own."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, epoch: int) -> float:
        self.calls += 1
        return 0.9**epoch / (1 + 0.01 * self.calls)


def _sequential(optimizer: Optimizer) -> Any:
    parts = [
        schedules.LinearLR(optimizer, 0.1, total_iters=3),
        schedules.CosineAnnealingWarmRestarts(optimizer, 3, 2),
        schedules.StepLR(optimizer, 2),
    ]
    return schedules.SequentialLR(optimizer, parts, milestones=[3, 7])


def _chained(optimizer: Optimizer) -> Any:
    parts = [
        schedules.ConstantLR(optimizer, 0.5, total_iters=4),
        schedules.ExponentialLR(optimizer, 0.9),
        _sequential(optimizer),
    ]
    return schedules.ChainedScheduler(parts, optimizer)


def _one_cycle(optimizer: Optimizer) -> Any:
    return schedules.OneCycleLR(optimizer, max_lr=[0.2, 0.1], total_steps=20, three_phase=True)


def _cyclic(mode: Any) -> Callable[[Optimizer], Any]:
    return lambda optimizer: schedules.CyclicLR(optimizer, 0.01, 0.1, 3, 2, mode, gamma=0.99)


RATES: Any = [0.05, 0.01]  # the annotation has one rate, the documentation one for each group
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: schedules.LambdaLR(o, Factor()),
    "LambdaLR of functions": lambda o: schedules.LambdaLR(
        o, [lambda epoch: 0.95**epoch, lambda epoch: 1 / (1 + epoch)]
    ),
    "MultiplicativeLR": lambda o: schedules.MultiplicativeLR(o, lambda epoch: 0.9 + 0.01 * epoch),
    "StepLR": lambda o: schedules.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [2, 6, 6, 9], 0.3),
    "ConstantLR": lambda o: schedules.ConstantLR(o, 0.3, 7),
    "LinearLR": lambda o: schedules.LinearLR(o, 0.1, 0.9, 11),
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 6, 1e-4),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 3, 2),
    "PolynomialLR": lambda o: schedules.PolynomialLR(o, 12, 2.0),
    "ReduceLROnPlateau": lambda o: schedules.ReduceLROnPlateau(o, "min", 0.5, 1, cooldown=1),
    "ReduceLROnPlateau max": lambda o: schedules.ReduceLROnPlateau(
        o, "max", 0.5, 0, threshold_mode="abs", min_lr=[1e-4, 1e-3]
    ),
    "CyclicLR": _cyclic("triangular"),
    "CyclicLR triangular2": _cyclic("triangular2"),
    "CyclicLR exp_range": _cyclic("exp_range"),
    "OneCycleLR": _one_cycle,
    "SequentialLR": _sequential,
    "ChainedScheduler": _chained,
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=RATES, anneal_epochs=4),
}


def test_no_scheduler_of_torch_is_missing() -> None:
    base = schedules.LRScheduler
    found = {
        name
        for module in (schedules, swa_utils)
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, base) and kind is not base
    } - {"_LRScheduler"}
    assert found <= {name.split()[0] for name in SCHEDULERS}


class Loop:
    """A model, an optimizer with two groups, and a scheduler."""

    def __init__(self, make: Callable[[Optimizer], Any], seed: int, *, tensor_rate: bool) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Linear(3, 2)
        rate: Any = torch.tensor(0.1) if tensor_rate else 0.1
        groups: list[dict[str, Any]] = [
            {"params": [self.model.weight]},
            {"params": [self.model.bias]},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
        self.scheduler = make(self.optimizer)
        self.epoch = 0

    def steps(self, count: int) -> list[Any]:
        rates = []
        for _ in range(count):
            self.epoch += 1
            inputs = torch.linspace(-1, 1, 12).view(4, 3) * self.epoch
            loss = self.model(inputs).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if isinstance(self.scheduler, schedules.ReduceLROnPlateau):
                self.scheduler.step(loss.item() if self.epoch % 3 else 1e9)
            else:
                self.scheduler.step()
            rates += [float(group["lr"]) for group in self.optimizer.param_groups]
        return rates

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts().items()}


@pytest.mark.filterwarnings("ignore:To get the last learning rate")
@pytest.mark.filterwarnings("ignore:Please also save or load the state of the optimizer")
@pytest.mark.parametrize("tensor_rate", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("way", ["load", "load_into"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_resumed_schedule_goes_on(name: str, way: str, tensor_rate: bool, tmp_path: Path) -> None:
    make = SCHEDULERS[name]
    first = Loop(make, 0, tensor_rate=tensor_rate)
    first.steps(BEFORE)
    path = written(first.state(), tmp_path)
    resumed = Loop(make, 1, tensor_rate=tensor_rate)
    resumed.epoch = BEFORE
    if way == "load":
        kept = load(path)
        assert alike(first.state(), kept, sharing=False) is None
        for part_name, part in resumed.parts().items():
            part.load_state_dict(kept[part_name])
    else:
        load_into(resumed.parts(), path)
    assert alike(normal(first.state()), normal(resumed.state()), sharing=False) is None
    assert first.steps(AFTER) == resumed.steps(AFTER)
    assert alike(normal(first.state()), normal(resumed.state()), sharing=False) is None


def test_functions_in_a_state_dict_are_refused_by_name() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    schedule = schedules.LambdaLR(torch.optim.SGD([parameter]), lambda epoch: 0.9**epoch)
    state = dict(vars(schedule))
    state.pop("optimizer")
    with pytest.raises(UnsupportedTypeError, match="lr_lambdas"):
        through({"scheduler": state})
    assert through({"scheduler": schedule.state_dict()})["scheduler"]["lr_lambdas"] == [None]


@pytest.mark.parametrize("way", ["load", "load_into"])
@pytest.mark.parametrize("average", ["mean", "ema", "swa", "buffers"])
def test_averaged_models(average: str, way: str, tmp_path: Path) -> None:
    averages: Any = swa_utils  # torch has no types for its makers of averages
    options: dict[str, Any] = {
        "mean": {},
        "ema": {"multi_avg_fn": averages.get_ema_multi_avg_fn(0.9)},
        "swa": {"multi_avg_fn": averages.get_swa_multi_avg_fn()},
        "buffers": {"use_buffers": True, "avg_fn": averages.get_ema_avg_fn(0.8)},
    }[average]

    def make(seed: int) -> tuple[torch.nn.Module, swa_utils.AveragedModel]:
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
        return model, swa_utils.AveragedModel(model, **options)

    def go_on(model: torch.nn.Module, averaged: swa_utils.AveragedModel) -> Any:
        for step in range(3):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * step + 0.01)
                model(torch.arange(12.0).view(4, 3))
            averaged.update_parameters(model)
        return averaged.state_dict()

    model, averaged = make(0)
    go_on(model, averaged)
    path = written({"model": model.state_dict(), "averaged": averaged.state_dict()}, tmp_path)
    other, resumed = make(1)
    if way == "load":
        kept = load(path)
        other.load_state_dict(kept["model"])
        resumed.load_state_dict(kept["averaged"])
    else:
        load_into({"model": other, "averaged": resumed}, path)
    assert int(resumed.n_averaged) == 3
    assert alike(go_on(model, averaged), go_on(other, resumed), sharing=False) is None


@pytest.mark.parametrize("way", ["load", "load_into"])
def test_a_gradient_scaler(way: str, tmp_path: Path) -> None:
    def make() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)

    def go_on(scaler: torch.amp.GradScaler, gradients: list[float]) -> list[float]:
        scales = []
        for gradient in gradients:
            weight = torch.nn.Parameter(torch.ones(2))
            optimizer = torch.optim.SGD([weight], lr=0.1)
            loss: Any = scaler.scale((weight * gradient).sum())
            loss.backward()
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return scales

    first = make()
    go_on(first, [1.0, float("inf"), 1.0, 1.0])
    path = tmp_path / "c.json"
    save({"scaler": first.state_dict()}, path, sync=False)
    resumed = make()
    if way == "load":
        resumed.load_state_dict(load(path)["scaler"])
    else:
        load_into({"scaler": resumed}, path)
    assert first.state_dict() == resumed.state_dict()
    more = [1.0, 1.0, 1.0, 1.0, float("nan"), 1.0]
    assert go_on(first, more) == go_on(resumed, more)
