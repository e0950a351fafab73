"""Whether two states are the same: every key, type and value, every dtype, and every bit.

Tensors are compared in pieces; neither state needs to be in memory.
"""

from __future__ import annotations

import argparse
import struct
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..errors import quote
from ..format.model import is_dense
from ..format.pointer import join
from .pieces import bits, blocks, equal_blocks, plain

MAX_SHOWN = 20


@dataclass(slots=True)
class Comparison:
    """The result.

    Attributes:
        tensors, nbytes: what was compared, each tensor once.
        differences: ``"name: what differs"``, at most 20.
        more: differences beyond these.
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
        expected: what was to be written.
        found: what was read back.
        exact_types: types of containers and keys, identity of tied tensors, ``requires_grad`` and
            all bits of a NaN count, too. ``False`` is for formats that do not keep these.
        strides: with ``exact_types``, those of dense tensors count, too.
        ignored: names in ``expected`` that were left out.

    >>> compare({"a": torch.ones(2)}, {"a": torch.zeros(2)}).differences
    ["'/a': 2 of 2 elements differ, the first at [0]: 1.0 became 0.0"]
    """
    walk = Differences(Comparison(), exact_types, frozenset(ignored), strides=strides)
    walk.compare(expected, found, "")
    return walk.result


class Differences:
    """One comparison under way, which may go over several parts of the states."""

    def __init__(
        self,
        result: Comparison,
        exact_types: bool,
        ignored: frozenset[str] = frozenset(),
        *,
        strides: bool = True,
    ) -> None:
        self.result = result
        self._exact = exact_types
        self._ignored = ignored
        self._strides = exact_types and strides
        self._seen: dict[tuple[object, ...], tuple[object, ...]] = {}

    def compare(self, expected: Any, found: Any, name: str) -> None:
        """Compare two values that stand at the same place."""
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
            self._arrays(expected, found, name)
        elif not self._same_plain(expected, found):
            self.result.differ(name, f"{quote(expected)} became {quote(found)}")

    def keys(self, expected: Mapping[Any, Any], found: Mapping[Any, Any], name: str) -> None:
        """Compare what two dictionaries are, and their keys; not their values."""
        left, right = list(expected), list(found)
        before, after = (getattr(x, "default_factory", None) for x in (expected, found))
        if self._exact and before is not after:
            self.result.differ(name, "the default factory differs")
        if self._exact and isinstance(expected, OrderedDict):
            before, after = (getattr(x, "_metadata", None) for x in (expected, found))
            if before != after:
                self.result.differ(name, "the metadata of the state dict differs")
        if [(type(key), key) for key in left] == [(type(key), key) for key in right]:
            return
        for key in left:
            if key not in found:
                self.result.differ(join(name, str(key)), "is missing")
        for key in right:
            if key not in expected:
                self.result.differ(join(name, str(key)), "was not there before")
        if set(left) == set(right):
            self.result.differ(name, "the order or the type of the keys differs")

    def _mappings(self, expected: Mapping[Any, Any], found: Mapping[Any, Any], name: str) -> None:
        if not self._exact:
            # JSON has strings for keys.
            expected = {
                _json_key(key): value
                for key, value in expected.items()
                if join(name, str(key)) not in self._ignored
            }
            found = {_json_key(key): value for key, value in found.items()}
        self.keys(expected, found, name)
        for key, value in expected.items():
            if key in found:
                self.compare(value, found[key], join(name, str(key)))

    def _kind(self, value: object) -> object:
        if self._exact or isinstance(value, torch.Tensor):
            return torch.Tensor if isinstance(value, torch.Tensor) else type(value)
        if isinstance(value, Mapping):
            return dict
        return list if isinstance(value, tuple) else type(value)

    def facts(self, expected: Any, found: Any, name: str) -> bool:
        """Compare what two tensors are, not their values. False where these cannot be compared."""
        if self._exact:
            if type(expected) is not type(found):
                self.result.differ(name, f"{type(expected).__name__} became {type(found).__name__}")
            if not isinstance(found, torch.Tensor):
                return False
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

    def _tensors(self, expected: torch.Tensor, found: torch.Tensor, name: str) -> None:
        if not self.facts(expected, found, name):
            return
        if expected.is_quantized or expected.layout != torch.strided:
            self._parts(expected, found, name)
            return
        if self._is_repeated(expected, found, name):
            return
        self.result.tensors += 1
        self.result.nbytes += expected.numel() * expected.itemsize
        self.elements(plain(expected), plain(found), name)

    def _is_repeated(self, expected: torch.Tensor, found: torch.Tensor, name: str) -> bool:
        """Whether this memory was compared before; a tie that is lost is a difference."""
        if not self._exact or not expected.numel():
            return False
        place, other = _memory(expected), _memory(found)
        if place not in self._seen:
            self._seen[place] = other
            return False
        if self._seen[place] == other:
            return True
        self.result.differ(name, "is no longer tied to another tensor")
        return False

    def elements(
        self, expected: torch.Tensor, found: torch.Tensor, name: str, first_row: int = 0
    ) -> None:
        """Compare the values of two tensors, or of their rows from ``first_row`` on."""
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
            if first_row:
                index[0] += first_row
            self.result.differ(
                name,
                f"{wrong:,} of {expected.numel():,} elements differ, the first at {index}: {shown}",
            )

    def _parts(self, expected: torch.Tensor, found: torch.Tensor, name: str) -> None:
        left, right = list(_members(expected)), list(_members(found))
        if len(left) != len(right):
            self.result.differ(name, "the layout differs")
        # The parts are temporary: their addresses must not be remembered as those of other tensors.
        parts = Differences(self.result, self._exact, strides=False)
        for (part, before), (_, after) in zip(left, right):
            parts.compare(before, after, f"{name}/{part}")

    def _arrays(
        self, expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any], name: str
    ) -> None:
        if (expected.dtype, expected.shape) != (found.dtype, found.shape):
            self.result.differ(name, "dtype or shape of the array differs")
        elif expected.tobytes() != found.tobytes():
            self.result.differ(name, "the values of the array differ")

    def _same_plain(self, expected: Any, found: Any) -> bool:
        if isinstance(expected, float):
            same_bits = struct.pack("d", expected) == struct.pack("d", found)
            return same_bits or (not self._exact and expected != expected and found != found)
        if isinstance(expected, np.generic):
            return bool(expected.dtype == found.dtype) and expected.tobytes() == found.tobytes()
        if not _has_equality(expected):
            # Nothing says whether these are equal but what they hold.
            return _attributes(expected) == _attributes(found)
        try:
            return bool(expected == found)
        except (RuntimeError, ValueError):  # holds tensors or arrays, whose equality is no bool
            return repr(expected) == repr(found)


