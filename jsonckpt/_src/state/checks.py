"""Checks on the JSON of a state tree, and the words of its errors. Pure.

Every function takes the ``place`` of what it looks at, a JSON Pointer into the state, and raises
:class:`FormatError` that gives the place, what was expected and what was found. ``bool`` is never
an integer here.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
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
_MAX_WITH_ONE_HASH = 1000
_CANONICAL_NAN = 0x7FF8_0000_0000_0000
_NAN_BITS = re.compile(r"0x[0-9a-f]{16}", re.ASCII)


def refuse(place: str, expected: str, found: Json, cause: BaseException | None = None) -> NoReturn:
    """Raise the error for JSON that is not what its tag asks for."""
    raise FormatError(f"{shown(place)}: expected {expected}, found {_described(found)}") from cause


def _described(value: Json) -> str:
    if type(value) is dict:
        return f"an object with {len(value)} members, {quote(list(value)[:3])}"
    if type(value) is list:
        return f"an array of {len(value)} elements"
    if type(value) is int and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    return quote(value)


def array(body: Json, place: str, length: int | None = None) -> list[Json]:
    """A JSON array, of so many elements if ``length`` is given."""
    if type(body) is not list or (length is not None and len(body) != length):
        refuse(place, "an array" if length is None else f"an array of {length} elements", body)
    return body


def members(body: Json, place: str, *required: str) -> dict[str, Json]:
    """A JSON object that has the required members; others are allowed."""
    if type(body) is not dict or not all(name in body for name in required):
        refuse(place, f"an object with the members {', '.join(required)}", body)
    return body


def member(body: dict[str, Json], name: str, place: str, kind: type[_T]) -> _T:
    """A member of an object, of exactly this type."""
    value = body[name]
    if type(value) is not kind:
        refuse(f"{place}/{name}", {str: "a string", bool: "true or false"}[kind], value)
    return value


def text(body: Json, place: str, expected: str = "a string") -> str:
    """A string. One with lone surrogates stands there as ``{"$str": base64}``."""
    if type(body) is dict and list(body) == ["$str"]:
        raw = binary(body["$str"], f"{place}/$str")
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            refuse(f"{place}/$str", "base64 of UTF-8, surrogates allowed", body["$str"], error)
    if type(body) is not str:
        refuse(place, expected, body)
    return body


def binary(body: Json, place: str) -> bytes:
    """The bytes of a base64 string in its one canonical spelling."""
    if type(body) is not str:
        refuse(place, "a base64 string", body)
    try:
        raw = pybase64.b64decode(body, validate=True)
    except ValueError as error:
        refuse(place, "base64 with padding", body, error)
    if pybase64.b64encode(raw) != body.encode():
        refuse(place, "base64 without bits beyond its last byte", body)
    return raw


def integer(body: Json, place: str, max_bits: int = MAX_BITS) -> int:
    """An integer: a JSON number, or ``{"$int": "0x…"}`` where it has very many digits.

    Raises:
        LimitError: longer than ``max_bits``.
    """
    if type(body) is dict and list(body) == ["$int"]:
        value = hexadecimal(body["$int"], f"{place}/$int")
    elif type(body) is int:
        value = body
    else:
        refuse(place, "an integer", body)
    if value.bit_length() > max_bits:
        raise LimitError(
            f"{shown(place)}: an integer of {value.bit_length()} bits; the limit here is {max_bits}"
        )
    return value


def integers(body: Json, place: str, length: int | None = None) -> list[int]:
    """An array of integers."""
    return [
        integer(element, f"{place}/{position}")
        for position, element in enumerate(array(body, place, length))
    ]


def hexadecimal(body: Json, place: str) -> int:
    """The integer of ``"0x…"`` or ``"-0x…"``, however long."""
    if type(body) is not str or not _HEXADECIMAL.fullmatch(body):
        refuse(place, "an integer as '0x' and lower-case hexadecimal digits", body)
    # Unlike decimal digits, hexadecimal ones are read in linear time and without Python's limit.
    return int(body, 16)


def float_body(value: float) -> Json:
    """A float as a number, or as the string that ``$float`` has for it."""
    if math.isfinite(value):
        return value
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    (bits,) = struct.unpack("<Q", struct.pack("<d", value))
    return "NaN" if bits == _CANONICAL_NAN else f"0x{bits:016x}"


def read_float_body(body: Json, place: str) -> float:
    """The inverse of :func:`float_body`; an integer that a float holds will do, too."""
    if type(body) is float:
        return body
    if type(body) is int:
        try:
            return float(body)
        except OverflowError as error:
            refuse(place, "a number in the range of a float", body, error)
    if body == "Infinity" or body == "-Infinity":
        return math.inf if body == "Infinity" else -math.inf
    bits = _CANONICAL_NAN
    if body != "NaN":
        if type(body) is not str or not _NAN_BITS.fullmatch(body):
            refuse(place, "a number, 'NaN', 'Infinity', '-Infinity' or a NaN's 64 bits", body)
        bits = int(body, 16)
    value: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
    if not math.isnan(value):
        refuse(place, "the 64 bits of a NaN", body)
    return value


def distinct(make: Callable[[list[Any]], Any], values: list[Any], place: str, what: str) -> Any:
    """``make(values)``, when none of the values is lost as a duplicate of another."""
    try:
        result = make(values)
    except RecursionError:
        raise
    except Exception as error:  # whatever a foreign __eq__ raises
        raise FormatError(f"{shown(place)}: {what} that cannot be compared: {error}") from error
    if len(result) != len(values):
        raise FormatError(f"{shown(place)}: duplicate {what}")
    return result


def check_hashes(keys: Sequence[object], place: str) -> None:
    """Refuse keys that have no hash, or so many with the same that a table of them would hang."""
    counts: dict[int, int] = {}
    key: object = None
    try:
        for key in keys:
            code = hash(key)
            counts[code] = counts.get(code, 0) + 1
    except RecursionError:
        raise
    except Exception as error:  # whatever a foreign __hash__ raises
        raise FormatError(
            f"{shown(place)}: a value of type {quote(full_name(type(key)), 120)} can be neither a"
            " key nor an element of a set"
        ) from error
    if max(counts.values(), default=0) > _MAX_WITH_ONE_HASH:
        raise FormatError(
            f"{shown(place)}: more than {_MAX_WITH_ONE_HASH} keys have the same hash",
            hint="They were chosen to make a program hang; do not trust this file.",
        )


_INT64 = 2**63
_KNOWN_SHOWN = 10


def malformed(place: str, what: str) -> FormatError:
    """The error for what stands at ``place``, a JSON Pointer in the state, to be raised."""
    return FormatError(f"state {quote(place, 200)}: {what}")


def single_member(value: Json, place: str) -> tuple[str, Json]:
    """Name and value of the one member of a tagged object.

    Raises:
        FormatError: something else.

    >>> single_member({"$tensor": "/w"}, "/w")
    ('$tensor', '/w')
    """
    if type(value) is dict and len(value) == 1:
        return next(iter(value.items()))
    raise malformed(place, f"expected a tensor, found {quote(value)}")


@dataclass(frozen=True, slots=True)
class Body:
    """An object whose members are asked for one by one; others are ignored.

    >>> Body.of({"offset": 3}, "/x/$view").integer("offset")
    3
    """

    members: dict[str, Json]
    place: str

    @classmethod
    def of(cls, value: Json, place: str) -> Body:
        """The body that stands at ``place``.

        Raises:
            FormatError: not an object. So do the methods, for a member that is not as expected.
        """
        if type(value) is not dict:
            raise malformed(place, f"expected an object, found {quote(value)}")
        return cls(value, place)

    def value(self, member: str) -> Json:
        """Any value, ``None`` if the member is missing."""
        return self.members.get(member)

    def text(self, member: str, known: Collection[str] | None = None) -> str:
        """A string, one of ``known`` if given."""
        value = self.members.get(member)
        if type(value) is not str:
            self.refuse(member, "a string")
        if known is not None and value not in known:
            shown = [*known][:_KNOWN_SHOWN] + ["..."] * (len(known) > _KNOWN_SHOWN)
            self.refuse(member, f"one of {', '.join(shown)}")
        return value

    def boolean(self, member: str) -> bool:
        """``true`` or ``false``."""
        value = self.members.get(member)
        if type(value) is not bool:
            self.refuse(member, "true or false")
        return value

    def integer(self, member: str, low: int = 0, high: int = _INT64 - 1) -> int:
        """An integer from ``low`` to ``high``, both included."""
        value = self.members.get(member)
        if type(value) is not int or not low <= value <= high:
            self.refuse(member, f"an integer from {low} to {high}")
        return value

    def sizes(self, member: str) -> list[int]:
        """At most 64 integers from 0 to 2^63-1."""
        value = self.members.get(member)
        if (
            type(value) is not list
            or len(value) > 64
            or any(type(size) is not int or not 0 <= size < _INT64 for size in value)
        ):
            self.refuse(member, "at most 64 integers from 0 to 2^63-1")
        return cast("list[int]", value)

    def refuse(self, member: str, expected: str) -> NoReturn:
        """Raise for a member that is not as ``expected``."""
        found = quote(self.members[member]) if member in self.members else "nothing"
        raise malformed(f"{self.place}/{member}", f"expected {expected}, found {found}")
