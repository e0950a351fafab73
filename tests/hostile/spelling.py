"""How forgeries spell numbers: the dtypes of section 4 and the ``list`` texts of section 4.4.

Written from ``docs/format.md`` alone, as :mod:`tests.hostile.forge`, which this is a part of. The
spelling need not be the shortest: a reader takes any decimal that gives the same value.
"""

from __future__ import annotations

import math
import struct
from typing import Final

__all__ = ["ITEMSIZE", "REAL", "listed"]

#: Bytes of one element.
ITEMSIZE: Final[dict[str, int]] = {
    "bool": 1, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "int8": 1, "int16": 2,
    "int32": 4, "int64": 8, "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1, "float4_e2m1fn_x2": 1, "complex32": 4, "complex64": 8, "complex128": 16,
    **{f"{kind}{bits}": 1 for kind in ("uint", "int") for bits in range(1, 8)},
    "bits8": 1, "bits1x8": 1, "bits2x4": 1, "bits4x2": 1, "bits16": 2,
}  # fmt: skip
#: The dtype of one number of a complex one.
REAL: Final = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}

_INTEGERS: Final = {
    "int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint16": "H", "uint32": "I",
    "uint64": "Q", "bits16": "H",
}  # fmt: skip
#: Bits of the exponent and of the mantissa, bias.
_FLOATS: Final = {
    "float64": (11, 52, 1023), "float32": (8, 23, 127), "float16": (5, 10, 15),
    "bfloat16": (8, 7, 127), "float8_e4m3fn": (4, 3, 7), "float8_e4m3fnuz": (4, 3, 8),
    "float8_e5m2": (5, 2, 15), "float8_e5m2fnuz": (5, 2, 16), "float8_e8m0fnu": (8, 0, 127),
}  # fmt: skip
_CANONICAL_NAN: Final = {
    "float64": 0x7FF8 << 48, "float32": 0x7FC00000, "float16": 0x7E00, "bfloat16": 0x7FC0,
    "float8_e4m3fn": 0x7F, "float8_e4m3fnuz": 0x80, "float8_e5m2": 0x7E, "float8_e5m2fnuz": 0x80,
    "float8_e8m0fnu": 0xFF,
}  # fmt: skip
_HALVES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def listed(raw: bytes, dtype: str) -> bytes:
    """The text of a ``list`` chunk, without its brackets."""
    if dtype == "float4_e2m1fn_x2":
        nibbles = [nibble for byte in raw for nibble in (byte & 15, byte >> 4)]
        words = [
            repr(-_HALVES[nibble & 7] if nibble & 8 else _HALVES[nibble]) for nibble in nibbles
        ]
    elif (real := REAL.get(dtype, dtype)) in _FLOATS:
        size = ITEMSIZE[real]
        pieces = [raw[start : start + size] for start in range(0, len(raw), size)]
        words = [_float(int.from_bytes(piece, "little"), real) for piece in pieces]
    else:
        code = _INTEGERS.get(dtype, "B")  # what is not in the table is spelled as its raw byte
        words = list(map(str, struct.unpack(f"<{len(raw) // struct.calcsize(code)}{code}", raw)))
    return ",".join(words).encode()


def _float(bits: int, dtype: str) -> str:
    """One number, or the string for what is none."""
    special = _special(bits, dtype)
    if special is not None:
        return special
    exponent_bits, mantissa_bits, bias = _FLOATS[dtype]
    if dtype == "float8_e8m0fnu":
        return repr(math.ldexp(1.0, bits - bias))
    negative = bits >> (exponent_bits + mantissa_bits)
    exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1)
    mantissa = bits & ((1 << mantissa_bits) - 1)
    if exponent:
        mantissa |= 1 << mantissa_bits
    value = math.ldexp(float(mantissa), max(exponent, 1) - bias - mantissa_bits)
    return repr(-value if negative else value)


def _special(bits: int, dtype: str) -> str | None:
    exponent_bits, mantissa_bits, _ = _FLOATS[dtype]
    canonical = _CANONICAL_NAN[dtype]
    sign = 1 << (exponent_bits + mantissa_bits)
    infinity = ((1 << exponent_bits) - 1) << mantissa_bits
    if dtype == "float8_e8m0fnu" or dtype.endswith("fnuz"):
        is_nan = bits == canonical
    elif dtype == "float8_e4m3fn":
        is_nan = bits & ~sign == canonical
    else:
        if bits & ~sign == infinity:
            return '"-Infinity"' if bits & sign else '"Infinity"'
        is_nan = bits & ~sign > infinity
    if not is_nan:
        return None
    return '"NaN"' if bits == canonical else f'"0x{bits:0{2 * ITEMSIZE[dtype]}x}"'
