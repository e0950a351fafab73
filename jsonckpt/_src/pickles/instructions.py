"""The instructions of a pickle: what each does to the :class:`Machine`."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pickletools import opcodes
from typing import Any, Final

from ..errors import FormatError, IncompleteCheckpointError, JsonckptError
from .cursor import FLOAT64, INT32, UINT16, UINT32, UINT64
from .keys import dictionary, keys
from .machine import Machine
from .values import Global, Undecoded, Unread, unfit

#: Python prints integers of at most so many digits by default.
_DIGITS: Final = 4300
_INTEGER_BYTES: Final = 1785


def load(machine: Machine) -> Any:
    """Read one pickle, from ``position`` to its end.

    Raises:
        IncompleteCheckpointError: it ends too early.
        FormatError: it is no pickle, or damaged.
    """
    machine.reset()
    size = len(machine.data)
    try:
        while machine.position < size:
            code = machine.data[machine.position]
            machine.position += 1
            if code == _STOP:
                return machine.pop()
            _HANDLERS[code](machine)
    except (JsonckptError, MemoryError):
        raise
    except KeyError as error:
        raise machine.damaged(f"0x{code:02x} is no instruction, or its memo is empty") from error
    except Exception as error:
        # Hostile bytes can make any handler fail in any way.
        raise machine.damaged(f"{type(error).__name__} in {_instruction(code)}") from error
    raise IncompleteCheckpointError("this pickle ends too early", hint="Copy the file again.")


def _instruction(code: int) -> str:
    return next((known.name for known in opcodes if known.code == chr(code)), f"0x{code:02x}")


def _text(m: Machine, raw: bytes) -> None:
    """A string of Python 2: text, where the encoding gives its bytes back."""
    if m.encoding == "bytes":
        m.push(raw)
        return
    try:
        decoded = raw.decode(m.encoding)
        same = decoded.encode(m.encoding) == raw
    except UnicodeError:
        same = False
    m.push(decoded if same else Undecoded(raw))


def _integer(m: Machine, raw: bytes) -> None:
    """A little-endian integer."""
    if len(raw) > _INTEGER_BYTES:
        raise FormatError(f"an integer of {len(raw)} bytes; at most {_INTEGER_BYTES} are read")
    m.push(int.from_bytes(raw, "little", signed=True))


def _digits(m: Machine, raw: bytes) -> None:
    """A decimal integer, or a bool of protocol 0."""
    if len(raw) > _DIGITS:
        raise FormatError(f"an integer of {len(raw)} digits; at most {_DIGITS} are read")
    m.push(raw == b"01" if raw in (b"00", b"01") else int(raw))


def _quoted(raw: bytes) -> bytes:
    if len(raw) < 2 or raw[0] != raw[-1] or raw[:1] not in (b"'", b'"'):
        raise unfit("a string without quotes")
    return codecs.escape_decode(raw[1:-1])[0]


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
    m.push(frozenset(keys(m.pop_mark())))


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
        "I": lambda m: _digits(m, m.line()),
        "L": lambda m: _digits(m, m.line().rstrip(b"L")),
        "J": lambda m: m.push(m.number(INT32)),
        "K": lambda m: m.push(m.take(1)[0]),
        "M": lambda m: m.push(m.number(UINT16)),
        "\x8a": lambda m: _integer(m, m.take(m.take(1)[0])),
        "\x8b": lambda m: _integer(m, m.take(m.number(INT32))),
        "F": lambda m: m.push(float(m.line())),
        "G": lambda m: m.push(m.number(FLOAT64)),
        "S": lambda m: _text(m, _quoted(m.line())),
        "T": lambda m: _text(m, m.take(m.number(INT32))),
        "U": lambda m: _text(m, m.take(m.take(1)[0])),
        "V": lambda m: m.push(str(m.line(), "raw-unicode-escape")),
        "X": lambda m: m.push(_wide(m.take(m.number(UINT32)))),
        "\x8c": lambda m: m.push(_wide(m.take(m.take(1)[0]))),
        "\x8d": lambda m: m.push(_wide(m.take(m.number(UINT64)))),
        "B": lambda m: m.push(m.take(m.number(UINT32))),
        "C": lambda m: m.push(m.take(m.take(1)[0])),
        "\x8e": lambda m: m.push(m.take(m.number(UINT64))),
        "\x96": lambda m: m.push(bytearray(m.take(m.number(UINT64)))),
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
        "r": lambda m: m.memoize(m.number(UINT32)),
        "\x94": Machine.memoize_next,
        "g": lambda m: m.recall(int(m.line())),
        "h": lambda m: m.recall(m.take(1)[0]),
        "j": lambda m: m.recall(m.number(UINT32)),
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
