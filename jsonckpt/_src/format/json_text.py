"""JSON text to values and back, strictly. Pure: bytes in, bytes out, no torch.

:func:`parse` accepts exactly what ``docs/format.md`` section 2 allows, and an error gives the line
and column of anything else. The scanner of the standard library does the work at C speed. It
accepts too much (deep nesting, lone surrogates, long numbers), so the raw bytes are searched for
that first, also at C speed. A check of every value afterwards would cost more than the parse.
Texts that come in pieces go to :mod:`.incremental`, which accepts the same JSON.
"""

from __future__ import annotations

import functools
import gc
import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from json.encoder import encode_basestring
from typing import Any, NoReturn, ParamSpec, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, LimitError, UnsupportedTypeError, quote
from .limits import way_over

#: A value that JSON can hold.
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
_P = ParamSpec("_P")
_R = TypeVar("_R")
_BLOCK = 1 << 20
#: A longer token would make a regular expression of megabytes.
_LONG_TOKEN = 1_000
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1
_NUMBER_BYTES = b"0123456789+-.eE"
_AS_DIGITS = bytes(0x30 if byte in _NUMBER_BYTES else 0x20 for byte in range(256))
LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
#: An exponent that ``Decimal``, and so ijson, cannot read.
_LONG_EXPONENT = re.compile("[eE][+-]?0*[1-9][0-9]{18}")
#: Types of values that hold no others.
SCALARS = frozenset({type(None), bool, int, float, str})


