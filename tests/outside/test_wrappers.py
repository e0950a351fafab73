"""What people put around modules and optimizers: each goes on after a resume as if nothing was."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize, prune

from jsonckpt import StateMismatchError, UnsupportedTypeError, load, load_into
from tests.outside.support import alike, normal, through, written
from tests.support import difference

WAYS = ["load", "load_into"]


def resume(way: str, target: dict[str, Any], path: Path) -> None:
    """Into objects with ``load_state_dict``, one way or the other."""
    if way == "load_into":
        load_into(target, path)
    else:
        kept = load(path)
        for name, part in target.items():
            part.load_state_dict(kept[name])


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        inputs = torch.linspace(-1, 1, 6).view(2, 3) * (step + 1)
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()


# Optimizers -----------------------------------------------------------------------------------


class SlowWeights(torch.optim.Optimizer):
    """Keeps slow weights beside a fast optimizer, in a state of its own."""

    def __init__(self, fast: torch.optim.Optimizer, every: int, alpha: float) -> None:
        self.fast, self.every, self.alpha = fast, every, alpha
        self.param_groups = fast.param_groups
        self.defaults = fast.defaults
        self.state = fast.state
        self.steps = 0
        self.slow = [[p.detach().clone() for p in g["params"]] for g in fast.param_groups]

    def step(self, closure: Any = None) -> Any:
        self.fast.step(closure)
        self.steps += 1
        if self.steps % self.every == 0:
            for group, slow in zip(self.fast.param_groups, self.slow, strict=True):
                for parameter, kept in zip(group["params"], slow, strict=True):
                    kept.add_(parameter.detach() - kept, alpha=self.alpha)
                    parameter.data.copy_(kept)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.fast.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"fast": self.fast.state_dict(), "slow": self.slow, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fast.load_state_dict(state["fast"])
        self.slow = [[p.clone() for p in group] for group in state["slow"]]
        self.steps = state["steps"]
        self.param_groups, self.state = self.fast.param_groups, self.fast.state


class SlowInState(torch.optim.SGD):
    """Keeps slow weights in the state of each parameter, and a counter beside it."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                slow = state.setdefault("slow_buffer", parameter.detach().clone())
                if self.steps % 3 == 0:
                    slow.lerp_(parameter.detach(), 0.5)
                    parameter.data.copy_(slow)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state_dict = dict(state_dict)
        self.steps = state_dict.pop("steps")
        super().load_state_dict(state_dict)


class SharpnessAware(torch.optim.Optimizer):
    """Steps up and down again; the weights from before lie in the state while it is away."""

    def __init__(self, parameters: Any, rho: float = 0.05) -> None:
        super().__init__(parameters, {"rho": rho})
        self.base = torch.optim.AdamW(self.param_groups, lr=0.05)
        self.param_groups = self.base.param_groups
        self.defaults.update(self.base.defaults)

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["old_p"] = parameter.detach().clone()
                parameter.data.add_(parameter.grad, alpha=group["rho"])
                parameter.data.copy_(self.state[parameter]["old_p"])
        return self.base.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {"own": super().state_dict(), "base": self.base.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["own"])
        self.base.load_state_dict(state_dict["base"])
        self.param_groups = self.base.param_groups


