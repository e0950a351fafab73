"""The notebook of the guide, run from top to bottom as on Kaggle.

From scratch, until its time is up; resumed from that output; with the weights only; and on a
machine that has nothing but the reader. The loss curve must be that of a run without a stop.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from tests.support import lacking

try:
    import ipykernel  # noqa: F401
    import nbclient  # noqa: F401
    import nbformat
    import tokenizers  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    MISSING: str | None = f"the notebook is run by nbclient, with transformers: {error}"
else:
    MISSING = None

NOTEBOOK = Path(__file__).parents[2] / "docs" / "kaggle" / "text_generation_model_kaggle.ipynb"
ROOT = Path(jsonckpt.__file__).parents[1]
#: 54 samples to train on, 16 in a step: 4 steps an epoch, the last one of 6 samples.
TINY = {
    "max_length": 16, "vocabulary": 300, "max_samples": 60, "width": 16, "layers": 1, "heads": 2,
    "epochs": 2, "batch_size": 8, "gradient_accumulation_steps": 2, "warmup_steps": 2,
    "save_every_steps": 3, "dataset_id": "me/text-gen-checkpoint",
    # With a scaler, as on a T4.
    "mixed_precision": "float16",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _tools() -> None:
    if MISSING is not None:
        lacking("notebook", MISSING)


def execute(
    place: Path, given: dict[str, Any], inputs: Path | None = None, *, blocked: bool = False
) -> dict[str, Any]:
    """Run the notebook; returns what its training_history.json says, and what it printed.

    Args:
        place: gets ``input``, which is read-only, and ``working``.
        given: replaces members of CONFIG.
        inputs: a directory that is attached, as the output of a notebook.
        blocked: ``jsonckpt`` cannot be imported.
    """
    there = place / "input" / "notebooks" / "me" / "train"
    there.parent.mkdir(parents=True)
    if inputs is not None:
        shutil.copytree(inputs, there)
    for path in [*(place / "input").rglob("*"), place / "input"]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    importable = [str(ROOT)]
    if blocked:
        (place / "block").mkdir()
        (place / "block" / "jsonckpt.py").write_text("raise ImportError('not installed')\n")
        importable.insert(0, str(place / "block"))
    env = {
        **os.environ,
        "KAGGLE_INPUT": str(place / "input"),
        "KAGGLE_WORKING": str(place / "working"),
        "PYTHONPATH": os.pathsep.join(importable),
        "PIP_NO_INDEX": "1",
        "OMP_NUM_THREADS": "1",  # two run at once
    }
    program = Path(__file__).with_name("run_notebook.py")
    config = json.dumps({**TINY, **given})
    command = [sys.executable, str(program), str(NOTEBOOK), str(place), config]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr[-3000:]
    history = place / "working" / "training_history.json"
    losses = json.loads(history.read_text()) if history.exists() else {}
    return {**json.loads(done.stdout.splitlines()[-1]), **losses}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The runs by name, each with what it printed and its losses; ``place`` is where they are."""
    if MISSING is not None:
        return {}
    place = tmp_path_factory.mktemp("kaggle")
    output = place / "stopped" / "working"
    torn = place / "torn input" / "checkpoint_epoch1.json"
    jsonckpt.save({"w": torch.ones(3), "step": 4}, torn)
    torn.write_bytes(torn.read_bytes()[:-4])
    with ThreadPoolExecutor(2) as pool:  # most of the time is the import of transformers

        def start(name: str, inputs: Path | None, *, blocked: bool = False, **given: Any) -> Any:
            return pool.submit(execute, place / name, given, inputs, blocked=blocked)

        runs = {"stopped": start("stopped", None, deadline_hours=0), "whole": start("whole", None)}
        runs["stopped"].result()
        runs["resumed"] = start("resumed", output)
        runs["weights"] = start("weights", output, load_optimizer=False)
        runs["bare"] = start("bare", output / "upload", blocked=True)
        runs["torn"] = start("torn", torn.parent)
        failure = str(runs.pop("torn").exception())
        return {
            "place": place,
            "torn": failure,
            **{name: run.result() for name, run in runs.items()},
        }


