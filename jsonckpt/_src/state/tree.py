"""The state tree: nested Python state to a JSON value and back (``docs/format.md`` section 6).

The engine stands here: plain values, dictionaries, lists and tuples, places and names, depth and
cycles. Every other type is a row in a :class:`Rules` table (``rules``, ``numpy_rules``,
``torch_rules``, ``registry``), and what a tensor is comes in through a :class:`TensorWriter`. No
torch and no I/O here.

Two things decide about a value: its *exact* type on the way out (a subclass never takes the
rule of its base, for it would come back as the base) and its tag on the way in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeAlias, cast

from ..errors import FormatError, LimitError, UnsupportedTypeError, full_name, quote
from ..format.json_text import Json, collector_paused, dump, is_text
from .checks import array, check_hashes, distinct, refuse
from .paths import DistinctPaths, check_name, child, label, shown

if TYPE_CHECKING:
    import numpy as np

#: Tags that name a tensor; all but ``$tensor`` name the record that it lies in, too.
_REFERENCES: Final = frozenset({"$tensor", "$tied", "$view"})
#: Tags whose values the door makes.
TENSOR_TAGS: Final = frozenset(
    {"$tensor", "$tied", "$view", "$parameter", "$requires_grad", "$sparse", "$quantized"}
)
#: Integers of more decimal digits than this are tagged: sys.set_int_max_str_digits() may go as
#: low as 640, and then Python itself neither prints nor reads longer ones.
_MAX_DIGITS = 640
_BIG: Final[int] = 10**_MAX_DIGITS
#: No single rule, and no door, adds more levels than this by itself.
_RULE_LEVELS = 10
#: Types whose values may be their own JSON.
_PLAIN_TYPES: Final = frozenset({type(None), bool, int, float, str})
#: Types that the encoder itself writes.
_CORE_TYPES: Final = frozenset({dict, list, tuple})


class _Omit:
    """The type of :data:`OMIT`."""

    def __repr__(self) -> str:
        return "OMIT"


#: What stands for a tensor that was left out.
OMIT: Final = _Omit()


class TensorWriter(Protocol):
    """What writing a tree needs from the room that knows tensors."""

    def is_tensor(self, value: object) -> bool:
        """Whether :meth:`put` takes the value."""

    def put(self, value: Any, name: str) -> Json:
        """Take a tensor of any kind; return its tagged JSON object.

        Raises:
            UnsupportedTypeError: a tensor that the format cannot say.
        """

    def put_array(self, array: np.ndarray[Any, Any], name: str) -> Json:
        """Take a C-contiguous little-endian array of bool, int, float or complex elements.

        Returns a ``$tensor``, ``$tied`` or ``$view``.
        """


class TensorReader(Protocol):
    """What reading a tree needs from the room that knows tensors."""

    def get(self, tag: str, body: Json, place: str) -> Any:
        """The tensor that ``{tag: body}`` says, or :data:`OMIT`; ``tag`` is in TENSOR_TAGS."""

    def get_array(self, body: Json, place: str) -> Any:
        """The array that ``{"$tensor": name}`` says, in the tensor's memory, or :data:`OMIT`."""

    def charge(self, nbytes: int, place: str) -> None:
        """Count memory that is about to be made; raises a LimitError where it is too much."""


#: ``write(value, encoder, place, level)`` gives the whole JSON value, tag included. ``place`` is
#: the JSON Pointer of the value in the Python state, ``level`` the nesting that a container has.
Writer: TypeAlias = "Callable[[Any, Encoder, str, int], Json]"
#: ``read(body, decoder, place)`` gives the Python value, or OMIT. ``place`` is the JSON Pointer of
#: the body in the JSON of the state.
Reader: TypeAlias = "Callable[[Json, Decoder, str], Any]"
#: ``hint(value)`` gives the way out for a value that no rule writes, or None.
Hint: TypeAlias = "Callable[[object], str | None]"


@dataclass(frozen=True, slots=True)
class Rules:
    """What is written and read beyond plain values: writers by exact type, readers by tag."""

    writers: Mapping[type, Writer]
    readers: Mapping[str, Reader]
    hints: tuple[Hint, ...] = ()

    def __add__(self, other: Rules) -> Rules:
        """Both tables in one; where both have a row, that of ``self``."""
        return Rules(
            {**other.writers, **self.writers},
            {**other.readers, **self.readers},
            self.hints + other.hints,
        )


