"""The values of tensor tags, member by member, with nothing believed: what a file says, checked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NoReturn, cast

from jsonckpt.errors import FormatError, quote
from jsonckpt.tree import Json

__all__ = ["Body", "malformed", "single_member"]

_INT64 = 2**63
_KNOWN_SHOWN = 10


def malformed(place: str, what: str) -> FormatError:
    """The error for what stands at ``place``, a JSON Pointer in the state, to be raised."""
    return FormatError(f"state {quote(place, 200)}: {what}")


def single_member(value: Json, place: str) -> tuple[str, Json]:
    """Name and value of the one member of a tagged object.

    Raises:
        FormatError: something else.

    >>> single_member({"$tensor": "/w"}, "/w")
    ('$tensor', '/w')
    """
    if type(value) is dict and len(value) == 1:
        return next(iter(value.items()))
    raise malformed(place, f"expected a tensor, found {quote(value)}")


@dataclass(frozen=True, slots=True)
class Body:
    """An object whose members are asked for one by one; others are ignored.

    >>> Body.of({"offset": 3}, "/x/$view").integer("offset")
    3
    """

    members: dict[str, Json]
    place: str

    @classmethod
    def of(cls, value: Json, place: str) -> Body:
        """The body that stands at ``place``.

        Raises:
            FormatError: not an object. So do the methods, for a member that is not as expected.
        """
        if type(value) is not dict:
            raise malformed(place, f"expected an object, found {quote(value)}")
        return cls(value, place)

    def value(self, member: str) -> Json:
        """Any value, ``None`` if the member is missing."""
        return self.members.get(member)

    def text(self, member: str, known: Collection[str] | None = None) -> str:
        """A string, one of ``known`` if given."""
        value = self.members.get(member)
        if type(value) is not str:
            self.refuse(member, "a string")
        if known is not None and value not in known:
            shown = [*known][:_KNOWN_SHOWN] + ["..."] * (len(known) > _KNOWN_SHOWN)
            self.refuse(member, f"one of {', '.join(shown)}")
        return value

    def boolean(self, member: str) -> bool:
        """``true`` or ``false``."""
        value = self.members.get(member)
        if type(value) is not bool:
            self.refuse(member, "true or false")
        return value

    def integer(self, member: str, low: int = 0, high: int = _INT64 - 1) -> int:
        """An integer from ``low`` to ``high``, both included."""
        value = self.members.get(member)
        if type(value) is not int or not low <= value <= high:
            self.refuse(member, f"an integer from {low} to {high}")
        return value

    def sizes(self, member: str) -> list[int]:
        """At most 64 integers from 0 to 2^63-1."""
        value = self.members.get(member)
        if (
            type(value) is not list
            or len(value) > 64
            or any(type(size) is not int or not 0 <= size < _INT64 for size in value)
        ):
            self.refuse(member, "at most 64 integers from 0 to 2^63-1")
        return cast("list[int]", value)

    def refuse(self, member: str, expected: str) -> NoReturn:
        """Raise for a member that is not as ``expected``."""
        found = quote(self.members[member]) if member in self.members else "nothing"
        raise malformed(f"{self.place}/{member}", f"expected {expected}, found {found}")
