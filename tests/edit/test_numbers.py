"""Numbers of every dtype: exact values, and one rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from jsonckpt._src.edit.numbers import from_float64, is_float, to_float64
from jsonckpt._src.errors import FormatError
from jsonckpt._src.format.dtypes import DTYPES

FLOATS = [name for name in DTYPES if is_float(name)]
SMALL = [name for name in FLOATS if DTYPES[name].itemsize <= 2]


def raw(bits: np.ndarray[Any, Any]) -> bytearray:
    return bytearray(bits.tobytes())


@pytest.mark.parametrize("dtype", SMALL)
def test_every_bit_pattern_comes_back(dtype: str) -> None:
    size = DTYPES[dtype].itemsize
    bits = np.arange(1 << 8 * size, dtype=f"<u{size}")
    values = to_float64(raw(bits), dtype)
    back = from_float64(values, dtype).view(bits.dtype)
    number = ~np.isnan(values)
    assert (back[number] == bits[number]).all()
    assert np.isnan(to_float64(raw(back), dtype)[~number]).all()


@pytest.mark.parametrize("dtype", SMALL)
def test_values_are_those_of_torch(dtype: str) -> None:
    if not hasattr(torch, dtype):
        pytest.skip(f"this torch has no {dtype}")
    size = DTYPES[dtype].itemsize
    bits = np.arange(1 << 8 * size, dtype=f"<u{size}")
    tensor = torch.from_numpy(bits.view(f"<i{size}")).view(getattr(torch, dtype))
    values = to_float64(raw(bits), dtype)
    np.testing.assert_array_equal(values, tensor.float().double().numpy())


@pytest.mark.parametrize("dtype", [d for d in SMALL if d != "float8_e8m0fnu"])
def test_midpoints_are_rounded_once(dtype: str) -> None:
    """Just beside a midpoint, rounding to binary32 first would go to the midpoint itself."""
    size = DTYPES[dtype].itemsize
    bits = np.arange((1 << 8 * size - 1) - 2, dtype=f"<u{size}")
    both = np.stack([bits, bits + 1])
    low, high = (to_float64(raw(row), dtype) for row in both)
    usable = np.isfinite(low) & np.isfinite(high) & (low > 0)
    bits, low, high = bits[usable], low[usable], high[usable]
    middle = (low + high) / 2
    above, below = np.nextafter(middle, np.inf), np.nextafter(middle, 0)
    for sign in (1, -1):
        top = (1 << 8 * size - 1) * (sign < 0)
        found = [from_float64(sign * v, dtype).view(bits.dtype) for v in (below, middle, above)]
        np.testing.assert_array_equal(found[0], bits + top)
        np.testing.assert_array_equal(found[1], bits + (bits & 1) + top)
        np.testing.assert_array_equal(found[2], bits + 1 + top)


def test_overflow() -> None:
    big = np.array([1e300, -1e300])
    assert from_float64(big, "bfloat16").view("<u2").tolist() == [0x7F80, 0xFF80]
    assert from_float64(big, "float8_e5m2").tolist() == [0x7C, 0xFC]
    assert np.isinf(from_float64(big, "float32").view("<f4")).all()
    with pytest.raises(FormatError, match="outside of what float8_e4m3fn"):
        from_float64(big, "float8_e4m3fn")
    with pytest.raises(FormatError, match="outside"):
        from_float64(np.array([-1.0]), "float8_e8m0fnu")


def test_one_zero() -> None:
    assert from_float64(np.array([-0.0, -1e-300]), "float8_e4m3fnuz").tolist() == [0, 0]
    assert from_float64(np.array([-0.0]), "bfloat16").view("<u2").tolist() == [0x8000]
