"""Places in a state, as JSON Pointers: how they are put together, kept distinct and shown. Pure."""

from __future__ import annotations

from ..errors import LimitError, quote
from ..format.pointer import join

_MAX_NAME_BYTES = 1024


def shown(place: str) -> str:
    """A place as messages give it.

    >>> shown("/model"), shown("")
    ("state '/model'", 'the state')
    """
    return f"state {quote(place, 200)}" if place else "the state"


def child(place: str, key: str) -> str:
    """:func:`names.join`, at a fraction of its cost for the keys that are nearly all there are."""
    if key.isprintable() and "/" not in key and "~" not in key:
        return f"{place}/{key}"
    return join(place, key)


def label(key: object, *, is_tensor: bool) -> str:
    """What stands for a dictionary's key in places. It need not say the key exactly."""
    if type(key) is str:
        return key
    if type(key) is int and key.bit_length() > 2048:
        return hex(key)
    if is_tensor:
        return type(key).__name__
    try:
        return str(key)
    except Exception:
        # A key whose text cannot be had (a tuple with an integer of very many digits, a faulty
        # __str__) is still written by its rule, and that is what counts.
        return type(key).__name__


class DistinctPaths:
    """Hands out distinct places below one container.

    Keys ``0`` and ``"0"`` of one dictionary would stand at one place, and so would their tensors;
    the later gets ``#2``. Places that differ here differ in the whole tree.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def child(self, key: str) -> str:
        """The place of the member ``key``."""
        return self._distinct(child(self._place, key))

    def beside(self, place: str, what: str) -> str:
        """The place of something that belongs to the member at ``place`` but is not it."""
        return self._distinct(f"{place}#{what}")

    def _distinct(self, wanted: str) -> str:
        place = wanted
        number = self._next.get(wanted, 2)
        while place in self._taken:
            place = f"{wanted}#{number}"
            number += 1
        self._next[wanted] = number
        self._taken.add(place)
        return place


def check_name(name: str) -> None:
    """Refuse a tensor's name that readers would refuse."""
    if len(name) > _MAX_NAME_BYTES // 4 and len(name.encode()) > _MAX_NAME_BYTES:
        raise LimitError(
            f"{shown(name)}: the name of this tensor would have {len(name.encode())} bytes of"
            f" UTF-8, and the limit is {_MAX_NAME_BYTES}",
            hint="Use shorter keys, or nest them less deeply.",
        )
