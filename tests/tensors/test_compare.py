"""``--test-load``: what the comparison of two states sees."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt._src.convert.read import read_back
from jsonckpt._src.tensors.compare import Comparison, compare
from jsonckpt.convert import ConvertOptions, convert


def compared(state: Any, path: Path) -> Comparison:
    return compare(state, read_back(path, "dir", ConvertOptions(), path.parent)[0])


def test_what_is_read_back_is_compared(tmp_path: Path) -> None:
    shared = torch.randn(600, 8)
    state = {
        "model": OrderedDict(
            big=shared,
            tied=shared,
            parameter=torch.nn.Parameter(torch.randn(300, 8)),
            wide=torch.randn(1, 5000),
            small=torch.ones(3),
            pair=[torch.randn(500), torch.ones(2)],
        ),
        "views": {"all": (base := torch.arange(4000.0)), "some": base[5:50]},
        "state": {0: {"m": torch.randn(40, 40)}, 1: {"m": torch.ones(40, 40)}},
        "epoch": 3,
    }
    path = tmp_path / "c"
    jsonckpt.save(state, path)
    result = compared(state, path)
    assert result.differences == []
    assert result.tensors == 10
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]

    def broken(change: Callable[[Any], None]) -> list[str]:
        copy: Any = torch.load(_saved(state, tmp_path), weights_only=True)
        change(copy)
        return compared(copy, path).differences

    assert broken(lambda s: s["epoch"]) == []
    assert broken(lambda s: s["model"]["big"].data[599].add_(1))[0].startswith(
        "'/model/big': 8 of 4,800 elements differ, the first at [599, 0]: "
    )
    assert "'/model/wide'" in broken(lambda s: s["model"]["wide"][0, 4999].neg_())[0]
    assert "'/model/pair/1'" in broken(lambda s: s["model"]["pair"][1][1].neg_())[0]
    assert "'/epoch'" in broken(lambda s: s.update(epoch=3.0))[0]
    assert "requires_grad" in broken(lambda s: s["model"]["parameter"].requires_grad_(False))[0]
    assert broken(lambda s: s["state"].update({"0": s["state"].pop(0)}))
    assert broken(lambda s: s["model"].pop("small"))
    assert broken(lambda s: s["model"].update(new=torch.ones(1)))
    untied = {"model": {"big": shared, "tied": shared.clone()}}
    jsonckpt.save(untied, tmp_path / "untied")
    tied = {"model": {"big": shared, "tied": shared}}
    differences = compared(tied, tmp_path / "untied").differences
    assert differences == ["'/model/tied': is no longer tied to another tensor"]


def _saved(state: Any, directory: Path) -> Path:
    torch.save(state, directory / "copy.pt")
    return directory / "copy.pt"


@pytest.mark.parametrize(
    ("left", "right", "what"),
    [
        ({"a": 1}, {"a": True}, "int became bool"),
        ({"a": (1,)}, {"a": [1]}, "tuple became list"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "order"),
        ({1: 0}, {"1": 0}, "missing"),
        (OrderedDict(a=1), {"a": 1}, "OrderedDict became dict"),
        ({"a": 0.0}, {"a": -0.0}, "'0.0' became '-0.0'"),
        ({"a": [1, 2]}, {"a": [1]}, "2 items became 1"),
        ({"a": torch.ones(2)}, {"a": torch.ones(2, 1)}, "shape"),
        ({"a": torch.ones(2)}, {"a": torch.ones(2).double()}, "dtype"),
        ({"a": torch.ones(2)}, {"a": None}, "Tensor became NoneType"),
        ({"a": torch.ones(2)}, {"a": torch.nn.Parameter(torch.ones(2))}, "became Parameter"),
        ({"a": np.ones(2)}, {"a": np.ones(2, "f4")}, "dtype or shape of the array"),
        ({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])}, "0.0 became -0.0"),
    ],
)
def test_compare_sees(left: Any, right: Any, what: str) -> None:
    differences = compare(left, right).differences
    assert any(what in line for line in differences), differences


def test_compare_sees_a_lost_tie() -> None:
    tied = torch.ones(2)
    assert compare({"a": tied, "b": tied}, {"a": tied, "b": tied.clone()}).differences
    assert not compare({"a": tied, "b": tied}, {"a": tied, "b": tied}).differences


def test_strides_are_kept_and_compared(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state = {"image": image, "t": torch.randn(70, 50).t(), "gaps": torch.randn(6, 4)[:, ::2]}
    torch.save(state, tmp_path / "a.pt")
    for source, target in (("a.pt", "b"), ("b", "c.json.zst"), ("c.json.zst", "d.pt")):
        convert(tmp_path / source, tmp_path / target, test_load=True)
    found = torch.load(tmp_path / "d.pt")
    assert [found[name].stride() for name in ("image", "t")] == [(60, 1, 15, 3), (1, 50)]
    convert(tmp_path / "b", tmp_path / "e.safetensors", test_load=True)
    convert(tmp_path / "b", tmp_path / "f", dtype="float64", test_load=True)
    found = jsonckpt.load(tmp_path / "f")
    assert [found[name].stride() for name in ("image", "t")] == [(60, 1, 15, 3), (1, 50)]
    assert torch.equal(found["image"], image.double())
    flat = {"image": image.contiguous()}
    assert compare({"image": image}, flat).differences == [
        "'/image': strides [60, 1, 15, 3] became [60, 20, 5, 1]"
    ]
    assert compare({"image": image}, flat, strides=False).differences == []


def test_strides_that_are_read_back_are_compared(tmp_path: Path) -> None:
    weight = torch.randn(50, 70)
    jsonckpt.save({"w": weight.t().clone(), "n": 1}, tmp_path / "c")
    assert compared({"w": weight.t().clone(), "n": 1}, tmp_path / "c").differences == []
    other = {"w": weight.t().contiguous(), "n": 1}
    [problem] = compared(other, tmp_path / "c").differences
    assert problem == "'/w': strides [50, 1] became [1, 70]"