class _Refused(Exception):
    """A hook of the scanner refuses something.

    Args:
        what: the problem.
        token: the text that is refused; ``None`` for an object.
        limit: the field of :class:`jsonckpt.Limits` that is exceeded, if one is.
    """

    def __init__(self, what: str, token: str | None = None, limit: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.token = token
        self.limit = limit


def parse(
    text: bytes,
    *,
    what: str,
    max_depth: int = 200,
    max_number: int = 1000,
    max_marks: int | None = 10_000_000,
) -> Json:
    """The value of a JSON text.

    Args:
        text: one JSON text in UTF-8.
        what: what the text is (``"manifest.json"``); messages begin with it.
        max_depth: levels of arrays and objects; ``[]`` has one.
        max_number: characters of one number.
        max_marks: brackets and strings. They are counted before the parse, because an empty array
            is two bytes of text and up to 200 bytes of memory.

    Raises:
        FormatError: the text is not UTF-8, not JSON, or JSON that the format does not allow:
            a byte order mark, duplicate members, ``NaN``, ``1e400``, lone surrogates.
        LimitError: the text is over one of the limits.

    >>> parse(b'{"a": [1, 2.5, null]}', what="example")
    {'a': [1, 2.5, None]}
    >>> parse(b'{"a": 1, "a": 2}', what="example")
    Traceback (most recent call last):
    jsonckpt.FormatError: example: line 1 column 16: member 'a' occurs twice in one object
    """
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        _fail(what, text, error.start, "not UTF-8", error)
    if text.startswith(b"\xef\xbb\xbf"):
        _fail(what, text, 0, "a byte order mark, which JSON does not allow")
    plain = without_escapes(text)
    if b"\\u" in plain and (lone := LONE_SURROGATE.search(plain)):
        _fail(what, text, lone.start(), "a lone surrogate, which is not a character")
    deepest, marks = _shape(plain, max_marks)
    if max_marks is not None and marks > max_marks:
        raise LimitError(
            f"{what}: {marks} brackets and strings or more, the limit is {max_marks}",
            hint=way_over("marks", "None"),
        )
    if deepest > max_depth:
        deeper = (
            start + int(np.argmax(levels > max_depth))
            for start, levels, _, _ in _nesting(plain)
            if levels.max() > max_depth
        )
        _fail(what, text, next(deeper), f"nested deeper than {max_depth} levels", limit="depth")
    return _scan(text, decoded, plain, what=what, max_number=max_number)


def _scan(text: bytes, decoded: str, plain: bytes, *, what: str, max_number: int) -> Json:
    def checked_float(token: str) -> float:
        value = float(token)
        if math.isinf(value):
            raise _Refused(f"the number {quote(token, 40)} is too large for a float", token)
        if len(token) > 20 and _LONG_EXPONENT.search(token):
            raise _Refused("a number has an exponent of over 18 digits", token)
        if len(token) > max_number:
            raise _Refused(f"a number of more than {max_number} characters", token, "number_chars")
        return value

    def checked_int(token: str) -> int:
        if len(token) > max_number:
            raise _Refused(f"a number of more than {max_number} characters", token, "number_chars")
        return int(token)

    # A hook for integers doubles the time of a parse.
    long_runs = b"0" * (max_number + 1) in text.translate(_AS_DIGITS)
    decoder = json.JSONDecoder(
        object_pairs_hook=_object,
        parse_float=checked_float,
        parse_int=checked_int if long_runs else None,
        parse_constant=_constant,
    )
    try:
        with collector_paused():
            return cast(Json, decoder.decode(decoded))
    except json.JSONDecodeError as error:
        raise FormatError(
            f"{what}: line {error.lineno} column {error.colno}: not JSON: {error.msg}"
        ) from error
    except _Refused as error:
        place = _locate(plain, decoded, error.token)
        _fail(what, text, place, error.what, error, limit=error.limit)
    except RecursionError as error:
        raise LimitError(f"{what}: nested deeper than this Python can follow") from error
    except ValueError as error:
        # int() has met more digits than sys.get_int_max_str_digits().
        raise LimitError(f"{what}: a number has too many digits for this Python") from error


#: Saves and loads of more bytes (about a second) leave the collector on.
BRIEF = 1 << 30


class collector_paused:
    """Pauses the garbage collector, which doubles the time of a parse.

    The collector walks all containers of a large tree again and again, and none is garbage. The
    whole process has one collector, so only the main thread pauses it.

    This is a class, because an interrupt in a generator can leave the collector off.
    """

    _enable = False

    def __enter__(self) -> None:
        try:
            if threading.current_thread() is threading.main_thread() and gc.isenabled():
                self._enable = True
                gc.disable()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._enable:
            self._enable = False
            gc.enable()

    def __del__(self) -> None:
        self.__exit__()  # it does not run if an interrupt comes just before it

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def paused(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with collector_paused():
                return function(*args, **kwargs)

        return paused


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen = set()
        for name, _ in pairs:
            if name in seen:
                raise _Refused(f"member {quote(name)} occurs twice in one object")
            seen.add(name)
    return members


def _constant(token: str) -> NoReturn:
    raise _Refused(f"{token} is not a JSON number", token)


def _fail(
    what: str,
    text: bytes,
    offset: int,
    problem: str,
    cause: BaseException | None = None,
    *,
    limit: str | None = None,
) -> NoReturn:
    start = text.rfind(b"\n", 0, offset) + 1
    line = text.count(b"\n", 0, offset) + 1
    column = len(text[start:offset].decode("utf-8", "replace")) + 1
    message = f"{what}: line {line} column {column}: {problem}"
    if limit is not None:
        raise LimitError(message, hint=way_over(limit)) from cause
    raise FormatError(message) from cause


def marks_of(text: bytes) -> int:
    """How many brackets and strings a JSON text has."""
    return _shape(without_escapes(text))[1]


def without_escapes(text: bytes) -> bytes:
    """The text without escaped backslashes and quotes: each quote begins or ends a string.

    Offsets stay the same.
    """
    if b"\\" not in text:
        return text
    return text.replace(b"\\\\", b"__").replace(b'\\"', b"__")


def _shape(plain: bytes, most: int | None = None) -> tuple[int, int]:
    """Levels, and brackets and strings, of a text in which no quote is escaped.

    The count ends soon after ``most``, so a text of nothing else is not read to its end.
    """
    deepest = marks = 0
    for _, levels, brackets, quotes in _nesting(plain, _NOT_STRUCTURE):
        deepest, marks = max(deepest, int(levels.max())), brackets + -(-quotes // 2)
        if most is not None and marks > most:
            break
    return deepest, marks


def _nesting(
    plain: bytes, without: bytes = b""
) -> Iterator[tuple[int, npt.NDArray[np.int64], int, int]]:
    """Read a text in blocks, without some of its characters.

    Yields:
        the start of the block, the level after each of its characters, brackets and quotes so far.
    """
    level = brackets = quotes = 0
    for start in range(0, len(plain), _BLOCK):
        kept = plain[start : start + _BLOCK].translate(None, without)
        if kept:
            block = np.frombuffer(kept, np.uint8)
            counts = np.cumsum(block == ord('"'), dtype=np.int64) + quotes
            steps = np.where(counts % 2 == 0, _STEP[block], np.int8(0))
            levels = np.cumsum(steps, dtype=np.int64) + level
            level, quotes = int(levels[-1]), int(counts[-1])
            brackets += int(np.count_nonzero(steps))
            yield start, levels, brackets, quotes


def _without_strings(plain: bytes) -> bytes:
    """The text with a quote for every byte of a string; offsets stay the same."""
    quotes = 0
    blocks = []
    for start in range(0, len(plain), _BLOCK):
        block = np.frombuffer(plain[start : start + _BLOCK], np.uint8)
        counts = np.cumsum(block == ord('"'), dtype=np.int64) + quotes
        quotes = int(counts[-1])
        blocks.append(np.where(counts % 2 == 0, block, ord('"')).astype(np.uint8).tobytes())
    return b"".join(blocks)


def _locate(plain: bytes, decoded: str, token: str | None) -> int:
    """The offset of a refused token, or of the end of a refused object.

    The scanner does not say where it is. A token is searched outside strings. An object is found
    by the number of objects that end before it. This runs only before an error.
    """
    bare = _without_strings(plain)
    if token is not None and len(token) > _LONG_TOKEN:
        return max(0, bare.find(token.encode()))
    if token is not None:
        found = re.search(
            rb"(?<![-+.0-9a-zA-Z])" + re.escape(token.encode()) + rb"(?![-+.0-9a-zA-Z])", bare
        )
        return found.start() if found else 0
    closed = 0

    def count(pairs: list[tuple[str, Json]]) -> None:
        nonlocal closed
        if len(dict(pairs)) != len(pairs):
            raise _Refused("found")
        closed += 1

    try:
        json.JSONDecoder(
            object_pairs_hook=count, parse_int=len, parse_float=len, parse_constant=len
        ).decode(decoded)
    except (_Refused, ValueError):
        braces = np.flatnonzero(np.frombuffer(bare, np.uint8) == ord("}"))
        return int(braces[closed]) if closed < len(braces) else 0
    return 0


def dump(value: Json) -> bytes:
    """The shortest JSON text: no white space, no escapes of characters beyond ASCII.

    Floats read back bit for bit.

    Raises:
        FormatError: a float that is not finite, or a lone surrogate.
        UnsupportedTypeError: a value of a type that JSON does not have.
        LimitError: nested deeper than this Python can follow.

    >>> dump({"a": [1, -0.0, "é"]}).decode()
    '{"a":[1,-0.0,"é"]}'
    """
    return _utf8(_guarded(_COMPACT, value))


def quoted(text: str) -> str:
    """A string as JSON text, without escapes of characters beyond ASCII.

    >>> print(quoted('/layers/"é"'))
    "/layers/\\"é\\""
    """
    return encode_basestring(text)


_COMPACT = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
)
_SPACED = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False)


def _guarded(encoder: json.JSONEncoder, value: Any) -> str:
    try:
        return encoder.encode(value)
    except RecursionError as error:
        raise LimitError("the value is nested deeper than this Python can follow") from error
    except TypeError as error:
        raise UnsupportedTypeError(f"not a JSON value: {error}") from error
    except ValueError as error:
        raise FormatError(f"not a JSON value: {error}") from error


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.end + 20]
        raise FormatError(
            f"a lone surrogate, which UTF-8 cannot hold, in {quote(around)}"
        ) from None


