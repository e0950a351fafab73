"""JSON Pointers (RFC 6901): the names of tensors."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def escape(key: str) -> str:
    """A key as one segment of a JSON Pointer.

    ``~`` and ``/`` are escaped as RFC 6901 says; control characters and lone surrogates, which a
    name may not hold, are spelled ``\\uXXXX``.

    >>> escape("a/b~c")
    'a~1b~0c'
    """
    text = key.replace("~", "~0").replace("/", "~1")
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def unescape(segment: str) -> str:
    """The inverse of :func:`escape` for ``~0`` and ``~1``.

    >>> unescape("a~1b~0c")
    'a/b~c'
    """
    return segment.replace("~1", "/").replace("~0", "~")


def join(pointer: str, key: str) -> str:
    """The pointer of the member ``key`` below ``pointer``.

    >>> join("/model", "a/b")
    '/model/a~1b'
    """
    return f"{pointer}/{escape(key)}"
