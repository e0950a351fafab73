"""Writes the JSON of the Kaggle guide's own converter, for notebooks that read only that.

``{"model_state_dict": {name: {"data": nested list, "shape": […], "dtype": "torch.float32"}}, …}``.
The text is written in pieces of about 1 MiB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson
import torch

from ..errors import UnsupportedTypeError
from ..foreign.payloads import NUMBER_DTYPES
from ..format.json_text import is_text
from ..format.pointer import join
from ..tensors.pieces import blocks, memory_of, plain
from .tally import Tally

#: Bytes of a tensor that become text at once.
_PIECE = 1 << 18
MAX_DEPTH = 150
Write = Callable[[bytes], object]
_PLAIN = (bool, int, float, str, type(None))


class NumberLists:
    """A state as the guide's dialect writes it.

    Args:
        state: dictionaries and sequences with tensors, numbers, strings, booleans and None.

    Attributes:
        left_out: names of values that the dialect cannot express.
        changes: what is another type, or something less, when it is read back.

    Raises:
        UnsupportedTypeError: the dialect cannot express a tensor (complex, sparse, quantized), an
            item of a list, or the state itself.

    >>> lists, out = NumberLists({"w": torch.tensor([1.5, 2.0]), "size": (2, 3)}), bytearray()
    >>> lists.changes.notes()
    ['tuples become lists: 1 (/size)']
    >>> lists.write(out.extend)
    >>> out.decode()
    '{"w": {"data": [1.5,2.0], "shape": [2], "dtype": "torch.float32"}, "size": [2, 3]}'
    """

    def __init__(self, state: Any) -> None:
        self.left_out: list[str] = []
        self.changes = Tally()
        self._state = state
        self._seen: set[object] = set()
        if not _expressible(state):
            raise UnsupportedTypeError(
                f"a {type(state).__name__} cannot be written in this dialect"
            )
        self._check(state, "", 0)

    def write(self, write: Write) -> None:
        """Write the text. ``write`` gets it in pieces."""
        _value(self._state, write)

    def _check(self, value: Any, name: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise UnsupportedTypeError(f"nested deeper than {MAX_DEPTH} levels", tensor=name)
        if isinstance(value, torch.Tensor):
            self._check_tensor(value, name)
        elif isinstance(value, Mapping):
            self._check_mapping(value, name, depth)
        elif isinstance(value, list | tuple):
            if type(value) is not list:
                self.changes.add("tuples become lists", name)
            for index, item in enumerate(value):
                if not _expressible(item):
                    raise UnsupportedTypeError(
                        f"a {type(item).__name__} in a list cannot be written in this dialect",
                        tensor=f"{name}/{index}",
                    )
                self._check(item, f"{name}/{index}", depth + 1)
        else:
            if type(value) not in _PLAIN:
                self.changes.add("numbers and strings of other types become plain ones", name)
            if isinstance(value, str):
                _require_text(value, name)
            if isinstance(value, float) and not math.isfinite(value):
                self.changes.add(_NOT_FINITE, name)

    def _check_mapping(self, value: Mapping[Any, Any], name: str, depth: int) -> None:
        if type(value) is not dict:
            self.changes.add("dictionaries of other types become plain ones", name)
        written = set()
        for key, item in value.items():
            below = join(name, str(key))
            if not _is_written(key, item):
                self.left_out.append(below)
                continue
            if isinstance(key, str):
                _require_text(key, below)
            if type(key) is not str:
                self.changes.add("keys become strings", below)
            if (text := _key(key)) in written:
                raise UnsupportedTypeError(f"two keys are {text} in JSON", tensor=below)
            written.add(text)
            self._check(item, below, depth + 1)

    def _check_tensor(self, tensor: torch.Tensor, name: str) -> None:
        plain_layout = tensor.layout == torch.strided and not tensor.is_quantized
        if tensor.dtype not in NUMBER_DTYPES or tensor.is_complex() or not plain_layout:
            raise UnsupportedTypeError(
                f"a tensor of {tensor.dtype}, {tensor.layout}, cannot be written in this dialect",
                tensor=name,
                hint="Leave it out with --exclude.",
            )
        note_lost_forms(tensor, name, self.changes)
        if tensor.is_floating_point():
            if tensor.dtype not in (torch.float32, torch.float64):
                self.changes.add(f"{tensor.dtype} is written with the digits of float32", name)
            if not all_finite(tensor):
                self.changes.add(_NOT_FINITE, name)
        place = memory_of(tensor)
        if place is not None and place in self._seen:
            self.changes.add("tied tensors are written once each, and not tied", name)
        self._seen.add(place)


def _require_text(value: str, name: str) -> None:
    if not is_text(value):
        raise UnsupportedTypeError(
            "a string with a lone surrogate cannot be written in this dialect", tensor=name
        )


def write_number_lists(state: Any, write: Write) -> list[str]:
    """Write a state in the guide's dialect; return what is left out. See :class:`NumberLists`."""
    lists = NumberLists(state)
    lists.write(write)
    return lists.left_out


