"""PyTorch-Ignite's ``Checkpoint`` with files of plain JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from tests.support import difference, framework, same

framework("ignite.handlers")

from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint

from jsonckpt.integrations.ignite import JsonSaver, load_objects

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def objects() -> dict[str, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

    def step(engine: Any, batch: torch.Tensor) -> float:
        del engine
        optimizer.zero_grad()
        loss = model(batch).square().mean() + model[0](batch).abs().sum()
        loss.backward()
        optimizer.step()
        scheduler.step()
        return float(loss.detach())

    return {
        "trainer": Engine(step), "model": model, "optimizer": optimizer, "scheduler": scheduler,
    }  # fmt: skip


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(5, 4, generator=generator) for _ in range(4)]


def run(parts: dict[str, Any], saver: Any, epochs: int, **options: Any) -> tuple[Any, list[float]]:
    losses: list[float] = []
    trainer, handler = parts["trainer"], Checkpoint(parts, saver, **{"n_saved": 2, **options})
    trainer.add_event_handler(Events.EPOCH_COMPLETED, handler)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output))
    trainer.run(batches(), max_epochs=epochs)
    return handler, losses


def states(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items()}


def test_a_run_goes_on(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = objects()
    _, losses = run(whole, JsonSaver(tmp_path / "whole"), 5)
    torch.manual_seed(1)
    broken = objects()
    saver = JsonSaver(tmp_path / "broken")
    run(broken, saver, 3)
    names = sorted(path.name for path in (tmp_path / "broken").iterdir())
    assert names == ["checkpoint_12.json", "checkpoint_8.json"]
    assert saver.last_checkpoint == tmp_path / "broken" / "checkpoint_12.json"
    assert jsonckpt.training.latest(tmp_path / "broken") == saver.last_checkpoint
    with jsonckpt.open(saver.last_checkpoint) as opened:
        assert opened.metadata == {"basename": "checkpoint", "score_name": None, "priority": 12}
    resumed = objects()
    load_objects(resumed, saver.last_checkpoint)
    assert difference(states(resumed), states(broken)) is None
    _, later = run(resumed, JsonSaver(tmp_path / "broken", require_empty=False), 5)
    assert same(later, losses[12:])
    assert difference(states(resumed), states(whole)) is None


def test_the_old_checkpoint_stays_until_the_new_one_is_written(tmp_path: Path) -> None:
    saver = JsonSaver(tmp_path)
    saver({"w": torch.ones(2)}, "checkpoint_1.pt", {"priority": np.float32(0.5)})
    saver.remove("checkpoint_1.pt")
    assert (tmp_path / "checkpoint_1.json").exists()
    with pytest.raises(jsonckpt.UnsupportedTypeError):
        saver({"w": object()}, "checkpoint_2.pt", {})
    assert (tmp_path / "checkpoint_1.json").exists()
    saver({"w": torch.ones(2)}, "checkpoint_3.pt", None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_3.json"]
    saver.remove("checkpoint_3.pt")
    saver({"w": torch.zeros(2)}, "checkpoint_3.pt", {})
    assert same(jsonckpt.load(tmp_path / "checkpoint_3.json"), {"w": torch.zeros(2)})


def test_scores_and_one_object(tmp_path: Path) -> None:
    model, trainer = torch.nn.Linear(2, 2), Engine(lambda *_: None)
    handler = Checkpoint(
        {"model": model},
        JsonSaver(tmp_path),
        score_name="accuracy",
        score_function=lambda engine: np.float64(engine.state.epoch / 10),
        filename_pattern="{name}_{score}.json",
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, handler)
    trainer.run([0], max_epochs=3)
    assert [path.name for path in tmp_path.iterdir()] == ["model_0.3000.json"]
    other = torch.nn.Linear(2, 2)
    load_objects({"model": other}, tmp_path / "model_0.3000.json")
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    wider = torch.nn.Sequential(torch.nn.Linear(2, 2))
    load_objects({"model": wider}, tmp_path / "model_0.3000.json", strict=False)


def test_arguments(tmp_path: Path) -> None:
    with pytest.raises(jsonckpt.ArgumentError, match="encoding='xml'"):
        JsonSaver(tmp_path, encoding="xml")
    with pytest.raises(jsonckpt.ArgumentError, match="does not take metadata"):
        JsonSaver(tmp_path, metadata={})
    with pytest.raises(jsonckpt.ArgumentError, match="does not take 'compresion'"):
        JsonSaver(tmp_path, compresion="zstd")
    with pytest.raises(jsonckpt.ArgumentError, match="local paths only"):
        JsonSaver("s3://bucket/run")
    JsonSaver(tmp_path)({"w": 1}, "checkpoint_1.pt")
    with pytest.raises(jsonckpt.CheckpointExistsError, match=r"checkpoint_1\.json"):
        JsonSaver(tmp_path)
    JsonSaver(tmp_path, save_on_rank=1)({"w": 1}, "checkpoint_2.pt")
    assert not (tmp_path / "checkpoint_2.json").exists()


@pytest.mark.parametrize("state", [[1], 5, {}, {"model": 5}, {"model": {"weight": torch.ones(3)}}])
def test_what_does_not_fit_is_an_error_of_ours(tmp_path: Path, state: Any) -> None:
    jsonckpt.save(state, tmp_path / "c.json")
    with pytest.raises((jsonckpt.FormatError, jsonckpt.StateMismatchError)):
        load_objects({"model": torch.nn.Linear(1, 1)}, tmp_path / "c.json")
    with pytest.raises(jsonckpt.ArgumentError, match="to_load"):
        load_objects({"model": 5}, tmp_path / "c.json")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\0b"])
def test_no_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(jsonckpt.ArgumentError, match="filename"):
        JsonSaver(tmp_path / "run")({"a": 1}, name)
    assert not list(tmp_path.glob("*.json"))


def test_optimizers_keep_their_dtypes_and_others_are_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    momentum = torch.rand(2, 2)
    optimizer.state[model.weight]["momentum_buffer"] = momentum
    JsonSaver(tmp_path)({"optimizer": optimizer.state_dict()}, "checkpoint_1.pt")
    path = tmp_path / "checkpoint_1.json"
    fresh = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    load_objects({"optimizer": fresh}, path)
    assert torch.equal(fresh.state[model.weight]["momentum_buffer"], momentum)
    with pytest.raises(jsonckpt.StateMismatchError, match="another kind of optimizer"):
        load_objects({"optimizer": torch.optim.AdamW(model.parameters())}, path)