def dump_pretty(value: Json, indent: int = 1, width: int = 100) -> bytes:
    """JSON text for people: short containers on one line, long ones with one member per line.

    A list of scalars stays on one line even if it is long. There is no line feed at the end.

    Args:
        indent: spaces for each level.
        width: columns of a line with more than one member, where possible.

    Raises: as :func:`dump`.

    >>> print(dump_pretty({"lr": 0.1, "betas": [0.9, 0.95]}, width=20).decode())
    {
     "lr": 0.1,
     "betas": [0.9, 0.95]
    }
    """
    try:
        return _utf8(_Layout(indent, width).text(value, 0, 0))
    except RecursionError as error:
        raise LimitError("the value is nested deeper than this Python can follow") from error


class _Layout:
    """Lays a value out from the leaves up: each text is made once."""

    def __init__(self, indent: int, width: int) -> None:
        self._indent = indent
        self._width = width

    def text(self, value: Json, pad: int, used: int) -> str:
        """``value`` on a line that has ``pad`` columns of indentation and ``used`` of text."""
        if type(value) is str:
            return encode_basestring(value)
        if type(value) is dict:
            if len(value) == 1:
                ((name, member),) = value.items()
                if type(name) is str and type(member) is str:
                    # A tag and a name: most of the state, if there are many tensors.
                    line = f"{{{encode_basestring(name)}: {encode_basestring(member)}}}"
                    if len(line) <= self._width - pad - used:
                        return line
            deeper = pad + self._indent
            pieces = []
            for name, member in value.items():
                if type(name) is not str:
                    raise UnsupportedTypeError(f"not a JSON object: the key {quote(name)}")
                label = encode_basestring(name) + ": "
                pieces.append(label + self.text(member, deeper, len(label) + 1))
            return self._join("{", pieces, "}", pad, used)
        if type(value) is list and not SCALARS.issuperset(map(type, value)):
            deeper = pad + self._indent
            pieces = [self.text(element, deeper, 1) for element in value]
            return self._join("[", pieces, "]", pad, used)
        return _guarded(_SPACED, value)

    def _join(self, opening: str, pieces: list[str], closing: str, pad: int, used: int) -> str:
        room = self._width - pad - used - 2 * len(pieces)
        if room >= 0 and sum(map(len, pieces)) <= room and not any("\n" in p for p in pieces):
            return opening + ", ".join(pieces) + closing
        if not pieces:
            return opening + closing
        break_ = "\n" + " " * (pad + self._indent)
        return opening + break_ + ("," + break_).join(pieces) + "\n" + " " * pad + closing


def is_text(text: str) -> bool:
    """Whether UTF-8 can encode the string: it has no lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
