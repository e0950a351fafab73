"""Whoever looks into a checkpoint, compares or edits it sees a tensor in regions as one tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import edit
from tests.regions import grid, same_tensors, save_in_regions


def state(shift: float = 0) -> dict[str, Any]:
    torch.manual_seed(5)
    w = torch.randn(30, 20) + shift
    return {"model": {"w": w, "b": torch.randn(9)}, "tied": w, "column": w[:, 3], "lr": 0.5}


@pytest.fixture(params=["c", "c.json", "c.json.zst"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    found: Path = tmp_path / request.param
    form = {"max_shard_size": 3000} if request.param == "c" else {}
    save_in_regions(state(), found, grid(2, 3), chunk_size=256, shuffle=6, **form)
    return found


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    jsonckpt.save(state(), tmp_path / "plain", chunk_size=300)
    return tmp_path / "plain"


def test_inspect_has_one_row_for_it(path: Path, plain: Path) -> None:
    found, other = jsonckpt.inspect(path), jsonckpt.inspect(plain)
    rows = [(t.name, t.dtype, t.shape, t.nbytes, t.kind, t.owns) for t in found.tensors]
    assert rows == [(t.name, t.dtype, t.shape, t.nbytes, t.kind, t.owns) for t in other.tensors]
    assert found.manifest.tensor_count == 2
    assert [g.nbytes for g in found.groups()] == [g.nbytes for g in other.groups()]


def test_its_statistics_and_its_report_are_those_of_one_tensor(path: Path, plain: Path) -> None:
    from jsonckpt._src.inspect.statistics import read_statistics
    from jsonckpt._src.load.container import open_container
    from jsonckpt._src.load.options import ReadOptions
    from jsonckpt._src.report.collect import collect

    both = []
    for one in (path, plain):
        container = open_container(one, ReadOptions.of())
        collected = collect(container, jsonckpt.inspect(one), pictures=True)
        both.append((read_statistics(container), collected.pictures))
    assert set(both[0][0]) == set(both[1][0]) == {"/model/w", "/model/b"}
    for name, expected in both[1][0].items():
        found = both[0][0][name]
        assert (found.count, found.min, found.max) == (expected.count, expected.min, expected.max)
        assert found.std == pytest.approx(expected.std)
    assert both[0][1] == both[1][1]


def test_diff_reads_what_no_checksums_decide(path: Path, plain: Path, tmp_path: Path) -> None:
    assert not jsonckpt.diff(path, plain)
    assert not jsonckpt.diff(path, path)
    assert jsonckpt.diff(path, path).read == 0
    jsonckpt.save(state(1), tmp_path / "other.json")
    found = jsonckpt.diff(path, tmp_path / "other.json", stats=True)
    names = {change.name for change in found.changes}
    assert names == {"/model/w", "/tied", "/column"}


def test_edits_write_one_record(path: Path, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    edit.rename(path, out=out, add_prefix="x.", at="/model")
    renamed = jsonckpt.load(out)
    assert same_tensors(renamed["model"]["x.w"], state()["model"]["w"])
    assert renamed["tied"] is renamed["model"]["x.w"]
    assert "requires" not in out.read_text()
    edit.merge({"a": path, "b": plain}, tmp_path / "merged.json")
    assert same_tensors(jsonckpt.load(tmp_path / "merged.json")["a"], state())
    jsonckpt.save(state(2), tmp_path / "two")
    edit.average([path, tmp_path / "two"], tmp_path / "mean.json")
    mean = jsonckpt.load(tmp_path / "mean.json")["model"]["w"]
    assert torch.allclose(mean, state(1)["model"]["w"], atol=1e-5)
    edit.split(path, tmp_path / "parts", by="top-level")
    assert {file.name.partition(".")[0] for file in (tmp_path / "parts").iterdir()} > {"model"}
    for file in (tmp_path / "parts").iterdir():
        assert jsonckpt.verify(file, deep=True).ok


def test_values_are_read_and_plain_values_set(path: Path) -> None:
    w = state()["model"]["w"]
    assert torch.equal(torch.tensor(edit.get_value(path, "/model/w")), w)
    edit.set_value(path, "/lr", 0.25)
    loaded = jsonckpt.load(path)
    assert loaded["lr"] == 0.25
    assert len(jsonckpt.open(path).manifest.wholes["/model/w"].parts) == 6
    assert same_tensors({**loaded, "lr": 0.5}, state())
    assert jsonckpt.verify(path, deep=True).ok


@pytest.mark.parametrize("to", ["out.pt", "out.safetensors", "out.json"])
def test_convert_writes_one_tensor(path: Path, tmp_path: Path, to: str) -> None:
    from jsonckpt.convert import convert

    convert(path, tmp_path / to)
    if to == "out.pt":
        found = torch.load(tmp_path / to)
        assert same_tensors(found["model"], state()["model"])
    elif to == "out.json":
        assert same_tensors(jsonckpt.load(tmp_path / to), state())
        assert "$regions" not in (tmp_path / to).read_text()
