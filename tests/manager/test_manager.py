"""``CheckpointManager``: what is saved, what stays, and where a run goes on."""

from __future__ import annotations

import errno
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt import CheckpointManager
from jsonckpt._src.manager import run as run_module
from jsonckpt._src.storage.lock import PathLock
from tests.support import lacking


def state_of(value: float) -> dict[str, Any]:
    return {"w": torch.full((100,), value), "note": "x"}


def saved(manager: CheckpointManager) -> list[int]:
    return [one.step for one in manager.steps()]


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir() if path.name.startswith("step-"))


def history(run: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((run / "history.json").read_text())
    return rows


def train(
    run: Path, steps: range, *, losses: dict[int, float] | None = None, **options: Any
) -> CheckpointManager:
    """Save each step of a range."""
    manager = CheckpointManager(run, every_steps=1, **options)
    for step in steps:
        metrics = None if losses is None else {"loss": losses[step]}
        assert manager.step(step, state_of(step), metrics=metrics) is False
    manager.close()
    return manager


def damage(path: Path) -> None:
    """Change a character in the middle of a payload."""
    shard = next(iter(path.glob("shard-*"))) if path.is_dir() else path
    text = bytearray(shard.read_bytes())
    place = re.search(rb"[A-Za-z0-9+/]{200}", bytes(text)).start() + 100  # type: ignore[union-attr]
    text[place] = ord("A") if text[place] != ord("A") else ord("B")
    shard.write_bytes(bytes(text))


# --- saving and keeping ---------------------------------------------------------------------------


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("single_file", [False, True])
def test_keeps_the_last_the_best_and_every_tenth(
    tmp_path: Path, in_background: bool, single_file: bool
) -> None:
    losses = {step: abs(step - 13) + 1.0 for step in range(1, 26)}
    manager = train(
        tmp_path, range(1, 26), losses=losses, keep_last=2, keep_best=("loss", "min", 2),
        keep_every=10, async_save=in_background, single_file=single_file,
    )  # fmt: skip
    assert saved(manager) == [10, 12, 13, 20, 24, 25]
    end = ".json" if single_file else ""
    assert names(tmp_path) == [f"step-{step:08}{end}" for step in saved(manager)]
    rows = history(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 26))
    assert {row["step"] for row in rows if row["status"] == "kept"} == set(saved(manager))
    assert {row["status"] for row in rows} == {"kept", "removed"}
    assert rows[12]["metrics"] == {"loss": 1.0}
    assert all(row["seconds"] >= 0 and row["bytes"] > 100 and row["time"] for row in rows)
    latest, best = manager.latest(), manager.best()
    assert latest is not None
    assert best is not None
    assert (latest.step, best.step, best.metrics) == (25, 13, {"loss": 1.0})
    assert torch.equal(jsonckpt.load(best)["w"], state_of(13)["w"])
    assert jsonckpt.verify(latest.path).ok


def test_saves_when_due(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, every_steps=10)
    for step in range(0, 45, 4):  # the multiples of 10 are not among the steps
        manager.step(step, state_of(step))
    assert saved(manager) == [12, 20, 32, 40]
    manager.save(41, state_of(41))
    assert saved(manager)[-1] == 41
    manager.close()


def test_a_step_is_asked_for_its_state_only_when_due(tmp_path: Path) -> None:
    class State:
        calls = 0

        def state_dict(self) -> dict[str, Any]:
            self.calls += 1
            return state_of(1)

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.state = state

    state = State()
    with CheckpointManager(tmp_path, every_steps=5) as manager:
        for step in range(1, 12):
            manager.step(step, state)
    assert state.calls == 2
    assert CheckpointManager(tmp_path).restore(state) == 11
    assert torch.equal(state.state["w"], state_of(1)["w"])


