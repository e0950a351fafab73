"""Makes a tensor of what foreign JSON says of it: numbers or base64, a dtype and a shape.

Nothing is guessed. An unknown dtype is an error. So are values that do not fill the shape, and a
number that the dtype cannot hold.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pybase64
import torch

from ..errors import FormatError, LimitError, quote
from ..format.dtypes import DTYPES
from ..storage.spool import Spool
from ..tensors.pieces import bits, over
from .default_dtype import dtype_of_kinds
from .digits import DigitWatch
from .number_array import BINARY, MAX_RANK, Kind, null_error
from .scratch import Numbers, Scratch, Text, new_tensor

_ALIASES = {
    "double": "float64",
    "float": "float32",
    "half": "float16",
    "long": "int64",
    "int": "int32",
    "short": "int16",
    "char": "int8",
    "byte": "uint8",
    "chalf": "complex32",
    "cfloat": "complex64",
    "cdouble": "complex128",
    "bool_": "bool",
    "complexhalf": "complex32",
    "complexfloat": "complex64",
    "complexdouble": "complex128",
}
#: The dtypes whose values are numbers. The values of sub-byte dtypes are only bits.
_DTYPES: dict[str, torch.dtype] = {
    row.name: getattr(torch, row.name)
    for row in DTYPES.values()
    if (row.real == row.name or row.kind == "complex")
    and row.name != "float4_e2m1fn_x2"
    and hasattr(torch, row.name)
}
NUMBER_DTYPES = frozenset(_DTYPES.values())
_NUMPY_KINDS = {"b": "int", "i": "int", "u": "uint", "f": "float", "c": "complex"}
_NUMPY_CODE = re.compile(r"([<>=|])?([biufc?])([0-9]{1,2})?")
_TORCH_TYPE = re.compile(r"(?:torch\.)?(?:cuda\.)?([A-Za-z0-9]+)Tensor")
#: The dtypes that NumPy can convert to.
_NATIVE: dict[torch.dtype, type[np.generic]] = {
    dtype: getattr(np, name)
    for name, dtype in _DTYPES.items()
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
Values = Iterator[tuple[Kind, npt.NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Payload:
    """What the text says of one tensor.

    Attributes:
        values: numbers (a nested list, one number, or lifted), or base64.
        dtype: the name in the text. Without one, the dtype that seems right, or ``None``.
        shape: the shape in the text. ``None`` means the shape of the nested list.
        order: ``"F"`` if the base64 data is in column-major order.
        byteorder: ``">"`` if the base64 data is big-endian.
        compressed: True for base64 of zlib or gzip data.
        split: True if a complex tensor is a pair of arrays, not an array of pairs.
        requires_grad: the value in the text.
    """

    values: Any
    dtype: str | torch.dtype | None = None
    shape: object = None
    order: Literal["C", "F"] = "C"
    byteorder: Literal["<", ">"] = "<"
    compressed: bool = False
    split: bool = False
    requires_grad: bool = False


def dtype_named(name: object) -> tuple[torch.dtype, Literal["<", ">"]]:
    """The dtype of that name, in any of the usual spellings, and its byte order.

    Raises:
        FormatError: the name is unknown.

    >>> dtype_named("torch.float32")
    (torch.float32, '<')
    >>> dtype_named(">f4")[1], dtype_named("torch.HalfTensor")[0]
    ('>', torch.float16)
    """
    text = name if isinstance(name, str) else ""
    short = text.rsplit(".", 1)[-1]
    if (match := _TORCH_TYPE.fullmatch(text)) is not None:
        short = match[1].lower()
    short = _ALIASES.get(short, short)
    if short in _DTYPES:
        return _DTYPES[short], "<"
    code = _NUMPY_CODE.fullmatch(text)
    if code is not None:
        if code[2] == "?" or (code[2] == "b" and code[3] == "1" and code[1] == "|"):
            return torch.bool, "<"
        bits = int(code[3] or 0) * 8
        known = _DTYPES.get(f"{_NUMPY_KINDS[code[2]]}{bits}")
        if known is not None:
            return known, ">" if code[1] == ">" else "<"
    raise FormatError(
        f"unknown dtype {quote(name)}",
        hint="Known are torch's names, NumPy's names and codes, torch.FloatTensor and the like.",
    )


def parse_shape(shape: object) -> tuple[int, ...]:
    """Check a shape from a file.

    Raises:
        FormatError: not a list of sizes.
        LimitError: too many dimensions.
    """
    if not isinstance(shape, list | tuple) or not all(
        type(size) is int and 0 <= size < 1 << 63 for size in shape
    ):
        raise FormatError(f"a shape is a list of sizes, not {quote(shape)}")
    if len(shape) > MAX_RANK:
        raise LimitError(f"a shape with {len(shape)} dimensions; {MAX_RANK} are allowed")
    return tuple(shape)


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
        is_text = isinstance(payload.values, str | Text)
        try:
            tensor = self._from_base64(payload) if is_text else self._from_values(payload)
        finally:
            if isinstance(payload.values, Numbers | Text):
                self._scratch.release()
        if payload.requires_grad and (tensor.is_floating_point() or tensor.is_complex()):
            tensor.requires_grad_(True)
        return tensor

    def python_list(self, numbers: Numbers) -> list[Any]:
        """The nested list that lifted numbers were in the text."""
        flat: list[Any] = []
        for kind, array in self._pieces(numbers):
            flat += (array.astype(np.bool_) if kind == "bool" else array).tolist()
        self._scratch.release()
        for size in reversed(numbers.shape[1:]):
            flat = [flat[i : i + size] for i in range(0, len(flat), size)] if size else []
        return flat

    def _pieces(self, numbers: Numbers) -> Values:
        data = self._scratch.read(*numbers.values)
        left = b""
        for run in numbers.runs:
            wanted = run.count * 8
            while wanted:
                left = left or next(data)
                piece, left = left[:wanted], left[wanted:]
                wanted -= len(piece)
                yield run.kind, np.frombuffer(piece, BINARY[run.kind])

    def _from_values(self, payload: Payload) -> torch.Tensor:
        values = payload.values
        pieces: Values
        is_complex = False
        if isinstance(values, Numbers):
            found, kinds = values.shape, {run.kind for run in values.runs}
            pieces = self._pieces(values)
        else:
            flat, found = _flatten(values)
            small, is_complex = _small(flat)
            if is_complex:
                found = (*found, 2)
            kinds, pieces = {kind for kind, _ in small}, iter(small)
        if isinstance(payload.dtype, str):
            dtype, _ = dtype_named(payload.dtype)
        else:
            dtype = dtype_of_kinds(kinds, payload.dtype, self._floats, is_complex=is_complex)
        if dtype not in _REAL:
            tensor = new_tensor(self._spool, dtype, _fitting(found, payload.shape))
            if isinstance(payload.dtype, str) or dtype is not torch.float32:
                _fill(tensor.view(-1), pieces)
            else:
                watch = DigitWatch(pieces)
                _fill(tensor.view(-1), watch)
                self.digits_lost += watch.lost
            return tensor
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
        self, dtype: torch.dtype, found: tuple[int, ...], given: object, pieces: Values
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

    def _from_base64(self, payload: Payload) -> torch.Tensor:
        if payload.dtype is None:
            raise FormatError(
                "base64 without a dtype", hint="The text does not say what the bytes mean."
            )
        dtype, byteorder = dtype_named(payload.dtype)
        text = payload.values
        length = text.stretch.length if isinstance(text, Text) else len(text)
        pieces = base64_pieces(text, self._scratch)
        if payload.shape is not None:
            shape = parse_shape(payload.shape)
        elif payload.compressed:
            raise FormatError("compressed data without a shape")
        else:
            count, rest = divmod(sum(map(len, pieces)), dtype.itemsize)
            if rest:
                raise FormatError(f"the number of bytes is not a multiple of {dtype.itemsize}")
            shape, pieces = (count,), base64_pieces(text, self._scratch)
        nbytes = prod(shape) * dtype.itemsize
        if payload.compressed:
            self._limit -= nbytes
            if self._limit < 0:
                raise LimitError(
                    "the compressed tensors decompress to more than the limits allow",
                    hint="Pass --limit expansion=none if it is meant.",
                )
            pieces = _inflate(pieces, nbytes)
        elif nbytes > length:
            raise FormatError(f"{length:,} characters of base64 for {nbytes:,} bytes")
        tensor = new_tensor(self._spool, dtype, shape)
        target, position = _raw(tensor), 0
        for piece in pieces:
            if position + len(piece) > nbytes:
                raise FormatError(f"more than the {nbytes:,} bytes that shape and dtype say")
            target[position : position + len(piece)] = np.frombuffer(piece, np.uint8)
            position += len(piece)
        if position != nbytes:
            raise FormatError(f"{position:,} bytes where shape and dtype say {nbytes:,}")
        if payload.byteorder == ">" or byteorder == ">":
            target.view(f"u{_REAL.get(dtype, dtype).itemsize}").byteswap(inplace=True)
        if dtype is torch.bool and nbytes and int(target.max()) > 1:
            raise FormatError("a byte other than 0 and 1 in a bool tensor")
        if payload.order == "F" and len(shape) > 1:
            return tensor.view(shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
        return tensor


def base64_pieces(text: str | Text, scratch: Scratch) -> Iterator[bytes]:
    """Decode base64 in pieces."""
    if isinstance(text, str):
        chunks: Iterator[bytes] = iter([text.encode("utf-8", "replace")])
        escaped = False
    else:
        chunks, escaped = scratch.read(*text.stretch, 3 << 18), text.escaped
    left = b""
    for chunk in chunks:
        chunk = left + chunk
        if escaped:
            chunk = chunk.replace(b"\\/", b"/").replace(b"\\n", b"").replace(b"\\r", b"")
        chunk = chunk.translate(None, b"\r\n") if b"\n" in chunk else chunk
        # The end of the chunk may cut an escape in two. Escapes have two characters.
        cut = len(chunk) // 4 * 4 if b"\\" not in chunk[-4:] else (len(chunk) - 4) // 4 * 4
        left = chunk[cut:]
        yield _decode(chunk[:cut])
    if left:
        yield _decode(left)


def _decode(text: bytes) -> bytes:
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError as error:
        raise FormatError(f"not base64 ({quote(str(error))})") from error


def _inflate(pieces: Iterator[bytes], nbytes: int) -> Iterator[bytes]:
    engine = zlib.decompressobj(wbits=47)
    try:
        for piece in pieces:
            while piece:
                out = engine.decompress(piece, 1 << 20)
                nbytes -= len(out)
                if nbytes < 0:
                    raise FormatError("compressed data longer than shape and dtype say")
                yield out
                piece = engine.unconsumed_tail
                if engine.unused_data:
                    raise FormatError("more bytes after the compressed data")
    except zlib.error as error:
        raise FormatError(f"damaged compressed data ({quote(str(error))})") from error
    if not engine.eof:
        raise FormatError("compressed data ends too early")


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
            raise FormatError("rows of unequal length")
        flat = [item for row in flat for item in row]
        shape.append(size)
    return flat, tuple(shape)


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


def _fill(target: torch.Tensor, pieces: Values) -> None:
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
