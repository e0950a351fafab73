"""The walk over a state: Python values to a JSON value and back (``docs/format.md`` 6.1 to 6.3).

The walk itself knows plain values, dictionaries, lists and tuples, paths, depth and cycles. Each
other type is a :class:`Rule`. Tensors go to a :class:`TensorWriter` and come from a
:class:`TensorReader`. No torch and no I/O here.

On save the *exact* type of a value selects the rule: an object of a subclass would come back as its
base class. On load the tag selects it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeAlias, cast

from ..errors import FormatError, LimitError, UnsupportedTypeError, full_name, quote
from ..format.json_text import Json, collector_paused, dump, is_text
from .checks import array, malformed, refuse, unique
from .known_types import KNOWN_TYPES
from .paths import DistinctPaths, check_name, child, label, shown
from .references import TENSOR_TAGS, has_references

if TYPE_CHECKING:
    import numpy as np

#: Longer integers are tagged: sys.set_int_max_str_digits() may go as low as 640 digits, and then
#: Python itself neither prints nor reads longer ones.
LONG_INTEGER: Final[int] = 10**640
#: The most levels that one rule or one tensor adds.
_RULE_LEVELS = 10
#: Types whose values may be their own JSON.
_PLAIN_TYPES: Final = frozenset({type(None), bool, int, float, str})
#: Types that the encoder itself writes.
_CORE_TYPES: Final = frozenset({dict, list, tuple})


class _Omit:
    """The type of :data:`OMIT`."""

    def __repr__(self) -> str:
        return "OMIT"


#: Stands for a tensor that was left out.
OMIT: Final = _Omit()


class TensorWriter(Protocol):
    """Takes the tensors of a state that is encoded."""

    def is_tensor(self, value: object) -> bool:
        """Whether :meth:`put` takes the value."""

    def put(self, value: Any, name: str) -> Json:
        """Take a tensor of any kind; return its tagged JSON object.

        Raises:
            UnsupportedTypeError: a tensor that the format cannot hold.
        """

    def put_array(self, array: np.ndarray[Any, Any], name: str) -> Json:
        """Take a C-contiguous little-endian array of bool, int, float or complex elements.

        Returns a ``$tensor``, ``$tied`` or ``$view``.
        """


class TensorReader(Protocol):
    """Gives the tensors of a state that is decoded."""

    def get(self, tag: str, body: Json, path: str) -> Any:
        """The tensor of ``{tag: body}``, or :data:`OMIT`; ``tag`` is in :data:`TENSOR_TAGS`."""

    def get_array(self, body: Json, path: str) -> Any:
        """The array of a ``$tensor``, ``$tied`` or ``$view``, in its memory, or :data:`OMIT`."""

    def charge(self, nbytes: int, path: str) -> None:
        """Count memory before it is allocated. Raises a LimitError when it is too much."""


#: ``write(value, encoder, path, level)`` gives the JSON below the tag. ``path`` leads to the value
#: in the Python state; ``level`` is the nesting that a container below the tag has.
Writer: TypeAlias = "Callable[[Any, Encoder, str, int], Json]"
#: ``read(body, decoder, path)`` gives the Python value, or OMIT. ``path`` leads to the body in the
#: JSON of the state.
Reader: TypeAlias = "Callable[[Json, Decoder, str], Any]"
#: ``hint(value)`` says what to do with a value that no rule writes, or gives None.
Hint: TypeAlias = "Callable[[object], str | None]"


@dataclass(frozen=True, slots=True)
class Rule:
    """How values of some types are written below a tag, and read from it."""

    tag: str
    types: tuple[type, ...]
    write: Writer
    read: Reader

    @classmethod
    def simple(
        cls,
        tag: str,
        kind: type | tuple[type, ...],
        write: Callable[[Any], Json],
        read: Callable[[Json, str], Any],
    ) -> Rule:
        """A rule for values that hold no others and can always be written."""
        types = kind if isinstance(kind, tuple) else (kind,)
        return cls(tag, types, lambda value, *_: write(value), lambda body, _, at: read(body, at))


@dataclass(frozen=True, slots=True)
class Rules:
    """The types of a state beyond plain values, dictionaries, lists and tuples."""

    by_type: Mapping[type, Rule]
    by_tag: Mapping[str, Rule]
    hints: tuple[Hint, ...] = ()

    @classmethod
    def of(cls, rules: Sequence[Rule], *hints: Hint) -> Rules:
        """A table of rules."""
        by_type = {kind: rule for rule in rules for kind in rule.types}
        return cls(by_type, {rule.tag: rule for rule in rules}, hints)

    def __add__(self, other: Rules) -> Rules:
        """Both tables in one. If both have a rule, the one of ``self`` counts."""
        return Rules(
            {**other.by_type, **self.by_type},
            {**other.by_tag, **self.by_tag},
            self.hints + other.hints,
        )


def encode_state(
    state: object, tensors: TensorWriter, *, rules: Rules, max_depth: int = 200
) -> Json:
    """The JSON value of a state.

    Args:
        state: nested Python state.
        tensors: takes the tensors and arrays.
        rules: the types beyond plain values, dictionaries, lists and tuples.
        max_depth: levels of JSON arrays and objects, those of tags included.

    Raises:
        UnsupportedTypeError: a value of a type without a rule, or a state that contains itself.
        LimitError: nested deeper than ``max_depth``, or a tensor's name longer than 1,024 bytes.
    """
    encoder = Encoder(tensors, rules, max_depth)
    try:
        with collector_paused():
            return encoder.write(state, "", 1)
    except RecursionError as error:
        raise LimitError(
            "the state is nested deeper than this Python can follow",
            hint="Flatten it, or save nearer to the top of the program.",
        ) from error


def decode_state(value: Json, tensors: TensorReader, *, rules: Rules) -> Any:
    """The state of a JSON value: the inverse of :func:`encode_state`.

    A tensor that the reader omits is left out of the dictionary, list, tuple or set that holds it.
    So is a value that cannot exist without it (an array, a slice, an object of a registered type).
    The result may be :data:`OMIT` itself.

    Raises:
        FormatError: the value does not follow the format, or has an unknown tag.
        LimitError: nested deeper than Python can follow, or larger than the limits allow.
    """
    decoder = Decoder(tensors, rules)
    try:
        with collector_paused():
            return decoder.read(value, "")
    except RecursionError as error:
        raise LimitError("the state is nested deeper than this Python can follow") from error


class Encoder:
    """One encoding in progress. Rules use it to write what their values hold."""

    def __init__(self, tensors: TensorWriter, rules: Rules, max_depth: int) -> None:
        self._tensors = tensors
        self._rules = rules.by_type
        self._hints = rules.hints
        self._max_depth = max_depth
        #: The containers that are being written, by id, with their paths.
        self._open: dict[int, str] = {}

    def write(self, value: object, path: str, level: int) -> Json:
        """The JSON of the value at ``path``, ``level`` containers deep."""
        kind = type(value)
        if kind in _PLAIN_TYPES and _is_plain(value, kind):
            return cast(Json, value)
        return self._write_other(value, kind, path, level)

    def _write_other(self, value: object, kind: type, path: str, level: int) -> Json:
        """:meth:`write` for a value that is not its own JSON."""
        rule = self._rules.get(kind)
        if rule is None and kind not in _CORE_TYPES:
            if not self._tensors.is_tensor(value):
                raise self.unsupported(value, path)
            check_name(path)
            return self._within(self._tensors.put(value, path), path, level)
        if level > self._max_depth:
            self._too_deep(path)
        if (seen_at := self._open.get(id(value))) is not None:
            raise UnsupportedTypeError(
                f"the state contains itself at {quote(path, 200)} (first seen at"
                f" {quote(seen_at, 200) if seen_at else 'its root'})",
                hint="JSON has no references: break the cycle before saving.",
            )
        self._open[id(value)] = path
        result: Json
        # The core types are written here and not by rules. That saves a frame of the stack for
        # each level: 200 levels must fit into Python's usual limit of 1000 frames.
        if kind is list:
            result = self.sequence(cast("list[object]", value), path, level)
        elif kind is tuple:
            elements = cast("tuple[object, ...]", value)
            result = {"$tuple": self.sequence(elements, path, level + 1)}
        elif kind is dict:
            mapping = cast("dict[Any, object]", value)
            if has_object_keys(mapping):
                result = self.members(mapping, path, level)
            else:
                result = {"$dict": self.pairs(mapping, path, level + 1)}
        else:
            rule = cast(Rule, rule)
            result = {rule.tag: rule.write(value, self, path, level + 1)}
        del self._open[id(value)]
        return self._within(result, path, level)

    def _within(self, result: Json, path: str, level: int) -> Json:
        # Containers check their level on the way down. The few levels that a rule adds at the very
        # bottom are counted here, and only near the limit.
        if level + _RULE_LEVELS > self._max_depth and level + _height(result) - 1 > self._max_depth:
            self._too_deep(path)
        return result

    def put_array(self, array: np.ndarray[Any, Any], path: str) -> Json:
        """Write an array as a tensor, see :meth:`TensorWriter.put_array`."""
        check_name(path)
        return self._tensors.put_array(array, path)

    def sequence(self, values: Iterable[object], path: str, level: int) -> list[Json]:
        """The JSON array of values. Their paths are their positions below ``path``."""
        if level > self._max_depth:
            self._too_deep(path)
        result: list[Json] = []
        for position, value in enumerate(values):
            kind = type(value)
            if kind in _PLAIN_TYPES and _is_plain(value, kind):
                result.append(cast(Json, value))
            else:
                result.append(self._write_other(value, kind, f"{path}/{position}", level + 1))
        return result

    def members(
        self,
        values: Mapping[str, object],
        path: str,
        level: int,
        below: DistinctPaths | None = None,
    ) -> dict[str, Json]:
        """The JSON object of a mapping that :func:`has_object_keys` accepts."""
        if level > self._max_depth:
            self._too_deep(path)
        if below is None and not all(map(str.isprintable, values)):
            below = DistinctPaths(path)
        result: dict[str, Json] = {}
        for key, value in values.items():
            kind = type(value)
            if kind in _PLAIN_TYPES and _is_plain(value, kind):
                result[key] = cast(Json, value)
            else:
                at = child(path, key) if below is None else below.child(key)
                result[key] = self._write_other(value, kind, at, level + 1)
        return result

    def pairs(
        self,
        values: Mapping[Any, object],
        path: str,
        level: int,
        below: DistinctPaths | None = None,
    ) -> list[Json]:
        """The JSON array of the pairs of a mapping with any keys."""
        if level + (1 if values else 0) > self._max_depth:
            self._too_deep(path)
        below = below or DistinctPaths(path)
        result: list[Json] = []
        tensor_keys: set[bytes] = set()
        for key, value in values.items():
            plain = type(key) in _PLAIN_TYPES and _is_plain(key, type(key))
            at = below.child(label(key, is_tensor=not plain and self._tensors.is_tensor(key)))
            written = cast(Json, key)
            if not plain:
                # A key has a path, too: a tuple may hold a tensor, and errors must say where.
                written = self.write(key, below.beside(at, "key"), level + 2)
                if has_references(written):
                    if (text := dump(written)) in tensor_keys:
                        raise self.unsupported(
                            key, at, "Another key is the same memory, and they would become one."
                        )
                    tensor_keys.add(text)
            result.append([written, self.write(value, at, level + 2)])
        return result

    def items(
        self,
        values: Mapping[Any, object],
        path: str,
        level: int,
        below: DistinctPaths | None = None,
    ) -> Json:
        """The items of a dictionary, *I* in the specification: an object, or pairs."""
        if has_object_keys(values):
            return self.members(values, path, level, below)
        return self.pairs(values, path, level, below)

    def unsupported(
        self, value: object, path: str, hint: str | None = None
    ) -> UnsupportedTypeError:
        """The error for a value that cannot be written."""
        for find in self._hints:
            hint = hint or find(value)
        name = type(value).__qualname__.rpartition(".")[2]
        return UnsupportedTypeError(
            f"{shown(path)}: cannot write a value of type {quote(full_name(type(value)), 120)}",
            hint=hint
            or f"Call jsonckpt.register({name}, to_json=..., from_json=...) before saving, or put"
            " plain values in its place.",
        )

    def _too_deep(self, path: str) -> NoReturn:
        raise LimitError(
            f"{shown(path)}: nested deeper than {self._max_depth} levels of JSON",
            hint="Flatten the state: readers refuse what is nested deeper.",
        )


def _is_plain(value: object, kind: type) -> bool:
    """Whether a value of one of :data:`_PLAIN_TYPES` is its own JSON."""
    if kind is str:
        return cast(str, value).isascii() or is_text(cast(str, value))
    if kind is float:
        return math.isfinite(cast(float, value))
    if kind is int:
        return -LONG_INTEGER < cast(int, value) < LONG_INTEGER
    return True  # a bool or None


def has_object_keys(values: Mapping[Any, object]) -> bool:
    """Whether all keys are strings that the members of a plain JSON object may have."""
    for key in values:
        if type(key) is not str or key[:1] == "$" or not (key.isascii() or is_text(key)):
            return False
    return True


def _height(value: Json) -> int:
    """Levels of arrays and objects."""
    if type(value) is dict:
        return 1 + max(map(_height, value.values()), default=0)
    if type(value) is list:
        return 1 + max(map(_height, value), default=0)
    return 0


class Decoder:
    """One decoding in progress. Rules use it to read what their bodies hold."""

    def __init__(self, tensors: TensorReader, rules: Rules) -> None:
        self._tensors = tensors
        self._rules = rules.by_tag
        #: Rules call it before they allocate memory.
        self.charge = tensors.charge
        #: Copies that rules made of the reader's arrays, by the memory and the kind of copy.
        self.copied: dict[object, Any] = {}
        #: How many values were left out so far. A rule that needs all its parts compares it.
        self.omissions = 0

    def read(self, value: Json, path: str) -> Any:
        """The Python value of the JSON at ``path``, or OMIT."""
        kind = type(value)
        if kind in _PLAIN_TYPES:
            return value
        if kind is dict:
            members = cast("dict[str, Json]", value)
            if len(members) == 1:
                tag = next(iter(members))
                if tag[:1] == "$":
                    return self._tagged(tag, members[tag], path)
            return self.members(members, path)
        if kind is list:
            return self.sequence(cast("list[Json]", value), path)
        raise malformed(path, f"{full_name(kind)} is not a JSON value")

    def _tagged(self, tag: str, body: Json, path: str) -> Any:
        if tag in TENSOR_TAGS:
            result = self._tensors.get(tag, body, path)
        elif tag == "$tuple":
            at = f"{path}/{tag}"
            result = tuple(self.sequence(array(body, at), at))
        elif tag == "$dict":
            result = self.pairs(body, f"{path}/{tag}")
        elif (rule := self._rules.get(tag)) is not None:
            result = rule.read(body, self, child(path, tag))
        else:
            known = KNOWN_TYPES.get(tag)
            raise FormatError(
                f"{shown(path)}: unknown tag {quote(tag)}",
                hint=f"It is the {known.name} of {known.package}: import that before loading."
                if known is not None
                else "If it is a type of your own, call"
                f" jsonckpt.register(cls, {quote(tag[1:])}, ...) before loading.",
            )
        if result is OMIT:
            self.omissions += 1
        return result

    def get_array(self, body: Json, path: str) -> Any:
        """Read an array, see :meth:`TensorReader.get_array`."""
        result = self._tensors.get_array(body, path)
        if result is OMIT:
            self.omissions += 1
        return result

    def members(self, values: Mapping[str, Json], path: str) -> dict[str, Any]:
        """The dictionary of an object without a tag, without what is omitted."""
        result: dict[str, Any] = {}
        for key, value in values.items():
            if type(value) in _PLAIN_TYPES:
                result[key] = value
            elif (item := self.read(value, child(path, key))) is not OMIT:
                result[key] = item
        return result

    def sequence(self, values: Sequence[Json], path: str) -> list[Any]:
        """The list of an array, without what is omitted."""
        result: list[Any] = []
        for position, value in enumerate(values):
            if type(value) in _PLAIN_TYPES:
                result.append(value)
            elif (item := self.read(value, f"{path}/{position}")) is not OMIT:
                result.append(item)
        return result

    def pairs(self, body: Json, path: str) -> dict[Any, Any]:
        """The dictionary of an array of pairs, without what is omitted."""
        items = []
        for position, pair in enumerate(array(body, path)):
            at = f"{path}/{position}"
            if type(pair) is not list or len(pair) != 2:
                refuse(at, "a [key, value] pair", pair)
            key = self.read(pair[0], f"{at}/0")
            value = self.read(pair[1], f"{at}/1")
            if key is not OMIT and value is not OMIT:
                items.append((key, value))
        return unique(dict, items, [key for key, _ in items], path, "keys")

    def items(self, body: Json, path: str) -> dict[Any, Any]:
        """The dictionary of *I* in the specification: an object, or pairs."""
        if type(body) is not dict:
            return self.pairs(body, path)
        for key in body:
            if key[:1] == "$":
                refuse(path, "[key, value] pairs where a key begins with '$'", body)
        return self.members(body, path)
