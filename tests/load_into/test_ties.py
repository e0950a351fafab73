"""Tied tensors of which one side has fewer names, and values that only one side has."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt import StateMismatchError
from tests.support import difference


class Language(torch.nn.Module):
    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(5, 3)
        self.h = torch.nn.Linear(3, 3)
        self.lm_head = torch.nn.Linear(3, 5, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight


class LoadsItself(Language):
    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)


@pytest.mark.parametrize("kind", [Language, LoadsItself])
@pytest.mark.parametrize("gone", ["lm_head.weight", "wte.weight"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_tied_name_that_the_checkpoint_lacks(
    tmp_path: Path, kind: Any, gone: str, prefix: str
) -> None:
    first, other = Language(), kind()
    state = {prefix + name: t for name, t in first.state_dict().items() if name != gone}
    jsonckpt.save({"m": state}, tmp_path)
    options: Any = {"strip_prefix": "module."} if prefix else {}
    if prefix:
        with pytest.raises(StateMismatchError, match=r"pass strip_prefix='module\.'"):
            jsonckpt.load_into({"m": other}, tmp_path)
    result = jsonckpt.load_into({"m": other}, tmp_path, **options)
    assert (result.missing, result.unexpected, result.mismatched) == ((), (), ())
    assert difference(other.state_dict(), first.state_dict()) is None
    assert other.lm_head.weight is other.wte.weight
    if kind is Language:
        assert f"/m/{gone}" in result.loaded


def test_a_name_that_is_not_tied_stays_missing(tmp_path: Path) -> None:
    state = Language().state_dict()
    del state["lm_head.weight"]
    jsonckpt.save(state, tmp_path)
    with pytest.raises(StateMismatchError) as caught:
        jsonckpt.load_into(Language(tied=False), tmp_path)
    assert caught.value.missing == ["/lm_head.weight"]
    with pytest.raises(StateMismatchError) as caught:
        jsonckpt.load_into(Language(), tmp_path, exclude="/wte.weight")
    assert caught.value.missing == ["/lm_head.weight"]


def test_tied_in_the_checkpoint_only(tmp_path: Path) -> None:
    first, other = Language(), Language(tied=False)
    jsonckpt.save(first.state_dict(), tmp_path)
    jsonckpt.load_into(other, tmp_path)
    assert torch.equal(other.lm_head.weight, first.wte.weight)
    assert torch.equal(other.wte.weight, first.wte.weight)
    assert other.lm_head.weight is not other.wte.weight
    fewer = {name: torch.zeros_like(t) for name, t in first.state_dict().items() if name[0] != "l"}
    result = jsonckpt.load_into(fewer, tmp_path)
    assert (result.unexpected, len(result.loaded)) == ((), 3)
    assert torch.equal(fewer["wte.weight"], first.wte.weight)
    jsonckpt.save({name: t.clone() for name, t in first.state_dict().items()}, tmp_path)
    with pytest.raises(StateMismatchError, match=r"unexpected: '/lm_head\.weight'"):
        jsonckpt.load_into(fewer, tmp_path)


def test_memory_that_is_filled_in_parts(tmp_path: Path) -> None:
    jsonckpt.save({"a": torch.ones(4), "b": torch.full((6,), 2.0)}, tmp_path)
    flat = torch.zeros(10)
    parts = {"a": flat[:4], "b": flat[4:]}
    target = {
        **parts,
        "whole": flat,
        "rows": flat[2:8].view(2, 3).t(),
        "bytes": flat[5:].view(torch.int32),
    }
    result = jsonckpt.load_into(target, tmp_path)
    assert result.loaded == ("/a", "/b", "/whole", "/rows", "/bytes")
    assert flat.tolist() == [1.0] * 4 + [2.0] * 6
    with pytest.raises(StateMismatchError) as caught:
        jsonckpt.load_into({"a": flat[:4], "b": torch.zeros(6), "whole": flat}, tmp_path)
    assert caught.value.missing == ["/whole"]
    strided = torch.zeros(4, 2)
    target = {"a": strided[:, 0], "b": torch.zeros(6), "same": strided[:, 0]}
    assert jsonckpt.load_into(target, tmp_path).loaded == ("/a", "/b", "/same")
    with pytest.raises(StateMismatchError) as caught:
        jsonckpt.load_into({**target, "gaps": strided}, tmp_path)
    assert caught.value.missing == ["/gaps"]


# --- values that only one side has ------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*Sparse.*")
def test_a_sparse_tensor_that_only_one_side_has(tmp_path: Path) -> None:
    sparse = torch.eye(3).to_sparse()
    jsonckpt.save({"d": torch.ones(2), "deep": {"s": [sparse]}}, tmp_path)
    with pytest.raises(StateMismatchError) as caught:
        jsonckpt.load_into({"d": torch.zeros(2)}, tmp_path)
    assert caught.value.unexpected == ["/deep/s/0"]
    target: dict[str, Any] = {"d": torch.zeros(2), "deep": {"s": [None]}}
    jsonckpt.load_into(target, tmp_path)
    assert torch.equal(target["deep"]["s"][0].to_dense(), torch.eye(3))
    with pytest.raises(StateMismatchError) as caught:
        jsonckpt.load_into({**target, "new": sparse.clone()}, tmp_path)
    assert caught.value.missing == ["/new"]


def test_plain_values_that_only_one_side_has(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(2), "global_step": 7, "deep": {"a": 1}}, tmp_path)
    target: dict[str, Any] = {"w": torch.zeros(2), "step": 0, "deep": {"a": 0, "b": 2}}
    result = jsonckpt.load_into(target, tmp_path)
    assert result.kept == ("/deep/b", "/step") or result.kept == ("/step", "/deep/b")
    assert (target["step"], target["deep"]) == (0, {"a": 1, "b": 2})


def test_arrays_that_are_left_out_are_not_kept_by_mistake(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(2), "rng": np.arange(3)}, tmp_path)
    result = jsonckpt.load_into({"w": torch.zeros(2), "rng": None}, tmp_path, include="/w")
    assert result.kept == ()


@pytest.mark.parametrize(
    ("saved", "target", "said"),
    [
        (1, torch.zeros(1), "the int 1 in the checkpoint, a tensor in the target"),
        (None, torch.zeros(1), "None in the checkpoint, a tensor in the target"),
        ({"a": 1}, torch.zeros(1), "a dict of 1 in the checkpoint, a tensor in the target"),
        (np.ones(3), torch.zeros(3), "a NumPy array of shape [3] in the checkpoint, a tensor in"),
        (torch.ones(1), {"a": 1}, "a tensor in the checkpoint, a dict of 1 in the target"),
        (torch.ones(1), [1], "a tensor in the checkpoint, a list of 1 in the target"),
        ([1, 2], (1,), "a list of 2 in the checkpoint, a tuple of 1 in the target"),
        ("x", torch.nn.Linear(1, 1), "the str 'x' in the checkpoint, a state dict for Linear"),
        ([], torch.optim.SGD([torch.ones(1)]), "a list of 0 in the checkpoint, the state of SGD"),
    ],
)
def test_each_kind_is_called_by_its_name(
    tmp_path: Path, saved: Any, target: Any, said: str
) -> None:
    jsonckpt.save({"x": saved}, tmp_path)
    with pytest.raises(StateMismatchError) as caught:
        jsonckpt.load_into({"x": target}, tmp_path)
    assert caught.value.mismatched[0].startswith(f"/x: {said}")


def test_a_tuple_takes_plain_values_beside_its_tensors(tmp_path: Path) -> None:
    pair = collections.namedtuple("pair", "n w")
    jsonckpt.save({"a": (1, torch.ones(1)), "b": (2, torch.ones(2)), "c": ((3, 4),)}, tmp_path)
    tensors = [torch.zeros(1), torch.zeros(2)]
    target: dict[str, Any] = {"a": (0, tensors[0]), "b": pair(0, tensors[1]), "c": ((0, 0),)}
    jsonckpt.load_into(target, tmp_path)
    assert (target["a"][0], target["b"].n, target["c"]) == (1, 2, ((3, 4),))
    assert target["a"][1] is tensors[0]
    assert target["b"].w is tensors[1]
    assert type(target["b"]) is pair
    assert all(tensor.all() for tensor in tensors)


def test_a_tuple_keeps_its_objects_and_a_size_its_type(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.5)
    state = {"a": (optimizer.state_dict(),), "s": torch.Size([2, 3]), "l": ([torch.ones(1)],)}
    jsonckpt.save(state, tmp_path)
    other = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=9.0)
    held = ([torch.zeros(1)],)
    target: dict[str, Any] = {"a": (other,), "s": torch.Size([1, 1]), "l": held}
    jsonckpt.load_into(target, tmp_path)
    assert target["a"] == (other,)
    assert other.param_groups[0]["lr"] == 0.5
    assert (type(target["s"]), target["s"]) == (torch.Size, torch.Size([2, 3]))
    assert target["l"] is held


# --- the way out ------------------------------------------------------------------------------


def refused(saved: Any, target: Any, path: Path, **options: Any) -> StateMismatchError:
    jsonckpt.save(saved, path)
    with pytest.raises(StateMismatchError, match="nothing has been changed") as caught:
        jsonckpt.load_into(target, path, **options)
    return caught.value


def test_keys_of_another_type(tmp_path: Path) -> None:
    error = refused({0: torch.ones(1), "b": 1}, {"0": torch.zeros(1), "b": 0}, tmp_path)
    assert error.mismatched == [
        "/0: the key is the int 0 in the checkpoint, the str '0' in the target"
    ]
    assert (error.missing, error.unexpected) == ([], [])
    assert "0 and '0' are two" in str(error.hint)


def test_dtypes_that_torch_cannot_convert(tmp_path: Path) -> None:
    saved = {"c": torch.ones(2, dtype=torch.complex64), "w": torch.ones(2)}
    target = {"c": torch.zeros(2), "w": torch.zeros(2, dtype=torch.float16)}
    error = refused(saved, target, tmp_path, cast=True)
    assert error.mismatched == ["/c: complex64 in the checkpoint, float32 in the target"]
    assert "torch cannot convert" in str(error.hint)
    result = jsonckpt.load_into(target, tmp_path, cast=True, strict=False)
    assert (result.loaded, len(result.mismatched)) == (("/w",), 1)
    assert not target["c"].any()


def test_each_kind_of_difference_has_its_way_out(tmp_path: Path) -> None:
    def sgd(*sizes: int) -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.ones(n, requires_grad=True) for n in sizes])

    w = torch.ones(2)
    cases: list[tuple[Any, Any, str]] = [
        ({"w": w}, {"w": torch.zeros(3)}, "Build the target with the sizes"),
        ({"w": w}, {"w": w.double()}, "Pass cast=True"),
        ({"w": w}, {"w": torch.zeros(1).expand(2)}, r"with .clone()"),
        ({"w": 3}, {"w": w}, "None in a dict or list"),
        ({"o": sgd(1).state_dict()}, {"o": sgd(1, 2)}, "Build the optimizer as in the run"),
    ]
    for n, (saved, target, way) in enumerate(cases):
        error = refused(saved, target, tmp_path / str(n))
        assert way in str(error.hint)
        others = [other for _, _, other in cases if other != way]
        assert not any(other in str(error.hint) for other in others)
