"""Binary floats of at most 16 bits: their values, their shortest decimals, and rounding to them.

NumPy and orjson know only float16 of these dtypes. Each dtype has tables with one entry for each
bit pattern, built on first use. This module makes no text. For each bit pattern a table holds the
binary32 number that has the same shortest decimal, and orjson writes that number.
"""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dtypes import DTYPES, DType

#: Bit pattern of plus infinity, for dtypes with infinities.
INFINITY: dict[str, int] = {
    "float64": 0x7FF0000000000000,
    "float32": 0x7F800000,
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
    "float8_e5m2": 0x7C,
}
#: Entry of :attr:`SmallFloat.rounding` for numbers that the dtype cannot represent.
_MISFIT = 0xFFFF
# Exact: a bfloat16 subnormal has up to 133 digits after the point.
_EXACT = decimal.Context(prec=400, traps=[])


@dataclass(frozen=True, slots=True)
class SmallFloat:
    """The tables of one dtype. All arrays are read-only.

    Attributes:
        values: for each bit pattern its exact value, infinity or NaN.
        decimals: for each bit pattern the number to write. Infinite or NaN where ``values`` is.
        rounding: for dtypes of at most 8 bits: the bit pattern nearest to a binary32 number, by the
            number's upper 16 bits (see :func:`narrow`).
    """

    values: NDArray[np.float64]
    decimals: NDArray[np.float32]
    rounding: NDArray[np.uint16] | None


_tables: dict[str, SmallFloat] = {}


def small_float(name: str) -> SmallFloat:
    """The tables of the dtype ``name``: one object for all threads.

    Two threads may build them at the same time; one result is kept. There is no lock, because a
    signal handler that interrupts the building thread would wait for it forever.

    >>> float(small_float("float8_e4m3fn").values[0x7E])
    448.0
    """
    table = _tables.get(name)
    if table is None:
        table = _tables.setdefault(name, _build(DTYPES[name]))
    return table


