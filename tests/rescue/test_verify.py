"""``verify``: every problem, each with its place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

import jsonckpt
from tests.golden.make_v1 import FOLDER

STATE = {name: torch.zeros(12, dtype=torch.uint8) for name in "abc"}


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_in_order(tmp_path: Path, name: str) -> None:
    jsonckpt.save(STATE, tmp_path / name, max_shard_size=12)
    report = jsonckpt.verify(tmp_path / name)
    assert report
    assert report.ok
    assert (report.tensors, report.nbytes) == (3, 36)
    assert report.files == (4 if name == "c" else 1)
    assert report.problems == ()
    assert "ok, 3 tensors, 36 B" in str(report)


def test_every_damaged_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(STATE, path, chunk_size=6)
    text = path.read_bytes().split(b'"AAAA')
    assert len(text) == 7
    # The second chunk of the first tensor, the first chunk of the third.
    path.write_bytes(
        b'"AAAA'.join(text[:2])
        + b'"BAAA'
        + b'"AAAA'.join(text[2:5])
        + b'"BAAA'
        + b'"AAAA'.join(text[5:])
    )
    report = jsonckpt.verify(path)
    assert not report
    assert [(p.tensor, p.chunk) for p in report.problems] == [("/a", 1), ("/c", 0)]
    assert all(type(p) is jsonckpt.IntegrityError for p in report.problems)
    assert all(p.file == str(path) for p in report.problems)
    assert str(report).count("\n") == 2


def test_missing_shards_and_manifests(tmp_path: Path) -> None:
    result = jsonckpt.save(STATE, tmp_path, max_shard_size=12)
    (tmp_path / result.files[0]).unlink()
    (tmp_path / result.files[2]).unlink()
    report = jsonckpt.verify(tmp_path)
    assert [type(p).__name__ for p in report.problems] == ["IncompleteCheckpointError"] * 2
    (tmp_path / "manifest.json").write_text("{")
    assert [type(p).__name__ for p in jsonckpt.verify(tmp_path).problems] == ["FormatError"]
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        jsonckpt.verify(tmp_path / "nothing")


# --- every problem ------------------------------------------------------------------------------


def _damage(path: Path, *places: int) -> None:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] = ord("B") if data[place] != ord("B") else ord("C")
    path.write_bytes(data)


@pytest.mark.parametrize("container", ["c", "c.json"])
def test_the_search_goes_on_behind_a_problem(tmp_path: Path, container: str) -> None:
    """Two chunks of one tensor, the head of another record, a third tensor, and the trailer."""
    path = tmp_path / container
    jsonckpt.save(STATE, path, chunk_size=3)
    with jsonckpt.open(path) as checkpoint:
        a, b, c = checkpoint.manifest.entries
    file = next(path.glob("shard-*")) if path.is_dir() else path
    if container == "c":
        # In a single file this would leave nothing that says where the records are.
        _damage(file, a.chunks[0][0], a.chunks[3][0], b.offset + 14, c.chunks[1][0])
        expected = [("/a", 0), ("/a", 3), ("/b", None), ("/c", 1)]
    else:
        _damage(file, a.chunks[0][0], a.chunks[3][0], b.chunks[0][0], c.chunks[1][0])
        expected = [("/a", 0), ("/a", 3), ("/b", 0), ("/c", 1)]
    report = jsonckpt.verify(path)
    assert [(p.tensor, p.chunk) for p in report.problems[:4]] == expected
    assert all(p.file == str(file) for p in report.problems)
    assert len(report.problems) <= 5


def test_damage_beside_the_payloads_is_found_behind_damage_in_them(tmp_path: Path) -> None:
    path = tmp_path / "c"
    jsonckpt.save(STATE, path)
    with jsonckpt.open(path) as checkpoint:
        a = checkpoint.manifest.entries[0]
    shard = next(path.glob("shard-*"))
    _damage(shard, a.chunks[0][0], 60)  # a payload, and the save_id in the head
    report = jsonckpt.verify(path)
    assert [(p.tensor, p.chunk) for p in report.problems] == [("/a", 0), (None, None)]
    assert "save_id" in str(report.problems[1])


def test_every_damaged_tensor_of_a_compressed_file_is_named(tmp_path: Path) -> None:
    jsonckpt.save(STATE, tmp_path / "c.json")
    text = (tmp_path / "c.json").read_bytes()
    with jsonckpt.open(tmp_path / "c.json") as checkpoint:
        entries = checkpoint.manifest.entries
    damaged = bytearray(text)
    for entry in (entries[0], entries[2]):
        damaged[entry.chunks[0][0]] = ord("B")
    path = tmp_path / "c.json.zst"
    path.write_bytes(zstandard.compress(bytes(damaged)))
    report = jsonckpt.verify(path)
    assert [(p.tensor, p.chunk) for p in report.problems] == [("/a", 0), ("/c", 0)]
    assert "expected" in str(report.problems[0])


# --- deep ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_deep_and_in_order(tmp_path: Path, name: str) -> None:
    jsonckpt.save({**STATE, "p": torch.nn.Parameter(torch.ones(3))}, tmp_path / name)
    report = jsonckpt.verify(tmp_path / name, deep=True)
    assert report
    assert report.notes == ()


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_golden_checkpoints_are_in_order_to_the_ground(path: Path) -> None:
    report = jsonckpt.verify(path, deep=True)
    assert report, str(report)
    assert report.notes == ()


def test_deep_makes_no_tensor(tmp_path: Path) -> None:
    """The state of a terabyte costs nothing."""
    path = tmp_path / "c.json"
    jsonckpt.save({"w": torch.zeros(1000), "a": np.zeros(500)}, path)
    from jsonckpt._src.load.container import open_container
    from jsonckpt._src.load.options import ReadOptions
    from jsonckpt._src.rescue.verify_deep import check_state

    container = open_container(path, ReadOptions())
    entries = tuple(
        dataclasses.replace(entry, shape=(1 << 37,), nbytes=1 << 39)
        for entry in container.manifest.entries
    )
    state = dict(container.manifest.state)
    state["a"] = {"$ndarray": {**state["a"]["$ndarray"], "shape": [1 << 37]}}
    manifest = dataclasses.replace(container.manifest, entries=entries, state=state)
    check_state(dataclasses.replace(container, manifest=manifest))


def test_deep_finds_a_state_that_cannot_be_read(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.zeros(3), "d": 1.5}, tmp_path)
    manifest = tmp_path / "manifest.json"
    lines = manifest.read_text().replace("1.5", '{"$decimal":"?"}').splitlines()
    manifest.write_text("\n".join([*lines[:-1], '"seal":null}\n']))
    assert jsonckpt.verify(tmp_path)
    report = jsonckpt.verify(tmp_path, deep=True)
    assert [type(problem) for problem in report.problems] == [jsonckpt.FormatError]
    assert "/d" in str(report.problems[0])
    assert report.notes == ("manifest.json was edited by hand: its seal is null",)


def test_deep_runs_no_code_of_registered_types(tmp_path: Path) -> None:
    class Mine:
        def __init__(self, value: object) -> None:
            self.value = value

    def refuse(_: object) -> Mine:
        raise AssertionError("called")

    jsonckpt.register(Mine, "verify.Mine", lambda mine: mine.value, refuse)
    jsonckpt.save({"m": Mine([torch.ones(2)])}, tmp_path / "c.json")
    assert jsonckpt.verify(tmp_path / "c.json", deep=True)


def test_deep_notes_leftovers_and_spelling(tmp_path: Path) -> None:
    path = tmp_path / "c"
    jsonckpt.save(STATE, path)
    (path / "shard-0123456789ab-00001.json").write_text("x")
    report = jsonckpt.verify(path, deep=True)
    assert report
    (note,) = report.notes
    assert "1 leftover of killed saves (shard-0123456789ab-00001.json)" in note
    assert f"  note: {note}" in str(report)


def test_deep_reads_with_both_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(STATE, path)

    def refuse(*_: object, **__: object) -> None:
        raise jsonckpt.FormatError("forward")

    monkeypatch.setattr("jsonckpt._src.load.container.Shard.records", refuse)
    assert jsonckpt.verify(path)
    assert [p.message for p in jsonckpt.verify(path, deep=True).problems] == ["forward"]
