"""Steps that share shards, written whole; edits and conversions of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import jsonckpt
from jsonckpt import CheckpointExistsError, IncompleteCheckpointError
from jsonckpt.convert import convert
from jsonckpt.edit import copy, rename, set_value, split
from tests.sharing.runs import check_step, manifest_of, save_run, state, step_path
from tests.support import difference


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_run(tmp_path / "run", 3)
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["whole", "whole.json", "whole.json.zst"])
def test_a_copy_needs_no_other_directory(run: Path, name: str, tmp_path: Path) -> None:
    result = copy(step_path(run, 3), tmp_path / name)
    shutil.rmtree(run)
    assert difference(jsonckpt.load(tmp_path / name), state(3)) is None
    assert jsonckpt.verify(tmp_path / name).ok
    if name == "whole":
        text = json.loads((tmp_path / name / "manifest.json").read_text())
        assert "requires" not in text
        assert text["save_id"] == result.save_id


def test_a_copy_keeps_payloads_and_facts(run: Path, tmp_path: Path) -> None:
    copy(step_path(run, 3), tmp_path / "whole")
    old, new = manifest_of(step_path(run, 3)), manifest_of(tmp_path / "whole")
    assert (old.save_id, old.created_at, old.metadata) == (
        new.save_id, new.created_at, new.metadata,
    )  # fmt: skip
    sums = {entry.name: [chunk[2] for chunk in entry.chunks] for entry in old.entries}
    assert sums == {entry.name: [chunk[2] for chunk in entry.chunks] for entry in new.entries}
    with pytest.raises(CheckpointExistsError):
        copy(step_path(run, 3), tmp_path / "whole")


def test_a_copy_of_a_step_whose_other_directory_is_missing(run: Path, tmp_path: Path) -> None:
    step_path(run, 2).rename(tmp_path / "moved")
    with pytest.raises(IncompleteCheckpointError, match=r"'\.\./step-2'"):
        copy(step_path(run, 3), tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_a_conversion_to_a_directory_is_whole(run: Path, tmp_path: Path) -> None:
    convert(step_path(run, 3), tmp_path / "whole")
    shutil.rmtree(run)
    assert difference(jsonckpt.load(tmp_path / "whole"), state(3)) is None
    assert "requires" not in json.loads((tmp_path / "whole" / "manifest.json").read_text())


def test_edits_of_a_step_leave_the_others_whole(run: Path, tmp_path: Path) -> None:
    for step in (3, 2):
        set_value(step_path(run, step), "/step", 99)
        assert jsonckpt.load(step_path(run, step))["step"] == 99
        assert jsonckpt.verify(step_path(run, step)).ok
        check_step(run, 1)
    rename(step_path(run, 3), tmp_path / "renamed", [("model", "network")])
    assert "network" in jsonckpt.load(tmp_path / "renamed")
    split(step_path(run, 3), tmp_path / "part", include="/lora")
    assert set(jsonckpt.load(tmp_path / "part")) >= {"lora"}


def test_an_edit_of_the_directory_that_holds_the_files(run: Path) -> None:
    set_value(step_path(run, 2), "/step", 99)
    check_step(run, 3)
    assert jsonckpt.load(step_path(run, 2))["step"] == 99
