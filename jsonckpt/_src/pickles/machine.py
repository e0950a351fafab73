"""Reads the instructions of a pickle and makes plain values of them.

Python's own unpickler imports what a pickle names and calls it. This one does not: a name stays a
:class:`Global`, and only the functions of a :class:`Vocabulary`, which make harmless values and
check their arguments, are ever called. All else becomes an inert :class:`Unread`. So there is
nothing that a pickle can reach: no attribute, no method, no class.
"""

from __future__ import annotations

import _compat_pickle
import codecs
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from mmap import mmap
from pickletools import opcodes
from typing import Any, Final

from ..errors import FormatError, IncompleteCheckpointError, JsonckptError, quote
from .values import Global, Undecoded, Unread, unfit

#: Python prints integers of at most so many digits by default.
_DIGITS: Final = 4300
_INTEGER_BYTES: Final = 1785
#: Python takes the hash of a number modulo this. Larger keys could all have one hash.
_MODULUS: Final = (1 << 61) - 1
#: Python hashes nested tuples without a limit of its own.
_KEY_DEPTH: Final = 32
_DICTS: Final = (dict, OrderedDict, defaultdict, Counter)
#: Modules whose names changed, with the names of today.
_MOVED: Final = (
    ("numpy.core.", "numpy._core."),
    ("pathlib._local", "pathlib"),
    ("torch.tensor", "torch._tensor"),
)
_MARKED: Final = "a mark"

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


