"""Elements of every dtype by their bits, for the golden checkpoints: literals and formulas only."""

from __future__ import annotations

import math
import struct
from typing import Any

import torch

#: dtypes of section 4 that every supported torch has, with their item sizes.
DTYPES = {
    "bool": 1,
    **{f"{sign}int{8 * size}": size for size in (1, 2, 4, 8) for sign in ("u", "")},
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
    **{f"uint{bits}": 1 for bits in range(1, 8)},
    "bits8": 1,
    "bits1x8": 1,
    "bits2x4": 1,
    "bits4x2": 1,
    "bits16": 2,
}
#: Those that came later.
NEWER_DTYPES = {
    **{f"int{bits}": 1 for bits in range(1, 8)},
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
}

#: Bit patterns that are special for some float of that size: zeros, ones, subnormals, the largest,
#: infinities, the canonical NaN, other quiet and signalling NaNs, each with both signs, ….
SPECIAL = {
    2: [
        *(0x0000, 0x8000, 0x3C00, 0xBC00, 0x0001, 0x8001, 0x03FF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00),
        *(0x7E00, 0xFE00, 0x7C01, 0xFC01, 0x7E01, 0x7FFF, 0xFFFF),
        *(0x3F80, 0xBF80, 0x007F, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0xFFC0, 0x7F81, 0x7FC1),
    ],
    4: [
        *(0x00000000, 0x80000000, 0x3F800000, 0xBF800000, 0x00000001, 0x80000001, 0x007FFFFF),
        *(0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001),
        *(0xFF800001, 0x7FC00001, 0x7FFFFFFF, 0xFFFFFFFF, 0x3DCCCCCD, 0x15AE43FD, 0x95AE43FD),
    ],
    8: [
        *(0x0000000000000000, 0x8000000000000000, 0x3FF0000000000000, 0x0000000000000001),
        *(0x8000000000000001, 0x000FFFFFFFFFFFFF, 0x7FEFFFFFFFFFFFFF, 0xFFEFFFFFFFFFFFFF),
        *(0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000, 0xFFF8000000000000),
        *(0x7FF0000000000001, 0xFFF0000000000001, 0x7FF8000000000001, 0x7FFFFFFFFFFFFFFF),
        *(0xFFFFFFFFFFFFFFFF, 0x3FB999999999999A, 0x4340000000000001, 0x47EFFFFFE0000000),
    ],
}


def patterns(size: int, count: int) -> list[int]:
    """``count`` bit patterns of ``size`` bytes, well spread."""
    return [(i * 0x9E3779B97F4A7C15 + 0x1234567) % 2**64 >> (64 - 8 * size) for i in range(count)]


def of_bits(dtype: str, bits: list[int], itemsize: int) -> torch.Tensor:
    """The tensor of one dimension whose elements have these bits."""
    raw = b"".join(pattern.to_bytes(itemsize, "little") for pattern in bits)
    return torch.tensor(list(raw), dtype=torch.uint8).view(getattr(torch, dtype))


def elements(dtype: str, size: int) -> torch.Tensor:
    """An even number of elements of a dtype, the special ones among them."""
    if dtype == "bool":
        return of_bits(dtype, [int(i % 3 == 0) for i in range(16)], 1)
    if dtype.startswith("complex"):
        half = size // 2
        real = SPECIAL[half] + patterns(half, 4)
        imaginary = real[3:] + real[:3]
        bits = [a | b << (8 * half) for a, b in zip(real, imaginary, strict=True)]
        return of_bits(dtype, bits[: len(bits) // 2 * 2], size)
    if dtype.startswith(("float8", "float4")):
        return of_bits(dtype, list(range(256)), 1)
    if size == 1:
        return of_bits(dtype, [0, 1, 2, 3, 7, 8, 15, 16, 31, 63, 64, 127, 128, 129, 254, 255], 1)
    bits = SPECIAL[size] + patterns(size, 33)
    return of_bits(dtype, bits[: len(bits) // 2 * 2], size)


def every_dtype(dtypes: dict[str, int]) -> dict[str, Any]:
    """Vectors, matrices, single elements and nothing, of every dtype."""
    state: dict[str, Any] = {}
    for dtype, size in dtypes.items():
        vector = elements(dtype, size)
        raw = vector.view(torch.uint8)
        state[dtype] = {
            "vector": vector,
            "matrix": torch.flip(raw, [0]).view(vector.dtype).reshape(2, -1),
            "single": raw[size : 2 * size].clone().view(vector.dtype).reshape(()),
            "empty": raw[:0].clone().view(vector.dtype).reshape(0, 3),
        }
    return state


def floats(*shape: int, step: int = 37, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small multiples of 1/64, which every float of 16 bits and more holds exactly."""
    count = math.prod(shape)
    whole = torch.tensor([(i * step + 11) % 255 - 127 for i in range(count)], dtype=torch.int64)
    return (whole.to(torch.float64) / 64).to(dtype).reshape(shape)


def whole_numbers(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """0, 1, 2, …."""
    return torch.tensor(range(math.prod(shape)), dtype=dtype).reshape(shape)


def nan(bits: int) -> float:
    """The binary64 NaN with these bits."""
    return float(struct.unpack("<d", struct.pack("<Q", bits))[0])
