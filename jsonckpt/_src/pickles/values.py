"""What stands in for the parts of a pickle that are not made: names, objects, undecoded strings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

from ..errors import FormatError, quote

#: Words for an :class:`Undecoded`.
UNDECODED: Final = "strings of Python 2 that are not in the encoding given"
_DAMAGED: Final = "a damaged pickle: "


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle imports. It stays a name.

    Attributes:
        module, name: as in the pickle, with the module's name of today.
    """

    module: str
    name: str

    @property
    def dotted(self) -> str:
        """Module and name."""
        return f"{self.module}.{self.name}"

    def __str__(self) -> str:
        return f"<{self.dotted}>"


class Unread:
    """An object that is not made: its class is not known to be harmless, or it is not complete.

    It is inert. It only keeps what the pickle says of it.

    Attributes:
        name: the dotted name of its class or function, or words for what it is.
        args: the arguments.
        state: what its attributes are set from, or None.
        items: what is put into it as into a list, set or dictionary. Keys and values alternate.
    """

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: list[Any] = []

    def __str__(self) -> str:
        return f"<{self.name}>"


class Undecoded(Unread):
    """A string of Python 2 whose bytes the encoding does not give back."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        super().__init__(UNDECODED)
        self.raw = raw


class Storage(Unread):
    """The memory of tensors. A state cannot hold it by itself."""

    __slots__ = ("dtype", "untyped")

    def __init__(self, untyped: torch.UntypedStorage, dtype: torch.dtype) -> None:
        super().__init__("a storage without a tensor")
        self.untyped = untyped
        self.dtype = dtype


def unfit(what: str) -> FormatError:
    """The error for arguments that a constructor does not take."""
    return FormatError(f"{_DAMAGED}{what}")


def reason_of(error: Exception) -> str:
    """What is wrong, for a longer message."""
    return getattr(error, "message", type(error).__name__).removeprefix(_DAMAGED)


def typed(value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    """The value, if its type is exactly one of these.

    Raises:
        FormatError: it is another.
    """
    if type(value) not in (kind if isinstance(kind, tuple) else (kind,)):
        raise unfit(f"{what} is of type {quote(type(value).__name__)}")
    return value
