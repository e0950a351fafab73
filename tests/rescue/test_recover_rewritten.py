"""``recover`` of texts that a JSON tool wrote again, or whose line endings were changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from tests import independent_reader
from tests.layout_tools import TOOLS
from tests.load.test_any_layout import CODECS, crlf, edit, state, tool_writes


def recovered(path: Path, out: Path, **options: Any) -> jsonckpt.RecoverReport:
    report = jsonckpt.recover(path, out, **options)
    assert not report.lost
    loaded, expected = jsonckpt.load(out), state()
    for key, value in expected.items():
        if torch.is_tensor(value):
            torch.testing.assert_close(loaded[key], value, rtol=0, atol=0, equal_nan=True)
    assert jsonckpt.verify(out).ok
    assert not jsonckpt.verify(out).notes
    return report


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("name", ["c.json", "c.json.zst"])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_single_file(tmp_path: Path, tool: str, name: str, sealed: bool) -> None:
    path = tmp_path / name
    jsonckpt.save(state(), path, encoding="list")
    seal = json.loads(independent_reader.file_text(path))["seal"]
    tool_writes(path, tool, seal if sealed else None)
    report = recovered(path, tmp_path / "new.json")
    assert report.state == "unverified"
    assert "written again by a JSON tool" in str(report)
    assert jsonckpt.load(tmp_path / "new.json")["lr"] == 0.1
    assert {file.name for file in tmp_path.iterdir()} == {name, "new.json"}


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_directory(tmp_path: Path, tool: str, sealed: bool) -> None:
    """The manifest and all shards."""
    path = tmp_path / "c"
    jsonckpt.save(state(), path, max_shard_size=4_000, checksum="sha256")
    for file in path.iterdir():
        tool_writes(file, tool, json.loads(file.read_bytes())["seal"] if sealed else None)
    assert recovered(path, tmp_path / "new").state == "unverified"
    (path / "manifest.json").unlink()
    report = jsonckpt.recover(path, tmp_path / "other")
    assert (len(report.recovered), report.lost, report.state) == (6, (), "lost")


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("what", ["single", "manifest", "shards", "directory"])
def test_line_endings_are_restored(tmp_path: Path, what: str, codec: dict[str, Any]) -> None:
    path = tmp_path / ("c.json" if what == "single" else "c")
    jsonckpt.save(state(), path, **codec)
    for file in [path] if path.is_file() else list(path.iterdir()):
        if what in ("single", "directory") or (file.name == "manifest.json") == (
            what == "manifest"
        ):
            crlf(file)
    report = recovered(path, tmp_path / "new")
    assert report.state == "verified"
    assert report.complete
    assert "changed from LF to CRLF" in str(report)
    assert jsonckpt.load(tmp_path / "new")["name"] == state()["name"]


def test_line_endings_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(state(), path, encoding="list")
    edit(path, b"38,39", b"38,30")
    crlf(path)
    report = jsonckpt.recover(path, tmp_path / "new.json")
    assert [item.name for item in report.lost] == ["/steps"]
    assert report.state == "verified"


def test_what_a_tool_changed_is_lost_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"zero": torch.tensor([-0.0, 2.5]), "w": torch.ones(3)}, path, encoding="list")
    tool_writes(path, "indented")
    edit(path, b"-0.0", b"0")
    report = jsonckpt.recover(path, tmp_path / "new.json")
    assert [(item.name, item.chunk) for item in report.lost] == [("/zero", 0)]
    assert report.recovered == ("/w",)


@pytest.mark.parametrize("name", ["c.json", "manifest.json"])
@pytest.mark.parametrize("new", [b'"lr": 0.2', b'"lr": 0.0005'])
def test_an_edit_under_the_old_seal(tmp_path: Path, new: bytes, name: str) -> None:
    """Of the same length, it may be damage."""
    path = tmp_path / "a" / name
    path.parent.mkdir()
    target = path.parent if name == "manifest.json" else path
    jsonckpt.save(state(), target)
    edit(path, b'"lr": 0.1', new)
    report = jsonckpt.recover(target, tmp_path / "new")
    moved = name == "c.json" and len(new) > 9
    assert report.state == ("unverified" if moved else "lost")
    assert moved or "(--trust-state) uses it anyway" in str(report)
    report = recovered(target, tmp_path / "trusted", trust_state=True)
    assert report.state == "unverified"
    assert jsonckpt.load(tmp_path / "trusted")["lr"] == float(new[6:])


@pytest.mark.parametrize("text", ['{"weights": [[0.1, 2]], "b": [1]}', "[1, [2, 3]]"])
def test_json_of_another_program(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(jsonckpt.FormatError, match=r"another program.*jsonckpt\.convert"):
        jsonckpt.recover(path, tmp_path / "new.json")
    assert list(tmp_path.iterdir()) == [path]
