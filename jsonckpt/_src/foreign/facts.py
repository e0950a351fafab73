"""What the members of a JSON object say of a tensor: tables of their names, and their meanings."""

from __future__ import annotations

import re
from typing import Any, Literal

from ..errors import FormatError, quote
from .payloads import dtype_named

#: Where the values of a tensor stand, the most common names first.
PAYLOAD_KEYS = (
    *("data", "values", "value", "array", "tensor", "ndarray", "list", "flat", "buffer", "bytes"),
    *("base64", "b64", "data_b64", "data_base64", "b64_data", "bdata", "raw", "raw_data"),
    *("rawData", "binary", "content", "contents", "elements"),
)
DTYPE_KEYS = ("dtype", "dataType", "data_type", "datatype", "type")
SHAPE_KEYS = ("shape", "dims", "size", "sizes", "dim", "dimensions")
BYTE_ORDER_KEYS = ("byteorder", "byte_order", "endian", "endianness", "order")
ENCODING_KEYS = ("encoding", "compression", "codec", "format")
_ORDERS: dict[object, Literal["C", "F"]] = {
    **dict.fromkeys(("C", "c", "row-major", "row_major", "row"), "C"),
    **dict.fromkeys(("F", "f", "fortran", "column-major", "column_major", "col"), "F"),
}
_BIG = frozenset({">", "big", "BE", "be"})
_ENDIAN = frozenset({"<", "little", "LE", "le", "=", "|", "S", *_BIG})
_PRINTED_SHAPE = re.compile(
    r"(?:torch\.Size)?[(\[ ]{0,2}([0-9]{1,18}(?:, ?[0-9]{1,18}){0,63}|),?[)\] ]{0,2}"
)
#: Objects that stand for bytes: Node's Buffer, bokeh, jsonpickle and BSON.
_BYTES = (("type", "Buffer", "data"), ("type", "bytes", "data"))
_BYTES_KEYS = ("py/b64", "$binary", "__bytes__", "base64", "b64")


def typed_array(thing: object) -> list[Any] | None:
    """The numbers of a typed array: ``JSON.stringify`` writes ``{"0": 1.5, "1": 2.0, ...}``.

    Returns:
        The list, or ``None`` if the keys are not 0, 1, ... in order, or a value is no number.

    >>> typed_array({"0": 1.5, "1": 2})
    [1.5, 2]
    >>> typed_array({"1": 1.5}) is None
    True
    """
    if not isinstance(thing, dict) or "0" not in thing:
        return None
    if any(key != str(index) for index, key in enumerate(thing)):
        return None
    values = list(thing.values())
    return values if {type(value) for value in values} <= {int, float} else None


def bytes_of(values: Any) -> tuple[Any, bool]:
    """The values inside of an object that stands for bytes or for a typed array."""
    if not isinstance(values, dict):
        return values, False
    numbers = typed_array(values)
    if numbers is not None:
        return numbers, False
    for key, kind, inside in _BYTES:
        if values.get(key) == kind and inside in values:
            return values[inside], True
    for key in _BYTES_KEYS:
        if key in values:
            inner = values[key]
            return (inner.get("base64", inner) if isinstance(inner, dict) else inner), True
    return values, False


def payload_key(thing: dict[str, Any]) -> str | None:
    """The key of the values, if an object has such a key."""
    return next((key for key in PAYLOAD_KEYS if key in thing and thing[key] is not None), None)


def dtype_name(thing: dict[str, Any]) -> Any:
    """The dtype that stands in an object. ``type`` is one only if it names one."""
    for key in DTYPE_KEYS:
        if key in thing and (key != "type" or is_dtype(thing[key])):
            return thing[key]
    return None


def is_dtype(name: object) -> bool:
    try:
        dtype_named(name)
    except FormatError:
        return False
    return True


def shape_said(thing: dict[str, Any]) -> Any:
    """The shape that stands in an object: a list, or the text of one. ``None`` without one."""
    for key in SHAPE_KEYS:
        shape = thing.get(key)
        if isinstance(shape, dict) and shape.keys() == {"py/tuple"}:
            shape = shape["py/tuple"]
        if isinstance(shape, list) and shape and all(is_index(size) for size in shape):
            return [int(size) for size in shape]
        if isinstance(shape, str) and (match := _PRINTED_SHAPE.fullmatch(shape)) is not None:
            return [int(size) for size in match[1].split(",")] if match[1] else []
        if shape is not None and (key == "shape" or isinstance(shape, list)):
            return shape
    return None


def order_of(thing: dict[str, Any]) -> tuple[Literal["C", "F"], Literal["<", ">"]]:
    """The order of the values and of the bytes in each.

    Raises:
        FormatError: an unknown order.
    """
    order: Literal["C", "F"] = "F" if thing.get("fortran_order") is True else "C"
    endian: Literal["<", ">"] = "<"
    for key in BYTE_ORDER_KEYS:
        said = thing.get(key)
        if isinstance(said, str) and said in _ENDIAN:
            endian = ">" if said in _BIG else "<"
        elif key == "order" and isinstance(said, str) and said in _ORDERS:
            order = _ORDERS[said]
        elif said is not None:
            raise FormatError(f"values in the unknown order {quote(said)}")
    return order, endian


def is_integer(text: object) -> bool:
    return isinstance(text, str) and len(text) < 21 and re.fullmatch("-?[0-9]+", text) is not None


def is_index(key: object) -> bool:
    return (
        isinstance(key, str)
        and key.isascii()
        and key.isdigit()
        and len(key) < 19
        and str(int(key)) == key
    )
