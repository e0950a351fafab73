"""Makes numbers that NumPy computes with out of raw bytes, for each dtype of the format."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..format.dtypes import DTYPES
from ..format.small_floats import small_float

Numbers: TypeAlias = NDArray[Any]


def numbers_of(dtype: str, raw: memoryview) -> Numbers:
    """The elements of raw bytes, as NumPy numbers.

    Binary floats that NumPy lacks become ``float32``, which holds them exactly. A byte of
    ``float4_e2m1fn_x2`` becomes two numbers. Integers below eight bits and raw bits become the
    unsigned integer that is stored. ``complex32`` becomes ``complex64``.

    Args:
        dtype: a name of the format.
        raw: whole elements.

    Returns:
        One dimension. It may share memory with ``raw``.

    >>> numbers_of("bfloat16", memoryview(bytes([0x80, 0x3F, 0x00, 0xC0]))).tolist()
    [1.0, -2.0]
    """
    row = DTYPES[dtype]
    if row.kind == "complex":
        parts: Numbers = np.frombuffer(raw, row.real)
        if row.real == "float16":
            parts = parts.astype(np.float32)
        return parts.view(np.complex128 if row.real == "float64" else np.complex64)
    if row.kind == "packed":
        pairs: Numbers = pattern_values(dtype).reshape(256, 2)[np.frombuffer(raw, np.uint8)]
        return pairs.reshape(-1)
    if row.name == "bfloat16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    if row.kind == "float" and row.itemsize == 1:
        values: Numbers = pattern_values(dtype)[np.frombuffer(raw, np.uint8)]
        return values
    return np.frombuffer(raw, row.real)


def has_pattern_table(dtype: str) -> bool:
    """Whether an element has at most 16 bits, so that its bit patterns can be counted."""
    row = DTYPES[dtype]
    return row.itemsize <= 2 and row.kind != "complex"


@cache
def pattern_values(dtype: str) -> Numbers:
    """The value of each bit pattern of a dtype of at most 16 bits. Read-only.

    For ``float4_e2m1fn_x2`` these are the two numbers of each byte, one after the other.
    """
    row = DTYPES[dtype]
    values: Numbers
    if row.kind == "packed":
        nibbles = small_float(dtype).values.astype(np.float32)
        byte = np.arange(256)
        values = np.stack([nibbles[byte & 15], nibbles[byte >> 4]], axis=1).reshape(-1)
    elif row.kind == "float" and row.itemsize == 1:
        values = small_float(dtype).values.astype(np.float32)
    else:
        patterns = np.arange(1 << (8 * row.itemsize), dtype=f"u{row.itemsize}")
        if row.kind == "bool":
            values = (patterns != 0).astype(np.uint8)
        else:
            values = numbers_of(dtype, memoryview(patterns.tobytes()))
    values = values.copy()
    values.flags.writeable = False
    return values


def smallest_normal(dtype: str) -> float:
    """The smallest positive normal number of a floating-point dtype, 0 for integers.

    >>> smallest_normal("float16") == 2.0 ** -14
    True
    """
    row = DTYPES[dtype]
    if row.kind == "complex":
        row = DTYPES[row.real]
    if row.kind not in ("float", "packed") or row.name == "float8_e8m0fnu":
        return 0.0
    if row.name in ("float32", "float64"):
        return float(np.finfo(row.name).smallest_normal)
    return 2.0 ** (1 - row.bias)
