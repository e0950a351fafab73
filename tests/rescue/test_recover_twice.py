"""``recover`` where a name stands twice, or more was left than is taken: it is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt._src.cli.main import main
from jsonckpt._src.save import snapshot
from tests.recovered import entries_of

ZEROS, ONES = {"w": torch.zeros(50), "v": torch.ones(3)}, {"w": torch.ones(50)}


@pytest.fixture(autouse=True)
def _one_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """All saves of a test have one id, as copies of a directory that were mixed have."""
    monkeypatch.setattr(snapshot, "new_save_id", lambda: "0123456789ab" + "0" * 20)


def _record(path: Path, name: str = "/w") -> bytes:
    """The text of a record in a single file."""
    entry = next(entry for entry in entries_of(path) if entry.name == name)
    return path.read_bytes()[entry.offset : entry.offset + entry.length]


def _twice(path: Path, other: bytes) -> None:
    """Put another record behind the one of ``/w``."""
    record = _record(path) if path.is_file() else b""
    file = path
    if not record:
        file = next(path.glob("shard-*"))
        entry = next(entry for entry in entries_of(path) if entry.name == "/w")
        record = file.read_bytes()[entry.offset : entry.offset + entry.length]
    file.write_bytes(file.read_bytes().replace(record, record + b",\n" + other, 1))


@pytest.fixture
def other(tmp_path: Path) -> bytes:
    jsonckpt.save(ONES, tmp_path / "other.json")
    return _record(tmp_path / "other.json")


@pytest.mark.parametrize("container", ["c.json", "c"])
def test_another_record_of_the_name_is_a_loss(
    tmp_path: Path, other: bytes, container: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / container
    jsonckpt.save(ZEROS, path)
    _twice(path, other)
    if container == "c":
        (path / "manifest.json").unlink()
    report = jsonckpt.recover(path, tmp_path / "new")
    (lost,) = report.lost
    assert lost.name == "/w"
    assert "another intact record of this name was restored: the first one" in lost.reason
    assert not report.complete
    assert "; 1 lost;" in str(report)
    assert torch.equal(jsonckpt.load(tmp_path / "new", include="/w")["w"], ZEROS["w"])
    assert main(["recover", str(path), str(tmp_path / "newer")]) == 3
    assert "lost: '/w': another intact record" in capsys.readouterr().out


def test_shards_that_both_have_it(tmp_path: Path) -> None:
    path = tmp_path / "c"
    jsonckpt.save(ZEROS, path)
    jsonckpt.save(ONES, tmp_path / "other")
    shard = next((tmp_path / "other").glob("shard-*"))
    shard.rename(path / shard.name.replace("-00001", "-00002"))
    (path / "manifest.json").unlink()
    report = jsonckpt.recover(path, tmp_path / "new")
    (lost,) = report.lost
    assert lost.file.endswith("-00002.json")
    assert "-00001.json" in lost.reason


def test_what_the_manifest_means_is_taken(tmp_path: Path, other: bytes) -> None:
    path = tmp_path / "c"
    jsonckpt.save(ZEROS, path)
    _twice(path, other)
    report = jsonckpt.recover(path, tmp_path / "new")
    assert not report.lost
    (note,) = [note for note in report.notes if "has another '/w'" in note]
    assert "the manifest means the one that was restored" in note
    assert torch.equal(jsonckpt.load(tmp_path / "new")["w"], ZEROS["w"])


def test_the_same_twice_is_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(ZEROS, path)
    _twice(path, _record(path))
    report = jsonckpt.recover(path, tmp_path / "new")
    assert not report.lost
    assert "'/w' exists twice, with the same content" in report.notes


def test_other_leftovers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    for number, state in enumerate([ONES, ZEROS]):
        jsonckpt.save(state, path)
        path.rename(tmp_path / f".c.json.{number:012x}.tmp")
        os.utime(tmp_path / f".c.json.{number:012x}.tmp", (number, number))
    report = jsonckpt.recover(path, tmp_path / "new")
    assert "'.c.json.000000000001.tmp', its newest leftover, was used" in report.notes[0]
    assert report.notes[1] == "'.c.json.000000000000.tmp' was not searched"
    assert report.complete
