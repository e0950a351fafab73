"""Bounds what a pickle made, and finds what it did not make."""

from __future__ import annotations

import argparse
import shlex
import types
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch

from ..errors import FormatError, LimitError, UnsupportedTypeError, listed
from ..format.limits import exceeds
from ..format.pointer import join
from .torch_types import checked
from .values import UNDECODED, Global, Unread
from .vocabulary import VOCABULARY

_DEPTH: Final = 200
#: A pickle may use a value many times. Written out, it may take so many steps, or more than it has
#: values by this factor.
_STEPS: Final = 4_000_000
_FACTOR: Final = 16
_SHOWN: Final = 10
_LOOKED_AT: Final = 200
_ATOMS: Final = frozenset({int, float, bool, type(None)})
_SIZED: Final = (str, bytes, bytearray, np.ndarray, torch.Tensor)
#: They have attributes. Those of tensors are a program's own.
_SPACES: Final = (argparse.Namespace, types.SimpleNamespace, torch.Tensor)


def _children(value: object) -> Sequence[Any]:
    """The values inside: also keys, and the attributes of namespaces and of state dicts."""
    if isinstance(value, dict):
        attributes = getattr(value, "__dict__", None) or {}
        return [*value, *value.values(), *attributes.values()]
    if isinstance(value, list | tuple | deque):
        return value
    if isinstance(value, set | frozenset):
        return list(value)
    return list(vars(value).values()) if isinstance(value, _SPACES) else ()


def check(state: Any, most: int | None = None) -> None:
    """Check that a state is finite: how deep it is, and how large where all is written out.

    Args:
        most: bytes that all tensors and arrays may have.

    Raises:
        FormatError: a value contains itself, or a sparse tensor is damaged.
        LimitError: it is too deep, or far larger than the pickle.
    """
    #: For each value, the number of values below it, and the steps that writing it out takes.
    costs: dict[int, tuple[int, int]] = {}
    within: set[int] = set()
    distinct = nbytes = 0

    def visit(value: Any, depth: int) -> tuple[int, int]:
        nonlocal distinct, nbytes
        below = _children(value)
        if not below and not isinstance(value, _SIZED):
            return 0, 0
        place = id(value)
        if place in costs:
            return costs[place]
        if place in within:
            raise FormatError("a value of this pickle contains itself")
        if depth == _DEPTH:
            raise LimitError(f"this pickle is nested deeper than {_DEPTH} levels")
        own = len(below) + _size(value) // 16
        nbytes += _nbytes(value)
        if exceeds(nbytes, most):
            raise LimitError(
                f"its tensors and arrays have over {most:,} bytes where all elements are written",
                hint="Pass --limit expansion=none if it is meant.",
            )
        within.add(place)
        parts = [visit(child, depth + 1) for child in below if type(child) not in _ATOMS]
        within.discard(place)
        count = len(below) + sum([part[0] for part in parts])
        steps = own + sum([part[1] for part in parts])
        if isinstance(value, dict):
            # The name of each value below a key holds the key.
            for key, child in value.items():
                steps += _length(key) // 64 * (1 + costs.get(id(child), (0, 0))[0])
        costs[place] = count, steps
        distinct += own
        return costs[place]

    if visit(state, 0)[1] > max(_STEPS, _FACTOR * distinct):
        raise LimitError("this pickle uses the same values again and again: it is far too large")


def _length(key: Any) -> int:
    if isinstance(key, tuple | frozenset):
        return sum(map(_length, key))
    return len(key) if isinstance(key, str | bytes) else 0


