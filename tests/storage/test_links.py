"""Files that are symbolic links: followed by default, refused with ``Limits(links=0)``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.cli.main import main
from jsonckpt._src.format.limits import Limits

STRICT = Limits(links=0)
FILES = ["manifest", "shard", "c.json", "c.json.zst"]
DOORS: dict[str, Callable[[Path, Limits], Any]] = {
    "load": lambda path, limits: jsonckpt.load(path, limits=limits),
    "open": lambda path, limits: jsonckpt.open(path, limits=limits).load(),
    "stream": lambda path, limits: list(jsonckpt.stream(path, limits=limits)),
    "load_into": lambda path, limits: jsonckpt.load_into(
        {"w": torch.zeros(9)}, path, limits=limits
    ),
}


def _linked(directory: Path, what: str) -> Path:
    """A checkpoint of which one file is a link."""
    path = directory / (what if what.startswith("c.") else "c")
    jsonckpt.save({"w": torch.ones(9)}, path, sync=False)
    file = {"manifest": path / "manifest.json", "shard": next(path.glob("shard-*"), path)}.get(
        what, path
    )
    elsewhere = directory / "elsewhere"
    elsewhere.mkdir()
    os.replace(file, elsewhere / file.name)
    file.symlink_to(elsewhere / file.name)
    return path


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("what", FILES)
def test_a_link_is_refused(tmp_path: Path, what: str, door: str) -> None:
    path = _linked(tmp_path, what)
    with pytest.raises(jsonckpt.UnsafePathError) as caught:
        DOORS[door](path, STRICT)
    assert "the file is a symbolic link, the limit is 0 links" in str(caught.value)
    assert "Pass limits=jsonckpt.Limits(links=None) if that is intended" in str(caught.value)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("what", FILES)
def test_a_link_is_followed_by_default(tmp_path: Path, what: str, door: str) -> None:
    DOORS[door](_linked(tmp_path, what), Limits())


@pytest.mark.parametrize("what", FILES)
def test_recover_takes_nothing_from_a_link(tmp_path: Path, what: str) -> None:
    path, out = _linked(tmp_path, what), tmp_path / "out"
    if what == "manifest":  # the shards have all tensors, too
        report = jsonckpt.recover(path, out, limits=STRICT)
        assert any("symbolic link" in note for note in report.notes)
        assert report.state != "verified"
    elif what == "shard":
        report = jsonckpt.recover(path, out, limits=STRICT)
        assert not report.complete
        assert not report.recovered
    else:
        with pytest.raises(jsonckpt.JsonckptError, match="symbolic link"):
            jsonckpt.recover(path, out, limits=STRICT)
    assert jsonckpt.recover(path, tmp_path / "followed").complete


@pytest.mark.parametrize("what", FILES)
def test_verify_and_the_command(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _linked(tmp_path, what)
    report = jsonckpt.verify(path, limits=STRICT)
    assert [type(problem) for problem in report.problems] == [jsonckpt.UnsafePathError]
    assert main(["verify", str(path), "--limit", "links=0"]) != 0
    assert "symbolic link" in capsys.readouterr().out
    assert main(["verify", str(path), "--limit", "links=none"]) == 0


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_files_and_links_to_directories_load(tmp_path: Path, name: str) -> None:
    (tmp_path / "real").mkdir()
    jsonckpt.save({"w": torch.ones(9)}, tmp_path / "real" / name, sync=False)
    (tmp_path / "latest").symlink_to(tmp_path / "real")
    assert jsonckpt.load(tmp_path / "latest" / name, limits=STRICT)["w"].sum() == 9
    if name == "c":
        (tmp_path / "run").symlink_to(tmp_path / "real" / name)
        assert jsonckpt.load(tmp_path / "run", limits=STRICT)["w"].sum() == 9


def test_another_number_is_refused() -> None:
    with pytest.raises(ValueError, match="links must be 0 or None, not 3"):
        Limits(links=3)
