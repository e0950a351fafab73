"""The stack of a pickle, and the plain values that are made on it.

Python's own unpickler imports what a pickle names and calls it. This one does not: a name stays a
:class:`Global`, and only the functions of a :class:`Vocabulary`, which make harmless values and
check their arguments, are ever called. All else becomes an inert :class:`Unread`. So there is
nothing that a pickle can reach: no attribute, no method, no class.
"""

from __future__ import annotations

import _compat_pickle
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import FormatError, LimitError, quote
from .cursor import Cursor
from .keys import check_growth, keys, weight
from .values import Global, Storage, Undecoded, Unread, reason_of, unfit

#: Arguments may weigh so much, or so many times the bytes of the pickle.
ROOM: Final = 1 << 28
_FACTOR: Final = 16
_DICTS: Final = (dict, OrderedDict, defaultdict, Counter)
#: Modules whose names changed, with the names of today.
_MOVED: Final = (
    ("numpy.core.", "numpy._core."),
    ("pathlib._local", "pathlib"),
    ("torch.tensor", "torch._tensor"),
)

Constructor = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The names that a pickle may use, by their dotted names.

    Attributes:
        constants: values.
        constructors: functions of the arguments. They raise :class:`FormatError` for unfit ones.
        builders: functions of an object and the state that completes it. They return the object
            or one in its place. The key is a name of an :class:`Unread`, or of an object's type.
        raw: names whose arguments or states hold bytes, which Python 2 wrote as strings.
    """

    constants: dict[str, Any]
    constructors: dict[str, Constructor]
    builders: dict[str, Callable[[Any, Any], Any]]
    raw: frozenset[str] = frozenset()


@dataclass(slots=True, kw_only=True)
class Machine(Cursor):
    """A stack, and the bytes that say what happens to it.

    Attributes:
        vocabulary: the names that may be used.
        persistent_load: what a persistent id stands for.
        encoding: of the strings of Python 2, or ``"bytes"``.
        names: all imported names, in order.
        room: what all arguments together may weigh, see :func:`~.keys.weight`.
    """

    vocabulary: Vocabulary
    persistent_load: Callable[[Any], Any]
    encoding: str = "utf-8"
    names: dict[str, None] = field(default_factory=dict)
    room: int = ROOM
    _protocol: int = 0
    _stack: list[Any] = field(default_factory=list)
    _below: list[list[Any]] = field(default_factory=list)
    _memo: dict[int, Any] = field(default_factory=dict)
    _memo_keys: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.room = max(self.room, _FACTOR * len(self.data))

    def charge(self, values: Sequence[Any]) -> None:
        """Count arguments that are about to be used.

        Raises:
            LimitError: together with the others they are far larger than the pickle.
        """
        self.room -= weight(values)
        if self.room < 0:
            raise LimitError("this pickle copies the same values again and again")

    def reset(self) -> None:
        """Begin another pickle."""
        self._stack, self._below, self._memo, self._memo_keys = [], [], {}, {}
        self._protocol = 0

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def pop(self) -> Any:
        """Take a value from the stack."""
        return self._stack.pop()

    def mark(self) -> None:
        """Begin a new stack."""
        self._below.append(self._stack)
        self._stack = []

    def pop_mark(self) -> list[Any]:
        """The values since the last mark."""
        if not self._below:
            raise self.damaged("there is no mark")
        items, self._stack = self._stack, self._below.pop()
        return items

    def discard(self) -> None:
        """Drop the last value, or the last mark."""
        if self._stack:
            self._stack.pop()
        else:
            self.pop_mark()

    def memoize(self, key: int) -> None:
        """Remember the last value."""
        if key < 0:
            raise self.damaged("a negative number in the memo")
        value = self._stack[-1]
        self._memo[key] = value
        if isinstance(value, Unread):
            self._memo_keys.setdefault(id(value), []).append(key)

    def recall(self, key: int) -> None:
        """Put a remembered value on the stack."""
        self._stack.append(self._memo[key])

    def memoize_next(self) -> None:
        """Remember the last value under the next number."""
        self.memoize(len(self._memo))

    def protocol(self) -> None:
        """The version of the instructions."""
        self._protocol = self.take(1)[0]
        if self._protocol > 5:
            raise FormatError(f"a pickle of protocol {self._protocol}; the newest known is 5")

    def named(self, module: Any, name: Any) -> None:
        """A name that is imported elsewhere."""
        if type(module) is not str or type(name) is not str:
            raise self.damaged("the name of an import is no text")
        if self._protocol < 3:
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        for old, new in _MOVED:
            if module.startswith(old):
                module = new + module[len(old) :]
        found = Global(module, name)
        self.names[found.dotted] = None
        self.push(self.vocabulary.constants.get(found.dotted, found))

    def call(self, what: Any, args: Any) -> None:
        """What a call stands for: a harmless value, or an :class:`Unread`."""
        if isinstance(what, Unread) or type(args) is not tuple:
            # Calling the result of an unknown call.
            return self.push(Unread(getattr(what, "name", "an unknown name"), (what, args)))
        if type(what) is not Global:
            raise self.damaged(f"a call of a value of type {type(what).__name__}")
        renamed = _BY_ARGUMENT.get(what.dotted)
        if renamed is not None:
            return renamed(self, args)
        constructor = self.vocabulary.constructors.get(what.dotted)
        if constructor is None:
            return self.push(Unread(what.dotted, args))
        self.charge(args)
        try:
            self.push(constructor(*self._bytes_for(what.dotted, args)))
        except (LimitError, MemoryError, Warning):
            raise
        except Exception as error:
            if _is_unread(self, args):
                return self.push(Unread(what.dotted, args))
            reason = reason_of(error)
            raise unfit(f"{what.dotted} has arguments that it does not take ({reason})") from error

    def _bytes_for(self, name: str, values: Any) -> Any:
        """The values, with the bytes of strings that were decoded although they hold bytes."""
        if name not in self.vocabulary.raw or type(values) is not tuple:
            return values
        return tuple(
            each.raw
            if type(each) is Undecoded
            else each.encode(self.encoding)
            if type(each) is str and not each.isascii()
            else each
            for each in values
        )

    def complete(self) -> None:
        """Complete the object below the last value with it."""
        state, target = self.pop(), self._stack[-1]
        kind = type(target)
        name = target.name if isinstance(target, Unread) else f"{kind.__module__}.{kind.__name__}"
        builder = self.vocabulary.builders.get(name)
        if builder is not None:
            self.charge(state if type(state) is tuple else (state,))
            try:
                built = builder(target, self._bytes_for(name, state))
            except (LimitError, MemoryError, Warning):
                raise
            except Exception as error:
                if not isinstance(target, Unread) or not _is_unread(self, (state,)):
                    reason = reason_of(error)
                    raise unfit(f"{name} has a state that it does not take ({reason})") from error
                target.state, built = state, target
            if built is not target:
                self._stack[-1] = built
                for number in self._memo_keys.pop(id(target), ()):
                    if self._memo[number] is target:
                        self._memo[number] = built
        elif isinstance(target, Unread):
            target.state = state
        elif state:
            raise self.damaged(f"attributes for a value of type {quote(name)}")

    def append(self, items: list[Any]) -> None:
        """Append to the list below."""
        target = self._stack[-1]
        if type(target) in (list, deque):
            target.extend(items)
        elif isinstance(target, Unread):
            target.items += items
        else:
            raise self.damaged("an append to no list")

    def add(self, items: list[Any]) -> None:
        """Add to the set below."""
        target = self._stack[-1]
        if type(target) is set:
            before = len(target)
            target.update(keys(items))
            check_growth(target, before, len(target))
        elif isinstance(target, Unread):
            target.items += items
        else:
            raise self.damaged("an element for no set")

    def insert(self, items: list[Any]) -> None:
        """Insert keys and values into the dictionary below."""
        target = self._stack[-1]
        if len(items) % 2:
            raise self.damaged("a key without a value")
        if isinstance(target, Unread):
            target.items += items
        elif type(target) in _DICTS:
            before = len(target)
            for name, value in zip(keys(items[::2]), items[1::2], strict=True):
                target[name] = value
            check_growth(target, before, len(target))
        else:
            raise self.damaged("an item for no dictionary")

    def refuse(self) -> None:
        """An instruction that only works within one program."""
        raise FormatError(
            "this pickle needs values that are not in it (an extension code, or a buffer that was "
            "sent beside it)"
        )


def _is_unread(machine: Machine, values: Any) -> bool:
    """True if something unread is among the values, a few levels deep."""
    level, seen = [values], set()
    for _ in range(5):
        below = []
        for place in level:
            machine.charge((place,))
            for value in place.values() if type(place) in _DICTS else place:
                if isinstance(value, Unread | Global) and not isinstance(value, Storage):
                    return True
                if type(value) in (tuple, list, *_DICTS) and id(value) not in seen:
                    seen.add(id(value))
                    below.append(value)
        level = below
    return False


def _object(machine: Machine, args: tuple[Any, ...]) -> None:
    cls, base, state = args
    plain = type(base) is Global and base.dotted == "builtins.object"
    machine.call(cls, () if plain else (state,))


def _new(machine: Machine, args: tuple[Any, ...]) -> None:
    machine.call(args[0], tuple(args[1:]))


def _attribute(machine: Machine, args: tuple[Any, ...]) -> None:
    """A dotted name: it is joined, not looked up."""
    owner, name = args
    if type(owner) is Global and type(name) is str:
        machine.named(owner.module, f"{owner.name}.{name}")
    else:
        machine.push(Unread("builtins.getattr", args))


#: Functions that say which name is called.
_BY_ARGUMENT: Final[dict[str, Callable[[Machine, tuple[Any, ...]], None]]] = {
    "copyreg._reconstructor": _object,
    "copyreg.__newobj__": _new,
    "builtins.getattr": _attribute,
}
