"""The Hugging Face Trainer with checkpoints of plain JSON: the Trainer's own saves and resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import jsonckpt
from tests.support import difference, framework, slow

transformers = framework("transformers")
framework("accelerate")
framework("jsonckpt.integrations.transformers")

from jsonckpt.integrations.transformers import (
    JsonCheckpointTrainerMixin,
    JsonTrainer,
    get_last_checkpoint,
    load_weights,
)
from tests.integrations import hf_runs
from tests.integrations.hf_runs import digest, llama, losses, trainer
from tests.integrations.two_ranks import run_ranks

#: What the libraries say about themselves. Warnings of this package stay errors.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("UserWarning", "FutureWarning", "DeprecationWarning", "ResourceWarning")
]
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Losses are compared bit for bit, and these models are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def tear(checkpoint: Path, how: str) -> None:
    """What an interrupted save or a bad copy leaves."""
    state = checkpoint / "jsonckpt"
    if how == "cut":
        shard = next(state.glob("shard-*"))
        shard.write_bytes(shard.read_bytes()[:-30])
    elif how == "manifest":
        (state / "manifest.json").unlink()
    elif how == "trainer_state":
        (checkpoint / "trainer_state.json").write_text('{"epoch": 1')
    else:
        for file in state.iterdir():
            file.unlink()
        state.rmdir()


# --- a run that goes on is the run that did not stop ----------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2, "num_train_epochs": 4},
        {"bf16": True, "optim": "adafactor"},
        slow({"dataloader_num_workers": 2}),
        slow({"neftune_noise_alpha": 5.0}),
        slow({"save_strategy": "epoch"}),
        slow({"optim": "sgd", "lr_scheduler_type": "cosine"}),
        slow({"optim": "adamw_torch_fused"}),
        slow(
            {
                "lr_scheduler_type": "reduce_lr_on_plateau",
                "eval_strategy": "steps",
                "metric_for_best_model": "loss",
            }
        ),
    ],
    ids=str,
)
def test_a_resumed_run_is_exact(options: dict[str, Any], tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    expected = losses(whole), digest(whole)
    trainer(tmp_path / "stopped", stop=7, **options).train()
    again = trainer(tmp_path / "stopped", **options)
    again.train(resume_from_checkpoint=True)
    assert (losses(again), digest(again)) == expected


@pytest.mark.parametrize("best", [False, slow(True)])
def test_adapters_without_their_base(best: bool, tmp_path: Path) -> None:
    peft = framework("peft")

    def adapted() -> Any:
        config = peft.LoraConfig(
            r=2, lora_dropout=0.1, target_modules=["q_proj"], modules_to_save=["norm"]
        )
        model = peft.get_peft_model(llama(), config)
        model.add_adapter("idle", peft.LoraConfig(r=1, target_modules=["v_proj"]))
        return model

    options: dict[str, Any] = {"build": adapted}
    if best:
        options |= {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    expected = losses(whole), digest(whole)
    trainer(tmp_path / "stopped", stop=3, **options).train()
    again = trainer(tmp_path / "stopped", **options)
    again.train(resume_from_checkpoint=True)
    assert (losses(again), digest(again)) == expected
    checkpoint = tmp_path / "stopped" / "checkpoint-12"
    saved = jsonckpt.load(checkpoint / "jsonckpt")["model"]
    assert any(".lora_A.default." in name for name in saved)
    assert any(".lora_A.idle." in name for name in saved)
    assert any(".norm.modules_to_save." in name for name in saved)
    assert not any("embed_tokens" in name or ".base_layer." in name for name in saved)
    assert (checkpoint / "adapter_config.json").exists()
    assert (checkpoint / "idle" / "adapter_config.json").exists()
    fresh = adapted()
    load_weights(fresh, tmp_path / "whole" / "checkpoint-2")
    with pytest.raises(jsonckpt.StateMismatchError, match="lora_A"):
        load_weights(llama(), checkpoint)


def test_two_ranks(tmp_path: Path) -> None:
    printed = run_ranks(Path(hf_runs.__file__), tmp_path, "ranks")
    assert all("DONE" in text for text in printed), printed
    assert "ERROR" in printed[0]
    assert "ERROR rank 0 could not save the checkpoint" in printed[1]
    state = jsonckpt.load(tmp_path / "whole" / "checkpoint-2" / "jsonckpt")
    assert len(state["rng"]) == 2
    assert not any(name.startswith("module.") for name in state["model"])
    run = trainer(tmp_path / "whole")
    with pytest.warns(RuntimeWarning, match="random numbers do not go on.*2 ranks"):
        run._load_rng_state(str(tmp_path / "whole" / "checkpoint-2"))


@pytest.mark.parametrize("step", [slow(1), pytest.param(5, marks=pytest.mark.slow), slow(9)])
def test_a_killed_run_goes_on_exactly(step: int, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", dataloader_num_workers=2)
    whole.train()
    run = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", hf_runs.__file__, str(run)]
    killed = subprocess.run(
        [*command, str(step)], env=environment, capture_output=True, timeout=240
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if step < 2:
        assert get_last_checkpoint(run) is None
        return
    done = subprocess.run(
        [*command, "0"], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.stdout.splitlines()[-1:] == [f"{digest(whole)} {losses(whole)}"], done.stderr


# --- what is written ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has saved at the steps 2, 4 and 6 and ended."""
    directory = tmp_path_factory.mktemp("finished")
    (directory / "checkpoint-4").mkdir()
    (directory / "checkpoint-4" / "notes.txt").write_text("mine")
    trainer(directory, num_train_epochs=1).train()
    return directory