class Hooked(torch.optim.Adam):
    """torch's own, with hooks that add an entry to the state dict and take it out again."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.05)
        self.seen = 0
        self.register_step_post_hook(lambda *_: setattr(self, "seen", self.seen + 1))
        self.register_state_dict_post_hook(lambda _, state: {**state, "seen": self.seen})
        self.register_load_state_dict_pre_hook(self._take_out)

    def _take_out(self, _: Any, state: dict[str, Any]) -> dict[str, Any]:
        state = dict(state)
        self.seen = state.pop("seen")
        return state


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "slow weights beside": lambda p: SlowWeights(torch.optim.Adam(p, 0.05), 3, 0.5),
    "slow weights in the state": lambda p: SlowInState(p, lr=0.05, momentum=0.9),
    "sharpness aware": SharpnessAware,
    "hooked": Hooked,
    "Adam": lambda p: torch.optim.Adam(p, 0.05),
    "slow weights beside Adagrad": lambda p: SlowWeights(torch.optim.Adagrad(p, 0.05), 2, 0.3),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_that_keep_more_than_torchs_own(name: str, way: str, tmp_path: Path) -> None:
    def make(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        return model, OPTIMIZERS[name](model.parameters())

    model, optimizer = make(0)
    train(model, optimizer, 0, 4)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    path = written(state, tmp_path)
    other, resumed = make(1)
    resume(way, {"model": other, "optimizer": resumed}, path)
    found = normal(resumed.state_dict())
    assert alike(normal(optimizer.state_dict()), found, sharing=False) is None
    train(model, optimizer, 4, 9)
    train(other, resumed, 4, 9)
    assert alike(model.state_dict(), other.state_dict()) is None
    found = normal(resumed.state_dict())
    assert alike(normal(optimizer.state_dict()), found, sharing=False) is None


def test_the_state_of_another_kind_or_order_is_refused(tmp_path: Path) -> None:
    first, second = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.AdamW([first, second])
    for parameter in (first, second):
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    path = written({"optimizer": adam.state_dict()}, tmp_path)
    swapped = torch.optim.AdamW([second, first])
    with pytest.raises(StateMismatchError):
        load_into({"optimizer": swapped}, path)
    assert not swapped.state
    other = torch.optim.SGD([first, second], momentum=0.9)
    with pytest.raises(StateMismatchError):
        load_into({"optimizer": other}, path)
    assert not other.state


@pytest.mark.skipif(torch.__version__ < "2.6", reason="torch has no names of parameters yet")
def test_named_parameters_are_matched_by_name_or_refused(tmp_path: Path) -> None:
    def make(names: str) -> tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]:
        parameters = {n: torch.nn.Parameter(torch.full((2,), float(ord(n)))) for n in names}
        for parameter in parameters.values():
            parameter.grad = parameter.detach().clone()
        return parameters, torch.optim.AdamW(parameters.items(), lr=0.1)

    saved, first = make("abc")
    first.step()
    path = written({"optimizer": first.state_dict()}, tmp_path)
    parameters, other = make("cab")
    try:
        load_into({"optimizer": other}, path)
    except StateMismatchError:
        assert not other.state
        assert other.param_groups[0]["param_names"] == ["c", "a", "b"]
    else:
        for name, parameter in parameters.items():
            expected, found = first.state[saved[name]], other.state[parameter]
            assert torch.equal(expected["exp_avg"], found["exp_avg"]), name
        # A later save must not call the parameters by each other's names.
        again = other.state_dict()
        group = again["param_groups"][0]
        for name, key in zip(group["param_names"], group["params"], strict=True):
            expected = first.state[saved[name]]
            assert torch.equal(expected["exp_avg"], again["state"][key]["exp_avg"]), name


# Metrics --------------------------------------------------------------------------------------


class Metric(torch.nn.Module):
    """As metric libraries do it: states by name, tensors or lists of them, copied when asked."""

    def __init__(self, *, copies: bool, persistent: bool = True) -> None:
        super().__init__()
        self.copies, self.persistent = copies, persistent
        self.total = torch.zeros(())
        self.values: list[torch.Tensor] = []
        self.updates = 0

    def update(self, values: torch.Tensor) -> None:
        self.total = self.total + values.sum()
        self.values.append(values.clone())
        self.updates += 1

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool =
                   False) -> Any:  # fmt: skip
        state: Any = super().state_dict(
            *args, destination=destination, prefix=prefix, keep_vars=keep_vars
        )
        if self.persistent:
            own = [value.detach().clone() if self.copies else value for value in self.values]
            state[prefix + "total"] = self.total.clone() if self.copies else self.total
            state[prefix + "values"] = own
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if prefix + "total" in state_dict:
            self.total = state_dict.pop(prefix + "total")
            self.values = list(state_dict.pop(prefix + "values"))
        super()._load_from_state_dict(state_dict, prefix, *args)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("copies", [True, False], ids=["copied", "own"])
@pytest.mark.parametrize("inside", [True, False], ids=["in a model", "alone"])
def test_metrics_with_lists_and_copied_states(
    inside: bool, copies: bool, way: str, tmp_path: Path
) -> None:
    def make() -> torch.nn.Module:
        torch.manual_seed(0)
        metric = Metric(copies=copies)
        return torch.nn.ModuleDict({"l": torch.nn.Linear(2, 2), "m": metric}) if inside else metric

    first = make()
    metric: Any = first["m"] if isinstance(first, torch.nn.ModuleDict) else first
    for n in range(1, 4):
        metric.update(torch.arange(float(n)))
    path = written({"metric": first.state_dict()}, tmp_path)
    resumed = make()
    resume(way, {"metric": resumed}, path)
    found: Any = resumed["m"] if isinstance(resumed, torch.nn.ModuleDict) else resumed
    assert difference([metric.total, metric.values], [found.total, found.values]) is None
    found.update(torch.ones(2))
    assert [len(value) for value in found.values] == [1, 2, 3, 2]
    assert len(metric.values) == 3


class ExtraState(torch.nn.Linear):
    """A module that saves what is no tensor in its extra state."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.history: list[Any] = []

    def get_extra_state(self) -> Any:
        return {"history": self.history, "scale": torch.tensor(float(len(self.history)))}

    def set_extra_state(self, state: Any) -> None:
        self.history = state["history"]
        self.scale = state["scale"]


