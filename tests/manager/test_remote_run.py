"""A run behind a URL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

import jsonckpt
from jsonckpt import CheckpointManager


def state_of(value: float) -> dict[str, Any]:
    return {"w": torch.full((100,), value)}


@pytest.mark.parametrize("single_file", [False, True])
@pytest.mark.parametrize("in_background", [False, True])
def test_a_run_in_memory(tmp_path: Path, single_file: bool, in_background: bool) -> None:
    url = f"memory://{tmp_path.name}/run"
    options: dict[str, Any] = {
        "keep_last": 2, "keep_best": ("loss", "min"), "single_file": single_file
    }  # fmt: skip
    with CheckpointManager(url, every_steps=1, async_save=in_background, **options) as manager:
        assert manager.restore(state_of(0)) is None
        for step in range(1, 6):
            manager.step(step, state_of(step), metrics={"loss": abs(step - 2)})
    end = ".json" if single_file else ""
    fs = fsspec.filesystem("memory")
    found = sorted(path.rpartition("/")[2] for path in fs.ls(url, detail=False))
    assert found == ["history.json", *(f"step-{step:08}{end}" for step in (2, 4, 5))]
    rows = json.loads(fs.cat_file(f"{url}/history.json"))
    assert [row["status"] for row in rows] == ["removed", "kept", "removed", "kept", "kept"]
    state, again = state_of(0), CheckpointManager(url, **options)
    assert again.restore(state) == 6
    assert state["w"][0] == 5
    assert again.restore(state, "best") == 3
    assert state["w"][0] == 2
    fs.rm_file(f"{url}/history.json")
    assert [one.step for one in CheckpointManager(url).steps()] == [2, 4, 5]


def test_a_damaged_newest_and_a_killed_save(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/run"
    with CheckpointManager(url, every_steps=1) as manager:
        for step in range(1, 4):
            manager.step(step, state_of(step))
    fs = fsspec.filesystem("memory")
    fs.rm_file(f"{url}/step-00000003/manifest.json")
    rows = json.loads(fs.cat_file(f"{url}/history.json"))
    begun = {"step": 4, "save": 4, "path": "step-00000004", "status": "saving"}
    rows.append({"run": rows[-1]["run"], **begun})
    fs.pipe_file(f"{url}/history.json", json.dumps(rows).encode())
    manager = CheckpointManager(url, every_steps=1)
    with pytest.warns(RuntimeWarning, match="step-00000003 is skipped"):
        assert manager.restore(state_of(0)) == 3
    manager.step(5, state_of(5))
    manager.close()
    rows = json.loads(fs.cat_file(f"{url}/history.json"))
    assert [row["status"] for row in rows] == ["kept", "kept", "damaged", "failed", "kept"]


def test_what_urls_do_not_have() -> None:
    with pytest.raises(jsonckpt.ArgumentError, match="share_unchanged needs"):
        CheckpointManager("memory://run", share_unchanged=True)
    with pytest.raises(jsonckpt.JsonckptError, match="web server"):
        CheckpointManager("http://127.0.0.1:1/run")
