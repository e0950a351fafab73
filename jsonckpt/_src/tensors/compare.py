"""Compares two states: every key, type and value, every dtype, and every bit.

Tensors are compared in pieces, so neither state has to be in memory.
"""

from __future__ import annotations

import argparse
import struct
import types
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..errors import quote
from ..format.model import is_dense
from ..format.pointer import join
from .pieces import bits, blocks, equal_blocks, memory_of, plain

MAX_SHOWN = 20


@dataclass(slots=True)
class Comparison:
    """The result.

    Attributes:
        tensors, nbytes: the tensors that were compared, each once, and their bytes.
        differences: the first 20 differences, as ``"name: what differs"``.
        more: the number of further differences.
    """

    tensors: int = 0
    nbytes: int = 0
    differences: list[str] = field(default_factory=list)
    more: int = 0

    def differ(self, name: str, what: str) -> None:
        if len(self.differences) < MAX_SHOWN:
            self.differences.append(f"{quote(name, 160)}: {what}")
        else:
            self.more += 1


def compare(
    expected: Any,
    found: Any,
    *,
    exact_types: bool = True,
    strides: bool = True,
    ignored: Iterable[str] = (),
) -> Comparison:
    """Compare two states.

    Args:
        expected: the state that was written.
        found: the state that was read back.
        exact_types: also compare types of containers and keys, ties between tensors,
            ``requires_grad``, and all bits of a NaN. ``False`` is for formats that lose these.
        strides: with ``exact_types``, also compare the strides of dense tensors.
        ignored: names in ``expected`` that were not written.

    >>> compare({"a": torch.ones(2)}, {"a": torch.zeros(2)}).differences
    ["'/a': 2 of 2 elements differ, the first at [0]: 1.0 became 0.0"]
    """
    walk = _Walk(Comparison(), exact_types, strides, frozenset(ignored))
    walk.compare(expected, found, "")
    return walk.result


class _Walk:
    """Walks two states at once and notes the differences."""

    def __init__(
        self, result: Comparison, exact: bool, strides: bool, ignored: frozenset[str] = frozenset()
    ) -> None:
        self.result = result
        self._exact = exact
        self._strides = exact and strides
        self._ignored = ignored
        self._seen: dict[object, object] = {}

    def compare(self, expected: Any, found: Any, name: str) -> None:
        """Compare two values of the same name."""
        if isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
            self._tensors(expected, found, name)
        elif self._kind(expected) is not self._kind(found):
            self.result.differ(name, f"{type(expected).__name__} became {type(found).__name__}")
        elif isinstance(expected, Mapping):
            self._mappings(expected, found, name)
        elif isinstance(expected, list | tuple | deque):
            if len(expected) != len(found):
                self.result.differ(name, f"{len(expected)} items became {len(found)}")
            for index, pair in enumerate(zip(expected, found)):
                self.compare(*pair, f"{name}/{index}")
        elif isinstance(expected, argparse.Namespace | types.SimpleNamespace):
            self.compare(vars(expected), vars(found), name)
        elif isinstance(expected, np.ndarray):
            if (expected.dtype, expected.shape) != (found.dtype, found.shape):
                self.result.differ(name, "dtype or shape of the array differs")
            elif expected.tobytes() != found.tobytes():
                self.result.differ(name, "the values of the array differ")
        elif not self._same_plain(expected, found):
            self.result.differ(name, f"{quote(expected)} became {quote(found)}")

    def _kind(self, value: object) -> object:
        if isinstance(value, torch.Tensor):
            return torch.Tensor
        if self._exact:
            return type(value)
        if isinstance(value, Mapping):
            return dict
        return list if isinstance(value, tuple) else type(value)

    def _mappings(self, expected: Mapping[Any, Any], found: Mapping[Any, Any], name: str) -> None:
        if self._exact:
            if getattr(expected, "default_factory", None) is not getattr(
                found, "default_factory", None
            ):
                self.result.differ(name, "the default factory differs")
            if getattr(expected, "_metadata", None) != getattr(found, "_metadata", None):
                self.result.differ(name, "the metadata of the state dict differs")
        else:
            # In JSON every key is a string.
            expected = {
                _json_key(key): value
                for key, value in expected.items()
                if join(name, str(key)) not in self._ignored
            }
            found = {_json_key(key): value for key, value in found.items()}
        if [(type(key), key) for key in expected] != [(type(key), key) for key in found]:
            for key in expected:
                if key not in found:
                    self.result.differ(join(name, str(key)), "is missing")
            for key in found:
                if key not in expected:
                    self.result.differ(join(name, str(key)), "was not there before")
            if set(expected) == set(found):
                self.result.differ(name, "the order or the type of the keys differs")
        for key, value in expected.items():
            if key in found:
                self.compare(value, found[key], join(name, str(key)))

    def _tensors(self, expected: torch.Tensor, found: torch.Tensor, name: str) -> None:
        if not self._same_form(expected, found, name):
            return
        if expected.is_quantized or expected.layout != torch.strided:
            # The parts are temporary. Other tensors may get their addresses later, so a new walk
            # compares them.
            parts = _Walk(self.result, self._exact, strides=False)
            parts.compare(_parts(expected), _parts(found), name)
            return
        if self._exact and (place := memory_of(expected)) is not None:
            if place in self._seen:
                if self._seen[place] != memory_of(found):
                    self.result.differ(name, "is no longer tied to another tensor")
                return
            self._seen[place] = memory_of(found)
        self.result.tensors += 1
        self.result.nbytes += expected.numel() * expected.itemsize
        self._elements(plain(expected), plain(found), name)

    def _same_form(self, expected: torch.Tensor, found: torch.Tensor, name: str) -> bool:
        """Compare everything but the values. False if the values cannot be compared."""
        if self._exact:
            if type(expected) is not type(found):
                self.result.differ(name, f"{type(expected).__name__} became {type(found).__name__}")
            if expected.requires_grad != found.requires_grad:
                self.result.differ(name, f"requires_grad became {found.requires_grad}")
        for fact in ("dtype", "shape", "layout", "is_quantized"):
            before, after = getattr(expected, fact), getattr(found, fact)
            if before != after:
                shown = (list(before), list(after)) if fact == "shape" else (before, after)
                self.result.differ(name, f"{fact} {shown[0]} became {shown[1]}")
                return False
        if self._strides and (steps := _dense_steps(expected)) not in (None, _steps(found)):
            self.result.differ(name, f"strides {steps} became {_steps(found)}")
        return True

    def _elements(self, expected: torch.Tensor, found: torch.Tensor, name: str) -> None:
        position = wrong = first = 0
        shown = ""
        for before, after in zip(blocks(expected), blocks(found)):
            if not equal_blocks(before, after):
                left, right = bits(before), bits(after)
                unequal = (left.view(len(before), -1) != right.view(len(before), -1)).any(1)
                if not self._exact and (before.is_floating_point() or before.is_complex()):
                    unequal &= ~(before.isnan() & after.isnan())
                places = unequal.nonzero().flatten()
                if len(places) and not wrong:
                    first = position + int(places[0])
                    shown = f"{_shown(before[places[0]])} became {_shown(after[places[0]])}"
                wrong += len(places)
            position += len(before)
        if wrong:
            index = [int(i) for i in np.unravel_index(first, tuple(expected.shape))]
            self.result.differ(
                name,
                f"{wrong:,} of {expected.numel():,} elements differ, the first at {index}: {shown}",
            )

    def _same_plain(self, expected: Any, found: Any) -> bool:
        if isinstance(expected, float):
            same_bits = struct.pack("d", expected) == struct.pack("d", found)
            return same_bits or (not self._exact and expected != expected and found != found)
        if isinstance(expected, np.generic):
            return bool(expected.dtype == found.dtype) and expected.tobytes() == found.tobytes()
        if not _has_equality(expected):
            # These are equal if their attributes are.
            return _attributes(expected) == _attributes(found)
        try:
            return bool(expected == found)
        except (RuntimeError, ValueError):  # == of tensors or arrays inside is no bool
            return repr(expected) == repr(found)