def _dense_steps(tensor: torch.Tensor) -> list[int] | None:
    """The strides of a dense tensor that say where elements are; of others none are kept."""
    if tensor.layout != torch.strided or not tensor.numel():
        return None
    return _steps(tensor) if is_dense(tensor.shape, tensor.stride()) else None


def _steps(tensor: torch.Tensor) -> list[int]:
    return [step for size, step in zip(tensor.shape, tensor.stride()) if size > 1]


def _json_key(key: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[key] if key is None or isinstance(key, bool) else str(key)


def _has_equality(value: object) -> bool:
    """Whether ``==`` compares more than identity."""
    return any("__eq__" in vars(base) for base in type(value).__mro__[:-1])


def _attributes(value: Any) -> object:
    return vars(value) if hasattr(value, "__dict__") else repr(value)


def _members(tensor: torch.Tensor) -> Iterator[tuple[str, Any]]:
    """What a sparse or quantized tensor consists of."""
    if tensor.is_quantized:
        yield "scheme", str(tensor.qscheme())
        yield "data", tensor.int_repr()
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            yield "scale", tensor.q_scale()
            yield "zero_point", tensor.q_zero_point()
        else:
            yield "scale", tensor.q_per_channel_scales()
            yield "zero_point", tensor.q_per_channel_zero_points()
            yield "axis", tensor.q_per_channel_axis()
    elif tensor.layout == torch.sparse_coo:
        yield "coalesced", tensor.is_coalesced()
        yield "indices", tensor._indices()
        yield "values", tensor._values()
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield "compressed", tensor.crow_indices()
        yield "plain", tensor.col_indices()
        yield "values", tensor.values()
    else:
        yield "compressed", tensor.ccol_indices()
        yield "plain", tensor.row_indices()
        yield "values", tensor.values()


def _memory(tensor: torch.Tensor) -> tuple[object, ...]:
    storage = tensor.untyped_storage().data_ptr()
    return (storage, tensor.storage_offset(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _shown(element: torch.Tensor) -> str:
    try:
        return str(element.item())
    except (RuntimeError, NotImplementedError):  # dtypes that are only stored
        return bits(element.reshape(1).contiguous()).numpy().tobytes().hex()
