"""Values for a state: read from a command line, fitted to what they replace, shown to people.

JSON in, JSON out. A new value keeps the type of the old one where a person would not think of it: a
float stays a float, a tuple a tuple. Anything else that changes a type is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final

from ..errors import ArgumentError, FormatError, JsonckptError, LimitError, quote
from ..format import json_text
from ..format.json_text import Json
from ..inspect.plain_values import RULES, NoTensors, contents, is_registered, key_label, tag_of
from ..state.references import references_in
from ..state.tree import LONG_INTEGER, Rules, decode_state
from .places import is_dictionary, places_in, with_contents, with_members

_FLOAT_WORDS: Final = ("NaN", "Infinity", "-Infinity")
#: What other languages write for a word of JSON.
_WORDS: Final = {
    "True": "true", "False": "false", "None": "null", "none": "null", "nan": "NaN",
    "inf": "Infinity", "-inf": "-Infinity",
}  # fmt: skip
_ARRAYS: Final = frozenset({"$tuple", "$set", "$frozenset", "$deque"})
_TAGGED: Final = {
    "$int": "an int",
    "$float": "a float",
    "$str": "a string",
    "$dict": "a dictionary",
}
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]*)", re.ASCII)
_SCALAR: Final = re.compile(r"[|<](b1|[iuf][1248])")
_INTEGER_BITS: Final = {"1": 8, "2": 16, "4": 32, "8": 64}


class _Misfit(Exception):
    """A value does not fit the type of the old one. It carries the reason."""


def parse_value(text: str) -> Json:
    """The JSON of a value on a command line.

    Raises:
        ArgumentError: it is no JSON. The hint says how to write it.

    >>> parse_value("1e-4"), parse_value('"cosine"'), parse_value("NaN")
    (0.0001, 'cosine', {'$float': 'NaN'})
    """
    if text in _FLOAT_WORDS:
        return {"$float": text}
    try:
        return json_text.parse(text.encode("utf-8", "surrogatepass"), what="the value")
    except (FormatError, LimitError) as error:
        if text in _WORDS:
            hint = f"Write {_WORDS[text]}; for the text itself pass --string."
        else:
            hint = f"Text needs quotes in JSON, and those need quotes in a shell: '{quote(text)}'."
            hint = hint.replace(quote(text), json_text.quoted(text)) + " Or pass --string."
        raise ArgumentError(f"{quote(text, 80)} is no JSON value", hint=hint) from error


def kind_of(value: Json) -> str:
    """The type of a value, for messages.

    >>> kind_of(1), kind_of({"$tuple": []}), kind_of({"$path": "a"})
    ('an int', 'a tuple', 'a $path')
    """
    tag = tag_of(value)
    if tag:
        special = {
            "$int": "an int",
            "$float": "a float",
            "$str": "a string",
            "$dict": "a dictionary",
        }
        return special.get(tag) or f"a {tag[1:] if tag in _ARRAYS else tag}"
    names: dict[type, str] = {
        bool: "true or false",
        int: "an int",
        float: "a float",
        str: "a string",
        list: "a list",
        dict: "a dictionary",
    }
    return names.get(type(value), "null")


def fitted(old: Json, new: Json, path: str, *, force: bool) -> Json:
    """The new value in the type of the old one.

    Raises:
        ArgumentError: it has another type, and ``force`` is false.
    """
    if force:
        return new
    try:
        return _fit(old, new)
    except _Misfit as misfit:
        raise ArgumentError(
            f"{quote(path, 200)} holds {misfit.args[0]}",
            hint=f"{misfit.args[1]}To change its type pass --force (in Python: force=True).",
        ) from None


def _fit(old: Json, new: Json) -> Json:
    if old is None:
        return new
    tag = tag_of(old)
    if type(old) is float or tag == "$float":
        return _float(new)
    if (type(old) is int) or tag == "$int":
        if type(new) is int or tag_of(new) == "$int":
            return new
        way = ""
        if type(new) is float and new.is_integer() and abs(new) < 1e15:
            way = f"Write {int(new)}. "
        raise _Misfit(f"an int, and this is {kind_of(new)}", way)
    if tag == "$scalar":
        return _scalar(old, new)
    if type(old) is list or tag in _ARRAYS:
        return _array(old, new, tag)
    if is_dictionary(old):
        return _dictionary(old, new)
    if tag and tag_of(new) != tag:
        body: Any = old[tag]  # type: ignore[call-overload, index]
        if type(body) is type(new) and type(new) in (str, int):
            return {tag: new}
    elif type(new) is type(old):
        return new
    raise _Misfit(f"{kind_of(old)}, and this is {kind_of(new)}", "")


def _float(new: Json) -> Json:
    if type(new) is float or tag_of(new) == "$float":
        return new
    if type(new) is not int:
        raise _Misfit(f"a float, and this is {kind_of(new)}", "")
    if abs(new) > 1 << 53 and (abs(new) >= 1 << 1023 or int(float(new)) != new):
        raise _Misfit("a float, and no float has exactly this value", "")
    return float(new)


def _scalar(old: Json, new: Json) -> Json:
    """A number in the NumPy type of the old one."""
    if tag_of(new) == "$scalar":
        return new
    body: Any = old["$scalar"]  # type: ignore[call-overload, index]
    dtype = body.get("dtype") if type(body) is dict else None
    if type(dtype) is not str or not _SCALAR.fullmatch(dtype):
        raise _Misfit(f"a NumPy scalar of {quote(dtype)}", "")
    if dtype[1] == "f":
        value = _float(new)
        if tag_of(value) == "$float":
            value = value["$float"]  # type: ignore[call-overload, index]
    elif dtype[1] == "b":
        value = new
        if type(new) is not bool:
            raise _Misfit(f"a NumPy bool, and this is {kind_of(new)}", "")
    else:
        bits = _INTEGER_BITS[dtype[2]]
        low, high = (0, 1 << bits) if dtype[1] == "u" else (-(1 << bits - 1), 1 << bits - 1)
        value = new
        if type(new) is not int or not low <= new < high:
            raise _Misfit(f"a NumPy integer of {bits} bits, and this is {quote(new)}", "")
    return {"$scalar": {**body, "value": value}}


def _array(old: Json, new: Json, tag: str) -> Json:
    if tag_of(new) == tag and tag:
        return new
    if type(new) is not list:
        raise _Misfit(f"{kind_of(old)}, and this is {kind_of(new)}", "Write [...]. ")
    body: Any = contents(old)
    before: list[Json] = body if type(body) is list else []
    after = [_alike(before[min(i, len(before) - 1)], item) if before else item
             for i, item in enumerate(new)]  # fmt: skip
    return with_contents(old, after)


def _dictionary(old: Json, new: Json) -> Json:
    if tag_of(new):
        if tag_of(new) == tag_of(old):
            return new
        raise _Misfit(f"{kind_of(old)}, and this is {kind_of(new)}", "")
    if type(new) is not dict:
        raise _Misfit(f"{kind_of(old)}, and this is {kind_of(new)}", "Write {...}. ")
    known = {key_label(place.key): place for place in places_in(old, "")}
    made: list[tuple[Json, Json]] = []
    for key, item in new.items():
        place = known.get(key)
        made.append(
            (new_key(old, key), item) if place is None else (place.key, _alike(place.value, item))
        )
    return with_members(old, made)


def _alike(old: Json, new: Json) -> Json:
    """The new value in the type of the old one where it fits, else as it is."""
    try:
        return _fit(old, new)
    except _Misfit:
        return new


def new_key(dictionary: Json, text: str) -> Json:
    """The key of a new member: an integer where all other keys are integers.

    >>> new_key({"$dict": [[0, "a"]]}, "1"), new_key({"a": 0}, "1")
    (1, '1')
    """
    keys = [place.key for place in places_in(dictionary, "")]
    if keys and all(type(key) is int for key in keys) and _INTEGER.fullmatch(text):
        return int(text)
    return text


def check_value(value: Json, path: str) -> None:
    """Check that a load can read a new value.

    Raises:
        ArgumentError: it cannot, or it refers to a tensor.
    """
    try:
        if next(references_in(value), None) is not None:
            raise ArgumentError(f"{quote(path, 200)}: a new value cannot refer to tensors")
        decode_state(value, NoTensors(), rules=rules_for(value))
    except ArgumentError:
        raise
    except JsonckptError as error:
        raise ArgumentError(f"{quote(path, 200)}: no load can read this value: {error}") from error


def rules_for(value: Json) -> Rules:
    """The rules that decode a value. torch is imported only if it has types of torch."""
    if all(tag in RULES.by_tag for tag in _tags_in(value)):
        return RULES
    from ..state.registry import default_rules

    return default_rules()


def _tags_in(value: Json) -> set[str]:
    found, pending = set(), [value]
    while pending:
        item = pending.pop()
        if type(item) is dict:
            if (tag := tag_of(item)) and tag not in ("$tuple", "$dict"):
                found.add(tag)
            pending.extend(item.values())
        elif type(item) is list:
            pending.extend(item)
    return found


def readable(value: Json, tensor: Callable[[Json], Any] = lambda value: value) -> Any:
    """The JSON of a value as people read it: without tags where their bodies say enough.

    Args:
        tensor: what stands for a reference to a tensor.

    >>> readable({"$tuple": [0.9, {"$float": "NaN"}]}), readable({"$dict": [[0, {"$path": "a"}]]})
    ([0.9, 'NaN'], {'0': 'a'})
    """
    tag = tag_of(value)
    body: Any = value[tag] if tag else value  # type: ignore[call-overload, index]
    if is_dictionary(value):
        return {place.path[1:]: readable(place.value, tensor) for place in places_in(value, "")}
    if type(contents(value)) is list:
        return [readable(place.value, tensor) for place in places_in(value, "")]
    if tag in ("$tensor", "$tied", "$view"):
        return tensor(value)
    if tag == "$int" and type(body) is str:
        return value if len(body) > LONG_INTEGER.bit_length() else int(body, 16)
    if tag in ("$parameter", "$requires_grad"):
        inner = body.get("data") if tag == "$parameter" and type(body) is dict else body
        return readable(inner, tensor)
    if tag in ("$scalar", "$ndarray") and type(body) is dict:
        return readable(body.get("value" if tag == "$scalar" else "data"), tensor)
    if tag and (type(body) not in (dict, list) or is_registered(value)):
        return readable(body, tensor)
    if type(value) is float and not math.isfinite(value):
        return str(value)
    return value
