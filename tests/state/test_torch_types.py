"""What torch has beside tensors: exact, by name from closed tables, and hints for the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.torch_version import TorchVersion

from jsonckpt._src.errors import FormatError, UnsupportedTypeError
from jsonckpt._src.format import json_text
from jsonckpt._src.format.dtypes import DTYPES
from jsonckpt._src.format.json_text import Json
from jsonckpt._src.state.registry import default_rules
from jsonckpt._src.state.torch_types import BUILTIN
from jsonckpt._src.state.tree import decode_state, encode_state
from tests.support import FakeTensors, difference

LITERAL: list[tuple[object, Json]] = [
    (torch.float32, {"$dtype": "float32"}),
    (torch.half, {"$dtype": "float16"}),
    (torch.quint4x2, {"$dtype": "quint4x2"}),
    (torch.device("cpu"), {"$device": "cpu"}),
    (torch.device("cuda", 3), {"$device": "cuda:3"}),
    (torch.device("meta"), {"$device": "meta"}),
    (torch.Size([2, 0, 3]), {"$size": [2, 0, 3]}),
    (torch.Size([]), {"$size": []}),
    (torch.Size([2**63 - 1, -1]), {"$size": [2**63 - 1, -1]}),
    (torch.strided, {"$layout": "strided"}),
    (torch.sparse_csr, {"$layout": "sparse_csr"}),
    (torch.channels_last, {"$memory_format": "channels_last"}),
    (TorchVersion("2.13.0+cpu"), {"$torch_version": "2.13.0+cpu"}),
]


def back(state: object) -> Any:
    tensors = FakeTensors()
    text = json_text.dump(encode_state(state, tensors, rules=BUILTIN))
    return decode_state(json_text.parse(text, what="state"), tensors, rules=BUILTIN)


@pytest.mark.parametrize(("state", "value"), LITERAL, ids=str)
def test_literal(state: object, value: Json) -> None:
    assert encode_state(state, FakeTensors(), rules=BUILTIN) == value
    assert difference(decode_state(value, FakeTensors(), rules=BUILTIN), state) is None
    assert (
        difference({"a": [state], "b": {"k": (state,)}}, back({"a": [state], "b": {"k": (state,)}}))
        is None
    )


@pytest.mark.parametrize("kind", [torch.dtype, torch.layout, torch.memory_format])
def test_every_constant_of_torch(kind: type) -> None:
    constants = [value for value in vars(torch).values() if type(value) is kind]
    assert len(constants) > 3
    for constant in constants:
        assert back([constant])[0] is constant


def test_every_dtype_of_the_format_is_known() -> None:
    for name in DTYPES:
        if hasattr(torch, name):
            assert decode_state({"$dtype": name}, FakeTensors(), rules=BUILTIN) is getattr(
                torch, name
            )


def test_the_version_of_torch_itself() -> None:
    assert difference(torch.__version__, back(torch.__version__)) is None
    assert type(back(torch.__version__)) is TorchVersion


def test_as_keys_and_elements() -> None:
    state = {torch.float32: 1, torch.device("cpu"): {torch.Size([1]), torch.int8}}
    assert difference(state, back(state)) is None


@pytest.mark.parametrize(
    "value",
    [
        {"$dtype": "load"},
        {"$dtype": "float"},
        {"$dtype": "torch.float32"},
        {"$dtype": "__builtins__"},
        {"$dtype": 1},
        {"$dtype": ["float32"]},
        {"$layout": "float32"},
        {"$memory_format": "strided"},
        {"$device": "nowhere"},
        {"$device": "cuda:"},
        {"$device": "cuda:-1"},
        {"$device": "cuda:01"},
        {"$device": "cuda:1000"},
        {"$device": "cuda:99999"},
        {"$device": "cuda:999999999999"},
        {"$device": "cpu\n"},
        {"$device": 0},
        {"$size": 3},
        {"$size": [1.0]},
        {"$size": [True]},
        {"$size": [2**63]},
        {"$size": [-(2**63) - 1]},
        {"$torch_version": 2},
    ],
    ids=str,
)
def test_hostile(value: Json) -> None:
    with pytest.raises(FormatError, match=r"state '/a/\$[a-z_]+.*': expected"):
        decode_state({"a": value}, FakeTensors(), rules=BUILTIN)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (torch.nn.Linear(1, 1), r"state_dict\(\)"),
        (torch.optim.SGD([torch.zeros(1)]), r"load_state_dict\(\)"),
        (torch.Generator(), r"get_state\(\)"),
        (torch.finfo(torch.float32), r"jsonckpt\.register"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_hints(value: object, hint: str) -> None:
    with pytest.raises(UnsupportedTypeError, match=f"state '/x': cannot write .*torch.*{hint}"):
        encode_state({"x": value}, FakeTensors(), rules=BUILTIN)


def test_all_tables_are_in_the_default_rules() -> None:
    rules = default_rules()
    assert rules.by_type.items() >= BUILTIN.by_type.items()
    assert {"$dtype", "$ndarray", "$datetime", "$set"} <= set(rules.by_tag)


def test_whatever_has_a_state_dict_gets_a_hint() -> None:
    class Averager:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    with pytest.raises(UnsupportedTypeError, match=r"Save its state_dict\(\)"):
        encode_state({"x": Averager()}, FakeTensors(), rules=BUILTIN)
