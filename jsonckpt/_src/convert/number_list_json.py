"""Writes the JSON of the Kaggle guide's own converter, for notebooks that read only that.

``{"model_state_dict": {name: {"data": nested list, "shape": […], "dtype": "torch.float32"}}, …}``.
The text is written in pieces of about 1 MiB.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson
import torch

from ..errors import UnsupportedTypeError
from ..foreign.payloads import NUMBER_DTYPES
from ..format.pointer import join
from ..tensors.pieces import plain

#: Bytes of a tensor that become text at once.
_PIECE = 1 << 18
MAX_DEPTH = 150
Write = Callable[[bytes], object]


def write_number_lists(state: Any, write: Write) -> list[str]:
    """Write a state in the guide's dialect.

    Args:
        state: dictionaries and sequences with tensors, numbers, strings, booleans and None.
        write: gets the text.

    Returns:
        The names of values that the dialect cannot express. They are left out.

    Raises:
        UnsupportedTypeError: the dialect cannot express a tensor (complex, sparse, quantized), an
            item of a list, or the state itself.

    >>> out = bytearray()
    >>> write_number_lists({"w": torch.tensor([1.5, 2.0])}, out.extend)
    []
    >>> out.decode()
    '{"w": {"data": [1.5,2.0], "shape": [2], "dtype": "torch.float32"}}'
    """
    left_out: list[str] = []
    if not _expressible(state):
        raise UnsupportedTypeError(f"a {type(state).__name__} cannot be written in this dialect")
    _value(state, "", write, left_out, 0)
    return left_out


def _expressible(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple | torch.Tensor | str | bool | int | float) or (
        value is None
    )


def _value(value: Any, name: str, write: Write, left_out: list[str], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UnsupportedTypeError(f"nested deeper than {MAX_DEPTH} levels", tensor=name)
    if isinstance(value, torch.Tensor):
        _tensor(value, name, write)
    elif isinstance(value, Mapping):
        write(b"{")
        separator, written = b"", set()
        for key, item in value.items():
            below = join(name, str(key))
            if not _expressible(item) or not isinstance(key, str | int | float | bool | None):
                left_out.append(below)
                continue
            text = json.dumps({key: None})[1:-7]
            if text in written:
                raise UnsupportedTypeError(f"two keys are {text} in JSON", tensor=below)
            written.add(text)
            write(separator + text.encode() + b": ")
            _value(item, below, write, left_out, depth + 1)
            separator = b", "
        write(b"}")
    elif isinstance(value, list | tuple):
        write(b"[")
        for index, item in enumerate(value):
            if not _expressible(item):
                raise UnsupportedTypeError(
                    f"a {type(item).__name__} in a list cannot be written in this dialect",
                    tensor=f"{name}/{index}",
                )
            write(b", " if index else b"")
            _value(item, f"{name}/{index}", write, left_out, depth + 1)
        write(b"]")
    else:
        write(json.dumps(value).encode())


def _tensor(tensor: torch.Tensor, name: str, write: Write) -> None:
    plain_layout = tensor.layout == torch.strided and not tensor.is_quantized
    if tensor.dtype not in NUMBER_DTYPES or tensor.is_complex() or not plain_layout:
        raise UnsupportedTypeError(
            f"a tensor of {tensor.dtype}, {tensor.layout}, cannot be written in this dialect",
            tensor=name,
            hint="Leave it out with --exclude.",
        )
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
