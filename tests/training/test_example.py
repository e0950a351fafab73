"""The example, tiny: it trains, stops, goes on exactly, and its proof can fail."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt import training

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PROGRAM = EXAMPLES / "train_text_generation.py"

# 54 training samples, 4 in a step: 14 steps in an epoch, the last one of 2 samples.
TINY = [
    *("--max-samples=60", "--max-length=16", "--vocabulary=300"),
    *("--layers=1", "--width=16", "--heads=2"),
    *("--batch-size=2", "--gradient-accumulation=2", "--save-every=4"),
]
STEPS = 28


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("train_text_generation")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def proof(example: Any) -> Any:
    assert example
    return importlib.import_module("prove_resume")


@pytest.fixture(autouse=True)
def _keep_torch_settings() -> Iterator[None]:
    threads = torch.get_num_threads()
    with training.fork_rng():
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def straight(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    output = tmp_path_factory.mktemp("straight")
    assert example.main([f"--output={output}", *TINY]) == 0
    return output


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the deadline come after ``step`` steps of the next run."""
    asked = [0]

    def reached(deadline: training.Deadline, reserve: float = 0.0) -> bool:
        del reserve
        asked[0] += 1
        deadline.reason = "the test says so" if asked[0] >= step else None
        return deadline.reason is not None

    monkeypatch.setattr(training.Deadline, "reached", reached)


