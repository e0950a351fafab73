"""The user's own types in a state: ``jsonckpt.register`` (``docs/format.md`` section 6.2, *NAME*).

The registry belongs to the process. Reading never looks a class up by a name from a file: a tag
means a class only where the program has registered that class under it.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import torch

from ..errors import ArgumentError, FormatError, JsonckptError, full_name, quote
from ..format.json_text import Json
from .known_types import KNOWN_TYPES
from .paths import shown
from .references import TENSOR_TAGS
from .tensor_subclasses import can_be_taken_apart, subclass_rule
from .torch_types import BUILTIN
from .tree import OMIT, Decoder, Encoder, Reader, Rule, Rules, Writer

_T = TypeVar("_T")
#: ``to_json`` and ``from_json``.
_Functions: TypeAlias = tuple[Callable[[Any], Any], Callable[[Any], Any]]
_TAG = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_BUILTIN_TYPES = frozenset(
    {*BUILTIN.by_type, dict, list, tuple, bool, type(None), torch.Tensor, torch.nn.Parameter}
)
_BUILTIN_TAGS = frozenset({*BUILTIN.by_tag, *TENSOR_TAGS, "$dict", "$tuple"})


#: The registered types. A table is never changed, only replaced, so saving and loading need no
#: lock. A signal handler that saves may interrupt its own thread anywhere.
_registered = Rules.of([])
#: Held while registering. Reentrant, for the same reason.
_lock = threading.RLock()


def register(
    cls: type[_T],
    tag: str | None = None,
    to_json: Callable[[_T], Any] | None = None,
    from_json: Callable[[Any], _T] | None = None,
) -> type[_T]:
    """Let states hold objects of a class. Call it before saving and before loading.

    Enums, dataclasses and namedtuples need nothing but the class: they are written as the member's
    name, and as a dictionary of the fields. So do tensor subclasses with ``__tensor_flatten__`` and
    ``__tensor_unflatten__``: the tensors in them are written. A dataclass is built by its
    constructor from the fields that the constructor takes; then every field gets exactly the value
    that was saved.

    Args:
        cls: the class; objects of its subclasses are not covered.
        tag: the name of the class in files, ``[A-Za-z_][A-Za-z0-9_.-]{0,63}``, with or without
            a leading ``$``; by default the class's qualified name.
        to_json: turns an object into any state value: dictionaries, tensors, ….
        from_json: turns what ``to_json`` returned into the object. A file may be forged: check what
            matters. An exception becomes a :class:`FormatError` with the path.

    Returns:
        ``cls``, so that it can be used as a class decorator.

    Registering a class again replaces its rule; files with an earlier tag stay readable. A class
    defined anew under the same module and name (a notebook cell run twice) replaces the old one.

    Raises:
        ArgumentError: not a class; ``to_json`` and ``from_json`` are needed; the tag is malformed,
            built in, or another class's; or the class is built in.

    >>> class Color(enum.Enum):
    ...     RED = 1
    >>> register(Color, "docs.Color")
    <enum 'Color'>
    """
    if not isinstance(cls, type):
        raise ArgumentError(f"register() takes a class, not {quote(cls)}")
    if cls in _BUILTIN_TYPES:
        raise ArgumentError(f"{full_name(cls)} has a rule already, and it cannot be replaced")
    if (to_json is None) != (from_json is None):
        raise ArgumentError("register() takes to_json and from_json together, or neither")
    if to_json is None or from_json is None:
        to_json, from_json = _default_rule(cls)
    name = "$" + _plain_tag(cls, tag)
    if name in _BUILTIN_TAGS:
        raise ArgumentError(f"the tag {name!r} belongs to the format; pass another tag=")
    rule = Rule(name, (cls,), _writer(to_json), _reader(cls, from_json))
    global _registered
    with _lock:
        while True:
            before = _registered
            after = _with_rule(before, rule)
            if _registered is before:  # no handler has registered another class meanwhile
                _registered = after
                return cls


def _with_rule(known: Rules, rule: Rule) -> Rules:
    [cls] = rule.types
    owner = known.by_tag.get(rule.tag)
    if owner is not None and not _same_class(owner.types[0], cls):
        raise ArgumentError(
            f"the tag {rule.tag!r} is registered for {full_name(owner.types[0])}; pass another tag="
        )
    by_type = {old: its for old, its in known.by_type.items() if not _same_class(old, cls)}
    # Files with an earlier tag of the class stay readable.
    by_tag = {
        tag: rule if _same_class(old.types[0], cls) else old for tag, old in known.by_tag.items()
    }
    return Rules({**by_type, cls: rule}, {**by_tag, rule.tag: rule})


def default_rules() -> Rules:
    """The rules that saving and loading use: the built-in ones, and those registered so far.

    Known types of other libraries are registered once the program has imported their library.
    """
    for tag, known in KNOWN_TYPES.items():
        cls = getattr(sys.modules.get(known.module), known.name, None)
        if cls is not None and cls not in _registered.by_type and can_be_taken_apart(cls):
            register(cls, tag)
    return BUILTIN + _registered


def _plain_tag(cls: type, tag: str | None) -> str:
    if tag is not None and not isinstance(tag, str):
        raise ArgumentError(f"tag must be str or None, not {quote(type(tag).__name__)}")
    if tag is None:
        tag = cls.__qualname__.replace("<locals>.", "")
    tag = tag.removeprefix("$")
    if not _TAG.fullmatch(tag):
        raise ArgumentError(
            f"the tag {quote(tag)} is not of the form {_TAG.pattern}; pass another tag="
        )
    return tag


def _same_class(one: type, other: type) -> bool:
    return one is other or full_name(one) == full_name(other)


def _writer(to_json: Callable[[Any], Any]) -> Writer:
    def write(value: object, encoder: Encoder, path: str, level: int) -> Json:
        try:
            plain = to_json(value)
        except (JsonckptError, MemoryError, RecursionError):
            raise
        except Exception as error:
            raise encoder.unsupported(
                value, path, f"The to_json registered for it failed: {quote(repr(error), 200)}."
            ) from error
        return encoder.write(plain, path, level)

    return write


def _reader(cls: type, from_json: Callable[[Any], Any]) -> Reader:
    def read(body: Json, decoder: Decoder, path: str) -> Any:
        before = decoder.omissions
        plain = decoder.read(body, path)
        # from_json expects the whole of what to_json returned.
        if decoder.omissions != before:
            return OMIT
        try:
            return from_json(plain)
        except (MemoryError, RecursionError):
            raise
        except Exception as error:
            raise FormatError(
                f"{shown(path)}: no {quote(full_name(cls), 120)} can be made of this:"
                f" {quote(str(error) or repr(error), 200)}",
                hint="The class may have changed since the checkpoint was saved.",
            ) from error

    return read


def _default_rule(cls: type) -> _Functions:
    if issubclass(cls, enum.Enum):
        return _enum_rule(cls)
    if dataclasses.is_dataclass(cls):
        return _dataclass_rule(cls)
    if issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_make"):
        return _namedtuple_rule(cls)
    if can_be_taken_apart(cls):
        return subclass_rule(cls)
    raise ArgumentError(
        f"register() needs to_json= and from_json= for {full_name(cls)}: only enums,"
        " dataclasses, namedtuples and tensor subclasses with __tensor_flatten__ have rules by"
        " default"
    )


def _enum_rule(cls: type[enum.Enum]) -> _Functions:
    flags = issubclass(cls, enum.Flag)

    def to_json(member: enum.Enum) -> Any:
        if flags and cls.__members__.get(member.name or "") is not member:
            return member.value  # several flags together have no member of their own
        return member.name

    def from_json(value: Any) -> enum.Enum:
        if flags and type(value) is int:
            return cls(value)
        if type(value) is not str or value not in cls.__members__:
            raise ValueError(f"expected one of {', '.join(cls.__members__)}, found {value!r}")
        return cls[value]

    return to_json, from_json


def _dataclass_rule(cls: type) -> _Functions:
    fields = dataclasses.fields(cls)
    names = [field.name for field in fields]
    taken = {field.name for field in fields if field.init}
    for parameter in inspect.signature(cls).parameters.values():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if required and parameter.name not in taken:
            raise ArgumentError(
                f"register() needs to_json= and from_json= for {full_name(cls)}: its constructor"
                f" takes {parameter.name!r}, which is not a field"
            )

    def to_json(value: Any) -> dict[str, Any]:
        return {name: getattr(value, name) for name in names}

    def from_json(value: Any) -> Any:
        values = _fields(value, names)
        result = cls(**{name: values[name] for name in names if name in taken})
        for name in names:
            # Fields that the constructor does not take, or changes.
            if getattr(result, name, values) is not values[name]:
                object.__setattr__(result, name, values[name])
        return result

    return to_json, from_json


def _namedtuple_rule(cls: Any) -> _Functions:
    names = list(cls._fields)

    def to_json(value: Any) -> dict[str, Any]:
        return dict(zip(names, value, strict=True))

    def from_json(value: Any) -> Any:
        values = _fields(value, names)
        return cls._make(values[name] for name in names)

    return to_json, from_json


def _fields(value: Any, names: list[str]) -> Mapping[str, Any]:
    if type(value) is not dict or value.keys() != set(names):
        found = ", ".join(map(str, value)) if type(value) is dict else type(value).__name__
        raise ValueError(f"expected the fields {', '.join(names)}, found {found}")
    return value
