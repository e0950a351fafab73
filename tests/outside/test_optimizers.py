"""torch's own table of optimizers: after a resume every weight and every state is the same.

Each case trains all configurations that the table has for one optimizer, stops, and goes on in four
ways: ``load`` with ``load_state_dict``, ``load`` with ``restore_optimizer``, ``load_into``, and
``torch.load``, which is the measure.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from jsonckpt import JsonckptError, load, load_into
from jsonckpt.training import restore_optimizer
from tests.outside.support import alike, module_of, normal, through_torch, written
from tests.support import slow

TABLE = module_of("torch.testing._internal.common_optimizers", "expecttest").optim_db

#: Steps before the save and after it.
BEFORE, AFTER = 3, 2

IMPLEMENTATIONS: dict[str, dict[str, bool]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"foreach": False, "capturable": True},
    "capturable-foreach": {"foreach": True, "capturable": True},
}


@dataclass(frozen=True)
class Kind:
    """What one case trains: an optimizer of the table, its implementation, its parameters."""

    info: Any
    implementation: str
    dtype: torch.dtype
    memory_format: torch.memory_format
    device: str

    def __str__(self) -> str:
        dtype, layout = (str(fact).split(".")[-1] for fact in (self.dtype, self.memory_format))
        layout = "rows" if layout == "contiguous_format" else layout
        return f"{self.info.name}-{self.implementation}-{dtype}-{layout}-{self.device}"

    def configurations(self) -> list[dict[str, Any]]:
        """The table's own arguments, in this implementation. Those torch refuses are left out."""
        found = []
        for given in self.info.optim_inputs_func(device=self.device):
            options = given.kwargs | IMPLEMENTATIONS[self.implementation]
            if "foreach" not in self.info.supported_impls:
                options.pop("foreach", None)
            try:
                Run(self, options, 0)
            except ValueError:  # the table has arguments that go with some implementations only
                continue
            found.append(options)
        return found


