"""How results show themselves: ``repr`` in one line, and tracebacks that end at the user's code."""

from __future__ import annotations

import traceback
from dataclasses import MISSING, fields
from os.path import abspath, dirname, join
from sysconfig import get_paths
from typing import Any

#: Of a sequence, a repr shows this many items.
_ITEMS = 2
_LONGEST = 80
#: The code of this package.
_PACKAGE = dirname(dirname(abspath(__file__)))
_LIBRARIES = tuple(
    join(path, "") for name, path in get_paths().items() if name in {"stdlib", "purelib", "platlib"}
)


class ShortRepr:
    """A base of dataclasses whose repr is one line, however much they hold.

    Fields that have their default values are left out, and long sequences are cut.

    >>> from dataclasses import dataclass
    >>> @dataclass(repr=False)
    ... class Result(ShortRepr):
    ...     names: tuple[str, ...]
    ...     notes: tuple[str, ...] = ()
    >>> Result(("/a", "/b", "/c", "/d"))
    Result(names=('/a', '/b', … 4 in all))
    """

    __slots__ = ()

    def __repr__(self) -> str:
        parts = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            default = field.default
            if field.default_factory is not MISSING:
                default = field.default_factory()
            if not field.repr or (default is not MISSING and value == default):
                continue
            parts.append(f"{field.name}={_short(value)}")
        return f"{type(self).__name__}({', '.join(parts)})"


def _short(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) > _ITEMS:
        items = [_cut(repr(item)) for item in value[:_ITEMS]]
        text = f"{', '.join(items)}, … {len(value):,} in all"
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    if isinstance(value, float):
        return f"{value:.4g}"
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]}…{text[-1]}"


def short_traceback(error: BaseException) -> list[str]:
    """The lines of a traceback, without the frames of this package and of IPython.

    What went wrong inside is in the message. The frames are still in ``error.__traceback__``. If
    code of the user failed inside, such as a function given to ``register``, its lines come first.
    """
    lines = ["Traceback (the frames inside jsonckpt are left out):"]
    cause = error.__cause__
    while cause is not None:
        users = _frames(cause, (*_LIBRARIES, "<frozen "))
        if users:
            lines += [*users, f"{_name(cause)}: {cause}", "The above caused:"]
        cause = cause.__cause__
    return [*lines, *_frames(error, ()), f"{_name(error)}: {error}"]


def _frames(error: BaseException, left_out: tuple[str, ...]) -> list[str]:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((join(_PACKAGE, ""), *left_out))
        and f"{join('IPython', 'core')}" not in frame.filename
    ]
    return "".join(traceback.format_list(frames)).splitlines()


def _name(error: BaseException) -> str:
    # A private class is shown as the public one that it is.
    kind = next((base for base in type(error).__mro__ if "_src" not in base.__module__), Exception)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
