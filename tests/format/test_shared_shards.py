"""Manifests that name shards of other saves: the feature ``shared_shards`` (format section 5.1)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import FormatError, IncompleteCheckpointError, JsonckptError, UnsafePathError
from jsonckpt._src.format import filenames
from jsonckpt._src.format.limits import DEFAULT_LIMITS
from jsonckpt._src.format.manifest import dump_manifest, parse_manifest
from jsonckpt._src.format.model import Manifest
from tests.schemas import problems

STATE = {"body": torch.arange(1000.0), "head": torch.ones(7), "step": 3}


def manifest_of(path: Path) -> Manifest:
    return parse_manifest((path / "manifest.json").read_bytes(), DEFAULT_LIMITS)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A checkpoint without files of its own: all its records lie in ``../old``."""
    jsonckpt.save(STATE, tmp_path / "old")
    jsonckpt.save(STATE, tmp_path / "new")
    old, new = manifest_of(tmp_path / "old"), manifest_of(tmp_path / "new")
    rows = [replace(row, save_id=old.save_id, directory="../old") for row in old.shards]
    for shard in new.shards:
        (tmp_path / "new" / shard.file).unlink()
    text = dump_manifest(replace(new, shards=tuple(rows), entries=old.entries))
    (tmp_path / "new" / "manifest.json").write_bytes(text)
    return tmp_path / "new"


def edited(path: Path, edit: Callable[[Any], object]) -> Path:
    """Change the manifest as a person would: its seal is null."""
    document = json.loads((path / "manifest.json").read_text())
    edit(document)
    (path / "manifest.json").write_text(json.dumps(document | {"seal": None}))
    return path


def row_edited(path: Path, **members: Any) -> Path:
    return edited(path, lambda document: document["shards"][0].update(members))


def test_every_reader_reads_the_shards_of_another_directory(shared: Path) -> None:
    assert torch.equal(jsonckpt.load(shared)["body"], STATE["body"])
    with jsonckpt.open(shared) as checkpoint:
        assert torch.equal(checkpoint["/body"][10:20], STATE["body"][10:20])
    assert [name for name, _ in jsonckpt.stream(shared)] == ["/body", "/head"]
    target = {"body": torch.zeros(1000), "head": torch.zeros(7), "step": 0}
    jsonckpt.load_into(target, shared)
    assert torch.equal(target["body"], STATE["body"])
    assert jsonckpt.verify(shared).ok
    assert "4.0 kB" in repr(jsonckpt.inspect(shared))
    assert not jsonckpt.diff(shared, shared.parent / "old")
    assert jsonckpt.find(shared.parent)[0].kind


def test_the_path_may_be_the_directory_itself_or_a_link_to_it(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "best").symlink_to(shared, target_is_directory=True)
    assert jsonckpt.load(tmp_path / "elsewhere" / "best")["step"] == 3
    monkeypatch.chdir(shared)
    assert jsonckpt.load(".")["step"] == 3
    assert jsonckpt.load("manifest.json")["step"] == 3


