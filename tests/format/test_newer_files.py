"""Files of a later release are called that, whatever else makes no sense in them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt.convert import convert


def _pipe(path: Path) -> Any:
    return jsonckpt.load(io.BytesIO(path.read_bytes()))


def _open(path: Path) -> Any:
    with jsonckpt.open(path) as checkpoint:
        return checkpoint.state()


def _convert(path: Path) -> Any:
    return convert(path, path.with_name("out.pt"))


DOORS: dict[str, Callable[[Path], Any]] = {
    "load": jsonckpt.load,
    "open": _open,
    "stream": lambda path: list(jsonckpt.stream(path)),
    "pipe": _pipe,
    "load_into": lambda path: jsonckpt.load_into({"w": torch.zeros(3)}, path),
}


def _edited(data: bytes) -> bytes:
    return data.replace(b'"version":1', b'"version":2,"readable_by":"jsonckpt 3.1"', 1)


def _feature(data: bytes) -> bytes:
    return data.replace(b'"version":1', b'"version":1,"requires":["deltas"]', 1)


def _other_trailer(data: bytes) -> bytes:
    return _edited(data[: data.rindex(b',"seal"')] + b',"end":"of another kind"}\n')


def _other_layout(data: bytes) -> bytes:
    return _edited(data).replace(b"\n", b"").replace(b'"tensors":[', b'"records":[ ') + b"\n"


CASES = {
    "edited": (_edited, "'jsonckpt 3.1' and later"),
    "feature": (_feature, "requires 'deltas'"),
    "other_trailer": (_other_trailer, "version 2 is newer than 1"),
    "other_layout": (_other_layout, "version 2 is newer than 1"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", CASES)
def test_a_single_file_of_a_later_release(tmp_path: Path, case: str, door: str) -> None:
    change, told = CASES[case]
    path = tmp_path / "c.json"
    jsonckpt.save({"w": torch.ones(3), "epoch": 1}, path, sync=False)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(jsonckpt.UnsupportedVersionError) as caught:
        DOORS[door](path)
    assert told in str(caught.value)
    assert "pip install -U jsonckpt" in str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_verify_and_convert_say_so(tmp_path: Path, case: str) -> None:
    change, told = CASES[case]
    path = tmp_path / "c.json"
    jsonckpt.save({"w": torch.ones(3), "epoch": 1}, path, sync=False)
    path.write_bytes(change(path.read_bytes()))
    report = jsonckpt.verify(path)
    assert not report
    assert any(told in str(problem) for problem in report.problems)
    with pytest.raises(jsonckpt.JsonckptError, match=told.replace("'", ".")):
        _convert(path)


def test_damage_in_a_file_of_this_release_is_no_later_release(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"w": torch.ones(3), "note": '"version":2'}, path, sync=False)
    data = path.read_bytes()
    for damaged in (
        data[:-5],
        data[: len(data) // 2],
        data.replace(b'"version":1', b'"version":x'),
    ):
        path.write_bytes(damaged)
        for door in DOORS.values():
            with pytest.raises(jsonckpt.JsonckptError) as caught:
                door(path)
            assert not isinstance(caught.value, jsonckpt.UnsupportedVersionError)
