"""Paths in a state: JSON Pointers, made, kept distinct and shown (``docs/format.md`` 6.3). Pure."""

from __future__ import annotations

from ..errors import LimitError, quote
from ..format.pointer import join

_MAX_NAME_BYTES = 1024


def shown(path: str) -> str:
    """A path as messages show it.

    >>> shown("/model"), shown("")
    ("state '/model'", 'the state')
    """
    return f"state {quote(path, 200)}" if path else "the state"


def child(path: str, key: str) -> str:
    """:func:`pointer.join`, but much faster for common keys."""
    if key.isprintable() and "/" not in key and "~" not in key:
        return f"{path}/{key}"
    return join(path, key)


def label(key: object, *, is_tensor: bool) -> str:
    """The text of a dictionary's key in paths. Different keys may have the same text."""
    if type(key) is str:
        return key
    if type(key) is int and key.bit_length() > 2048:
        return hex(key)
    if is_tensor:
        return type(key).__name__
    try:
        return _text(key) if type(key) in (tuple, frozenset) else str(key)
    except Exception:
        # A tuple with an integer of very many digits, or a faulty __str__: the key's own rule
        # still writes it.
        return type(key).__name__


def _text(key: object) -> str:
    """The text of a key, with the elements of sets in the order of their texts.

    Their own order differs between processes, and equal states must give equal names.

    >>> _text((1, frozenset({"b", "a"}), ("c",)))
    "(1, frozenset({'a', 'b'}), ('c',))"
    """
    if type(key) is frozenset and key:
        return "frozenset({" + ", ".join(sorted(map(_text, key))) + "})"
    if type(key) is tuple:
        return f"({', '.join(map(_text, key))}{',' * (len(key) == 1)})"
    return repr(key)


class DistinctPaths:
    """Makes distinct paths below one container.

    Keys ``0`` and ``"0"`` of one dictionary would have one path, and so would their tensors. The
    later one gets ``#2``. Paths that differ here differ in the whole state.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def child(self, key: str) -> str:
        """The path of the member ``key``."""
        return self._distinct(child(self._path, key))

    def beside(self, path: str, what: str) -> str:
        """The path of something that belongs to the member at ``path``, such as its key."""
        return self._distinct(f"{path}#{what}")

    def _distinct(self, wanted: str) -> str:
        path = wanted
        number = self._next.get(wanted, 2)
        while path in self._taken:
            path = f"{wanted}#{number}"
            number += 1
        self._next[wanted] = number
        self._taken.add(path)
        return path


def check_name(name: str) -> None:
    """Refuse a tensor's name that readers would refuse."""
    if len(name) > _MAX_NAME_BYTES // 4 and len(name.encode()) > _MAX_NAME_BYTES:
        raise LimitError(
            f"{shown(name)}: the name of this tensor would have {len(name.encode())} bytes of"
            f" UTF-8, and the limit is {_MAX_NAME_BYTES}",
            hint="Use shorter keys, or nest them less deeply.",
        )
