"""Makes NumPy's arrays, scalars and dtypes from what a pickle says of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import Any, Final

import numpy as np

from .machine import Constructor
from .python_types import raw_bytes
from .values import Global, Unread, typed, unfit

#: Numbers, bools, dates and texts. Not structures, objects or bare bytes: no rule saves these.
_PLAIN: Final = re.compile(r"[<>=|]?([?bhilqBHILQefdgFDG]|[biufc]\d{1,2}|[SU]\d{1,9}|[mM]8?)")
_UNITS: Final = re.compile(r"generic|Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as")
#: What says that an item of an array is not plain.
_UNKNOWN: Final = "NumPy arrays of structures or objects"


def _dtype(code: Any, _align: Any = False, _copy: Any = True) -> Unread:
    """A dtype, until its state says the order of its bytes."""
    return Unread("numpy.dtype", (code,))


def _built_dtype(target: Unread, state: Any) -> np.dtype[Any]:
    code = target.args[0]
    _, order, subarray, names, fields, size, *_ = typed(state, tuple, "the state of a dtype")
    code = raw_bytes(code).decode("ascii") if type(code) in (bytes, str) else ""
    order = raw_bytes(order).decode("ascii")
    plain = subarray is None and not names and not fields
    if not plain or order not in ("<", ">", "|", "=") or not _PLAIN.fullmatch(code):
        target.name = _UNKNOWN
        target.state = state
        return target  # type: ignore[return-value]
    if code[0] in "mM":
        unit, count = _unit(state)
        code = f"{code[0]}8" + ("" if unit == "generic" else f"[{count}{unit}]")
    found = np.dtype(code)
    if size not in (-1, found.itemsize):
        raise unfit(f"a dtype {code} whose items have {size} bytes")
    return found if order == "|" else found.newbyteorder(order)  # type: ignore[arg-type]


def _unit(state: tuple[Any, ...]) -> tuple[str, int]:
    """The unit of a date or duration, such as 25 seconds."""
    if len(state) < 9:
        return "generic", 1
    unit, count, *_ = state[8][1]
    unit = raw_bytes(unit).decode("ascii")
    if not _UNITS.fullmatch(unit) or type(count) is not int or not 1 <= count < 1 << 31:
        raise unfit("a unit of time that NumPy does not have")
    return unit, count


def _array(target: Unread, state: Any) -> Any:
    """An array, over the bytes of the pickle."""
    if len(typed(state, tuple, "the state of an array")) == 5:
        state = state[1:]
    shape, dtype, columns, data = state
    array = _over(data, dtype, shape, "F" if columns else "C", target)
    if isinstance(array, np.ndarray) and not array.dtype.isnative:
        # NumPy, too, turns what it reads into the order of this machine.
        return array.byteswap().view(array.dtype.newbyteorder("="))
    return array


def _over(data: Any, dtype: Any, shape: Any, order: Any, target: Unread) -> Any:
    if isinstance(dtype, Unread):
        target.name, target.state = dtype.name, data
        return target
    if not isinstance(dtype, np.dtype):
        raise unfit("an array without a dtype")
    if type(data) is list:
        raise unfit("an array of objects")
    sizes = typed(shape, (tuple, int), "a shape")
    sizes = sizes if type(sizes) is tuple else (sizes,)
    if len(sizes) > 64 or any(type(size) is not int or size < 0 for size in sizes):
        raise unfit("a shape that no array has")
    raw = data if type(data) is bytearray else raw_bytes(data)
    if prod(sizes) * dtype.itemsize != len(raw):
        raise unfit(f"an array of {list(sizes)} {dtype.name} with {len(raw)} bytes")
    flat = np.empty(0, dtype) if not raw else np.frombuffer(raw, dtype)
    return flat.reshape(sizes, order="F" if order == "F" else "C")


def _reconstruct(kind: Any, _shape: Any = None, _code: Any = None) -> Unread:
    """An array, until its state says its values."""
    name = kind.dotted if type(kind) is Global else "an unknown name"
    return Unread("numpy.ndarray" if name == "numpy.memmap" else name)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    if axes is not None:
        raise unfit("an array with axes in an order of its own")
    return _over(data, dtype, shape, order, Unread("numpy.ndarray"))


def _scalar(dtype: Any, data: Any = b"") -> Any:
    if isinstance(dtype, Unread):
        return Unread(dtype.name, (data,))
    return _over(data, dtype, (1,), "C", Unread("numpy.generic"))[0]


CONSTRUCTORS: Final[dict[str, Constructor]] = {
    "numpy.dtype": _dtype,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _from_buffer,
}
#: Their bytes are strings in a pickle of Python 2.
RAW: Final = frozenset({"numpy.dtype", "numpy.ndarray", "numpy._core.multiarray.scalar"})
BUILDERS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "numpy.dtype": _built_dtype,
    "numpy.ndarray": _array,
}
