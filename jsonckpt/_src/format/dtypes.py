"""The dtypes of the format, in one table (``docs/format.md`` section 4). torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["bool", "int", "uint", "float", "complex", "packed"]


@dataclass(frozen=True, slots=True)
class DType:
    """A dtype.

    Attributes:
        name: torch's name without the prefix.
        itemsize: bytes of one element.
        kind: what an element is; ``uint`` includes raw bit patterns.
        real: the dtype that its numbers are written as: of a ``complex`` the component, of raw bit
            patterns an unsigned integer, else ``name``.
        nan: the bit pattern of ``"NaN"``, if the dtype has NaNs.
        exponent, mantissa, bias: layout of a binary float of at most 16 bits, else 0.
    """

    name: str
    itemsize: int
    kind: Kind
    real: str
    nan: int | None = None
    exponent: int = 0
    mantissa: int = 0
    bias: int = 0


def _table() -> dict[str, DType]:
    rows = [DType("bool", 1, "bool", "bool")]
    for bits in (8, 16, 32, 64):
        rows.append(DType(f"uint{bits}", bits // 8, "uint", f"uint{bits}"))
        rows.append(DType(f"int{bits}", bits // 8, "int", f"int{bits}"))
    # torch stores each integer below 8 bits in a byte and cannot compute with it: the byte is kept.
    for bits in range(1, 8):
        rows.append(DType(f"uint{bits}", 1, "uint", "uint8"))
        rows.append(DType(f"int{bits}", 1, "uint", "uint8"))
    for name in ("bits8", "bits1x8", "bits2x4", "bits4x2"):
        rows.append(DType(name, 1, "uint", "uint8"))
    rows.append(DType("bits16", 2, "uint", "uint16"))
    rows += [
        DType("float64", 8, "float", "float64", nan=0x7FF8000000000000),
        DType("float32", 4, "float", "float32", nan=0x7FC00000),
        DType("float16", 2, "float", "float16", nan=0x7E00, exponent=5, mantissa=10, bias=15),
        DType("bfloat16", 2, "float", "bfloat16", nan=0x7FC0, exponent=8, mantissa=7, bias=127),
        DType("float8_e4m3fn", 1, "float", "float8_e4m3fn", 0x7F, 4, 3, 7),
        DType("float8_e4m3fnuz", 1, "float", "float8_e4m3fnuz", 0x80, 4, 3, 8),
        DType("float8_e5m2", 1, "float", "float8_e5m2", 0x7E, 5, 2, 15),
        DType("float8_e5m2fnuz", 1, "float", "float8_e5m2fnuz", 0x80, 5, 2, 16),
        DType("float8_e8m0fnu", 1, "float", "float8_e8m0fnu", 0xFF, 8, 0, 127),
        DType("float4_e2m1fn_x2", 1, "packed", "float4_e2m1fn_x2", None, 2, 1, 1),
        DType("complex32", 4, "complex", "float16"),
        DType("complex64", 8, "complex", "float32"),
        DType("complex128", 16, "complex", "float64"),
    ]
    return {row.name: row for row in rows}


#: Every dtype of version 1 of the format, by name.
DTYPES: dict[str, DType] = _table()