def encode_state(state: object, door: TensorWriter, *, rules: Rules, max_depth: int = 200) -> Json:
    """The JSON value of a state.

    Args:
        state: nested Python state.
        door: takes the tensors and arrays.
        rules: the types beyond plain values, dictionaries, lists and tuples.
        max_depth: levels of JSON arrays and objects, those of tags included.

    Raises:
        UnsupportedTypeError: a value of a type without a rule, or a state that contains itself.
        LimitError: nested deeper than ``max_depth``, or a tensor's name longer than 1,024 bytes.
    """
    encoder = Encoder(door, rules, max_depth)
    try:
        with collector_paused():
            return encoder.write(state, "", 1)
    except RecursionError as error:
        raise LimitError(
            "the state is nested deeper than this Python can follow",
            hint="Flatten it, or save nearer to the top of the program.",
        ) from error


def decode_state(value: Json, door: TensorReader, *, rules: Rules) -> Any:
    """The state of a JSON value: the inverse of :func:`encode_state`.

    A tensor that the door omits is left out of the dictionary, list, tuple or set that holds it.
    A value that cannot do without it (an array, a slice, an object of a registered type) is
    left out likewise. What remains at the root may be :data:`OMIT` itself.

    Raises:
        FormatError: the value is not what the format says, or has an unknown tag.
        LimitError: nested deeper than Python can follow, or larger than is sane.
    """
    decoder = Decoder(door, rules)
    try:
        with collector_paused():
            return decoder.read(value, "")
    except RecursionError as error:
        raise LimitError("the state is nested deeper than this Python can follow") from error


def tensor_names(value: Json) -> Iterator[tuple[str, str, Json]]:
    """``(name, tag, body)`` of every ``$tensor``, ``$tied`` and ``$view`` in a state, in order.

    Nothing is decoded, so that it also works where a registered type is missing.

    Raises:
        FormatError: a reference without a name.

    >>> list(tensor_names({"a": [{"$tensor": "/a/0"}]}))
    [('/a/0', '$tensor', '/a/0')]
    """
    pending = [value]
    while pending:
        item = pending.pop()
        if type(item) is list:
            pending.extend(reversed(item))
        elif type(item) is dict:
            tag, body = next(iter(item.items())) if len(item) == 1 else ("", None)
            if tag not in _REFERENCES:
                pending.extend(reversed(item.values()))
                continue
            name = body if tag == "$tensor" else body.get("name") if type(body) is dict else None
            record = name if tag == "$tensor" or type(body) is not dict else body.get("of")
            if type(name) is not str or type(record) is not str:
                refuse("", "the name of a tensor, and the record that it lies in", body)
            yield name, tag, body


def has_tensors(value: Json) -> bool:
    """Whether a state tree refers to any tensor."""
    return next(tensor_names(value), None) is not None


