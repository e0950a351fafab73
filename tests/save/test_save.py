"""Saving: what is overwritten and what never is, what is refused, and what the result says."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from tests.support import same
from tests.two_states import KINDS, NEW, OLD, OPTIONS, files

# --- what may be overwritten -----------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_overwriting(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run" / name
    first = jsonckpt.save(OLD, path, **OPTIONS)
    second = jsonckpt.save(NEW, path, **OPTIONS)
    assert first.save_id != second.save_id
    assert same(jsonckpt.load(path), NEW)
    assert files(path if path.is_dir() else path.parent) == sorted(second.files)
    with pytest.raises(jsonckpt.CheckpointExistsError, match="overwrite=True"):
        jsonckpt.save(OLD, path, overwrite=False)
    assert same(jsonckpt.load(path), NEW)


@pytest.mark.parametrize("name", KINDS)
def test_overwrite_false_on_a_free_path(tmp_path: Path, name: str) -> None:
    jsonckpt.save(OLD, tmp_path / name, overwrite=False)
    assert same(jsonckpt.load(tmp_path / name), OLD)


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    jsonckpt.save(OLD, tmp_path, overwrite=False)
    assert same(jsonckpt.load(tmp_path), OLD)


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(jsonckpt.CheckpointExistsError, match=r"thesis\.tex"):
        jsonckpt.save(NEW, tmp_path)
    assert files(tmp_path) == ["thesis.tex"]


def test_another_programs_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(jsonckpt.CheckpointExistsError, match="another program"):
        jsonckpt.save(NEW, tmp_path)
    assert (tmp_path / "manifest.json").read_text() == '{"name": "a web page"}'


def test_files_beside_a_checkpoint_stay(tmp_path: Path) -> None:
    jsonckpt.save(OLD, tmp_path, **OPTIONS)
    (tmp_path / "notes.txt").write_text("mine")
    jsonckpt.save(NEW, tmp_path, **OPTIONS)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert same(jsonckpt.load(tmp_path), NEW)


def test_a_file_where_a_directory_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("mine")
    with pytest.raises(jsonckpt.CheckpointExistsError, match=r"ending in \.json"):
        jsonckpt.save(NEW, tmp_path / "c")
    assert (tmp_path / "c").read_text() == "mine"


def test_a_directory_where_a_file_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "c.json").mkdir()
    with pytest.raises(jsonckpt.CheckpointExistsError, match="there is a directory"):
        jsonckpt.save(NEW, tmp_path / "c.json")
    assert files(tmp_path / "c.json") == []


def test_a_file_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for name in ("c", "c.json"):
        with pytest.raises(jsonckpt.WriteError) as caught:
            jsonckpt.save(NEW, tmp_path / "file" / name)
        assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "latest.json").symlink_to(tmp_path / "real.json")
    jsonckpt.save(NEW, tmp_path / "latest.json")
    assert (tmp_path / "latest.json").is_symlink()
    assert same(jsonckpt.load(tmp_path / "real.json"), NEW)


def test_orphans_of_a_killed_save_are_ignored(tmp_path: Path) -> None:
    orphans = ["shard-0123456789ab-00000.json", ".manifest-0123456789ab.tmp"]
    for name in orphans:
        (tmp_path / name).write_text("{")
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="did not finish"):
        jsonckpt.load(tmp_path)
    jsonckpt.save(NEW, tmp_path)
    assert same(jsonckpt.load(tmp_path), NEW)
    assert jsonckpt.verify(tmp_path)


def test_an_unreadable_manifest_keeps_its_shards(tmp_path: Path) -> None:
    old = jsonckpt.save(OLD, tmp_path, **OPTIONS)
    manifest = (tmp_path / "manifest.json").read_bytes()
    (tmp_path / "manifest.json").write_bytes(manifest[:-100])
    jsonckpt.save(NEW, tmp_path, **OPTIONS)
    assert set(old.files) <= set(files(tmp_path))
    assert same(jsonckpt.load(tmp_path), NEW)


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_a_type_without_a_rule_writes_nothing(tmp_path: Path, name: str) -> None:
    class Mine:
        pass

    with pytest.raises(jsonckpt.UnsupportedTypeError, match=r"/deep/0.*register"):
        jsonckpt.save({"w": torch.ones(1), "deep": [Mine()]}, tmp_path / name)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"encoding": "hex"}, ValueError),
        ({"compression": "gzip"}, ValueError),
        ({"filter": "delta"}, ValueError),
        ({"checksum": "md5"}, ValueError),
        ({"chunk_size": 0}, ValueError),
        ({"chunk_size": "1 parsec"}, ValueError),
        ({"chunk_size": "1GiB"}, ValueError),
        ({"max_shard_size": -1}, ValueError),
        ({"threads": 0}, ValueError),
        ({"compression": "zstd", "compression_level": 99}, ValueError),
        ({"encoding": "list", "compression": "zstd"}, ValueError),
        ({"metadata": {"x": torch.ones(1)}}, (TypeError, ValueError)),
    ],
)
def test_options_that_do_not_exist(tmp_path: Path, options: dict[str, Any], error: Any) -> None:
    with pytest.raises(error):
        jsonckpt.save(NEW, tmp_path / "c.json", **options)
    assert files(tmp_path) == []


# --- what readers would refuse ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_a_name_that_is_too_long(tmp_path: Path, name: str) -> None:
    with pytest.raises(jsonckpt.LimitError):
        jsonckpt.save({"k" * 1_024: torch.ones(1)}, tmp_path / name)
    assert files(tmp_path) == []
    jsonckpt.save({"k" * 1_023: torch.ones(1)}, tmp_path / name)
    assert len(jsonckpt.load(tmp_path / name)) == 1


def nested(depth: int) -> Any:
    state: Any = 1
    for _ in range(depth):
        state = [state]
    return state


def test_a_state_that_is_too_deep(tmp_path: Path) -> None:
    with pytest.raises(jsonckpt.LimitError):
        jsonckpt.save(nested(300), tmp_path / "c.json")
    assert files(tmp_path) == []
    deepest = 0
    for depth in range(190, 201):
        with open(tmp_path / "c.json", "wb") as file:
            try:
                jsonckpt.save(nested(depth), file)
            except jsonckpt.LimitError:
                break
        assert jsonckpt.load(tmp_path / "c.json") == nested(depth)
        deepest = depth
    assert 190 < deepest < 200


# --- the result -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_the_result(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    result = jsonckpt.save(NEW, path, **OPTIONS)
    assert result.path == str(path)
    assert (result.tensors, result.nbytes) == (2, 50 * 4 + 30 * 2)
    where = path if path.is_dir() else tmp_path
    assert sorted(result.files) == files(where)
    assert result.stored_bytes == sum((where / file).stat().st_size for file in result.files)
    assert result.durability == "synced"
    assert len(result.save_id) == 32
    assert int(result.save_id, 16) >= 0
    assert result.seconds > 0
    assert ":" in result.digest
    if path.is_dir():
        assert result.files[-1] == "manifest.json"
    assert jsonckpt.open(path).manifest.save_id == result.save_id


def test_sha256_pins_every_byte(tmp_path: Path) -> None:
    result = jsonckpt.save(NEW, tmp_path, checksum="sha256", **OPTIONS)
    text = (tmp_path / "manifest.json").read_text()
    assert json.loads(text)["tensors"][0]["chunks"][0][2] in text
    assert len(json.loads(text)["tensors"][0]["chunks"][0][2]) == 64
    assert result.digest.startswith("sha256:")
    assert same(jsonckpt.load(tmp_path), NEW)


def test_metadata(tmp_path: Path) -> None:
    metadata = {"run": "a\n\u00e9", "loss": 0.1, "tags": [1, None, {"x": True}]}
    for name in KINDS:
        jsonckpt.save(NEW, tmp_path / name, metadata=metadata)
        assert jsonckpt.open(tmp_path / name).metadata == metadata


def test_compression_level(tmp_path: Path) -> None:
    state = {"w": torch.arange(200_000) % 1000}
    sizes = [
        jsonckpt.save(
            state, tmp_path / "c", compression="zstd", compression_level=level
        ).stored_bytes
        for level in (1, 19)
    ]
    assert sizes[1] < sizes[0] < 400_000
    assert same(jsonckpt.load(tmp_path / "c"), state)


def test_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonckpt.save(NEW, tmp_path / "c")
    jsonckpt.load(tmp_path / "c")
    assert capsys.readouterr().err == ""
    jsonckpt.save(NEW, tmp_path / "c", progress=True)
    shown = capsys.readouterr().err
    assert "save" in shown
    assert "260" in shown
    jsonckpt.load(tmp_path / "c", progress=True)
    assert "load" in capsys.readouterr().err


def test_a_file_object(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    result = jsonckpt.save(NEW, buffer)
    assert (result.path, result.files, result.durability) == ("", (), "none")
    assert result.stored_bytes == len(buffer.getvalue())
    (tmp_path / "c.json").write_bytes(buffer.getvalue())
    assert same(jsonckpt.load(tmp_path / "c.json"), NEW)


def test_a_pipe_between_processes() -> None:
    script = (
        "import sys, jsonckpt, torch; jsonckpt.save({'w': torch.arange(99999)}, sys.stdout.buffer)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        state = jsonckpt.load(child.stdout)
    assert child.returncode == 0
    assert same(state, {"w": torch.arange(99_999)})
