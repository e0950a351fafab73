"""What was lifted out of a text, as Python values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, LimitError, quote
from .number_array import BINARY, Kind
from .scratch import Numbers, Ragged, Scratch, Text

#: The most bytes of text that become Python values.
MAX_PLAIN: Final = 16 << 20
#: Values of one kind each, in order.
Pieces = Iterator[tuple[Kind, npt.NDArray[Any]]]


def number_pieces(numbers: Numbers, scratch: Scratch) -> Pieces:
    """The values of lifted numbers, in pieces. They stay lifted."""
    data = chain.from_iterable(scratch.read(*stretch) for stretch in numbers.values)
    left = b""
    for run in numbers.runs:
        wanted = run.count * 8
        while wanted:
            left = left or next(data)
            piece, left = left[:wanted], left[wanted:]
            wanted -= len(piece)
            yield run.kind, np.frombuffer(piece, BINARY[run.kind])


class PlainValues:
    """Makes Python values of what was lifted, up to :data:`MAX_PLAIN` bytes of text in all.

    Args:
        scratch: where the values are.
        hint: what the user can do if they are more.
    """

    def __init__(self, scratch: Scratch, hint: str | None = None) -> None:
        self._scratch = scratch
        self._hint = hint
        self._bytes = 0

    def take(self, lifted: Numbers | Ragged | Text, pointer: str) -> Any:
        """The value of what stands at ``pointer``. It is released.

        Raises:
            FormatError: the text is not JSON.
            LimitError: too many bytes of such values.
        """
        if isinstance(lifted, Text):
            size = lifted.stretch.length
        elif lifted.text is not None:
            size = lifted.text.length
        else:
            size = lifted.nbytes
        self._bytes += size
        if self._bytes > MAX_PLAIN:
            raise LimitError(
                f"more than {MAX_PLAIN:,} bytes of lists and strings outside tensors",
                tensor=pointer,
                hint=self._hint,
            )
        value = self._text(lifted) if isinstance(lifted, Text) else self._list(lifted)
        self.release(lifted)
        return value

    def peek(self, values: Any) -> Any:
        """The list that lifted numbers stand for. They stay lifted. A list is returned as it is.

        ``None`` for numbers that are too many for a list.
        """
        if not isinstance(values, Numbers | Ragged):
            return values
        if isinstance(values, Numbers) and values.nbytes > MAX_PLAIN:
            return None
        return self._list(values)

    def release(self, values: Any) -> None:
        """Release what was lifted. Other values have nothing to release."""
        if isinstance(values, Numbers | Ragged | Text):
            self._scratch.release(len(values.values) if isinstance(values, Numbers) else 1)

    def _list(self, lifted: Numbers | Ragged) -> Any:
        if isinstance(lifted, Ragged):
            return lifted.loads(self._scratch)
        if lifted.text is not None:
            return json.loads(b"".join(self._scratch.read(*lifted.text)))
        flat: list[Any] = []
        for kind, array in number_pieces(lifted, self._scratch):
            flat += (array.astype(np.bool_) if kind == "bool" else array).tolist()
        if not flat:
            return _empty_list(lifted.shape)
        for size in reversed(lifted.shape[1:]):
            flat = [flat[i : i + size] for i in range(0, len(flat), size)]
        return flat

    def _text(self, text: Text) -> str:
        content = b"".join(self._scratch.read(*text.stretch))
        try:
            value = json.loads(b'"' + content + b'"')
            value.encode()
        except (ValueError, UnicodeError) as error:
            raise FormatError(f"not a JSON string ({quote(str(error))})") from error
        return str(value)


def _empty_list(shape: tuple[int, ...]) -> list[Any]:
    return [_empty_list(shape[1:]) for _ in range(shape[0])] if shape else []
