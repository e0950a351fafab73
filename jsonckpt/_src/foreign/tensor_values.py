"""Makes a tensor of what foreign JSON says of it: numbers or base64, a dtype and a shape.

Nothing is guessed. An unknown dtype is an error. So are values that do not fill the shape, and a
number that the dtype cannot hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..errors import FormatError, LimitError, quote
from ..json_stream.digits import DigitWatch
from ..json_stream.encoded import (
    NPY_MAGIC,
    Form,
    byte_pieces,
    byte_values,
    inflate,
    looks_deflated,
    most_bytes,
    npy_header,
)
from ..json_stream.number_array import MAX_RANK, Kind, null_error
from ..json_stream.plain_values import Pieces, number_pieces
from ..json_stream.scratch import Numbers, Ragged, Scratch, Text
from ..json_stream.spooled import new_tensor
from ..storage.spool import Spool
from ..tensors.pieces import bits, over
from .default_dtype import dtype_of_kinds
from .payloads import DTYPES_BY_NAME, Payload, dtype_named, parse_shape

#: The dtypes that NumPy can convert to.
_NATIVE: dict[torch.dtype, type[np.generic]] = {
    dtype: getattr(np, name)
    for name, dtype in DTYPES_BY_NAME.items()
    if hasattr(np, name) and not name.startswith(("bool", "complex"))
}
_REAL = {
    torch.complex32: torch.float16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}
_WORDS = {
    "nan": float("nan"),
    "inf": float("inf"),
    "infinity": float("inf"),
    "+infinity": float("inf"),
    "-inf": float("-inf"),
    "-infinity": float("-inf"),
}
#: How the files of ``torch.save`` begin in base64: the ZIP format, and the one before it.
PICKLE_HEADS = ("UEsDB", "gAKKCmz8nEb5")
#: The hint for a tensor whose values do not fill a rectangle.
RAGGED_HINT = "A tensor needs rows of equal length. Mend the values or take the tensor out."


class TensorBuilder:
    """Makes tensors in a spool.

    Args:
        spool: the memory for the tensors.
        scratch: the file with the lifted values.
        limit: the most bytes that all compressed data together may decompress to.
        floats: the dtype of numbers that are not whole, where the text says none.

    Attributes:
        digits_lost: the number of tensors without a dtype whose numbers have more digits than
            float32 holds.
    """

    def __init__(
        self, spool: Spool, scratch: Scratch, limit: int, floats: torch.dtype = torch.float32
    ) -> None:
        self.digits_lost = 0
        self._floats = floats
        self._spool = spool
        self._scratch = scratch
        self._limit = limit

    def build(self, payload: Payload) -> torch.Tensor:
        """Make the tensor.

        Raises:
            FormatError, LimitError: the values, dtype and shape do not make a tensor.
            WriteError: no room on disk.
        """
        if isinstance(payload.values, Ragged):
            payload = replace(payload, values=payload.values.loads(self._scratch))
            self._scratch.release()
        is_bytes = payload.form in ("bytes", "bits") or isinstance(payload.values, str | Text)
        try:
            tensor = self._from_bytes(payload) if is_bytes else self._from_values(payload)
        finally:
            if isinstance(payload.values, Numbers):
                self._scratch.release(len(payload.values.values))
            elif isinstance(payload.values, Text):
                self._scratch.release()
        if payload.requires_grad and (tensor.is_floating_point() or tensor.is_complex()):
            tensor.requires_grad_(True)
        return tensor

    def _from_values(self, payload: Payload) -> torch.Tensor:
        values = payload.values
        pieces: Pieces
        is_complex = False
        if isinstance(values, Numbers):
            found, kinds = values.shape, {run.kind for run in values.runs}
            pieces = number_pieces(values, self._scratch)
        else:
            flat, found = _flatten(values)
            small, is_complex = _small(flat)
            if is_complex:
                found = (*found, 2)
            kinds, pieces = {kind for kind, _ in small}, iter(small)
        said = self._floats if payload.floats and payload.dtype is None else payload.dtype
        if said is None or isinstance(said, torch.dtype):
            dtype = dtype_of_kinds(kinds, said, self._floats, is_complex=is_complex)
        else:
            dtype, _ = dtype_named(said)
        if dtype not in _REAL:
            tensor = new_tensor(self._spool, dtype, _fitting(found, payload.shape))
            if isinstance(payload.dtype, str) or dtype is not torch.float32:
                _fill(tensor.view(-1), pieces)
            else:
                watch = DigitWatch(pieces)
                _fill(tensor.view(-1), watch)
                self.digits_lost += watch.lost
            # Brackets are in the order of the indices. Only a flat list may be in another one.
            return _reordered(tensor, payload.order if len(found) == 1 else "C")
        if payload.split:
            return self._split_complex(dtype, found, payload.shape, pieces)
        if found[-1:] != (2,) and payload.shape is None:
            raise FormatError("a complex tensor needs pairs of numbers: [real, imaginary]")
        shape = found[:-1] if payload.shape is None else parse_shape(payload.shape)
        _fitting(found, [*shape, 2])
        tensor = new_tensor(self._spool, dtype, shape)
        _fill(_components(tensor).view(-1), pieces)
        return tensor

    def _split_complex(
        self, dtype: torch.dtype, found: tuple[int, ...], given: object, pieces: Pieces
    ) -> torch.Tensor:
        if found[:1] != (2,):
            raise FormatError("a complex tensor needs two arrays: real and imaginary parts")
        shape = _fitting(found[1:], given)
        tensor = new_tensor(self._spool, dtype, shape)
        halves = new_tensor(self._spool, _REAL[dtype], (2, tensor.numel()))
        _fill(halves.view(-1), pieces)
        parts = _components(tensor).view(-1, 2)
        parts[:, 0].copy_(halves[0])
        parts[:, 1].copy_(halves[1])
        return tensor

    def _from_bytes(self, payload: Payload) -> torch.Tensor:
        fresh = self._byte_pieces(payload)
        first = next(fresh, b"")
        pieces: Iterator[bytes] = chain([first], fresh)
        if first.startswith(NPY_MAGIC):
            return self._from_npy(payload, pieces)
        if payload.dtype is None:
            raise FormatError(
                "base64 without a dtype", hint="The text does not say what the bytes mean."
            )
        dtype, byteorder = dtype_named(payload.dtype)
        if payload.shape is not None:
            shape = parse_shape(payload.shape)
        elif payload.compressed:
            raise FormatError("compressed data without a shape")
        else:
            count, rest = divmod(sum(map(len, pieces)), dtype.itemsize)
            if rest:
                raise FormatError(f"the number of bytes is not a multiple of {dtype.itemsize}")
            shape, pieces = (count,), self._byte_pieces(payload)
        nbytes = prod(shape) * dtype.itemsize
        compressed = payload.compressed
        if compressed is None and looks_deflated(first) and payload.shape is not None:
            compressed = sum(map(len, pieces)) != nbytes
            pieces = self._byte_pieces(payload)
        if compressed:
            self._limit -= nbytes
            if self._limit < 0:
                raise LimitError(
                    "the compressed tensors decompress to more than the limits allow",
                    hint="Pass --limit expansion=none if it is meant.",
                )
            pieces = inflate(pieces, nbytes)
        else:
            _check_length(payload, nbytes)
        big = payload.byteorder == ">" or byteorder == ">"
        return self._read_bytes(pieces, dtype, shape, big, payload.order)

    def _from_npy(self, payload: Payload, pieces: Iterator[bytes]) -> torch.Tensor:
        header, pieces = npy_header(pieces)
        dtype, byteorder = dtype_named(header.dtype)
        shape = parse_shape(header.shape)
        check_facts(payload, dtype, shape)
        _check_length(payload, prod(shape) * dtype.itemsize)
        order: Literal["C", "F"] = "F" if header.fortran else "C"
        return self._read_bytes(pieces, dtype, shape, byteorder == ">", order)

    def _byte_pieces(self, payload: Payload) -> Iterator[bytes]:
        values = payload.values
        if isinstance(values, str | Text):
            form: Form = "hex" if payload.form == "hex" else "base64"
            return byte_pieces(values, self._scratch, form)
        size = dtype_named(payload.dtype)[0].itemsize if payload.form == "bits" else 1
        if isinstance(values, Numbers):
            return byte_values(number_pieces(values, self._scratch), size)
        flat, _ = _flatten(values)
        return byte_values(iter(_small(flat)[0]), size)

    def _read_bytes(
        self,
        pieces: Iterator[bytes],
        dtype: torch.dtype,
        shape: tuple[int, ...],
        big_endian: bool,
        order: Literal["C", "F"],
    ) -> torch.Tensor:
        nbytes = prod(shape) * dtype.itemsize
        tensor = new_tensor(self._spool, dtype, shape)
        target, position = _raw(tensor), 0
        for piece in pieces:
            if position + len(piece) > nbytes:
                raise FormatError(f"more than the {nbytes:,} bytes that shape and dtype say")
            target[position : position + len(piece)] = np.frombuffer(piece, np.uint8)
            position += len(piece)
        if position != nbytes:
            raise FormatError(f"{position:,} bytes where shape and dtype say {nbytes:,}")
        if big_endian:
            target.view(f"u{_REAL.get(dtype, dtype).itemsize}").byteswap(inplace=True)
        if dtype is torch.bool and nbytes and int(target.max()) > 1:
            raise FormatError("a byte other than 0 and 1 in a bool tensor")
        return _reordered(tensor, order)


def shape_of(values: object) -> tuple[int, ...] | None:
    """The shape of numbers, nested or flat. ``None`` if they are no array of numbers."""
    if isinstance(values, Numbers):
        return values.shape
    try:
        flat, shape = _flatten(values)
        _small(flat)
    except (FormatError, LimitError):
        return None
    return shape


def check_facts(payload: Payload, dtype: torch.dtype, shape: Sequence[int]) -> None:
    """Refuse values with a dtype or shape of their own, if the text says another one.

    Raises:
        FormatError: it does.
    """
    if payload.dtype is not None and dtype_named(payload.dtype)[0] != dtype:
        raise FormatError(f"values of {dtype} where the text says {quote(payload.dtype)}")
    if payload.shape is not None and parse_shape(payload.shape) != tuple(shape):
        raise FormatError(f"values of shape {list(shape)} where the text says another shape")


def _check_length(payload: Payload, nbytes: int) -> None:
    """Refuse a size that the text cannot have, before memory is allocated for it."""
    values = payload.values
    if isinstance(values, str | Text):
        length = most_bytes(values)
    else:
        length = prod(shape_of(values) or ()) * (8 if payload.form == "bits" else 1)
    if nbytes > length:
        raise FormatError(f"{length:,} characters or numbers for {nbytes:,} bytes")


def _reordered(tensor: torch.Tensor, order: Literal["C", "F"]) -> torch.Tensor:
    """The tensor whose values were written in ``order``."""
    if order == "F" and tensor.dim() > 1:
        return tensor.view(tensor.shape[::-1]).permute(*range(tensor.dim() - 1, -1, -1))
    return tensor


def _components(tensor: torch.Tensor) -> torch.Tensor:
    """The real and imaginary parts of a complex tensor, sharing its memory."""
    return over(tensor.untyped_storage(), _REAL[tensor.dtype], (tensor.numel() * 2,))


def _raw(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The bytes of a contiguous tensor, sharing its memory."""
    array: npt.NDArray[np.uint8] = bits(tensor).numpy()
    return array


