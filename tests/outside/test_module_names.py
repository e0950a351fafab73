"""Names of modules, as torch's tests of ``load_state_dict``: missing, unexpected, wrapped."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from jsonckpt import StateMismatchError, load, load_into
from tests.outside.support import written
from tests.support import difference


class Mixed(torch.nn.Module):
    """Parameters, buffers that are kept or not, lists and dicts of parameters and modules."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.rand(()))
        self.register_buffer("kept", torch.rand(3))
        self.register_buffer("cache", torch.rand(3), persistent=False)
        self.many = torch.nn.ParameterList([torch.rand(n + 1) for n in range(3)])
        self.named = torch.nn.ParameterDict({"a": torch.rand(2), "b": torch.rand(2)})
        self.parts = torch.nn.ModuleDict({"module": torch.nn.Linear(2, 2)})
        self.absent = None
        self.register_parameter("none", None)


MODULES: dict[str, Callable[[], torch.nn.Module]] = {
    "linear": lambda: torch.nn.Linear(2, 3),
    "sequential": lambda: torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)),
    "lstm": lambda: torch.nn.LSTM(2, 3, num_layers=2, bidirectional=True),
    "attention": lambda: torch.nn.MultiheadAttention(4, 2),
    "transformer": lambda: torch.nn.TransformerEncoderLayer(4, 2, 8),
    "embedding": lambda: torch.nn.Embedding(5, 3),
    "mixed": Mixed,
}


def changed(state: dict[str, Any], seed: int) -> dict[str, Any]:
    """Some tensors gone, some new, some of another shape."""
    rng = random.Random(seed)
    result = {key: item for key, item in state.items() if rng.random() < 0.7}
    for key in rng.sample(sorted(result), len(result) // 3):
        result[key] = torch.rand(*result[key].shape, 2)
    for n in range(rng.randrange(3)):
        result[rng.choice(["new", "0.new.weight", "module.weight", "a/b~c.x"]) + str(n)] = (
            torch.rand(2)
        )
    return result


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("seed", range(6))
def test_missing_and_unexpected_names_are_those_of_torch(
    kind: str, seed: int, tmp_path: Path
) -> None:
    torch.manual_seed(seed)
    first, other = MODULES[kind](), MODULES[kind]()
    state = changed(dict(first.state_dict()), seed)
    path = written({"m": state}, tmp_path)
    fitting = {
        key: item
        for key, item in state.items()
        if key not in other.state_dict() or item.shape == other.state_dict()[key].shape
    }
    torchs = copy.deepcopy(other)
    verdict = torchs.load_state_dict(fitting, strict=False)
    result = load_into({"m": other}, path, strict=False)
    wrong = {line.partition(":")[0] for line in result.mismatched}
    assert wrong == {f"/m/{key}" for key in state.keys() - fitting.keys()}
    missing = {f"/m/{key}" for key in verdict.missing_keys} - wrong
    assert set(result.missing) == missing
    names = {key.replace("~", "~0").replace("/", "~1") for key in verdict.unexpected_keys}
    assert set(result.unexpected) == {f"/m/{name}" for name in names}
    assert difference(other.state_dict(), torchs.state_dict()) is None
    if result.missing or result.unexpected or wrong:
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(StateMismatchError):
            load_into({"m": other}, path)
        assert difference(other.state_dict(), before) is None


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("prefix", ["module.", "model.", "net.encoder.", "_orig_mod."])
def test_strip_prefix_does_what_torchs_function_does(
    kind: str, prefix: str, tmp_path: Path
) -> None:
    first, other, torchs = MODULES[kind](), MODULES[kind](), MODULES[kind]()
    holder: Any = first
    for part in reversed(prefix.removesuffix(".").split(".")):
        holder = torch.nn.ModuleDict({part: holder})
    path = written(holder.state_dict(), tmp_path)
    with pytest.raises(StateMismatchError, match=r"strip_prefix=") as caught:
        load_into(other, path)
    assert repr(prefix) in str(caught.value.hint)
    state = load(path)
    consume_prefix_in_state_dict_if_present(state, prefix)
    torchs.load_state_dict(state)
    result = load_into(other, path, strip_prefix=prefix)
    assert difference(other.state_dict(), torchs.state_dict()) is None
    assert len(result.renamed) == len(first.state_dict())
    # And back: a plain checkpoint into the wrapped module.
    path = written(other.state_dict(), tmp_path)
    load_into(holder, path, strip_prefix=prefix)
    assert difference(first.state_dict(), other.state_dict()) is None


def test_a_submodule_takes_its_part(tmp_path: Path) -> None:
    """As a backbone from a larger model."""
    whole = torch.nn.ModuleDict({"body": Mixed(), "head": torch.nn.Linear(3, 4)})
    path = written(whole.state_dict(), tmp_path)
    body = Mixed()
    with pytest.raises(StateMismatchError, match=r"strip_prefix='body\.'.*'/head\.weight'"):
        load_into(body, path)
    load_into(body, path, strip_prefix="body", exclude="/head.*")
    assert difference(body.state_dict(), whole["body"].state_dict()) is None


@pytest.mark.parametrize("value", [3, None, [torch.ones(2)], torch.ones(2), "x"])
def test_what_is_no_state_dict(value: Any, tmp_path: Path) -> None:
    path = written({"m": value}, tmp_path)
    with pytest.raises(StateMismatchError, match="a state dict for Linear expected"):
        load_into({"m": torch.nn.Linear(2, 2)}, path)
