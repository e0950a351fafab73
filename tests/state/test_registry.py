"""jsonckpt.register: what it takes, what it refuses, and what hostile JSON meets in it."""

from __future__ import annotations

import collections
import dataclasses
import enum
import threading
from collections import OrderedDict
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch

from jsonckpt._src.errors import FormatError, UnsupportedTypeError
from jsonckpt._src.format.json_text import Json
from jsonckpt._src.state import registry
from jsonckpt._src.state.references import references_in
from jsonckpt._src.state.registry import default_rules, register
from jsonckpt._src.state.tree import OMIT, Rules, decode_state, encode_state
from tests.support import FakeTensor, FakeTensors, difference


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", Rules.of([]))


class Color(enum.Enum):
    RED = 1
    GREEN = 2
    VERDE = 2  # noqa: PIE796


class Level(enum.IntEnum):
    LOW = 1


class Mode(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3


@dataclasses.dataclass
class Config:
    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    names: list[str] = dataclasses.field(default_factory=list)
    steps: int = dataclasses.field(init=False, default=0)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    value: Any
    doubled: Any = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubled", self.value * 2)


@dataclasses.dataclass
class Doubling:
    value: int

    def __post_init__(self) -> None:
        self.value *= 2


@dataclasses.dataclass
class WithInitVar:
    value: int
    extra: dataclasses.InitVar[int]


class Point(NamedTuple):
    x: Any
    y: Any = 0


Old = collections.namedtuple("Old", "a b")


class Vector:
    def __init__(self, tensor: Any, note: str) -> None:
        self.tensor, self.note = tensor, note


def encoded(state: object, tensors: FakeTensors | None = None) -> Json:
    return encode_state(state, tensors or FakeTensors(), rules=default_rules())


def decoded(value: Json, tensors: FakeTensors | None = None) -> Any:
    return decode_state(value, tensors or FakeTensors(), rules=default_rules())


def check(state: object, value: Json) -> None:
    tensors = FakeTensors()
    assert encoded(state, tensors) == value
    assert difference(decoded(value, tensors), state) is None


def test_enums() -> None:
    for cls in (Color, Level, Mode):
        assert register(cls) is cls
    check(Color.RED, {"$Color": "RED"})
    check(Color.VERDE, {"$Color": "GREEN"})
    check({Level.LOW: [Level.LOW]}, {"$dict": [[{"$Level": "LOW"}, [{"$Level": "LOW"}]]]})
    check([Mode.READ, Mode.BOTH, Mode(0)], [{"$Mode": "READ"}, {"$Mode": "BOTH"}, {"$Mode": 0}])
    bad: list[Json] = ["BLUE", 1, "__class__", None, ["RED"]]
    for each in bad:
        with pytest.raises(
            FormatError, match=r"state '/c/\$Color': no '.*Color'.*RED, GREEN, VERDE"
        ):
            decoded({"c": {"$Color": each}})
    with pytest.raises(FormatError):
        decoded({"$Mode": 64})


def test_dataclasses() -> None:
    for cls in (Config, Frozen, Doubling):
        register(cls)
    config = Config(0.1, names=["a"])
    config.steps = 7
    check(
        config,
        {"$Config": {"lr": 0.1, "betas": {"$tuple": [0.9, 0.95]}, "names": ["a"], "steps": 7}},
    )
    check(Frozen(3), {"$Frozen": {"value": 3, "doubled": 6}})
    changed = Frozen(3)
    object.__setattr__(changed, "doubled", "other")
    check(changed, {"$Frozen": {"value": 3, "doubled": "other"}})
    check(Doubling(2), {"$Doubling": {"value": 4}})
    bad: list[Json] = [{}, [], None, {"lr": 1}, {"lr": 1, "x": 2}, {"$dict": [[1, 2]]}]
    for each in bad:
        with pytest.raises(
            FormatError, match=r"state \S*\$Config': .*expected the fields lr, betas"
        ):
            decoded({"$Config": each})


def test_a_dataclass_whose_constructor_takes_more_needs_functions() -> None:
    with pytest.raises(TypeError, match="takes 'extra', which is not a field"):
        register(WithInitVar)
    register(
        WithInitVar,
        to_json=lambda each: each.value,
        from_json=lambda value: WithInitVar(value, 0),
    )
    check(WithInitVar(3, 0), {"$WithInitVar": 3})


def test_namedtuples() -> None:
    register(Point)
    register(Old, "$old")
    check(
        Point(1, Old((), None)),
        {"$Point": {"x": 1, "y": {"$old": {"a": {"$tuple": []}, "b": None}}}},
    )
    with pytest.raises(FormatError, match="expected the fields x, y, found x"):
        decoded({"$Point": {"x": 1}})
    other = collections.namedtuple("Other", "x y")  # type: ignore[name-match]
    with pytest.raises(UnsupportedTypeError):
        encoded(other(1, 2))


def test_functions_and_names_of_tensors() -> None:
    register(
        Vector,
        "my.Vector-1",
        to_json=lambda each: {"tensor": each.tensor, "note": each.note},
        from_json=lambda value: Vector(**value),
    )
    tensors = FakeTensors()
    tensor = FakeTensor()
    value = encoded({"v": [Vector(tensor, "x")]}, tensors)
    assert value == {"v": [{"$my.Vector-1": {"tensor": {"$tensor": "/v/0/tensor"}, "note": "x"}}]}
    assert [name for name, _, _ in references_in(value)] == ["/v/0/tensor"]
    result = decoded(value, tensors)["v"][0]
    assert type(result) is Vector
    assert result.tensor is tensor
    # A part of what from_json needs is missing: the whole is left out.
    assert decoded(value, fake_tensors_with(tensors)) == {"v": []}
    assert decoded({"$my.Vector-1": {"$tensor": "/v/0/tensor"}}, fake_tensors_with(tensors)) is OMIT


def fake_tensors_with(tensors: FakeTensors) -> FakeTensors:
    other = FakeTensors(omit=lambda _: True)
    other.records = tensors.records
    return other


def test_errors_of_the_functions_say_where() -> None:
    def refuse(_: object) -> Any:
        raise KeyError("gone\x1b")

    register(Vector, to_json=refuse, from_json=refuse)
    with pytest.raises(UnsupportedTypeError, match=r"state '/a/0': .*Vector.*KeyError") as caught:
        encoded({"a": [Vector(1, "")]})
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(FormatError, match=r"state '/a/0/\$Vector': no .*Vector.*gone") as other:
        decoded({"a": [{"$Vector": 1}]})
    assert isinstance(other.value.__cause__, KeyError)
    assert "\x1b" not in str(other.value)


class Liar:
    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")


def test_objects_that_cannot_be_compared_or_hashed() -> None:
    register(Liar, to_json=lambda _: 0, from_json=lambda _: Liar())
    register(Vector, to_json=lambda _: 0, from_json=lambda _: np.zeros(2))  # type: ignore[arg-type,return-value]
    with pytest.raises(FormatError, match="cannot be compared: no"):
        decoded({"$set": [{"$Liar": 0}, {"$Liar": 0}]})
    with pytest.raises(FormatError, match="neither a key nor an element"):
        decoded({"$dict": [[{"$Vector": 0}, 1]]})


def test_a_cycle_through_a_registered_type() -> None:
    register(Vector, to_json=lambda each: {"t": [each.tensor]}, from_json=lambda _: Vector(0, ""))
    vector = Vector(None, "")
    vector.tensor = vector
    with pytest.raises(UnsupportedTypeError, match="contains itself at '/t/0'"):
        encoded(vector)


def test_what_is_refused() -> None:
    def one(_: Any) -> Any:
        return None

    for builtin in (
        int,
        dict,
        tuple,
        bool,
        OrderedDict,
        np.ndarray,
        np.float32,
        torch.Tensor,
        torch.Size,
    ):
        with pytest.raises(ValueError, match="has a rule already"):
            register(builtin, "mine", one, one)
    for tag in ("", "$", "1a", "a b", "a/b", "é", "a" * 65, "$$a", "a\n"):
        with pytest.raises(ValueError, match="not of the form"):
            register(Vector, tag, one, one)
    for tag in ("tensor", "$tuple", "dict", "ndarray", "dtype", "quantized"):
        with pytest.raises(ValueError, match="belongs to the format"):
            register(Vector, tag, one, one)
    with pytest.raises(TypeError, match="takes a class"):
        register(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="needs to_json= and from_json="):
        register(Vector)
    with pytest.raises(TypeError, match="together"):
        register(Vector, to_json=one)
    with pytest.raises(TypeError, match="together"):
        register(Color, from_json=one)
    register(Color, "thing")
    with pytest.raises(ValueError, match=r"registered for tests\.state\.test_registry\.Color"):
        register(Vector, "$thing", one, one)
    assert encoded(Color.RED) == {"$thing": "RED"}


def test_the_default_tag_leaves_out_where_a_class_was_made() -> None:
    class Local(enum.Enum):
        A = 1

    register(Local)
    tag = "$test_the_default_tag_leaves_out_where_a_class_was_made.Local"
    assert encoded(Local.A) == {tag: "A"}


def test_registering_again() -> None:
    register(Color, "first")
    register(Color, "second")
    assert encoded(Color.RED) == {"$second": "RED"}
    assert decoded([{"$first": "RED"}, {"$second": "RED"}]) == [Color.RED, Color.RED]
    register(Color, "second", lambda each: each.value, Color)
    check(Color.RED, {"$second": 1})
    assert decoded({"$first": 1}) is Color.RED


def test_a_class_defined_again_replaces_the_old_one() -> None:
    def define() -> type[enum.Enum]:
        class Again(enum.Enum):
            A = 1

        return register(Again, "again")

    first, second = define(), define()
    assert first is not second
    assert decoded({"$again": "A"}) is second["A"]
    assert encoded(second["A"]) == {"$again": "A"}
    with pytest.raises(UnsupportedTypeError):
        encoded(first["A"])


def test_a_subclass_is_not_covered() -> None:
    class Sub(Config):
        pass

    register(Config)
    with pytest.raises(UnsupportedTypeError, match=r"jsonckpt\.register\(Sub\)"):
        encoded(Sub(0.1))


def test_the_rules_are_those_at_the_time_of_the_call() -> None:
    before = default_rules()
    register(Color)
    with pytest.raises(
        FormatError, match=r"unknown tag '\$Color'.*jsonckpt\.register\(cls, 'Color'"
    ):
        decode_state({"$Color": "RED"}, FakeTensors(), rules=before)
    assert decoded({"$Color": "RED"}) is Color.RED


def _enum(name: str) -> type[enum.Enum]:
    make: Any = enum.Enum
    return cast("type[enum.Enum]", make(name, "A B"))


def test_threads() -> None:
    classes = [_enum(f"Each{number}") for number in range(200)]

    def work(part: int) -> None:
        for cls in classes[part::4]:
            register(cls)
            default_rules()

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = [cls["A"] for cls in classes]
    assert decoded(encoded(state)) == state