def _fitting(found: tuple[int, ...], given: object) -> tuple[int, ...]:
    """The shape ``given``, if values of shape ``found`` fill it. Without one, ``found``."""
    if given is None:
        return found
    shape = parse_shape(given)
    count = prod(found)
    nested_alike = shape == found or (count == 0 and shape[: len(found)] == found)
    if prod(shape) != count or not (nested_alike or len(found) <= 1):
        raise FormatError(f"values of shape {list(found)} do not fill the shape {list(shape)}")
    return shape


def _flatten(value: object) -> tuple[list[Any], tuple[int, ...]]:
    if not isinstance(value, list):
        return [value], ()
    flat: list[Any] = value
    shape = [len(value)]
    while flat and isinstance(flat[0], list):
        if len(shape) == MAX_RANK:
            raise LimitError(f"an array of numbers nested deeper than {MAX_RANK}")
        size = len(flat[0])
        if not all(isinstance(row, list) and len(row) == size for row in flat):
            raise _ragged_error(flat)
        flat = [item for row in flat for item in row]
        shape.append(size)
    if any(isinstance(item, list | Numbers | Ragged) for item in flat):
        raise _ragged_error(flat)
    return flat, tuple(shape)


def _ragged_error(rows: Sequence[Any]) -> FormatError:
    if any(isinstance(row, list) and None in row for row in rows):
        return null_error()
    return FormatError("rows of unequal length or depth", hint=RAGGED_HINT)