def _dense_steps(tensor: torch.Tensor) -> list[int] | None:
    """The strides of a dense tensor, or ``None``: the strides of other tensors are not kept."""
    strided = tensor.layout == torch.strided and tensor.numel() > 0
    return _steps(tensor) if strided and is_dense(tensor.shape, tensor.stride()) else None


def _steps(tensor: torch.Tensor) -> list[int]:
    """The strides of dimensions with more than one element. The others have no effect."""
    return [step for size, step in zip(tensor.shape, tensor.stride()) if size > 1]


def _json_key(key: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[key] if key is None or isinstance(key, bool) else str(key)


def _has_equality(value: object) -> bool:
    """True if ``==`` compares more than identity."""
    return any("__eq__" in vars(base) for base in type(value).__mro__[:-1])


def _attributes(value: Any) -> object:
    return vars(value) if hasattr(value, "__dict__") else repr(value)


def _parts(tensor: torch.Tensor) -> dict[str, Any]:
    """The parts of a sparse or quantized tensor."""
    if tensor.is_quantized:
        parts = {"scheme": str(tensor.qscheme()), "data": tensor.int_repr()}
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            return parts | {"scale": tensor.q_scale(), "zero_point": tensor.q_zero_point()}
        return parts | {
            "scale": tensor.q_per_channel_scales(),
            "zero_point": tensor.q_per_channel_zero_points(),
            "axis": tensor.q_per_channel_axis(),
        }
    if tensor.layout == torch.sparse_coo:
        coalesced = tensor.is_coalesced()
        return {"coalesced": coalesced, "indices": tensor._indices(), "values": tensor._values()}
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        compressed, others = tensor.crow_indices(), tensor.col_indices()
    else:
        compressed, others = tensor.ccol_indices(), tensor.row_indices()
    return {"compressed": compressed, "plain": others, "values": tensor.values()}


def _shown(element: torch.Tensor) -> str:
    try:
        return str(element.item())
    except (RuntimeError, NotImplementedError):  # the dtype has no numbers
        return bits(element.reshape(1).contiguous()).numpy().tobytes().hex()
