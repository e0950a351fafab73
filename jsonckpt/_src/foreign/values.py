"""Makes tensors and Python values of the objects, lists and strings in foreign JSON."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import FormatError, JsonckptError, LimitError, quote
from ..format.limits import DEFAULT_LIMITS
from ..json_stream.encoded import byte_pieces, is_npy
from ..json_stream.plain_values import PlainValues
from ..json_stream.scratch import Numbers, Ragged, Scratch, Text, joined
from ..storage.spool import PREFIX
from . import dialects, jsonpickle
from .payloads import Payload
from .tensor_values import PICKLE_HEADS, TensorBuilder, check_facts


@dataclass(frozen=True, slots=True)
class ForeignOptions:
    """How to read the JSON of other programs.

    Attributes:
        plain_lists: the lists of numbers in the outermost object are tensors.
        tensors: names or globs of more lists and numbers that are tensors.
        tie: more pairs of keys whose tensors are tied again if they are equal.
        shapes: the shapes of flattened lists, by key or name. These lists are tensors.
        floats: the dtype of floating-point tensors whose dtype the text does not say.
        load_pickle: reads a file of ``torch.save`` that is embedded as base64. ``None`` refuses it.
        limit: the most bytes that compressed data may decompress to.
        marks: the most values, names and brackets besides arrays of numbers. ``None`` is no limit.
    """

    plain_lists: bool = False
    tie: Sequence[tuple[str, str]] = ()
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    tensors: Sequence[str] = ()
    floats: torch.dtype = torch.float32
    load_pickle: Callable[[Path], Any] | None = None
    limit: int = 1 << 30
    marks: int | None = DEFAULT_LIMITS.marks


class Values:
    """Makes tensors and Python values of the parsed objects, and counts them.

    Attributes:
        notes: what was repaired or assumed, one line each.
        tensors: the number of tensors.
        without_dtype: the number of tensors without a dtype.
        summary: the name of the first object that may be a tensor without values.
        stayed: the names of lists that may be tensors, and stay lists.
        irregular: the names of lists of numbers that cannot be tensors, as their rows differ.
        names: the names that stand beside the values of tensors, by the ``id`` of the tensor.
        plain: makes Python values of what was lifted and is no tensor.
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
        self.stayed: list[str] = []
        self.irregular: list[str] = []
        self.names: dict[int, str] = {}
        self.jsonpickle = False
        self.plain = PlainValues(scratch, "If it is a tensor, pass --tensors with its name.")
        self._builder = builder
        self._scratch = scratch
        self._directory = directory

    def of_string(self, value: Any, pointer: Callable[[], str]) -> Any:
        """The array in an embedded ``.npy`` file, or the state in one of ``torch.save``.

        Other values are returned unchanged.

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

    def of_array(self, items: list[Any], pointer: Callable[[], str]) -> Any:
        """Tensors with names become an object. Lifted parts of an array become the array."""
        named = dialects.by_name(items, self.names) if self.names else None
        if named is None:
            return joined(items)
        self.notes.append(
            f"the list {pointer() or 'of all tensors'} became an object: its tensors have names"
        )
        return named

    def tensor(self, payload: Payload) -> Any:
        """The tensor of a payload."""
        if isinstance(payload.values, torch.Tensor):
            # It was unpickled already, or is a .npy file.
            check_facts(payload, payload.values.dtype, payload.values.shape)
            return payload.values
        if not isinstance(
            payload.values, list | int | float | complex | Numbers | Ragged | str | Text
        ):
            raise FormatError(
                f"tensor data that is neither numbers nor base64: {quote(payload.values)}"
            )
        tensor = self._builder.build(payload)
        self.without_dtype += not isinstance(payload.dtype, str) and not is_npy(payload.values)
        self.tensors += 1
        if payload.name is not None:
            self.names[id(tensor)] = payload.name
        return tensor

    def tensor_or_list(self, payload: Payload, pointer: str) -> Any:
        """The tensor of a payload, or the values in it where no tensor can be made of them."""
        numbers = payload.values if isinstance(payload.values, Numbers) else None
        if numbers is not None:
            self._scratch.hold_again(len(numbers.values))  # the builder releases them in any case
        try:
            tensor = self._builder.build(payload)
        except (FormatError, LimitError) as error:
            self.stayed.append(f"{pointer} ({error.message})")
            return payload.values if numbers is None else self.plain.take(numbers, pointer)
        if numbers is not None:
            self._scratch.release(len(numbers.values))
        self.without_dtype += 1
        self.tensors += 1
        return tensor

    @property
    def digits_lost(self) -> int:
        """The number of tensors whose numbers have more digits than their dtype holds."""
        return self._builder.digits_lost


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(x) in (int, float) for x in value)
    )
