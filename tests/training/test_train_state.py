"""``TrainState``: what it takes, how it is saved, and that a restore does all or nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt import ArgumentError, StateMismatchError, TrainState, training
from tests.support import difference, same


@pytest.fixture(autouse=True)
def _keep_generators() -> Iterator[None]:
    with training.fork_rng():
        yield


NUMBERS = torch.utils.data.TensorDataset(torch.ones(1))


class Part:
    """An object with a state, which takes entries out of what it is given."""

    def __init__(self, value: Any = 0) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state.pop("value")


def net(seed: int = 0, width: int = 3) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Linear(width, 1))


def trained(seed: int = 0, **parts: Any) -> TrainState:
    model = parts.pop("model") if "model" in parts else net(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.randn(2, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return TrainState(model=model, optimizer=optimizer, **parts)


Restore = Callable[..., object]


@pytest.fixture(params=["file", "memory"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Restore:
    """Saves one state and restores it into another."""

    def through_file(one: TrainState, two: TrainState, **options: Any) -> object:
        jsonckpt.save(one.state_dict(), tmp_path / "c.json")
        return two.restore(tmp_path / "c.json", **options)

    def through_memory(one: TrainState, two: TrainState, **options: Any) -> object:
        two.load_state_dict(one.state_dict(), **options)
        return None

    return through_file if request.param == "file" else through_memory


def test_what_is_saved() -> None:
    state = trained(scheduler=Part(3), scaler=None, extra={"epoch": 2})
    saved = state.state_dict()
    assert list(saved) == ["model", "optimizer", "scheduler", "accumulation_step", "extra", "rng"]
    assert list(saved["model"]) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert saved["scheduler"] == {"value": 3}
    assert saved["extra"] == {"epoch": 2}
    assert saved["accumulation_step"] == 0
    assert same(saved["rng"], training.rng_state())
    assert repr(state) == "<TrainState: model: Sequential, optimizer: Adam, scheduler: Part>"
    assert state["scheduler"].value == 3


def test_lists_and_dicts_of_parts(put: Restore) -> None:
    def build(seed: int) -> TrainState:
        one, two = net(seed), net(seed + 1, width=4)
        optimizers = {
            "one": torch.optim.SGD(one.parameters(), lr=float(seed), momentum=0.9),
            "two": torch.optim.AdamW(two.parameters(), lr=float(seed)),
        }
        return TrainState(models=[one, two], optimizers=optimizers, others=(Part(seed), Part(seed)))

    first, second = build(1), build(7)
    put(first, second)
    assert same(second.state_dict(), first.state_dict())
    assert second["others"][1].value == 1


def test_tensors_are_filled_in_place(put: Restore) -> None:
    one, two = trained(1), trained(2)
    before = [item.data_ptr() for item in two["model"].parameters()]
    moments = [entry["exp_avg"].data_ptr() for entry in two["optimizer"].state.values()]
    put(one, two)
    assert [item.data_ptr() for item in two["model"].parameters()] == before
    after = [entry["exp_avg"].data_ptr() for entry in two["optimizer"].state.values()]
    assert after == moments
    assert same(one.state_dict(), two.state_dict())


def test_extra_goes_into_the_same_dictionary(put: Restore) -> None:
    mine: dict[str, Any] = {"epoch": 0, "new": "default"}
    one = TrainState(extra={"epoch": 4, "best": torch.ones(2)})
    two = TrainState(extra=mine)
    put(one, two)
    assert two.extra is mine
    assert same(mine, {"epoch": 4, "new": "default", "best": torch.ones(2)})
    assert TrainState().extra == {}


def test_generators(put: Restore) -> None:
    def build(seed: int) -> TrainState:
        return TrainState(
            a=torch.Generator().manual_seed(seed),
            b=np.random.default_rng(seed),
            c=np.random.RandomState(seed),
            d=random.Random(seed),
        )

    def draw(state: TrainState) -> list[float]:
        own = torch.rand((), generator=state["a"]).item()
        others = [state["b"].random(), state["c"].random_sample(), state["d"].random()]
        return [own, *others, random.random(), float(np.random.rand()), torch.rand(()).item()]

    one, two = build(1), build(2)
    draw(one)
    put(one, two)
    second = draw(two)
    two_again = build(3)
    put(one, two_again)  # the global ones have moved on
    with training.fork_rng():
        expected = draw(one)
    assert second[:4] == expected[:4]
    assert draw(two_again) == expected


def test_without_rng(put: Restore) -> None:
    one, two = TrainState(part=Part(1), rng=True), TrainState(part=Part(2), rng=False)
    assert "rng" not in two.state_dict()
    state = training.rng_state()
    random.random()
    moved = training.rng_state()
    put(one, two)
    assert same(training.rng_state(), moved)
    assert not same(state, moved)
    with pytest.raises(StateMismatchError, match="/rng"):
        put(two, one)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda model: model,
    "parallel": torch.nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "both": lambda model: torch.compile(torch.nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("one", WRAPPERS)
@pytest.mark.parametrize("two", WRAPPERS)
def test_wrappers_of_the_whole_model(put: Restore, one: str, two: str) -> None:
    first, second = trained(1, model=WRAPPERS[one](net(1))), trained(2, model=WRAPPERS[two](net(2)))
    put(first, second)
    assert same(first.state_dict(), second.state_dict())
    assert list(first.state_dict()["model"]) == list(net().state_dict())


class Named(torch.nn.Module):
    """A model whose parts have the names that wrappers give, and a wrapper inside."""

    def __init__(self, seed: int, wrap: Callable[[Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.module = torch.nn.Linear(2, 2)
        self.body = wrap(net(seed))
        self._orig_mod = torch.nn.BatchNorm1d(2)


@pytest.mark.parametrize("one", WRAPPERS)
@pytest.mark.parametrize("two", WRAPPERS)
def test_wrappers_inside_of_the_model(put: Restore, one: str, two: str) -> None:
    first = TrainState(model=Named(1, WRAPPERS[one]))
    second = TrainState(model=Named(2, WRAPPERS[two]))
    put(first, second)
    saved = first.state_dict()["model"]
    assert same(saved, second.state_dict()["model"])
    assert {"module.weight", "body.0.weight", "_orig_mod.running_mean"} <= saved.keys()
    assert {"", "module", "body", "body.0", "_orig_mod"} <= saved._metadata.keys()


def test_everything_that_differs_is_in_one_error(put: Restore) -> None:
    one = trained(1, scheduler=Part(1), old=Part(), metrics={"a": Part(), "b": Part()})
    two = TrainState(
        model=net(2, width=5),
        optimizer=torch.optim.SGD(net(2).parameters(), lr=0.1, momentum=0.9),
        scheduler=Part(2),
        ema=net(3),
        empty=torch.nn.ReLU(),
        metrics={"a": Part(5)},
        extra={"epoch": 9},
    )
    before, generators = two.state_dict(), training.rng_state()
    weights = {name: item.clone() for name, item in before["model"].items()}
    with pytest.raises(StateMismatchError, match="nothing has been changed") as caught:
        put(one, two)
    assert set(caught.value.missing) == {"/ema", "/empty", "/extra"}
    assert set(caught.value.unexpected) == {"/old", "/metrics/b"}
    text = str(caught.value)
    assert "/model/0.weight" in text
    assert "another kind of optimizer" in text
    assert "skip=" in text
    assert same(training.rng_state(), generators)
    assert all(torch.equal(item, weights[name]) for name, item in two["model"].state_dict().items())
    assert (two["scheduler"].value, two["metrics"]["a"].value) == (2, 5)


def test_skipped_parts_stay(put: Restore) -> None:
    one, two = trained(1, scheduler=Part(1), old=Part()), trained(2, scheduler=Part(2), new=Part(3))
    generators = training.rng_state()
    put(one, two, skip=("scheduler", "old", "new", "rng"))
    assert two["scheduler"].value == 2
    assert same(training.rng_state(), generators)
    assert same(one.state_dict()["optimizer"], two.state_dict()["optimizer"])
    only = TrainState(model=net(5))
    put(one, only, skip=["optimizer", "scheduler", "old"])
    assert same(one.state_dict()["model"], only.state_dict()["model"])


def test_a_refusal_takes_all_back(put: Restore) -> None:
    """Also of objects that were loaded before, and of the generators."""
    one = trained(1, first=Part(1), second=Part(1), third=Part(1), extra={"epoch": 1})
    extra = {"epoch": 2, "mine": 3}
    two = trained(2, first=Part(2), second=Refusing(2), third=Part(2), extra=extra)
    before = {name: item.clone() for name, item in two["model"].state_dict().items()}
    generators = training.rng_state()
    with pytest.raises(StateMismatchError, match="/second: ValueError: 'not this one'"):
        put(one, two)
    assert [two[name].value for name in ("first", "second", "third")] == [2, 2, 2]
    assert extra == {"epoch": 2, "mine": 3}
    assert same(training.rng_state(), generators)
    assert same(dict(two["model"].state_dict()), before)


class Refusing(Part):
    """Changes itself, then refuses what is not its own state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]
        if self.value != 2:
            raise ValueError("not this one")


