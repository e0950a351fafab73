"""The code of the guides that resumes a run, with weights in bfloat16 and moments in float32."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import training

DOCS = Path(__file__).parents[2] / "docs"


class Moments(torch.optim.Optimizer):
    """Adam for weights in bfloat16: its moments and a copy of the weights are float32."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-2, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["whole"] = weight.float()
                    state["first"] = torch.zeros_like(state["whole"])
                    state["second"] = torch.zeros_like(state["whole"])
                gradient = weight.grad.float()
                first, second = group["betas"]
                state["first"].mul_(first).add_(gradient, alpha=1 - first)
                state["second"].mul_(second).add_(gradient.square(), alpha=1 - second)
                change = state["first"] / (state["second"].sqrt() + 1e-8)
                state["whole"].sub_(change, alpha=group["lr"])
                weight.copy_(state["whole"])


def guide() -> dict[str, Any]:
    """What the code of the Kaggle guide defines."""
    text = (DOCS / "kaggle" / "guide.md").read_text(encoding="utf-8")
    (block,) = (one for one in re.findall(r"```python\n(.*?)```", text, re.S) if "collect(" in one
                and "def restore" in one)  # fmt: skip
    names: dict[str, Any] = {}
    exec(block, names)
    return names


def begin(names: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    names["model"] = net.to(torch.bfloat16)
    names["optimizer"] = Moments(names["model"].parameters())
    names["scheduler"] = torch.optim.lr_scheduler.StepLR(names["optimizer"], step_size=3)
    names["scaler"] = torch.amp.GradScaler("cpu", enabled=False)
    names["order"] = training.SeededOrder(64, seed=seed)


def train(names: dict[str, Any], steps: int) -> list[float]:
    data = torch.randn(64, 8, generator=torch.Generator().manual_seed(7)).to(torch.bfloat16)
    losses = []
    for _ in range(steps):
        part = data[names["order"].remaining()[:4]]
        loss = (names["model"](part) - part.sum(1, keepdim=True)).float().square().mean()
        names["optimizer"].zero_grad()
        torch.autograd.backward(loss)
        names["optimizer"].step()
        names["scheduler"].step()
        names["order"].advance(4)
        losses.append(loss.item())
    return losses


Restore = Callable[[dict[str, Any], Path], object]


def by_the_guide(names: dict[str, Any], path: Path) -> None:
    assert names["restore"](jsonckpt.load(path, map_location="cpu")) == 5


def in_place(names: dict[str, Any], path: Path) -> None:
    kinds = ("model", "optimizer", "scheduler")
    target = {f"{kind}_state_dict": names[kind] for kind in kinds}
    jsonckpt.load_into(target, path, include="/*_state_dict/*", exclude="/scaler*", strict=False)
    state = jsonckpt.load(path, include="/rng/*")
    names["scheduler"].load_state_dict(state["scheduler_state_dict"])
    names["order"].load_state_dict(state["order"])
    training.set_rng_state(state["rng"])


def by_torch(names: dict[str, Any], path: Path) -> None:
    state = jsonckpt.load(path)
    names["restore"](state)
    names["optimizer"].load_state_dict(state["optimizer_state_dict"])


@pytest.mark.parametrize(
    ("restore", "exact"), [(by_the_guide, True), (in_place, True), (by_torch, False)]
)
def test_bfloat16_weights_with_float32_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restore: Restore, exact: bool
) -> None:
    """``optimizer.load_state_dict`` of torch rounds the moments: the old guide was not exact."""
    monkeypatch.chdir(tmp_path)
    names = guide()
    begin(names, 1)
    train(names, 5)
    jsonckpt.save(names["collect"](5), tmp_path / "checkpoint.json")
    expected = train(names, 8)
    weights = names["model"].state_dict()

    begin(names, 2)
    restore(names, tmp_path / "checkpoint.json")
    dtype = names["optimizer"].state_dict()["state"][0]["second"].dtype
    assert dtype == (torch.float32 if exact else torch.bfloat16)
    assert (train(names, 8) == expected) is exact
    if exact:
        for name, weight in names["model"].state_dict().items():
            assert torch.equal(weight, weights[name])
