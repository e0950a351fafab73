"""The state of an optimizer: whose it is, for ``load_into`` and ``restore_optimizer`` alike."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import optim

import jsonckpt
from jsonckpt import StateMismatchError
from jsonckpt.training import restore_optimizer
from tests.support import difference

Make = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "Adadelta": lambda p: optim.Adadelta(p, lr=0.5),
    "Adafactor": lambda p: optim.Adafactor(p, lr=0.1),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.1),
    "Adagrad fused": lambda p: optim.Adagrad(p, lr=0.1, fused=True),
    "Adam": lambda p: optim.Adam(p, lr=0.1),
    "Adam amsgrad foreach": lambda p: optim.Adam(p, lr=0.1, amsgrad=True, foreach=True),
    "Adam fused": lambda p: optim.Adam(p, lr=0.1, fused=True),
    "Adam tensor lr": lambda p: optim.Adam(p, lr=torch.tensor(0.1), foreach=False),
    "AdamW": lambda p: optim.AdamW(p, lr=0.1),
    "AdamW fused": lambda p: optim.AdamW(p, lr=0.1, fused=True),
    "Adamax": lambda p: optim.Adamax(p, lr=0.1),
    "ASGD": lambda p: optim.ASGD(p, lr=0.1, t0=2),
    "LBFGS": lambda p: optim.LBFGS(p, lr=0.1, max_iter=3, history_size=4),
    "NAdam": lambda p: optim.NAdam(p, lr=0.1),
    "RAdam": lambda p: optim.RAdam(p, lr=0.1),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.1),
    "RMSprop centered": lambda p: optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
    "Rprop": lambda p: optim.Rprop(p, lr=0.1),
    "SGD": lambda p: optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "SGD nesterov fused": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "SparseAdam": lambda p: optim.SparseAdam(p, lr=0.1),
}
if hasattr(optim, "Muon"):
    OPTIMIZERS["Muon"] = lambda p: optim.Muon(p, lr=0.1, ns_steps=1)

WAYS = ["load_into", "restore", "load and load_state_dict"]


def network(kind: str, dtype: torch.dtype, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    if kind == "SparseAdam":
        return torch.nn.Sequential(torch.nn.Embedding(5, 3, sparse=True, dtype=dtype))
    bias = kind != "Muon"
    layers = [torch.nn.Linear(3, 4, bias=bias), torch.nn.Linear(4, 2, bias=bias)]
    return torch.nn.Sequential(*layers).to(dtype)


def train(net: torch.nn.Module, optimizer: Any, steps: range) -> None:
    dtype = next(net.parameters()).dtype
    for step in steps:
        numbers = torch.Generator().manual_seed(step)
        if isinstance(net[0], torch.nn.Embedding):  # type: ignore[index]
            given = torch.randint(5, (4,), generator=numbers)
        else:
            given = torch.randn(4, 3, generator=numbers).to(dtype)

        def closure(given: torch.Tensor = given) -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = (net(given) - 1).abs().square().mean()
            torch.autograd.backward(loss)
            return loss

        if isinstance(optimizer, optim.LBFGS):
            cast(Any, optimizer).step(closure)
        else:
            closure()
            optimizer.step()


def resume(way: str, path: Path, net: torch.nn.Module, optimizer: Any) -> None:
    if way == "load_into":
        jsonckpt.load_into({"net": net, "opt": optimizer}, path)
        return
    state = jsonckpt.load(path)
    net.load_state_dict(state["net"])
    if way == "restore":
        restore_optimizer(optimizer, state["opt"])
    else:
        optimizer.load_state_dict(state["opt"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize(
    ("kind", "named"), [*((kind, False) for kind in OPTIMIZERS), ("Adam", True), ("LBFGS", True)]
)
@pytest.mark.filterwarnings("ignore:.*Sparse.*")
def test_every_optimizer_goes_on_identically(
    tmp_path: Path, kind: str, named: bool, used: bool, way: str
) -> None:
    def make(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        net = network(kind, torch.float32, seed)
        return net, OPTIMIZERS[kind](net.named_parameters() if named else net.parameters())

    (net, optimizer), (other, into) = make(1), make(2)
    train(net, optimizer, range(5))
    jsonckpt.save({"net": net.state_dict(), "opt": optimizer.state_dict()}, tmp_path)
    if used:
        train(other, into, range(50, 58))
    resume(way, tmp_path, other, into)
    assert difference(into.state_dict(), optimizer.state_dict()) is None
    train(net, optimizer, range(5, 12))
    train(other, into, range(5, 12))
    assert difference(other.state_dict(), net.state_dict()) is None
    assert difference(into.state_dict(), optimizer.state_dict()) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("kind", ["AdamW", "Adagrad", "SGD momentum", "RMSprop"])
@pytest.mark.parametrize("way", WAYS[:2])
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_other_dtypes_go_on_identically(
    tmp_path: Path, kind: str, dtype: torch.dtype, way: str
) -> None:
    def make(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        net = network(kind, dtype, seed)
        return net, OPTIMIZERS[kind](net.parameters())

    (net, optimizer), (other, into) = make(1), make(2)
    train(net, optimizer, range(3))
    jsonckpt.save({"net": net.state_dict(), "opt": optimizer.state_dict()}, tmp_path)
    resume(way, tmp_path, other, into)
    train(net, optimizer, range(3, 6))
    train(other, into, range(3, 6))
    assert difference(other.state_dict(), net.state_dict()) is None


def test_state_that_is_there_is_filled_in_place(tmp_path: Path) -> None:
    net = network("Adam", torch.float32, 1)
    optimizer = optim.Adam(net.parameters())
    train(net, optimizer, range(2))
    jsonckpt.save(optimizer.state_dict(), tmp_path)
    train(net, optimizer, range(2, 4))
    before = [dict(state) for state in optimizer.state.values()]
    jsonckpt.load_into(optimizer, tmp_path)
    for old, state in zip(before, optimizer.state.values(), strict=True):
        assert all(state[name] is tensor for name, tensor in old.items())


def test_state_of_another_dtype_is_replaced_not_rounded(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    optimizer = optim.SGD([weight], momentum=0.9)
    exact = torch.tensor([0.1, 0.2])
    groups = optimizer.state_dict()["param_groups"]
    jsonckpt.save({"state": {0: {"momentum_buffer": exact}}, "param_groups": groups}, tmp_path)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    jsonckpt.load_into(optimizer, tmp_path)
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], exact)


def test_what_an_optimizer_keeps_beside_tensors_goes_when_it_was_not_saved(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = optim.SGD([weight], momentum=0.9)
    optimizer.state[weight]["count"] = 1
    jsonckpt.save(optimizer.state_dict(), tmp_path)
    optimizer.state[weight]["later"] = {"n": 2}
    jsonckpt.load_into(optimizer, tmp_path)
    assert optimizer.state[weight] == {"count": 1}


def test_state_of_no_parameter_is_copied_as_torch_does(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer, into = optim.SGD([weight]), optim.SGD([weight])
    optimizer.state["whole"] = {"t": torch.ones(2), "n": 1}  # type: ignore[index]
    jsonckpt.save(optimizer.state_dict(), tmp_path)
    jsonckpt.load_into(into, tmp_path)
    assert difference(into.state_dict(), optimizer.state_dict()) is None


def test_what_releases_of_torch_add_is_no_mismatch(tmp_path: Path) -> None:
    net = network("AdamW", torch.float32, 1)
    optimizer = optim.AdamW(net.parameters(), lr=0.3)
    train(net, optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for key in ("fused", "foreach", "capturable", "differentiable", "maximize"):
            del group[key]
        group.pop("decoupled_weight_decay", None)
        group["initial_lr"], group["of a later release"] = 0.3, 1
    for entry in saved["state"].values():
        entry["step"] = int(entry["step"])  # as torch 1.11 and before
    jsonckpt.save(saved, tmp_path)
    for way in WAYS[:2]:
        other = network("AdamW", torch.float32, 1)
        into = optim.AdamW(other.parameters(), lr=0.1)
        if way == "restore":
            restore_optimizer(into, jsonckpt.load(tmp_path))
        else:
            jsonckpt.load_into(into, tmp_path)
        assert into.param_groups[0]["lr"] == 0.3
        assert into.param_groups[0]["maximize"] is False
        state = next(iter(into.state.values()))
        assert torch.equal(state["step"], torch.tensor(2.0))
        other.load_state_dict(net.state_dict())
        train(other, into, range(2, 4))
    train(net, optimizer, range(2, 4))
    assert difference(other.state_dict(), net.state_dict()) is None


# --- what does not fit ------------------------------------------------------------------------


def refused(optimizer: torch.optim.Optimizer, state: Any, path: Path, match: str) -> None:
    """Both ways refuse it, and change nothing."""
    jsonckpt.save({"opt": state}, path)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(StateMismatchError, match=match):
        jsonckpt.load_into({"opt": optimizer}, path)
    with pytest.raises(StateMismatchError, match=match):
        restore_optimizer(optimizer, jsonckpt.load(path)["opt"])
    assert difference(optimizer.state_dict(), before) is None
    jsonckpt.load_into({"opt": optimizer}, path, strict=False)


def stepped(kind: str) -> dict[str, Any]:
    net = network(kind, torch.float32, 1)
    optimizer = OPTIMIZERS[kind](net.parameters())
    train(net, optimizer, range(2))
    return optimizer.state_dict()


OTHER_KINDS = [
    ("AdamW", "SGD momentum"),
    ("SGD momentum", "AdamW"),
    ("Adam", "Adamax"),
    ("Adamax", "RAdam"),
    ("Adam", "NAdam"),
    ("RMSprop", "Adagrad"),
    ("Adagrad", "RMSprop"),
    ("SGD momentum", "RMSprop"),
    ("RMSprop", "SGD momentum"),
    ("Adam", "Adafactor"),
    ("Adafactor", "Adam"),
    ("Rprop", "ASGD"),
    ("Adadelta", "Rprop"),
    ("LBFGS", "Adam"),
    ("Adam", "LBFGS"),
]


@pytest.mark.parametrize(("saved", "target"), OTHER_KINDS)
def test_another_kind_of_optimizer_is_refused(tmp_path: Path, saved: str, target: str) -> None:
    into = OPTIMIZERS[target](network(target, torch.float32, 1).parameters())
    before = copy.deepcopy(into.state_dict())
    refused(into, stepped(saved), tmp_path, "another kind of optimizer")
    assert difference(into.state_dict(), before) is None, "without strict nothing fits either"


def test_adam_and_adamw_have_the_same_state(tmp_path: Path) -> None:
    jsonckpt.save(stepped("Adam"), tmp_path)
    into = optim.AdamW(network("AdamW", torch.float32, 1).parameters())
    jsonckpt.load_into(into, tmp_path)
    assert len(into.state) == 4


def test_another_order_of_parameters_is_refused(tmp_path: Path) -> None:
    net = network("Adam", torch.float32, 1)
    for kind in ("Adam", "SGD momentum", "Rprop", "Adafactor"):
        into = OPTIMIZERS[kind](list(net.parameters())[::-1])
        refused(into, stepped(kind), tmp_path, r"/state/0/\w+: shape \[4, [13]\] in the checkpoint")
        assert not any(state for state in into.state.values())


def test_another_shape_is_refused(tmp_path: Path) -> None:
    wide = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    for kind in ("Adam", "SGD momentum", "LBFGS"):
        refused(OPTIMIZERS[kind](wide.parameters()), stepped(kind), tmp_path, "shape .* in the ch")


def test_swapped_state_of_an_unknown_optimizer_is_refused(tmp_path: Path) -> None:
    class Foreign(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 1.0})

        def step(self, _: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for tensor in group["params"]:
                    self.state[tensor]["like"] = torch.ones_like(tensor)
                    self.state[tensor]["other"] = torch.ones(7)

    parameters = list(network("Adam", torch.float32, 1).parameters())
    saved = Foreign(parameters)
    saved.step()
    refused(Foreign(parameters[::-1]), saved.state_dict(), tmp_path, "/like: shape")
    into = Foreign(parameters)
    jsonckpt.save(saved.state_dict(), tmp_path)
    jsonckpt.load_into(into, tmp_path)
    assert difference(into.state_dict(), saved.state_dict()) is None


# --- names ------------------------------------------------------------------------------------


def named_adam(net: torch.nn.Module, order: list[str] | None = None) -> torch.optim.Optimizer:
    found = dict(net.named_parameters())
    return optim.Adam([(name, found[name]) for name in order or found])


@pytest.mark.parametrize("way", WAYS[:2])
@pytest.mark.parametrize("wrapped", ["", "module.", "_orig_mod."])
def test_names_decide_not_the_order(tmp_path: Path, way: str, wrapped: str) -> None:
    net = network("Adam", torch.float32, 1)
    optimizer = named_adam(net)
    train(net, optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["param_names"] = [
        wrapped + name for name in saved["param_groups"][0]["param_names"]
    ]
    jsonckpt.save({"net": net.state_dict(), "opt": saved}, tmp_path)
    other = network("Adam", torch.float32, 2)
    order = ["1.weight", "0.bias", "0.weight", "1.bias"]
    into = named_adam(other, order)
    resume(way, tmp_path, other, into)
    assert into.param_groups[0]["param_names"] == order
    mine = dict(net.named_parameters())
    for name, parameter in other.named_parameters():
        assert difference(into.state[parameter], optimizer.state[mine[name]]) is None
    train(net, optimizer, range(3, 6))
    train(other, into, range(3, 6))
    assert difference(other.state_dict(), net.state_dict()) is None


def test_names_that_differ_are_said(tmp_path: Path) -> None:
    net = network("Adam", torch.float32, 1)
    optimizer = named_adam(net)
    train(net, optimizer, range(1))
    other = torch.nn.Sequential()
    for old, new in (("0", "first"), ("1", "1")):
        other.add_module(new, copy.deepcopy(net.get_submodule(old)))
    into = named_adam(other)
    state = optimizer.state_dict()
    refused(into, state, tmp_path, r"missing: .*first\.bias.*\n.*unexpected: .*0\.bias")
    first, last = other[0], other[1]
    assert last.weight in into.state, "what has a name in both is loaded without strict"
    assert first.weight not in into.state


@pytest.mark.parametrize("way", WAYS[:2])
def test_groups_are_found_by_their_names(tmp_path: Path, way: str) -> None:
    def make(net: torch.nn.Module, *, turned: bool) -> torch.optim.Optimizer:
        named = list(net.named_parameters())
        groups = [
            {"params": [pair for pair in named if "weight" in pair[0]], "lr": 0.1},
            {"params": [pair for pair in named if "bias" in pair[0]][::-1], "lr": 0.01},
        ]
        return optim.Adam(groups[::-1] if turned else groups)

    net, other = network("Adam", torch.float32, 1), network("Adam", torch.float32, 2)
    optimizer, into = make(net, turned=False), make(other, turned=True)
    optimizer.param_groups[0]["lr"] = 0.5
    train(net, optimizer, range(3))
    jsonckpt.save({"net": net.state_dict(), "opt": optimizer.state_dict()}, tmp_path)
    resume(way, tmp_path, other, into)
    assert [group["lr"] for group in into.param_groups] == [0.01, 0.5]
    train(net, optimizer, range(3, 6))
    train(other, into, range(3, 6))
    assert difference(other.state_dict(), net.state_dict()) is None


def test_a_parameter_in_another_group_is_said(tmp_path: Path) -> None:
    net = network("Adam", torch.float32, 1)
    named = list(net.named_parameters())
    saved = optim.Adam([{"params": named[:2]}, {"params": named[2:]}])
    into = optim.Adam([{"params": named[:1]}, {"params": named[1:]}])
    refused(into, saved.state_dict(), tmp_path, r"another group of parameters than in group 1")


@pytest.mark.parametrize(
    "groups",
    [
        [5],
        [{}],
        [{"params": 3}],
        [{"params": [[1], 2]}],
        [{"params": ["0", "1"]}],
        [{"params": [0], "param_names": [3]}],
    ],
    ids=str,
)
def test_groups_that_are_none_are_refused(tmp_path: Path, groups: Any) -> None:
    into = optim.SGD([torch.nn.Parameter(torch.ones(1)) for _ in range(2)], lr=0.1)
    refused(into, {"state": {}, "param_groups": groups}, tmp_path, "mismatched: '/opt: |'/: ")


def test_state_goes_where_the_saved_group_computes(tmp_path: Path) -> None:
    """As torch: with ``capturable`` or ``fused``, a step counter lies beside its parameter."""
    weight = torch.nn.Parameter(torch.zeros(2, device="meta"))
    state = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}}
    for capturable, device in ((False, "cpu"), (True, "meta")):
        groups = optim.Adam([weight], capturable=capturable).state_dict()["param_groups"]
        jsonckpt.save({"state": state, "param_groups": groups}, tmp_path)
        for way in WAYS[:2]:
            into = optim.Adam([weight])
            if way == "restore":
                restore_optimizer(into, jsonckpt.load(tmp_path))
            else:
                jsonckpt.load_into(into, tmp_path)
            entry = into.state[weight]
            assert entry["step"].device.type == device
            assert entry["exp_avg"].device.type == "meta"
            assert into.param_groups[0]["capturable"] is capturable
