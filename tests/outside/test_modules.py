"""torch's own table of modules: a loaded module has the same state and gives the same results."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from jsonckpt import load, load_into
from tests.outside.support import alike, module_of, written
from tests.support import difference, slow

TABLE = module_of("torch.testing._internal.common_modules", "expecttest").module_db

#: Inputs of one entry that are tried.
MOST = {torch.float32: 8, torch.float64: 2}


class Case:
    """One entry of the table with one of its inputs."""

    def __init__(self, info: Any, given: Any, dtype: torch.dtype, *, training: bool) -> None:
        self._info, self._given, self._dtype, self._training = info, given, dtype, training

    def make(self, seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        arguments = copy.deepcopy(self._given.constructor_input)
        module: torch.nn.Module = self._info.module_cls(*arguments.args, **arguments.kwargs)
        return module.to(self._dtype).train(self._training)

    def run(self, module: torch.nn.Module) -> Any:
        """What the module returns for the table's input. Dropout draws the same numbers."""
        arguments = copy.deepcopy(self._given.forward_input)
        torch.manual_seed(7)
        return module(*arguments.args, **arguments.kwargs)


def cases(info: Any, dtype: torch.dtype) -> list[Case]:
    found = []
    for training in (True, False) if info.train_and_eval_differ else (False,):
        torch.manual_seed(5)
        inputs = info.module_inputs_func(
            info, device="cpu", dtype=dtype, requires_grad=False, training=training
        )
        found += [Case(info, given, dtype, training=training) for given in inputs]
    # An entry may have hundreds of inputs: those that are taken are spread over all of them.
    return found[:: -(-len(found) // MOST[dtype])]


@pytest.mark.parametrize("dtype", [torch.float32, slow(torch.float64)], ids=["float32", "float64"])
@pytest.mark.parametrize("info", TABLE, ids=lambda info: info.formatted_name)
def test_a_loaded_module_is_the_saved_one(info: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    if dtype not in info.dtypes:
        pytest.skip(f"the table has no {dtype} for it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of some arguments of its own table
        _check(cases(info, dtype), tmp_path)


def _check(table: list[Case], directory: Path) -> None:
    assert table
    saved = [case.make(1) for case in table]
    if not any(module.state_dict() for module in saved):
        table, saved = table[:1], saved[:1]  # a loss, say: nothing in it can differ
    for case, module in zip(table, saved, strict=True):
        case.run(module)  # statistics of batches, and the shapes of lazy modules
    states = [module.state_dict() for module in saved]
    path = written({"modules": states, "steps": torch.tensor(len(states))}, directory)

    loaded = load(path)["modules"]
    assert alike(states, loaded) is None
    by_load = [case.make(2) for case in table]
    in_place = [case.make(3) for case in table]
    for module, state in zip(by_load, loaded, strict=True):
        module.load_state_dict(state)
    for case, module in zip(table, in_place, strict=True):
        if any(torch.nn.parameter.is_lazy(value) for value in module.parameters()):
            case.run(module)
    target = {"modules": in_place, "steps": torch.tensor(0)}
    load_into(target, path)
    assert int(target["steps"]) == len(states)  # type: ignore[call-overload]

    for fresh in (by_load, in_place):
        assert alike(states, [module.state_dict() for module in fresh], sharing=False) is None
    for case, *modules in zip(table, saved, by_load, in_place, strict=True):
        expected, *others = [case.run(module) for module in modules]
        for other in others:
            assert difference(expected, other) is None
