"""What the tests against outside suites share: ways through a checkpoint, strict comparisons."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# Bound before any fixture replaces it: bulk cases need no validation against the schemas.
from jsonckpt import load, load_into, save
from tests.support import difference, lacking

__all__ = [
    "alike",
    "dense",
    "into",
    "module_of",
    "normal",
    "tensors_in",
    "through",
    "through_torch",
    "written",
]


def module_of(name: str, tool: str) -> Any:
    """A module that comes with an installed package; the file's tests are left out without it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # marks of other suites, deprecations in them
            return importlib.import_module(name)
    except ImportError as error:
        try:
            lacking(tool, f"{name} cannot be imported: {error}")
        except pytest.skip.Exception as skipped:
            pytest.skip(str(skipped), allow_module_level=True)


def through(state: object, **options: Any) -> Any:
    """The state after a way through one file in memory."""
    file = io.BytesIO()
    save(state, file, **options)
    file.seek(0)
    return load(file)


def through_torch(state: object) -> Any:
    """The state after a way through ``torch.save`` and ``torch.load``: the measure."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def written(state: object, directory: Path) -> Path:
    """A checkpoint of the state. Nothing waits for the disk."""
    path = directory / "checkpoint.json"
    save(state, path, sync=False)
    return path


def into(target: object, state: object, directory: Path, **options: Any) -> Any:
    """``load_into`` the target what ``save`` made of the state."""
    return load_into(target, written(state, directory), **options)


def alike(one: object, two: object, *, sharing: bool = True) -> str | None:
    """As :func:`tests.support.difference`, strides of dense tensors and shared memory included."""
    if found := difference(one, two):
        return found
    pairs = list(zip(tensors_in(one), tensors_in(two), strict=True))
    for (place, mine), (_, other) in pairs:
        if dense(mine) and mine.stride() != other.stride():
            return f"{place}: strides {mine.stride()} and {other.stride()}"
    if not sharing:
        return None
    groups = [_memory([pair[side] for pair in pairs]) for side in (0, 1)]
    for (place, _), mine_at, other_at in zip([pair[0] for pair in pairs], *groups, strict=True):
        if mine_at != other_at:
            return f"{place}: shares memory with {mine_at} and with {other_at}"
    return None


def _memory(tensors: list[tuple[str, torch.Tensor]]) -> list[str]:
    """For each tensor the first place that has the same storage."""
    first: dict[Any, str] = {}
    return [first.setdefault(_storage(tensor) or place, place) for place, tensor in tensors]


def _storage(tensor: torch.Tensor) -> int | None:
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        return None
    return tensor.untyped_storage().data_ptr() or None


def dense(tensor: torch.Tensor) -> bool:
    """Whether a strided tensor fills a piece of memory, every element once, in whatever order."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return False
    expected = 1
    steps = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    for step, size in steps:
        if size > 1:
            if step != expected:
                return False
            expected *= size
    return True


def tensors_in(state: Any, place: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a nesting of dictionaries and sequences, with their places."""
    if isinstance(state, torch.Tensor):
        yield place, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from tensors_in(value, f"{place}/{key}")
    elif isinstance(state, list | tuple):
        for position, value in enumerate(state):
            yield from tensors_in(value, f"{place}/{position}")


def normal(state: Any) -> Any:
    """The same nesting with the keys of dictionaries in one order, whatever order they came in."""
    if isinstance(state, dict):
        return {key: normal(state[key]) for key in sorted(state, key=repr)}
    if isinstance(state, list | tuple):
        return type(state)(normal(value) for value in state)
    return state
