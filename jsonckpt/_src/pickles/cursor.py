"""The bytes of a pickle, read from one position on."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from mmap import mmap
from typing import Any, Final

from ..errors import FormatError, IncompleteCheckpointError

INT32: Final = struct.Struct("<i")
UINT16: Final = struct.Struct("<H")
UINT32: Final = struct.Struct("<I")
UINT64: Final = struct.Struct("<Q")
INT64: Final = struct.Struct("<q")
FLOAT64: Final = struct.Struct(">d")
_HINT: Final = "Copy the file again."


@dataclass(slots=True)
class Cursor:
    """Bytes, and a position in them.

    Attributes:
        data: the bytes.
        position: the next byte.
    """

    data: bytes | mmap
    position: int = 0

    def take(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            IncompleteCheckpointError: there are not so many.
        """
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise IncompleteCheckpointError(
                f"this pickle ends too early: {size} bytes were expected", hint=_HINT
            )
        found = self.data[self.position : end]
        self.position = end
        return found

    def number(self, form: struct.Struct) -> Any:
        """The next number."""
        end = self.position + form.size
        if end > len(self.data):
            raise IncompleteCheckpointError("this pickle ends too early", hint=_HINT)
        (found,) = form.unpack_from(self.data, self.position)
        self.position = end
        return found

    def line(self) -> bytes:
        """The text up to the next line feed."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise IncompleteCheckpointError("this pickle ends too early", hint=_HINT)
        return self.take(end + 1 - self.position)[:-1]

    def damaged(self, what: str) -> FormatError:
        """The error for bytes that make no sense."""
        return FormatError(f"not a pickle, or a damaged one (byte {self.position}: {what})")
