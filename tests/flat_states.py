"""A flat state through ``tensors.aliasing`` and back without a file, and the JSON of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from jsonckpt._src.format.json_text import Json
from jsonckpt._src.state.references import references_in
from jsonckpt._src.tensors.aliasing import StateReader, StateWriter
from jsonckpt._src.tensors.buffers import Source, Target

__all__ = ["load", "names", "read", "records", "shares", "tied", "view", "write"]

CPU = torch.device("cpu")


def write(values: Mapping[str, Any]) -> tuple[dict[str, Json], list[Source]]:
    """A flat state as ``tree`` would write it."""
    writer = StateWriter()
    state: dict[str, Json] = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            state[name] = writer.put_array(value, name)
        else:
            assert writer.is_tensor(value)
            state[name] = writer.put(value, name)
    return state, writer.sources()


def records(sources: list[Source]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(source.name, source.dtype, source.shape) for source in sources]


def load(source: Source, device: torch.device = CPU) -> torch.Tensor:
    target = Target.allocate(source.dtype, source.shape, device=device)
    target.write(0, source.read(0, source.nbytes))
    return target.finish()


def names(state: Json) -> set[str]:
    return {name for name, _, _ in references_in(state)}


def read(
    state: dict[str, Json], sources: list[Source], device: torch.device = CPU
) -> dict[str, Any]:
    reader = StateReader({s.name: load(s, device) for s in sources}, names(state))
    loaded = {}
    for name, value in state.items():
        assert isinstance(value, dict)
        [(tag, body)] = value.items()
        loaded[name] = reader.get(tag, body, name)
    return loaded


def shares(one: torch.Tensor, other: torch.Tensor) -> bool:
    return np.shares_memory(one.detach().numpy(), other.detach().numpy())


def view(
    name: str, of: str, dtype: str, shape: list[int], stride: list[int], offset: int
) -> dict[str, Any]:
    body = {"name": name, "of": of, "dtype": dtype, "shape": shape}
    return {"$view": {**body, "stride": stride, "offset": offset}}


def tied(name: str, of: str) -> dict[str, Any]:
    return {"$tied": {"name": name, "of": of}}