def test_modules_and_optimizers_are_saved_and_filled_in_place(tmp_path: Path) -> None:
    def build() -> dict[str, Any]:
        model = torch.nn.Linear(3, 2)
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters()), "epoch": 0}

    state = build()
    state["model"](torch.ones(1, 3)).sum().backward()
    state["optimizer"].step()
    state["epoch"] = 4
    with CheckpointManager(tmp_path) as manager:
        assert manager.restore(state) is None
        manager.save(7, state)
    other = build()
    weight = other["model"].weight
    assert CheckpointManager(tmp_path).restore(other) == 8
    assert other["model"].weight is weight
    assert torch.equal(weight, state["model"].weight)
    assert other["epoch"] == 4
    moment = other["optimizer"].state[weight]["exp_avg"]
    assert torch.equal(moment, state["optimizer"].state[state["model"].weight]["exp_avg"])


def test_metrics_of_any_kind_of_number(tmp_path: Path) -> None:
    metrics = {
        "a": torch.tensor(0.5, dtype=torch.bfloat16), "b": np.float32(0.25), "c": 3,
        "d": 1e300, "loss": torch.ones(1, requires_grad=True).sum(),
        "nan": float("nan"), "inf": float("inf"), "less": -float("inf"),
    }  # fmt: skip
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, state_of(1), metrics=metrics)
    assert history(tmp_path)[0]["metrics"] == {
        "a": 0.5, "b": 0.25, "c": 3,
        "d": 1e300, "loss": 1.0, "nan": "NaN", "inf": "Infinity", "less": "-Infinity",
    }  # fmt: skip
    (tmp_path / "history.json").unlink()
    (row,) = CheckpointManager(tmp_path).steps()
    expected = {"a": 0.5, "b": 0.25, "c": 3, "d": 1e300, "loss": 1.0}
    expected |= {"nan": float("nan"), "inf": float("inf"), "less": -float("inf")}
    assert repr(dict(row.metrics)) == repr(expected)


def test_a_metric_that_is_nan_is_never_the_best(tmp_path: Path) -> None:
    losses = {1: 3.0, 2: float("nan"), 3: 2.0, 4: 2.0, 5: 9.0}
    manager = train(tmp_path, range(1, 6), losses=losses, keep_last=1, keep_best=("loss", "min"))
    best = manager.best()
    assert best is not None
    assert best.step == 3  # of equal ones the older
    assert saved(manager) == [3, 5]


def test_a_mistyped_metric_is_told(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep_best=("val_los", "min", 1))
    with pytest.warns(RuntimeWarning, match="'val_los', but metrics has only 'val_loss'"):
        manager.save(1, state_of(1), metrics={"val_loss": 1.0})
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match="no checkpoint has the metric"):
        manager.best()
    manager.close()


def test_history_is_a_table_for_pandas(tmp_path: Path) -> None:
    train(tmp_path, range(1, 4), losses={1: 3.0, 2: 2.0, 3: 1.5}, keep_last=2)
    lines = (tmp_path / "history.json").read_text().splitlines()
    assert len(lines) == 5  # a row on each line
    try:
        import pandas
    except ImportError:
        lacking("pandas", "a table is made with it")
    table = pandas.json_normalize(history(tmp_path))
    assert table["metrics.loss"].tolist() == [3.0, 2.0, 1.5]
    assert table["status"].tolist() == ["removed", "kept", "kept"]