class Dependent:
    """A scheduler that reads its optimizer when it is loaded."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.seen = optimizer, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, _: dict[str, Any]) -> None:
        self.seen = self.optimizer.param_groups[0]["lr"]


def test_a_scheduler_is_loaded_after_its_optimizer(put: Restore) -> None:
    def build(rate: float) -> TrainState:
        optimizer = torch.optim.SGD(net().parameters(), lr=rate)
        return TrainState(scheduler=Dependent(optimizer), optimizer=optimizer)

    one, two = build(0.5), build(0.25)
    put(one, two)
    assert two["scheduler"].seen == 0.5


def test_schedulers_of_torch_that_change_what_they_are_given(put: Restore) -> None:
    def build() -> TrainState:
        optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.1, 1.0, step_size_up=3)
        return TrainState(optimizer=optimizer, scheduler=scheduler)

    one, two = build(), build()
    for _ in range(4):
        one["optimizer"].step()
        one["scheduler"].step()
    put(one, two)
    assert difference(one.state_dict(), two.state_dict()) is None


def test_gradients_within_an_accumulation(put: Restore) -> None:
    one, two = trained(1), trained(2)
    one["model"](torch.ones(1, 2)).sum().backward()
    two["model"](torch.ones(3, 2)).sum().backward()
    assert "gradients" not in one.state_dict()
    one.accumulation_step = 1
    assert list(one.state_dict()["gradients"]) == [f"/model/{n}" for n in one["model"].state_dict()]
    put(one, two)
    assert two.accumulation_step == 1
    for mine, other in zip(one["model"].parameters(), two["model"].parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)
        assert mine.grad is not other.grad
    one.accumulation_step = 0
    put(one, two)
    assert two.accumulation_step == 0
    assert all(item.grad is None for item in two["model"].parameters())


def test_frozen_parameters() -> None:
    model = net()
    model[0].requires_grad_(False)  # type: ignore[index]
    state = TrainState(model=torch.nn.DataParallel(model), more=[net().requires_grad_(False)])
    expected = ["/model/0.weight", "/model/0.bias"]
    assert state.frozen() == expected + [f"/more/0/{name}" for name in net().state_dict()]
    assert set(state.frozen()) < set(pointers(state.state_dict()))


def pointers(value: Any, place: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from pointers(item, f"{place}/{key}")
    elif isinstance(value, list):
        for key, item in enumerate(value):
            yield from pointers(item, f"{place}/{key}")
    else:
        yield place


def test_a_saved_prefix_can_be_stripped(tmp_path: Path) -> None:
    """A checkpoint of a wrapped model that was saved without a ``TrainState``."""
    model = torch.nn.DataParallel(net(1))
    jsonckpt.save({"model": model.state_dict(), "step": 3}, tmp_path / "c.json")
    state = TrainState(model=net(2), rng=False)
    with pytest.raises(StateMismatchError, match=r"strip_prefix='module\.'"):
        state.restore(tmp_path / "c.json")
    state.restore(tmp_path / "c.json", strip_prefix="module.")
    assert same(dict(state["model"].state_dict()), dict(model.module.state_dict()))


def test_plain_values_beside_the_parts_are_left_alone(tmp_path: Path) -> None:
    one, two = TrainState(part=Part(1)), TrainState(part=Part(2))
    jsonckpt.save({**one.state_dict(), "step": 3, "note": None}, tmp_path / "c.json")
    two.restore(tmp_path / "c.json")
    assert two["part"].value == 1
    jsonckpt.save({**one.state_dict(), "more": {"a": 1}}, tmp_path / "c.json")
    with pytest.raises(StateMismatchError, match="/more"):
        two.restore(tmp_path / "c.json")


def test_damage_is_an_error(tmp_path: Path) -> None:
    jsonckpt.save(trained(1).state_dict(), tmp_path / "c.json")
    data = bytearray((tmp_path / "c.json").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "c.json").write_bytes(data)
    with pytest.raises(jsonckpt.JsonckptError):
        trained(2).restore(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "model is '3', which has no state_dict"),
        (
            {"loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(1)))},
            "no state_dict",
        ),
        ({"parts": [Part(), "x"]}, "parts/1 is 'x'"),
        ({"rng": "all"}, "rng must be True or False"),
        ({"extra": [1]}, "extra must be a dictionary or None, not 'list'"),
        ({"gradients": Part()}, "'gradients' cannot be the name of a part"),
        ({"$x": Part()}, "cannot be the name"),
        ({"per_rank": "model", "model": net()}, "per_rank: 'model' is no part, or a model"),
        ({"per_rank": ("loader",)}, "per_rank: 'loader' is no part"),
        ({"accumulation_step": -1}, "accumulation_step"),
        ({"accumulation_step": "1"}, "accumulation_step"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message.replace("(", r"\(")):
        TrainState(**arguments)


def test_arguments_of_a_restore_are_checked(tmp_path: Path) -> None:
    state = trained(1)
    jsonckpt.save(state.state_dict(), tmp_path / "c.json")
    with pytest.raises(ArgumentError, match="state must be a dictionary"):
        state.load_state_dict([1])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="skip: 'shedule' is"):
        state.restore(tmp_path / "c.json", skip="shedule")
    with pytest.raises(TypeError, match="map_location"):
        state.restore(tmp_path / "c.json", map_location="cpu")


def test_generators_of_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has an MPS device."""
    from jsonckpt._src.training import rng

    device = torch.Generator().manual_seed(5)

    def put(state: torch.Tensor) -> None:
        device.set_state(state)

    monkeypatch.setitem(rng._OTHERS, "mps", (lambda: True, device.get_state, put))
    state = training.rng_state()
    first = torch.rand(3, generator=device)
    training.set_rng_state(state)
    assert torch.equal(torch.rand(3, generator=device), first)

    moved = training.rng_state()
    with pytest.raises(StateMismatchError, match="'mps' rejects"):
        training.set_rng_state({**state, "mps": torch.zeros(3)})
    assert same(training.rng_state(), moved)
    monkeypatch.undo()
    training.set_rng_state(state)  # a machine without one
    assert "mps" not in training.rng_state()


