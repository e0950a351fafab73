"""How results show themselves: ``repr`` in one line, and tracebacks that end at the user's code."""

from __future__ import annotations

import traceback
from dataclasses import MISSING, fields
from os.path import abspath, dirname, join
from typing import Any

#: Of a sequence, a repr shows this many items.
_ITEMS = 2
_LONGEST = 80
#: The code of this package.
_PACKAGE = dirname(dirname(abspath(__file__)))


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
            if not field.repr or (field.default is not MISSING and value == field.default):
                continue
            parts.append(f"{field.name}={_short(value)}")
        return f"{type(self).__name__}({', '.join(parts)})"


def _short(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) > _ITEMS:
        items = [_short(item) for item in value[:_ITEMS]]
        text = f"{', '.join(items)}, … {len(value):,} in all"
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]}…{text[-1]}"


def short_traceback(error: BaseException) -> list[str]:
    """The lines of a traceback, without the frames of this package and of IPython.

    What went wrong inside is in the message. The frames are still in ``error.__traceback__``.
    """
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(join(_PACKAGE, ""))
        and f"{join('IPython', 'core')}" not in frame.filename
    ]
    # A private class is shown as the public one that it is.
    kind = next((base for base in type(error).__mro__ if "_src" not in base.__module__), Exception)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return [
        "Traceback (the frames inside jsonckpt are left out):",
        *"".join(traceback.format_list(frames)).splitlines(),
        f"{name}: {error}",
    ]
