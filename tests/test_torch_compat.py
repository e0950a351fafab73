"""``jsonckpt.torch_compat``: a script that calls torch.save and torch.load works with it."""

from __future__ import annotations

import inspect
import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import torch_compat
from tests.support import difference

STATE = {
    "model": OrderedDict(w=torch.arange(6.0).reshape(2, 3), b=torch.zeros(2, dtype=torch.bfloat16)),
    "betas": (0.9, 0.999),
    "epoch": 3,
}


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.bin", "last.ckpt", "m.tar", "m", "m.json"])
def test_any_name_is_one_file_and_comes_back(name: str, tmp_path: Path) -> None:
    torch_compat.save(STATE, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(b'{"')
    assert difference(torch_compat.load(tmp_path / name), STATE) is None
    assert difference(jsonckpt.load(str(tmp_path / name)), STATE) is None
    assert os.listdir(tmp_path) == [name]


def test_a_file_object_is_written_and_read() -> None:
    file = io.BytesIO()
    torch_compat.save(STATE, file)
    file.seek(0)
    assert difference(torch_compat.load(file, "cpu", weights_only=True), STATE) is None


def test_the_arguments_are_those_of_torch(tmp_path: Path) -> None:
    for ours, theirs in ((torch_compat.save, torch.save), (torch_compat.load, torch.load)):
        names = [name for name in inspect.signature(theirs).parameters if not name.startswith("_")]
        ours_too = list(inspect.signature(ours).parameters)
        assert [name for name in names if name != "pickle_load_args"] == ours_too[:-1]
    path = tmp_path / "m.pt"
    torch_compat.save(STATE, path, None, 2, _use_new_zipfile_serialization=False)
    loaded = torch_compat.load(path, torch.device("cpu"), None, weights_only=None, mmap=True)
    assert difference(loaded, STATE) is None
    placed = torch_compat.load(path, map_location=lambda storage, _: storage)
    assert difference(placed, STATE) is None


def test_a_file_of_torch_is_replaced_and_one_that_stays_says_the_way(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(STATE, path)
    with pytest.raises(jsonckpt.FormatError, match="jsonckpt convert turns"):
        torch_compat.load(path)
    torch_compat.save(STATE, path)
    assert difference(torch_compat.load(path), STATE) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pickle_module": pickle}, "pickle_module is given. Leave it out: jsonckpt writes no"),
        ({"weights_only": False}, "weights_only=False asks for unpickling"),
        ({"encoding": "latin1"}, "'encoding' tells torch how to unpickle"),
        ({"colour": 1}, "neither torch.load nor jsonckpt.load has 'colour'"),
    ],
)
def test_what_asks_for_a_pickle_is_refused(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch_compat.save(STATE, tmp_path / "m.pt")
    with pytest.raises(jsonckpt.ArgumentError, match=message):
        torch_compat.load(tmp_path / "m.pt", **arguments)


def test_a_save_that_is_refused_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with pytest.raises(jsonckpt.ArgumentError, match="pickle_module is given"):
        torch_compat.save(STATE, path, pickle)  # type: ignore[arg-type]
    with pytest.raises(jsonckpt.ArgumentError, match=r"neither torch\.save nor jsonckpt\.save"):
        torch_compat.save(STATE, path, colour=1)
    with pytest.raises(jsonckpt.UnsupportedTypeError):
        torch_compat.save(torch.nn.Linear(1, 1), path)
    assert os.listdir(tmp_path) == []


def test_mmap_of_a_file_object_is_refused_as_torch_refuses_it() -> None:
    with pytest.raises(jsonckpt.ArgumentError, match="mmap=True needs a path"):
        torch_compat.load(io.BytesIO(), mmap=True)


def test_options_of_jsonckpt_go_through(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch_compat.save(STATE, path, compression="zstd", metadata={"by": "me"})
    assert list(torch_compat.load(path, include="/model/w")["model"]) == ["w"]
    with jsonckpt.open(path) as opened:
        assert opened.metadata == {"by": "me"}


def test_a_directory_of_save_is_read(tmp_path: Path) -> None:
    jsonckpt.save(STATE, tmp_path / "run")
    assert difference(torch_compat.load(tmp_path / "run"), STATE) is None
