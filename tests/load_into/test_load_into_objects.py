"""``load_into`` objects: in place where they are torch's own, else by their ``load_state_dict``."""

from __future__ import annotations

import collections
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import jsonckpt
from jsonckpt import ArgumentError, JsonckptError, StateMismatchError
from jsonckpt._src.load_into.objects import loads_itself
from tests.support import difference


def linear() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape))
    return module


# --- modules that are filled in place ---------------------------------------------------------


class OwnForward(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


def with_renaming_hook() -> torch.nn.Module:
    """A hook on the way out that changes nothing of what is there."""
    module = linear()
    cast(Any, module).register_state_dict_post_hook(lambda *_: None)
    return module


IN_PLACE: dict[str, Callable[[], torch.nn.Module]] = {
    "sequential": linear,
    "own forward": lambda: OwnForward(2, 3),
    "attention": lambda: torch.nn.MultiheadAttention(4, 2),
    "recurrent": lambda: torch.nn.LSTM(2, 3, num_layers=2),
    "norms": lambda: torch.nn.Sequential(
        torch.nn.InstanceNorm1d(3, affine=True, track_running_stats=True), torch.nn.LayerNorm(3)
    ),
    "parallel": lambda: torch.nn.DataParallel(linear()),
    "compiled": lambda: cast(torch.nn.Module, torch.compile(linear(), backend="eager")),
    "average": lambda: torch.optim.swa_utils.AveragedModel(linear()),
    "spectral": lambda: torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 4)),
    "hook without effect": with_renaming_hook,
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_torchs_own_modules_are_filled_in_place(tmp_path: Path, kind: str) -> None:
    saved, target = randomized(IN_PLACE[kind]()), IN_PLACE[kind]()
    jsonckpt.save({"m": saved.state_dict()}, tmp_path, chunk_size=16)
    calls: list[object] = []
    target.load_state_dict = calls.append  # type: ignore[method-assign, assignment]
    assert loads_itself(target)
    del target.load_state_dict
    assert not loads_itself(target)
    places = {name: tensor.data_ptr() for name, tensor in target.state_dict().items()}
    result = jsonckpt.load_into({"m": target}, tmp_path)
    assert difference(target.state_dict(), saved.state_dict()) is None
    assert {name: tensor.data_ptr() for name, tensor in target.state_dict().items()} == places
    assert set(result.loaded) == {f"/m/{name}" for name in places}


