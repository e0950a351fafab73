"""Rules for NumPy: arrays, scalars and dtypes (``docs/format.md`` section 6.2).

A dtype is named as ``numpy.dtype.str`` does it, and only names on an explicit pattern are read.
Arrays of numbers go through the door as tensors of the same bytes; arrays of text stay in the tree.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from ..errors import LimitError
from ..format.dtypes import DTYPES
from ..format.json_text import Json
from .checks import array, float_body, integer, integers, member, members, read_float_body, refuse
from .paths import shown
from .python_types import write_bytes, write_text
from .tree import OMIT, Decoder, Encoder, Rules

_Array = np.ndarray[Any, Any]
_NAME = re.compile(
    r"\|b1|\|[iu]1|[<>][iu][248]|[<>]f[248]|[<>]c(8|16)|[<>]U\d{1,9}|\|S\d{1,9}"
    r"|[<>][mM]8(\[\d{0,10}(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?",
    re.ASCII,
)
#: NumPy's type codes of the dtypes above. ``q`` may be another type than the ``l`` of its size.
_CODES = "?bhilqBHILQefdFDmMUS"
#: Scalar types that share the name of their dtype with another type are named by themselves.
_TWINS = ("longlong", "ulonglong")
_TEXT_FLOOR = 64 << 20
_TEXT_RATIO = 1000
_WAY_OUT = (
    "Arrays and scalars of bool, int, float (16 to 64 bits), complex (64 and 128 bits), datetime64,"
    " timedelta64, str_ and bytes_ can be saved: convert it with .astype(...), or save its fields"
    " or elements apart."
)


def _name(dtype: np.dtype[Any]) -> str | None:
    """The dtype's name, or None where the format has none."""
    # Metadata is compared by nobody and lost by most operations, but it would be lost here, too.
    name: str = dtype.str
    return name if dtype.metadata is None and _NAME.fullmatch(name) else None


def _dtype(body: Json, place: str) -> np.dtype[Any]:
    if type(body) is not str or not _NAME.fullmatch(body):
        refuse(place, "the name of a NumPy dtype of this format, such as '<f4'", body)
    try:
        dtype = np.dtype(body)
    except (TypeError, ValueError, OverflowError) as error:
        refuse(place, "a NumPy dtype that exists", body, error)
    if dtype.str != body:
        refuse(place, f"the dtype's own spelling {dtype.str!r}", body)
    return dtype


def _write_array(value: _Array, encoder: Encoder, place: str, level: int) -> Json:
    name = _name(value.dtype)
    if name is None:
        raise encoder.unsupported(value, place, f"Its dtype is {value.dtype}. {_WAY_OUT}")
    body: dict[str, Json] = {"dtype": name, "shape": list(value.shape)}
    if value.dtype.kind in "US":
        try:
            elements = value.reshape(-1).tolist()
        except (ValueError, SystemError) as error:  # characters beyond Unicode
            raise encoder.unsupported(value, place, f"NumPy cannot read it: {error}.") from error
        body["data"] = encoder.sequence(elements, place, level + 2)
    else:
        body["data"] = encoder.put_array(_as_tensor(value), place)
    if value.flags.f_contiguous and not value.flags.c_contiguous:
        body["order"] = "F"
    return {"$ndarray": body}


def _as_tensor(value: _Array) -> _Array:
    """The elements as a C-contiguous little-endian array of numbers; no copy where it is one."""
    # torch takes no negative stride, which NumPy may have where a size is 0 or 1.
    if not value.flags.c_contiguous or any(step < 0 for step in value.strides):
        value = value.copy(order="C")
    if value.dtype.str[0] == ">":
        # Swapped as bytes: a conversion of floats might change what a NaN holds.
        value = value.byteswap().view(value.dtype.newbyteorder("<"))
    return value.view(_stored(value.dtype))


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the tensor that holds an array's bytes."""
    return np.dtype("<i8") if dtype.kind in "mM" else dtype.newbyteorder("<")


