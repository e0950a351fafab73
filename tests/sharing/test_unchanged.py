"""``save(unchanged_from=…)``: what an earlier checkpoint has is not written again."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import ArgumentError, WriteError
from jsonckpt._src.sharing.unchanged import EarlierCheckpoint
from tests.sharing.runs import (
    check_step,
    files,
    manifest_of,
    save_run,
    shared_rows,
    state,
    step_path,
)
from tests.support import difference


def test_unchanged_tensors_are_stored_once(tmp_path: Path) -> None:
    first, second, third, fourth = save_run(tmp_path, 4)
    for step in range(1, 5):
        check_step(tmp_path, step)
    # The first file has all tensors. The second save writes those apart that have not changed.
    assert first.reused_bytes == second.reused_bytes == 0
    assert shared_rows(step_path(tmp_path, 2)) == {}
    assert third.stored_bytes < first.stored_bytes / 2
    assert third.reused_bytes == fourth.reused_bytes > first.stored_bytes / 2
    # Each row names the directory that holds the file, never one that names it again.
    [row] = shared_rows(step_path(tmp_path, 4)).items()
    assert row == (manifest_of(step_path(tmp_path, 2)).shards[0].file, "../step-2")
    assert files(step_path(tmp_path, 4)) == ["manifest.json", fourth.files[0]]


def test_frozen_tensors_are_apart_from_the_first_save_on(tmp_path: Path) -> None:
    first, second = save_run(tmp_path, 2, frozen="/model")
    assert len(first.files) == 3
    assert second.reused_bytes > 0
    assert len(second.files) == 2
    assert set(shared_rows(step_path(tmp_path, 2)).values()) == {"../step-1"}
    check_step(tmp_path, 2)


@pytest.mark.parametrize(
    "frozen",
    ["/model", "model/*", ["/model/body", "/model/norm"], lambda name: name.startswith("/model")],
    ids=["name", "glob", "names", "function"],
)
def test_the_ways_to_say_what_is_frozen(frozen: Any, tmp_path: Path) -> None:
    jsonckpt.save(state(1), tmp_path / "c", frozen=frozen)
    by_shard: dict[int, set[str]] = {}
    for entry in manifest_of(tmp_path / "c").entries:
        by_shard.setdefault(entry.shard, set()).add(entry.name)
    assert by_shard == {0: {"/model/body", "/model/norm"}, 1: {"/lora/a", "/lora/step"}}


def test_nothing_of_the_name_counts_only_the_bytes(tmp_path: Path) -> None:
    save_run(tmp_path, 1, frozen="/model")
    changed = state(2, body=1)
    result = jsonckpt.save(changed, tmp_path / "step-2", unchanged_from=tmp_path / "step-1")
    assert result.reused_bytes == 0
    assert difference(jsonckpt.load(tmp_path / "step-2"), changed) is None


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "one bit": lambda t: torch.where(torch.arange(t.numel()) == 5, -t, t),
    "dtype of the same bytes": lambda t: t.view(torch.int32),
    "shape of the same bytes": lambda t: t.view(2, -1),
    "longer": lambda t: torch.cat([t, t[:1]]),
    "shorter": lambda t: t[:-1].clone(),
    "empty": lambda t: t[:0].clone(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_counts_as_a_change(
    change: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    tensor = torch.arange(1, 601, dtype=torch.float32)
    jsonckpt.save({"w": tensor}, tmp_path / "a", chunk_size=64)
    new = {"w": change(tensor)}
    result = jsonckpt.save(new, tmp_path / "b", chunk_size=64, unchanged_from=tmp_path / "a")
    assert result.reused_bytes == 0
    assert difference(jsonckpt.load(tmp_path / "b"), new) is None


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 128},
        {"encoding": "list"},
        {"compression": "zstd", "filter": "shuffle"},
        {"checksum": "sha256"},
    ],
    ids=str,
)
def test_another_way_to_store_it_is_a_change(options: dict[str, Any], tmp_path: Path) -> None:
    value = {"w": torch.zeros(600)}
    jsonckpt.save(value, tmp_path / "a")
    result = jsonckpt.save(value, tmp_path / "b", unchanged_from=tmp_path / "a", **options)
    assert result.reused_bytes == 0
    assert difference(jsonckpt.load(tmp_path / "b"), value) is None


@pytest.mark.parametrize(
    "options",
    [
        {"encoding": "list"},
        {"encoding": "list", "compression": "zstd"},
        {"compression": "zstd"},
        {"checksum": "sha256"},
        {"threads": 1},
        {"threads": 4, "chunk_size": 64},
        {"max_shard_size": 1_000},
        {"sync": False},
    ],
    ids=str,
)
def test_every_kind_of_shard_is_used_again(options: dict[str, Any], tmp_path: Path) -> None:
    save_run(tmp_path, 3, **options)
    for step in (1, 2, 3):
        check_step(tmp_path, step)
    assert shared_rows(step_path(tmp_path, 3))


def test_layouts_and_shared_memory(tmp_path: Path) -> None:
    flat = torch.arange(100.0)
    value: dict[str, Any] = {
        "turned": torch.arange(60.0).view(6, 10).t(),
        "whole": flat,
        "view": flat[10:20],
        "one": torch.arange(50)[:20],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.5),
    }
    jsonckpt.save(value, tmp_path / "a")
    result = jsonckpt.save(value, tmp_path / "b", unchanged_from=tmp_path / "a")
    assert result.files == ("manifest.json",)
    found = jsonckpt.load(tmp_path / "b")
    assert difference(found, value) is None
    assert found["turned"].stride() == value["turned"].stride()
    assert found["view"].untyped_storage().data_ptr() == found["whole"].untyped_storage().data_ptr()


def test_a_tensor_on_another_device_is_written(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(8)}, tmp_path / "a")
    meta = manifest_of(tmp_path / "a")
    assert meta.entries[0].device == "cpu"  # the device is a part of the record


def test_in_the_background(tmp_path: Path) -> None:
    save_run(tmp_path, 2)
    value = state(3)
    pending = jsonckpt.save_async(
        value, tmp_path / "step-3", unchanged_from=tmp_path / "step-2", frozen="/model"
    )
    value["model"]["body"].zero_()
    assert pending.result().reused_bytes > 0
    check_step(tmp_path, 3)


def test_relative_paths_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_run(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    os.symlink("step-2", "latest")
    jsonckpt.save(state(3), "step-3", unchanged_from="latest/manifest.json")
    assert set(shared_rows(step_path(tmp_path, 3)).values()) == {"../step-2"}
    monkeypatch.chdir(tmp_path / "step-3")
    assert difference(jsonckpt.load("."), state(3)) is None


def test_an_overwrite_of_a_step(tmp_path: Path) -> None:
    save_run(tmp_path, 3)
    jsonckpt.save(state(9), tmp_path / "step-3", unchanged_from=tmp_path / "step-2")
    assert difference(jsonckpt.load(tmp_path / "step-3"), state(9)) is None
    assert len(files(tmp_path / "step-3")) == 2
    check_step(tmp_path, 2)


def test_a_plain_overwrite_of_a_step_whose_shards_others_use(tmp_path: Path) -> None:
    save_run(tmp_path, 4)
    jsonckpt.save(state(9, body=3), tmp_path / "step-2")
    for step in (1, 3, 4):
        check_step(tmp_path, step)
    assert jsonckpt.verify(tmp_path / "step-2").ok
    assert "leftover" not in str(jsonckpt.verify(tmp_path / "step-2"))
    assert jsonckpt.gc(tmp_path / "step-2", older_than=0).removed == ()
    check_step(tmp_path, 3)
    # Their last user removes them.
    jsonckpt.save(state(3), tmp_path / "step-3")
    jsonckpt.save(state(4), tmp_path / "step-4")
    assert len([name for name in files(tmp_path / "step-2") if name.startswith("shard-")]) == 1
    assert jsonckpt.verify(tmp_path / "step-2").ok


@pytest.mark.parametrize("options", [{"delete_first": True}, {"save_id": "content"}], ids=str)
def test_other_saves_over_a_step_whose_shards_others_use(
    options: dict[str, Any], tmp_path: Path
) -> None:
    save_run(tmp_path, 3)
    jsonckpt.save(state(9, body=3), tmp_path / "step-2", **options)
    check_step(tmp_path, 3)
    jsonckpt.save(state(10, body=4), tmp_path / "step-2", **options)
    check_step(tmp_path, 3)


# --- what is not used again ---------------------------------------------------------------------


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _swap_checksum(path: Path) -> None:
    data = path.read_bytes()
    at = data.index(b'"xxh3_128":["') + 13
    path.write_bytes(data[:at] + b"0" * 32 + data[at + 32 :])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "cut off": _cut,
    "zeroed": _zero,
    "a flipped bit in the head": lambda path: _flip(path, 3),
    "a flipped bit of the save_id": lambda path: _flip(path, 50),
    "a flipped bit in a record's head": lambda path: _flip(path, 130),
    "another checksum": _swap_checksum,
    "a flipped bit in the seal": lambda path: _flip(path, path.stat().st_size - 60),
    "a flipped bit in the index offset": lambda path: _flip(path, path.stat().st_size - 4),
    "a flipped bit in the last line": lambda path: _flip(path, path.stat().st_size - 1),
    "a flipped bit in the index": lambda path: _flip(path, path.stat().st_size - 110),
    "a directory in its place": lambda path: (path.unlink(), path.mkdir()),
    "a fifo in its place": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_shard_is_not_used_again(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    save_run(tmp_path, 2)
    frozen = tmp_path / "step-2" / manifest_of(tmp_path / "step-2").shards[0].file
    damage(frozen)
    result = jsonckpt.save(state(3), tmp_path / "step-3", unchanged_from=tmp_path / "step-2")
    assert result.reused_bytes == 0
    assert "is written again, not used" in result.notes[0]
    check_step(tmp_path, 3)


def test_each_byte_of_the_text_around_payloads_is_checked(tmp_path: Path) -> None:
    save_run(tmp_path, 2)
    manifest = manifest_of(tmp_path / "step-2")
    path = tmp_path / "step-2" / manifest.shards[0].file
    data = path.read_bytes()
    payloads = {
        at
        for entry in manifest.entries
        if entry.shard == 0
        for start, length, _ in entry.chunks
        for at in range(start, start + length)
    }
    around = [at for at in range(len(data)) if at not in payloads]
    assert len(around) < 2_000
    for at in around[::7] + around[-120:]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        result = jsonckpt.save(
            state(3), tmp_path / "step-3", unchanged_from=tmp_path / "step-2", sync=False
        )
        assert result.reused_bytes == 0, at


def test_damage_in_a_payload_is_found_by_verify(tmp_path: Path) -> None:
    # It is not looked for in a save: that would read everything again.
    save_run(tmp_path, 2)
    manifest = manifest_of(tmp_path / "step-2")
    _flip(tmp_path / "step-2" / manifest.shards[0].file, manifest.entries[0].chunks[0][0] + 9)
    result = jsonckpt.save(state(3), tmp_path / "step-3", unchanged_from=tmp_path / "step-2")
    assert result.reused_bytes > 0
    assert not jsonckpt.verify(tmp_path / "step-3").ok


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.exists(), "no such directory"),
        (lambda path: path.mkdir(), "no manifest.json"),
        (lambda path: (path.mkdir(), (path / "manifest.json").write_text("{}")), "format is"),
        (lambda path: (path.mkdir(), (path / "manifest.json").write_text("[1")), ""),
    ],
    ids=["nothing", "an empty directory", "no checkpoint", "no JSON"],
)
def test_where_there_is_no_checkpoint_everything_is_written(
    spoil: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    spoil(tmp_path / "other")
    result = jsonckpt.save(state(3), tmp_path / "step-3", unchanged_from=tmp_path / "other")
    assert result.notes[0].startswith("nothing of unchanged_from is used again: ")
    assert reason in result.notes[0]
    check_step(tmp_path, 3)


def test_an_edited_checkpoint_is_not_used(tmp_path: Path) -> None:
    save_run(tmp_path, 2)
    manifest = tmp_path / "step-2" / "manifest.json"
    text = manifest.read_text()
    at = text.rindex(',\n"seal":')
    manifest.write_text(text[:at] + ',\n"seal":null}\n')
    result = jsonckpt.save(state(3), tmp_path / "step-3", unchanged_from=tmp_path / "step-2")
    assert "its seal is null" in result.notes[0]


def test_a_directory_that_another_process_cleans_is_not_used(tmp_path: Path) -> None:
    save_run(tmp_path, 2)
    held = os.open(tmp_path / "step-2", os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = jsonckpt.save(state(3), tmp_path / "step-3", unchanged_from=tmp_path / "step-2")
        assert "another process is removing files" in result.notes[0]
        assert result.reused_bytes == 0
    finally:
        os.close(held)
    check_step(tmp_path, 3)


def test_a_directory_that_cannot_be_marked_is_not_used(tmp_path: Path) -> None:
    save_run(tmp_path, 2)
    (tmp_path / "step-2" / ".shared-shards").mkdir()  # is there already: that is enough
    result = jsonckpt.save(state(3), tmp_path / "step-3", unchanged_from=tmp_path / "step-2")
    assert result.reused_bytes > 0


def test_a_shard_that_is_removed_during_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(tmp_path, 2)
    real = EarlierCheckpoint.check_still_there

    def late(self: EarlierCheckpoint) -> None:
        (tmp_path / "step-2" / manifest_of(tmp_path / "step-2").shards[0].file).unlink()
        real(self)

    monkeypatch.setattr(EarlierCheckpoint, "check_still_there", late)
    with pytest.raises(WriteError, match="was removed during the save"):
        jsonckpt.save(state(3), tmp_path / "step-3", unchanged_from=tmp_path / "step-2")
    assert not (tmp_path / "step-3").exists()


def test_the_shards_of_the_directory_that_is_replaced_are_not_used(tmp_path: Path) -> None:
    # Step 3 names a file of step 2, and a new step 2 replaces the old one.
    save_run(tmp_path, 3)
    result = jsonckpt.save(state(2), tmp_path / "step-2", unchanged_from=tmp_path / "step-3")
    assert "lies in the directory that this save replaces" in result.notes[0]
    check_step(tmp_path, 2)
    check_step(tmp_path, 3)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("c.json", {}, "path is a single file"),
        ("memory://c", {}, "path is a URL"),
        ("c", {"delete_first": True}, "cannot be combined with delete_first"),
        ("c", {"save_id": "content"}, "cannot be combined with save_id"),
        ("a", {}, "is the checkpoint that this save replaces"),
        ("deeper/c", {}, "beside the new"),
        ("c", {"unchanged_from": "s3://bucket/a"}, "unchanged_from is a URL"),
        ("c", {"unchanged_from": 3}, "unchanged_from"),
        ("c", {"unchanged_from": "x" * 101}, "cannot stand in a manifest"),
    ],
    ids=str,
)
def test_what_is_refused_before_anything_is_written(
    target: str,
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    jsonckpt.save({"w": torch.ones(3)}, "a")
    before = sorted(map(str, tmp_path.rglob("*")))
    for save in (jsonckpt.save, jsonckpt.save_async):
        with pytest.raises(ArgumentError, match=message):
            save({"w": torch.ones(3)}, target, **{"unchanged_from": "a", **options})
    assert sorted(map(str, tmp_path.rglob("*"))) == before
