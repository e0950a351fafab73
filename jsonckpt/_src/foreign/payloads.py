"""What JSON text says of one tensor: its values, dtype and shape, and the names of dtypes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..errors import FormatError, LimitError, quote
from ..format.dtypes import DTYPES
from ..json_stream.number_array import MAX_RANK

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
    # Of safetensors and Rust. "i8" and the like are not here: NumPy counts bytes, Rust bits.
    **{f"{kind[0].upper()}{n}": f"{kind}{n}" for kind in ("int", "uint") for n in (8, 16, 32, 64)},
    **{f"{kind[0]}{n}": f"{kind}{n}" for kind in ("int", "uint", "float") for n in (32, 64)},
    **{f"F{n}": f"float{n}" for n in (16, 32, 64)},
    "BOOL": "bool",
    "BF16": "bfloat16",
    "bf16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "complexhalf": "complex32",
    "complexfloat": "complex64",
    "complexdouble": "complex128",
}
#: The dtypes whose values are numbers. The values of sub-byte dtypes are only bits.
DTYPES_BY_NAME: dict[str, torch.dtype] = {
    row.name: getattr(torch, row.name)
    for row in DTYPES.values()
    if (row.real == row.name or row.kind == "complex")
    and row.name != "float4_e2m1fn_x2"
    and hasattr(torch, row.name)
}
NUMBER_DTYPES = frozenset(DTYPES_BY_NAME.values())
_NUMPY_KINDS = {"b": "int", "i": "int", "u": "uint", "f": "float", "c": "complex"}
_NUMPY_CODE = re.compile(r"([<>=|])?([biufc?])([0-9]{1,2})?")
#: How Python prints a dtype and a type.
_PRINTED_DTYPE = re.compile(r"(?:dtype\(|<class )'([^']{1,40})'[)>]")
_TORCH_TYPE = re.compile(r"(?:torch\.)?(?:cuda\.)?([A-Za-z0-9]+)Tensor")


@dataclass(frozen=True, slots=True)
class Payload:
    """What the text says of one tensor.

    Attributes:
        values: numbers (a nested list, one number, or lifted), or base64.
        dtype: the name in the text. Without one, the dtype that seems right, or ``None``.
        shape: the shape in the text. ``None`` means the shape of the nested list.
        order: ``"F"`` if bytes or a flat list are in column-major order.
        byteorder: ``">"`` if the bytes are big-endian.
        form: how text stands for bytes. ``"bytes"``: the numbers of a list are bytes, ``"bits"``:
            they are the bits of the values.
        compressed: True for zlib or gzip data, ``None`` if the bytes tell.
        split: True if a complex tensor is a pair of arrays, not an array of pairs.
        requires_grad: the value in the text.
        floats: whole numbers are floats, too: JavaScript has no others.
        name: the name that stands beside the values, or ``None``.
    """

    values: Any
    dtype: str | torch.dtype | None = None
    shape: object = None
    order: Literal["C", "F"] = "C"
    byteorder: Literal["<", ">"] = "<"
    form: Literal["base64", "hex", "bytes", "bits"] | None = None
    compressed: bool | None = None
    split: bool = False
    requires_grad: bool = False
    floats: bool = False
    name: str | None = None


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
    if (match := _PRINTED_DTYPE.fullmatch(text)) is not None:
        text = match[1]
    short = text.rsplit(".", 1)[-1]
    if (match := _TORCH_TYPE.fullmatch(text)) is not None:
        short = match[1].lower()
    short = _ALIASES.get(short, short)
    if short in DTYPES_BY_NAME:
        return DTYPES_BY_NAME[short], "<"
    code = _NUMPY_CODE.fullmatch(text)
    if code is not None:
        if code[2] == "?" or (code[2] == "b" and code[3] == "1" and code[1] == "|"):
            return torch.bool, "<"
        bits = int(code[3] or 0) * 8
        known = DTYPES_BY_NAME.get(f"{_NUMPY_KINDS[code[2]]}{bits}")
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
