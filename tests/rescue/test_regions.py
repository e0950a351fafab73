"""Tensors in regions after damage: whole again from their records, or lost by name."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from tests.regions import grid, same_tensors, save_in_regions


def state() -> dict[str, Any]:
    torch.manual_seed(4)
    w = torch.randn(20, 10)
    return {"w": w, "tied": w, "m": {"b": torch.randn(7)}, "whole": torch.ones(3), "step": 5}


def cut(name: str, shape: Any) -> Any:
    return None if name == "/whole" else grid(2, 2)(name, shape)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_in_regions(state(), tmp_path / "c", cut, chunk_size=128, max_shard_size=1500, shuffle=1)
    return tmp_path / "c"


def test_an_intact_one_is_recovered_as_it_was(directory: Path, tmp_path: Path) -> None:
    report = jsonckpt.recover(directory, tmp_path / "new")
    assert report.complete
    assert set(report.recovered) == {"/w", "/m/b", "/whole"}
    assert same_tensors(jsonckpt.load(tmp_path / "new"), state())
    assert jsonckpt.load(tmp_path / "new")["tied"] is not None
    assert jsonckpt.verify(tmp_path / "new", deep=True).ok


def test_without_its_manifest_the_names_say_how_it_was(directory: Path, tmp_path: Path) -> None:
    (directory / "manifest.json").unlink()
    report = jsonckpt.recover(directory, tmp_path / "new")
    assert report.state == "lost"
    assert not report.lost
    saved = state()
    expected = {"w": saved["w"], "m": saved["m"], "whole": saved["whole"]}
    assert same_tensors(jsonckpt.load(tmp_path / "new"), expected)


@pytest.mark.parametrize("with_manifest", [True, False])
def test_one_lost_region_loses_its_tensor_only(
    directory: Path, tmp_path: Path, with_manifest: bool
) -> None:
    for file in directory.glob("shard-*"):
        data = file.read_bytes()
        at = data.find(b'{"name":"$region/10,5/w"')
        if at >= 0:
            at = data.index(b'"chunks":[\n"', at) + 20
            file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    if not with_manifest:
        (directory / "manifest.json").unlink()
    report = jsonckpt.recover(directory, tmp_path / "new")
    assert not report.complete
    assert "/w" in {item.name for item in report.lost}
    assert set(report.recovered) == {"/m/b", "/whole"}
    found = jsonckpt.load(tmp_path / "new")
    assert same_tensors(found["m"], state()["m"])
    assert "w" not in found
    if with_manifest:
        assert {item.name: item.reason for item in report.lost}["/w"].startswith("its region")
        assert found["step"] == 5
    assert not any("region" in entry for entry in jsonckpt.open(tmp_path / "new"))


def test_a_file_cut_off_anywhere_gives_whole_tensors_or_none(tmp_path: Path) -> None:
    save_in_regions(state(), tmp_path / "c.json", cut, chunk_size=256)
    data, saved = (tmp_path / "c.json").read_bytes(), state()
    known = {"w": saved["w"], "b": saved["m"]["b"], "whole": saved["whole"]}
    for number in itertools.count():
        length = len(data) - 97 * (number + 1)
        if length < 1000:
            break
        (tmp_path / "cut.json").write_bytes(data[:length])
        new = tmp_path / f"new-{number}.json"
        try:
            jsonckpt.recover(tmp_path / "cut.json", new)
        except jsonckpt.IncompleteCheckpointError:
            continue
        for name, tensor in jsonckpt.stream(new):
            assert torch.equal(tensor, known[name.rpartition("/")[2].replace("tied", "w")])


def test_verify_counts_tensors_and_finds_damage(directory: Path) -> None:
    report = jsonckpt.verify(directory, deep=True)
    assert report.ok
    assert report.tensors == 3
    for file in directory.glob("shard-*"):
        data = bytearray(file.read_bytes())
        data[data.index(b'"chunks":[\n"') + 20] ^= 1
        file.write_bytes(data)
        break
    assert not jsonckpt.verify(directory)