def _nbytes(value: Any) -> int:
    """The bytes of a tensor or array with all of its elements, also those that it repeats."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if not isinstance(value, torch.Tensor) or value.is_meta or value.layout != torch.strided:
        return 0
    return value.numel() * value.itemsize


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided:
            checked(value)
        return 0
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, str | bytes | bytearray) else 0


def is_unread(value: object) -> bool:
    """True for a part of a state that was not made: a name, an object, a text in an unknown code.

    So is a set, a namespace or a queue that has such a part: only all of it can be left out. A
    tuple that is a key is looked into, too.
    """
    if isinstance(value, Unread | Global):
        return True
    if isinstance(value, (deque, set, frozenset, *_SPACES)):
        return _holds(_children(value))
    return isinstance(value, OrderedDict) and _holds(list(vars(value).values()))


def _holds(value: Any) -> bool:
    """Whether something inside was not made. Each part is looked at once."""
    waiting, seen = [value], set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, Unread | Global):
            return True
        if type(part) not in _ATOMS and id(part) not in seen:
            below = _children(part)
            seen.add(id(part))
            waiting += below
    return False


def is_unread_item(key: object, value: object) -> bool:
    """True if a value or its key was not made."""
    return is_unread(value) or is_unread(key) or (type(key) is tuple and _holds(key))


def find_unread(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Each part that was not made, with its JSON Pointer."""
    if isinstance(state, Unread | Global):
        yield name, state
    elif is_unread(state):
        for part in _parts(state):
            yield name, part
    elif isinstance(state, dict):
        for key, value in state.items():
            place = join(name, str(key))
            if is_unread_item(key, None):
                for part in _parts((key,)):
                    yield place, part
            else:
                yield from find_unread(value, place)
    elif isinstance(state, list | tuple):
        for number, value in enumerate(state):
            if type(value) not in _ATOMS:
                yield from find_unread(value, join(name, str(number)))


def _parts(value: object) -> Iterator[Any]:
    if isinstance(value, Unread | Global):
        yield value
    for child in _children(value):
        yield from _parts(child)


def refuse_unread(state: Any, file: object = None) -> None:
    """Refuse a state with parts that were not made.

    Raises:
        UnsupportedTypeError: there is such a part. The message says which names the file imports
            and where, and how to convert the rest.
    """
    found = list(find_unread(state))
    if not found:
        return
    imported: dict[str, None] = {}
    described: dict[str, list[str]] = {}
    for place, part in found:
        if isinstance(part, Unread) and " " in part.name:
            described.setdefault(part.name, []).append(place)
        else:
            imported.update(dict.fromkeys(_names(part)))
    places = list(dict.fromkeys(place for place, _ in found))
    if imported:
        raise UnsupportedTypeError(
            "this file needs pickle, which can run any code: it imports "
            f"{listed(list(imported), _SHOWN)}{_at(places)}",
            file=file,
            hint=_ways(places, any(_has_state_dict(part) for _, part in found)),
        )
    what, places = next(iter(described.items()))
    if what == UNDECODED:
        hint = "Pass --pickle-encoding latin1, or the encoding that it has, or bytes."
    else:
        hint = _sentence([_excluding(places)] * ("" not in places) + ["save its parts separately"])
    raise UnsupportedTypeError(f"this file has {what}{_at(places)}", file=file, hint=hint)


def _at(places: list[str]) -> str:
    return "" if places == [""] else f" (at {listed([place or '/' for place in places], _SHOWN)})"


def _names(part: Unread | Global) -> list[str]:
    """What an object imports: its class, and what is not harmless in its arguments."""
    names: dict[str, None] = {}
    waiting: list[Any] = [part]
    for _ in range(_LOOKED_AT):
        if not waiting:
            break
        value = waiting.pop(0)
        if isinstance(value, Unread):
            names[value.name] = None
            waiting += value.args
        elif isinstance(value, Global):
            names[value.dotted] = None
        else:
            waiting += _children(value)[:_SHOWN]
    unknown = [name for name in names if name not in VOCABULARY.constructors and " " not in name]
    return unknown or list(names)


def _excluding(places: list[str]) -> str:
    excluded = " ".join(f"--exclude {shlex.quote(place)}" for place in places[:3])
    more = " and so on" if len(places) > 3 else ""
    return f"leave {'it' if len(places) == 1 else 'them'} out by {excluded}{more}"


def _ways(places: list[str], objects: bool) -> str:
    """The ways to convert a file with parts that were not made."""
    ways = []
    if objects:
        ways.append("pass --state-dict, which takes the state dicts of objects without their code")
    if "" not in places:
        ways.append(_excluding(places))
    ways.append("pass --unsafe-pickle if you trust whoever made it")
    return _sentence(ways)


def _sentence(ways: list[str]) -> str:
    text = ", or ".join(ways)
    return f"{text[0].upper()}{text[1:]}."


def attributes_of(value: Any) -> dict[str, Any]:
    """What a pickle says of an object's attributes."""
    if not isinstance(value, Unread):
        return {}
    state = value.state[0] if type(value.state) is tuple and value.state else value.state
    if state is None and value.args and type(value.args[0]) is dict:
        state = value.args[0]
    return state if type(state) is dict else {}


def _has_state_dict(value: Any) -> bool:
    return bool({"_parameters", "param_groups"} & attributes_of(value).keys())