def test_a_scripted_module_is_filled_in_place(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved, target = torch.jit.script(randomized(linear())), torch.jit.script(linear())
    jsonckpt.save(dict(saved.state_dict()), tmp_path)
    assert not loads_itself(target)
    jsonckpt.load_into(target, tmp_path)
    assert difference(dict(target.state_dict()), dict(saved.state_dict())) is None


def test_batch_norms_of_old_checkpoints_have_no_counter(tmp_path: Path) -> None:
    """As torch: with no version, or 1, the counter may be missing; with version 2 it may not."""
    state = randomized(linear()).state_dict()
    del state["1.num_batches_tracked"]
    for version in (None, 1, 2):
        saved: Any = dict(state)
        if version is not None:
            saved = collections.OrderedDict(state)
            saved._metadata = {"": {"version": 1}, "1": {"version": version}}
        jsonckpt.save(saved, tmp_path)
        target = linear()
        if version == 2:
            with pytest.raises(StateMismatchError, match=r"/1\.num_batches_tracked"):
                jsonckpt.load_into(target, tmp_path)
        else:
            assert jsonckpt.load_into(target, tmp_path).missing == ()
            assert torch.equal(target.state_dict()["1.running_mean"], state["1.running_mean"])


class Extra(torch.nn.Module):
    def __init__(self, seen: Any = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.register_buffer("my_extra_state", torch.zeros(1))
        self.seen = seen

    def get_extra_state(self) -> Any:
        return self.seen

    def set_extra_state(self, state: Any) -> None:
        if state == "bad":
            raise KeyError("no such state")
        self.seen = state


def test_extra_state_beside_a_buffer_that_is_called_alike(tmp_path: Path) -> None:
    saved: Any = torch.nn.Sequential(Extra({"n": 3, "t": [torch.ones(2)]}), Extra("plain"))
    saved[0].my_extra_state += 1
    jsonckpt.save(saved.state_dict(), tmp_path)
    target: Any = torch.nn.Sequential(Extra(), Extra())
    place = target[0].weight.data_ptr()
    jsonckpt.load_into(target, tmp_path)
    assert difference(target.state_dict(), saved.state_dict()) is None
    assert target[0].weight.data_ptr() == place
    assert target[0].seen["t"][0].tolist() == [1.0, 1.0]


def test_extra_state_that_is_missing_or_refused(tmp_path: Path) -> None:
    state = Extra(1).state_dict()
    jsonckpt.save(
        {"m": {key: item for key, item in state.items() if key != "_extra_state"}}, tmp_path
    )
    with pytest.raises(StateMismatchError, match="missing: '/m/_extra_state'"):
        jsonckpt.load_into({"m": Extra()}, tmp_path)
    jsonckpt.save({"m": Extra("bad").state_dict()}, tmp_path)
    with pytest.raises(StateMismatchError, match=r"'/m/_extra_state': Extra\.set_extra_state") as e:
        jsonckpt.load_into({"m": Extra()}, tmp_path)
    assert isinstance(e.value.__cause__, KeyError)


# --- modules that load themselves -------------------------------------------------------------


class Copies(torch.nn.Linear):
    """Its state dict holds copies."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        cast(Any, self)._register_state_dict_hook(
            lambda _, state, prefix, __: state.update(
                {prefix + "weight": state[prefix + "weight"].clone()}
            )
        )


class Metric(torch.nn.Module):
    """As metrics of other packages: states are no buffers, and some are lists of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.total = torch.tensor(0.0)
        self.seen: list[torch.Tensor] = []

    def state_dict(self, *_: Any, **named: Any) -> Any:
        prefix = named.get("prefix", "")
        found: Any = super().state_dict(**named)
        found[prefix + "total"] = self.total.clone()
        found[prefix + "seen"] = [tensor.clone() for tensor in self.seen]
        return found

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        self.total = state_dict.pop(prefix + "total")
        self.seen = state_dict.pop(prefix + "seen")
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Prefixed(torch.nn.Linear):
    """Reads old names."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if prefix + "old" in state_dict:
            state_dict[prefix + "weight"] = state_dict.pop(prefix + "old")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def test_a_state_dict_of_copies_reaches_the_module(tmp_path: Path) -> None:
    saved, target = randomized(torch.nn.Linear(2, 3)), torch.nn.Sequential(Copies(2, 3))
    jsonckpt.save({f"0.{name}": tensor for name, tensor in saved.state_dict().items()}, tmp_path)
    assert jsonckpt.load_into(target, tmp_path).loaded == ("/0.weight", "/0.bias")
    assert torch.equal(target[0].weight, saved.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("filled", [False, True])
def test_list_states(tmp_path: Path, filled: bool) -> None:
    saved = torch.nn.ModuleDict({"metric": Metric(), "net": torch.nn.Linear(2, 2)})
    metric: Any = saved["metric"]
    metric.total = torch.tensor(5.0)
    metric.seen = [torch.arange(2), torch.arange(3)]
    jsonckpt.save({"all": saved.state_dict(), "alone": metric.state_dict()}, tmp_path)
    target = torch.nn.ModuleDict({"metric": Metric(), "net": torch.nn.Linear(2, 2)})
    alone, inside = Metric(), target["metric"]
    for one in (alone, inside) if filled else ():
        one.seen = [torch.ones(9)]  # type: ignore[assignment]
    jsonckpt.load_into({"all": target, "alone": alone}, tmp_path)
    assert difference(target.state_dict(), saved.state_dict()) is None
    assert difference(alone.state_dict(), metric.state_dict()) is None


def test_own_names_are_read_as_torch_would(tmp_path: Path) -> None:
    state = randomized(torch.nn.Linear(2, 3)).state_dict()
    jsonckpt.save({"old": state["weight"], "bias": state["bias"]}, tmp_path)
    target = Prefixed(2, 3)
    jsonckpt.load_into(target, tmp_path)
    assert difference(target.state_dict(), state) is None


HOOKS = ["load pre", "load post", "state pre", "state post"]


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("child", [False, True])
def test_every_hook_of_a_module_runs(tmp_path: Path, kind: str, child: bool) -> None:
    saved, target = linear(), linear()
    part = target[0] if child else target  # type: ignore[index]
    calls = []

    def hook(*_: Any) -> None:
        calls.append(kind)

    register = {
        "load pre": part.register_load_state_dict_pre_hook,
        "load post": part.register_load_state_dict_post_hook,
        "state pre": part.register_state_dict_pre_hook,
        "state post": part.register_state_dict_post_hook,
    }[kind]
    register(hook)
    jsonckpt.save(randomized(saved).state_dict(), tmp_path)
    jsonckpt.load_into(target, tmp_path)
    assert calls
    assert loads_itself(target) == kind.startswith("load")
    calls.clear()
    assert difference(target.state_dict(), saved.state_dict()) is None


def quantized() -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.nn.Sequential(torch.nn.Linear(2, 3))
        quantize: Any = torch.ao.quantization.quantize_dynamic
        return cast(torch.nn.Module, quantize(module, {torch.nn.Linear}))


SELF_LOADING: dict[str, Callable[[], torch.nn.Module]] = {
    "weight norm": lambda: torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 3)),
    "old spectral norm": lambda: torch.nn.utils.spectral_norm(torch.nn.Linear(3, 4)),
    "lazy": lambda: torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.LazyBatchNorm1d()),
    "quantized": quantized,
}


@pytest.mark.parametrize("kind", SELF_LOADING)
@pytest.mark.filterwarnings("ignore:.*(spectral_norm|quantiz|TypedStorage|_empty_affine).*")
def test_torchs_modules_that_load_themselves(tmp_path: Path, kind: str) -> None:
    saved, target = SELF_LOADING[kind](), SELF_LOADING[kind]()
    if kind == "lazy":
        saved(torch.rand(4, 2))
    jsonckpt.save({"m": randomized(saved).state_dict()}, tmp_path)
    assert loads_itself(target)
    jsonckpt.load_into({"m": target}, tmp_path)
    assert difference(target.state_dict(), saved.state_dict()) is None


def test_old_names_of_weight_norm_are_read(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = torch.nn.utils.weight_norm(torch.nn.Linear(2, 3))
    jsonckpt.save(old.state_dict(), tmp_path)
    target: Any = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 3))
    jsonckpt.load_into(target, tmp_path)
    assert torch.equal(target.parametrizations.weight.original1, cast(Any, old).weight_v)


def test_what_a_module_refuses_is_our_error_with_its_place(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(2), "m": linear().state_dict()}, tmp_path)
    target: dict[str, Any] = {"w": torch.zeros(2), "m": Copies(5, 5)}
    with pytest.raises(
        StateMismatchError, match=r"'/m': Copies\.load_state_dict refused"
    ) as caught:
        jsonckpt.load_into(target, tmp_path)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "Missing key" in str(caught.value)
    assert caught.value.file == str(tmp_path)
    assert not target["w"].any(), "what is filled in place is filled last"
    result = jsonckpt.load_into(target, tmp_path, strict=False)
    assert result.missing == ("/m/weight", "/m/bias")
    assert target["w"].all()
    jsonckpt.save({"m": {"weight": torch.ones(2), "bias": torch.ones(5)}}, tmp_path)
    result = jsonckpt.load_into({"m": target["m"]}, tmp_path, strict=False)
    assert "size mismatch" in result.mismatched[0]
    assert target["m"].bias.tolist() == [1.0] * 5


def test_a_part_of_a_module_that_loads_itself(tmp_path: Path) -> None:
    saved, target = randomized(torch.nn.Linear(2, 3)), Copies(2, 3)
    bias = target.bias.detach().clone()
    jsonckpt.save(saved.state_dict(), tmp_path)
    result = jsonckpt.load_into(target, tmp_path, exclude="/bias")
    assert (result.loaded, result.missing) == (("/weight",), ())
    assert torch.equal(target.weight, saved.weight)  # type: ignore[arg-type]
    assert torch.equal(target.bias, bias)


def test_a_module_that_loads_itself_does_not_convert_in_silence(tmp_path: Path) -> None:
    jsonckpt.save(torch.nn.Linear(2, 3).double().state_dict(), tmp_path)
    with pytest.raises(StateMismatchError, match="float64 in the checkpoint, float32"):
        jsonckpt.load_into(Copies(2, 3), tmp_path)
    jsonckpt.load_into(Copies(2, 3), tmp_path, cast=True)


def test_metadata_reaches_load_state_dict(tmp_path: Path) -> None:
    class Versioned(torch.nn.Linear):
        _version = 7
        found: Any = None

        def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
            self.found = metadata.get("version")
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    jsonckpt.save(torch.nn.Sequential(Versioned(2, 2)).state_dict(), tmp_path)
    target = torch.nn.Sequential(Versioned(2, 2))
    jsonckpt.load_into(target, tmp_path)
    assert target[0].found == 7


# --- optimizers and others --------------------------------------------------------------------


class Lookahead(torch.optim.Optimizer):
    """Keeps slow weights, and an optimizer below."""

    def __init__(self, below: torch.optim.Optimizer) -> None:
        super().__init__(below.param_groups, {})
        self.below = below
        self.param_groups = below.param_groups
        self.slow = [
            parameter.detach().clone()
            for group in self.param_groups
            for parameter in group["params"]
        ]
        self.steps = 0

    def step(self, _: Any = None) -> None:  # type: ignore[override]
        self.below.step()
        self.steps += 1
        if self.steps % 2:
            return
        parameters = [tensor for group in self.param_groups for tensor in group["params"]]
        with torch.no_grad():
            for slow, fast in zip(self.slow, parameters, strict=True):
                slow.lerp_(fast, 0.5)
                fast.copy_(slow)

    def state_dict(self) -> dict[str, Any]:
        return {"below": self.below.state_dict(), "slow": self.slow, "steps": self.steps}

    def load_state_dict(self, state_dict: Any) -> None:
        self.below.load_state_dict(state_dict["below"])
        self.slow, self.steps = list(state_dict["slow"]), state_dict["steps"]


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        loss = net(torch.full((4, 2), 0.1 * step + 1)).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


@pytest.mark.parametrize("used", [False, True])
def test_an_optimizer_with_slow_weights_goes_on_identically(tmp_path: Path, used: bool) -> None:
    def make() -> tuple[torch.nn.Module, Lookahead]:
        net = torch.nn.Linear(2, 2)
        return net, Lookahead(torch.optim.Adam(net.parameters(), lr=0.1))

    (net, optimizer), (other, into) = make(), make()
    train(net, optimizer, 3)
    jsonckpt.save({"net": net.state_dict(), "opt": optimizer.state_dict()}, tmp_path)
    if used:
        train(other, into, 1)
    jsonckpt.load_into({"net": other, "opt": into}, tmp_path)
    train(net, optimizer, 5)
    train(other, into, 5)
    assert difference(other.state_dict(), net.state_dict()) is None


@pytest.mark.parametrize(
    "kind",
    [
        "register_load_state_dict_pre_hook",
        "register_load_state_dict_post_hook",
        "register_state_dict_pre_hook",
        "register_state_dict_post_hook",
        "instance",
        "subclass",
    ],
)
def test_every_hook_of_an_optimizer_runs(tmp_path: Path, kind: str) -> None:
    calls = []

    class Counting(torch.optim.SGD):
        def load_state_dict(self, state_dict: Any) -> None:
            calls.append(kind)
            super().load_state_dict(state_dict)

    net, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    train(net, optimizer, 2)
    jsonckpt.save({"opt": optimizer.state_dict()}, tmp_path)
    make = Counting if kind == "subclass" else torch.optim.SGD
    into = make(other.parameters(), lr=0.5)
    if kind == "instance":

        def loading(self: Any, state: Any) -> None:
            calls.append(kind)
            torch.optim.SGD.load_state_dict(self, state)

        into.load_state_dict = types.MethodType(loading, into)  # type: ignore[method-assign]
    elif kind != "subclass":
        getattr(into, kind)(lambda *_: calls.append(kind))
    assert loads_itself(into)
    jsonckpt.load_into({"opt": into}, tmp_path)
    assert bool(calls) == ("load" in kind or kind in ("instance", "subclass"))
    assert difference(into.state_dict(), optimizer.state_dict()) is None


def test_an_optimizer_that_loads_itself_keeps_the_saved_dtype(tmp_path: Path) -> None:
    class Own(torch.optim.SGD):
        def load_state_dict(self, state_dict: Any) -> None:
            super().load_state_dict(state_dict)

    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    into = Own([weight], momentum=0.9)
    exact = torch.tensor([0.1, 0.2])
    state = {0: {"momentum_buffer": exact}}
    jsonckpt.save({"state": state, "param_groups": into.state_dict()["param_groups"]}, tmp_path)
    jsonckpt.load_into(into, tmp_path)
    assert torch.equal(into.state[weight]["momentum_buffer"], exact)


class Holder:
    """An object with ``load_state_dict`` that may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.state: Any = None

    def load_state_dict(self, state: Any) -> None:
        if self.error is not None:
            raise self.error
        self.state = state


@pytest.mark.parametrize("error", [KeyError("k"), ValueError("v"), RuntimeError("r"), TypeError()])
def test_an_object_that_fails_changes_nothing_else(tmp_path: Path, error: Exception) -> None:
    jsonckpt.save({"a": torch.ones(2), "deep": [{"n": 1}], "z": 5}, tmp_path)
    target: dict[str, Any] = {"a": torch.zeros(2), "deep": [Holder(error)], "z": 0}
    with pytest.raises(StateMismatchError, match=r"'/deep/0': Holder\.load_state_dict") as caught:
        jsonckpt.load_into(target, tmp_path)
    assert caught.value.__cause__ is error
    assert (target["a"].tolist(), target["z"]) == ([0.0, 0.0], 0)


def test_memory_errors_and_our_own_go_through(tmp_path: Path) -> None:
    jsonckpt.save({"h": {"n": 1}}, tmp_path)
    for error in (MemoryError(), StateMismatchError("mine")):
        with pytest.raises(type(error)) as caught:
            jsonckpt.load_into({"h": Holder(error)}, tmp_path)
        assert caught.value is error


def test_an_object_gets_what_load_gives(tmp_path: Path) -> None:
    tensor = torch.arange(6.0)
    inner = {
        "tied": [tensor, tensor],
        "view": tensor[2:],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "tuple": (1, tensor),
        "ordered": collections.OrderedDict(a=1),
    }
    jsonckpt.save({"h": inner}, tmp_path)
    holder = Holder()
    jsonckpt.load_into({"h": holder}, tmp_path)
    assert difference(holder.state, jsonckpt.load(tmp_path)["h"]) is None
    assert holder.state["tied"][0] is holder.state["tied"][1]
    assert holder.state["view"].data_ptr() == holder.state["tied"][0][2:].data_ptr()


def test_an_object_for_which_nothing_was_saved_is_missing(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(2)}, tmp_path)
    target = {"w": torch.zeros(2), "h": Holder(), "m": torch.nn.Sequential(Copies(2, 2))}
    with pytest.raises(StateMismatchError) as caught:
        jsonckpt.load_into(target, tmp_path)
    assert caught.value.missing == ["/h", "/m"]
    jsonckpt.load_into(target, tmp_path, include="/w")


# --- what can be a target ---------------------------------------------------------------------


def generator() -> Iterator[torch.Tensor]:
    yield torch.zeros(2)


@pytest.mark.parametrize(
    "target",
    [
        None, 5, "text", b"bytes", {1, 2}, generator(), torch.nn.Linear, object(),
        torch.nn.Linear(1, 1).parameters(), {"w": generator()}, {"w": torch.nn.Linear},
        [{"w": {"w": torch.zeros(2)}.values()}],
    ],
    ids=lambda target: type(target).__name__,
)  # fmt: skip
@pytest.mark.parametrize("strict", [False, True])
def test_what_cannot_be_filled_is_an_argument_error(
    tmp_path: Path, target: Any, strict: bool
) -> None:
    jsonckpt.save({"w": torch.ones(2)}, tmp_path)
    with pytest.raises(ArgumentError, match=r"target.*cannot be filled") as caught:
        jsonckpt.load_into(target, tmp_path, strict=strict)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, JsonckptError)


