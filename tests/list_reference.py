"""A reader of the ``list`` encoding that is written for clarity alone, and what torch says.

``test_number_list.py`` and ``test_number_list_hostile.py`` hold the fast reader against it.
"""

from __future__ import annotations

import bisect
import functools
import json
import struct
from typing import Any

import numpy as np
import pytest
import torch

from jsonckpt._src.errors import FormatError
from jsonckpt._src.format import number_list
from jsonckpt._src.format.dtypes import DTYPES

FLOAT8 = [name for name in DTYPES if name.startswith("float8")]
SMALL = ["float16", "bfloat16", *FLOAT8]
REALS = ["float64", "float32", *SMALL]

#: The table of section 4.4.
CANONICAL_NAN = {
    "float64": 0x7FF8000000000000,
    "float32": 0x7FC00000,
    "float16": 0x7E00,
    "bfloat16": 0x7FC0,
    "float8_e4m3fn": 0x7F,
    "float8_e5m2": 0x7E,
    "float8_e4m3fnuz": 0x80,
    "float8_e5m2fnuz": 0x80,
    "float8_e8m0fnu": 0xFF,
}


def decode(text: bytes, dtype: str, nbytes: int) -> bytes:
    out = bytearray(b"\xaa" * nbytes)
    number_list.decode_into(text, dtype, memoryview(out))
    return bytes(out)


def refuse(text: bytes, dtype: str, count: int, message: str) -> None:
    """Decoding must fail with this message, however the text is cut into blocks."""
    with pytest.raises(FormatError, match=message):
        decode(text, dtype, count * DTYPES[dtype].itemsize)


def all_patterns(dtype: str) -> np.ndarray[Any, Any]:
    size = DTYPES[dtype].itemsize
    return np.arange(256**size, dtype=f"<u{size}")


@functools.cache
def torch_values(dtype: str) -> np.ndarray[Any, Any]:
    """What torch says each bit pattern is."""
    patterns = torch.from_numpy(all_patterns(dtype))
    return patterns.view(getattr(torch, dtype)).to(torch.float64).numpy()


@functools.cache
def magnitudes(dtype: str) -> tuple[list[float], list[float]]:
    """The finite values without a sign, ascending, and the midpoint above each."""
    values = torch_values(dtype)
    if dtype != "float8_e8m0fnu":
        values = values[: len(values) // 2]
    finite = [value for value in values.tolist() if abs(value) < float("inf")]
    beyond = finite[-1] * 2 if dtype == "float8_e8m0fnu" else 2 * finite[-1] - finite[-2]
    return finite, [(a + b) / 2 for a, b in zip(finite, [*finite[1:], beyond])]


def nearest(dtype: str, number: float) -> int | None:
    """The bit pattern that a decimal, read as binary64, stands for; None where there is none."""
    with np.errstate(over="ignore"):
        single = float(np.float32(number))
    if dtype == "float32":
        return None if abs(single) == float("inf") else int(np.float32(single).view(np.uint32))
    values, midpoints = magnitudes(dtype)
    found = bisect.bisect_left(midpoints, abs(single))
    if found < len(midpoints) and midpoints[found] == abs(single) and found % 2:
        found += 1
    if found == len(values):
        return None
    negative = struct.pack(">d", single)[0] >= 0x80
    if dtype == "float8_e8m0fnu":
        return None if negative or single < values[0] * 0.75 else found
    if negative and found == 0 and dtype.endswith("fnuz"):
        return None
    return found + len(torch_values(dtype)) // 2 if negative else found


@functools.cache
def specials(dtype: str) -> dict[str, int]:
    """The strings of a float dtype and their bit patterns; of wide dtypes one NaN payload."""
    if dtype not in SMALL:
        infinity = {"float64": 0x7FF0 << 48, "float32": 0x7F80 << 16}.get(dtype)
        if infinity is None:
            return {}
        digits = 2 * DTYPES[dtype].itemsize
        sign, payload = 1 << (4 * digits - 1), CANONICAL_NAN[dtype] + 1
        strings = {"Infinity": infinity, "-Infinity": infinity | sign, f"0x{payload:x}": payload}
        return {"NaN": CANONICAL_NAN[dtype], **strings}
    strings = {}
    for pattern, value in enumerate(torch_values(dtype).tolist()):
        if value != value:
            is_canonical = pattern == CANONICAL_NAN[dtype]
            digits = 2 * DTYPES[dtype].itemsize
            strings["NaN" if is_canonical else f"0x{pattern:0{digits}x}"] = pattern
        elif abs(value) == float("inf"):
            strings["Infinity" if value > 0 else "-Infinity"] = pattern
    return strings


class _Number(str):
    """A number's spelling."""


def reference(text: bytes, dtype: str, count: int) -> bytes | None:
    """What ``text`` means, or None if it must be refused."""
    row = DTYPES[dtype]
    size = row.itemsize

    def no_constant(_: str) -> None:
        raise ValueError

    if any(character in text for character in b"\n\r\\[]"):
        return None
    try:
        items = json.loads(
            "[" + text.decode("ascii") + "]",
            parse_int=_Number,
            parse_float=_Number,
            parse_constant=no_constant,
        )
    except ValueError:
        return None
    if len(items) != count:
        return None
    raw = b""
    for item in items:
        if type(item) is str:
            if item not in specials(dtype):
                return None
            raw += specials(dtype)[item].to_bytes(size, "little")
            continue
        if type(item) is not _Number or len(item) > 64:
            return None
        if row.kind == "float":
            number = float(item)
            if abs(number) == float("inf"):
                return None
            if dtype == "float64":
                raw += struct.pack("<d", number)
                continue
            pattern = nearest(dtype, number)
            if pattern is None:
                return None
            raw += pattern.to_bytes(size, "little")
            continue
        if any(character in item for character in ".eE"):
            return None
        low, high = {"bool": (0, 1), "uint8": (0, 255), "int64": (-(2**63), 2**63 - 1)}[dtype]
        if not low <= int(item) <= high:
            return None
        raw += int(item).to_bytes(size, "little", signed=row.kind == "int")
    return raw