def test_a_remote_directory_beside_it(shared: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.put(str(shared.parent), "/run", recursive=True)
    try:
        assert torch.equal(jsonckpt.load("memory://run/new")["head"], STATE["head"])
    finally:
        files.rm("/run", recursive=True)


def test_the_manifest_says_what_a_reader_must_know(shared: Path) -> None:
    document = json.loads((shared / "manifest.json").read_text())
    assert list(document)[:3] == ["format", "version", "requires"]
    assert document["requires"] == ["shared_shards"]
    assert problems(document) == []
    plain = json.loads((shared.parent / "old" / "manifest.json").read_text())
    assert "requires" not in plain
    assert list(plain["shards"][0]) == [
        "file",
        "bytes",
        "text_bytes",
        "seal",
    ]


def test_a_row_of_its_own_directory_may_have_a_save_id(shared: Path) -> None:
    # As shards of several ranks have.
    old = shared.parent / "old"
    manifest = manifest_of(old)
    rows = tuple(replace(row, save_id=manifest.save_id) for row in manifest.shards)
    text = dump_manifest(replace(manifest, save_id="f" * 32, shards=rows))
    (old / "manifest.json").write_bytes(text)
    assert jsonckpt.verify(old).ok


def test_a_missing_directory_is_named(shared: Path) -> None:
    (shared.parent / "old").rename(shared.parent / "moved")
    with pytest.raises(IncompleteCheckpointError, match=r"shares this file with '\.\./old'"):
        jsonckpt.load(shared)
    report = jsonckpt.verify(shared)
    assert not report.ok
    assert "'../old'" in str(report)


def test_recover_restores_from_the_other_directory(shared: Path, tmp_path: Path) -> None:
    report = jsonckpt.recover(shared, tmp_path / "out")
    assert report.complete
    assert torch.equal(jsonckpt.load(tmp_path / "out")["body"], STATE["body"])
    assert "requires" not in json.loads((tmp_path / "out" / "manifest.json").read_text())


def test_recover_says_which_directory_is_missing(shared: Path, tmp_path: Path) -> None:
    (shared.parent / "old").rename(shared.parent / "moved")
    report = jsonckpt.recover(shared, tmp_path / "out.json")
    assert any("there is no directory '../old'" in note for note in report.notes)
    assert len(report.lost) == 2


def test_another_file_in_its_place_is_refused(shared: Path) -> None:
    [row] = manifest_of(shared).shards
    file = shared.parent / "old" / row.file
    file.write_bytes(file.read_bytes().replace(row.save_id.encode(), b"e" * 32))
    with pytest.raises(FormatError, match="the file belongs to the save 'eeee"):
        jsonckpt.load(shared)


def test_a_damaged_file_is_found(shared: Path) -> None:
    [row] = manifest_of(shared).shards
    file = shared.parent / "old" / row.file
    data = bytearray(file.read_bytes())
    data[400] ^= 1
    file.write_bytes(data)
    with pytest.raises(JsonckptError):
        jsonckpt.load(shared)
    assert not jsonckpt.verify(shared).ok


def test_members_without_the_feature_are_refused(shared: Path) -> None:
    edited(shared, lambda document: document.pop("requires"))
    with pytest.raises(FormatError, match="save_id needs 'shared_shards' in requires"):
        jsonckpt.load(shared)


UNSAFE = [
    "..", "../", "../..", "../.", "../...", "../a/b", "../a/../../b", "/etc", "//etc/a", "a", "./a",
    "", "../a\0", "../a\n", "../a\\b", "../a\x7f", "../a\x85", "../" + "a" * 101, "../a/", "..//a",
    "..\\a", "../\ud800", "file:///a", "~/a",
]  # fmt: skip


@pytest.mark.parametrize("directory", UNSAFE, ids=[repr(text)[:20] for text in UNSAFE])
def test_an_unsafe_directory_is_refused(directory: str, shared: Path) -> None:
    assert not filenames.is_sibling(directory)
    row_edited(shared, directory=directory)
    with pytest.raises((UnsafePathError, FormatError)):  # a surrogate is no JSON of ours
        jsonckpt.load(shared)
    document = json.loads((shared / "manifest.json").read_text())
    if "\ud800" not in directory:
        assert problems(document)


@pytest.mark.parametrize(
    "directory", ["../a", "../step 5", "../.hidden", "../..a", "../é", "../a..b"]
)
def test_a_safe_directory(directory: str) -> None:
    assert filenames.is_sibling(directory)


@pytest.mark.parametrize("value", [1, None, [], {}, True, ["../old"]], ids=repr)
def test_a_directory_that_is_no_string_is_refused(value: object, shared: Path) -> None:
    with pytest.raises(FormatError, match="directory: expected a string"):
        jsonckpt.load(row_edited(shared, directory=value))


@pytest.mark.parametrize("value", [1, None, "", "0" * 31, "A" * 32, "0" * 33, []], ids=repr)
def test_a_save_id_that_is_none_is_refused(value: object, shared: Path) -> None:
    with pytest.raises(FormatError, match="save_id is"):
        jsonckpt.load(row_edited(shared, save_id=value))


@pytest.mark.parametrize("file", ["../shard-a.json", "manifest.json", "shard-/a.json"])
def test_the_file_beside_another_checkpoint_has_the_name_of_a_shard(
    file: str, shared: Path
) -> None:
    with pytest.raises(UnsafePathError, match="unsafe shard file name"):
        jsonckpt.load(row_edited(shared, file=file))


def test_one_file_twice_is_refused(shared: Path) -> None:
    edited(shared, lambda document: document["shards"].append(document["shards"][0]))
    with pytest.raises(FormatError, match="a file occurs twice"):
        jsonckpt.load(shared)


def test_many_rows_are_read_in_linear_time_and_refused(shared: Path) -> None:
    row = json.loads((shared / "manifest.json").read_text())["shards"][0]
    edited(
        shared, lambda document: document.update(shards=[{**row, "directory": "../x"}] * 100_001)
    )
    with pytest.raises(JsonckptError, match="100001 shards, the limit is 100000"):
        jsonckpt.load(shared)


def test_a_fifo_in_the_other_directory_is_refused(shared: Path) -> None:
    [row] = manifest_of(shared).shards
    (shared.parent / "old" / row.file).unlink()
    os.mkfifo(shared.parent / "old" / row.file)
    with pytest.raises(UnsafePathError, match="not a regular file"):
        jsonckpt.load(shared)


def test_links_are_refused_where_they_are_not_allowed(shared: Path) -> None:
    old = shared.parent / "old"
    old.rename(shared.parent / "moved")
    old.symlink_to(shared.parent / "moved", target_is_directory=True)
    assert jsonckpt.load(shared)["step"] == 3
    strict = jsonckpt.Limits(links=0)
    with pytest.raises(UnsafePathError, match="the directory is a symbolic link"):
        jsonckpt.load(shared, limits=strict)
    with pytest.raises(UnsafePathError, match="the directory is a symbolic link"):
        list(jsonckpt.stream(shared, limits=strict))
    old.unlink()
    (shared.parent / "moved").rename(old)
    assert jsonckpt.load(shared, limits=strict)["step"] == 3
    [row] = manifest_of(shared).shards
    (old / row.file).rename(shared.parent / "file")
    (old / row.file).symlink_to(shared.parent / "file")
    with pytest.raises(UnsafePathError, match="the file is a symbolic link"):
        jsonckpt.load(shared, limits=strict)


def test_each_truncation_of_the_manifest_is_an_error_of_ours(shared: Path) -> None:
    text = (shared / "manifest.json").read_bytes()
    for size in range(0, len(text) - 1, 7):
        with pytest.raises(JsonckptError):
            parse_manifest(text[:size], DEFAULT_LIMITS)


def test_gc_and_an_overwrite_leave_the_other_directory_alone(shared: Path) -> None:
    before = sorted(os.listdir(shared.parent / "old"))
    assert jsonckpt.gc(shared, older_than=0).removed == ()
    jsonckpt.save({"w": torch.zeros(2)}, shared)
    assert sorted(os.listdir(shared.parent / "old")) == before
    assert torch.equal(jsonckpt.load(shared)["w"], torch.zeros(2))