def test_a_target_that_contains_itself(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(2)}, tmp_path)
    target: dict[str, Any] = {"w": torch.zeros(2)}
    target["self"] = [target]
    with pytest.raises(ArgumentError, match="'/self/0' contains itself"):
        jsonckpt.load_into(target, tmp_path)


def test_a_target_that_takes_nothing_is_a_mismatch(tmp_path: Path) -> None:
    jsonckpt.save({"epoch": 3, "deep": {}}, tmp_path / "c")
    targets: list[Any] = [{}, {"other": 1}, {"deep": {}}]
    for target in targets:
        with pytest.raises(StateMismatchError, match="nothing in the target matches anything"):
            jsonckpt.load_into(target, tmp_path / "c")
        assert jsonckpt.load_into(target, tmp_path / "c", strict=False).loaded == ()
    jsonckpt.save([1, 2], tmp_path / "l")
    with pytest.raises(StateMismatchError, match="a list of 2 in the checkpoint, a list of 0 in"):
        jsonckpt.load_into([], tmp_path / "l")
    jsonckpt.save(torch.nn.ReLU().state_dict(), tmp_path / "r")
    jsonckpt.load_into(torch.nn.ReLU(), tmp_path / "r")
    jsonckpt.save({"w": torch.ones(2)}, tmp_path / "w")
    jsonckpt.load_into({"w": torch.zeros(2)}, tmp_path / "w", exclude="/w")