def _read_array(body: Json, decoder: Decoder, place: str) -> Any:
    parts = members(body, place, "dtype", "shape", "data")
    dtype = _dtype(parts["dtype"], f"{place}/dtype")
    shape = integers(parts["shape"], f"{place}/shape")
    if len(shape) > 64 or not all(0 <= size < 2**63 for size in shape):
        refuse(f"{place}/shape", "at most 64 sizes from 0 to 2^63-1", parts["shape"])
    if parts.get("order", "F") != "F":
        refuse(f"{place}/order", "'F', or no such member", parts["order"])
    columns = "order" in parts
    if dtype.kind not in "US":
        return _number_array(dtype, shape, parts["data"], decoder, f"{place}/data", columns)
    result = _text_array(dtype, shape, parts["data"], decoder, f"{place}/data")
    if columns and not result.flags.f_contiguous:
        decoder.charge(result.nbytes, place)
        result = np.array(result, order="F")
    return result


def _number_array(
    dtype: np.dtype[Any],
    shape: list[int],
    body: Json,
    decoder: Decoder,
    place: str,
    columns: bool,
) -> Any:
    if type(body) is not dict or len(body) != 1:
        refuse(place, "the tensor of the array's elements, {'$tensor': name}", body)
    result = decoder.get_array(body, place)
    if result is OMIT:
        return OMIT
    stored = _stored(dtype)
    if result.dtype != stored or list(result.shape) != shape:
        found = f"{result.dtype} {list(result.shape)}"
        refuse(place, f"a tensor of {stored} and shape {shape}", found)
    if dtype.kind in "mM":
        result = result.view(dtype.newbyteorder("<"))
    columns = columns and not result.flags.f_contiguous
    if not columns and dtype.str[0] != ">":
        return result
    # What shares the memory of a record goes on sharing it: one copy serves all its references.
    # The array that it was copied from is kept, too, lest another one comes to lie in its place.
    address = result.__array_interface__["data"][0]
    key = (address, result.shape, result.strides, dtype.str, columns)
    if key not in decoder.copied:
        decoder.charge(result.nbytes, place)
        copy = np.array(result, order="F" if columns else "C")
        if dtype.str[0] == ">":
            copy = copy.byteswap(inplace=True).view(dtype)
        decoder.copied[key] = result, copy
    return decoder.copied[key][1].view()


def _text_array(
    dtype: np.dtype[Any], shape: list[int], body: Json, decoder: Decoder, place: str
) -> Any:
    elements = array(body, place, math.prod(shape))
    values = decoder.sequence(elements, place)
    kind, width = (str, dtype.itemsize // 4) if dtype.kind == "U" else (bytes, dtype.itemsize)
    for position, value in enumerate(values):
        if type(value) is not kind or len(value) > width:
            expected = f"{kind.__name__} of at most {width} characters"
            refuse(f"{place}/{position}", expected, elements[position])
    # Every element takes the whole width, so that a few characters of JSON could ask for any
    # amount of memory.
    allowed = max(_TEXT_FLOOR, _TEXT_RATIO * sum(map(len, values)))
    if dtype.itemsize * len(values) > allowed:
        raise LimitError(
            f"{shown(place)}: {len(values)} elements of {dtype.str} would take"
            f" {dtype.itemsize * len(values)} bytes; the limit for so little text is {allowed}"
        )
    decoder.charge(dtype.itemsize * len(values), place)
    try:
        result: _Array = np.ndarray(tuple(shape), dtype)
    except ValueError as error:
        refuse(place, "a shape that NumPy can hold", str(shape), error)
    result.reshape(-1)[:] = values
    return result


def _write_scalar(value: Any, encoder: Encoder, place: str, _: int) -> Json:
    dtype: np.dtype[Any] = value.dtype.newbyteorder("<")
    name = _name(dtype)
    if name is None:
        raise encoder.unsupported(value, place, _WAY_OUT)
    if np.dtype(name).type is not type(value):
        name = type(value).__name__
    return {"$scalar": {"dtype": name, "value": _scalar_body(value, dtype.kind)}}


def _scalar_body(value: Any, kind: str) -> Json:
    if kind == "b":
        return bool(value)
    if kind in "iu":
        return int(value)
    if kind == "f":
        return _component(value)
    if kind == "c":
        return [_component(value.real), _component(value.imag)]
    if kind in "mM":
        return int(value.view(np.int64))
    # A slice is a plain str or bytes; str() and bytes() would drop NULs at the end.
    if kind == "U":
        return write_text(str.__getitem__(value, slice(None)))
    return write_bytes(bytes.__getitem__(value, slice(None)))


def _component(value: Any) -> Json:
    """A NumPy float as ``docs/format.md`` section 4.4 writes one."""
    if value.itemsize == 8:
        return float_body(float(value))
    if np.isfinite(value):
        # The shortest digits for its own width (0.1), unless binary64 between leads elsewhere.
        short = float(str(value))
        return short if type(value)(short).tobytes() == value.tobytes() else float(value)
    if np.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    bits = int(value.view(f"u{value.itemsize}"))
    return "NaN" if bits == DTYPES[value.dtype.name].nan else f"0x{bits:0{2 * value.itemsize}x}"


def _read_component(body: Json, dtype: np.dtype[Any], place: str) -> Any:
    width = dtype.itemsize
    if type(body) is str and width < 8 and body not in ("Infinity", "-Infinity"):
        nan = DTYPES[dtype.name].nan
        if body != "NaN":
            if not re.fullmatch(f"0x[0-9a-f]{{{2 * width}}}", body):
                refuse(place, f"'NaN', 'Infinity', '-Infinity' or a NaN's {8 * width} bits", body)
            nan = int(body, 16)
        value = np.array([nan], f"<u{width}").view(dtype)[0]
        if not np.isnan(value):
            refuse(place, f"the {8 * width} bits of a NaN", body)
        return value
    wide = read_float_body(body, place)
    with np.errstate(all="ignore"):
        value = np.array([wide]).astype(dtype)[0] if width < 8 else np.array([wide])[0]
    if math.isfinite(wide) and not np.isfinite(value):
        refuse(place, f"a number in the range of {dtype.name}", body)
    return value


def _read_scalar(body: Json, decoder: Decoder, place: str) -> Any:
    parts = members(body, place, "dtype", "value")
    name = member(parts, "dtype", place, str)
    dtype = np.dtype(name) if name in _TWINS else _dtype(name, f"{place}/dtype")
    kind = dtype.type
    if dtype.str[0] == ">":
        refuse(f"{place}/dtype", "a little-endian dtype: scalars have no byte order", name)
    value, at = parts["value"], f"{place}/value"
    if dtype.kind == "b":
        return np.bool_(member(parts, "value", place, bool))
    if dtype.kind in "iu":
        number = integer(value, at)
        limits = np.iinfo(dtype)
        if not limits.min <= number <= limits.max:
            refuse(at, f"an integer in the range of {dtype.name}", value)
        return kind(number)
    if dtype.kind == "f":
        return _read_component(value, dtype, at)
    if dtype.kind == "c":
        half = np.dtype(f"<f{dtype.itemsize // 2}")
        both = [
            _read_component(part, half, f"{at}/{position}")
            for position, part in enumerate(array(value, at, 2))
        ]
        return np.array(both, half).view(dtype)[0]
    if dtype.kind in "mM":
        number = integer(value, at)
        if not -(2**63) <= number < 2**63:
            refuse(at, "an integer of 64 bits", value)
        return np.array([number], "<i8").view(dtype)[0]
    result = decoder.read(value, at)
    if type(result) is not (str if dtype.kind == "U" else bytes) or kind(result).dtype != dtype:
        refuse(at, f"text or bytes that fill {name}", value)
    return kind(result)


def _write_dtype(value: np.dtype[Any], encoder: Encoder, place: str, _: int) -> Json:
    name = _name(value)
    if name is None:
        raise encoder.unsupported(value, place, "Save its name, and build it after loading.")
    return {"$numpy_dtype": name}


def _read_dtype(body: Json, _: Decoder, place: str) -> np.dtype[Any]:
    return _dtype(body, place)


def _hint(value: object) -> str | None:
    if isinstance(value, np.ndarray):
        return (
            "It is a subclass of numpy.ndarray and would come back as a plain array: put"
            " numpy.asarray(...) of it (and the mask of a masked array) in its place, or call"
            " jsonckpt.register(...) for it before saving."
        )
    if isinstance(value, np.dtype):
        return "Save its name, and build it after loading."
    if isinstance(value, np.generic):
        return _WAY_OUT
    if isinstance(value, np.random.Generator | np.random.BitGenerator | np.random.RandomState):
        return "Save its state (a dictionary), and set it after loading."
    return None


#: The rules of this room.
NUMPY = Rules(
    writers={
        np.ndarray: _write_array,
        **{np.dtype(code).type: _write_scalar for code in _CODES},
        **{type(np.dtype(code)): _write_dtype for code in _CODES},
    },
    readers={"$ndarray": _read_array, "$scalar": _read_scalar, "$numpy_dtype": _read_dtype},
    hints=(_hint,),
)
