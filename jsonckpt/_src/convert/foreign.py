"""Reading JSON that other programs wrote, as a state with tensors.

The lifted text (:mod:`lifting`) goes through ijson event by event; each finished
object is shown to :mod:`dialects`. Memory is some tens of MB whatever the size of
the file: values go to disk as they pass, and tensors lie in a mapped file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import DecimalException
from pathlib import Path
from typing import Any

import ijson
import torch

from ..errors import FormatError, IncompleteCheckpointError, JsonckptError, LimitError, quote
from ..format.limits import DEFAULT_LIMITS, exceeds
from ..format.pointer import escape, join
from . import dialects
from .lifting import ByteSource, Lifter, Numbers, Text
from .payloads import PICKLE_HEADS, Payload, TensorBuilder, base64_pieces
from .spool import Scratch, Spool

MAX_DEPTH = 200
#: Longest string, and text of a list, that becomes a Python object.
MAX_PLAIN = 16 << 20
#: Members of a JSON that hold a state dict of plain lists.
STATE_DICTS = frozenset({"state_dict", "model_state_dict", "model", "weights", "params"})


@dataclass(frozen=True, slots=True)
class ForeignOptions:
    """How to read other programs' JSON.

    Attributes:
        plain_lists: lists of numbers in the outermost object are tensors, too.
        tie: pairs of keys to make one tensor of when equal, besides the usual ones.
        shapes: for flattened lists, the shape by key or name.
        load_pickle: reads a file of ``torch.save`` that was embedded as base64; ``None`` refuses.
        limit: raw bytes that compressed data may unfold to.
        marks: values, names and brackets beside arrays of numbers; ``None`` for any number.
    """

    plain_lists: bool = False
    tie: Sequence[tuple[str, str]] = ()
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    load_pickle: Callable[[Path], Any] | None = None
    limit: int = 1 << 30
    marks: int | None = DEFAULT_LIMITS.marks


def read_foreign(
    source: ByteSource,
    directory: Path,
    options: ForeignOptions,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Any, list[str]]:
    """The state that a JSON text holds.

    Args:
        source: the text.
        directory: for temporary files.
        options: see there.
        advance: told of the bytes read.

    Returns:
        The state, and what was mended or assumed, one line each.

    Raises:
        FormatError, LimitError, IncompleteCheckpointError: what is wrong, and where.
        WriteError: no room for temporary files.
    """
    with Scratch(directory) as scratch, Spool(directory) as spool:
        reader = _Reader(spool, scratch, directory, options)
        state = reader.read(source, advance)
        return state, reader.notes


class _Reader:
    """Events in, a tree out."""

    def __init__(
        self, spool: Spool, scratch: Scratch, directory: Path, options: ForeignOptions
    ) -> None:
        self.notes: list[str] = []
        self._scratch = scratch
        self._directory = directory
        self._options = options
        self._builder = TensorBuilder(spool, scratch, options.limit)
        self._lifter: Lifter | None = None
        self._stack: list[Any] = []
        self._keys: list[str | None] = []
        self._root: list[Any] = []
        self._tensors = 0
        self._without_dtype = 0
        self._summary: str | None = None
        self._text_bytes = 0
        self._marks = 0

    def read(self, source: ByteSource, advance: Callable[[int], None]) -> Any:
        events = ijson.sendable_list()
        parser = ijson.basic_parse_coro(events, use_float=False)

        def take(text: bytes) -> None:
            _guarded(parser.send, text)
            # Each becomes some 60 bytes of Python, whatever it takes in a compressed file.
            self._marks += len(events)
            if exceeds(self._marks, self._options.marks):
                raise LimitError(
                    f"over {self._options.marks:,} values and brackets besides arrays of numbers",
                    hint="Pass --limit marks=none if it is meant.",
                )
            for event, value in events:
                self._event(event, value)
            del events[:]

        self._lifter = Lifter(source, self._scratch, take, advance)
        try:
            self._lifter.run()
            _guarded(parser.close)
            for event, value in events:
                self._event(event, value)
            if not self._root:
                raise IncompleteCheckpointError("there is no JSON text in the file")
            return self._finish(self._root[0])
        finally:
            # It refers to this reader by ``take``: in a circle, the tensors' mapped file would stay
            # open until the collector comes by.
            self._lifter = None

    def _event(self, event: str, value: Any) -> None:
        if event == "map_key":
            if value.startswith(self._lifter.key):  # type: ignore[union-attr]
                raise FormatError("a member name that is no name").at(tensor=self._pointer())
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
            self._place(self._interpret(thing) if thing and event == "end_map" else thing)
        elif event == "number":
            self._place(value if isinstance(value, int) else self._float(value))
        elif event == "string":
            self._place(self._string(value))
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
        """The name of the value that is being read."""
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

    def _string(self, value: str) -> Any:
        assert self._lifter is not None
        if value.startswith(self._lifter.key):
            reference = value[len(self._lifter.key) + 1 :]
            if not reference.isdigit():
                return float(reference)
            thing: Any = self._lifter.lifted.pop(int(reference))
            if isinstance(thing, Text) and thing.head.startswith(PICKLE_HEADS):
                return self._unpickle(thing)
            return thing
        if len(value) > 200 and value.startswith(PICKLE_HEADS):
            return self._unpickle(value)
        return value

    def _unpickle(self, text: str | Text) -> Any:
        if self._options.load_pickle is None:
            raise FormatError(
                "base64 of a file of torch.save: reading it may run code",
                tensor=self._pointer(),
                hint="Pass --unsafe-pickle if you trust whoever made it.",
            )
        with tempfile.NamedTemporaryFile(
            dir=self._directory, prefix=".jsonckpt-", suffix=".pt"
        ) as file:
            for piece in base64_pieces(text, self._scratch):
                file.write(piece)
            file.flush()
            if isinstance(text, Text):
                self._scratch.release()
            state = self._options.load_pickle(Path(file.name))
        self._tensors += 1
        return state

    def _interpret(self, thing: dict[str, Any]) -> Any:
        if thing.keys() == {"__complex__"} and _is_pair(thing["__complex__"]):
            return complex(*thing["__complex__"])
        if thing.keys() == _JSONPICKLE_SCALAR and str(thing["py/object"]).startswith("numpy."):
            return thing["value"]
        try:
            payload = dialects.recognise(thing)
            if payload is None:
                if self._summary is None and dialects.looks_like_summary(thing):
                    self._summary = self._pointer()
                return thing
            return self._tensor(payload)
        except JsonckptError as error:
            raise error.at(tensor=self._pointer()) from error.__cause__

    def _tensor(self, payload: Payload) -> Any:
        if not isinstance(payload.values, list | int | float | complex | Numbers | str | Text):
            if isinstance(payload.values, torch.Tensor) or not payload.dtype:
                return payload.values  # what was unpickled, inside a marker
            raise FormatError(
                f"tensor data that is neither numbers nor base64: {quote(payload.values)}"
            )
        if payload.dtype is None:
            self._without_dtype += 1
        self._tensors += 1
        return self._builder.build(payload)

    def _finish(self, root: Any) -> Any:
        if self._options.plain_lists and isinstance(root, dict):
            root = self._state_dict(root, "", everything=True)
        root = self._settle(root, "")
        if not self._tensors:
            raise self._no_tensors()
        if self._without_dtype:
            self.notes.append(
                f"{self._without_dtype} tensors came without a dtype: float32, int64 or bool, "
                "as torch.tensor would make of them"
            )
        dialects.mend_optimizers(root)
        for kept, tied in dialects.retie(root, self._options.tie):
            self.notes.append(f"tied again: {tied} is {kept}")
        return root

    def _settle(self, value: Any, pointer: str) -> Any:
        """Turn what is still lifted into tensors in state dicts, into Python values elsewhere."""
        if isinstance(value, Numbers):
            return self._list(value, pointer)
        if isinstance(value, Text):
            return self._text(value, pointer)
        if isinstance(value, list):
            for i, item in enumerate(value):
                if type(item) not in _SETTLED:
                    value[i] = self._settle(item, f"{pointer}/{i}")
            return value
        if isinstance(value, dict):
            for key, item in value.items():
                below = f"{pointer}/{escape(key)}"
                if key in STATE_DICTS and isinstance(item, dict):
                    item = self._state_dict(item, below)
                value[key] = self._settle(item, below)
        return value

    def _state_dict(
        self, thing: dict[str, Any], pointer: str, *, everything: bool = False
    ) -> dict[str, Any]:
        """A state dict whose tensors are plain lists, with tensors; others as they are."""
        lists = [key for key, value in thing.items() if _is_numeric(value)]
        scalars = [key for key, value in thing.items() if type(value) in (int, float)]
        inner = [key for key, value in thing.items() if isinstance(value, dict)]
        if everything or len(lists) + len(scalars) + len(inner) == len(thing):
            for key in [*lists, *(scalars if lists and not everything else [])]:
                name = f"{pointer}/{escape(key)}"
                shape = self._options.shapes.get(name, self._options.shapes.get(key))
                try:
                    payload = Payload(thing[key], shape=None if shape is None else list(shape))
                    thing[key] = self._tensor(payload)
                except JsonckptError as error:
                    error.hint = error.hint or "Flattened lists need their shapes: --shapes FILE."
                    raise error.at(tensor=name) from error.__cause__
            for key in inner:
                thing[key] = self._state_dict(thing[key], f"{pointer}/{escape(key)}")
        return thing

    def _list(self, numbers: Numbers, pointer: str) -> Any:
        size = numbers.text.length if numbers.text is not None else numbers.values.length
        self._count_plain(size, pointer)
        if numbers.text is None:
            return self._builder.python_list(numbers)
        text = b"".join(self._scratch.read(numbers.text))
        self._scratch.release()
        return json.loads(text)

    def _text(self, text: Text, pointer: str) -> str:
        self._count_plain(text.stretch.length, pointer)
        content = b"".join(self._scratch.read(text.stretch))
        self._scratch.release()
        try:
            value = json.loads(b'"' + content + b'"')
            value.encode()
        except (ValueError, UnicodeError) as error:
            raise FormatError(f"a string that is no JSON string ({quote(str(error))})") from error
        return str(value)

    def _count_plain(self, size: int, pointer: str) -> None:
        self._text_bytes += size
        if self._text_bytes > MAX_PLAIN:
            raise LimitError(
                f"more than {MAX_PLAIN:,} bytes of lists and strings outside tensors",
                tensor=pointer,
                hint="If the outermost lists are tensors, pass --plain-lists.",
            )

    def _no_tensors(self) -> FormatError:
        if self._summary is not None:
            return FormatError(dialects.NO_VALUES, tensor=self._summary)
        return FormatError(
            "no tensor was found in this JSON",
            hint="Lists of numbers become tensors under state_dict, model, weights, or at the "
            "outermost level with --plain-lists.",
        )


_SETTLED = frozenset({str, int, float, bool, type(None)})
_JSONPICKLE_SCALAR = frozenset({"py/object", "dtype", "value"})


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(x) in (int, float) for x in value)
    )


def _is_numeric(value: object) -> bool:
    """Whether this is a list of numbers, nested or not."""
    while isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    if isinstance(value, list):
        return all(type(item) in (int, float, bool) for item in value)
    return isinstance(value, Numbers)


def _guarded(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call into the parser; what it raises becomes an error of this package."""
    try:
        return call(*arguments)
    except (ijson.JSONError, DecimalException, UnicodeError, ValueError, OverflowError) as error:
        if isinstance(error, JsonckptError):
            raise
        # ijson calls every error of its parser incomplete JSON.
        if "premature EOF" in str(error) or call.__name__ == "close":
            raise IncompleteCheckpointError("the JSON text ends too early") from error
        raise FormatError(f"this is not JSON ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return quote(str(error).strip().split("\n")[0])