class _Stubborn(Part):
    """Refuses every state, also that of before."""

    def load_state_dict(self, _: dict[str, Any]) -> None:
        raise ValueError("never")


def test_an_object_that_cannot_be_taken_back_is_named_and_the_others_are(put: Restore) -> None:
    one = trained(1, first=Part(1), second=Part(1), third=Part(1))
    two = trained(2, first=Part(2), second=_Stubborn(2), third=Part(2))
    with pytest.raises(StateMismatchError, match="all is as before but for '/second'") as caught:
        put(one, two)
    assert "/second: ValueError: 'never'" in str(caught.value)
    assert [two[name].value for name in ("first", "third")] == [2, 2]


class _Interrupted(Part):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["value"] == 1:
            raise KeyboardInterrupt
        super().load_state_dict(state)


def test_ctrl_c_while_objects_are_loaded_takes_them_back(put: Restore) -> None:
    one = trained(1, first=Part(1), second=Part(1))
    two = trained(2, first=Part(2), second=_Interrupted(2))
    with pytest.raises(KeyboardInterrupt):
        put(one, two)
    assert two["first"].value == 2


class _Once(Dependent):
    """Takes a state, and not once more."""

    taken = False

    def load_state_dict(self, _: dict[str, Any]) -> None:
        if self.taken:
            raise ValueError("twice")
        self.taken = True


