"""Makes the tensors that the user names, before anything is decided."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import JsonckptError
from ..format.pointer import join
from ..json_stream.scratch import Numbers, Ragged
from ..state.selector import refuse_unmatched, selector
from .default_dtype import dtype_of_array
from .facts import typed_array
from .payloads import Payload
from .survey import Array, Key, Made, shape_of
from .values import Values

_NUMBERS = frozenset({int, float, bool, complex})


class Asked:
    """Makes the tensors that the user names, before anything is decided."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._shapes = values.options.shapes
        patterns = list(values.options.tensors)
        self._chosen, self._unmatched = selector(patterns or [], None)
        self._names: list[str] = []

    def make(self, box: dict[str, Any]) -> None:
        """Make those in the only member of ``box``.

        Raises:
            FormatError: one cannot be a tensor.
            StateMismatchError: a pattern matches no list and no number.
        """
        patterns = self._values.options.tensors
        if not patterns and not self._shapes:
            return
        found = list(self._find(box, "", "", box[""]))
        if patterns:
            missing = self._unmatched(self._names)
            refuse_unmatched([("tensors", name) for _, name in missing], self._names, option="--")
        arrays = [shape_of(value) for *_, value in found]
        floats = any(type(value) is float for *_, value in found) or any(
            isinstance(array, Array) and array.floats for array in arrays
        )
        for thing, key, name, value in found:
            self._one(thing, key, name, value, floats)

    def _find(self, thing: Any, key: Key, name: str, value: Any) -> Iterator[tuple[Any, ...]]:
        kind = type(value)
        if kind is dict and typed_array(value) is not None and self._chosen(name):
            self._names.append(name)
            yield thing, key, name, list(value.values())
        elif kind is dict:
            for below, item in value.items():
                yield from self._find(value, below, join(name, below), item)
        elif kind is Ragged:
            items = self._values.plain.peek(value)
            below = list(self._find(thing, key, name, items))
            if below:
                self._values.plain.release(value)
                thing[key] = items
            yield from below
        elif kind is list or kind is Numbers or kind in _NUMBERS:
            shape = shape_of(value) if kind is list else None
            if kind is list and not isinstance(shape, Array):
                for index, item in enumerate(value):
                    yield from self._find(value, index, f"{name}/{index}", item)
                return
            self._names.append(name)
            sized = kind not in _NUMBERS and (name in self._shapes or key in self._shapes)
            if sized or self._chosen(name):
                yield thing, key, name, value

    def _one(self, thing: Any, key: Key, name: str, value: Any, floats: bool) -> None:
        shape = self._shapes.get(name, self._shapes.get(str(key)))
        found = shape_of(value) if type(value) not in _NUMBERS else None
        if not isinstance(found, Array):
            found = Array((), type(value) is float, type(value) is bool)
        dtype = dtype_of_array(str(key), found, floats, self._values.options.floats)
        size = None if shape is None or type(value) in _NUMBERS else list(shape)
        try:
            thing[key] = Made(self._values.tensor(Payload(value, dtype, shape=size)))
        except JsonckptError as error:
            error.hint = error.hint or "Flattened lists need their shapes: --shapes FILE."
            raise error.at(tensor=name) from error.__cause__
