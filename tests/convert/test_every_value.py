"""Every type of value into every format: it comes back, or is refused in our own words."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import jsonckpt
from jsonckpt._src.convert import api
from jsonckpt._src.convert.options import FORMATS
from jsonckpt._src.convert.source import Source
from jsonckpt._src.errors import StateMismatchError, UnsupportedTypeError
from jsonckpt.convert import ConvertResult, convert
from tests.states import LITERAL, shown_id
from tests.support import difference

SUFFIX = {"json": ".json", "json.zst": ".json.zst", "pt": ".pt"}
#: Values without bytes.
BARE: dict[str, Any] = {
    "empty": torch.empty(0),
    "empty rows": torch.empty(2, 0),
    "empty bool": torch.empty(0, dtype=torch.bool),
    "empty parameter": torch.nn.Parameter(torch.empty(0)),
    "empty sparse": torch.empty(2, 0).to_sparse(),
    "turned": torch.empty(3, 0, 2).permute(2, 0, 1),
    "device": torch.device("cpu"),
    "dtype": torch.bfloat16,
    "layout": torch.strided,
    "size": torch.Size([0]),
    "tuple": (),
}


@pytest.mark.parametrize("place", ["first", "last", "alone", "listed"])
@pytest.mark.parametrize("value", BARE)
def test_values_without_bytes_are_compared(value: str, place: str, tmp_path: Path) -> None:
    bare, full = BARE[value], torch.arange(600.0)
    states = {
        "first": {"a": bare, "w": full},
        "last": {"w": full, "a": bare},
        "alone": {"a": bare},
        "listed": [bare, full, bare],
    }
    torch.save(states[place], tmp_path / "in.pt")
    jsonckpt.save(states[place], tmp_path / "in.json")
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("in.pt", "dir", {}),
        ("in.json", "pt", {}),
        ("in.pt", "json.zst", {}),
        ("in.json", "json", {"dtype": "float16"}),
    ]
    for source, to, options in ways:
        target = tmp_path / f"o{SUFFIX.get(to, '')}"
        result = convert(tmp_path / source, target, to=to, test_load=True, **options)  # type: ignore[arg-type]
        assert result.comparison is not None
        assert not result.comparison.differences


@pytest.mark.parametrize("number", range(len(LITERAL)), ids=[shown_id(s) for s, _ in LITERAL])
def test_every_type_comes_back_or_is_refused(number: int, tmp_path: Path) -> None:
    state = {"x": LITERAL[number][0], "w": torch.ones(3)}
    jsonckpt.save(state, tmp_path / "in.json")
    for to in ("json", "pt", "safetensors", "legacy-json"):
        target = tmp_path / f"o{SUFFIX.get(to, f'.{to}')}"
        try:
            result = convert(tmp_path / "in.json", target, to=to, test_load=True)
        except UnsupportedTypeError as error:
            refused = str(error)
        except StateMismatchError:
            # torch.save pickles with protocol 2, which loses folds and the order of bytes.
            assert to == "pt"
            assert difference(pickle.loads(pickle.dumps(state["x"], 2)), state["x"])
            continue
        else:
            assert result.comparison is not None
            assert not result.comparison.differences
            continue
        assert to in ("pt", "legacy-json"), refused
        assert "/x" in refused or to == "pt"
        assert not target.exists()


class Function(torch.Tensor):
    """Its own operations fail, too."""

    @classmethod
    def __torch_function__(cls, *_: Any) -> Any:
        raise ValueError("an error of the user's class")


class Wrapper(torch.Tensor):
    """Like DTensor or the tensors of torchao: no memory, only parts."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapper:
        made: Wrapper = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        return made

    def __init__(self, inner: torch.Tensor) -> None:
        self.part = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["part"], None

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise NotImplementedError("no operation")


def _nested(layout: torch.layout) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)


def _fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.ones(3)


def _freed() -> torch.Tensor:
    tensor = torch.ones(3)
    tensor.untyped_storage().resize_(0)
    return tensor


def _attribute() -> torch.Tensor:
    tensor = torch.ones(3)
    tensor.mine = 1  # type: ignore[attr-defined]
    return tensor