def test_a_refusal_after_the_tensors_is_an_error_of_ours(put: Restore) -> None:
    one, two = trained(1), trained(2)
    parts = {"model": one["model"], "optimizer": one["optimizer"]}
    saved = TrainState(**parts, s=Dependent(one["optimizer"]))
    parts = {"model": two["model"], "optimizer": two["optimizer"]}
    with pytest.raises(StateMismatchError, match="partly overwritten"):
        put(saved, TrainState(**parts, s=_Once(two["optimizer"])))


@pytest.mark.parametrize("step", ["x", -1, 1.5, None, True, [1], {"a": 1}, torch.ones(1), 2**63])
def test_a_saved_accumulation_step_is_checked(put: Restore, step: Any) -> None:
    one, two = trained(1), trained(2)
    state = {**one.state_dict(), "accumulation_step": step}
    before = {name: item.clone() for name, item in two["model"].state_dict().items()}
    with pytest.raises(StateMismatchError, match="accumulation_step"):
        put(_Saved(state), two)
    assert two.accumulation_step == 0
    assert same(dict(two["model"].state_dict()), before)


@pytest.mark.parametrize(
    "gradients",
    [
        5,
        [],
        torch.ones(2),
        {"/model/0.bias": 5},
        {"/model/0.bias": [torch.ones(3)]},
        {"/model/0.bias": torch.ones(4)},
        {"/model/0.bias": torch.ones(3, dtype=torch.float64)},
        {"/model/0.bias": torch.ones(3, dtype=torch.int64)},
        {"/model/nothing": torch.ones(3)},
    ],
)
def test_saved_gradients_are_checked(put: Restore, gradients: Any) -> None:
    one, two = trained(1), trained(2)
    before = {name: item.clone() for name, item in two["model"].state_dict().items()}
    with pytest.raises(StateMismatchError, match="/gradients"):
        put(_Saved({**one.state_dict(), "gradients": gradients}), two)
    assert same(dict(two["model"].state_dict()), before)


class _Saved:
    """A state that somebody has changed."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        return self._state


def test_parts_that_contain_themselves() -> None:
    parts: dict[str, Any] = {}
    parts["again"] = parts
    with pytest.raises(ArgumentError, match="contain themselves"):
        TrainState(parts=parts)
