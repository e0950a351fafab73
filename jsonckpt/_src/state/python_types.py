"""Rules for Python's own types and its standard library (``docs/format.md`` section 6.2).

The JSON of a tag may be forged, so each reader checks everything. What it returns equals what was
written, in value and type.
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
    float_json,
    hexadecimal,
    integer,
    integers,
    members,
    one_of,
    read_float,
    refuse,
    surrogate_text,
    text,
    unique,
)
from .paths import DistinctPaths, child, shown
from .references import has_references
from .time_types import TIMES
from .tree import LONG_INTEGER, OMIT, Decoder, Encoder, Rule, Rules

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


# Numbers and text ------------------------------------------------------------------------------


def _read_float(body: Json, path: str) -> float:
    if type(body) is not str:
        refuse(path, "'NaN', 'Infinity', '-Infinity' or a NaN's 64 bits", body)
    return read_float(body, path)


def _read_complex(body: Json, path: str) -> complex:
    real, imaginary = array(body, path, 2)
    return complex(read_float(real, f"{path}/0"), read_float(imaginary, f"{path}/1"))


def base64_text(value: bytes | bytearray) -> str:
    """The body of ``$bytes``."""
    return base64.b64encode(value).decode()


def _surrogate_body(value: str) -> str:
    return base64_text(value.encode("utf-8", "surrogatepass"))


def write_text(value: str) -> Json:
    """A string, or ``$str`` where it has lone surrogates."""
    return value if is_text(value) else {"$str": _surrogate_body(value)}


def _bounded(value: int, path: str) -> Json:
    """An integer that readers do arithmetic with."""
    if value.bit_length() > MAX_BITS:
        raise LimitError(
            f"{shown(path)}: an integer of {value.bit_length()} bits in a range or a fraction;"
            f" the limit there is {MAX_BITS}"
        )
    return value if -LONG_INTEGER < value < LONG_INTEGER else {"$int": hex(value)}


def _write_range(value: range, _: Encoder, path: str, __: int) -> Json:
    return [_bounded(int(part), path) for part in (value.start, value.stop, value.step)]


def _read_range(body: Json, _: Decoder, path: str) -> range:
    start, stop, step = integers(body, path, 3)
    if step == 0:
        refuse(f"{path}/2", "a step other than 0", step)
    return range(start, stop, step)


def _write_fraction(value: fractions.Fraction, _: Encoder, path: str, __: int) -> Json:
    return [_bounded(value.numerator, path), _bounded(value.denominator, path)]


def _read_fraction(body: Json, _: Decoder, path: str) -> fractions.Fraction:
    numerator, denominator = integers(body, path, 2)
    if denominator < 1:
        refuse(f"{path}/1", "a denominator above 0", denominator)
    return fractions.Fraction(numerator, denominator)


def _read_decimal(body: Json, path: str) -> decimal.Decimal:
    if type(body) is not str or not _DECIMAL.fullmatch(body):
        refuse(path, "a decimal number", body)
    # A context of its own: the program's might turn a number out of range into NaN silently.
    context = decimal.Context(traps=[decimal.InvalidOperation])
    try:
        return decimal.Decimal(body, context)
    except decimal.InvalidOperation as error:
        refuse(path, "a decimal number in the range of decimal.Decimal", body, error)


# Containers ------------------------------------------------------------------------------------


def _attributes(value: Any, encoder: Encoder, path: str, *known: str) -> dict[str, object]:
    """The attributes of an instance. Unknown ones are refused: they would be lost silently."""
    attributes: dict[str, object] = vars(value)
    for name in attributes:
        if name not in known:
            raise encoder.unsupported(
                value,
                path,
                f"It has the attribute {name!r}, which would be lost: save it separately.",
            )
    return attributes


def _write_set(
    value: set[object] | frozenset[object], encoder: Encoder, path: str, level: int
) -> Json:
    elements = encoder.sequence(value, path, level)
    # The order of a set differs between processes. The file must not depend on it.
    by_text = sorted(zip(map(dump, elements), range(len(elements)), strict=True))
    for (one, _), (two, position) in itertools.pairwise(by_text):
        if one == two and has_references(elements[position]):
            raise encoder.unsupported(
                value, path, "Two of its elements are the same memory: a list can hold both."
            )
    return [elements[position] for _, position in by_text]


def _read_set(body: Json, decoder: Decoder, path: str) -> set[Any]:
    elements = decoder.sequence(array(body, path), path)
    return unique(set, elements, elements, path, "elements")


def _read_frozenset(body: Json, decoder: Decoder, path: str) -> frozenset[Any]:
    return frozenset(_read_set(body, decoder, path))


def _write_ordered(
    value: OrderedDict[Any, object], encoder: Encoder, path: str, level: int
) -> Json:
    attributes = _attributes(value, encoder, path, "_metadata")
    if not attributes:
        return {"items": encoder.items(value, path, level + 1)}
    # The attribute needs a path beside those of the items. Usually no item can have that path.
    usual = all(type(key) is str and key.isprintable() for key in value)
    below = None if usual and "_metadata" not in value else DistinctPaths(path)
    items = encoder.items(value, path, level + 1, below)
    at = below.child("_metadata") if below else child(path, "_metadata")
    return {"items": items, "metadata": encoder.write(attributes["_metadata"], at, level + 1)}


def _read_ordered(body: Json, decoder: Decoder, path: str) -> OrderedDict[Any, Any]:
    parts = members(body, path, "items")
    result = OrderedDict(decoder.items(*parts.at("items")))
    if "metadata" in parts:
        metadata = decoder.read(*parts.at("metadata"))
        if metadata is not OMIT:
            result._metadata = metadata  # type: ignore[attr-defined]
    return result


def _write_defaultdict(
    value: defaultdict[Any, object], encoder: Encoder, path: str, level: int
) -> Json:
    factory = value.default_factory
    name = next((name for name, known in _FACTORIES.items() if known is factory), None)
    if factory is not None and name is None:
        raise encoder.unsupported(
            value,
            path,
            f"Its factory {getattr(factory, '__qualname__', factory)!r} is code, and code is"
            f" never saved: use one of {', '.join(_FACTORIES)}, or save dict(...) of it.",
        )
    return {"factory": name, "items": encoder.items(value, path, level + 1)}


def _read_defaultdict(body: Json, decoder: Decoder, path: str) -> defaultdict[Any, Any]:
    parts = members(body, path, "factory", "items")
    name, at = parts.at("factory")
    if name is not None and (type(name) is not str or name not in _FACTORIES):
        refuse(at, f"null or one of {', '.join(_FACTORIES)}", name)
    factory = None if name is None else _FACTORIES[name]
    return defaultdict(factory, decoder.items(*parts.at("items")))


def _write_counter(
    value: collections.Counter[Any], encoder: Encoder, path: str, level: int
) -> Json:
    _attributes(value, encoder, path)
    return encoder.items(value, path, level)


def _read_counter(body: Json, decoder: Decoder, path: str) -> collections.Counter[Any]:
    result: collections.Counter[Any] = collections.Counter()
    # Counter.update would add the counts up; they may be anything here, not only numbers.
    dict.update(result, decoder.items(body, path))
    return result


def _write_deque(value: deque[object], encoder: Encoder, path: str, level: int) -> Json:
    return {"items": encoder.sequence(value, path, level + 1), "maxlen": value.maxlen}


def _read_deque(body: Json, decoder: Decoder, path: str) -> deque[Any]:
    parts = members(body, path, "items", "maxlen")
    items = array(*parts.at("items"))
    maxlen, at = parts.at("maxlen")
    if maxlen is not None:
        maxlen = integer(maxlen, at)
        if not len(items) <= maxlen <= sys.maxsize:
            refuse(at, f"at least {len(items)}, the number of items", maxlen)
    return deque(decoder.sequence(items, f"{path}/items"), maxlen)


def _write_slice(value: slice, encoder: Encoder, path: str, level: int) -> Json:
    return encoder.sequence((value.start, value.stop, value.step), path, level)


def _read_slice(body: Json, decoder: Decoder, path: str) -> Any:
    parts = decoder.sequence(array(body, path, 3), path)
    return slice(*parts) if len(parts) == 3 else OMIT


def _write_namespace(value: object, encoder: Encoder, path: str, level: int) -> Json:
    return encoder.items(vars(value), path, level)


def _read_namespace(kind: Callable[[], Any], body: Json, decoder: Decoder, path: str) -> Any:
    attributes = decoder.items(body, path)
    for name in attributes:
        if type(name) is not str:
            refuse(path, "names of attributes, which are strings", body)
    result = kind()
    vars(result).update(attributes)
    return result


# Others ----------------------------------------------------------------------------------------


def _read_ellipsis(body: Json, path: str) -> Any:
    if body is not None:
        refuse(path, "null", body)
    return ...


def _write_path(value: pathlib.PurePath) -> Json:
    return write_text(str(value))


def _read_path(body: Json, path: str) -> pathlib.Path:
    return pathlib.Path(text(body, path))


_FLAVOURS = {"posix": pathlib.PurePosixPath, "windows": pathlib.PureWindowsPath}


def _write_pure_path(value: pathlib.PurePath) -> Json:
    flavour = "posix" if isinstance(value, pathlib.PurePosixPath) else "windows"
    return {"flavour": flavour, "path": _write_path(value)}


def _read_pure_path(body: Json, path: str) -> pathlib.PurePath:
    parts = members(body, path, "flavour", "path")
    flavour = one_of(*parts.at("flavour"), _FLAVOURS)
    return _FLAVOURS[flavour](text(*parts.at("path")))


def _read_uuid(body: Json, path: str) -> uuid.UUID:
    if type(body) is not str or not _UUID.fullmatch(body):
        refuse(path, "a UUID in lower-case hexadecimal with hyphens", body)
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


_simple = Rule.simple
#: Python's own types, dates and times included.
PLAIN = TIMES + Rules.of(
    [
        _simple("$float", float, float_json, _read_float),
        _simple(
            "$complex", complex, lambda z: [float_json(z.real), float_json(z.imag)], _read_complex
        ),
        # hex() is linear in the length and exempt from Python's limit on digits.
        _simple("$int", int, hex, hexadecimal),
        _simple("$str", str, _surrogate_body, surrogate_text),
        _simple("$bytes", bytes, base64_text, binary),
        _simple("$bytearray", bytearray, base64_text, lambda body, at: bytearray(binary(body, at))),
        Rule("$range", (range,), _write_range, _read_range),
        Rule("$fraction", (fractions.Fraction,), _write_fraction, _read_fraction),
        _simple("$decimal", decimal.Decimal, str, _read_decimal),
        Rule("$set", (set,), _write_set, _read_set),
        Rule("$frozenset", (frozenset,), _write_set, _read_frozenset),
        Rule("$ordered_dict", (OrderedDict,), _write_ordered, _read_ordered),
        Rule("$defaultdict", (defaultdict,), _write_defaultdict, _read_defaultdict),
        Rule("$counter", (collections.Counter,), _write_counter, _read_counter),
        Rule("$deque", (deque,), _write_deque, _read_deque),
        Rule("$slice", (slice,), _write_slice, _read_slice),
        *(
            Rule(tag, (kind,), _write_namespace, functools.partial(_read_namespace, kind))
            for tag, kind in (
                ("$namespace", argparse.Namespace),
                ("$simple_namespace", types.SimpleNamespace),
            )
        ),
        _simple("$ellipsis", type(...), lambda _: None, _read_ellipsis),
        _simple("$path", (pathlib.PosixPath, pathlib.WindowsPath), _write_path, _read_path),
        _simple("$pure_path", tuple(_FLAVOURS.values()), _write_pure_path, _read_pure_path),
        _simple("$uuid", uuid.UUID, str, _read_uuid),
    ],
    _hint,
)
_BASES = frozenset({*PLAIN.by_type, dict, list, tuple} - {type(...)})
