"""Tensor subclasses that torch can take apart, and those of torchao."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.state.tensor_subclasses import subclass_rule
from tests.support import lacking


class Halves(torch.Tensor):
    """A tensor that is stored as two: its first rows, and the others."""

    @staticmethod
    def __new__(cls, first: torch.Tensor, rest: torch.Tensor, note: Any = None) -> Any:
        shape = (first.shape[0] + rest.shape[0], *first.shape[1:])
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=first.dtype)

    def __init__(self, first: torch.Tensor, rest: torch.Tensor, note: Any = None) -> None:
        self.first, self.rest, self.note = first, rest, note

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["first", "rest"], self.note

    @classmethod
    def __tensor_unflatten__(
        cls, tensors: Any, context: Any, outer_size: Any, outer_stride: Any
    ) -> Any:
        del outer_size, outer_stride
        return cls(tensors["first"], tensors["rest"], context)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].first, args[0].rest, args[0].note)
        raise NotImplementedError(f"{func} of {types} with {kwargs}")


def halves(note: Any = None) -> Any:
    return Halves(torch.arange(6.0).reshape(2, 3), torch.ones(1, 3), note)


def test_a_registered_subclass_comes_back(tmp_path: Path) -> None:
    jsonckpt.register(Halves, "tests.Halves")
    jsonckpt.save({"h": halves((1, torch.float16)), "w": torch.ones(2)}, tmp_path / "c.json")
    found = jsonckpt.load(tmp_path / "c.json")["h"]
    assert type(found) is Halves
    assert found.note == (1, torch.float16)
    assert torch.equal(found.first, halves().first)
    assert torch.equal(found.rest, halves().rest)
    with jsonckpt.open(tmp_path / "c.json") as checkpoint:
        assert "/h/tensors/first" in checkpoint
    assert list(jsonckpt.load(tmp_path / "c.json", exclude="/h/*")) == ["w"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("shape", torch.Size([4, 3]), "make a tensor of shape"),
        ("shape", [3, 3], "shape or stride"),
        ("shape", torch.Size([10**12, 3]), "make a tensor of shape"),
        ("stride", [1, 3], "make a tensor of shape"),
        ("stride", [1], "shape or stride"),
        ("stride", [True, 3], "shape or stride"),
        ("stride", "3", "shape or stride"),
        ("requires_grad", 1, "requires_grad"),
        ("tensors", [], "dictionary of tensors"),
        ("tensors", {"first": 3, "rest": 4}, "dictionary of tensors"),
        ("tensors", {}, "first"),
        ("more", 1, "expected the fields"),
    ],
)
def test_a_forged_subclass_is_refused(name: str, value: Any, message: str) -> None:
    to_json, from_json = subclass_rule(Halves)
    assert type(from_json(to_json(halves()))) is Halves
    with pytest.raises((ValueError, LookupError), match=message):
        from_json({**to_json(halves()), name: value})


def torchao() -> Any:
    try:
        return importlib.import_module("torchao.optim")
    except ImportError:
        lacking("torchao", "torchao is not installed")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
def test_optimizers_of_torchao_resume_exactly(tmp_path: Path, kind: str) -> None:
    make = getattr(torchao(), kind)

    def build(seed: int) -> jsonckpt.TrainState:
        torch.manual_seed(seed)
        model = torch.nn.Linear(64, 128)
        optimizer = make(model.parameters(), lr=0.01)
        return jsonckpt.TrainState(model=model, optimizer=optimizer)

    def steps(state: jsonckpt.TrainState, count: int) -> list[float]:
        model, optimizer = state["model"], state["optimizer"]
        losses = []
        for _ in range(count):
            loss = (model(torch.randn(4, 64)) - 1).square().mean()
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    state = build(1)
    steps(state, 2)
    jsonckpt.save(state.state_dict(), tmp_path / "c")
    losses = steps(state, 3)
    resumed = build(2)
    resumed.restore(tmp_path / "c")
    assert steps(resumed, 3) == losses
    again = build(3)
    steps(again, 1)
    again.load_state_dict(jsonckpt.load(tmp_path / "c"))
    assert steps(again, 3) == losses

    program = f"import jsonckpt; jsonckpt.load({str(tmp_path / 'c')!r})"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1
    assert "import that before loading" in result.stderr
    assert "of torchao.optim" in result.stderr
