"""Rules for the values of plain Python and its standard library (``docs/format.md`` section 6.2).

Each pair of functions writes a type and reads its tag. A reader gets JSON that anyone may have
made up: it checks everything, and what it makes is what the writer was given, in value and type.
"""

from __future__ import annotations

import argparse
import base64
import collections
import dataclasses
import decimal
import enum
import fractions
import functools
import itertools
import pathlib
import re
import sys
import types
import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

from ..errors import LimitError
from ..format.json_text import Json, dump, is_text
from .checks import (
    MAX_BITS,
    array,
    binary,
    check_hashes,
    distinct,
    float_body,
    hexadecimal,
    integer,
    integers,
    member,
    members,
    read_float_body,
    refuse,
    text,
)
from .paths import DistinctPaths, child, shown
from .time_types import TIMES
from .tree import OMIT, Decoder, Encoder, Rules, Writer, has_tensors

_BIG = 10**640
_DECIMAL = re.compile(r"[+-]?((\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|Infinity|s?NaN\d*)", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_FACTORIES: dict[str, Callable[[], Any]] = {
    **{
        kind.__name__: kind
        for kind in (int, float, complex, bool, str, bytes, list, dict, set, tuple, frozenset)
    },
    "OrderedDict": OrderedDict,
    "deque": deque,
}
_CODE = (
    type,
    functools.partial,
    types.BuiltinFunctionType,
    types.FunctionType,
    types.MethodType,
    types.ModuleType,
)


def _write_float(value: float, *_: object) -> Json:
    return {"$float": float_body(value)}


def _read_float(body: Json, _: Decoder, place: str) -> float:
    if type(body) is not str:
        refuse(place, "'NaN', 'Infinity', '-Infinity' or a NaN's 64 bits", body)
    return read_float_body(body, place)


def _write_complex(value: complex, *_: object) -> Json:
    return {"$complex": [float_body(value.real), float_body(value.imag)]}


def _read_complex(body: Json, _: Decoder, place: str) -> complex:
    real, imaginary = array(body, place, 2)
    return complex(read_float_body(real, f"{place}/0"), read_float_body(imaginary, f"{place}/1"))


def _write_int(value: int, *_: object) -> Json:
    # hex() is linear in the length and exempt from Python's limit on digits.
    return {"$int": hex(value)}


def _read_int(body: Json, _: Decoder, place: str) -> int:
    return hexadecimal(body, place)


def write_text(value: str) -> Json:
    """A string, or ``$str`` where it has lone surrogates."""
    if is_text(value):
        return value
    return {"$str": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}


def _write_str(value: str, *_: object) -> Json:
    return write_text(value)


def _read_str(body: Json, _: Decoder, place: str) -> str:
    return text({"$str": body}, place.removesuffix("/$str"))


def write_bytes(value: bytes | bytearray, tag: str = "$bytes") -> Json:
    """``$bytes`` or ``$bytearray``."""
    return {tag: base64.b64encode(value).decode()}


def _write_bytes(value: bytes, *_: object) -> Json:
    return write_bytes(value)


def _write_bytearray(value: bytearray, *_: object) -> Json:
    return write_bytes(value, "$bytearray")


def _read_bytes(body: Json, _: Decoder, place: str) -> bytes:
    return binary(body, place)


def _read_bytearray(body: Json, _: Decoder, place: str) -> bytearray:
    return bytearray(binary(body, place))


def _bounded(value: int, place: str) -> Json:
    """An integer that readers do arithmetic with."""
    if value.bit_length() > MAX_BITS:
        raise LimitError(
            f"{shown(place)}: an integer of {value.bit_length()} bits in a range or a fraction;"
            f" the limit there is {MAX_BITS}"
        )
    return value if -_BIG < value < _BIG else {"$int": hex(value)}


def _write_range(value: range, _: Encoder, place: str, __: int) -> Json:
    parts = (value.start, value.stop, value.step)
    return {"$range": [_bounded(int(part), place) for part in parts]}


def _read_range(body: Json, _: Decoder, place: str) -> range:
    start, stop, step = integers(body, place, 3)
    if step == 0:
        refuse(f"{place}/2", "a step other than 0", step)
    return range(start, stop, step)


def _write_fraction(value: fractions.Fraction, _: Encoder, place: str, __: int) -> Json:
    return {"$fraction": [_bounded(value.numerator, place), _bounded(value.denominator, place)]}


def _read_fraction(body: Json, _: Decoder, place: str) -> fractions.Fraction:
    numerator, denominator = integers(body, place, 2)
    if denominator < 1:
        refuse(f"{place}/1", "a denominator above 0", denominator)
    return fractions.Fraction(numerator, denominator)


def _write_decimal(value: decimal.Decimal, *_: object) -> Json:
    return {"$decimal": str(value)}


def _read_decimal(body: Json, _: Decoder, place: str) -> decimal.Decimal:
    if type(body) is not str or not _DECIMAL.fullmatch(body):
        refuse(place, "a decimal number", body)
    # A context of its own: in the program's, a number out of range might silently become NaN.
    context = decimal.Context(traps=[decimal.InvalidOperation])
    try:
        return decimal.Decimal(body, context)
    except decimal.InvalidOperation as error:
        refuse(place, "a decimal number in the range of decimal.Decimal", body, error)


def _no_attributes(value: Any, encoder: Encoder, place: str, *known: str) -> dict[str, object]:
    """The attributes of an instance, when they are all known: others would be lost silently."""
    attributes: dict[str, object] = vars(value)
    for name in attributes:
        if name not in known:
            raise encoder.unsupported(
                value, place, f"It has the attribute {name!r}, which would be lost: save it apart."
            )
    return attributes


def _set_writer(tag: str) -> Writer:
    def write(value: set[object], encoder: Encoder, place: str, level: int) -> Json:
        elements = encoder.sequence(value, place, level + 1)
        # Sets iterate in another order in every process; a file should not change with it.
        by_text = sorted(zip(map(dump, elements), range(len(elements)), strict=True))
        for (one, _), (two, position) in itertools.pairwise(by_text):
            if one == two and has_tensors(elements[position]):
                raise encoder.unsupported(
                    value, place, "Two of its elements are the same memory: a list can hold both."
                )
        return {tag: [elements[position] for _, position in by_text]}

    return write


def _read_set(body: Json, decoder: Decoder, place: str) -> set[Any]:
    elements = decoder.sequence(array(body, place), place)
    check_hashes(elements, place)
    result: set[Any] = distinct(set, elements, place, "elements")
    return result


def _read_frozenset(body: Json, decoder: Decoder, place: str) -> frozenset[Any]:
    return frozenset(_read_set(body, decoder, place))


def _write_ordered(
    value: OrderedDict[Any, object], encoder: Encoder, place: str, level: int
) -> Json:
    attributes = _no_attributes(value, encoder, place, "_metadata")
    if not attributes:
        return {"$ordered_dict": {"items": encoder.items(value, place, level + 2)}}
    # The attribute needs a place beside those of the items; mostly there is no doubt about it.
    usual = all(type(key) is str and key.isprintable() for key in value)
    below = None if usual and "_metadata" not in value else DistinctPaths(place)
    items = encoder.items(value, place, level + 2, below)
    at = below.child("_metadata") if below else child(place, "_metadata")
    metadata = encoder.write(attributes["_metadata"], at, level + 2)
    return {"$ordered_dict": {"items": items, "metadata": metadata}}


def _read_ordered(body: Json, decoder: Decoder, place: str) -> OrderedDict[Any, Any]:
    parts = members(body, place, "items")
    result = OrderedDict(decoder.items(parts["items"], f"{place}/items"))
    if "metadata" in parts:
        metadata = decoder.read(parts["metadata"], f"{place}/metadata")
        if metadata is not OMIT:
            result._metadata = metadata  # type: ignore[attr-defined]
    return result


def _write_defaultdict(
    value: defaultdict[Any, object], encoder: Encoder, place: str, level: int
) -> Json:
    factory = value.default_factory
    name = None
    if factory is not None:
        name = next((name for name, known in _FACTORIES.items() if known is factory), None)
        if name is None:
            raise encoder.unsupported(
                value,
                place,
                f"Its factory {getattr(factory, '__qualname__', factory)!r} is code, and code is"
                f" never saved: use one of {', '.join(_FACTORIES)}, or save dict(...) of it.",
            )
    return {"$defaultdict": {"factory": name, "items": encoder.items(value, place, level + 2)}}


def _read_defaultdict(body: Json, decoder: Decoder, place: str) -> defaultdict[Any, Any]:
    parts = members(body, place, "factory", "items")
    name = parts["factory"]
    if name is not None and (type(name) is not str or name not in _FACTORIES):
        refuse(f"{place}/factory", f"null or one of {', '.join(_FACTORIES)}", name)
    factory = None if name is None else _FACTORIES[name]
    return defaultdict(factory, decoder.items(parts["items"], f"{place}/items"))


def _write_counter(
    value: collections.Counter[Any], encoder: Encoder, place: str, level: int
) -> Json:
    _no_attributes(value, encoder, place)
    return {"$counter": encoder.items(value, place, level + 1)}


def _read_counter(body: Json, decoder: Decoder, place: str) -> collections.Counter[Any]:
    result: collections.Counter[Any] = collections.Counter()
    # Counter.update would add the counts up; they may be anything here, not only numbers.
    dict.update(result, decoder.items(body, place))
    return result


def _write_deque(value: deque[object], encoder: Encoder, place: str, level: int) -> Json:
    return {"$deque": {"items": encoder.sequence(value, place, level + 2), "maxlen": value.maxlen}}


def _read_deque(body: Json, decoder: Decoder, place: str) -> deque[Any]:
    parts = members(body, place, "items", "maxlen")
    items = array(parts["items"], f"{place}/items")
    maxlen = None
    if parts["maxlen"] is not None:
        maxlen = integer(parts["maxlen"], f"{place}/maxlen")
        if not len(items) <= maxlen <= sys.maxsize:
            refuse(f"{place}/maxlen", f"at least the {len(items)} that there are", maxlen)
    return deque(decoder.sequence(items, f"{place}/items"), maxlen)


def _write_slice(value: slice, encoder: Encoder, place: str, level: int) -> Json:
    parts = (value.start, value.stop, value.step)
    return {"$slice": encoder.sequence(parts, place, level + 1)}


def _read_slice(body: Json, decoder: Decoder, place: str) -> Any:
    parts = decoder.sequence(array(body, place, 3), place)
    return slice(*parts) if len(parts) == 3 else OMIT


def _namespace_writer(tag: str) -> Writer:
    def write(value: object, encoder: Encoder, place: str, level: int) -> Json:
        return {tag: encoder.items(vars(value), place, level + 1)}

    return write


def _namespace_reader(kind: type) -> Callable[[Json, Decoder, str], Any]:
    def read(body: Json, decoder: Decoder, place: str) -> Any:
        attributes = decoder.items(body, place)
        for name in attributes:
            if type(name) is not str:
                refuse(place, "names of attributes, which are strings", body)
        result = kind()
        vars(result).update(attributes)
        return result

    return read


def _write_ellipsis(*_: object) -> Json:
    return {"$ellipsis": None}


def _read_ellipsis(body: Json, _: Decoder, place: str) -> Any:
    if body is not None:
        refuse(place, "null", body)
    return ...


def _write_path(value: pathlib.Path, *_: object) -> Json:
    return {"$path": write_text(str(value))}


def _read_path(body: Json, _: Decoder, place: str) -> pathlib.Path:
    return pathlib.Path(text(body, place))


def _write_pure_path(value: pathlib.PurePath, *_: object) -> Json:
    flavour = "posix" if isinstance(value, pathlib.PurePosixPath) else "windows"
    return {"$pure_path": {"flavour": flavour, "path": write_text(str(value))}}


def _read_pure_path(body: Json, _: Decoder, place: str) -> pathlib.PurePath:
    parts = members(body, place, "flavour", "path")
    flavour = member(parts, "flavour", place, str)
    path = text(parts["path"], f"{place}/path")
    if flavour not in ("posix", "windows"):
        refuse(f"{place}/flavour", "'posix' or 'windows'", flavour)
    return pathlib.PurePosixPath(path) if flavour == "posix" else pathlib.PureWindowsPath(path)


def _write_uuid(value: uuid.UUID, *_: object) -> Json:
    return {"$uuid": str(value)}


def _read_uuid(body: Json, _: Decoder, place: str) -> uuid.UUID:
    if type(body) is not str or not _UUID.fullmatch(body):
        refuse(place, "a UUID in lower-case hexadecimal with hyphens", body)
    return uuid.UUID(body)


def _hint(value: object) -> str | None:
    kind = type(value)
    name = kind.__qualname__.rpartition(".")[2]
    named_tuple = isinstance(value, tuple) and hasattr(kind, "_fields")
    if isinstance(value, enum.Enum) or dataclasses.is_dataclass(kind) or named_tuple:
        return f"Call jsonckpt.register({name}) before saving, and likewise before loading."
    if isinstance(value, _CODE):
        return "Code is never saved: keep its name instead, and look it up after loading."
    bases = [base for base in kind.__mro__[1:] if base in _BASES]
    if bases:
        base = bases[0].__name__
        return (
            f"It would come back as a plain {base}: put {base}(...) of it in its place, or call"
            f" jsonckpt.register({name}, to_json=..., from_json=...) before saving."
        )
    return None


#: The rules of this room, dates and times included.
PLAIN = TIMES + Rules(
    writers={
        float: _write_float,
        complex: _write_complex,
        int: _write_int,
        str: _write_str,
        bytes: _write_bytes,
        bytearray: _write_bytearray,
        range: _write_range,
        fractions.Fraction: _write_fraction,
        decimal.Decimal: _write_decimal,
        set: _set_writer("$set"),
        frozenset: _set_writer("$frozenset"),
        OrderedDict: _write_ordered,
        defaultdict: _write_defaultdict,
        collections.Counter: _write_counter,
        deque: _write_deque,
        slice: _write_slice,
        argparse.Namespace: _namespace_writer("$namespace"),
        types.SimpleNamespace: _namespace_writer("$simple_namespace"),
        type(...): _write_ellipsis,
        pathlib.PosixPath: _write_path,
        pathlib.WindowsPath: _write_path,
        pathlib.PurePosixPath: _write_pure_path,
        pathlib.PureWindowsPath: _write_pure_path,
        uuid.UUID: _write_uuid,
    },
    readers={
        "$float": _read_float,
        "$complex": _read_complex,
        "$int": _read_int,
        "$str": _read_str,
        "$bytes": _read_bytes,
        "$bytearray": _read_bytearray,
        "$range": _read_range,
        "$fraction": _read_fraction,
        "$decimal": _read_decimal,
        "$set": _read_set,
        "$frozenset": _read_frozenset,
        "$ordered_dict": _read_ordered,
        "$defaultdict": _read_defaultdict,
        "$counter": _read_counter,
        "$deque": _read_deque,
        "$slice": _read_slice,
        "$namespace": _namespace_reader(argparse.Namespace),
        "$simple_namespace": _namespace_reader(types.SimpleNamespace),
        "$ellipsis": _read_ellipsis,
        "$path": _read_path,
        "$pure_path": _read_pure_path,
        "$uuid": _read_uuid,
    },
    hints=(_hint,),
)
_BASES = frozenset({*PLAIN.writers, dict, list, tuple} - {type(...)})
