"""Checks on the JSON of a state, and the errors they raise (``docs/format.md`` section 6.2). Pure.

Each check takes a value and its ``path``, a JSON Pointer in the state. It raises a
:class:`FormatError` that gives the path, what was expected and what was found. A ``bool`` is never
an integer here.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn, TypeVar, cast

import pybase64

from ..errors import FormatError, LimitError, full_name, quote
from ..format.json_text import Json
from .paths import shown

_T = TypeVar("_T")
_HEXADECIMAL = re.compile(r"-?0x[0-9a-f]+", re.ASCII)
#: Longest integer that takes part in arithmetic while reading (the greatest common divisor of a
#: fraction, the length of a range): the time for it grows with the square of the length.
MAX_BITS = 16_384
_MAX_INT64 = 2**63 - 1
_MAX_WITH_ONE_HASH = 1000
_MAX_CHOICES_SHOWN = 10
_CANONICAL_NAN = 0x7FF8_0000_0000_0000
_NAN_BITS = re.compile(r"0x[0-9a-f]{16}", re.ASCII)


def malformed(path: str, what: str) -> FormatError:
    """The error for the value at ``path``."""
    return FormatError(f"{shown(path)}: {what}")


def refuse(path: str, expected: str, found: Json, cause: BaseException | None = None) -> NoReturn:
    """Raise the error for a value that its tag does not allow."""
    raise malformed(path, f"expected {expected}, found {_described(found)}") from cause


def _described(value: Json) -> str:
    if type(value) is dict:
        return f"an object with {len(value)} members, {quote(list(value)[:3])}"
    if type(value) is list:
        return f"an array of {len(value)} elements"
    if type(value) is int and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    return quote(value)


# Arrays and objects ----------------------------------------------------------------------------


def array(value: Json, path: str, length: int | None = None) -> list[Json]:
    """A JSON array, of ``length`` elements if that is given."""
    if type(value) is not list or (length is not None and len(value) != length):
        refuse(path, "an array" if length is None else f"an array of {length} elements", value)
    return value


@dataclass(slots=True)  # not frozen: that takes three times as long, and there are thousands
class Members:
    """The members of a tagged object.

    >>> integer(*members({"maxlen": 3}, "/x/$deque", "maxlen").at("maxlen"))
    3
    """

    values: dict[str, Json]
    path: str

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def at(self, name: str) -> tuple[Json, str]:
        """The value and the path of a member: the arguments of the other checks."""
        return self.values[name], f"{self.path}/{name}"


def members(value: Json, path: str, *required: str) -> Members:
    """A JSON object that has the required members. Unknown members are ignored."""
    if type(value) is not dict or not all(map(value.__contains__, required)):
        refuse(path, f"an object with the members {', '.join(required)}", value)
    return Members(value, path)


def single_member(value: Json, path: str) -> tuple[str, Json]:
    """Tag and value of a tagged tensor.

    >>> single_member({"$tensor": "/w"}, "/w")
    ('$tensor', '/w')
    """
    if type(value) is dict and len(value) == 1:
        return next(iter(value.items()))
    raise malformed(path, f"expected a tensor, found {quote(value)}")


# Strings and bools -----------------------------------------------------------------------------


def boolean(value: Json, path: str) -> bool:
    """``true`` or ``false``."""
    if type(value) is not bool:
        refuse(path, "true or false", value)
    return value


def string(value: Json, path: str) -> str:
    """A JSON string."""
    if type(value) is not str:
        refuse(path, "a string", value)
    return value


def one_of(value: Json, path: str, choices: Collection[str]) -> str:
    """A string that is one of ``choices``."""
    if type(value) is not str or value not in choices:
        listed = [*islice(choices, _MAX_CHOICES_SHOWN)]
        listed += ["..."] * (len(choices) > _MAX_CHOICES_SHOWN)
        refuse(path, f"one of {', '.join(listed)}", value)
    return value


def text(value: Json, path: str) -> str:
    """A string. One with lone surrogates is written as ``{"$str": base64}``."""
    if type(value) is dict and list(value) == ["$str"]:
        return surrogate_text(value["$str"], f"{path}/$str")
    return string(value, path)


def surrogate_text(value: Json, path: str) -> str:
    """The string of a ``$str``."""
    try:
        return binary(value, path).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        refuse(path, "base64 of UTF-8, surrogates allowed", value, error)


def binary(value: Json, path: str) -> bytes:
    """The bytes of a base64 string in its one canonical spelling."""
    if type(value) is not str:
        refuse(path, "a base64 string", value)
    try:
        raw = pybase64.b64decode(value, validate=True)
    except ValueError as error:
        refuse(path, "base64 with padding", value, error)
    if pybase64.b64encode(raw) != value.encode():
        refuse(path, "base64 without bits beyond its last byte", value)
    return raw


# Numbers ---------------------------------------------------------------------------------------


def integer(value: Json, path: str) -> int:
    """An integer: a JSON number, or ``{"$int": "0x…"}`` where it has very many digits.

    Raises:
        LimitError: longer than :data:`MAX_BITS`.
    """
    if type(value) is dict and list(value) == ["$int"]:
        result = hexadecimal(value["$int"], f"{path}/$int")
    elif type(value) is int:
        result = value
    else:
        refuse(path, "an integer", value)
    if result.bit_length() > MAX_BITS:
        raise LimitError(
            f"{shown(path)}: an integer of {result.bit_length()} bits; the limit here is {MAX_BITS}"
        )
    return result


def integers(value: Json, path: str, length: int | None = None) -> list[int]:
    """An array of integers."""
    return [
        integer(element, f"{path}/{position}")
        for position, element in enumerate(array(value, path, length))
    ]


def integer_between(value: Json, path: str, low: int = 0, high: int = _MAX_INT64) -> int:
    """A JSON integer from ``low`` to ``high``, both included."""
    if type(value) is not int or not low <= value <= high:
        refuse(path, f"an integer from {low} to {high}", value)
    return value


def sizes(value: Json, path: str) -> list[int]:
    """The sizes or strides of a tensor."""
    if (
        type(value) is not list
        or len(value) > 64
        or any(type(size) is not int or not 0 <= size <= _MAX_INT64 for size in value)
    ):
        refuse(path, "at most 64 integers from 0 to 2^63-1", value)
    return cast("list[int]", value)


def hexadecimal(value: Json, path: str) -> int:
    """The integer of ``"0x…"`` or ``"-0x…"``, however long."""
    if type(value) is not str or not _HEXADECIMAL.fullmatch(value):
        refuse(path, "an integer as '0x' and lower-case hexadecimal digits", value)
    # Unlike decimal digits, hexadecimal ones are read in linear time and without Python's limit.
    return int(value, 16)


def float_json(value: float) -> Json:
    """A float as a number, or as the string that ``$float`` has for it."""
    if math.isfinite(value):
        return value
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    (bits,) = struct.unpack("<Q", struct.pack("<d", value))
    return "NaN" if bits == _CANONICAL_NAN else f"0x{bits:016x}"


def read_float(value: Json, path: str) -> float:
    """The inverse of :func:`float_json`. An integer that a float holds is accepted, too."""
    if type(value) is float:
        return value
    if type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            refuse(path, "a number in the range of a float", value, error)
    if value == "Infinity" or value == "-Infinity":
        return math.inf if value == "Infinity" else -math.inf
    bits = _CANONICAL_NAN
    if value != "NaN":
        if type(value) is not str or not _NAN_BITS.fullmatch(value):
            refuse(path, "a number, 'NaN', 'Infinity', '-Infinity' or a NaN's 64 bits", value)
        bits = int(value, 16)
    result: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
    if not math.isnan(result):
        refuse(path, "the 64 bits of a NaN", value)
    return result


# Sets and dictionaries -------------------------------------------------------------------------


def unique(
    make: Callable[[list[Any]], _T], items: list[Any], keys: Iterable[object], path: str, what: str
) -> _T:
    """``make(items)``, a set or a dictionary with these ``keys``, where no key occurs twice.

    Keys without a hash are refused. So are very many keys with the same hash: inserting them would
    take hours.
    """
    counts: dict[int, int] = {}
    key: object = None
    try:
        for key in keys:
            code = hash(key)
            counts[code] = counts.get(code, 0) + 1
    except RecursionError:
        raise
    except Exception as error:  # whatever a foreign __hash__ raises
        name = quote(full_name(type(key)), 120)
        raise malformed(
            path, f"a value of type {name} can be neither a key nor an element of a set"
        ) from error
    if max(counts.values(), default=0) > _MAX_WITH_ONE_HASH:
        raise FormatError(
            f"{shown(path)}: more than {_MAX_WITH_ONE_HASH} keys have the same hash",
            hint="They were chosen to make a program hang; do not trust this file.",
        )
    try:
        result = make(items)
    except RecursionError:
        raise
    except Exception as error:  # whatever a foreign __eq__ raises
        raise malformed(path, f"{what} that cannot be compared: {error}") from error
    if len(cast("set[Any]", result)) != len(items):
        raise malformed(path, f"duplicate {what}")
    return result