def _small(flat: Sequence[Any]) -> tuple[list[tuple[Kind, npt.NDArray[Any]]], bool]:
    """Python numbers as an array, and True if they are complex: an array of pairs."""
    types = {type(value) for value in flat}
    if complex in types and types <= {int, float, complex}:
        pairs = np.array([complex(value) for value in flat], np.complex128).view(np.float64)
        return [("float", pairs)], True
    if not flat:
        return [], False
    if types == {bool}:
        return [("bool", np.array(flat, np.int64))], False
    if types == {int}:
        low, high = min(flat), max(flat)
        if low >= -(1 << 63) and high < 1 << 63:
            return [("int", np.array(flat, np.int64))], False
        if low >= 0 and high < 1 << 64:
            return [("uint", np.array(flat, np.uint64))], False
    if type(None) in types:
        raise null_error()
    try:
        numbers = [_WORDS[value.lower()] if type(value) is str else value for value in flat]
        if {type(value) for value in numbers} <= {int, float}:
            kind: Kind = "wide" if types == {int} else "float"
            return [(kind, np.array([float(value) for value in numbers]))], False
    except (KeyError, OverflowError):
        pass  # the error below names the value
    strange = (value for value in flat if type(value) not in (int, float) or abs(value) > 1e308)
    odd = next(strange, flat[0])
    raise FormatError(f"not a number: {quote(odd)}")


