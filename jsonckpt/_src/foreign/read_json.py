"""Reads JSON of other programs as a state with tensors.

:mod:`lift` takes the long parts out of the text. ijson makes events of the rest, and
:mod:`dialects` looks at each finished object. Memory stays at some tens of MB for files of any
size: values go to disk as they are read, and tensors are in a mapped file.
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
from ..format.pointer import join
from ..storage.spool import PREFIX
from . import dialects, jsonpickle
from .encoded import NPY_HEAD, byte_pieces, is_npy
from .lift import Lifter
from .payloads import Payload
from .scratch import Numbers, Ragged, References, Scratch, Text, joined, tensor_spool
from .tensor_values import PICKLE_HEADS, TensorBuilder, check_facts
from .text_reader import ByteSource

MAX_DEPTH = 200
#: Longest string, and text of a list, that becomes a Python object.
MAX_PLAIN = 16 << 20
#: Members that may hold a state dict of plain lists.
STATE_DICTS = frozenset({"state_dict", "model_state_dict", "model", "weights", "params"})


@dataclass(frozen=True, slots=True)
class ForeignOptions:
    """How to read the JSON of other programs.

    Attributes:
        plain_lists: lists of numbers in the outermost object are tensors, too.
        tie: more pairs of keys whose tensors are tied again if they are equal.
        shapes: the shapes of flattened lists, by key or name.
        load_pickle: reads a file of ``torch.save`` that is embedded as base64. ``None`` refuses it.
        limit: the most bytes that compressed data may decompress to.
        marks: the most values, names and brackets besides arrays of numbers. ``None`` is no limit.
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
        values = _Values(TensorBuilder(spool, scratch, options.limit), scratch, directory, options)
        tree = _Tree(references, values)
        Lifter(source, scratch, references, tree.take, advance).run()
        return _settled(tree.close(), values), values.notes


class _Tree:
    """Builds the tree of Python values from the events of ijson."""

    def __init__(self, references: References, values: _Values) -> None:
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
                thing = (
                    self._values.of_object(thing, self._pointer)
                    if event == "end_map"
                    else self._values.of_array(thing, self._pointer)
                )
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


class _Values:
    """Makes tensors and Python values of the parsed objects, and counts them.

    Attributes:
        notes: what was repaired or assumed, one line each.
        tensors: the number of tensors.
        without_dtype: the number of tensors without a dtype.
        summary: the name of the first object that may be a tensor without values.
        names: the names that stand beside the values of tensors, by the ``id`` of the tensor.
        jsonpickle: True if jsonpickle wrote an object of the text.
    """

    def __init__(
        self, builder: TensorBuilder, scratch: Scratch, directory: Path, options: ForeignOptions
    ) -> None:
        self.options = options
        self.notes: list[str] = []
        self.tensors = 0
        self.without_dtype = 0
        self.summary: str | None = None
        self.names: dict[int, str] = {}
        self.jsonpickle = False
        self._builder = builder
        self._scratch = scratch
        self._directory = directory
        self._plain_bytes = 0

    def of_string(self, value: Any, pointer: Callable[[], str]) -> Any:
        """The state in an embedded file of ``torch.save``. Other values are returned unchanged.

        Args:
            value: a string, or something that was lifted.
            pointer: gives its name.
        """
        if is_npy(value):
            try:
                return self.tensor(Payload(value))
            except JsonckptError as error:
                raise error.at(tensor=pointer()) from error.__cause__
        head = value.head if isinstance(value, Text) else value if isinstance(value, str) else ""
        if not head.startswith(PICKLE_HEADS) or (isinstance(value, str) and len(value) <= 200):
            return value
        if self.options.load_pickle is None:
            raise FormatError(
                "base64 of a file of torch.save: reading it may run code",
                tensor=pointer(),
                hint="Pass --unsafe-pickle if you trust whoever made it.",
            )
        with tempfile.NamedTemporaryFile(dir=self._directory, prefix=PREFIX, suffix=".pt") as file:
            for piece in byte_pieces(value, self._scratch):
                file.write(piece)
            file.flush()
            if isinstance(value, Text):
                self._scratch.release()
            state = self.options.load_pickle(Path(file.name))
        self.tensors += 1
        return state

    def of_object(self, thing: dict[str, Any], pointer: Callable[[], str]) -> Any:
        """The tensor or number that an object stands for, or the object itself."""
        if thing.keys() == {"__complex__"} and _is_pair(thing["__complex__"]):
            return complex(*thing["__complex__"])
        if not self.jsonpickle and any(key.startswith(jsonpickle.TAG) for key in thing):
            self.jsonpickle = True
        try:
            payload = dialects.recognise(thing)
            if payload is not None:
                return self.tensor(payload)
        except JsonckptError as error:
            raise error.at(tensor=pointer()) from error.__cause__
        if self.summary is None and dialects.looks_like_summary(thing):
            self.summary = pointer()
        return thing

    def tensor(self, payload: Payload) -> Any:
        """The tensor of a payload."""
        if not isinstance(
            payload.values, list | int | float | complex | Numbers | Ragged | str | Text
        ):
            if isinstance(payload.values, torch.Tensor):
                # It was unpickled already, or is a .npy file.
                check_facts(payload, payload.values.dtype, payload.values.shape)
                return payload.values
            raise FormatError(
                f"tensor data that is neither numbers nor base64: {quote(payload.values)}"
            )
        tensor = self._builder.build(payload)
        self.without_dtype += payload.dtype is None and not is_npy(payload.values)
        self.tensors += 1
        if payload.name is not None:
            self.names[id(tensor)] = payload.name
        return tensor

    def of_array(self, items: list[Any], pointer: Callable[[], str]) -> Any:
        """Tensors with names become an object. Lifted parts of an array become the array."""
        named = dialects.by_name(items, self.names) if self.names else None
        if named is None:
            return joined(items)
        self.notes.append(
            f"the list {pointer() or 'of all tensors'} became an object: its tensors have names"
        )
        return named

    def of_list(self, numbers: Numbers | Ragged, pointer: str) -> Any:
        """Lifted numbers outside tensors, as a list."""
        if isinstance(numbers, Ragged):
            self._count_plain(numbers.text.length, pointer)
            return numbers.loads(self._scratch)
        kept = numbers.text
        self._count_plain(numbers.nbytes if kept is None else kept.length, pointer)
        if kept is None:
            return self._builder.python_list(numbers)
        text = b"".join(self._scratch.read(*kept))
        self._scratch.release()
        return json.loads(text)

    def of_text(self, text: Text, pointer: str) -> str:
        """A lifted string outside tensors."""
        self._count_plain(text.stretch.length, pointer)
        content = b"".join(self._scratch.read(*text.stretch))
        self._scratch.release()
        try:
            value = json.loads(b'"' + content + b'"')
            value.encode()
        except (ValueError, UnicodeError) as error:
            raise FormatError(f"not a JSON string ({quote(str(error))})") from error
        return str(value)

    def _count_plain(self, size: int, pointer: str) -> None:
        self._plain_bytes += size
        if self._plain_bytes > MAX_PLAIN:
            raise LimitError(
                f"more than {MAX_PLAIN:,} bytes of lists and strings outside tensors",
                tensor=pointer,
                hint="If the outermost lists are tensors, pass --plain-lists.",
            )


