"""Accelerate with checkpoints of plain JSON: whole states, models by hooks, exact resume."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from tests.support import difference, framework, slow

accelerate = framework("accelerate")
framework("torchdata.stateful_dataloader")
framework("jsonckpt.integrations.accelerate")

from jsonckpt.integrations import accelerate as integration
from jsonckpt.integrations.accelerate import load_state, register_hooks, restore_rng, save_state
from tests.integrations import accelerate_runs
from tests.integrations.accelerate_runs import Run
from tests.integrations.two_ranks import run_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Losses are compared bit for bit, and these models are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pickled(directory: Path) -> list[str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [path.name for path in files if path.read_bytes().startswith(PICKLES)]


def named(tmp_path: Path, **project: Any) -> Any:
    return accelerate.utils.ProjectConfiguration(
        project_dir=str(tmp_path), automatic_checkpoint_naming=True, **project
    )


# --- a run that goes on is the run that did not stop ----------------------------------------------


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({}, 2),
        ({}, 5),  # the last batch of an epoch
        ({}, -1),  # after an epoch
        ({"gradient_accumulation_steps": 2}, 7),
        ({"mixed_precision": "bf16"}, 7),
        ({"scaled": True}, 7),
        ({"workers": 2}, 2),
        slow({"workers": 2}, 7),
        slow({"workers": 2}, -2),
        slow({"workers": 2}, 10),
        slow({"seedable": False}, -1),
        slow({"stateful": False}, -1),
        slow({"mixed_precision": "bf16", "gradient_accumulation_steps": 2}, -2),
    ],
)
def test_a_resumed_run_is_exact(options: dict[str, Any], at: int, tmp_path: Path) -> None:
    whole = Run(**options)
    losses = whole.train()
    digest = whole.digest()
    Run(**options).train(save_at=at, stop=True, to=str(tmp_path / "ckpt"))
    again = Run(**options)
    again.load(str(tmp_path / "ckpt"))
    done = at if at > 0 else -at * accelerate_runs.BATCHES
    assert again.count == done
    assert again.train() == losses[done:]
    assert again.digest() == digest
    assert pickled(tmp_path) == []


def test_skipped_batches_need_the_random_states_once_more(tmp_path: Path) -> None:
    whole = Run(stateful=False)
    losses = whole.train(1)
    Run(stateful=False).train(save_at=2, stop=True, to=str(tmp_path / "ckpt"))
    again = Run(stateful=False)
    again.load(str(tmp_path / "ckpt"))
    after = []
    for number, (x, y) in enumerate(again.accelerator.skip_first_batches(again.loader, 2)):
        if number == 0:
            restore_rng(again.accelerator, tmp_path / "ckpt")
        loss = torch.nn.functional.mse_loss(again.model(x), y)
        again.accelerator.backward(loss)
        again.optimizer.step()
        again.scheduler.step()
        again.optimizer.zero_grad()
        after.append(loss.item())
    assert after == losses[2:]


def test_what_cannot_be_exact_says_so(tmp_path: Path) -> None:
    run = Run(accelerate.Accelerator, workers=2)
    next(iter(run.loader))
    with pytest.warns(RuntimeWarning, match="order of the first epoch"):
        save_state(run.accelerator, tmp_path / "ckpt")
    run = Run(gradient_accumulation_steps=2)
    with pytest.warns(RuntimeWarning, match="gradients are being accumulated"):
        run.train(1, save_at=1, stop=True, to=str(tmp_path / "ckpt"))


def test_two_ranks(tmp_path: Path) -> None:
    printed = run_ranks(Path(accelerate_runs.__file__), tmp_path)
    assert all("DONE" in text for text in printed), printed
    assert "ERROR" in printed[0]
    assert "ERROR rank 0 could not save the checkpoint" in printed[1]
    state = jsonckpt.load(tmp_path / "ckpt" / "jsonckpt")
    assert len(state["ranks"]) == 2
    assert "0.weight" in state["models"][0]  # without the prefix of DDP
    with pytest.warns(RuntimeWarning, match="random numbers do not go on.*2 ranks"):
        Run().load(str(tmp_path / "ckpt"))


# --- what is written ------------------------------------------------------------------------------


def test_everything_is_in_one_checkpoint_beside_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    run = Run(scaled=True)
    counter = Counter()
    run.accelerator.register_for_checkpointing(counter)
    counter.seen = 41
    run.train(1)
    for _ in range(2):  # the second one replaces the first
        path = save_state(run.accelerator, tmp_path, extra={"epoch": 1}, compression="zstd")
    assert path == str(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["jsonckpt", "notes.txt"]
    state = jsonckpt.load(tmp_path / "jsonckpt")
    assert difference(state["models"][0], run.model.state_dict()) is None
    assert state["custom_objects"] == [{"seen": 41}]
    assert set(state) == {
        *("models", "optimizers", "schedulers", "scaler", "custom_objects", "ranks"),
        *("accumulation_step", "iteration", "extra"),
    }
    again = Run(scaled=True)
    other = Counter()
    again.accelerator.register_for_checkpointing(other)
    assert load_state(again.accelerator, tmp_path) == {"epoch": 1}
    assert other.seen == 41
    assert again.accelerator.scaler.get_scale() == run.accelerator.scaler.get_scale()


class Counter:
    """An object of a script."""

    seen = 0

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


def test_hooks_write_the_models_only(tmp_path: Path) -> None:
    run = Run(accelerate.Accelerator, stateful=False)
    handles = register_hooks(run.accelerator)
    run.train(1)
    run.accelerator.save_state(str(tmp_path))
    assert "model.safetensors" not in os.listdir(tmp_path)
    saved = jsonckpt.load(tmp_path / "jsonckpt")["models"][0]
    assert difference(saved, run.model.state_dict()) is None
    again = Run(accelerate.Accelerator, stateful=False)
    register_hooks(again.accelerator)
    again.accelerator.load_state(str(tmp_path))
    assert difference(dict(again.model.state_dict()), dict(run.model.state_dict())) is None
    for handle in handles:
        handle.remove()
    run.accelerator.save_state(str(tmp_path / "stock"))
    assert "model.safetensors" in os.listdir(tmp_path / "stock")


def test_hooks_of_a_script_are_called(tmp_path: Path) -> None:
    run = Run()
    seen = []

    def save_hook(models: list[Any], weights: list[Any], place: str) -> None:
        seen.append(("save", len(models), place))
        Path(place, "own.txt").write_text("own")
        weights.pop()

    def load_hook(models: list[Any], place: str) -> None:
        seen.append(("load", len(models), place))
        models.pop()

    run.accelerator.register_save_state_pre_hook(save_hook)
    run.accelerator.register_load_state_pre_hook(load_hook)
    run.accelerator.save_state(tmp_path / "ckpt")
    run.accelerator.load_state(tmp_path / "ckpt")
    assert seen == [(name, 1, str(tmp_path / "ckpt")) for name in ("save", "load")]
    assert jsonckpt.load(tmp_path / "ckpt" / "jsonckpt")["models"] == []
    assert (tmp_path / "ckpt" / "own.txt").read_text() == "own"


# --- automatic names ------------------------------------------------------------------------------


def test_automatic_names_keep_the_newest_and_count_on(tmp_path: Path) -> None:
    run = Run(project_config=named(tmp_path, total_limit=2))
    folder = tmp_path / "checkpoints"
    (folder / "checkpoint_x").mkdir(parents=True)
    (folder / "checkpoint_0" / "foreign").mkdir(parents=True)  # not ours: no state in it yet
    for count in range(4):
        run.accelerator.save_state(extra={"count": count})
    assert sorted(os.listdir(folder)) == ["checkpoint_2", "checkpoint_3", "checkpoint_x"]
    again = Run(project_config=named(tmp_path, total_limit=2))
    assert again.accelerator.load_state() == {"count": 3}
    again.accelerator.save_state()
    assert sorted(os.listdir(folder)) == ["checkpoint_3", "checkpoint_4", "checkpoint_x"]


def test_a_torn_newest_one_is_passed_over(tmp_path: Path) -> None:
    run = Run(project_config=named(tmp_path))
    for count in range(2):
        run.accelerator.save_state(extra={"count": count})
    newest = tmp_path / "checkpoints" / "checkpoint_1" / "jsonckpt"
    shard = next(newest.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.warns(RuntimeWarning, match="checkpoint_1.* is skipped"):
        assert run.accelerator.load_state() == {"count": 0}


def test_nothing_is_removed_when_a_save_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(project_config=named(tmp_path, total_limit=1))
    run.accelerator.save_state()

    def full(*_: Any, **__: Any) -> None:
        raise jsonckpt.WriteError("no space left", errno=28)

    monkeypatch.setattr("jsonckpt._src.frameworks.accelerate_state.save", full)
    with pytest.raises(jsonckpt.WriteError, match="no space left"):
        run.accelerator.save_state()
    monkeypatch.undo()
    assert run.accelerator.load_state() == {}
    run.accelerator.save_state()  # the same name, again
    assert run.accelerator.load_state() == {}


# --- refusals -------------------------------------------------------------------------------------


def test_other_parts_are_listed_and_nothing_changes(tmp_path: Path) -> None:
    run = Run()
    save_state(run.accelerator, tmp_path)
    other = Run()
    other.accelerator.prepare(torch.nn.Linear(1, 1))
    other.accelerator.register_for_checkpointing(Counter())
    before = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
    with pytest.raises(jsonckpt.StateMismatchError) as caught:
        load_state(other.accelerator, tmp_path)
    assert caught.value.mismatched == [
        "2 models here, 1 in the checkpoint",
        "1 registered object here, 0 in the checkpoint",
    ]
    assert difference(dict(other.model.state_dict()), before) is None
    other = Run()
    with torch.no_grad():
        other.model[0].weight = torch.nn.Parameter(torch.zeros(8, 5))
    weight = other.model[2].weight.clone()
    with pytest.raises(jsonckpt.StateMismatchError, match=r"0\.weight"):
        load_state(other.accelerator, tmp_path)
    assert torch.equal(other.model[2].weight, weight)


@pytest.mark.parametrize("call", [save_state, load_state, register_hooks])
def test_states_that_are_spread_over_ranks_are_refused(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run()
    fsdp = accelerate.utils.DistributedType.FSDP
    monkeypatch.setattr(type(run.accelerator), "distributed_type", fsdp)
    arguments = () if call is register_hooks else (tmp_path,)
    with pytest.raises(jsonckpt.ArgumentError, match="FSDP spreads the state over ranks"):
        call(run.accelerator, *arguments)
    assert os.listdir(tmp_path) == []


def test_missing_arguments_and_directories(tmp_path: Path) -> None:
    run = Run()
    with pytest.raises(jsonckpt.ArgumentError, match="output_dir is missing"):
        save_state(run.accelerator)
    with pytest.raises(jsonckpt.ArgumentError, match="does not take 'compresion'"):
        save_state(run.accelerator, tmp_path, compresion="zstd")
    with pytest.raises(jsonckpt.ArgumentError, match="input_dir is missing"):
        load_state(run.accelerator)
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        load_state(run.accelerator, tmp_path / "nowhere")
    with pytest.raises(jsonckpt.ArgumentError, match="map_location must be"):
        run.accelerator.load_state(tmp_path, map_location="cuda")
    with pytest.raises(jsonckpt.ArgumentError, match=r"arguments of torch\.load"):
        run.accelerator.load_state(tmp_path, load_kwargs={"weights_only": True})
    run = Run(project_config=named(tmp_path))
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match="no whole checkpoint"):
        load_state(run.accelerator)


def test_the_public_names() -> None:
    for name in integration.__all__:
        assert getattr(integration, name).__doc__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert issubclass(integration.JsonAccelerator, accelerate.Accelerator)


# --- checkpoints of others, and damaged ones ------------------------------------------------------

_FORGED: dict[str, Any] = {
    "no object": lambda state: [*state],
    "other names": lambda state: {"model": state["models"][0]},
    "ranks are none": lambda state: {**state, "ranks": []},
    "a rank is a number": lambda state: {**state, "ranks": [5]},
    "a loader is empty": lambda state: {**state, "ranks": [{"rng": {}, "loaders": [{}]}]},
    "a negative place": lambda state: {**state, "accumulation_step": -1},
    "a place that is none": lambda state: {**state, "accumulation_step": True},
    "extra is a text": lambda state: {**state, "extra": "x"},
    **{
        f"without {name}": lambda state, name=name: {
            key: item for key, item in state.items() if key != name
        }
        for name in ("models", "optimizers", "schedulers", "scaler", "ranks", "extra")
    },
}


@pytest.mark.parametrize("kind", _FORGED)
def test_what_is_no_checkpoint_of_save_state_is_refused_first(tmp_path: Path, kind: str) -> None:
    one = accelerate.Accelerator(cpu=True)
    model = one.prepare(torch.nn.Linear(2, 1))
    save_state(one, tmp_path / "one")
    state = jsonckpt.load(tmp_path / "one" / "jsonckpt")
    jsonckpt.save(_FORGED[kind](state), tmp_path / "two" / "jsonckpt")
    with torch.no_grad():
        model.weight.fill_(7)
    with pytest.raises(jsonckpt.FormatError, match="not a checkpoint of save_state"):
        load_state(one, tmp_path / "two")
    assert model.weight.tolist() == [[7, 7]]


def test_a_scheduler_that_refuses_its_state_is_named(tmp_path: Path) -> None:
    one = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    one.prepare(torch.optim.lr_scheduler.StepLR(optimizer, 2))
    save_state(one, tmp_path / "one")
    state = jsonckpt.load(tmp_path / "one" / "jsonckpt")
    jsonckpt.save({**state, "schedulers": [5]}, tmp_path / "two" / "jsonckpt")
    with pytest.raises(jsonckpt.StateMismatchError, match="AcceleratedScheduler"):
        load_state(one, tmp_path / "two")


def test_old_states_behind_links_and_with_odd_names_are_not_followed(tmp_path: Path) -> None:
    one = accelerate.Accelerator(cpu=True, project_config=named(tmp_path, total_limit=1))
    one.prepare(torch.nn.Linear(1, 1))
    folder, kept = tmp_path / "checkpoints", tmp_path / "kept"
    (kept / "jsonckpt").mkdir(parents=True)
    folder.mkdir()
    (folder / "checkpoint_000").symlink_to(kept)
    (folder / "checkpoint_00" / "jsonckpt").mkdir(parents=True)
    save_state(one)
    save_state(one)
    assert sorted(os.listdir(folder)) == ["checkpoint_000", "checkpoint_1"]
    assert (kept / "jsonckpt").is_dir()


@pytest.mark.parametrize("path", [5, b"x", "a\0b"])
def test_what_is_no_path_is_said(path: Any) -> None:
    one = accelerate.Accelerator(cpu=True)
    for call in (save_state, load_state):
        with pytest.raises(jsonckpt.ArgumentError, match="put_dir"):
            call(one, path)