def narrow(name: str, numbers: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Round finite binary64 numbers to the dtype ``name``, by way of binary32.

    Each step rounds to nearest, ties to even.

    Returns:
        The bit patterns, as unsigned integers of the dtype's size, and a mask of the numbers that
        the dtype cannot represent: an overflow, or a zero or sign that it lacks. The bit pattern
        of these has no meaning.

    >>> narrow("bfloat16", np.array([1.0, 1e39]))[1].tolist()
    [False, True]
    """
    needs_table = DTYPES[name].itemsize == 1
    return _round(name, numbers, small_float(name).rounding if needs_table else None)


def _round(
    name: str, numbers: NDArray[np.float64], rounding: NDArray[np.uint16] | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    with np.errstate(over="ignore"):  # the mask reports overflows
        singles = numbers.astype(np.float32)
        if name == "float32":
            return singles.view(np.uint32), np.isinf(singles)
        if name == "float16":
            halves = singles.astype(np.float16)
            return halves.view(np.uint16), ~np.isfinite(halves)
    bits = singles.view(np.uint32)
    if rounding is None:
        # Add just under half of the last place, plus the last bit that is kept. This carries into
        # the upper half exactly when rounding to nearest even goes up.
        upper = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)
        return upper, (upper & 0x7FFF) >= INFINITY[name]
    # Take the upper half of a binary32 number, and set its last bit if the lower half is not zero.
    # The result is on the same side of every midpoint of these dtypes as the number itself:
    # midpoints have at most 5 significant bits, the upper half has 8.
    found = rounding[(bits >> 16) | ((bits & 0xFFFF) != 0)]
    return found.astype(np.uint8), found == _MISFIT


def _build(row: DType) -> SmallFloat:
    values = _values(row)
    rounding = None if row.exponent + row.mantissa > 8 else _rounding_table(row, values)
    decimals = _decimals(row, values, rounding)
    for array in (values, decimals, rounding):
        if array is not None:
            array.flags.writeable = False
    return SmallFloat(values, decimals, rounding)


def _values(row: DType) -> NDArray[np.float64]:
    if row.name == "float8_e8m0fnu":
        values = np.ldexp(1.0, np.arange(256) - row.bias)
        values[row.nan] = np.nan
        return values
    patterns = np.arange(1 << (row.exponent + row.mantissa))
    fraction = patterns & ((1 << row.mantissa) - 1)
    exponent = patterns >> row.mantissa
    significand = fraction + np.where(exponent > 0, 1 << row.mantissa, 0)
    power = np.maximum(exponent, 1) - row.bias - row.mantissa
    magnitudes = np.ldexp(significand.astype(np.float64), power)
    if row.name in INFINITY:
        magnitudes[INFINITY[row.name]] = np.inf
        magnitudes[INFINITY[row.name] + 1 :] = np.nan
    elif row.name == "float8_e4m3fn":
        magnitudes[row.nan] = np.nan
    values = np.concatenate([magnitudes, -magnitudes])
    if row.name.endswith("fnuz"):
        values[row.nan] = np.nan
    return values


def _magnitudes(row: DType, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The finite values without a sign bit, in the order of their bit patterns."""
    unsigned = values if row.name == "float8_e8m0fnu" else values[: len(values) // 2]
    return unsigned[np.isfinite(unsigned)]


def _rounding_table(row: DType, values: NDArray[np.float64]) -> NDArray[np.uint16]:
    magnitudes = _magnitudes(row, values)
    upper = np.arange(0x7F80, dtype=np.uint32) << 16
    numbers = upper.view(np.float32).astype(np.float64)
    # An overflow begins halfway to the value that would follow the largest.
    beyond = 2 * magnitudes[-1] - (magnitudes[-2] if row.mantissa else 0)
    midpoints = (magnitudes + np.append(magnitudes[1:], beyond)) / 2
    found = np.searchsorted(midpoints, numbers)
    # The search puts a midpoint below; the even bit pattern may be the one above.
    nearest = np.minimum(found, len(midpoints) - 1)
    found += (numbers == midpoints[nearest]) & (nearest % 2 == 1)

    table = np.full((2, 1 << 15), _MISFIT, dtype=np.uint16)
    fits = found < len(magnitudes)
    if row.name == "float8_e8m0fnu":
        fits &= numbers >= magnitudes[0] * 0.75
    table[0, : len(numbers)][fits] = found[fits]
    if row.name != "float8_e8m0fnu":
        if row.name.endswith("fnuz"):
            fits &= found > 0
        table[1, : len(numbers)][fits] = found[fits] + len(values) // 2
    return table.reshape(-1)


def _decimals(
    row: DType, values: NDArray[np.float64], rounding: NDArray[np.uint16] | None
) -> NDArray[np.float32]:
    """For each bit pattern the shortest decimal that reads back, the nearest if there are two."""
    decimals = values.astype(np.float32)
    magnitudes = _magnitudes(row, values)
    patterns = np.flatnonzero(magnitudes)
    exact = [decimal.Decimal(number) for number in magnitudes.tolist()]
    digits = 0
    while len(patterns):
        digits += 1
        floor = decimal.Context(prec=digits, rounding=decimal.ROUND_FLOOR).create_decimal
        ceiling = decimal.Context(prec=digits, rounding=decimal.ROUND_CEILING).create_decimal
        pairs = [(floor(exact[pattern]), ceiling(exact[pattern])) for pattern in patterns]
        numbers = np.array(pairs, dtype=np.float64)
        found, misfit = _round(row.name, numbers.reshape(-1), rounding)
        reads_back = (found.reshape(-1, 2) == patterns[:, None]) & ~misfit.reshape(-1, 2)
        use_below = reads_back[:, 0].copy()
        for place in np.flatnonzero(reads_back.all(axis=1)).tolist():
            (low, high), number = pairs[place], exact[patterns[place]]
            use_below[place] = _EXACT.subtract(number, low) <= _EXACT.subtract(high, number)
        done = reads_back.any(axis=1)
        chosen = np.where(use_below, numbers[:, 0], numbers[:, 1])[done]
        decimals[patterns[done]] = chosen
        patterns = patterns[~done]
    if row.name != "float8_e8m0fnu":
        finite = np.flatnonzero(magnitudes)
        decimals[finite + len(values) // 2] = -decimals[finite]
    return decimals