class Encoder:
    """One encoding under way. Rules get it to write what their values hold."""

    def __init__(self, door: TensorWriter, rules: Rules, max_depth: int) -> None:
        self._door = door
        self._writers = rules.writers
        self._hints = rules.hints
        self._max_depth = max_depth
        #: The containers that are being written, by id, with their places.
        self._open: dict[int, str] = {}

    def write(self, value: object, place: str, level: int) -> Json:
        """The JSON of a value that stands at ``place``, ``level`` containers deep."""
        kind = type(value)
        if kind in _PLAIN_TYPES and _is_plain(value, kind):
            return cast(Json, value)
        return self._write_other(value, kind, place, level)

    def _write_other(self, value: object, kind: type, place: str, level: int) -> Json:
        """:meth:`write` for what is not its own JSON. States hold thousands of tensors."""
        rule = self._writers.get(kind)
        if rule is None and kind not in _CORE_TYPES:
            if not self._door.is_tensor(value):
                raise self.unsupported(value, place)
            check_name(place)
            return self._within(self._door.put(value, place), place, level)
        if level > self._max_depth:
            self._too_deep(place)
        if (seen_at := self._open.get(id(value))) is not None:
            raise UnsupportedTypeError(
                f"the state contains itself at {quote(place, 200)} (first seen at"
                f" {quote(seen_at, 200) if seen_at else 'its root'})",
                hint="JSON has no references: break the cycle before saving.",
            )
        self._open[id(value)] = place
        result: Json
        # The core types stand here and not in the table to save a frame of the stack for each
        # level: 200 levels must fit into Python's usual limit of 1000 frames.
        if kind is list:
            result = self.sequence(cast("list[object]", value), place, level)
        elif kind is tuple:
            elements = cast("tuple[object, ...]", value)
            result = {"$tuple": self.sequence(elements, place, level + 1)}
        elif kind is dict:
            mapping = cast("dict[Any, object]", value)
            if has_object_keys(mapping):
                result = self.members(mapping, place, level)
            else:
                result = {"$dict": self.pairs(mapping, place, level + 1)}
        else:
            result = cast(Writer, rule)(value, self, place, level)
        del self._open[id(value)]
        return self._within(result, place, level)

    def _within(self, result: Json, place: str, level: int) -> Json:
        # Containers check themselves on the way down. The few levels that a rule adds at the very
        # bottom are counted here, and only where the limit is near enough for them to matter.
        if level + _RULE_LEVELS > self._max_depth and level + _height(result) - 1 > self._max_depth:
            self._too_deep(place)
        return result

    def put_array(self, array: np.ndarray[Any, Any], place: str) -> Json:
        """Hand an array to the door, see :meth:`TensorWriter.put_array`."""
        check_name(place)
        return self._door.put_array(array, place)

    def sequence(self, values: Iterable[object], place: str, level: int) -> list[Json]:
        """The JSON array of values that stand at the positions below ``place``."""
        if level > self._max_depth:
            self._too_deep(place)
        result: list[Json] = []
        for position, value in enumerate(values):
            kind = type(value)
            if kind in _PLAIN_TYPES and _is_plain(value, kind):
                result.append(cast(Json, value))
            else:
                result.append(self._write_other(value, kind, f"{place}/{position}", level + 1))
        return result

    def members(
        self,
        values: Mapping[str, object],
        place: str,
        level: int,
        below: DistinctPaths | None = None,
    ) -> dict[str, Json]:
        """The JSON object of a mapping that :func:`has_object_keys` accepts."""
        if level > self._max_depth:
            self._too_deep(place)
        if below is None and not all(map(str.isprintable, values)):
            below = DistinctPaths(place)
        result: dict[str, Json] = {}
        for key, value in values.items():
            kind = type(value)
            if kind in _PLAIN_TYPES and _is_plain(value, kind):
                result[key] = cast(Json, value)
            else:
                at = child(place, key) if below is None else below.child(key)
                result[key] = self._write_other(value, kind, at, level + 1)
        return result

    def pairs(
        self,
        values: Mapping[Any, object],
        place: str,
        level: int,
        below: DistinctPaths | None = None,
    ) -> list[Json]:
        """The JSON array of the pairs of a mapping with any keys."""
        if level + (1 if values else 0) > self._max_depth:
            self._too_deep(place)
        below = below or DistinctPaths(place)
        result: list[Json] = []
        tensor_keys: set[bytes] = set()
        for key, value in values.items():
            plain = type(key) in _PLAIN_TYPES and _is_plain(key, type(key))
            at = below.child(label(key, is_tensor=not plain and self._door.is_tensor(key)))
            written = cast(Json, key)
            if not plain:
                # A key has a place, too: a tuple may hold a tensor, and errors must say where.
                written = self.write(key, below.beside(at, "key"), level + 2)
                if has_tensors(written):
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
        place: str,
        level: int,
        below: DistinctPaths | None = None,
    ) -> Json:
        """The items of a dictionary, *I* in the specification: an object, or pairs."""
        if has_object_keys(values):
            return self.members(values, place, level, below)
        return self.pairs(values, place, level, below)

    def unsupported(
        self, value: object, place: str, hint: str | None = None
    ) -> UnsupportedTypeError:
        """The error for a value that cannot be written, to be raised."""
        for find in self._hints:
            hint = hint or find(value)
        name = type(value).__qualname__.rpartition(".")[2]
        return UnsupportedTypeError(
            f"{shown(place)}: cannot write a value of type {quote(full_name(type(value)), 120)}",
            hint=hint
            or f"Call jsonckpt.register({name}, to_json=..., from_json=...) before saving, or put"
            " plain values in its place.",
        )

    def _too_deep(self, place: str) -> NoReturn:
        raise LimitError(
            f"{shown(place)}: nested deeper than {self._max_depth} levels of JSON",
            hint="Flatten the state: readers refuse what is nested deeper.",
        )


