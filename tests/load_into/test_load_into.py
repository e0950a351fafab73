"""``load_into``: everything arrives in the tensors that exist, or nothing is changed."""

from __future__ import annotations

import argparse
import collections
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from tests.support import difference, same


def model(width: int = 3) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 1)
    )


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        loss = net(torch.randn(8, 2, generator=numbers)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "groups": lambda p: torch.optim.Adam([{"params": p[:2], "lr": 0.5}, {"params": p[2:]}]),
}


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
@pytest.mark.parametrize("stepped", [False, True], ids=["fresh", "stepped"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_identically(tmp_path: Path, kind: str, stepped: bool, name: str) -> None:
    net = model()
    optimizer = OPTIMIZERS[kind](list(net.parameters()))
    train(net, optimizer, 3, seed=1)
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 3}
    jsonckpt.save(state, tmp_path / name, chunk_size=8, max_shard_size=200)

    other = model()
    into = OPTIMIZERS[kind](list(other.parameters()))
    for group in into.param_groups:
        group["lr"] = 99.0
    if stepped:
        train(other, into, 2, seed=2)
    target: dict[str, Any] = {"model": other, "optimizer": into, "step": 0}
    result = jsonckpt.load_into(target, tmp_path / name)
    assert target["step"] == 3
    assert target["model"] is other
    assert (result.missing, result.unexpected, result.mismatched) == ((), (), ())
    assert difference(other.state_dict(), net.state_dict()) is None
    assert difference(into.state_dict(), optimizer.state_dict()) is None
    train(net, optimizer, 3, seed=3)
    train(other, into, 3, seed=3)
    assert difference(other.state_dict(), net.state_dict()) is None
    assert difference(into.state_dict(), optimizer.state_dict()) is None


def test_an_optimizer_that_has_stepped_and_a_checkpoint_that_has_not(tmp_path: Path) -> None:
    net = model()
    optimizer = OPTIMIZERS["sgd"](list(net.parameters()))
    jsonckpt.save({"optimizer": optimizer.state_dict()}, tmp_path)
    train(net, optimizer, 1, seed=1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(jsonckpt.StateMismatchError) as caught:
        jsonckpt.load_into({"optimizer": optimizer}, tmp_path)
    assert caught.value.missing == [f"/optimizer/state/{n}/momentum_buffer" for n in range(6)]
    assert same(optimizer.state_dict(), before)
    jsonckpt.load_into({"optimizer": optimizer}, tmp_path, exclude="/optimizer/state/*")
    assert same(optimizer.state_dict(), before)


def test_other_groups_are_refused(tmp_path: Path) -> None:
    net = model()
    jsonckpt.save(OPTIMIZERS["groups"](list(net.parameters())).state_dict(), tmp_path)
    with pytest.raises(jsonckpt.StateMismatchError, match="groups of"):
        jsonckpt.load_into(OPTIMIZERS["adamw"](list(net.parameters())), tmp_path)


def test_no_second_copy(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0), "deep": [{"b": torch.ones(2, 3)}, (torch.zeros(1), 5)]}
    jsonckpt.save(state, tmp_path)
    target: dict[str, Any] = {
        "a": torch.empty(6),
        "deep": [{"b": torch.empty(3, 2).t()}, (torch.ones(1), 6)],
    }
    tensors = [target["a"], target["deep"][0]["b"], target["deep"][1][0]]
    addresses = [tensor.data_ptr() for tensor in tensors]
    result = jsonckpt.load_into(target, tmp_path)
    assert sorted(result.loaded) == ["/a", "/deep/0/b", "/deep/1/0"]
    found = [target["a"], target["deep"][0]["b"], target["deep"][1][0]]
    assert all(one is two for one, two in zip(found, tensors, strict=True))
    assert [tensor.data_ptr() for tensor in found] == addresses
    assert not target["deep"][0]["b"].is_contiguous()
    assert torch.equal(target["deep"][0]["b"], state["deep"][0]["b"])  # type: ignore[index]
    assert target["a"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_module_alone_and_a_tensor_alone(tmp_path: Path) -> None:
    net, other = model(), model()
    jsonckpt.save(net.state_dict(), tmp_path / "c")
    weights = [parameter.data_ptr() for parameter in other.parameters()]
    jsonckpt.load_into(other, tmp_path / "c")
    assert same(other.state_dict(), net.state_dict())
    assert [parameter.data_ptr() for parameter in other.parameters()] == weights
    assert all(parameter.requires_grad for parameter in other.parameters())
    jsonckpt.save(torch.arange(3), tmp_path / "t")
    tensor = torch.zeros(3, dtype=torch.int64)
    jsonckpt.load_into(tensor, tmp_path / "t")
    assert tensor.tolist() == [0, 1, 2]


def test_schedulers_and_scalers(tmp_path: Path) -> None:
    def parts() -> dict[str, Any]:
        optimizer = OPTIMIZERS["sgd"](list(model().parameters()))
        return {
            "optimizer": optimizer,
            "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2),
            "scaler": torch.amp.GradScaler("cpu", init_scale=8.0),
        }

    saved, target = parts(), parts()
    for _ in range(3):
        saved["optimizer"].step()
        saved["scheduler"].step()
    saved["scaler"].load_state_dict({**saved["scaler"].state_dict(), "scale": 4.0})
    jsonckpt.save({key: item.state_dict() for key, item in saved.items()}, tmp_path)
    jsonckpt.load_into(target, tmp_path)
    for key, item in saved.items():
        assert difference(target[key].state_dict(), item.state_dict()) is None, key


def test_extra_state(tmp_path: Path) -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: Any = torch.zeros(2)

        def get_extra_state(self) -> Any:
            return {"seen": self.seen, "n": 3}

        def set_extra_state(self, state: Any) -> None:
            self.seen = state["seen"]

    one, two = torch.nn.Sequential(Counting()), torch.nn.Sequential(Counting())
    one[0].seen = torch.tensor([4.0, 5.0])
    jsonckpt.save(one.state_dict(), tmp_path)
    jsonckpt.load_into(two, tmp_path)
    assert two[0].seen.tolist() == [4.0, 5.0]  # type: ignore[operator]


# --- what does not fit ------------------------------------------------------------------------


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    jsonckpt.save(
        {
            "both": torch.ones(2),
            "only here": torch.ones(1),
            "deep": {"shape": torch.ones(2, 3), "dtype": torch.ones(2, dtype=torch.float64)},
            "plain": 1,
            "epoch": 5,
        },
        tmp_path,
    )
    target: dict[str, Any] = {
        "both": torch.zeros(2),
        "deep": {"shape": torch.zeros(3, 2), "dtype": torch.zeros(2), "new": [torch.zeros(1)]},
        "net": torch.nn.Linear(1, 1, bias=False),
        "plain": torch.zeros(1),
        "epoch": 0,
    }
    before = copy.deepcopy({key: item for key, item in target.items() if key != "net"})
    with pytest.raises(jsonckpt.StateMismatchError, match="nothing has been changed") as caught:
        jsonckpt.load_into(target, tmp_path)
    error = caught.value
    assert error.missing == ["/deep/new/0", "/net/weight"]
    assert error.unexpected == ["/only here"]
    assert error.mismatched == [
        "/deep/shape: shape [2, 3] in the checkpoint, [3, 2] in the target",
        "/deep/dtype: float64 in the checkpoint, float32 in the target",
        "/plain: the int 1 in the checkpoint, a tensor in the target",
    ]
    for name in [*error.missing, *error.unexpected, "/deep/shape", "/deep/dtype", "/plain"]:
        assert name in str(error)
    assert same({key: item for key, item in target.items() if key != "net"}, before)

    result = jsonckpt.load_into(target, tmp_path, strict=False)
    assert (list(result.missing), list(result.unexpected)) == (error.missing, error.unexpected)
    assert list(result.mismatched) == error.mismatched
    assert result.loaded == ("/both",)
    assert (target["both"].tolist(), target["epoch"]) == ([1, 1], 5)
    assert same(target["deep"], before["deep"])


def test_cast(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.25, 1e-3])
    jsonckpt.save({"w": values, "n": torch.arange(3)}, tmp_path, chunk_size=5)
    target = {"w": torch.zeros(3, dtype=torch.bfloat16), "n": torch.zeros(3)}
    with pytest.raises(jsonckpt.StateMismatchError):
        jsonckpt.load_into(target, tmp_path)
    jsonckpt.load_into(target, tmp_path, cast=True)
    assert same(target, {"w": values.to(torch.bfloat16), "n": torch.arange(3.0)})


def test_include_and_exclude(tmp_path: Path) -> None:
    jsonckpt.save({"a": torch.ones(1), "b": {"c": torch.ones(1), "d": torch.ones(1)}}, tmp_path)
    for options in ({"include": ["/a", "/b/c"]}, {"exclude": "/b/d"}):
        target: dict[str, Any] = {
            "a": torch.zeros(1),
            "b": {"c": torch.zeros(1), "d": torch.zeros(1)},
        }
        result = jsonckpt.load_into(target, tmp_path, **options)
        assert result.loaded == ("/a", "/b/c")
        assert result.missing == ()
        assert target["b"]["d"].item() == 0
        assert target["a"].item() == target["b"]["c"].item() == 1
    with pytest.raises(jsonckpt.StateMismatchError):
        jsonckpt.load_into(target, tmp_path, include="/x")


def test_an_element_of_a_list_left_out(tmp_path: Path) -> None:
    jsonckpt.save({"l": [torch.ones(1), torch.full((1,), 2.0), "x"]}, tmp_path)
    target = {"l": [torch.zeros(1), torch.zeros(1), "y"]}
    result = jsonckpt.load_into(target, tmp_path, exclude="/l/0")
    assert result.loaded == ("/l/1",)
    assert same(target, {"l": [torch.zeros(1), torch.full((1,), 2.0), "x"]})


# --- sharing ----------------------------------------------------------------------------------


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Linear(2, 2, bias=False)
        self.two = torch.nn.Linear(2, 2, bias=False)
        self.two.weight = self.one.weight


def test_tied_weights(tmp_path: Path) -> None:
    net, other = Tied(), Tied()
    result = jsonckpt.save(net.state_dict(), tmp_path)
    assert result.tensors == 1
    loaded = jsonckpt.load_into(other, tmp_path)
    assert sorted(loaded.loaded) == ["/one.weight", "/two.weight"]
    assert other.one.weight is other.two.weight
    assert same(other.state_dict(), net.state_dict())
    apart = {key: torch.zeros(2, 2) for key in net.state_dict()}
    jsonckpt.load_into(apart, tmp_path)
    assert all(torch.equal(tensor, net.one.weight) for tensor in apart.values())


def test_views(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    jsonckpt.save({"a": base[:8], "b": base[4:].reshape(2, 4)}, tmp_path, chunk_size=5)
    target = {"a": torch.zeros(8), "b": torch.zeros(2, 4)}
    addresses = [tensor.data_ptr() for tensor in target.values()]
    assert sorted(jsonckpt.load_into(target, tmp_path).loaded) == ["/a", "/b"]
    assert same(target, {"a": base[:8], "b": base[4:].reshape(2, 4)})
    assert [tensor.data_ptr() for tensor in target.values()] == addresses


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_damage_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    jsonckpt.save({"w": torch.zeros(99, dtype=torch.uint8)}, path)
    file = next(path.glob("shard-*")) if path.is_dir() else path
    file.write_bytes(file.read_bytes().replace(b'"AAAA', b'"BAAA', 1))
    with pytest.raises(jsonckpt.IntegrityError, match="'/w'"):
        jsonckpt.load_into({"w": torch.zeros(99, dtype=torch.uint8)}, path)


def test_tensors_inside_other_objects_come_whole(tmp_path: Path) -> None:
    inner = {
        "namespace": argparse.Namespace(w=torch.arange(3)),
        "deque": collections.deque([torch.ones(2), 5]),
    }
    jsonckpt.save({"o": inner, "w": torch.zeros(2)}, tmp_path / "c")
    target = {"o": {"namespace": None, "deque": None}, "w": torch.ones(2)}
    jsonckpt.load_into(target, tmp_path / "c")
    assert same(target, {"o": inner, "w": torch.zeros(2)})


def test_arrays_that_are_left_out_stay_as_they_are_and_parents_are_kept(tmp_path: Path) -> None:
    state = {
        "w": torch.ones(2),
        "rng": {"numpy": np.arange(3), "plain": 1},
        "n": argparse.Namespace(t=torch.ones(1)),
    }
    jsonckpt.save(state, tmp_path / "c")
    target = {"w": torch.zeros(2), "rng": {"numpy": None, "plain": 0}, "n": None}
    jsonckpt.load_into(target, tmp_path / "c", include="/w")
    expected = {"numpy": None, "plain": 1}
    assert same(target, {"w": torch.ones(2), "rng": expected, "n": argparse.Namespace()})
