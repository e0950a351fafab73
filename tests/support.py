"""What tests share: a comparison that lets nothing pass, and tensors that need no torch."""

from __future__ import annotations

import argparse
import collections
import ctypes
import dataclasses
import datetime
import decimal
import importlib
import os
import struct
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import settings

from jsonckpt._src.format.json_text import Json
from jsonckpt._src.state.tree import OMIT

#: Marks of arguments that only ``-m slow`` runs. They are more of what other arguments of the test
#: try in each run, so CI leaves them out (``-m "slow and not thorough"``).
THOROUGH = [pytest.mark.slow, pytest.mark.thorough]


def slow(*values: Any) -> Any:
    """Arguments of a parametrized test that only ``-m slow`` runs."""
    return pytest.param(*values, marks=THOROUGH)


def examples(count: int) -> int:
    """How many examples Hypothesis draws: ``count`` in the profile "full", else a quarter."""
    return count * settings().max_examples // 100


def lacking(tool: str, reason: str) -> NoReturn:
    """Leave a test out for want of a tool; not where that tool is required.

    ``JSONCKPT_REQUIRE`` names the tools, with spaces between them, that a machine must have.
    """
    if tool in os.environ.get("JSONCKPT_REQUIRE", "").split():
        pytest.fail(f"{tool} is required here: {reason}")
    pytest.skip(reason, allow_module_level=True)


def framework(name: str) -> Any:
    """Import a framework without the warnings of its own imports, or leave the tests out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            lacking(name.partition(".")[0], f"{error.name} is not installed")


def same(one: object, two: object) -> bool:
    """Whether two states agree in value and type all the way down, see :func:`difference`."""
    return difference(one, two) is None


def difference(one: Any, two: Any, place: str = "") -> str | None:
    """The first difference between two states, as ``"place: what differs"``, or None.

    Types are compared exactly, floats and arrays bit for bit (NaN payloads and -0.0 included),
    dictionaries with their order and the types of their keys, tensors by bytes, dtype, shape,
    layout, device and ``requires_grad``, dense ones by their strides, too.
    """
    if type(one) is not type(two):
        return f"{place}: {type(one)} and {type(two)}"
    compare = _by_type(one)
    if compare is not None:
        return compare(one, two, place)
    return None if one == two else f"{place}: {one!r} and {two!r}"


def _by_type(value: object) -> Callable[[Any, Any, str], str | None] | None:
    if isinstance(value, torch.Tensor):
        return _tensors
    if isinstance(value, np.ndarray):
        return _arrays
    if isinstance(value, np.generic):
        return _scalars
    if isinstance(value, dict):
        return _mappings
    if isinstance(value, set | frozenset):
        return _sets
    if isinstance(value, list | tuple | collections.deque):
        return _sequences
    if isinstance(value, float | complex):
        return _floats
    if isinstance(value, slice):
        return lambda a, b, at: _sequences(_parts(a), _parts(b), at)
    if isinstance(value, argparse.Namespace | types.SimpleNamespace):
        return lambda a, b, at: _mappings(vars(a), vars(b), at)
    if isinstance(value, datetime.datetime | datetime.time):
        return _clocks
    if isinstance(value, decimal.Decimal):
        return lambda a, b, at: None if str(a) == str(b) else f"{at}: {a} and {b}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return lambda a, b, at: _mappings(
            {name: getattr(a, name) for name in names},
            {name: getattr(b, name) for name in names},
            at,
        )
    return None


def _parts(value: Any) -> tuple[Any, Any, Any]:
    return value.start, value.stop, value.step


def _floats(one: complex, two: complex, place: str) -> str | None:
    bits = [struct.pack("<2d", value.real, value.imag).hex() for value in (one, two)]
    return None if bits[0] == bits[1] else f"{place}: {one!r} {bits[0]} and {two!r} {bits[1]}"


def _sequences(one: Any, two: Any, place: str) -> str | None:
    if len(one) != len(two):
        return f"{place}: {len(one)} and {len(two)} elements"
    if getattr(one, "maxlen", None) != getattr(two, "maxlen", None):
        return f"{place}: maxlen {one.maxlen} and {two.maxlen}"
    for position, pair in enumerate(zip(one, two, strict=True)):
        if found := difference(*pair, f"{place}/{position}"):
            return found
    return None


def _mappings(one: Mapping[Any, Any], two: Mapping[Any, Any], place: str) -> str | None:
    if len(one) != len(two):
        return f"{place}: keys {list(one)!r} and {list(two)!r}"
    pairs = zip(one.items(), two.items(), strict=True)
    for position, ((key, value), (other_key, other)) in enumerate(pairs):
        at = f"{place}/{key if type(key) is str else f'item {position}'}"
        if found := difference(key, other_key, f"{at}, key"):
            return found
        if found := difference(value, other, at):
            return found
    for name in ("default_factory", "_metadata"):
        values = getattr(one, name, OMIT), getattr(two, name, OMIT)
        if found := difference(*values, f"{place}, {name}"):
            return found
    return None


def _sets(one: Any, two: Any, place: str) -> str | None:
    left = list(two)
    for element in one:
        position = next((i for i, other in enumerate(left) if same(element, other)), None)
        if position is None:
            return f"{place}: {element!r} is missing from {two!r}"
        del left[position]
    return f"{place}: {left!r} is new" if left else None


def _clocks(one: Any, two: Any, place: str) -> str | None:
    facts = [
        (
            value.replace(tzinfo=None),
            value.fold,
            type(value.tzinfo),
            getattr(value.tzinfo, "key", None),
            value.utcoffset(),
            value.tzname(),
        )
        for value in (one, two)
    ]
    return None if facts[0] == facts[1] else f"{place}: {facts[0]} and {facts[1]}"


def _scalars(one: Any, two: Any, place: str) -> str | None:
    if (one.dtype.str, one.tobytes()) == (two.dtype.str, two.tobytes()):
        return None
    return f"{place}: {one!r} {one.tobytes().hex()} and {two!r} {two.tobytes().hex()}"


def _arrays(one: Any, two: Any, place: str) -> str | None:
    for fact in ("dtype.str", "shape", "flags.c_contiguous", "flags.f_contiguous"):
        values = []
        for array in (one, two):
            value = array
            for name in fact.split("."):
                value = getattr(value, name)
            values.append(value)
        if values[0] != values[1]:
            return f"{place}: {fact} {values[0]} and {values[1]}"
    if one.dtype.kind == "O":
        return _sequences(one.ravel().tolist(), two.ravel().tolist(), place)
    return None if one.tobytes() == two.tobytes() else f"{place}: the bytes of {one!r} and {two!r}"


def _tensors(one: torch.Tensor, two: torch.Tensor, place: str) -> str | None:
    for fact in ("dtype", "shape", "layout", "device", "requires_grad", "is_quantized"):
        values = getattr(one, fact), getattr(two, fact)
        if values[0] != values[1]:
            return f"{place}: {fact} {values[0]} and {values[1]}"
    one, two = one.detach(), two.detach()
    both_dense = one.layout is torch.strided and dense(one) and dense(two)
    if both_dense and steps(one) != steps(two):
        return f"{place}: strides {one.stride()} and {two.stride()}"
    if one.is_quantized:
        schemes = one.qscheme(), two.qscheme()
        if schemes[0] != schemes[1]:
            return f"{place}: {schemes[0]} and {schemes[1]}"
        parts = ["int_repr"] + (
            ["q_scale", "q_zero_point"]
            if schemes[0] in (torch.per_tensor_affine, torch.per_tensor_symmetric)
            else ["q_per_channel_scales", "q_per_channel_zero_points", "q_per_channel_axis"]
        )
    elif one.layout is torch.sparse_coo:
        parts = ["is_coalesced", "_indices", "_values"]
    elif one.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = ["crow_indices", "col_indices", "values"]
    elif one.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = ["ccol_indices", "row_indices", "values"]
    else:
        one, two = _once(one, two)
        equal = one.device.type == "meta" or tensor_bytes(one) == tensor_bytes(two)
        return None if equal else f"{place}: the bytes of {one!r} and {two!r}"
    for part in parts:
        if found := difference(getattr(one, part)(), getattr(two, part)(), f"{place}.{part}"):
            return found
    return None


def dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor fills its memory and meets no byte twice, so that its strides are kept."""
    expected = 1
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and step != expected:
            return False
        expected *= max(size, 1)
    return True