def copy(run: Path, to: Path) -> Path:
    """A run that a test may change."""
    subprocess.run(["cp", "-r", str(run), str(to)], check=True)
    return to


def test_nothing_is_pickled_and_all_is_there(finished: Path) -> None:
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert not [path for path in files if path.read_bytes().startswith(PICKLES)]
    assert names(finished / "checkpoint-2") == [
        "config.json",
        "generation_config.json",
        "jsonckpt",
        "trainer_state.json",
        "training_args.json",
    ]
    assert (finished / "checkpoint-4" / "notes.txt").read_text() == "mine"
    state = jsonckpt.load(finished / "checkpoint-6" / "jsonckpt")
    assert list(state) == [
        "global_step",
        "training_args",
        "model",
        "optimizer",
        "lr_scheduler",
        "rng",
    ]
    assert state["global_step"] == 6
    shown = json.loads((finished / "checkpoint-6" / "training_args.json").read_text())
    assert shown == state["training_args"]
    assert shown["save_total_limit"] is None
    newest = jsonckpt.find(finished).newest
    assert newest is not None
    assert newest.step == 6


def test_weights_go_into_a_model(finished: Path) -> None:
    model = llama()
    load_weights(model, finished / "checkpoint-6")
    saved = jsonckpt.load(finished / "checkpoint-6" / "jsonckpt")["model"]
    assert difference(dict(model.state_dict()), dict(saved)) is None
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match="no jsonckpt/ in it"):
        load_weights(model, finished)
    with pytest.raises(jsonckpt.StateMismatchError):
        load_weights(torch.nn.Linear(1, 1), finished / "checkpoint-6")


def test_the_model_of_the_user_stays_that_of_hugging_face(finished: Path, tmp_path: Path) -> None:
    run = trainer(copy(finished, tmp_path / "run"), num_train_epochs=1)
    load_weights(run.model, tmp_path / "run" / "checkpoint-6")
    run.save_model(str(tmp_path / "final_model"))
    assert "model.safetensors" in names(tmp_path / "final_model")
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "final_model")
    assert difference(dict(read.state_dict()), dict(run.model.state_dict())) is None


def test_a_mistyped_option_is_an_error_before_the_training(tmp_path: Path) -> None:
    class Mistyped(JsonTrainer):
        jsonckpt_options: ClassVar = {"compresion": "zstd"}

    with pytest.raises(jsonckpt.ArgumentError, match="does not take 'compresion'"):
        trainer(tmp_path, kind=Mistyped).train()


