"""Reads JSON of other programs as a state with tensors.

:mod:`lift` takes the long parts out of the text. ijson makes events of the rest, and
:mod:`dialects` looks at each finished object. Memory stays at some tens of MB for files of any
size: values go to disk as they are read, and tensors are in a mapped file.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import DecimalException
from pathlib import Path
from typing import Any

import ijson

from ..errors import FormatError, IncompleteCheckpointError, JsonckptError, LimitError, quote
from ..format.limits import exceeds
from ..format.pointer import join
from ..json_stream.encoded import NPY_HEAD
from ..json_stream.lift import Lifter
from ..json_stream.scratch import References, Scratch
from ..json_stream.spooled import tensor_spool
from ..json_stream.text_reader import ByteSource
from .settle import settled
from .tensor_values import PICKLE_HEADS, TensorBuilder
from .values import ForeignOptions, Values

MAX_DEPTH = 200


def read_foreign(
    source: ByteSource,
    directory: Path,
    options: ForeignOptions,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Any, list[str]]:
    """Read the state in a JSON text.

    Args:
        source: the text.
        directory: for temporary files.
        options: how to read it.
        advance: gets the number of bytes of each block that was read.

    Returns:
        The state, and notes on what was repaired or assumed.

    Raises:
        FormatError, LimitError, IncompleteCheckpointError: the text is refused.
        WriteError: no room for temporary files.
    """
    references = References()
    with Scratch(directory) as scratch, tensor_spool(directory) as spool:
        builder = TensorBuilder(spool, scratch, options.limit, options.floats)
        values = Values(builder, scratch, directory, options)
        tree = _Tree(references, values)
        Lifter(source, scratch, references, tree.take, advance).run()
        return settled(tree.close(), values), values.notes


class _Tree:
    """Builds the tree of Python values from the events of ijson."""

    def __init__(self, references: References, values: Values) -> None:
        self._references = references
        self._values = values
        #: The beginnings of references and of embedded files of ``torch.save``.
        self._marked = (references.key, NPY_HEAD, *PICKLE_HEADS)
        self._events = ijson.sendable_list()
        self._parser = ijson.basic_parse_coro(self._events, use_float=False)
        self._marks = 0
        self._stack: list[Any] = []
        self._keys: list[str | None] = []
        self._root: list[Any] = []

    def take(self, text: bytes) -> None:
        """Parse the next piece of text."""
        _guarded(self._parser.send, text)
        self._finish_events()

    def close(self) -> Any:
        """Return the whole tree, after all text."""
        _guarded(self._parser.close)
        self._finish_events()
        if not self._root:
            raise IncompleteCheckpointError("there is no JSON text in the file")
        return self._root[0]

    def _finish_events(self) -> None:
        # Each event becomes some 60 bytes of Python objects, even from a few compressed bits.
        self._marks += len(self._events)
        most = self._values.options.marks
        if exceeds(self._marks, most):
            raise LimitError(
                f"over {most:,} values and brackets besides arrays of numbers",
                hint="Pass --limit marks=none if it is meant.",
            )
        for event, value in self._events:
            self._event(event, value)
        del self._events[:]

    def _event(self, event: str, value: Any) -> None:
        if event == "map_key":
            if value.startswith(self._references.key):
                raise FormatError("a number is the name of a member").at(tensor=self._pointer())
            if value in self._stack[-1]:
                raise FormatError(f"the member {quote(value)} stands twice in one object").at(
                    tensor=self._pointer()
                )
            self._keys[-1] = value
        elif event in ("start_map", "start_array"):
            if len(self._stack) >= MAX_DEPTH:
                raise LimitError(f"nested deeper than {MAX_DEPTH} levels")
            self._stack.append({} if event == "start_map" else [])
            self._keys.append(None)
        elif event in ("end_map", "end_array"):
            thing = self._stack.pop()
            self._keys.pop()
            if thing:
                made = self._values.of_object if event == "end_map" else self._values.of_array
                thing = made(thing, self._pointer)
            self._place(thing)
        elif event == "number":
            self._place(value if isinstance(value, int) else self._float(value))
        elif event == "string":
            if value.startswith(self._marked):
                value = self._values.of_string(self._references.take(value), self._pointer)
            self._place(value)
        else:
            self._place(value)

    def _place(self, value: Any) -> None:
        if not self._stack:
            self._root.append(value)
        elif isinstance(self._stack[-1], dict):
            self._stack[-1][self._keys[-1]] = value
        else:
            self._stack[-1].append(value)

    def _pointer(self) -> str:
        """The name of the current value."""
        pointer = ""
        for container, key in zip(self._stack, self._keys):
            step = str(len(container)) if isinstance(container, list) else key
            if step is not None:
                pointer = join(pointer, step)
        return pointer

    def _float(self, value: Any) -> float:
        number = _guarded(float, value)
        if number in (float("inf"), float("-inf")):
            raise FormatError(f"the number {quote(str(value))} is too large").at(
                tensor=self._pointer()
            )
        return float(number)


def _guarded(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call the parser. Its errors become errors of this package."""
    try:
        return call(*arguments)
    except (ijson.JSONError, DecimalException, UnicodeError, ValueError, OverflowError) as error:
        if isinstance(error, JsonckptError):
            raise
        # ijson raises IncompleteJSONError for every error, so the message tells.
        if "premature EOF" in str(error) or call.__name__ == "close":
            raise IncompleteCheckpointError("the JSON text ends too early") from error
        raise FormatError(f"not JSON ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return quote(str(error).strip().split("\n")[0])