def run_in_two(
    example: Any, output: Path, monkeypatch: pytest.MonkeyPatch, step: int, *more: str
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        assert example.main([f"--output={output}", *TINY, *more]) == 0
    assert example.main([f"--output={output}", "--resume=latest"]) == 0


def losses(output: Path) -> list[str]:
    lines = (output / "steps.jsonl").read_text().splitlines()
    return [json.loads(line)["loss_hex"] for line in lines]


def final_state(output: Path, epoch: int = 2) -> Any:
    return jsonckpt.load(output / f"checkpoint_epoch{epoch}.json", map_location="cpu")


def test_the_files_of_a_run(straight: Path) -> None:
    names = {path.name for path in straight.iterdir()}
    assert names == {
        "best_model.json",
        "checkpoint_epoch1.json",
        "checkpoint_epoch2.json",
        "checkpoint_epoch2_step0016.json",
        "checkpoint_epoch2_step0020.json",
        "checkpoint_epoch2_step0024.json",
        "final_model",
        "steps.jsonl",
        "tokenizer.json",
        "training_history.json",
    }
    history = json.loads((straight / "training_history.json").read_text())
    assert [entry["step"] for entry in history["history"]] == [4, 8, 12, 14, 16, 20, 24, 28]
    best = min(entry["val_loss"] for entry in history["history"])
    assert jsonckpt.load(straight / "best_model.json")["val_loss"] == best
    state = final_state(straight)
    assert (state["epoch"], state["step"], state["step_in_epoch"]) == (2, STEPS, 14)
    assert len(losses(straight)) == STEPS


def test_the_exported_model_is_the_trained_one(straight: Path) -> None:
    from transformers import AutoTokenizer, GPT2LMHeadModel

    loaded: Any = GPT2LMHeadModel.from_pretrained(straight / "final_model")
    weights = final_state(straight)["model_state_dict"]
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
    tokenizer: Any = AutoTokenizer.from_pretrained(straight / "final_model")
    text = "The assert statement: x = {}\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("step", [1, 14, 17])
def test_a_run_that_was_stopped_goes_on_exactly(
    example: Any,
    proof: Any,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    run_in_two(example, tmp_path, monkeypatch, step)
    assert losses(tmp_path) == losses(straight)
    assert proof.differences(final_state(straight), final_state(tmp_path)) == []


def test_the_gradient_scaler_goes_on_exactly(
    example: Any, proof: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["--precision=float16", "--epochs=1", "--max-samples=30"]
    assert example.main([f"--output={whole}", *TINY, *options]) == 0
    run_in_two(example, parts, monkeypatch, 3, *options)
    expected = final_state(whole, epoch=1)
    assert expected["scaler_state_dict"]["_growth_tracker"] > 0
    assert losses(parts) == losses(whole)
    assert proof.differences(expected, final_state(parts, epoch=1)) == []


@pytest.mark.parametrize("forgotten", ["set_rng_state", "restore_optimizer"])
def test_what_is_not_restored_is_noticed(
    example: Any,
    proof: Any,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forgotten: str,
) -> None:
    monkeypatch.setattr(training, forgotten, lambda *_: None)
    run_in_two(example, tmp_path, monkeypatch, 6)
    assert losses(tmp_path)[:6] == losses(straight)[:6]
    assert losses(tmp_path)[6:] != losses(straight)[6:]
    assert proof.differences(final_state(straight), final_state(tmp_path)) != []


def test_weights_alone_can_be_resumed_elsewhere(
    example: Any, straight: Path, tmp_path: Path
) -> None:
    checkpoint = straight / "checkpoint_epoch2_step0020.json"
    arguments = [f"--output={tmp_path}", f"--resume={checkpoint}", "--no-optimizer"]
    assert example.main([*arguments, "--save-every=1", "--keep=0"]) == 0
    saved, first = (
        jsonckpt.load(path) for path in (checkpoint, tmp_path / "checkpoint_epoch2_step0021.json")
    )
    assert first["schedule_start"] == 20
    assert {int(entry["step"]) for entry in first["optimizer_state_dict"]["state"].values()} == {1}
    assert len(first["history"]) == len(saved["history"]) + 1
    # One step at the start of a warm-up away from the saved weights, and not a fresh model.
    for name, weight in saved["model_state_dict"].items():
        assert torch.allclose(weight, first["model_state_dict"][name], atol=0.01), name
    assert (tmp_path / "tokenizer.json").read_bytes() == (straight / "tokenizer.json").read_bytes()
    assert (tmp_path / "checkpoint_epoch2.json").exists()


def test_more_epochs_on_resume(
    example: Any, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--output={tmp_path}", f"--resume={straight}", "--epochs=3"]
    assert example.main([*arguments, "--learning-rate=0.001"]) == 0
    assert "changed on resume: epochs from 2 to 3" in capsys.readouterr().err
    state = jsonckpt.load(tmp_path / "checkpoint_epoch3.json")
    assert (state["step"], state["scheduler_state_dict"]["base_lrs"]) == (42, [0.001])


def test_what_cannot_be_done_is_said(example: Any, straight: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([f"--output={straight}"], "--resume latest"),
        ([f"--output={straight}", "--resume=latest", "--seed=1"], "--seed cannot change"),
        ([f"--output={straight}", "--resume=latest", "--batch-size=8"], "must stay 4"),
        ([f"--output={tmp_path}", "--resume=latest"], "no checkpoint"),
    ):
        with pytest.raises(SystemExit, match=message):
            example.main(arguments)


def test_a_line_that_was_cut_off_is_taken_out_of_the_log(example: Any, tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b'{"step": 1}\n{"ste')
    with example.open_log(path) as log:
        log(step=2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_differences_sees_every_bit(proof: Any) -> None:
    nan = float("nan")
    state = {"t": torch.tensor([0.0, nan]), "a": np.arange(3), "f": nan, "l": [(1, "x"), None]}
    same = {"t": torch.tensor([0.0, nan]), "a": np.arange(3), "f": nan, "l": [(1, "x"), None]}
    assert proof.differences(state, same) == []
    for key, other in (
        ("t", torch.tensor([-0.0, nan])),
        ("t", torch.tensor([0.0, nan], dtype=torch.float64)),
        ("t", torch.tensor([[0.0, nan]])),
        ("a", np.arange(3, dtype=np.int32)),
        ("a", np.array([0, 1, 3])),
        ("f", 1.0),
        ("l", [[1, "x"], None]),
        ("l", [(1, "x")]),
        ("l", [(True, "x"), None]),
    ):
        lines = proof.differences(state, {**same, key: other})
        assert len(lines) == 1
        assert lines[0].startswith(f"/{key}")
    assert proof.differences(state, dict(reversed(same.items()))) != []


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_prove_kills_resumes_and_finds_no_difference(tmp_path: Path) -> None:
    result = run_program("--prove", f"--output={tmp_path}", "--kill-at=9", *TINY)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "DIFFER" not in result.stdout
    for line in ("losses after the resume", "model_state_dict", "optimizer_state_dict", "rng"):
        assert line in result.stdout
    assert "torch.save" in result.stdout
    assert "Warning" not in result.stderr, result.stderr


@pytest.mark.slow
def test_sigterm_saves_and_stops(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, str(PROGRAM), f"--output={tmp_path}", *TINY, "--epochs=10000"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    with child, child.stderr as lines:
        for line in lines:
            if "checkpoint_epoch1_step0004.json" in line:
                child.send_signal(signal.SIGTERM)
                break
        rest = lines.read()
        assert child.wait(timeout=120) == 0
    assert "because SIGTERM was received" in rest
    newest = training.latest(tmp_path)
    assert newest is not None
    steps = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert jsonckpt.load(newest)["step"] == json.loads(steps[-1])["step"]