#: Tensors that no format but ``.pt`` holds, and words of the error.
ODD: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "nested": (lambda: _nested(torch.strided), "layout nested"),
    "jagged": (lambda: _nested(torch.jagged), "NestedTensor"),
    "lazy": (lambda: torch.nn.LazyLinear(3).weight, "has no shape yet"),
    "lazy buffer": (torch.nn.parameter.UninitializedBuffer, "has no shape yet"),
    "function": (lambda: torch.ones(2).as_subclass(Function), "subclass"),
    "wrapper": (lambda: Wrapper(torch.ones(2)), "subclass"),
    "meta": (lambda: torch.ones(3, device="meta"), "has no data"),
    "fake": (_fake, "FakeTensor"),
    "freed": (_freed, "memory was freed"),
    "zero": (lambda: torch._efficientzerotensor(3), "has no memory"),
    "attribute": (_attribute, "attribute 'mine'"),
}


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Converts a state that is in memory."""
    (tmp_path / "in").touch()

    def run(state: Any, to: Any, **options: Any) -> ConvertResult:
        monkeypatch.setattr(api, "read", lambda *_: Source(state, "a test", 1))
        target = tmp_path / f"o{SUFFIX.get(to, '')}"
        return convert(tmp_path / "in", target, to=to, overwrite=True, **options)

    yield run
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("to", [to for to in FORMATS if to != "pt"])
def test_odd_tensors_are_refused_as_a_save_refuses_them(
    kind: str, to: str, given: Callable[..., Any], tmp_path: Path
) -> None:
    make, words = ODD[kind]
    state = {"model": {"a/b": make(), "w": torch.ones(3)}}
    for options in ({}, {"dry_run": True}, {"test_load": True}):
        with pytest.raises(UnsupportedTypeError, match=words) as caught:
            given(state, to, **options)
        assert caught.value.tensor == "/model/a~1b"
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_in_a_pt(kind: str, given: Callable[..., Any]) -> None:
    state = {"model": {"odd": ODD[kind][0](), "w": torch.ones(3)}}
    for options in ({}, {"dry_run": True}, {"dtype": "bfloat16"}, {"unsafe_pickle": True}):
        try:
            result = given(state, "pt", test_load=True, **options)
        except UnsupportedTypeError as error:
            refused = error
        else:
            assert "/model/odd" in [name for name, _, _ in result.tensors]
            continue
        assert refused.tensor == "/model/odd" or "--unsafe-pickle" in str(refused)


@pytest.mark.parametrize("to", ["safetensors", "legacy-json"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.ones(4, dtype=torch.uint8).view(torch.bits16),
        lambda: torch.ones(1, dtype=torch.uint8).view(torch.bits8),
    ],
    ids=["sparse", "bits16", "bits8"],
)
def test_what_a_format_lacks_is_refused_in_a_dry_run_too(
    to: str, make: Callable[[], torch.Tensor], given: Callable[..., Any]
) -> None:
    for options in ({}, {"dry_run": True}):
        with pytest.raises(UnsupportedTypeError, match="odd") as caught:
            given({"w": torch.ones(2), "odd": make()}, to, **options)
        assert "cannot" in str(caught.value)


def test_sparse_tensors_without_strides_are_compared(given: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = {"csr": torch.eye(3).to_sparse_csr(), "w": torch.ones(3)}
    for to in ("dir", "pt"):
        assert given(state, to, test_load=True).comparison.differences == []


@pytest.mark.parametrize("to", FORMATS)
def test_names_that_json_cannot_hold(to: str, given: Callable[..., Any]) -> None:
    state = {"a\ud800": torch.ones(2), "b": torch.ones(2)}
    if to in ("safetensors", "legacy-json"):
        with pytest.raises(UnsupportedTypeError, match="lone surrogate"):
            given(state, to)
    else:
        assert given(state, to, test_load=True).comparison.differences == []


def test_a_state_without_tensors(given: Callable[..., Any]) -> None:
    for to in ("safetensors", "legacy-json"):
        for options in ({}, {"dry_run": True}):
            with pytest.raises(UnsupportedTypeError, match="there is no tensor to write"):
                given({"epoch": 3}, to, **options)


# --- classes of users ---------------------------------------------------------------------------


class Meter:
    """Works with its tensor when it is made."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.mean = float(values.detach().mean())
        self.listed = values.tolist()


class Sub(torch.Tensor):
    """A registered tensor class."""


jsonckpt.register(Meter, "EveryMeter", lambda m: {"values": m.values}, lambda d: Meter(d["values"]))
jsonckpt.register(
    Sub, "EverySub", lambda t: t.as_subclass(torch.Tensor), lambda t: t.as_subclass(Sub)
)


def test_registered_classes_get_real_tensors(tmp_path: Path) -> None:
    tied = torch.arange(4.0)
    state = {
        "meter": Meter(tied),
        "row": Meter(torch.arange(9.0)[2:5]),
        "list": [Meter(torch.nn.Parameter(torch.ones(2)))],
        "sub": torch.ones(3).as_subclass(Sub),
        "w": tied,
    }
    jsonckpt.save(state, tmp_path / "a")
    with jsonckpt.open(tmp_path / "a") as checkpoint:
        lazy = checkpoint.state()
    assert lazy["meter"].mean == 1.5
    assert lazy["row"].listed == [2.0, 3.0, 4.0]
    assert isinstance(lazy["list"][0].values, torch.nn.Parameter)
    assert type(lazy["sub"]) is Sub
    assert lazy["w"].name == "/w"  # still not read
    for to in ("dir", "json", "json.zst"):
        target = tmp_path / f"o{SUFFIX.get(to, '')}"
        result = convert(tmp_path / "a", target, to=to, test_load=True)
        assert result.comparison is not None
        assert result.comparison.tensors >= 4
        assert result.not_compared == []


def test_a_difference_in_a_registered_object_is_seen(
    given: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jsonckpt._src.convert.read import read_back as honest

    def damaged(*args: Any) -> Any:
        state, metadata = honest(*args)
        state["meter"].values[1] += 1
        return state, metadata

    monkeypatch.setattr(api, "read_back", damaged)
    with pytest.raises(StateMismatchError, match="'/meter/values': 1 of 4 elements differ"):
        given({"meter": Meter(torch.arange(4.0))}, "dir", test_load=True)