def test_save_options_reach_the_save(tmp_path: Path) -> None:
    with CheckpointManager(
        tmp_path, single_file=True, encoding="list", compression="zstd", metadata={"who": "me"}
    ) as manager:
        row = manager.save(1, state_of(1))
    assert row is not None
    assert row.name == "step-00000001.json.zst"
    metadata = jsonckpt.open(row).metadata
    assert metadata["who"] == "me"
    assert metadata["checkpoint_manager"]["step"] == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep_last": 0}, "keep_last must be a positive integer"),
        ({"keep_best": ("a", "lowest")}, "keep_best is"),
        ({"keep_best": ("a", "min", 0)}, "the number in keep_best"),
        ({"every_steps": True}, "every_steps must be"),
        ({"every_minutes": -1}, "every_minutes must be"),
        ({"deadline": "soon"}, "deadline is 'soon'"),
        ({"on_error": "ignore"}, "on_error must be"),
        ({"overwrite": False}, "overwrite is not an argument"),
        ({"keep_lats": 3}, "'keep_lats' is not an argument"),
        ({"compression": "gzip"}, "compression"),
        ({"metadata": {"checkpoint_manager": 1}}, "which the manager writes"),
        ({"share_unchanged": True, "single_file": True}, "share_unchanged needs"),
    ],
)
def test_wrong_arguments(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(jsonckpt.ArgumentError, match=says):
        CheckpointManager(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_wrong_steps_and_metrics(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    for step in (-1, 1.5, True, "1"):
        with pytest.raises(jsonckpt.ArgumentError, match="step must be an integer"):
            manager.save(step, state_of(1))  # type: ignore[arg-type]
    for metrics in ({"a": "high"}, {3: 1.0}, [1.0], {"a": torch.ones(2)}):
        with pytest.raises(jsonckpt.ArgumentError, match="metrics"):
            manager.save(1, state_of(1), metrics=metrics)  # type: ignore[arg-type]
    assert manager.history == ()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(jsonckpt.ArgumentError, match="which is a file"):
        CheckpointManager(file)


# --- restoring ------------------------------------------------------------------------------------


def test_restores_the_newest_the_best_a_step_and_a_path(tmp_path: Path) -> None:
    losses = {1: 3.0, 2: 1.0, 3: 2.0}
    train(tmp_path / "run", range(1, 4), losses=losses)
    jsonckpt.save(state_of(50), tmp_path / "elsewhere")
    jsonckpt.save({**state_of(60), "step": 60}, tmp_path / "with_step.json")
    manager = CheckpointManager(tmp_path / "run", keep_best=("loss", "min"))
    for which, value, start in [
        (None, 3, 4), ("latest", 3, 4), ("best", 2, 3), (1, 1, 2), (np.int64(2), 2, 3),
        (manager.steps()[0], 1, 2), (tmp_path / "run" / "step-00000002", 2, 3),
        (str(tmp_path / "elsewhere"), 50, 0),
    ]:  # fmt: skip
        state = state_of(0)
        assert manager.restore(state, which) == start
        assert state["w"][0] == value
    assert manager.restore({**state_of(0), "step": 0}, tmp_path / "with_step.json") == 61
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match=r"step 9\. There are .* 1, 2, 3"):
        manager.restore(state_of(0), 9)
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        manager.restore(state_of(0), tmp_path / "nothing")
    with pytest.raises(jsonckpt.ArgumentError, match="needs keep_best"):
        CheckpointManager(tmp_path / "run").restore(state_of(0), "best")


def test_a_state_that_does_not_fit_is_an_error_not_damage(tmp_path: Path) -> None:
    train(tmp_path, range(1, 3))
    with pytest.raises(jsonckpt.StateMismatchError):
        CheckpointManager(tmp_path).restore({"other": torch.ones(3)})


@pytest.mark.parametrize("single_file", [False, True])
@pytest.mark.parametrize("how", ["bit", "cut", "no manifest", "empty"])
def test_a_damaged_newest_is_passed_over_with_a_warning(
    tmp_path: Path, how: str, single_file: bool
) -> None:
    train(tmp_path, range(1, 4), single_file=single_file)
    newest = tmp_path / names(tmp_path)[-1]
    text = newest if single_file else newest / "manifest.json"
    if how == "bit":
        damage(newest)
    elif how == "cut":
        text.write_bytes(text.read_bytes()[:-30])
    elif how == "empty":
        text.write_bytes(b"")
    else:
        text.unlink()
    state = state_of(0)
    manager = CheckpointManager(tmp_path, every_steps=1, keep_last=2, single_file=single_file)
    if how == "no manifest" and single_file:
        assert manager.restore(state) == 3  # nothing is there that could be named
    else:
        with pytest.warns(RuntimeWarning, match=f"{newest.name} is skipped: ") as caught:
            assert manager.restore(state) == 3
        assert Path(caught[0].filename) == Path(__file__)
    assert state["w"][0] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in (3, 4, 5):
            manager.step(step, state_of(step))
        manager.close()
    assert saved(manager) == [4, 5]
    assert jsonckpt.load(tmp_path / names(tmp_path)[-1])["w"][0] == 5
    (row, *_) = [row for row in history(tmp_path) if row["step"] == 3]
    assert row["status"] in ("damaged", "removed")


def test_when_all_are_damaged_nothing_begins_again_silently(tmp_path: Path) -> None:
    train(tmp_path, range(1, 3))
    for name in names(tmp_path):
        damage(tmp_path / name)
    with (
        pytest.warns(RuntimeWarning, match="is skipped"),
        pytest.raises(jsonckpt.IncompleteCheckpointError, match="no checkpoint of this run"),
    ):
        CheckpointManager(tmp_path).restore(state_of(0))
    with pytest.raises(jsonckpt.IntegrityError):  # a step by its number has no other choice
        CheckpointManager(tmp_path).restore(state_of(0), 2)


def test_nothing_begins_again_where_no_checkpoint_and_no_history_can_be_read(
    tmp_path: Path,
) -> None:
    train(tmp_path, range(1, 3))
    for name in names(tmp_path):
        (tmp_path / name / "manifest.json").write_text("damaged")
    (tmp_path / "history.json").unlink()
    with (
        pytest.warns(RuntimeWarning, match="is left out"),
        pytest.raises(jsonckpt.IncompleteCheckpointError, match="no checkpoint of this run"),
    ):
        CheckpointManager(tmp_path).restore(state_of(0))


def test_a_damaged_newest_is_told_if_its_save_was_killed_after_the_commit(tmp_path: Path) -> None:
    train(tmp_path, range(1, 3))
    rows = history(tmp_path)
    rows[-1]["status"] = "saving"
    del rows[-1]["check"]
    (tmp_path / "history.json").write_text(json.dumps(rows))
    (tmp_path / names(tmp_path)[-1] / "manifest.json").write_text("damaged")
    with pytest.warns(RuntimeWarning, match="step-00000002 is left out"):
        assert CheckpointManager(tmp_path).restore(state_of(0)) == 2


def test_steps_that_go_back(tmp_path: Path) -> None:
    losses = {1: 9.0, 2: 8.0, 3: 1.0, 4: 7.0}
    train(tmp_path, range(1, 5), losses=losses, keep_best=("loss", "min"))
    manager = CheckpointManager(tmp_path, every_steps=1, keep_last=3, keep_best=("loss", "min"))
    state = state_of(0)
    assert manager.restore(state, 2) == 3
    assert manager.latest().step == 4  # type: ignore[union-attr]
    manager.step(3, state_of(30), metrics={"loss": 5.0})
    newest = manager.latest()
    # The newest is what was saved last, not the highest step of the line that was left.
    assert newest is not None
    assert (newest.step, newest.after, newest.name) == (3, 2, "step-00000003-2")
    again = CheckpointManager(tmp_path, keep_best=("loss", "min"))
    assert again.restore(state) == 4
    assert state["w"][0] == 30
    # The best of all is not lost by saving its step again.
    assert again.restore(state, "best") == 4
    assert state["w"][0] == 3
    manager.step(4, state_of(40), metrics={"loss": 6.0})
    manager.step(5, state_of(50), metrics={"loss": 6.0})
    manager.close()
    assert names(tmp_path) == [
        "step-00000003", "step-00000003-2", "step-00000004-2", "step-00000005"
    ]  # fmt: skip
    assert [one.after for one in manager.steps()] == [2, 3, 4]


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        for value in (1, 2, 3):
            manager.save(5, state_of(value))
        assert saved(manager) == [5]
    (name,) = names(tmp_path)
    assert jsonckpt.load(tmp_path / name)["w"][0] == 3


# --- what is not ours -----------------------------------------------------------------------------


def test_removes_only_what_it_wrote(tmp_path: Path) -> None:
    train(tmp_path / "other", range(1, 2))
    train(tmp_path / "run", range(1, 4), keep_last=3)
    run = tmp_path / "run"
    (run / "step-00000001" / "notes.txt").write_text("mine")
    (run / "step-00000099").mkdir()
    (run / "step-00000099" / "keep.me").touch()
    jsonckpt.save(state_of(7), run / "step-00000007")  # no manager wrote it
    (tmp_path / "other" / "step-00000001").rename(run / "step-00000042")  # of another run
    jsonckpt.save(state_of(2), run / "step-00000002")  # somebody saved over ours
    manager = CheckpointManager(run, every_steps=1, keep_last=1)
    with pytest.warns(RuntimeWarning, match="00000002 is not removed: this run did not write"):
        manager.step(8, state_of(8))
    manager.close()
    assert names(run) == [f"step-{step:08}" for step in (1, 2, 7, 8, 42, 99)]
    assert os.listdir(run / "step-00000001") == ["notes.txt"]
    assert jsonckpt.load(run / "step-00000042")["w"][0] == 1
    assert saved(manager) == [8]


def test_a_checkpoint_that_cannot_be_read_is_not_removed(tmp_path: Path) -> None:
    train(tmp_path, range(1, 4))
    (tmp_path / "step-00000001" / "manifest.json").write_text("{}")
    manager = CheckpointManager(tmp_path, every_steps=1, keep_last=1)
    with pytest.warns(RuntimeWarning, match="00000001 is not removed, because it cannot be read"):
        manager.step(4, state_of(4))
    manager.step(5, state_of(5))  # told once
    manager.close()
    assert names(tmp_path) == ["step-00000001", "step-00000005"]


def test_what_is_being_restored_is_not_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"

    class Slow:
        def restore(self, path: str) -> None:
            # In another process this would be the training that goes on.
            with CheckpointManager(run, every_steps=1, keep_last=1) as manager:
                for step in (2, 3):
                    manager.step(step, state_of(step))
            self.value = jsonckpt.load(path)["w"][0]

    train(run, range(1, 2))
    slow = Slow()
    assert CheckpointManager(run).restore(slow) == 2
    assert slow.value == 1
    assert names(run) == ["step-00000001", "step-00000003"]
    train(run, range(4, 5), keep_last=1)
    assert names(run) == ["step-00000004"]


def test_what_is_being_removed_is_not_restored(tmp_path: Path) -> None:
    train(tmp_path, range(1, 3))
    with PathLock(str(tmp_path / "step-00000002"), shared=False) as alone:
        assert alone
        state = state_of(0)
        assert CheckpointManager(tmp_path).restore(state) == 2
    assert state["w"][0] == 1


def test_two_managers_on_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_PATIENCE", 0.1)
    first, second = CheckpointManager(tmp_path), CheckpointManager(tmp_path)
    first.save(1, state_of(1))
    with pytest.raises(jsonckpt.JsonckptError, match="another manager writes checkpoints"):
        second.save(2, state_of(2))
    assert saved(second) == [1]  # it can read
    first.save(3, state_of(3))
    assert saved(second) == [1, 3]
    first.close()
    second.save(4, state_of(4))
    second.close()
    assert saved(first) == [1, 3, 4]


def test_a_forked_worker_does_not_keep_the_next_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_PATIENCE", 0.1)
    first = CheckpointManager(tmp_path)
    first.save(1, state_of(1))
    wait, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.read(wait, 1)
        os._exit(0)
    try:
        # What the system does when the run is killed: it closes the descriptors, unlocks nothing.
        assert first._run._lock is not None
        first._run._lock.forget()
        CheckpointManager(tmp_path).save(2, state_of(2))
    finally:
        os.close(go)
        os.waitpid(child, 0)


# --- history.json ---------------------------------------------------------------------------------


def test_a_missing_history_is_made_again(tmp_path: Path) -> None:
    losses = {1: 3.0, 2: 1.0, 3: 2.0}
    before = train(tmp_path, range(1, 4), losses=losses).history
    (tmp_path / "history.json").unlink()
    manager = CheckpointManager(tmp_path, every_steps=1, keep_last=2, keep_best=("loss", "min"))
    assert [(row.step, row.save, row.run, row.after, row.metrics) for row in manager.history] == [
        (row.step, row.save, row.run, row.after, row.metrics) for row in before
    ]
    assert [row.bytes for row in manager.history] == [row.bytes for row in before]
    manager.step(4, state_of(4), metrics={"loss": 4.0})
    manager.close()
    assert saved(manager) == [2, 3, 4]
    assert [row["step"] for row in history(tmp_path)] == [1, 2, 3, 4]


def test_a_damaged_history_is_told_and_made_again(tmp_path: Path) -> None:
    train(tmp_path, range(1, 4))
    path = tmp_path / "history.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    manager = CheckpointManager(tmp_path, every_steps=1)
    with pytest.warns(RuntimeWarning, match="history.json is damaged and is made again"):
        assert manager.restore(state_of(0)) == 4
    manager.step(4, state_of(4))
    manager.close()
    assert [row["step"] for row in history(tmp_path)] == [1, 2, 3, 4]
    assert (tmp_path / "history-damaged.json").read_bytes() == whole[:-20]


def test_checkpoints_that_were_removed_or_brought_back_by_hand(tmp_path: Path) -> None:
    import shutil

    train(tmp_path / "run", range(1, 4), keep_last=2)
    shutil.copytree(tmp_path / "run" / "step-00000002", tmp_path / "copy")
    shutil.rmtree(tmp_path / "run" / "step-00000002")
    manager = CheckpointManager(tmp_path / "run")
    assert saved(manager) == [3]
    shutil.copytree(tmp_path / "copy", tmp_path / "run" / "step-00000002")
    assert saved(manager) == [2, 3]


# --- failures -------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """While ``full["is"]`` is true, nothing more than the history fits on the disk."""
    full = {"is": False}
    real = os.pwritev

    def pwritev(fd: int, buffers: Any, *rest: Any) -> int:
        if full["is"] and "history" not in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, buffers, *rest)

    monkeypatch.setattr(os, "pwritev", pwritev)
    return full


def save_and_wait(manager: CheckpointManager, step: int) -> None:
    assert manager.step(step, state_of(step)) is False
    manager.wait()


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk(tmp_path: Path, full_disk: dict[str, bool], in_background: bool) -> None:
    manager = train(tmp_path, range(1, 3), keep_last=1, async_save=in_background)
    full_disk["is"] = True
    with pytest.raises(jsonckpt.WriteError, match="No space left") as caught:
        save_and_wait(manager, 3)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["step-00000002"]  # the old one stays until there is a new one
    assert jsonckpt.verify(tmp_path / "step-00000002").ok
    assert [row["status"] for row in history(tmp_path)] == ["removed", "kept", "failed"]
    assert "No space left" in history(tmp_path)[-1]["problem"]
    full_disk["is"] = False
    manager.save(4, state_of(4))
    manager.close()
    assert names(tmp_path) == ["step-00000004"]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_run_may_go_on_after_a_failed_save(
    tmp_path: Path, full_disk: dict[str, bool], in_background: bool
) -> None:
    with CheckpointManager(
        tmp_path, every_steps=1, keep_last=1, on_error="warn", async_save=in_background
    ) as manager:
        manager.step(1, state_of(1))
        manager.wait()
        full_disk["is"] = True
        with pytest.warns(RuntimeWarning, match="was not saved: .*No space left"):
            save_and_wait(manager, 2)
        full_disk["is"] = False
        manager.step(3, state_of(3))
    assert saved(manager) == [3]


def test_a_history_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = train(tmp_path, range(1, 3), keep_last=1)
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if str(target).endswith("history.json"):
            raise OSError(errno.EROFS, "Read-only file system")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(jsonckpt.WriteError, match=r"history.json: .*Read-only"):
            manager.step(3, state_of(3))
    assert names(tmp_path) == ["step-00000002"]
    manager.step(4, state_of(4))
    manager.close()
    assert [(row["step"], row["status"]) for row in history(tmp_path)] == [
        (1, "removed"), (2, "removed"), (3, "failed"), (4, "kept")
    ]  # fmt: skip
    assert history(tmp_path)[-1]["after"] == 2


def test_an_error_in_the_background_is_raised_by_the_next_step(
    tmp_path: Path, full_disk: dict[str, bool]
) -> None:
    manager = CheckpointManager(tmp_path, every_steps=10, async_save=True)
    full_disk["is"] = True
    manager.step(9, state_of(1))
    manager.step(10, state_of(1))
    manager._saver._watch.wait()  # type: ignore[union-attr]
    with pytest.raises(jsonckpt.WriteError):
        manager.step(11, state_of(1))
    full_disk["is"] = False
    assert manager.step(12, state_of(1)) is False  # once
    manager.close()


def test_the_error_of_the_loop_is_the_one_to_see(
    tmp_path: Path, full_disk: dict[str, bool]
) -> None:
    full_disk["is"] = True

    def loop() -> None:
        with CheckpointManager(tmp_path, async_save=True) as manager:
            manager.save(1, state_of(1))
            raise ZeroDivisionError

    with pytest.warns(RuntimeWarning, match="was not saved"), pytest.raises(ZeroDivisionError):
        loop()


def test_a_value_that_cannot_be_saved(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        with pytest.raises(jsonckpt.UnsupportedTypeError):
            manager.save(1, {"f": lambda: 0})
        manager.save(1, state_of(1))
    assert [row["status"] for row in history(tmp_path)] == ["failed", "kept"]
    assert names(tmp_path) == ["step-00000001"]


def test_a_checkpoint_that_cannot_be_removed_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stuck = os.replace, {"is": True}

    def replace(source: Any, target: Any) -> None:
        if stuck["is"] and "step-00000001" in str(target) and str(target).endswith(".tmp"):
            raise PermissionError(errno.EACCES, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    manager = CheckpointManager(tmp_path, keep_last=1)
    manager.save(1, state_of(1))
    with pytest.warns(RuntimeWarning, match="00000001 is not removed: .*Permission denied"):
        manager.save(2, state_of(2))
    assert [row["status"] for row in history(tmp_path)] == ["removing", "kept"]
    stuck["is"] = False
    manager.save(3, state_of(3))
    manager.close()
    assert names(tmp_path) == ["step-00000003"]
    assert [row["status"] for row in history(tmp_path)] == ["removed", "removed", "kept"]


# --- shared tensors -------------------------------------------------------------------------------


class Frozen:
    """A large body that is not trained, and a small head that is."""

    def __init__(self) -> None:
        self.body = torch.arange(50_000.0)
        self.head = torch.zeros(10)

    def state_dict(self) -> dict[str, Any]:
        return {"body": self.body, "head": self.head}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.body, self.head = state["body"], state["head"]

    def frozen(self) -> list[str]:
        return ["/body"]


def size_of(run: Path) -> int:
    return sum(path.stat().st_size for path in run.rglob("*") if path.is_file())


@pytest.mark.parametrize("in_background", [False, True])
def test_unchanged_tensors_are_stored_once(tmp_path: Path, in_background: bool) -> None:
    run, state = tmp_path / "run", Frozen()
    with CheckpointManager(
        run, every_steps=1, keep_last=2, share_unchanged=True, async_save=in_background
    ) as manager:
        for step in range(1, 7):
            state.head += 1
            manager.step(step, state)
            if step == 1:
                manager.wait()
                once = size_of(run)
    assert saved(manager) == [5, 6]
    assert size_of(run) < 1.3 * once
    other = Frozen()
    other.body = torch.zeros(1)
    assert CheckpointManager(run).restore(other) == 7
    assert torch.equal(other.body, state.body)
    assert torch.equal(other.head, state.head)
    assert jsonckpt.verify(run / "step-00000006").ok
    manager.export(6, tmp_path / "whole")
    (tmp_path / "moved").mkdir()
    (tmp_path / "whole").rename(tmp_path / "moved" / "whole")
    assert torch.equal(jsonckpt.load(tmp_path / "moved" / "whole")["body"], state.body)
    # What nothing uses any more goes.
    with CheckpointManager(run, every_steps=1, keep_last=1) as manager:
        manager.step(7, {"w": torch.ones(3)})
    assert names(run) == ["step-00000007"]


# --- the rest -------------------------------------------------------------------------------------


def test_exports_a_step(tmp_path: Path) -> None:
    train(tmp_path / "run", range(1, 4))
    manager = CheckpointManager(tmp_path / "run")
    assert manager.export(2, tmp_path / "whole").step == 2
    assert jsonckpt.load(tmp_path / "whole")["w"][0] == 2
    assert manager.export("latest", tmp_path / "whole.json").step == 3
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        manager.export(9, tmp_path / "no")
    with pytest.raises(jsonckpt.CheckpointExistsError):
        manager.export(1, tmp_path / "whole")
    manager.export(1, tmp_path / "whole", overwrite=True)
    assert jsonckpt.load(tmp_path / "whole")["w"][0] == 1


def test_repr(tmp_path: Path) -> None:
    manager = train(
        tmp_path, range(1, 4), losses={1: 1.0, 2: 0.5, 3: 2.0}, keep_best=("loss", "min")
    )
    assert repr(manager) == (
        f"<CheckpointManager {tmp_path}: 3 checkpoints, newest step 3, best step 2>"
    )


def test_a_manager_without_a_directory_has_nothing(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "no" / "where", keep_best=("a", "max"))
    assert manager.restore(state_of(0)) is None
    assert (manager.latest(), manager.best(), manager.steps()) == (None, None, [])
    assert not (tmp_path / "no").exists()
    manager.close()


# --- careless and hostile ------------------------------------------------------------------------


def test_a_link_in_the_place_of_a_step_is_not_followed_by_the_rotation(tmp_path: Path) -> None:
    """What it leads to is somebody's: moved to another disk, or no step at all."""
    run, kept = tmp_path / "run", tmp_path / "kept"
    train(run, range(1, 4))
    (run / "step-00000001").rename(kept)
    (kept / "manifest.json").rename(kept / "manifest.bak")
    (run / "step-00000001").symlink_to(kept)
    before = sorted(os.listdir(kept))
    manager = CheckpointManager(run, every_steps=1, keep_last=1)
    with pytest.warns(RuntimeWarning, match="00000001 is not removed"):
        manager.step(4, state_of(4))
    manager.close()
    assert sorted(os.listdir(kept)) == before
    assert (run / "step-00000001").is_symlink()
    assert saved(manager) == [4]


def test_what_cannot_be_in_a_history_is_refused_before_it_is_in_one(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    wrongs: list[Any] = [{"\ud800": 1}, {5: 1}, {"loss": 10**400}]
    for wrong in wrongs:
        with pytest.raises(jsonckpt.ArgumentError, match="metrics"):
            manager.save(1, state_of(1), metrics=wrong)
    manager.save(2, state_of(2), metrics={"loss": 2**63, "n": 2**63 - 1})
    manager.close()
    assert manager.history[0].metrics == {"loss": 2.0**63, "n": 2**63 - 1}
    assert [row["step"] for row in history(tmp_path)] == [2]


def test_a_state_that_contains_itself(tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    state["again"] = [state]
    manager = CheckpointManager(tmp_path)
    with pytest.raises(jsonckpt.ArgumentError, match="contains itself"):
        manager.save(1, state)
    manager.close()
    assert saved(manager) == []


def test_a_run_that_cannot_be_listed_can_be_shown(tmp_path: Path) -> None:
    assert "File name too long" in repr(CheckpointManager(tmp_path / ("x" * 300)))


def test_no_save_follows_the_last_possible_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "MOST_SAVES", 1)
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, state_of(1))
        with pytest.raises(jsonckpt.JsonckptError, match="number 1, which none can follow"):
            manager.save(2, state_of(2))
    assert saved(manager) == [1]