_NOT_FINITE = "NaN and infinities are words, which strict parsers refuse; bits of a NaN are lost"


def note_lost_forms(tensor: torch.Tensor, name: str, lost: Tally) -> None:
    """Count what a format with only dtype, shape and values loses of a tensor."""
    if isinstance(tensor, torch.nn.Parameter):
        lost.add("parameters become tensors", name)
    elif tensor.requires_grad:
        lost.add("requires_grad is not kept", name)
    if tensor.numel() and not tensor.is_contiguous():
        lost.add("strides are not kept", name)


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite. Works in pieces."""
    return all(bool(block.to(torch.float64).isfinite().all()) for block in blocks(plain(tensor)))


def _expressible(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple | torch.Tensor | str | int | float) or (
        value is None
    )


def _is_written(key: Any, item: Any) -> bool:
    return _expressible(item) and isinstance(key, str | int | float | bool | None)


def _key(key: Any) -> str:
    return json.dumps({key: None})[1:-7]


def _value(value: Any, write: Write) -> None:
    if isinstance(value, torch.Tensor):
        _tensor(value, write)
    elif isinstance(value, Mapping):
        write(b"{")
        separator = b""
        for key, item in value.items():
            if _is_written(key, item):
                write(separator + _key(key).encode() + b": ")
                _value(item, write)
                separator = b", "
        write(b"}")
    elif isinstance(value, list | tuple):
        write(b"[")
        for index, item in enumerate(value):
            write(b", " if index else b"")
            _value(item, write)
        write(b"]")
    else:
        write(json.dumps(value).encode())


def _tensor(tensor: torch.Tensor, write: Write) -> None:
    write(b'{"data": ')
    _rows(plain(tensor), write)
    write(f', "shape": {json.dumps(list(tensor.shape))}, "dtype": "{tensor.dtype}"'.encode() + b"}")


def _rows(tensor: torch.Tensor, write: Write) -> None:
    """Write the nested list, in blocks of rows."""
    nbytes = tensor.numel() * tensor.itemsize
    if nbytes <= _PIECE:
        write(_numbers(tensor))
        return
    write(b"[")
    row = nbytes // tensor.shape[0]
    step = max(1, _PIECE // row)
    for start in range(0, tensor.shape[0], step):
        write(b", " if start else b"")
        if row > _PIECE:
            _rows(tensor[start], write)
        else:
            write(_numbers(tensor[start : start + step])[1:-1])
    write(b"]")


def _numbers(tensor: torch.Tensor) -> bytes:
    if tensor.dtype.is_floating_point and tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.to(torch.float32)
    array = tensor.contiguous().numpy()
    unknown_to_orjson = array.ndim == 0
    if unknown_to_orjson or (array.dtype.kind == "f" and not bool(np.isfinite(array).all())):
        # NaN and infinities as Python writes them, like the guide's converter.
        return json.dumps(array.tolist()).encode()
    if array.dtype.kind == "f" and array.dtype.itemsize == 4:
        # The digits of the float64, as Python prints it: readers get exactly this float64.
        array = array.astype(np.float64)
    return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
