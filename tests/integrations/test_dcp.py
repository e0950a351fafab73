"""``jsonckpt.integrations.dcp``: states of many ranks, saved on some and loaded on others."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import StateMismatchError
from jsonckpt.convert import convert
from tests.integrations import dcp_jobs as jobs
from tests.integrations.ranks import RankError, Ranks
from tests.schemas import validate_checkpoint
from tests.support import difference, slow

dcp = pytest.importorskip("jsonckpt.integrations.dcp")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    made = Ranks(tmp_path_factory.mktemp("stores"))
    yield made
    made.stop()


def shards_of(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if file.name.startswith("shard-"))


def nothing_in(path: Path) -> bool:
    """Whether a failed save has left no file. The directory may stay: ranks leave one by one."""
    return not path.exists() or not list(path.iterdir())


def only_json_in(path: Path) -> bool:
    for file in path.rglob("*"):
        if file.is_file():
            json.loads(file.read_text(encoding="utf-8"))
    return True


@pytest.mark.parametrize(
    ("kind", "saved_on", "loaded_on"),
    [("fsdp", 4, [1, 2, 3, 4]), ("fsdp", 1, [2]), slow("fsdp", 2, [1, 3, 4]),
     slow("fsdp", 3, [1, 2, 4])],
)  # fmt: skip
def test_fully_sharded_states_load_on_any_number_of_ranks(
    ranks: Ranks, kind: str, saved_on: int, loaded_on: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "c"
    expected = ranks.run(saved_on, jobs.save_trained, kind, str(path), {})[0]
    assert only_json_in(path)
    validate_checkpoint(path)
    assert difference(jsonckpt.load(path), expected) is None
    assert jsonckpt.verify(path)
    for count in loaded_on:
        for found in ranks.run(count, jobs.load_trained, kind, str(path), {}):
            assert difference(found, expected) is None


@pytest.mark.parametrize(
    ("kind", "count", "others"),
    [("fsdp tp", 4, [("tp", 2), ("fsdp", 3), ("plain", 1)]),
     ("hybrid fsdp", 4, [("fsdp", 2)]), slow("tp", 4, [("fsdp tp", 4)]),
     slow("plain", 2, [("fsdp tp", 4), ("tp", 2)])],
)  # fmt: skip
def test_tensor_parallel_and_replicated_states_load_into_each_other(
    ranks: Ranks, kind: str, count: int, others: list[tuple[str, int]], tmp_path: Path
) -> None:
    path = tmp_path / "c"
    expected = ranks.run(count, jobs.save_trained, kind, str(path), {})[0]
    assert difference(jsonckpt.load(path), expected) is None
    for other, number in others:
        for found in ranks.run(number, jobs.load_trained, other, str(path), {}):
            assert difference(found, expected) is None


def test_a_checkpoint_of_one_process_loads_into_a_distributed_state(
    ranks: Ranks, tmp_path: Path
) -> None:
    expected = ranks.run(1, jobs.save_trained, "plain", str(tmp_path / "c"), {})[0]
    for name in ("plain", "plain.json"):
        jsonckpt.save(expected, tmp_path / name, chunk_size=64)
        for found in ranks.run(2, jobs.load_trained, "fsdp", str(tmp_path / name), {}):
            assert difference(found, expected) is None


@pytest.mark.parametrize(
    ("shape", "saved", "loaded"),
    [
        ([7, 5], ("0", [4]), ("1", [4])),
        ([7, 5], ("01", [2, 2]), ("10", [2, 2])),
        ([2, 3, 4], ("r2", [2, 2]), ("0", [3])),
        ([2], ("0", [4]), ("r", [2])),
        ([0, 3], ("0", [2]), ("1", [3])),
        ([], ("r", [3]), ("r", [2])),
    ],
)
def test_dtensors_of_any_placement(
    ranks: Ranks, shape: list[int], saved: Any, loaded: Any, tmp_path: Path
) -> None:
    path = str(tmp_path / "c")
    ranks.run(torch.Size(saved[1]).numel(), jobs.save_dtensor, path, shape, *saved)
    expected = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    assert difference(jsonckpt.load(path)["w"], expected) is None
    for found in ranks.run(torch.Size(loaded[1]).numel(), jobs.load_dtensor, path, shape, *loaded):
        assert found == expected.tolist()


def test_each_rank_writes_shards_of_its_own(ranks: Ranks, tmp_path: Path) -> None:
    path = tmp_path / "c"
    options = {"metadata": {"run": 3}, "compression": "zstd", "checksum": "sha256"}
    ranks.run(3, jobs.save_state, jobs.same_on_all, str(path), options)
    state = jsonckpt.load(path)
    assert state["b"] is state["tied"]
    assert difference(state["w"], torch.ones(100, 3)) is None
    assert jsonckpt.open(path).metadata == {"run": 3}
    assert len({name.split("-")[2] for name in shards_of(path)}) == 2  # two tensors, two ranks
    for found in ranks.run(2, jobs.load_state, jobs.same_but_empty, str(path), {}):
        assert found["epoch"] == 4
        assert difference(found["tied"], torch.arange(6.0)) is None


def test_ranks_with_states_of_their_own_make_one(ranks: Ranks, tmp_path: Path) -> None:
    path = str(tmp_path / "c")
    ranks.run(3, jobs.save_state, jobs.stage, path, {})
    state = jsonckpt.load(path)
    assert list(state["model"]) == [f"layers.{rank}.weight" for rank in range(3)]
    assert state["optim"] == {0: {"step": 0}, 1: {"step": 1}, 2: {"step": 2}}
    found = ranks.run(3, jobs.load_state, jobs.empty_stage, path, {})
    for rank, one in enumerate(found):
        assert difference(one, jobs.stage(rank)) is None
    with pytest.raises(RankError) as caught:
        ranks.run(2, jobs.load_state, jobs.empty_stage, path, {})
    assert isinstance(caught.value.errors[1], StateMismatchError)
    assert set(caught.value.errors[1].unexpected) == {"/model/layers.2.weight", "/optim/2/step"}
    assert ranks.run(2, jobs.load_state, jobs.empty_stage, path, {"strict": False})


@pytest.mark.parametrize(
    ("make", "words"), [(jobs.one_name_two_places, "'a.b'"), (jobs.two_dtypes, "rank 1 float64")]
)
def test_states_that_do_not_fit_together_are_refused_on_all_ranks(
    ranks: Ranks, make: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(RankError) as caught:
        ranks.run(2, jobs.save_state, make, str(tmp_path / "c"), {})
    assert all(isinstance(caught.value.errors[rank], StateMismatchError) for rank in range(2))
    assert words in str(caught.value.errors[1])
    assert nothing_in(tmp_path / "c")


@pytest.mark.parametrize("failing", [0, 1])
def test_a_write_error_on_one_rank_fails_the_save_on_all(
    ranks: Ranks, failing: int, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    jsonckpt.save({"old": torch.ones(1)}, path)
    before = sorted(file.name for file in path.iterdir())
    for name, text in ranks.run(2, jobs.save_with_failing_rank, str(path), failing, "write"):
        assert name == "WriteError"
        assert f"rank {failing}: " in text
        assert "No space left" in text
    assert jsonckpt.load(path)["old"].tolist() == [1]
    assert sorted(file.name for file in path.iterdir()) == before


def test_a_plan_that_is_used_again_writes_the_present_values(ranks: Ranks, tmp_path: Path) -> None:
    expected = ranks.run(2, jobs.three_saves_with_one_plan, str(tmp_path))[0]
    for number in range(3):
        assert difference(jsonckpt.load(tmp_path / str(number)), expected[number]) is None


def test_saves_in_the_background(ranks: Ranks, tmp_path: Path) -> None:
    expected = ranks.run(2, jobs.background_saves, str(tmp_path))[0]
    for number in range(2):
        assert difference(jsonckpt.load(tmp_path / str(number)), expected[number]) is None


def test_planners_that_pickle_are_refused_where_they_would(ranks: Ranks, tmp_path: Path) -> None:
    found = ranks.run(2, jobs.own_planners, str(tmp_path / "a"), False)
    assert difference(jsonckpt.load(tmp_path / "a"), found[0]) is None
    for text in ranks.run(2, jobs.own_planners, str(tmp_path / "b"), True):
        assert "JsonSavePlanner" in text
    assert nothing_in(tmp_path / "b")


def test_a_save_without_collectives_is_refused(ranks: Ranks, tmp_path: Path) -> None:
    for text in ranks.run(2, jobs.without_collectives, str(tmp_path / "c")):
        assert "use_collectives" in text


def test_tied_weights_are_stored_once_on_all_ranks(ranks: Ranks, tmp_path: Path) -> None:
    for expected, found in ranks.run(4, jobs.tied_weights, str(tmp_path / "c")):
        assert difference(found, expected) is None
    state = jsonckpt.load(tmp_path / "c")
    assert state["model"]["head.weight"] is state["model"]["embedding.weight"]
    with jsonckpt.open(tmp_path / "c") as checkpoint:
        assert checkpoint.manifest.nbytes == 2 * 3 * 4 * 4


def test_a_model_on_the_meta_device_is_filled(ranks: Ranks, tmp_path: Path) -> None:
    expected = ranks.run(2, jobs.save_trained, "fsdp", str(tmp_path / "c"), {})[0]["model"]
    for found in ranks.run(2, jobs.meta_model, str(tmp_path / "c")):
        assert difference(dict(found), dict(expected)) is None


def test_every_way_to_read_sees_one_checkpoint(ranks: Ranks, tmp_path: Path) -> None:
    expected = ranks.run(3, jobs.save_trained, "fsdp", str(tmp_path / "c"), {})[0]
    tensors = dict(jsonckpt.stream(tmp_path / "c"))
    for name, tensor in expected["model"].items():
        assert torch.equal(tensors[f"/model/{name}"], tensor)
        assert torch.equal(jsonckpt.open(tmp_path / "c")[f"/model/{name}"].load(), tensor)
    convert(tmp_path / "c", tmp_path / "whole.json")
    assert difference(jsonckpt.load(tmp_path / "whole.json"), expected) is None
    net = jobs.Net()
    jsonckpt.load_into({"model": net}, tmp_path / "c", include="/model/*")
    assert difference(dict(net.state_dict()), dict(expected["model"])) is None
    for name in ("recovered", "recovered.json"):
        jsonckpt.recover(tmp_path / "c", tmp_path / name)
        assert difference(jsonckpt.load(tmp_path / name), expected) is None


def test_sharded_tensors_of_the_older_kind(ranks: Ranks, tmp_path: Path) -> None:
    for found in ranks.run(2, jobs.legacy_sharded, str(tmp_path / "c")):
        assert len(found) > 4
        assert all(found)
    assert difference(jsonckpt.load(tmp_path / "c")["w"], torch.arange(54.0).reshape(6, 9)) is None


def test_objects_with_a_state_dict(ranks: Ranks, tmp_path: Path) -> None:
    for state, loads, other, same in ranks.run(2, jobs.objects_with_states, str(tmp_path / "c")):
        assert difference(state, jobs.Progress(5).state) is None
        assert (loads, other, same) == (1, 1, True)


def test_a_tensor_that_some_ranks_have_no_part_of(ranks: Ranks, tmp_path: Path) -> None:
    found = ranks.run(3, jobs.part_of_the_ranks, str(tmp_path / "c"))
    assert found == [[[0, 0], [0, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]]
    assert jsonckpt.load(tmp_path / "c")["w"].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("step", "failing"),
    [("set_up_storage_writer", 1), ("prepare_local_plan", 0), ("prepare_global_plan", 0),
     ("write_data", 1), ("finish", 0), ("read read_metadata", 1), ("read prepare_local_plan", 1),
     ("read prepare_global_plan", 0), ("read read_data", 1)],
)  # fmt: skip
def test_an_error_in_any_step_reaches_all_ranks(
    ranks: Ranks, step: str, failing: int, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    if step.startswith("read"):
        ranks.run(2, jobs.save_dtensor, str(path), [4, 2], "0", [2])
    for name, text in ranks.run(2, jobs.faulty, str(path), step, failing):
        assert name == "CheckpointException"
        assert f"(RANK {failing})" in text
    assert nothing_in(path) != step.startswith("read")


def test_a_failed_save_in_the_background_leaves_nothing(ranks: Ranks, tmp_path: Path) -> None:
    for text in ranks.run(2, jobs.failing_background_save, str(tmp_path / "c")):
        assert "No space left" in text
    assert nothing_in(tmp_path / "c")


@pytest.mark.slow
@pytest.mark.thorough
def test_a_save_in_another_process(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(2, jobs.background_process, str(tmp_path / "c"))
    state = jsonckpt.load(tmp_path / "c")
    assert difference(state, {"w": torch.arange(12.0).reshape(6, 2), "n": {1: (2,)}}) is None


def test_ranks_that_opened_different_checkpoints_say_so(ranks: Ranks, tmp_path: Path) -> None:
    for number, name in enumerate(("old", "new")):
        jsonckpt.save({"w": torch.full((2,), float(number))}, tmp_path / name)
    for text in ranks.run(2, jobs.ranks_see_different_checkpoints, str(tmp_path)):
        assert text.startswith("IncompleteCheckpointError")
        assert "different checkpoints" in text


def test_a_result_of_the_save_before_is_refused(ranks: Ranks, tmp_path: Path) -> None:
    for text in ranks.run(2, jobs.late_message, str(tmp_path / "c")):
        assert text.startswith("WriteError")
        assert "rank 1 sent the result of another save" in text
    assert torch.equal(jsonckpt.load(tmp_path / "c")["w"], torch.arange(8.0).reshape(4, 2))


@pytest.mark.parametrize(
    ("failing", "step"), [(1, "die after"), slow(0, "die in commit"), slow(1, "die before")]
)
def test_a_rank_that_dies_leaves_the_old_checkpoint(
    ranks: Ranks, failing: int, step: str, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    jsonckpt.save({"old": torch.ones(1)}, path)
    with pytest.raises(RankError):
        ranks.run(2, jobs.save_with_failing_rank, str(path), failing, step)
    assert jsonckpt.load(path)["old"].tolist() == [1]
    jsonckpt.gc(path, older_than=0, dry_run=False)
    assert len(shards_of(path)) == 1
    dcp.save({"new": torch.zeros(1)}, path)
    assert list(jsonckpt.load(path)) == ["new"]


@pytest.mark.parametrize("kills", [1, slow(40)])
def test_ranks_that_die_at_random_moments(ranks: Ranks, kills: int, tmp_path: Path) -> None:
    path, dice = tmp_path / "c", random.Random(1)
    took = min(max(ranks.run(2, jobs.save_and_die, str(path), 1, [], 0.0)) for _ in range(3))
    there, found = 1, set()
    for number in range(kills):
        failing = dice.choice(([0], [1], [0, 1]))
        version, moment = 2 + number, dice.random() * took
        returned = False
        with suppress(RankError):
            ranks.run(2, jobs.save_and_die, str(path), version, failing, moment)
            returned = True
        state = jsonckpt.load(path)
        assert state["version"] in ({version} if returned else {there, version})
        expected = torch.arange(64.0 * 2048).reshape(64, 2048) + state["version"]
        assert torch.equal(state["w"], expected)
        found.add(state["version"] == version)
        there = state["version"]
    assert found


SCRIPT = """
import os, sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from jsonckpt.integrations import dcp

dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Linear(8, 4)
fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
if sys.argv[1] == "save":
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments, "step": 1}, sys.argv[2])
else:
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments, "step": None}
    dcp.load(state, sys.argv[2])
    set_state_dict(
        model, optimizer, model_state_dict=weights, optim_state_dict=state["optimizer"]
    )
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments, "step": state["step"]}, sys.argv[3])
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_scripts_that_torchrun_starts(tmp_path: Path) -> None:
    script, first, second = tmp_path / "train.py", tmp_path / "first", tmp_path / "second"
    script.write_text(SCRIPT)
    for count, arguments in ((3, ["save", first]), (2, ["load", first, second])):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   f"--nproc-per-node={count}", script, *arguments]  # fmt: skip
        subprocess.run(list(map(str, command)), check=True, timeout=300, capture_output=True)
    assert difference(jsonckpt.load(first), jsonckpt.load(second)) is None
    assert jsonckpt.load(second)["step"] == 1