def test_a_first_run_trains_from_scratch_and_stops_in_time(runs: dict[str, Any]) -> None:
    assert "No checkpoint: training from scratch" in runs["stopped"]["said"]
    assert "Stopped at step 1 of 8: the time is up" in runs["stopped"]["said"]
    assert len(runs["stopped"]["losses"]) == 1
    working = runs["place"] / "stopped" / "working"
    found = jsonckpt.find(working)
    assert found.newest is not None
    assert found.newest.name == "checkpoint_epoch1_step000001.json"
    assert not found.torn


def test_it_writes_what_the_guide_promises(runs: dict[str, Any]) -> None:
    working = runs["place"] / "whole" / "working"
    names = {path.name for path in working.iterdir()}
    assert {
        "best_model.json",
        "checkpoint_epoch1.json",
        "checkpoint_epoch2.json",
        "training_history.json",
        "final_model",
    } <= names
    assert (working / "final_model" / "model.safetensors").exists()
    assert [one["epoch"] for one in runs["whole"]["history"]] == [1, 2]
    for name in ("best_model.json", "checkpoint_epoch2.json"):
        assert jsonckpt.verify(working / name).ok
        assert f"{name} " in runs["whole"]["said"]
    metadata = json.loads((working / "upload" / "dataset-metadata.json").read_text())
    assert metadata["id"] == "me/text-gen-checkpoint"
    assert "kaggle datasets create -p" in runs["whole"]["said"]
    plotted = importlib.util.find_spec("matplotlib") is not None
    assert runs["whole"]["drawn"] == plotted
    assert ("training loss from" in runs["whole"]["said"]) != plotted


def test_the_loss_curve_goes_on_exactly(runs: dict[str, Any]) -> None:
    assert "epoch 1, step 1." in runs["resumed"]["said"]
    assert len(runs["whole"]["losses"]) == 8
    assert runs["resumed"]["losses"] == runs["whole"]["losses"]
    assert runs["resumed"]["history"] == runs["whole"]["history"]
    states = [
        jsonckpt.load(runs["place"] / name / "working" / "checkpoint_epoch2.json")
        for name in ("whole", "resumed")
    ]
    for key, tensor in states[0]["model_state_dict"].items():
        assert tensor.equal(states[1]["model_state_dict"][key]), key


def test_the_weights_alone_give_the_same_next_loss(runs: dict[str, Any]) -> None:
    """The optimizer begins anew, so only the loss before its first step can be the same."""
    found, whole = runs["weights"]["losses"], runs["whole"]["losses"]
    assert found[:2] == whole[:2]
    assert len(found) == 8
    assert found[2:] != whole[2:]


def test_a_torn_checkpoint_alone_does_not_start_from_scratch(runs: dict[str, Any]) -> None:
    assert re.search(r"checkpoint_epoch1.json is not whole: .*again, or set", runs["torn"])


def test_the_reader_alone_loads_evaluates_and_exports(runs: dict[str, Any]) -> None:
    said = runs["bare"]["said"]
    assert "the reader beside the checkpoint loads it" in said
    assert "epoch 1, step 1." in said
    assert "validation loss" in said
    final = runs["place"] / "bare" / "working" / "final_model"
    assert (final / "model.safetensors").exists()


def test_the_scaler_goes_on(runs: dict[str, Any]) -> None:
    """It counts the steps without an overflow, until it doubles the scale."""
    counted = []
    for name, file in (
        ("stopped", "checkpoint_epoch1_step000001.json"),
        ("resumed", "checkpoint_epoch2.json"),
        ("whole", "checkpoint_epoch2.json"),
    ):
        state = jsonckpt.open(runs["place"] / name / "working" / file).at("/scaler_state_dict")
        counted.append((state["scale"], state["_growth_tracker"]))
    assert counted == [(65536.0, 1), (65536.0, 8), (65536.0, 8)]


def test_the_file_has_no_outputs_and_is_valid() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert all(cell.get("execution_count") is None for cell in notebook.cells)