def _is_plain(value: object, kind: type) -> bool:
    """Whether a value of one of :data:`_PLAIN_TYPES` is its own JSON."""
    if kind is str:
        return cast(str, value).isascii() or is_text(cast(str, value))
    if kind is float:
        return math.isfinite(cast(float, value))
    if kind is int:
        return -_BIG < cast(int, value) < _BIG
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
    """One decoding under way. Rules get it to read what their bodies hold."""

    def __init__(self, door: TensorReader, rules: Rules) -> None:
        self._door = door
        self._readers = rules.readers
        #: Before a rule makes memory that the door has not made.
        self.charge = door.charge
        #: Arrays that a rule copied out of the door's, by what they were copied from and how.
        self.copied: dict[object, Any] = {}
        #: How often something was left out so far: a rule that needs its parts whole compares.
        self.omissions = 0

    def read(self, value: Json, place: str) -> Any:
        """The Python value of the JSON that stands at ``place``, or OMIT."""
        kind = type(value)
        if kind in _PLAIN_TYPES:
            return value
        if kind is dict:
            members = cast("dict[str, Json]", value)
            if len(members) == 1:
                tag = next(iter(members))
                if tag[:1] == "$":
                    return self._tagged(tag, members[tag], place)
            return self.members(members, place)
        if kind is list:
            return self.sequence(cast("list[Json]", value), place)
        raise FormatError(f"{shown(place)}: {full_name(kind)} is not a JSON value")

    def _tagged(self, tag: str, body: Json, place: str) -> Any:
        if tag in TENSOR_TAGS:
            result = self._door.get(tag, body, place)
        elif tag == "$tuple":
            at = f"{place}/{tag}"
            result = tuple(self.sequence(array(body, at), at))
        elif tag == "$dict":
            result = self.pairs(body, f"{place}/{tag}")
        elif (rule := self._readers.get(tag)) is not None:
            result = rule(body, self, child(place, tag))
        else:
            raise FormatError(
                f"{shown(place)}: unknown tag {quote(tag)}",
                hint="If it is a type of your own, call"
                f" jsonckpt.register(cls, {quote(tag[1:])}, ...) before loading.",
            )
        if result is OMIT:
            self.omissions += 1
        return result

    def get_array(self, body: Json, place: str) -> Any:
        """Ask the door for an array, see :meth:`TensorReader.get_array`."""
        result = self._door.get_array(body, place)
        if result is OMIT:
            self.omissions += 1
        return result

    def members(self, values: Mapping[str, Json], place: str) -> dict[str, Any]:
        """The dictionary of an object that is no tag, without what is omitted."""
        result: dict[str, Any] = {}
        for key, value in values.items():
            if type(value) in _PLAIN_TYPES:
                result[key] = value
            elif (item := self.read(value, child(place, key))) is not OMIT:
                result[key] = item
        return result

    def sequence(self, values: Sequence[Json], place: str) -> list[Any]:
        """The list of an array, without what is omitted."""
        result: list[Any] = []
        for position, value in enumerate(values):
            if type(value) in _PLAIN_TYPES:
                result.append(value)
            elif (item := self.read(value, f"{place}/{position}")) is not OMIT:
                result.append(item)
        return result

    def pairs(self, body: Json, place: str) -> dict[Any, Any]:
        """The dictionary of an array of pairs, without what is omitted.

        Raises:
            FormatError: not pairs, a key that cannot be one, or one that occurs twice.
        """
        items = []
        for position, pair in enumerate(array(body, place)):
            at = f"{place}/{position}"
            if type(pair) is not list or len(pair) != 2:
                refuse(at, "a [key, value] pair", pair)
            key = self.read(pair[0], f"{at}/0")
            value = self.read(pair[1], f"{at}/1")
            if key is not OMIT and value is not OMIT:
                items.append((key, value))
        check_hashes([key for key, _ in items], place)
        result: dict[Any, Any] = distinct(dict, items, place, "keys")
        return result

    def items(self, body: Json, place: str) -> dict[Any, Any]:
        """The dictionary of *I* in the specification: an object, or pairs."""
        if type(body) is not dict:
            return self.pairs(body, place)
        for key in body:
            if key[:1] == "$":
                refuse(place, "[key, value] pairs where a key begins with '$'", body)
        return self.members(body, place)


def record_of(name: str, body: Json) -> str:
    """The record that a reference of :func:`tensor_names` needs.

    >>> record_of("/v", {"name": "/v", "of": "/w"})
    '/w'
    """
    return str(body["of"]) if type(body) is dict else name
