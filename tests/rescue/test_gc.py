"""``gc`` removes what killed saves left, and nothing else."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt

STATE = {"a": torch.arange(40), "b": torch.ones(40)}
OLD = time.time() - 100_000
FOREIGN = [
    "notes.txt",
    "shard-foreign-00001.json",
    "shard-0123456789ab-00001.json.bak",
    "shard-0123456789AB-00001.json",
    "xshard-0123456789ab-00001.json",
    "manifest-0123456789ab.tmp",
    ".manifest-backup.tmp",
    ".c.json.0123456789ab.tmp",
    "model.safetensors",
]
ORPHANS = [
    ".manifest-0123456789ab.tmp",
    "shard-0123456789ab-00001.json",
    "shard-0123456789ab-00002.json.zst",
    "shard-fedcba987654-100000.json",
]


def _put(path: Path, text: str = "left over") -> None:
    path.write_text(text)
    os.utime(path, (OLD, OLD))


def _listing(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def _age_everything(path: Path) -> None:
    for file in path.iterdir():
        os.utime(file, (OLD, OLD), follow_symlinks=False)


def test_only_orphans_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "c"
    jsonckpt.save(STATE, path, max_shard_size=700)
    own = _listing(path)
    assert len(own) == 3
    for name in [*FOREIGN, *ORPHANS]:
        _put(path / name)
    outside = tmp_path / "outside"
    _put(outside)
    (path / "shard-0123456789ab-00003.json").symlink_to(outside)
    (path / "shard-0123456789ab-00004.json").mkdir()
    (path / "sub").mkdir()
    _put(path / "sub" / ORPHANS[1])
    os.mkfifo(path / "shard-0123456789ab-00005.json")
    _age_everything(path)
    before = _listing(path)
    report = jsonckpt.gc(path, dry_run=True)
    assert _listing(path) == before
    assert sorted(report.removed) == ORPHANS
    assert "would remove 4 files, 36 B" in str(report)
    report = jsonckpt.gc(path)
    assert sorted(report.removed) == ORPHANS
    assert (report.kept, report.nbytes, report.dry_run) == ((), 36, False)
    assert _listing(path) == sorted(set(before) - set(ORPHANS))
    assert outside.exists()
    assert (path / "sub" / ORPHANS[1]).exists()
    assert jsonckpt.verify(path)
    assert jsonckpt.gc(path).removed == ()


def test_what_is_young_is_kept(tmp_path: Path) -> None:
    jsonckpt.save(STATE, tmp_path)
    now = time.time()
    for number, age in enumerate((10, 3_000, 90_000)):
        file = tmp_path / f"shard-0123456789ab-0000{number}.json"
        _put(file)
        os.utime(file, (now - age, now - age))
    report = jsonckpt.gc(tmp_path, dry_run=True)
    assert report.removed == ("shard-0123456789ab-00002.json",)
    assert len(report.kept) == 2
    for older_than, count in (("100s", 2), (100, 2), (timedelta(hours=2), 1), ("1w", 0), (0, 3)):
        found = jsonckpt.gc(tmp_path, older_than=older_than, dry_run=True)
        assert len(found.removed) == count


@pytest.mark.parametrize("age", ["", "24", "h", "-1h", "1y", "1h 2m", -1, float("nan"), None, True])
def test_what_is_no_age(tmp_path: Path, age: Any) -> None:
    jsonckpt.save(STATE, tmp_path)
    with pytest.raises(ValueError, match="age"):
        jsonckpt.gc(tmp_path, older_than=age)


def test_nothing_is_removed_without_a_readable_manifest(tmp_path: Path) -> None:
    path = tmp_path / "c"
    jsonckpt.save(STATE, path)
    manifest = path / "manifest.json"
    text = manifest.read_bytes()
    _put(path / ORPHANS[1])
    for damaged in (text[:-40], text.replace(b'"a"', b'"x"'), b""):
        manifest.write_bytes(damaged)
        _age_everything(path)
        before = _listing(path)
        with pytest.raises(jsonckpt.IncompleteCheckpointError, match="see jsonckpt recover"):
            jsonckpt.gc(path)
        assert _listing(path) == before
    manifest.unlink()
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="nothing was removed"):
        jsonckpt.gc(path)
    assert (path / ORPHANS[1]).exists()
    for nothing in (tmp_path, tmp_path / "gone"):
        with pytest.raises(jsonckpt.CheckpointNotFoundError):
            jsonckpt.gc(nothing)


@pytest.mark.parametrize("name", ["c.json", "c.json.zst"])
def test_beside_a_single_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    jsonckpt.save(STATE, path)
    left = f".{name}.0123456789ab.tmp"
    others = [".d.json.0123456789ab.tmp", f".{name}.tmp", f".x{name}.0123456789ab.tmp", *ORPHANS]
    for other in [left, *others]:
        _put(tmp_path / other)
    text = path.read_bytes()
    path.write_bytes(text[:-10])
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="nothing was removed"):
        jsonckpt.gc(path)
    path.write_bytes(text)
    assert jsonckpt.gc(path).removed == (left,)
    assert _listing(tmp_path) == sorted([name, *others])


def test_a_save_that_commits_meanwhile_keeps_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is read after the files were listed."""
    path = tmp_path / "c"
    jsonckpt.save(STATE, path)
    from jsonckpt._src.storage.leftovers import orphans

    def listed_then_saved(*arguments: Any) -> Any:
        jsonckpt.save(STATE, path)
        return orphans(*arguments)

    monkeypatch.setattr("jsonckpt._src.rescue.gc.orphans", listed_then_saved)
    assert jsonckpt.gc(path, older_than=0).removed == ()
    assert jsonckpt.verify(path)


def test_a_refused_removal_is_a_write_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jsonckpt.save(STATE, tmp_path)
    _put(tmp_path / ORPHANS[1])

    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.unlink", refuse)
    with pytest.raises(jsonckpt.WriteError, match="Permission denied") as caught:
        jsonckpt.gc(tmp_path)
    assert caught.value.errno == 13
    assert isinstance(caught.value.__cause__, PermissionError)


def test_what_a_manifest_that_cannot_be_read_may_name_is_kept_and_told(tmp_path: Path) -> None:
    run, beside = tmp_path / "run", tmp_path / "beside"
    jsonckpt.save(STATE, run)
    orphan = run / "shard-0123456789ab-00001.json"
    _put(orphan)
    os.utime(orphan, (1, 1))
    beside.mkdir()
    with (beside / "manifest.json").open("wb") as file:
        file.write(b'{"format":"jsonckpt.manifest",')
        file.truncate(1 << 40)
    report = jsonckpt.gc(run)
    assert (report.removed, report.kept) == ((), (orphan.name,))
    assert "maybe in use" in str(report)
    assert jsonckpt.verify(run)
    (beside / "manifest.json").unlink()
    assert jsonckpt.gc(run).removed == (orphan.name,)
