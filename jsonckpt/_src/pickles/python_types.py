"""Makes values of Python's own harmless types from what a pickle says of them.

Each function checks the types of its arguments. None takes more memory than the pickle itself.
"""

from __future__ import annotations

import argparse
import datetime
import decimal
import pathlib
import re
import types
import uuid
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final

from .keys import dictionary, keys
from .machine import Constructor
from .values import Global, Unread, typed, unfit

#: What may make the missing values of a defaultdict.
_FACTORIES: Final[dict[str, Callable[[], Any]]] = {
    **{
        f"builtins.{kind.__name__}": kind for kind in (bool, bytes, complex, dict, float, frozenset)
    },
    **{f"builtins.{kind.__name__}": kind for kind in (int, list, set, str, tuple, bytearray)},
    "collections.OrderedDict": OrderedDict,
    "collections.deque": deque,
    "collections.Counter": Counter,
}
#: What the ends of a slice may be. Nothing looks into a slice later.
_ENDS: Final = (int, float, bool, str, type(None))
_FRACTION: Final = re.compile(r"-?\d{1,4300}(/\d{1,4300})?", re.ASCII)


def raw_bytes(value: Any) -> bytes:
    """Bytes: those of Python 2 may have become text."""
    if type(value) is str:
        return value.encode("ascii")
    found: bytes = typed(value, (bytes, bytearray), "a text of bytes")
    return found


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """``_codecs.encode``: how protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise unfit("another encoding of bytes than latin1")
    return typed(text, str, "a text of bytes").encode("latin-1")  # type: ignore[no-any-return]


def _bytes(*args: Any) -> bytes:
    if not args:
        return b""
    if len(args) == 2:
        return _encoded(*args)
    (items,) = args
    return bytes(typed(items, (bytes, list), "bytes"))


def _bytearray(*args: Any) -> bytearray:
    return bytearray(_bytes(*args))


def _pairs(value: Any) -> dict[Any, Any]:
    if type(value) in (dict, OrderedDict):
        return dictionary(value.items())
    return dictionary(tuple(typed(pair, (list, tuple), "an item")) for pair in _items(value))


def _items(value: Any) -> Any:
    return typed(value, (list, tuple, set, frozenset), "a sequence")


def _counter(counts: Any = ()) -> Counter[Any]:
    result: Counter[Any] = Counter()
    dict.update(result, _pairs(counts))
    return result


def _default(factory: Any = None) -> Any:
    if factory is None:
        return defaultdict(None)
    known = _FACTORIES.get(factory.dotted) if type(factory) is Global else None
    return Unread("collections.defaultdict", (factory,)) if known is None else defaultdict(known)


def _deque(items: Any = (), maxlen: Any = None) -> deque[Any]:
    return deque(_items(items), typed(maxlen, (int, type(None)), "a length"))


def _complex(real: Any, imaginary: Any = 0.0) -> complex:
    return complex(typed(real, (float, int), "a part"), typed(imaginary, (float, int), "a part"))


def _range(*args: Any) -> range:
    return range(*(typed(end, int, "an end") for end in args))


def _slice(*args: Any) -> slice:
    return slice(*(typed(end, _ENDS, "an end") for end in args))


def _namespace(kind: type) -> Constructor:
    return lambda: kind()


def _set_attributes(target: Any, state: Any) -> Any:
    """Set the attributes of a namespace. They are data: its class stays as it is."""
    if state is not None:
        for name, value in typed(state, dict, "the attributes").items():
            vars(target)[typed(name, str, "a name")] = value
    return target


def _set_metadata(target: Any, state: Any) -> Any:
    """A state dict of a module carries ``_metadata``, and nothing else."""
    for name, value in typed(state, (dict, type(None)), "the attributes").items() if state else ():
        if name != "_metadata" or not isinstance(value, OrderedDict | dict):
            raise unfit("an OrderedDict with other attributes than _metadata")
        target._metadata = value
    return target


def _path(kind: type[pathlib.PurePath]) -> Constructor:
    return lambda *parts: kind(*(typed(part, str, "a part of a path") for part in parts))


def _date_fields(raw: bytes) -> tuple[int, int, int]:
    return raw[0] * 256 + raw[1], raw[2], raw[3]


def _zone(zone: Any) -> Any:
    return typed(zone, (type(None), datetime.timezone, zoneinfo.ZoneInfo), "a time zone")


def _date(raw: Any) -> datetime.date:
    return datetime.date(*_date_fields(_sized(raw, 4)))


def _sized(raw: Any, size: int) -> bytes:
    found = raw_bytes(raw)
    if len(found) != size:
        raise unfit(f"{len(found)} bytes instead of {size}")
    return found


def _datetime(raw: Any, zone: Any = None) -> datetime.datetime:
    raw = _sized(raw, 10)
    year, month, day = _date_fields(raw)
    hour, minute, second = raw[4:7]
    micro = int.from_bytes(raw[7:], "big")
    # Python 3 keeps the fold in the first bit of the month.
    clock = (hour, minute, second, micro)
    return datetime.datetime(year, month & 127, day, *clock, _zone(zone), fold=month >> 7)


def _time(raw: Any, zone: Any = None) -> datetime.time:
    hour, minute, second, *rest = _sized(raw, 6)
    micro = int.from_bytes(bytes(rest), "big")
    fold, hour = hour >> 7, hour & 127
    return datetime.time(hour, minute, second, micro, _zone(zone), fold=fold)


def _timedelta(*args: Any) -> datetime.timedelta:
    return datetime.timedelta(*(typed(part, int, "a part") for part in args))


def _timezone(offset: Any, *name: Any) -> datetime.timezone:
    offset = typed(offset, datetime.timedelta, "an offset")
    return datetime.timezone(offset, *(typed(each, str, "a name") for each in name))


def _zone_info(name: Any, _cached: Any = True) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(typed(name, str, "the key of a time zone"))
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise unfit("a time zone that this system does not know (pip install tzdata)") from error


def _decimal(text: Any) -> decimal.Decimal:
    return decimal.Decimal(typed(text, str, "a decimal number"))


def _fraction(*args: Any) -> Fraction:
    if len(args) == 1:
        (text,) = args
        if _FRACTION.fullmatch(typed(text, str, "a fraction")) is None:
            raise unfit("a fraction that is not written as 1/3")
        return Fraction(text)
    return Fraction(*(typed(part, int, "a part of a fraction") for part in args))


def _uuid(_: Unread, state: Any) -> uuid.UUID:
    known = {0: uuid.SafeUUID.safe, -1: uuid.SafeUUID.unsafe}
    return uuid.UUID(
        int=typed(typed(state, dict, "the state")["int"], int, "a number"),
        is_safe=known.get(state.get("is_safe"), uuid.SafeUUID.unknown),
    )


def _unready(name: str) -> Constructor:
    """An object that only its state makes a value."""
    return lambda *args: Unread(name, args)


def _text(*args: Any) -> str:
    """A string with a class of its own."""
    return str(typed(args[0], str, "a text")) if args else ""


CONSTANTS: Final[dict[str, Any]] = {"builtins.Ellipsis": ..., "builtins.NoneType": type(None)}
CONSTRUCTORS: Final[dict[str, Constructor]] = {
    "_codecs.encode": _encoded,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "builtins.dict": lambda *args: _pairs(*args) if args else {},
    "builtins.list": lambda *args: list(_items(*args)) if args else [],
    "builtins.tuple": lambda *args: tuple(_items(*args)) if args else (),
    "builtins.set": lambda *args: set(keys(_items(*args))) if args else set(),
    "builtins.frozenset": lambda *args: frozenset(keys(_items(*args)) if args else ()),
    "builtins.range": _range,
    "builtins.slice": _slice,
    "collections.OrderedDict": lambda *args: OrderedDict(_pairs(*args) if args else ()),
    "collections.Counter": _counter,
    "collections.defaultdict": _default,
    "collections.deque": _deque,
    "argparse.Namespace": _namespace(argparse.Namespace),
    "types.SimpleNamespace": _namespace(types.SimpleNamespace),
    "datetime.date": _date,
    "datetime.datetime": _datetime,
    "datetime.time": _time,
    "datetime.timedelta": _timedelta,
    "datetime.timezone": _timezone,
    "zoneinfo.ZoneInfo._unpickle": _zone_info,
    "decimal.Decimal": _decimal,
    "fractions.Fraction": _fraction,
    "uuid.UUID": _unready("uuid.UUID"),
    "pathlib.PosixPath": _path(pathlib.PosixPath),
    "pathlib.WindowsPath": _path(pathlib.PureWindowsPath),
    "pathlib.Path": _path(pathlib.Path),
    "pathlib.PurePosixPath": _path(pathlib.PurePosixPath),
    "pathlib.PureWindowsPath": _path(pathlib.PureWindowsPath),
    "torch.torch_version.TorchVersion": _text,
}
#: Their bytes are strings in a pickle of Python 2.
RAW: Final = frozenset({"datetime.date", "datetime.datetime", "datetime.time"})
BUILDERS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "argparse.Namespace": _set_attributes,
    "types.SimpleNamespace": _set_attributes,
    "collections.OrderedDict": _set_metadata,
    "uuid.UUID": _uuid,
}
