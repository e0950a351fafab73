"""Several ranks: one writes, and with a process group they decide together."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """
import sys, time
import torch, torch.distributed as dist
import jsonckpt
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

def stop(number):
    dist.barrier()
    dist.destroy_process_group()
    sys.exit(number)

"""
LOOP = """
class State:
    def __init__(self):
        self.value = torch.zeros(4)
    def state_dict(self):
        # Needs all ranks, as the state of a sharded model does.
        both = self.value.clone()
        dist.all_reduce(both)
        return {"value": both}
    def load_state_dict(self, state):
        self.value = state["value"] / 2

state = State()
# Only the clock of rank 1 is near the deadline.
manager = jsonckpt.CheckpointManager(
    f"{folder}/run", every_steps=2, keep_last=2, process_group=dist.group.WORLD,
    deadline=2.0 if rank == 1 else 3600.0, async_save=True,
)
start = manager.restore(state) or 1
assert start == 1 or state.value[0] == start - 1, (start, state.value)
for step in range(start, 10_000):
    state.value += 1
    if manager.step(step, state):
        break
    time.sleep(0.02)
manager.close()
print(step, manager.stop_reason, flush=True)
stop(0)
"""
FAILS = """
manager = jsonckpt.CheckpointManager(
    f"{folder}/run", every_steps=1, process_group=dist.group.WORLD)
try:
    manager.step(1, {"f": (lambda: 0) if rank == 0 else 1})
except jsonckpt.JsonckptError as error:
    print(type(error).__name__, error.message[:20], flush=True)
stop(0)
"""
DIFFERENT = """
import shutil
alone = jsonckpt.CheckpointManager(f"{folder}/{rank}")
if rank == 0:
    for number in range(2):
        with jsonckpt.CheckpointManager(f"{folder}/{number}") as one:
            one.save(number + 5, {"w": torch.ones(2)})
dist.barrier()
manager = jsonckpt.CheckpointManager(f"{folder}/{rank}", process_group=dist.group.WORLD)
try:
    manager.restore({"w": torch.zeros(2)})
except jsonckpt.JsonckptError as error:
    print(error.message, flush=True)
stop(0)
"""
EACH_FOR_ITSELF = """
manager = jsonckpt.CheckpointManager(f"{folder}/run", every_steps=2)
for step in range(1, 5):
    manager.step(step, {"w": torch.full((2,), float(rank))})
manager.close()
dist.barrier()
value = torch.zeros(2)
start = manager.restore({"w": value})
print(start, value[0].item(), flush=True)
stop(0)
"""


def run(program: str, folder: Path) -> list[str]:
    (folder / "store").unlink(missing_ok=True)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM + program), str(rank), str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        found = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], found
    return [out.strip() for out, _ in found]


def test_ranks_stop_together(tmp_path: Path) -> None:
    found = run(LOOP, tmp_path)
    steps = [int(text.split()[0]) for text in found]
    assert steps[0] == steps[1]
    assert found[0].endswith("another rank stops")
    assert found[1].endswith("the time is up")
    rows = json.loads((tmp_path / "run" / "history.json").read_text())
    assert rows[-1]["step"] == steps[0]


@pytest.mark.slow
@pytest.mark.thorough
def test_ranks_go_on_together(tmp_path: Path) -> None:
    steps = [int(text.split()[0]) for text in run(LOOP, tmp_path)]
    again = [int(text.split()[0]) for text in run(LOOP, tmp_path)]
    assert again[0] == again[1] > steps[0] == steps[1]


@pytest.mark.slow
@pytest.mark.thorough
def test_an_error_of_the_rank_that_writes_is_one_on_all(tmp_path: Path) -> None:
    found = run(FAILS, tmp_path)
    assert [text.split()[0] for text in found] == ["UnsupportedTypeError", "JsonckptError"]
    assert found[1].endswith("rank 0 could not sav")


@pytest.mark.slow
@pytest.mark.thorough
def test_ranks_that_see_different_directories(tmp_path: Path) -> None:
    said = "the ranks have restored different steps: from 6 to 7"
    assert run(DIFFERENT, tmp_path) == [said, said]


@pytest.mark.slow
@pytest.mark.thorough
def test_without_a_group_rank_0_writes(tmp_path: Path) -> None:
    assert run(EACH_FOR_ITSELF, tmp_path) == ["5 0.0", "5 0.0"]