def _settled(root: Any, values: _Values) -> Any:
    """Replace what is still lifted in the tree, and repair what JSON lost."""
    if values.jsonpickle:
        root = jsonpickle.Restorer(values.tensor, values.of_list).restore(root)
    if values.options.plain_lists and isinstance(root, dict):
        _make_state_dict(root, "", values, everything=True)
    root = _settle(root, "", values)
    if not values.tensors:
        if values.summary is not None:
            raise FormatError(dialects.NO_VALUES, tensor=values.summary)
        raise FormatError(
            "no tensor was found in this JSON",
            hint="Lists of numbers become tensors under state_dict, model, weights, or at the "
            "outermost level with --plain-lists.",
        )
    if values.without_dtype:
        values.notes.append(
            f"{values.without_dtype} tensors came without a dtype: float32, int64 or bool, "
            "as torch.tensor would make of them"
        )
    dialects.mend_optimizers(root)
    for kept, tied in dialects.retie(root, values.options.tie):
        values.notes.append(f"tied again: {tied} is {kept}")
    return root


def _settle(value: Any, pointer: str, values: _Values) -> Any:
    """Make tensors of what is still lifted in state dicts, and Python values of the rest."""
    if isinstance(value, Numbers | Ragged):
        return values.of_list(value, pointer)
    if isinstance(value, Text):
        return values.of_text(value, pointer)
    if isinstance(value, list):
        for index, item in enumerate(value):
            if type(item) not in _SETTLED:
                value[index] = _settle(item, f"{pointer}/{index}", values)
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(item) not in _SETTLED:
                below = join(pointer, key)
                if key in STATE_DICTS and isinstance(item, dict):
                    _make_state_dict(item, below, values)
                value[key] = _settle(item, below, values)
    return value


def _make_state_dict(
    thing: dict[str, Any], pointer: str, values: _Values, *, everything: bool = False
) -> None:
    """Make tensors of the plain lists in a state dict, in place.

    Without ``everything``, an object with other values is not a state dict and stays unchanged.
    """
    lists = [key for key, value in thing.items() if _is_numeric(value)]
    scalars = [key for key, value in thing.items() if type(value) in (int, float)]
    inner = [key for key, value in thing.items() if isinstance(value, dict)]
    if not everything and len(lists) + len(scalars) + len(inner) != len(thing):
        return
    for key in [*lists, *(scalars if lists and not everything else [])]:
        name = join(pointer, key)
        shape = values.options.shapes.get(name, values.options.shapes.get(key))
        try:
            payload = Payload(thing[key], shape=None if shape is None else list(shape))
            thing[key] = values.tensor(payload)
        except JsonckptError as error:
            error.hint = error.hint or "Flattened lists need their shapes: --shapes FILE."
            raise error.at(tensor=name) from error.__cause__
    for key in inner:
        _make_state_dict(thing[key], join(pointer, key), values)


_SETTLED = frozenset({str, int, float, bool, type(None)})


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(x) in (int, float) for x in value)
    )


def _is_numeric(value: object) -> bool:
    """True for a list of numbers, nested or flat."""
    while isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    if isinstance(value, list):
        return all(type(item) in (int, float, bool) for item in value)
    return isinstance(value, Numbers)


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