def test_a_mapping_that_cannot_be_changed_has_its_tensors_filled(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(2), "n": 1}, tmp_path)
    tensor = torch.zeros(2)
    jsonckpt.load_into(types.MappingProxyType({"w": tensor, "n": 0}), tmp_path)
    assert tensor.tolist() == [1.0, 1.0]


@pytest.mark.filterwarnings("ignore:.*(Sparse|quantize).*")
def test_sparse_and_quantized_tensors_are_said_to_be_there(tmp_path: Path) -> None:
    sparse = torch.eye(3).to_sparse()
    quant = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    jsonckpt.save({"s": sparse, "q": quant, "d": torch.ones(3, 3), "e": torch.ones(3)}, tmp_path)
    target = {
        "s": torch.zeros(3, 3), "q": quant.clone(),
        "d": torch.eye(3).to_sparse(), "e": quant.clone(),
    }  # fmt: skip
    with pytest.raises(StateMismatchError) as caught:
        jsonckpt.load_into(target, tmp_path)
    only = "only jsonckpt.load can give it"
    assert caught.value.mismatched == [
        "/s: a tensor of layout sparse_coo in the checkpoint, a dense tensor in the target; "
        f"{only}",
        "/q: a quantized tensor (qint8) in the checkpoint, a quantized tensor (qint8) in the "
        f"target; {only}",
        "/d: a dense tensor in the checkpoint, a tensor of layout sparse_coo in the target; "
        f"{only}",
        f"/e: a dense tensor in the checkpoint, a quantized tensor (qint8) in the target; {only}",
    ]
    assert "exclude= these and take them from jsonckpt.load" in str(caught.value.hint)
    assert jsonckpt.load_into(target, tmp_path, strict=False).loaded == ()
