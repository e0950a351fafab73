"""The states to save: trained weights and moments, and larger states made from them.

Every state is kept as a ``.pt`` file. The measuring processes map it into memory, so that all of
them share the same pages.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpt import initial_state, train

__all__ = [
    "State",
    "bfloat16_weights",
    "half_random",
    "large",
    "lora",
    "map_state",
    "moments",
    "nbytes",
    "small",
    "told",
    "trained",
    "weights",
    "write_state",
]

#: Flat, because every peer can save only that form.
State = dict[str, torch.Tensor]

FULL_STEPS, QUICK_STEPS = 300, 6


def trained(cache: Path, *, quick: bool) -> Path:
    """The checkpoint of the trained model: a ``.pt`` of 221 MiB as the guide's user has it.

    It is trained if ``cache`` has none yet. ``quick`` takes fewer steps.
    """
    full, few = (cache / f"gpt-{steps}-steps.pt" for steps in (FULL_STEPS, QUICK_STEPS))
    if full.exists():
        return full
    path, steps = (few, QUICK_STEPS) if quick else (full, FULL_STEPS)
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        write_state(train(steps), path)
    return path


def told(checkpoint: dict[str, Any]) -> str:
    """A description of the training, for the page."""
    losses = checkpoint["history"]
    return (
        f"GPT-2 of 19.3 M parameters, {checkpoint['step']} steps of AdamW, {checkpoint['tokens']:,}"
        f" tokens drawn from {checkpoint['text']}, loss {losses[0]:.2f} to {losses[-1]:.2f}"
    )


def write_state(state: dict[str, Any], path: Path) -> Path:
    """Keep a state for :func:`map_state`. The file appears as a whole."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)
    return path


def map_state(path: Path) -> Any:
    """A state of :func:`write_state`, mapped into memory."""
    return torch.load(path, mmap=True, weights_only=True)


def nbytes(state: State) -> int:
    """Raw bytes of all tensors."""
    return sum(tensor.nbytes for tensor in state.values())


def _parameters(checkpoint: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor, dict[str, Any]]]:
    """Name, weight and AdamW's state of each parameter, the layers before the embeddings."""
    names = [name for name in checkpoint["model_state_dict"] if name != "lm_head.weight"]
    for number, name in sorted(enumerate(names), key=lambda item: item[1][0] == "w"):
        moments_of = checkpoint["optimizer_state_dict"]["state"][number]
        yield name, checkpoint["model_state_dict"][name], moments_of


def weights(checkpoint: dict[str, Any]) -> State:
    """The trained fp32 weights."""
    return {name: weight for name, weight, _ in _parameters(checkpoint)}


def bfloat16_weights(checkpoint: dict[str, Any]) -> State:
    """The same, rounded to bfloat16."""
    return {name: weight.bfloat16() for name, weight in weights(checkpoint).items()}


def moments(checkpoint: dict[str, Any], which: str) -> State:
    """``"exp_avg"`` or ``"exp_avg_sq"``."""
    return {name: state[which] for name, _, state in _parameters(checkpoint)}


def lora(checkpoint: dict[str, Any], rank: int = 8) -> State:
    """Many small factors: trained rows for A, and the changes by training for B."""
    before = initial_state()
    found: State = {}
    for name, weight, _ in _parameters(checkpoint):
        if weight.ndim != 2 or not name.startswith("h."):
            continue
        changed = weight - before[name]
        for part in range(0, min(weight.shape[0], 8 * rank), rank):
            found[f"{name}.{part}.lora_A"] = weight[part : part + rank].clone()
            found[f"{name}.{part}.lora_B"] = changed[part : part + rank].t().contiguous()
    return found


def large(checkpoint: dict[str, Any], size: int) -> State:
    """At least ``size`` bytes of fp32: the trained tensors, repeated.

    Each copy is scaled by another factor near 1. So no two copies have the same bytes, and all look
    like real weights.
    """
    state: State = {}
    total, copy = 0, 0
    while total < size:
        factor = 1.0 + 0.0137 * copy
        for name, weight, moments_of in _parameters(checkpoint):
            for kind, tensor in (
                ("weight", weight),
                ("exp_avg", moments_of["exp_avg"]),
                ("exp_avg_sq", moments_of["exp_avg_sq"]),
            ):
                state[f"{copy}.{name}.{kind}"] = tensor * factor
                total += tensor.nbytes
                if total >= size:
                    return state
        copy += 1
    return state


def small(checkpoint: dict[str, Any], count: int, elements: int = 256) -> State:
    """``count`` tensors of ``elements`` fp32 values, taken from the trained embedding."""
    flat = checkpoint["model_state_dict"]["wte.weight"].flatten()
    most = len(flat) // elements
    return {
        f"block.{number // 16}.tensor.{number % 16}": flat[
            number % most * elements : (number % most + 1) * elements
        ].clone()
        for number in range(count)
    }


def half_random(size: int) -> torch.Tensor:
    """An fp32 tensor of at least ``size`` bytes, its values drawn once for each MiB and repeated.

    Made in place, so that the allocator keeps nothing but the tensor.
    """
    block = torch.empty(1 << 18).normal_(std=0.02)
    tensor = torch.empty(-(-size // block.nbytes), 1 << 18)
    tensor[:] = block
    return tensor


def cached(path: Path, make: Callable[[], dict[str, Any]]) -> Path:
    """``path``. If it does not exist, ``make`` makes it."""
    return path if path.exists() else write_state(make(), path)


def free_bytes(path: Path) -> int:
    """The free space below ``path``."""
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize
