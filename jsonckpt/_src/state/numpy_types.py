"""Rules for NumPy: arrays, scalars and dtypes (``docs/format.md`` section 6.2).

A dtype has the name that ``numpy.dtype.str`` gives it. Only names that match an explicit pattern
are read. An array of numbers becomes a tensor of the same bytes. The elements of an array of text
stay in the state.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from ..errors import LimitError
from ..format.dtypes import DTYPES
from ..format.json_text import Json
from .checks import (
    array,
    boolean,
    float_json,
    integer,
    integers,
    members,
    read_float,
    refuse,
    string,
)
from .paths import shown
from .python_types import base64_text, write_text
from .tree import OMIT, Decoder, Encoder, Rule, Rules

_Array = np.ndarray[Any, Any]
_NAME = re.compile(
    r"\|b1|\|[iu]1|[<>][iu][248]|[<>]f[248]|[<>]c(8|16)|[<>]U\d{1,9}|\|S\d{1,9}"
    r"|[<>][mM]8(\[\d{0,10}(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?",
    re.ASCII,
)
#: NumPy's type codes of the dtypes above. ``q`` may be a different type than the ``l`` of the same
#: size.
_CODES = "?bhilqBHILQefdFDmMUS"
#: Scalar types that share the name of their dtype with another type have their own names.
_OWN_NAMES = ("longlong", "ulonglong")
#: An array of text may take this many bytes, or the second number times its characters.
_TEXT_FLOOR = 64 << 20
_TEXT_RATIO = 1000
_WAY_OUT = (
    "Arrays and scalars of bool, int, float (16 to 64 bits), complex (64 and 128 bits), datetime64,"
    " timedelta64, str_ and bytes_ can be saved: convert it with .astype(...), or save its fields"
    " or elements separately."
)


def _name(dtype: np.dtype[Any]) -> str | None:
    """The dtype's name, or None where the format has none."""
    # Metadata would be lost.
    name: str = dtype.str
    return name if dtype.metadata is None and _NAME.fullmatch(name) else None


def _dtype(body: Json, path: str) -> np.dtype[Any]:
    if type(body) is not str or not _NAME.fullmatch(body):
        refuse(path, "the name of a NumPy dtype of this format, such as '<f4'", body)
    try:
        dtype = np.dtype(body)
    except (TypeError, ValueError, OverflowError) as error:
        refuse(path, "a NumPy dtype that exists", body, error)
    if dtype.str != body:
        refuse(path, f"the dtype's own spelling {dtype.str!r}", body)
    return dtype


def _write_array(value: _Array, encoder: Encoder, path: str, level: int) -> Json:
    name = _name(value.dtype)
    if name is None:
        raise encoder.unsupported(value, path, f"Its dtype is {value.dtype}. {_WAY_OUT}")
    body: dict[str, Json] = {"dtype": name, "shape": list(value.shape)}
    if value.dtype.kind in "US":
        try:
            elements = value.reshape(-1).tolist()
        except (ValueError, SystemError) as error:  # characters beyond Unicode
            raise encoder.unsupported(value, path, f"NumPy cannot read it: {error}.") from error
        body["data"] = encoder.sequence(elements, path, level + 1)
    else:
        body["data"] = encoder.put_array(_as_tensor(value), path)
    if value.flags.f_contiguous and not value.flags.c_contiguous:
        body["order"] = "F"
    return body


def _as_tensor(value: _Array) -> _Array:
    """The elements as a C-contiguous little-endian array of numbers; no copy where it is one."""
    # torch takes no negative strides. NumPy may have them where a size is 0 or 1.
    if not value.flags.c_contiguous or any(step < 0 for step in value.strides):
        value = value.copy(order="C")
    if value.dtype.str[0] == ">":
        # Swapped as bytes: a conversion of floats might change the bits of a NaN.
        value = value.byteswap().view(value.dtype.newbyteorder("<"))
    return value.view(_stored(value.dtype))


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the tensor that holds an array's bytes."""
    return np.dtype("<i8") if dtype.kind in "mM" else dtype.newbyteorder("<")


def _read_array(body: Json, decoder: Decoder, path: str) -> Any:
    parts = members(body, path, "dtype", "shape", "data")
    dtype = _dtype(*parts.at("dtype"))
    shape = integers(*parts.at("shape"))
    if len(shape) > 64 or not all(0 <= size < 2**63 for size in shape):
        refuse(f"{path}/shape", "at most 64 sizes from 0 to 2^63-1", parts.values["shape"])
    columns = "order" in parts
    if columns and parts.values["order"] != "F":
        refuse(f"{path}/order", "'F', or no such member", parts.values["order"])
    if dtype.kind not in "US":
        return _number_array(dtype, shape, columns, decoder, *parts.at("data"))
    result = _text_array(dtype, shape, decoder, *parts.at("data"))
    if columns and not result.flags.f_contiguous:
        decoder.charge(result.nbytes, path)
        result = np.array(result, order="F")
    return result


def _number_array(
    dtype: np.dtype[Any], shape: list[int], columns: bool, decoder: Decoder, body: Json, path: str
) -> Any:
    if type(body) is not dict or len(body) != 1:
        refuse(path, "the tensor of the array's elements, {'$tensor': name}", body)
    result = decoder.get_array(body, path)
    if result is OMIT:
        return OMIT
    stored = _stored(dtype)
    if result.dtype != stored or list(result.shape) != shape:
        found = f"{result.dtype} {list(result.shape)}"
        refuse(path, f"a tensor of {stored} and shape {shape}", found)
    if dtype.kind in "mM":
        result = result.view(dtype.newbyteorder("<"))
    columns = columns and not result.flags.f_contiguous
    if not columns and dtype.str[0] != ">":
        return result
    # Arrays that share memory still share it after loading: all references to a record get one
    # copy. The original is kept, too: no other array may get its address.
    address = result.__array_interface__["data"][0]
    key = (address, result.shape, result.strides, dtype.str, columns)
    if key not in decoder.copied:
        decoder.charge(result.nbytes, path)
        copy = np.array(result, order="F" if columns else "C")
        if dtype.str[0] == ">":
            copy = copy.byteswap(inplace=True).view(dtype)
        decoder.copied[key] = result, copy
    return decoder.copied[key][1].view()


def _text_array(
    dtype: np.dtype[Any], shape: list[int], decoder: Decoder, body: Json, path: str
) -> Any:
    elements = array(body, path, math.prod(shape))
    values = decoder.sequence(elements, path)
    kind, width = (str, dtype.itemsize // 4) if dtype.kind == "U" else (bytes, dtype.itemsize)
    for position, value in enumerate(values):
        if type(value) is not kind or len(value) > width:
            expected = f"{kind.__name__} of at most {width} characters"
            refuse(f"{path}/{position}", expected, elements[position])
    # Every element takes the whole width: a few characters of JSON could ask for any memory.
    allowed = max(_TEXT_FLOOR, _TEXT_RATIO * sum(map(len, values)))
    if dtype.itemsize * len(values) > allowed:
        raise LimitError(
            f"{shown(path)}: {len(values)} elements of {dtype.str} would take"
            f" {dtype.itemsize * len(values)} bytes; the limit for so little text is {allowed}"
        )
    decoder.charge(dtype.itemsize * len(values), path)
    try:
        result: _Array = np.ndarray(tuple(shape), dtype)
    except ValueError as error:
        refuse(path, "a shape that NumPy can hold", str(shape), error)
    result.reshape(-1)[:] = values
    return result


def _write_scalar(value: Any, encoder: Encoder, path: str, _: int) -> Json:
    dtype: np.dtype[Any] = value.dtype.newbyteorder("<")
    name = _name(dtype)
    if name is None:
        raise encoder.unsupported(value, path, _WAY_OUT)
    if np.dtype(name).type is not type(value):
        name = type(value).__name__
    return {"dtype": name, "value": _scalar_body(value, dtype.kind)}


def _scalar_body(value: Any, kind: str) -> Json:
    if kind == "b":
        return bool(value)
    if kind in "iu":
        return int(value)
    if kind == "f":
        return _float_body(value)
    if kind == "c":
        return [_float_body(value.real), _float_body(value.imag)]
    if kind in "mM":
        return int(value.view(np.int64))
    # A slice is a plain str or bytes; str() and bytes() would drop NULs at the end.
    if kind == "U":
        return write_text(str.__getitem__(value, slice(None)))
    return {"$bytes": base64_text(bytes.__getitem__(value, slice(None)))}


def _float_body(value: Any) -> Json:
    """A NumPy float as ``docs/format.md`` section 4.4 writes one."""
    if value.itemsize == 8:
        return float_json(float(value))
    if np.isfinite(value):
        # The shortest digits for its own width (0.1), unless reading them as binary64 first gives
        # another value.
        short = float(str(value))
        return short if type(value)(short).tobytes() == value.tobytes() else float(value)
    if np.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    bits = int(value.view(f"u{value.itemsize}"))
    return "NaN" if bits == DTYPES[value.dtype.name].nan else f"0x{bits:0{2 * value.itemsize}x}"


def _read_float_body(body: Json, dtype: np.dtype[Any], path: str) -> Any:
    width = dtype.itemsize
    if type(body) is str and width < 8 and body not in ("Infinity", "-Infinity"):
        nan = DTYPES[dtype.name].nan
        if body != "NaN":
            if not re.fullmatch(f"0x[0-9a-f]{{{2 * width}}}", body):
                refuse(path, f"'NaN', 'Infinity', '-Infinity' or a NaN's {8 * width} bits", body)
            nan = int(body, 16)
        value = np.array([nan], f"<u{width}").view(dtype)[0]
        if not np.isnan(value):
            refuse(path, f"the {8 * width} bits of a NaN", body)
        return value
    wide = read_float(body, path)
    with np.errstate(all="ignore"):
        value = np.array([wide]).astype(dtype)[0] if width < 8 else np.array([wide])[0]
    if math.isfinite(wide) and not np.isfinite(value):
        refuse(path, f"a number in the range of {dtype.name}", body)
    return value


def _read_scalar(body: Json, decoder: Decoder, path: str) -> Any:
    parts = members(body, path, "dtype", "value")
    name = string(*parts.at("dtype"))
    dtype = np.dtype(name) if name in _OWN_NAMES else _dtype(name, f"{path}/dtype")
    kind = dtype.type
    if dtype.str[0] == ">":
        refuse(f"{path}/dtype", "a little-endian dtype: scalars have no byte order", name)
    value, at = parts.at("value")
    if dtype.kind == "b":
        return np.bool_(boolean(value, at))
    if dtype.kind in "iu":
        number = integer(value, at)
        limits = np.iinfo(dtype)
        if not limits.min <= number <= limits.max:
            refuse(at, f"an integer in the range of {dtype.name}", value)
        return kind(number)
    if dtype.kind == "f":
        return _read_float_body(value, dtype, at)
    if dtype.kind == "c":
        half = np.dtype(f"<f{dtype.itemsize // 2}")
        both = [
            _read_float_body(part, half, f"{at}/{position}")
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


def _write_dtype(value: np.dtype[Any], encoder: Encoder, path: str, _: int) -> Json:
    name = _name(value)
    if name is None:
        raise encoder.unsupported(value, path, "Save its name, and build it after loading.")
    return name


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


#: NumPy's arrays, scalars and dtypes.
NUMPY = Rules.of(
    [
        Rule("$ndarray", (np.ndarray,), _write_array, _read_array),
        Rule("$scalar", tuple(np.dtype(code).type for code in _CODES), _write_scalar, _read_scalar),
        Rule(
            "$numpy_dtype",
            tuple(type(np.dtype(code)) for code in _CODES),
            _write_dtype,
            lambda body, _, path: _dtype(body, path),
        ),
    ],
    _hint,
)
