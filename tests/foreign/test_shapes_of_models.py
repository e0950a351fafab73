"""Models that torch makes, written by hand in the usual ways, give the same names and values.

Everything else in such a file stays what it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.foreign.dialects import read

State = dict[str, torch.Tensor]


class Tied(nn.Module):
    """A small language model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(7, 4)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.ln_f = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 7, bias=False)
        self.lm_head.weight = self.wte.weight


class Custom(nn.Module):
    """Parameters and buffers of its own, one of them without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.mixing = nn.Parameter(torch.randn(3))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("position_ids", torch.arange(5)[None])


def _zoo() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    norm(torch.randn(4, 1, 4, 4))
    nested = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.Tanh()), nn.Linear(3, 1))
    return {
        "MLP": nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)),
        "BatchNorm CNN": norm,
        "LSTM": nn.Sequential(nn.LSTM(2, 3, num_layers=2, bidirectional=True), nn.Linear(6, 1)),
        "GRU": nn.GRU(2, 3),
        "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
        "transformer": nn.TransformerDecoderLayer(4, 2, 8),
        "Embedding": nn.ModuleDict({"words": nn.Embedding(5, 3), "out": nn.Linear(3, 5)}),
        "nested": nested,
        "ModuleDict": nn.ModuleDict({"mu": nn.Linear(2, 2), "sigma": nn.Linear(2, 2, bias=False)}),
        "tied": Tied(),
        "double": nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)).double(),
        "group norm": nn.Sequential(nn.ConvTranspose1d(2, 3, 2), nn.GroupNorm(1, 3)),
        "weight norm": nn.Sequential(nn.PReLU(), nn.Linear(2, 2)),
    }


ZOO = _zoo()
CONFIG = {"hidden": [128, 64], "dropout": 0.1, "betas": [0.9, 0.999], "name": "small"}
BESIDE: dict[str, Any] = {
    "epoch": 3,
    "best_loss": 0.25,
    "config": CONFIG,
    "history": {"loss": [0.5, 0.25], "lr": [0.1, 0.1], "confusion": [[5.0, 1.0], [0.0, 4.0]]},
    "class_weights": [0.3, 0.7],
    "shape": [2, 3],
}


def _lists(state: State) -> dict[str, Any]:
    return {name: value.tolist() for name, value in state.items()}


def _arrays(state: State) -> dict[str, Any]:
    return {name: value.numpy().tolist() for name, value in state.items()}


def _nested(state: State) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in state.items():
        *path, last = name.split(".")
        at = tree
        for step in path:
            at = at.setdefault(step, {})
        at[last] = value.tolist()
    return tree


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return found


def _moments(state: State) -> dict[str, Any]:
    """The state of Adam for the parameters of a model."""
    floats = [value for value in state.values() if value.is_floating_point()]
    entries = {
        str(index): {"step": 2, "exp_avg": value.tolist(), "exp_avg_sq": value.square().tolist()}
        for index, value in enumerate(floats)
    }
    group = {"lr": 0.001, "betas": [0.9, 0.999], "params": list(range(len(floats)))}
    return {"state": entries, "param_groups": [group]}


Write = Callable[[State], dict[str, Any]]
#: Each writes a model under a key, or at the top where the key is None.
WAYS: dict[str, tuple[Write, str | None]] = {
    "state_dict": (_lists, "state_dict"),
    "model": (_lists, "model"),
    "model_state_dict": (_arrays, "model_state_dict"),
    "weights": (_lists, "weights"),
    "params": (_arrays, "params"),
    "ema": (_lists, "ema"),
    "nested in model": (_nested, "model"),
    "nested in net": (_nested, "net"),
    "top": (_lists, None),
    "nested at the top": (_nested, None),
}


def _same(expected: State, found: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        wanted = value.float() if value.dtype == torch.float64 else value
        assert isinstance(found[name], torch.Tensor), name
        assert found[name].dtype == wanted.dtype, name
        assert torch.equal(found[name], wanted), name


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", ZOO)
def test_every_model_in_every_way(model: str, way: str, indent: int | None, tmp_path: Path) -> None:
    state = ZOO[model].state_dict()
    write, key = WAYS[way]
    content = write(state)
    document = {**content, **BESIDE} if key is None else {key: content, **BESIDE}
    found = read(json.dumps(document, indent=indent), tmp_path)
    assert {name: found.pop(name) for name in BESIDE} == BESIDE
    _same(state, _flat(found if key is None else found[key]))


@pytest.mark.parametrize("model", ZOO)
def test_alone_in_the_file(model: str, tmp_path: Path) -> None:
    state = ZOO[model].state_dict()
    _same(state, read(json.dumps(_lists(state)), tmp_path))
    _same(state, _flat(read(json.dumps(_nested(state)), tmp_path)))


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "ema"])
def test_own_parameters_of_a_module(key: str, tmp_path: Path) -> None:
    state = Custom().state_dict()
    found = read(json.dumps({key: _lists(state), **BESIDE}), tmp_path)
    assert {name: found.pop(name) for name in BESIDE} == BESIDE
    _same(state, found[key])


@pytest.mark.parametrize("model", ["MLP", "BatchNorm CNN", "tied"])
def test_copies_and_moments_beside_the_model(model: str, tmp_path: Path) -> None:
    state = ZOO[model].state_dict()
    moments = _moments(state)
    document = {
        "model": _lists(state),
        "ema_state_dict": {"decay": 0.999, "num_updates": 10, "shadow": _lists(state)},
        "optimizer": moments,
        "scheduler": {"base_lrs": [0.1], "last_epoch": 3, "_last_lr": [0.05]},
        **BESIDE,
    }
    found = read(json.dumps(document), tmp_path)
    _same(state, found["model"])
    _same(state, found["ema_state_dict"]["shadow"])
    assert found["ema_state_dict"]["decay"] == 0.999
    assert found["scheduler"] == document["scheduler"]
    optimizer = found["optimizer"]
    assert optimizer["param_groups"] == [{**moments["param_groups"][0], "betas": (0.9, 0.999)}]
    for index, entry in moments["state"].items():
        read_back = optimizer["state"][int(index)]
        assert read_back["step"] == 2
        assert torch.equal(read_back["exp_avg"], torch.tensor(entry["exp_avg"]))
        assert torch.equal(read_back["exp_avg_sq"], torch.tensor(entry["exp_avg_sq"]))


def test_complex_numbers_as_pairs(tmp_path: Path) -> None:
    weight = torch.randn(3, 2, dtype=torch.complex64)
    pairs = {"fc.weight": torch.view_as_real(weight).tolist()}
    found = read(json.dumps({"model": pairs}), tmp_path)["model"]["fc.weight"]
    assert torch.equal(torch.view_as_complex(found), weight)
