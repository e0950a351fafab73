"""Removing steps whose shards others use; ``gc`` beside it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt import CheckpointNotFoundError, IncompleteCheckpointError, training
from jsonckpt._src.sharing.remove_step import remove_step
from tests.sharing.runs import check_step, files, manifest_of, save_run, state, step_path

MARK = ".shared-shards"


def test_a_plain_step_is_removed_whole(tmp_path: Path) -> None:
    save_run(tmp_path, 1, with_reader=True)
    removal = remove_step(step_path(tmp_path, 1))
    assert removal.kept == ()
    assert not step_path(tmp_path, 1).exists()


def test_what_others_use_stays_until_the_last_is_gone(tmp_path: Path) -> None:
    save_run(tmp_path, 5)
    frozen = manifest_of(step_path(tmp_path, 2)).shards[0].file
    for step in (1, 2, 3, 4):
        remove_step(step_path(tmp_path, step))
        check_step(tmp_path, 5)
        assert files(step_path(tmp_path, 2)) == [MARK, frozen] if step > 1 else True
    assert sorted(os.listdir(tmp_path)) == ["step-2", "step-5"]
    # The directory that only holds files is no checkpoint, and no torn one.
    assert [found.step for found in jsonckpt.find(tmp_path)] == [5]
    assert training.latest(tmp_path) == step_path(tmp_path, 5)
    with pytest.raises(CheckpointNotFoundError, match="files that others beside it use"):
        jsonckpt.load(step_path(tmp_path, 2))
    assert "step-2" in remove_step(step_path(tmp_path, 5)).removed[-1]
    assert os.listdir(tmp_path) == []


def test_files_of_others_stay(tmp_path: Path) -> None:
    save_run(tmp_path, 1)
    (step_path(tmp_path, 1) / "notes.txt").write_text("mine")
    (step_path(tmp_path, 1) / "jsonckpt_reader.py").write_text("mine, too")
    remove_step(step_path(tmp_path, 1))
    assert files(step_path(tmp_path, 1)) == ["jsonckpt_reader.py", "notes.txt"]


def test_a_directory_that_a_reader_holds_is_left_alone(tmp_path: Path) -> None:
    save_run(tmp_path, 2)
    held = os.open(step_path(tmp_path, 1), os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert remove_step(step_path(tmp_path, 1)).busy
    finally:
        os.close(held)
    check_step(tmp_path, 1)
    assert not remove_step(step_path(tmp_path, 1)).busy


def test_where_it_cannot_be_known_all_shards_stay(tmp_path: Path) -> None:
    save_run(tmp_path, 3)
    manifest = step_path(tmp_path, 3) / "manifest.json"
    text = manifest.read_bytes()
    manifest.write_bytes(text[:-20])
    removal = remove_step(step_path(tmp_path, 2))
    assert removal.unknown
    assert removal.removed == ()
    manifest.write_bytes(text)
    check_step(tmp_path, 3)


def test_a_damaged_manifest_that_does_not_name_it_does_not_matter(tmp_path: Path) -> None:
    save_run(tmp_path, 3)
    manifest = step_path(tmp_path, 3) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    assert not remove_step(step_path(tmp_path, 1)).unknown
    assert not step_path(tmp_path, 1).exists()


def test_a_link_to_the_step_removes_the_step(tmp_path: Path) -> None:
    save_run(tmp_path, 3)
    os.symlink("step-2", tmp_path / "latest")
    kept = remove_step(tmp_path / "latest").kept
    assert len(kept) == 1
    check_step(tmp_path, 3)


def test_a_row_that_goes_through_a_link(tmp_path: Path) -> None:
    # Somebody has edited a manifest: it names step 2 by another name.
    save_run(tmp_path, 3)
    os.symlink("step-2", tmp_path / "alias")
    manifest = step_path(tmp_path, 3) / "manifest.json"
    text = manifest.read_text().replace('"../step-2"', '"../alias"')
    at = text.rindex(',\n"seal":')
    manifest.write_text(text[:at] + ',\n"seal":null}\n')
    assert len(remove_step(step_path(tmp_path, 2)).kept) == 1
    check_step(tmp_path, 3)


def test_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        remove_step(tmp_path / "nothing")


def test_removed_in_any_order(tmp_path: Path) -> None:
    save_run(tmp_path, 4)
    shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + "-copy"))
    for order in ((4, 3, 2, 1), (2, 4, 1, 3), (3, 2, 4, 1)):
        room = tmp_path.with_name(f"{tmp_path.name}-{''.join(map(str, order))}")
        shutil.copytree(tmp_path.with_name(tmp_path.name + "-copy"), room)
        left = {1, 2, 3, 4}
        for step in order:
            remove_step(step_path(room, step))
            left.discard(step)
            for other in left:
                check_step(room, other)
        assert os.listdir(room) == []


def test_a_save_into_a_directory_that_holds_files_of_others(tmp_path: Path) -> None:
    save_run(tmp_path, 3)
    remove_step(step_path(tmp_path, 2))
    jsonckpt.save(state(2), step_path(tmp_path, 2))
    check_step(tmp_path, 2)
    check_step(tmp_path, 3)
    remove_step(step_path(tmp_path, 3))
    check_step(tmp_path, 2)
    assert len(files(step_path(tmp_path, 2))) == 3  # its own, and the mark


# --- gc -----------------------------------------------------------------------------------------


def test_gc_keeps_what_others_use_and_removes_the_rest(tmp_path: Path) -> None:
    save_run(tmp_path, 3)
    remove_step(step_path(tmp_path, 2))
    orphan = step_path(tmp_path, 2) / "shard-0123456789ab-00001.json"
    orphan.write_text("{")
    assert jsonckpt.gc(step_path(tmp_path, 2), older_than="1h").kept == (orphan.name,)
    assert jsonckpt.gc(step_path(tmp_path, 2), older_than=0).removed == (orphan.name,)
    assert jsonckpt.gc(step_path(tmp_path, 2), older_than=0).removed == ()
    check_step(tmp_path, 3)
    shutil.rmtree(step_path(tmp_path, 3))
    with pytest.raises(IncompleteCheckpointError, match="nothing was removed"):
        jsonckpt.gc(step_path(tmp_path, 2), older_than=0)
    assert len(jsonckpt.gc(step_path(tmp_path, 2), older_than=0, abandoned=True).removed) == 1


def test_gc_removes_nothing_that_a_damaged_manifest_may_name(tmp_path: Path) -> None:
    save_run(tmp_path, 3)
    jsonckpt.save(state(2, body=1), step_path(tmp_path, 2))
    manifest = step_path(tmp_path, 3) / "manifest.json"
    text = manifest.read_bytes()
    manifest.write_bytes(text[:-20])
    assert jsonckpt.gc(step_path(tmp_path, 2), older_than=0).removed == ()
    manifest.write_bytes(text)
    check_step(tmp_path, 3)


def test_gc_after_a_killed_removal(tmp_path: Path) -> None:
    save_run(tmp_path, 3)
    # Killed right after its manifest was renamed.
    manifest = step_path(tmp_path, 2) / "manifest.json"
    manifest.rename(manifest.with_name(".manifest-0123456789ab.tmp"))
    check_step(tmp_path, 3)
    assert len(jsonckpt.gc(step_path(tmp_path, 2), older_than=0).removed) == 2
    check_step(tmp_path, 3)


def test_a_killed_removal_is_ended_by_calling_it_again(tmp_path: Path) -> None:
    save_run(tmp_path, 4)
    remove_step(step_path(tmp_path, 2))
    remove_step(step_path(tmp_path, 3))
    manifest = step_path(tmp_path, 4) / "manifest.json"
    manifest.rename(manifest.with_name(".manifest-0123456789ab.tmp"))
    remove_step(step_path(tmp_path, 4))
    remove_step(step_path(tmp_path, 1))
    assert os.listdir(tmp_path) == []


def test_recover_brings_back_a_step_whose_removal_was_killed(tmp_path: Path) -> None:
    save_run(tmp_path, 3)
    manifest = step_path(tmp_path, 3) / "manifest.json"
    manifest.rename(manifest.with_name(".manifest-0123456789ab.tmp"))
    report = jsonckpt.recover(step_path(tmp_path, 3), tmp_path / "back")
    assert report.complete
    assert jsonckpt.load(tmp_path / "back")["step"] == 3


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    """Of a directory beside the step, and of the step itself."""
    state = {"w": torch.ones(3)}
    for name in ("a", "b", "c"):
        jsonckpt.save(state, tmp_path / name)
    os.truncate(tmp_path / "b" / "manifest.json", 1 << 36)
    tracemalloc.start()
    removal = remove_step(tmp_path / "a")
    assert removal.unknown
    assert len(removal.kept) == 1
    remove_step(tmp_path / "b")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20
    assert jsonckpt.load(tmp_path / "c")["w"].tolist() == [1, 1, 1]
