"""Numbers of any dtype as NumPy knows them: exact values as binary64, and rounded once. Pure."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, FormatError, quote
from ..format.dtypes import DTYPES
from ..format.small_floats import INFINITY, narrow
from ..inspect.element_values import numbers_of

#: NumPy's spelling of the dtypes that it has.
NUMPY: Final = {
    "bool": "|b1", "uint8": "|u1", "int8": "|i1", "uint16": "<u2", "int16": "<i2",
    "uint32": "<u4", "int32": "<i4", "uint64": "<u8", "int64": "<i8",
    "float16": "<f2", "float32": "<f4", "float64": "<f8",
    "complex64": "<c8", "complex128": "<c16",
}  # fmt: skip
#: The smallest dtype of NumPy that has all values of a dtype that NumPy lacks.
WIDER: Final = {"complex32": "<c8"} | {
    name: "<f4" for name, row in DTYPES.items() if row.kind == "float" and name not in NUMPY
}
_REQUESTS: Final = {"float32": ("<f4", "<c8"), "float64": ("<f8", "<c16")}
#: Significant bits and the smallest exponent, for the question whether one holds the other.
_FLOATS: Final = {"<f2": 2, "<f4": 4, "<f8": 8, "<c8": 4, "<c16": 8}


def is_float(dtype: str) -> bool:
    """Whether a mean of such numbers is one: floats and complex numbers, one to a byte or more."""
    return DTYPES[dtype].kind in ("float", "complex")


def numpy_dtype(dtype: str, request: str | None, name: str) -> str:
    """NumPy's dtype for a tensor.

    Args:
        request: ``None``, ``"float32"`` or ``"float64"`` for floats of no more bits, ``"bits"`` for
            unsigned integers with the same bytes.

    Raises:
        ArgumentError: NumPy has no such dtype, or the request would lose digits.

    >>> numpy_dtype("bfloat16", "float32", "/w"), numpy_dtype("int8", None, "/w")
    ('<f4', '|i1')
    """
    row = DTYPES[dtype]
    if request is None:
        if dtype in NUMPY:
            return NUMPY[dtype]
        way = "as float32 (exact), or " if dtype in WIDER else ""
        raise ArgumentError(
            f"{quote(name, 200)} is {dtype}, and NumPy has no such dtype",
            hint=f"Ask for it {way}as bits (the same bytes as unsigned integers): --as "
            f"{'float32' if way else 'bits'}.",
        )
    if request == "bits":
        size = DTYPES[row.real].itemsize if row.kind == "complex" else row.itemsize
        return f"{'|' if size == 1 else '<'}u{size}"
    if request not in _REQUESTS:
        raise ArgumentError(f"as {quote(request)}; it may be float32, float64 or bits")
    wide = _REQUESTS[request][row.kind == "complex"]
    have = NUMPY.get(dtype) or WIDER.get(dtype)
    if not is_float(dtype) or have is None or _FLOATS[have] > _FLOATS[wide]:
        raise ArgumentError(
            f"{quote(name, 200)} is {dtype}, and {request} does not hold all its values",
            hint="Leave --as out, or ask for a wider dtype.",
        )
    return wide


def converted(raw: memoryview | bytearray, dtype: str, target: str) -> NDArray[Any]:
    """Raw bytes of whole elements in a dtype that :func:`numpy_dtype` gave."""
    bits = np.frombuffer(raw, np.uint8)
    if target == NUMPY.get(dtype) or target[1] == "u":
        return bits.view(target)
    values = to_float64(raw, dtype)
    if target[1] == "c":
        half = "<f4" if target == "<c8" else "<f8"
        return values.astype(half).view(target)
    return values.astype(target)


def to_float64(raw: memoryview | bytearray, dtype: str) -> NDArray[np.float64]:
    """The exact values of float or complex elements, the parts of a complex one after the other."""
    numbers = numbers_of(dtype, memoryview(raw))
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        return numbers.view(numbers.real.dtype).astype(np.float64)


def from_float64(values: NDArray[np.float64], dtype: str) -> NDArray[np.uint8]:
    """The raw bytes of values rounded once, to nearest, ties to even.

    Raises:
        FormatError: a value that the dtype cannot represent, not even as an infinity.

    >>> from_float64(np.array([1.0, 3.0]), "bfloat16").tobytes().hex()
    '803f4040'
    """
    real = DTYPES[dtype].real
    if real in NUMPY:
        with np.errstate(over="ignore"):
            return values.astype(NUMPY[real]).view(np.uint8)
    row = DTYPES[real]
    finite = np.isfinite(values)
    patterns, misfit = narrow(real, _to_odd(np.where(finite, values, 1.0)))
    patterns = patterns.astype(f"<u{row.itemsize}")
    infinite = np.isinf(values) | (misfit & finite)
    if real.endswith("fnuz"):  # these have no minus zero
        zero = misfit & (np.abs(values) < 1)
        patterns[zero] = 0
        infinite &= ~zero
    if infinite.any():
        if real not in INFINITY:
            raise FormatError(f"a result is outside of what {dtype} can hold")
        sign = np.signbit(values[infinite]).astype(patterns.dtype) << (8 * row.itemsize - 1)
        patterns[infinite] = INFINITY[real] | sign
    patterns[np.isnan(values)] = row.nan
    return patterns.view(np.uint8)


def _to_odd(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values in binary32, rounded so that a second rounding gives what one rounding would.

    Cut off, and with the last bit set if anything was cut off: the result is on the same side of
    each midpoint of a narrower dtype as the value.
    """
    with np.errstate(over="ignore"):
        singles = values.astype(np.float32)
    bits = singles.view(np.uint32)
    inexact = singles.astype(np.float64) != values
    bits -= (inexact & (np.abs(singles.astype(np.float64)) > np.abs(values))).astype(np.uint32)
    bits |= inexact
    return singles.astype(np.float64)