def _fill(target: torch.Tensor, pieces: Pieces) -> None:
    """Convert values into a flat tensor. Refuse values that its dtype cannot hold."""
    dtype, position = target.dtype, 0
    native = _raw(target).view(_NATIVE[dtype]) if dtype in _NATIVE else None
    for kind, values in pieces:
        end = position + len(values)
        if dtype is torch.bool:
            if kind not in ("bool", "int") or (
                len(values) and not 0 <= values.min() <= values.max() <= 1
            ):
                raise FormatError("numbers other than 0 and 1 in a bool tensor")
            _raw(target)[position:end] = values
        elif kind == "bool":
            raise FormatError(f"true or false in a tensor of {dtype}")
        elif not dtype.is_floating_point:
            assert native is not None
            _check_integers(kind, values, dtype)
            native[position:end] = values
        elif native is not None:
            with np.errstate(over="ignore"):
                native[position:end] = values
            _check_finite(values, np.isfinite(native[position:end]), dtype)
        else:
            part = target[position:end]
            part.copy_(torch.from_numpy(values.astype(np.float64)))
            back = part.to(torch.float64).numpy()
            _check_finite(values, np.isfinite(back), dtype)
            # Some 8-bit dtypes lack zero, negative numbers or infinity, and they round large
            # numbers in different ways. So only numbers that they hold exactly are accepted.
            if dtype.itemsize == 1 and not np.array_equal(back, values, equal_nan=True):
                raise FormatError(f"a number that {dtype} cannot hold")
        position = end


def _check_integers(kind: Kind, values: npt.NDArray[Any], dtype: torch.dtype) -> None:
    if not len(values):
        return
    if kind == "wide":
        raise FormatError(f"a number too large for {dtype}")
    if kind == "float" and not bool(
        (np.isfinite(values) & (np.floor(values) == values) & (abs(values) <= 1 << 53)).all()
    ):
        raise FormatError(f"numbers that are not integers in a tensor of {dtype}")
    limits = torch.iinfo(dtype)
    if int(values.min()) < limits.min or int(values.max()) > limits.max:
        raise FormatError(f"a number too large for {dtype}")


def _check_finite(
    values: npt.NDArray[Any], finite: npt.NDArray[np.bool_], dtype: torch.dtype
) -> None:
    if not bool(finite.all()) and bool((np.isfinite(values) & ~finite).any()):
        raise FormatError(f"a number too large for {dtype}")