def steps(tensor: torch.Tensor) -> list[int]:
    """The strides that say where elements are."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return [step for size, step in pairs if size > 1] if tensor.numel() else []


def _once(one: torch.Tensor, two: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both without what both repeat: a view may say one element more often than memory can hold."""
    for dim, steps in enumerate(zip(one.stride(), two.stride(), strict=True)):
        if steps == (0, 0) and one.shape[dim] > 1:
            one, two = one.narrow(dim, 0, 1), two.narrow(dim, 0, 1)
    return one, two


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The elements of a dense tensor in row-major order, as they lie in memory."""
    plain = tensor.resolve_conj().resolve_neg().cpu()
    # torch can view its sub-byte integers and bits as plain integers, but not copy them.
    bits = {1: torch.uint8, 2: torch.int16}.get(plain.element_size())
    plain = (plain if bits is None else plain.view(bits)).contiguous()
    return ctypes.string_at(plain.data_ptr(), plain.numel() * plain.element_size())


class FakeTensor:
    """Stands for a tensor. Compared and hashed by identity, as tensors are hashed."""


class FakeTensors:
    """A writer and reader of :class:`FakeTensor` and arrays. Keeps them in ``records``.

    Args:
        omit: the names that are left out when reading.
    """

    def __init__(self, omit: Callable[[str], bool] = lambda _: False) -> None:
        self.records: dict[str, Any] = {}
        self._omit = omit
        self._names: dict[int, str] = {}

    def is_tensor(self, value: object) -> bool:
        return type(value) is FakeTensor

    def put(self, value: Any, name: str) -> Json:
        known = self._names.setdefault(id(value), name)
        if known == name:
            assert name not in self.records, f"{name} was given twice"
            self.records[name] = value
        return {"$tensor": known}

    def put_array(self, array: Any, name: str) -> Json:
        assert name not in self.records, f"{name} was given twice"
        assert array.flags.c_contiguous
        assert array.dtype.str[0] in "<|"
        assert array.dtype.kind in "biufc"
        self.records[name] = array
        return {"$tensor": name}

    def get(self, tag: str, body: Json, place: str) -> Any:
        from jsonckpt._src.errors import FormatError

        if tag != "$tensor" or type(body) is not str or body not in self.records:
            raise FormatError(f"{place}: no such tensor")
        return OMIT if self._omit(body) else self.records[body]

    def get_array(self, body: Json, place: str) -> Any:
        from jsonckpt._src.errors import FormatError

        if type(body) is not dict or list(body) != ["$tensor"]:
            raise FormatError(f"{place}: no such tensor")
        return self.get("$tensor", body["$tensor"], place)

    def charge(self, nbytes: int, place: str) -> None:
        """Nothing is too much here."""
