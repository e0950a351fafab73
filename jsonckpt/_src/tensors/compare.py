"""Compares two states: every key, type and value, every dtype, and every bit.

Tensors are compared in pieces, so neither state has to be in memory.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import json
import pathlib
import struct
import types
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from ..errors import quote
from ..format.model import is_dense
from ..format.pointer import join
from .pieces import bits, blocks, equal_blocks, memory_of, plain

MAX_SHOWN = 20
#: Types whose ``repr`` says all that a value is.
_VALUES = (
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo),
    *(decimal.Decimal, fractions.Fraction, uuid.UUID, pathlib.PurePath, range),
)


@dataclass(slots=True)
class Comparison:
    """The result.

    Attributes:
        tensors, nbytes: the tensors that were compared, each once, and their bytes.
        differences: the first 20 differences, as ``"name: what differs"``.
        more: the number of further differences.
        skipped: names of values that could not be compared beyond their types.
    """

    tensors: int = 0
    nbytes: int = 0
    differences: list[str] = field(default_factory=list)
    more: int = 0
    skipped: list[str] = field(default_factory=list)

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
    with torch._C.DisableTorchFunctionSubclass():  # the functions of users' subclasses
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
            if isinstance(expected, deque) and expected.maxlen != found.maxlen:
                self.result.differ(name, f"maxlen became {found.maxlen}")
            for index, pair in enumerate(zip(expected, found)):
                self.compare(*pair, f"{name}/{index}")
        elif isinstance(expected, slice):
            for part in ("start", "stop", "step"):
                self.compare(getattr(expected, part), getattr(found, part), f"{name}/{part}")
        elif isinstance(expected, np.ndarray):
            self._arrays(expected, found, name)
        elif (attributes := _attributes(expected)) is not None:
            self.compare(attributes, _attributes(found), name)
        elif not self._same_plain(expected, found, name):
            self.result.differ(name, f"{quote(expected)} became {quote(found)}")

    def _kind(self, value: object) -> object:
        if isinstance(value, torch.Tensor):
            return torch.Tensor
        if self._exact:
            return type(value)
        kinds = (Mapping, list, tuple, bool, int, float, str)
        kind = next((kind for kind in kinds if isinstance(value, kind)), type(value))
        return list if kind is tuple else kind

    def _arrays(self, expected: Any, found: Any, name: str) -> None:
        if (expected.dtype, expected.shape) != (found.dtype, found.shape):
            self.result.differ(name, "dtype or shape of the array differs")
        elif expected.dtype.hasobject:
            self.compare(expected.tolist(), found.tolist(), name)
        elif expected.tobytes() != found.tobytes():
            self.result.differ(name, "the values of the array differ")

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
        if len(expected) == len(found) and all(map(self._same_key, expected, found)):
            # In order, because a NaN or a tensor as a key is not found by another one.
            for key, before, after in zip(expected, expected.values(), found.values()):
                self.compare(before, after, join(name, str(key)))
            return
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

    def _same_key(self, expected: Any, found: Any) -> bool:
        if type(expected) is str:
            return type(found) is str and expected == found
        walk = _Walk(Comparison(), self._exact, self._strides)
        walk.compare(expected, found, "")
        return not walk.result.differences

    def _tensors(self, expected: torch.Tensor, found: torch.Tensor, name: str) -> None:
        if not _is_plain(expected) or not _is_plain(found):
            self._special(expected, found, name)
            return
        if not self._same_form(expected, found, name):
            return
        if expected.is_meta or found.is_meta:
            if expected.is_meta != found.is_meta:
                self.result.differ(name, f"the device became {found.device}")
            self.result.skipped.append(name)
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

    def _special(self, expected: torch.Tensor, found: torch.Tensor, name: str) -> None:
        """Compare tensors that are not just memory with a shape, as far as that is possible."""
        if type(expected) is not type(found) or expected.is_nested != found.is_nested:
            self.result.differ(name, f"{type(expected).__name__} became {type(found).__name__}")
            return
        if type(expected) is torch.Tensor and expected.layout == torch.strided:
            self.compare([*expected.detach().unbind()], [*found.detach().unbind()], name)
        elif hasattr(expected, "__tensor_flatten__"):
            for part in expected.__tensor_flatten__()[0]:
                self.compare(getattr(expected, part), getattr(found, part), f"{name}/{part}")
        elif type(
            expected
        ).__torch_dispatch__ is torch.Tensor.__torch_dispatch__ and not isinstance(
            expected, UninitializedTensorMixin
        ):
            self.compare(vars(expected), vars(found), name)
            kind = torch.Tensor
            before, after = expected.detach().as_subclass(kind), found.detach().as_subclass(kind)
            self.compare(before, after, name)
        else:
            self.result.skipped.append(name)

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
        steps = _dense_steps(expected) if self._strides else None
        if steps is not None and steps != _steps(found):
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

    def _same_plain(self, expected: Any, found: Any, name: str) -> bool:
        if isinstance(expected, float):
            same_bits = struct.pack("d", expected) == struct.pack("d", found)
            return same_bits or (not self._exact and expected != expected and found != found)
        if isinstance(expected, np.generic) and isinstance(found, np.generic):
            return bool(expected.dtype == found.dtype) and expected.tobytes() == found.tobytes()
        if isinstance(expected, set | frozenset):
            return expected == found or sorted(map(repr, expected)) == sorted(map(repr, found))
        if isinstance(expected, complex):
            return struct.pack("2d", expected.real, expected.imag) == struct.pack(
                "2d", found.real, found.imag
            )
        if not _has_equality(expected) and not _has(type(expected), "__repr__"):
            self.result.skipped.append(name)
            return True
        return _equal(expected, found)


def _equal(expected: Any, found: Any) -> bool:
    # Values that are equal may differ in what == leaves out: digits of a Decimal, a time zone.
    if not _has_equality(expected) or isinstance(expected, _VALUES):
        return repr(expected) == repr(found)
    try:
        return bool(expected == found)
    except (RuntimeError, ValueError, TypeError):  # == of tensors or arrays inside is no bool
        return repr(expected) == repr(found)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is just memory with a shape, and not a subclass or nested."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_nested


def _dense_steps(tensor: torch.Tensor) -> list[int] | None:
    """The strides of a dense tensor, or ``None``: the strides of other tensors are not kept."""
    strided = tensor.layout == torch.strided and tensor.numel() > 0
    return _steps(tensor) if strided and is_dense(tensor.shape, tensor.stride()) else None


def _steps(tensor: torch.Tensor) -> list[int]:
    """The strides of dimensions with more than one element. The others have no effect."""
    return [step for size, step in zip(tensor.shape, tensor.stride()) if size > 1]


def _json_key(key: Any) -> str:
    return key if isinstance(key, str) else json.dumps({key: 0})[2:-5]


def _has_equality(value: object) -> bool:
    """True if ``==`` compares more than identity."""
    return _has(type(value), "__eq__")


def _has(kind: type, method: str) -> bool:
    """Whether a class has a method of its own, beside that of ``object``."""
    return any(method in vars(base) for base in kind.__mro__[:-1])


def _attributes(value: Any) -> dict[str, Any] | None:
    """The attributes of a user's object, which hold what it is. ``None`` for other values."""
    kind = type(value)
    if isinstance(value, str | int | float | bytes | type | types.FunctionType | enum.Enum):
        return None
    names = [name for base in kind.__mro__ for name in _slots(base) if hasattr(value, name)]
    own = getattr(value, "__dict__", {})
    if isinstance(value, _VALUES) or not (own or (names and not _has_equality(value))):
        return None
    return {**own, **{name: getattr(value, name) for name in names}}


def _slots(base: type) -> tuple[str, ...]:
    slots = vars(base).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


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
