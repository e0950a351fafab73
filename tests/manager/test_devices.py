"""The manager and an exact resume on each device that is here: autocast, scaler, fused, dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jsonckpt import CheckpointManager, TrainState

STEPS, STOP = 8, 4
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


class Run:
    """A small training run in mixed precision, with a scaler and a fused optimizer."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 1)
        ).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, fused=True)
        self.scaler = torch.amp.GradScaler(device, init_scale=2.0**12, growth_interval=3)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        self.state = TrainState(
            model=self.model, optimizer=self.optimizer, scaler=self.scaler, scheduler=self.schedule
        )

    def step(self) -> float:
        batch = torch.randn(32, 8, device=self.device)
        with torch.autocast(self.device, dtype=self.dtype):
            loss = (self.model(batch).float() - batch.sum(1, keepdim=True)).square().mean()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return float(loss.item())


def final(run: Run) -> dict[str, Any]:
    return {name: tensor.cpu() for name, tensor in run.model.state_dict().items()}


@pytest.mark.parametrize("background", [False, True], ids=["save", "async"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_a_resumed_run_is_exact(
    tmp_path: Path, device: str, dtype: torch.dtype, background: bool
) -> None:
    torch.manual_seed(0)
    run = Run(device, dtype)
    with CheckpointManager(tmp_path, every_steps=STOP, async_save=background) as manager:
        losses = []
        for step in range(1, STEPS + 1):
            losses.append(run.step())
            manager.step(step, run.state)

    torch.manual_seed(1)
    resumed = Run(device, dtype)
    assert CheckpointManager(tmp_path).restore(resumed.state, STOP) == STOP + 1
    assert {tensor.device.type for tensor in resumed.model.parameters()} == {device}
    assert [resumed.step() for _ in range(STOP, STEPS)] == losses[STOP:]
    for name, tensor in final(run).items():
        assert torch.equal(tensor, final(resumed)[name]), name
    assert resumed.scaler.get_scale() == run.scaler.get_scale() != 2.0**12