@dataclass(slots=True)
class Machine:
    """One run over one pickle.

    Attributes:
        data: the bytes.
        vocabulary: the names that may be used.
        persistent_load: what a persistent id stands for.
        encoding: of the strings of Python 2, or ``"bytes"``.
        position: the next byte.
        names: all imported names, in order.
    """

    data: bytes | mmap
    vocabulary: Vocabulary
    persistent_load: Callable[[Any], Any]
    encoding: str = "utf-8"
    position: int = 0
    names: dict[str, None] = field(default_factory=dict)
    _protocol: int = 0
    _stack: list[Any] = field(default_factory=list)
    _below: list[list[Any]] = field(default_factory=list)
    _memo: dict[int, Any] = field(default_factory=dict)
    _memo_keys: dict[int, list[int]] = field(default_factory=dict)

    def load(self) -> Any:
        """Read one pickle, from ``position`` to its end.

        Raises:
            IncompleteCheckpointError: it ends too early.
            FormatError: it is no pickle, or damaged.
        """
        self._stack, self._below, self._memo, self._memo_keys = [], [], {}, {}
        self._protocol = 0
        size = len(self.data)
        try:
            while self.position < size:
                code = self.data[self.position]
                self.position += 1
                if code == _STOP:
                    return self._stack.pop()
                _HANDLERS[code](self)
        except (JsonckptError, MemoryError):
            raise
        except KeyError as error:
            raise self._damaged(f"0x{code:02x} is no instruction, or its memo is empty") from error
        except Exception as error:
            # Hostile bytes can make any handler fail in any way.
            raise self._damaged(f"{type(error).__name__} in {self._instruction(code)}") from error
        raise IncompleteCheckpointError("this pickle ends too early", hint="Copy the file again.")

    def _damaged(self, what: str) -> FormatError:
        return FormatError(f"not a pickle, or a damaged one (byte {self.position}: {what})")

    def _instruction(self, code: int) -> str:
        return next((known.name for known in opcodes if known.code == chr(code)), f"0x{code:02x}")

    # Reading.

    def take(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            IncompleteCheckpointError: there are not so many.
        """
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise IncompleteCheckpointError(
                f"this pickle ends too early: {size} bytes were expected", hint="Copy it again."
            )
        found = self.data[self.position : end]
        self.position = end
        return found

    def number(self, form: str) -> Any:
        """The next number, in a form of :mod:`struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> bytes:
        """The text up to the next line feed."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise IncompleteCheckpointError("this pickle ends too early", hint="Copy it again.")
        return self.take(end + 1 - self.position)[:-1]

    # The stack.

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
            raise self._damaged(_MARKED)
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

    # Values.

    def text(self, raw: bytes) -> None:
        """A string of Python 2: text, where the encoding gives its bytes back."""
        if self.encoding == "bytes":
            self.push(raw)
            return
        try:
            decoded = raw.decode(self.encoding)
            same = decoded.encode(self.encoding) == raw
        except UnicodeError:
            same = False
        self.push(decoded if same else Undecoded(raw))

    def integer(self, raw: bytes) -> None:
        """A little-endian integer."""
        if len(raw) > _INTEGER_BYTES:
            raise FormatError(f"an integer of {len(raw)} bytes; at most {_INTEGER_BYTES} are read")
        self.push(int.from_bytes(raw, "little", signed=True))

    def digits(self, raw: bytes) -> None:
        """A decimal integer, or a bool of protocol 0."""
        if len(raw) > _DIGITS:
            raise FormatError(f"an integer of {len(raw)} digits; at most {_DIGITS} are read")
        self.push(raw == b"01" if raw in (b"00", b"01") else int(raw))

    def named(self, module: Any, name: Any) -> None:
        """A name that is imported elsewhere."""
        if type(module) is not str or type(name) is not str:
            raise self._damaged("the name of an import is no text")
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
            raise self._damaged(f"a call of a value of type {type(what).__name__}")
        renamed = _BY_ARGUMENT.get(what.dotted)
        if renamed is not None:
            return renamed(self, args)
        constructor = self.vocabulary.constructors.get(what.dotted)
        if constructor is None:
            return self.push(Unread(what.dotted, args))
        try:
            self.push(constructor(*self._bytes_for(what.dotted, args)))
        except MemoryError:
            raise
        except Exception as error:
            if _is_unread(args):
                return self.push(Unread(what.dotted, args))
            reason = getattr(error, "message", type(error).__name__)
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
            try:
                built = builder(target, self._bytes_for(name, state))
            except MemoryError:
                raise
            except Exception as error:
                if not isinstance(target, Unread) or not _is_unread((state,)):
                    reason = getattr(error, "message", type(error).__name__)
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
            raise self._damaged(f"attributes for a value of type {quote(name)}")

    def append(self, items: list[Any]) -> None:
        """Append to the list below."""
        target = self._stack[-1]
        if type(target) in (list, deque):
            target.extend(items)
        elif isinstance(target, Unread):
            target.items += items
        else:
            raise self._damaged("an append to no list")

    def add(self, items: list[Any]) -> None:
        """Add to the set below."""
        target = self._stack[-1]
        if type(target) is set:
            target.update(map(key, items))
        elif isinstance(target, Unread):
            target.items += items
        else:
            raise self._damaged("an element for no set")

    def insert(self, items: list[Any]) -> None:
        """Insert keys and values into the dictionary below."""
        target = self._stack[-1]
        if len(items) % 2:
            raise self._damaged("a key without a value")
        if isinstance(target, Unread):
            target.items += items
        elif type(target) in _DICTS:
            for place in range(0, len(items), 2):
                target[key(items[place])] = items[place + 1]
        else:
            raise self._damaged("an item for no dictionary")

    def refuse(self) -> None:
        """An instruction that only works within one program."""
        raise FormatError(
            "this pickle needs values that are not in it (an extension code, or a buffer that was "
            "sent beside it)"
        )


def key(value: Any, depth: int = 0) -> Any:
    """The value, if it may be a key: its hash takes little time.

    Raises:
        FormatError: it may not.
    """
    if type(value) is tuple:
        if depth == _KEY_DEPTH:
            raise unfit("a key that is nested too deeply")
        for element in value:
            key(element, depth + 1)
    elif type(value) in (int, float) and abs(value) >= _MODULUS and abs(value) != float("inf"):
        raise unfit("a number as a key that is too large for one")
    return value


def dictionary(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dictionary of checked keys."""
    return {key(name): value for name, value in pairs}


def _is_unread(values: Any) -> bool:
    """True if something unread is among the values, a few levels deep."""
    level, seen = [values], set()
    for _ in range(5):
        below = []
        for place in level:
            for value in place.values() if type(place) in _DICTS else place:
                if isinstance(value, Unread | Global):
                    return True
                if type(value) in (tuple, list, *_DICTS) and id(value) not in seen:
                    seen.add(id(value))
                    below.append(value)
        level = below
    return False


def _object(machine: Machine, args: tuple[Any, ...]) -> None:
    cls, base, state = args
    plain = type(base) is Global and base.dotted == "builtins.object"
    machine.call(cls, () if plain else (base, state))


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


def _quoted(raw: bytes) -> bytes:
    if len(raw) < 2 or raw[0] != raw[-1] or raw[:1] not in (b"'", b'"'):
        raise unfit("a string without quotes")
    return codecs.escape_decode(raw[1:-1])[0]  # type: ignore[attr-defined]


def _instance(m: Machine) -> None:
    module, name = m.line().decode(), m.line().decode()
    args = tuple(m.pop_mark())
    m.named(module, name)
    m.call(m.pop(), args)


def _marked_object(m: Machine) -> None:
    cls, *args = m.pop_mark()
    m.call(cls, tuple(args))


def _keyword_object(m: Machine) -> None:
    words, args, cls = m.pop(), m.pop(), m.pop()
    if words:
        m.push(Unread(cls.dotted if type(cls) is Global else "an unknown name", (*args, words)))
    else:
        m.call(cls, args)


def _called(m: Machine) -> None:
    args = m.pop()
    m.call(m.pop(), args)


def _stack_global(m: Machine) -> None:
    name = m.pop()
    m.named(m.pop(), name)


def _tuple(size: int) -> Callable[[Machine], None]:
    return lambda m: m.push(tuple([m.pop() for _ in range(size)][::-1]))


def _item(m: Machine) -> None:
    value = m.pop()
    m.insert([m.pop(), value])


def _frozen(m: Machine) -> None:
    m.push(frozenset(map(key, m.pop_mark())))


def _paired(items: list[Any]) -> dict[Any, Any]:
    return dictionary(zip(items[::2], items[1::2], strict=True))


def _duplicate(m: Machine) -> None:
    value = m.pop()
    m.push(value)
    m.push(value)


def _wide(value: bytes) -> str:
    return value.decode("utf-8", "surrogatepass")


_STOP: Final = ord(".")
_HANDLERS: Final[dict[int, Callable[[Machine], Any]]] = {
    ord(code): handler
    for code, handler in {
        "\x80": Machine.protocol,
        "\x95": lambda m: m.take(8),
        "(": Machine.mark,
        "0": Machine.discard,
        "1": Machine.pop_mark,
        "2": _duplicate,
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "I": lambda m: m.digits(m.line()),
        "L": lambda m: m.digits(m.line().rstrip(b"L")),
        "J": lambda m: m.push(m.number("<i")),
        "K": lambda m: m.push(m.take(1)[0]),
        "M": lambda m: m.push(m.number("<H")),
        "\x8a": lambda m: m.integer(m.take(m.take(1)[0])),
        "\x8b": lambda m: m.integer(m.take(m.number("<i"))),
        "F": lambda m: m.push(float(m.line())),
        "G": lambda m: m.push(m.number(">d")),
        "S": lambda m: m.text(_quoted(m.line())),
        "T": lambda m: m.text(m.take(m.number("<i"))),
        "U": lambda m: m.text(m.take(m.take(1)[0])),
        "V": lambda m: m.push(str(m.line(), "raw-unicode-escape")),
        "X": lambda m: m.push(_wide(m.take(m.number("<I")))),
        "\x8c": lambda m: m.push(_wide(m.take(m.take(1)[0]))),
        "\x8d": lambda m: m.push(_wide(m.take(m.number("<Q")))),
        "B": lambda m: m.push(m.take(m.number("<I"))),
        "C": lambda m: m.push(m.take(m.take(1)[0])),
        "\x8e": lambda m: m.push(m.take(m.number("<Q"))),
        "\x96": lambda m: m.push(bytearray(m.take(m.number("<Q")))),
        ")": lambda m: m.push(()),
        "\x85": _tuple(1),
        "\x86": _tuple(2),
        "\x87": _tuple(3),
        "t": lambda m: m.push(tuple(m.pop_mark())),
        "]": lambda m: m.push([]),
        "l": lambda m: m.push(m.pop_mark()),
        "a": lambda m: m.append([m.pop()]),
        "e": lambda m: m.append(m.pop_mark()),
        "}": lambda m: m.push({}),
        "d": lambda m: m.push(_paired(m.pop_mark())),
        "s": _item,
        "u": lambda m: m.insert(m.pop_mark()),
        "\x8f": lambda m: m.push(set()),
        "\x90": lambda m: m.add(m.pop_mark()),
        "\x91": _frozen,
        "p": lambda m: m.memoize(int(m.line())),
        "q": lambda m: m.memoize(m.take(1)[0]),
        "r": lambda m: m.memoize(m.number("<I")),
        "\x94": Machine.memoize_next,
        "g": lambda m: m.recall(int(m.line())),
        "h": lambda m: m.recall(m.take(1)[0]),
        "j": lambda m: m.recall(m.number("<I")),
        "c": lambda m: m.named(m.line().decode(), m.line().decode()),
        "\x93": _stack_global,
        "R": _called,
        "\x81": _called,
        "\x92": _keyword_object,
        "i": _instance,
        "o": _marked_object,
        "b": Machine.complete,
        "P": lambda m: m.push(m.persistent_load(m.line().decode())),
        "Q": lambda m: m.push(m.persistent_load(m.pop())),
        "\x82": Machine.refuse,
        "\x83": Machine.refuse,
        "\x84": Machine.refuse,
        "\x97": Machine.refuse,
        "\x98": Machine.refuse,
    }.items()
}