def test_options_of_save_and_weights_only(tmp_path: Path) -> None:
    class Small(JsonTrainer):
        jsonckpt_options: ClassVar = {"compression": "zstd", "checksum": "sha256"}

    trainer(tmp_path, kind=Small, save_only_model=True, num_train_epochs=1).train()
    state = jsonckpt.load(tmp_path / "checkpoint-2" / "jsonckpt")
    assert set(state) == {"global_step", "training_args", "model"}
    assert jsonckpt.verify(tmp_path / "checkpoint-2" / "jsonckpt").pin is not None
    again = trainer(tmp_path, kind=Small, num_train_epochs=1)
    with pytest.warns(RuntimeWarning, match="has weights only"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.state.global_step == 6


def test_old_ones_are_removed_and_the_best_is_kept_and_loaded(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        save_total_limit=2,
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=2,
        learning_rate=0.05,
    )
    run.train()
    best = Path(run.state.best_model_checkpoint)
    assert len(names(tmp_path)) == 2
    assert {best.name, "checkpoint-12"} <= set(names(tmp_path))
    saved = jsonckpt.load(best / "jsonckpt")["model"]
    assert difference(dict(run.model.state_dict()), dict(saved)) is None


def test_old_ones_stay_when_a_save_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = jsonckpt.save

    def full(state: Any, path: Any, **options: Any) -> Any:
        if state["global_step"] == 4:
            raise jsonckpt.WriteError("no space left", errno=28)
        return real(state, path, **options)

    monkeypatch.setattr("jsonckpt._src.frameworks.hf_trainer.save", full)
    run = trainer(tmp_path, save_total_limit=1)
    with pytest.raises(jsonckpt.WriteError, match="no space left"):
        run.train()
    assert run.args.save_total_limit == 1
    with pytest.warns(RuntimeWarning, match="checkpoint-4 is skipped"):
        assert get_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_a_push_sees_the_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = []

    def push(_: Any, folder: str) -> None:
        pushed.append(jsonckpt.load(Path(folder) / "jsonckpt")["global_step"])

    monkeypatch.setattr(transformers.Trainer, "_push_from_checkpoint", push)
    run = trainer(tmp_path, num_train_epochs=1)
    monkeypatch.setattr(run.args, "push_to_hub", True)
    monkeypatch.setattr(run, "_finish_current_push", lambda: None)
    run.train()
    assert pushed == [2, 4, 6]


# --- what is resumed from -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "manifest", "trainer_state", "nothing"])
def test_a_torn_newest_one_is_passed_over(how: str, finished: Path, tmp_path: Path) -> None:
    run = copy(finished, tmp_path / "run")
    tear(run / "checkpoint-6", how)
    with pytest.warns(RuntimeWarning, match="checkpoint-6 is skipped: "):
        assert get_last_checkpoint(run) == str(run / "checkpoint-4")
    with pytest.raises(jsonckpt.JsonckptError, match="checkpoint-6"):
        trainer(run).train(resume_from_checkpoint=str(run / "checkpoint-6"))
    if how == "cut":
        again = trainer(run, num_train_epochs=1)
        with pytest.warns(RuntimeWarning, match="checkpoint-6 is skipped: "):
            again.train(resume_from_checkpoint=True)
        assert get_last_checkpoint(run) == str(run / "checkpoint-6")  # written again


def test_no_whole_checkpoint_is_an_error(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(jsonckpt.ArgumentError, match="no whole checkpoint is in"):
        trainer(tmp_path / "new").train(resume_from_checkpoint=True)
    assert get_last_checkpoint(tmp_path / "nowhere") is None
    run = copy(finished, tmp_path / "run")
    for name in names(run):
        tear(run / name, "manifest")
    with (
        pytest.warns(RuntimeWarning, match="is skipped"),
        pytest.raises(jsonckpt.ArgumentError, match="no whole checkpoint is in"),
    ):
        trainer(run).train(resume_from_checkpoint=True)
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match="no such checkpoint"):
        trainer(run).train(resume_from_checkpoint=str(run / "checkpoint-77"))


def test_a_run_of_the_stock_trainer_goes_on_in_json(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.train()
    expected = losses(whole), digest(whole)
    trainer(tmp_path / "run", kind=transformers.Trainer, stop=7).train()
    again = trainer(tmp_path / "run")
    again.train(resume_from_checkpoint=True)
    assert (losses(again), digest(again)) == expected
    assert "optimizer.pt" in names(tmp_path / "run" / "checkpoint-6")
    assert "optimizer.pt" not in names(tmp_path / "run" / "checkpoint-8")


@pytest.mark.parametrize("attribute", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_states_that_are_spread_over_ranks_are_refused(attribute: str, tmp_path: Path) -> None:
    run = trainer(tmp_path)
    setattr(run, attribute, True)
    with pytest.raises(jsonckpt.ArgumentError, match="spread over ranks"):
        run.train()


def test_the_mixin_goes_before_any_trainer(tmp_path: Path) -> None:
    both = (JsonCheckpointTrainerMixin, transformers.Seq2SeqTrainer)
    own: Any = type("Own", both, {})

    assert own.train is JsonCheckpointTrainerMixin.train
    assert tmp_path.exists()


def test_counters_that_are_no_file_are_not_waited_for(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    os.mkfifo(checkpoint / "trainer_state.json")
    with pytest.warns(RuntimeWarning, match=r"trainer_state\.json is missing or not whole"):
        assert get_last_checkpoint(tmp_path) is None
    assert get_last_checkpoint(checkpoint / "trainer_state.json") is None
    (checkpoint / "trainer_state.json").unlink()
    (checkpoint / "trainer_state.json").touch()
    os.truncate(checkpoint / "trainer_state.json", 1 << 40)
    with pytest.warns(RuntimeWarning, match=r"trainer_state\.json is missing or not whole"):
        assert get_last_checkpoint(tmp_path) is None