@pytest.mark.parametrize("way", WAYS)
def test_extra_state_and_buffers_that_are_not_kept(way: str, tmp_path: Path) -> None:
    extra = ExtraState()
    extra.history = [1, ("a", 2.5)]
    first = torch.nn.Sequential(extra, ExtraState())
    first.register_buffer("cache", torch.ones(3), persistent=False)
    path = written({"model": first.state_dict()}, tmp_path)
    other = torch.nn.Sequential(ExtraState(), ExtraState())
    resume(way, {"model": other}, path)
    assert other[0].history == [1, ("a", 2.5)]
    assert other[0].scale == 2
    assert other[1].history == []
    assert alike(first.state_dict(), other.state_dict(), sharing=False) is None


class Moved(torch.nn.Linear):
    """A module whose names have changed: its hook takes the old ones."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.loads = 0
        own: Any = self  # torch has no types for these
        own.register_load_state_dict_pre_hook(self._rename)
        own.register_load_state_dict_post_hook(lambda *_: setattr(self, "loads", self.loads + 1))

    @staticmethod
    def _rename(_: Any, state: dict[str, Any], prefix: str, *__: Any) -> None:
        if prefix + "kernel" in state:
            state[prefix + "weight"] = state.pop(prefix + "kernel")


@pytest.mark.parametrize("way", WAYS)
def test_hooks_of_a_module_are_called(way: str, tmp_path: Path) -> None:
    old = {"kernel": torch.full((2, 2), 3.0), "bias": torch.ones(2)}
    path = written({"model": old}, tmp_path)
    model = Moved()
    resume(way, {"model": model}, path)
    assert torch.equal(model.weight.detach(), old["kernel"])
    assert model.loads == 1


# Modules that are not what they seem ----------------------------------------------------------


def _parametrized(kind: str) -> Any:
    layer = torch.nn.Linear(3, 3)
    if kind == "weight_norm":
        return parametrizations.weight_norm(layer)
    if kind == "spectral_norm":
        return parametrizations.spectral_norm(layer)
    if kind == "orthogonal":
        return parametrizations.orthogonal(layer)
    if kind == "old weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is an old form that checkpoints still have
            return torch.nn.utils.weight_norm(layer)
    if kind == "old spectral_norm":
        return torch.nn.utils.spectral_norm(layer)
    if kind == "own":

        class Symmetric(torch.nn.Module):
            def forward(self, weight: torch.Tensor) -> torch.Tensor:
                return weight.triu() + weight.triu(1).mT

        parametrize.register_parametrization(layer, "weight", Symmetric())
        return layer
    if kind == "pruned":
        torch.manual_seed(9)
        pruning: Any = prune
        pruning.l1_unstructured(layer, "weight", 0.4)
        pruning.random_unstructured(layer, "bias", 1)
    return layer


PARAMETRIZED = [
    "weight_norm", "spectral_norm", "orthogonal", "old weight_norm", "old spectral_norm", "own",
    "pruned",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_parametrized_and_pruned_modules(kind: str, way: str, tmp_path: Path) -> None:
    def make(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = torch.nn.Sequential(_parametrized(kind), torch.nn.Linear(3, 1))
        return model, torch.optim.AdamW(model.parameters(), lr=0.05)

    model, optimizer = make(0)
    train(model, optimizer, 0, 3)
    path = written({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path)
    other, resumed = make(1)
    resume(way, {"model": other, "optimizer": resumed}, path)
    train(model, optimizer, 3, 6)
    train(other, resumed, 3, 6)
    assert alike(model.state_dict(), other.state_dict(), sharing=False) is None
    inputs = torch.ones(2, 3)
    assert difference(model(inputs), other(inputs)) is None


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_modules_before_and_after_their_first_batch(tmp_path: Path) -> None:
    lazy = torch.nn.Sequential(torch.nn.LazyLinear(2), torch.nn.LazyBatchNorm1d())
    with pytest.raises(UnsupportedTypeError, match=r"0\.weight") as caught:
        written({"model": lazy.state_dict()}, tmp_path)
    assert caught.value.hint
    lazy(torch.ones(2, 3))
    path = written({"model": lazy.state_dict()}, tmp_path)
    for way in WAYS:
        other = torch.nn.Sequential(torch.nn.LazyLinear(2), torch.nn.LazyBatchNorm1d())
        if way == "load_into":
            other(torch.ones(2, 3))
        resume(way, {"model": other}, path)
        assert alike(lazy.state_dict(), other.state_dict(), sharing=False) is None
        assert difference(lazy.eval()(torch.ones(2, 3)), other.eval()(torch.ones(2, 3))) is None


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_load_into_a_lazy_module_is_refused_or_makes_it(tmp_path: Path) -> None:
    saved = torch.nn.Linear(3, 2)
    path = written({"model": saved.state_dict()}, tmp_path)
    lazy = torch.nn.LazyLinear(2)
    try:
        load_into({"model": lazy}, path)
    except StateMismatchError as error:
        assert "weight" in str(error)  # noqa: PT017 - making it would be as right
    else:
        assert torch.equal(lazy.weight, saved.weight)


@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_module_and_its_prefix(way: str, tmp_path: Path) -> None:
    def make(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())

    compiled: Any = torch.compile(make(0), backend="eager")
    path = written({"model": compiled.state_dict()}, tmp_path)
    assert list(load(path)["model"]) == ["_orig_mod.0.weight", "_orig_mod.0.bias"]
    other: Any = torch.compile(make(1), backend="eager")
    resume(way, {"model": other}, path)
    assert alike(compiled.state_dict(), other.state_dict(), sharing=False) is None
    plain = make(2)
    with pytest.raises((StateMismatchError, RuntimeError), match="_orig_mod"):
        resume(way, {"model": plain}, path)


@pytest.mark.parametrize("way", WAYS)
def test_data_parallel(way: str, tmp_path: Path) -> None:
    wrapped = torch.nn.DataParallel(torch.nn.Linear(2, 2))
    path = written({"model": wrapped.state_dict()}, tmp_path)
    assert list(load(path)["model"]) == ["module.weight", "module.bias"]
    other = torch.nn.DataParallel(torch.nn.Linear(2, 2))
    resume(way, {"model": other}, path)
    assert alike(wrapped.state_dict(), other.state_dict(), sharing=False) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_scripted_module(way: str, tmp_path: Path) -> None:
    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        return torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)))

    first, other = make(0), make(1)
    first(torch.rand(4, 3))
    path = written({"model": first.state_dict()}, tmp_path)
    resume(way, {"model": other}, path)
    assert alike(first.state_dict(), other.state_dict(), sharing=False) is None
    with pytest.raises(UnsupportedTypeError, match="model"):
        through({"model": first})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_dynamically_quantized_module(tmp_path: Path) -> None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("torch has no quantized kernels here")

    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        quantization: Any = torch.ao.quantization
        return quantization.quantize_dynamic(
            torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)),
            {torch.nn.Linear},
            dtype=torch.qint8,
        )

    first, other = make(0), make(1)
    kept = load(written(first.state_dict(), tmp_path))
    assert alike(first.state_dict(), kept) is None
    other.load_state_dict(kept)
    inputs = torch.rand(5, 3)
    assert difference(first(inputs), other(inputs)) is None


def test_an_ensemble_of_stacked_modules(tmp_path: Path) -> None:
    models = [torch.nn.Linear(2, 3) for _ in range(4)]
    parameters, buffers = torch.func.stack_module_state(models)
    state = {"parameters": parameters, "buffers": buffers}
    path = written(state, tmp_path)
    assert alike(state, load(path)) is None
    target = {"parameters": {k: torch.zeros_like(v) for k, v in parameters.items()}, "buffers": {}}
    load_into(target, path)
    for name, value in parameters.items():
        assert torch.equal(value, target["parameters"][name])


@pytest.mark.parametrize("way", WAYS)
def test_an_average_kept_by_hand(way: str, tmp_path: Path) -> None:
    class Average:
        """No module: an object with a state dict, as many libraries have one."""

        def __init__(self, model: torch.nn.Module, decay: float) -> None:
            self.decay, self.updates = decay, 0
            self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

        def update(self, model: torch.nn.Module) -> None:
            self.updates += 1
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            for name, parameter in model.named_parameters():
                self.shadow[name].lerp_(parameter.detach(), 1 - decay)

        def state_dict(self) -> dict[str, Any]:
            return {"decay": self.decay, "updates": self.updates, "shadow": self.shadow}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.decay, self.updates = state["decay"], state["updates"]
            self.shadow = {name: value.clone() for name, value in state["shadow"].items()}

    def make(seed: int) -> tuple[Any, Any, Average]:
        torch.manual_seed(seed)
        model = torch.nn.Linear(3, 1)
        return model, torch.optim.SGD(model.parameters(), 0.01), Average(model, 0.99 - seed / 10)

    def go_on(parts: tuple[Any, Any, Average], first: int, last: int) -> None:
        for step in range(first, last):
            train(parts[0], parts[1], step, step + 1)
            parts[2].update(parts[0])

    first = make(0)
    go_on(first, 0, 3)
    names = ("model", "optimizer", "average")
    parts: list[Any] = list(first)
    path = written({n: part.state_dict() for n, part in zip(names, parts)}, tmp_path)
    other = make(1)
    resume(way, dict(zip(names, other)), path)
    go_on(first, 3, 6)
    go_on(other, 3, 6)
    assert difference(first[2].state_dict(), other[2].state_dict()) is None


def test_two_models_that_share_a_part(tmp_path: Path) -> None:
    def make() -> dict[str, torch.nn.Module]:
        body = torch.nn.Linear(2, 2)
        return {
            "one": torch.nn.Sequential(body, torch.nn.Linear(2, 1)),
            "two": torch.nn.Sequential(body, torch.nn.Linear(2, 3)),
        }

    first = make()
    path = written({name: model.state_dict() for name, model in first.items()}, tmp_path)
    other = make()
    load_into(dict(other), path)
    for name, model in first.items():
        assert alike(model.state_dict(), other[name].state_dict()) is None
    assert other["one"].get_parameter("0.weight") is other["two"].get_parameter("0.weight")
    untied = {"one": copy.deepcopy(first["one"].state_dict()), "two": first["two"].state_dict()}
    untied["one"]["0.weight"] += 1
    before = copy.deepcopy([model.state_dict() for model in other.values()])
    with pytest.raises(StateMismatchError, match=r"one/0\.weight") as caught:
        load_into(dict(other), written(untied, tmp_path))
    assert "two/0.weight" in str(caught.value)
    after = [model.state_dict() for model in other.values()]
    assert alike(before, after, sharing=False) is None
