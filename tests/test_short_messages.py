"""Messages of a few lines: which limit it is, the first few of many, and what to do now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.format.limits import Limits

#: A limit that the checkpoint is over -> the field that the hint must name.
OVER: dict[str, tuple[Limits, str]] = {
    "tensors": (Limits(tensors=1), "tensors=..."),
    "chunks": (Limits(chunks=2), "chunks=..."),
    "name_bytes": (Limits(name_bytes=3), "name_bytes=..."),
    "rank": (Limits(rank=1), "rank=..."),
    "chunk_bytes": (Limits(chunk_bytes=64), "chunk_bytes=..."),
    "total": (Limits(total_floor=1, expansion=0), "total_floor=..."),
}


def _stream(path: Path, limits: Limits) -> Any:
    return list(jsonckpt.stream(path, limits=limits))


DOORS: dict[str, Callable[[Path, Limits], Any]] = {
    "load": lambda path, limits: jsonckpt.load(path, limits=limits),
    "stream": _stream,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("limit", OVER)
@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_the_hint_names_the_limit(tmp_path: Path, name: str, limit: str, door: str) -> None:
    limits, field = OVER[limit]
    state = {"weight": torch.ones(40, 2), "bias": torch.ones(30)}
    jsonckpt.save(state, tmp_path / name, chunk_size=128, sync=False)
    with pytest.raises(jsonckpt.LimitError) as caught:
        DOORS[door](tmp_path / name, limits)
    assert f"Pass limits=jsonckpt.Limits({field}) if it is meant." in str(caught.value)


def _edit(path: Path, old: str, new: str, count: int = -1) -> None:
    text = path.read_text()
    assert old in text
    text = text.replace(old, new, count)
    path.write_text(text.rpartition('"seal"')[0] + '"seal":null}\n')


def test_the_first_few_of_many_problems(tmp_path: Path) -> None:
    jsonckpt.save({f"w{n}": torch.ones(3) for n in range(10)}, tmp_path / "c", sync=False)
    _edit(tmp_path / "c" / "manifest.json", '"dtype":"float32"', '"dtype":"float128"')
    with pytest.raises(jsonckpt.FormatError, match=r"tensors\[2\].*; and 7 more") as caught:
        jsonckpt.load(tmp_path / "c")
    assert len(str(caught.value).replace(str(tmp_path), "")) < 400


def test_the_first_few_of_many_names(tmp_path: Path) -> None:
    saved = {"saved." + "x" * 100 + str(n): torch.ones(1) for n in range(30)}
    wanted = {"wanted." + "x" * 100 + str(n): torch.ones(1) for n in range(30)}
    jsonckpt.save(saved, tmp_path / "c.json", sync=False)
    with pytest.raises(jsonckpt.StateMismatchError, match="and 25 more") as caught:
        jsonckpt.load_into(wanted, tmp_path / "c.json")
    assert len(caught.value.missing) == len(caught.value.unexpected) == 30
    assert len(str(caught.value).replace(str(tmp_path), "")) < 1_500
    assert str(caught.value).count("\n") == 2


@pytest.mark.parametrize("name", ["c.json", "c.json.zst"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_file_that_was_cut_off_can_be_recovered(tmp_path: Path, name: str, part: float) -> None:
    path = tmp_path / name
    jsonckpt.save({"w": torch.randn(5_000)}, path, sync=False)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="jsonckpt recover PATH NEW"):
        jsonckpt.load(path)


def test_a_long_creator(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(3)}, tmp_path / "c", sync=False)
    _edit(tmp_path / "c" / "manifest.json", '"created_by":"', '"created_by":"' + "x" * 1_000, 1)
    with pytest.raises(jsonckpt.FormatError, match=r"created_by: has 1\d\d\d characters, over"):
        jsonckpt.load(tmp_path / "c")