class Run:
    """A model and its optimizer, and steps whose gradients depend on the weights and the step."""

    def __init__(self, kind: Kind, options: dict[str, Any], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.kind = kind
        self.taken = 0
        self.model = torch.nn.Module()
        shapes: dict[str, tuple[int, ...]] = {"matrix": (4, 3)}
        if kind.info.name != "Muon":  # which takes nothing but matrices
            shapes |= {"kernel": (2, 3, 2, 2), "bias": (5,), "scale": ()}
        for name, shape in shapes.items():
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            values = values.to(kind.device, kind.dtype) * (1 + 1j if kind.dtype.is_complex else 1)
            if len(shape) == 4:
                values = values.contiguous(memory_format=kind.memory_format)
            elif len(shape) == 2 and kind.memory_format is torch.channels_last:
                values = values.t().contiguous().t()
            self.model.register_parameter(name, torch.nn.Parameter(values))
        # A learning rate may be a tensor: two optimizers must not have one in common.
        own = {key: value.clone() if torch.is_tensor(value) else value for key, value in
               options.items()}  # fmt: skip
        self.optimizer: torch.optim.Optimizer = kind.info.optim_cls(self.model.parameters(), **own)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.taken += 1
            if self.kind.info.step_requires_closure:
                self.optimizer.step(self.gradients)
            else:
                self.gradients()
                self.optimizer.step()

    def gradients(self) -> float:
        generator = torch.Generator().manual_seed(1000 + self.taken)
        loss = 0.0
        for parameter in self.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            gradient = torch.empty_like(parameter)
            gradient.copy_(noise.to(gradient.device) + parameter.detach())
            loss += float(gradient.detach().abs().square().sum())
            sparse = self.kind.info.only_supports_sparse_grads
            parameter.grad = gradient.to_sparse() if sparse else gradient
        return loss

    def facts(self) -> Any:
        """The state with its keys in one order: load_state_dict may add groups' options anew."""
        return normal(self.state())

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


def kinds() -> list[Kind]:
    found = []
    for info, implementation, dtype, layout, device in itertools.product(
        TABLE,
        IMPLEMENTATIONS,
        [torch.float32, torch.float64, torch.bfloat16, torch.complex64],
        [torch.contiguous_format, torch.channels_last],
        ["cpu", "cuda"],
    ):
        supported = {
            "loop": True,
            "foreach": "foreach" in info.supported_impls,
            "fused": device in info.supports_fused_on and not dtype.is_complex,
            # The CPU has no graphs to capture into.
            "capturable": info.has_capturable_arg and device != "cpu",
            "capturable-foreach": info.has_capturable_arg and device != "cpu",
        }[implementation]
        if device == "cuda" and not torch.cuda.is_available():
            continue
        if dtype.is_complex and (not info.supports_complex or info.name == "Muon"):
            continue
        if dtype is torch.bfloat16 and info.name in ("SparseAdam", "LBFGS"):
            continue  # torch has no kernels for these on every device
        if layout is torch.channels_last and not (
            dtype is torch.float32 or "fused" in implementation
        ):
            continue
        if layout is torch.channels_last and (
            info.name == "LBFGS" or (info.name == "SparseAdam" and device == "cuda")
        ):
            continue  # torch's own take row-major gradients only
        if supported:
            found.append(Kind(info, implementation, dtype, layout, device))
    return found


def resume_by_torch(runs: dict[str, Run], saved: Any) -> None:
    for name, run in runs.items():
        run.model.load_state_dict(saved[name]["model"])
        run.optimizer.load_state_dict(saved[name]["optimizer"])


def resume_by_load(runs: dict[str, Run], path: Path) -> None:
    resume_by_torch(runs, load(path))


def resume_by_restore(runs: dict[str, Run], path: Path) -> None:
    saved = load(path)
    for name, run in runs.items():
        run.model.load_state_dict(saved[name]["model"])
        restore_optimizer(run.optimizer, saved[name]["optimizer"])


def resume_into(runs: dict[str, Run], path: Path) -> None:
    target = {name: {"model": run.model, "optimizer": run.optimizer} for name, run in runs.items()}
    load_into(target, path)


WAYS: dict[str, Callable[[dict[str, Run], Any], None]] = {
    "torch.load": resume_by_torch,
    "load": resume_by_load,
    "restore_optimizer": resume_by_restore,
    "load_into": resume_into,
}
#: What each way is held against: torch casts the state in its own load_state_dict.
MEASURES = {
    "load": "torch.load",
    "restore_optimizer": "uninterrupted",
    "load_into": "uninterrupted",
}


def fresh(kind: Kind, configurations: dict[str, dict[str, Any]]) -> dict[str, Run]:
    runs = {name: Run(kind, options, 1) for name, options in configurations.items()}
    for run in runs.values():
        run.taken = BEFORE
    return runs


@pytest.mark.parametrize(
    "kind", [kind if kind.dtype is torch.float32 else slow(kind) for kind in kinds()], ids=str
)
def test_a_resumed_optimizer_goes_on_as_if_it_had_not_stopped(kind: Kind, tmp_path: Path) -> None:
    configurations = {str(at): options for at, options in enumerate(kind.configurations())}
    assert configurations
    first = {name: Run(kind, options, 0) for name, options in configurations.items()}
    for run in first.values():
        run.steps(BEFORE)
    state = {name: run.state() for name, run in first.items()}
    path = written(state, tmp_path)
    by_torch = through_torch(state)
    problems = [found for found in [alike(state, load(path))] if found]

    runs = {"uninterrupted": first}
    for way, resume in WAYS.items():
        runs[way] = fresh(kind, configurations)
        try:
            resume(runs[way], by_torch if way == "torch.load" else path)
        except JsonckptError as error:
            problems.append(f"{way}: {type(error).__name__}: {error}")
            del runs[way]
    for count in (0, AFTER):
        for run in itertools.chain.from_iterable(one.values() for one in runs.values()):
            run.steps(count)
        states = {
            way: {name: run.facts() for name, run in one.items()} for way, one in runs.items()
        }
        for way, measure in MEASURES.items():
            if way not in states:
                continue
            if found := alike(states[measure], states[way], sharing=False):
                problems.append(f"{way} against {measure} after {count} steps: {found}")
    assert not problems, "\n".join(problems)
