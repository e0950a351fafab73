"""Data-parallel runs of two ranks: each rank gets its own random state back."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import StateMismatchError, TrainState

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch has no distributed package"
)


def build(seed: int, *, per_rank: Any = ("rng", "data")) -> TrainState:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    # Ranks have the same weights, and draw other numbers.
    torch.manual_seed(seed + 100 * (1 + torch.distributed.get_rank()))
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=0.05)
    data = torch.Generator().manual_seed(seed + torch.distributed.get_rank())
    return TrainState(model=parallel, optimizer=optimizer, data=data, per_rank=per_rank)


def train(state: TrainState, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        batch = torch.randn(3, 4, generator=state["data"])
        loss = (state["model"](batch) - batch.sum(1, keepdim=True)).square().mean()
        state["optimizer"].zero_grad()
        torch.autograd.backward(loss)
        state["optimizer"].step()
        losses.append(loss.item())
    return losses


def work(rank: int, folder: str, answers: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    path = Path(folder, "checkpoint")
    state = build(1)
    train(state, 3)
    saved = state.state_dict()
    if rank == 0:
        jsonckpt.save(saved, path)
    torch.distributed.barrier()
    losses = train(state, 3)
    resumed = build(2)
    resumed.restore(path)
    again = train(resumed, 3)
    messages = []
    for per_rank in ((), ("rng",)):
        try:
            build(3, per_rank=per_rank).restore(path)
        except StateMismatchError as error:
            messages.append(str(error))
    answers.put((rank, losses, again, messages))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_resume_exactly(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.runs"])
    answers = context.Queue()
    arguments = [(rank, str(tmp_path), answers) for rank in range(2)]
    processes = [context.Process(target=work, args=one) for one in arguments]
    try:
        for process in processes:
            process.start()
        found = sorted(answers.get(timeout=120) for _ in processes)
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert found[0][1] != found[1][1]  # the ranks do not see the same
    for _, losses, again, messages in found:
        assert again == losses
        assert len(messages) == 2
        assert "/rng: the states of 2 ranks; pass per_rank= to TrainState" in messages[0]
        assert "/data: the states of 2 ranks" in messages[1]

    # The checkpoint of a wrapped model of two ranks, in a plain one.
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    TrainState(model=model, rng=False).restore(
        tmp_path / "checkpoint", skip=("optimizer", "data", "rng")
    )
    saved = jsonckpt.load(tmp_path / "checkpoint")
    assert len(saved["rng"]["ranks"]) == 2
    assert all(torch.equal(item, saved["model"][name]) for name, item in model.state_dict().items())
    with pytest.raises(StateMismatchError, match="a state for each of 1 ranks is needed, found"):
        TrainState(per_rank="rng").restore(
            tmp_path / "checkpoint", skip=("model", "optimizer", "data")
        )
