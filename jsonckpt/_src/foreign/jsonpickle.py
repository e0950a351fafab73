"""Restores what jsonpickle writes: arrays, their views and scalars, tuples, and shared objects.

jsonpickle numbers its objects in the order of the text, and writes ``{"py/id": n}`` where an object
stands again. So the whole tree is walked in this order, once everything is read.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from ..errors import FormatError, JsonckptError, quote
from ..format.pointer import join
from ..json_stream.encoded import encoded, head_of
from ..json_stream.scratch import Numbers, Ragged, Text
from ..tensors.pieces import over
from .payloads import Payload, dtype_named, parse_shape

#: How jsonpickle's own keys begin.
TAG: Final = "py/"
_HINT = "Write the file again without references: jsonpickle.encode(state, make_refs=False)."
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
#: Members whose value is a list that jsonpickle does not number.
_BARE_LISTS = ("py/seq", "py/newargsex", "py/reduce", "py/set", "py/iterator")


class _Dtype(NamedTuple):
    """A dtype of NumPy that was pickled."""

    name: str


class Restorer:
    """Walks a tree and restores in it what jsonpickle wrote, in place.

    Args:
        make: makes the tensor of a payload.
        plain: makes the Python list of lifted numbers, which stand at the given name.
    """

    def __init__(
        self, make: Callable[[Payload], Any], plain: Callable[[Numbers | Ragged, str], list[Any]]
    ) -> None:
        self._make = make
        self._plain = plain
        self._count = 0
        self._objects: dict[int, Any] = {}
        self._open: set[int] = set()
        self._pickled_root = False

    def restore(self, value: Any, pointer: str = "") -> Any:
        """The restored value.

        Raises:
            FormatError: an array in an unknown form, or a reference that cannot be resolved.
        """
        if self._count == 0 and isinstance(value, dict):
            self._pickled_root = any(key.startswith(TAG) for key in value)
        if isinstance(value, Ragged):
            value = self._plain(value, pointer)
        if isinstance(value, Numbers):
            self._count += _lists_in(value.shape)
        elif isinstance(value, list):
            return self._container(value, list(enumerate(value)), pointer)
        elif isinstance(value, dict):
            try:
                return self._object(value, pointer)
            except JsonckptError as error:
                raise error.at(tensor=pointer) from error.__cause__
        return value

    def _object(self, thing: dict[str, Any], pointer: str) -> Any:
        if "py/tuple" in thing:
            items = thing["py/tuple"]
            if isinstance(items, Numbers):
                return tuple(self._plain(items, pointer))
            return tuple(self._bare(items, pointer)) if isinstance(items, list) else thing
        if "py/id" in thing:
            return self._shared(thing)
        if "py/object" in thing:
            kind = thing["py/object"]
            if kind == "numpy.ndarray":
                return self._array(thing, pointer)
            if kind == "builtins.complex" and isinstance(thing.get("py/newargs"), dict):
                self._count += 1
                parts = thing["py/newargs"].get("py/tuple")
                return complex(*parts) if _is_pair(parts) else thing
            if str(kind).startswith("numpy.") and thing.keys() == {"py/object", "dtype", "value"}:
                self._count += 1
                return self.restore(thing["value"], pointer)
        if "py/reduce" in thing:
            return self._reduced(thing, pointer)
        if any(key in thing for key in ("py/type", "py/function", "py/b64", "py/b85")):
            return thing
        if "py/set" in thing:
            self._members(thing, pointer)
            return thing
        return self._container(thing, list(thing.items()), pointer)

    def _container(self, thing: Any, members: list[tuple[Any, Any]], pointer: str) -> Any:
        """Restore the items of a list, or the members of an object, which has a number."""
        number = self._number(thing)
        self._open.add(number)
        for key, item in members:
            thing[key] = self._member(key, item, pointer)
        self._open.discard(number)
        return thing

    def _members(self, thing: dict[str, Any], pointer: str) -> None:
        for key, item in thing.items():
            thing[key] = self._member(key, item, pointer)

    def _member(self, key: Any, item: Any, pointer: str) -> Any:
        below = join(pointer, str(key))
        if key in _BARE_LISTS and isinstance(item, list):
            return self._bare(item, below)
        return self.restore(item, below)

    def _bare(self, items: list[Any], pointer: str) -> list[Any]:
        """Restore the items of a list that has no number of its own."""
        for index, item in enumerate(items):
            items[index] = self.restore(item, f"{pointer}/{index}")
        return items

    def _number(self, thing: Any) -> int:
        self._objects[self._count] = thing
        self._count += 1
        return self._count - 1

    def _shared(self, thing: dict[str, Any]) -> Any:
        """The object that a reference means. One that contains the reference stays a reference."""
        number = thing["py/id"]
        target = self._objects.get(number) if type(number) is int else None
        tagged = isinstance(target, dict) and any(key.startswith(TAG) for key in target)
        # A plain object or list that holds the text of jsonpickle counts from elsewhere. Then a
        # number most likely means something that nobody shares: plain values.
        plain = isinstance(target, dict | list) and not (tagged or self._pickled_root)
        if target is None or plain:
            raise FormatError(
                f"a jsonpickle reference to object {quote(number)}, which is not a known array",
                hint=_HINT,
            )
        return thing if number in self._open else target

    def _array(self, thing: dict[str, Any], pointer: str) -> torch.Tensor:
        """An array as the handlers of ``jsonpickle.ext.numpy`` write it."""
        number = self._number(None)
        dtype, shape = thing.get("dtype"), thing.get("shape")
        if isinstance(shape, dict):
            shape = shape.get("py/tuple", shape)
        if "base" in thing:
            base = self.restore(thing["base"], join(pointer, "base"))
            # Values beside a base are for people. jsonpickle numbers their lists all the same.
            self.restore(thing.get("values"))
            tensor = _view(base, thing, dtype, shape)
        elif "values" not in thing:
            raise FormatError("a jsonpickle array without values")
        else:
            values, compressed = self.restore(thing["values"], join(pointer, "values")), None
            if isinstance(values, str | Text):
                # jsonpickle compresses with zlib by default. That begins with "eJ" in base64.
                compressed = head_of(values).startswith("eJ")
            tensor = self._make(
                Payload(
                    values,
                    dtype,
                    shape,
                    order="F" if thing.get("order") == "F" else "C",
                    byteorder=">" if thing.get("byteorder") == ">" else "<",
                    compressed=compressed,
                )
            )
        self._objects[number] = tensor
        return tensor

    def _reduced(self, thing: dict[str, Any], pointer: str) -> Any:
        """An array, a scalar or a dtype as Python's pickle describes it. Else the object."""
        number = self._number(None)
        parts = thing["py/reduce"]
        if not isinstance(parts, list):
            return thing
        self._open.add(number)
        parts = self._bare(parts, join(pointer, "py/reduce"))
        self._open.discard(number)
        found: Any = thing
        function = parts[0] if parts and isinstance(parts[0], dict) else {}
        if function.get("py/type") == "numpy.dtype":
            found = _dtype(parts)
        elif function.get("py/function") in _RECONSTRUCT:
            found = self._make(_pickled_array(parts))
        elif function.get("py/function") in _SCALAR:
            dtype, raw = _matching(parts[1] if len(parts) > 1 else None, _Dtype, dict)
            payload = Payload(raw.get("py/b64"), dtype.name, [], form="base64")
            found = self._make(payload).item()
        self._objects[number] = found
        return found


def _matching(values: Any, *types: type[Any]) -> Any:
    """The members of a tuple, if they have these types."""
    if not isinstance(values, tuple) or list(map(type, values)) != list(types):
        raise FormatError("a pickled NumPy value in an unknown form", hint=_HINT)
    return values


def _dtype(parts: list[Any]) -> _Dtype:
    name = parts[1][0] if len(parts) > 1 and isinstance(parts[1], tuple) and parts[1] else None
    state = parts[2] if len(parts) > 2 else None
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
    if not isinstance(name, str) or order not in ("<", ">", "|", "="):
        raise FormatError("a pickled dtype in an unknown form", hint=_HINT)
    return _Dtype(f"{order.replace('=', '<')}{name}")


def _pickled_array(parts: list[Any]) -> Payload:
    state = parts[2] if len(parts) > 2 else None
    if isinstance(state, tuple) and len(state) == 5 and isinstance(state[4], list):
        raise FormatError("a NumPy array of Python objects")
    _, shape, dtype, fortran, raw = _matching(state, int, tuple, _Dtype, bool, dict)
    text = raw.get("py/b64")
    if not isinstance(text, str | Text):
        raise FormatError("a pickled NumPy array in an unknown form", hint=_HINT)
    return Payload(
        encoded(text).text,
        dtype.name,
        shape,
        order="F" if fortran else "C",
        form="base64",
        compressed=False,
    )


def _view(base: Any, thing: dict[str, Any], dtype: Any, shape: Any) -> torch.Tensor:
    """The view of a base that was written as an offset and strides in bytes."""
    if not isinstance(base, torch.Tensor) or "byteorder" in thing:
        raise FormatError("a view of an array that is not known", hint=_HINT)
    kind, sizes = dtype_named(dtype)[0], parse_shape(shape)
    strides = thing.get("strides")
    if isinstance(strides, dict):
        strides = strides.get("py/tuple")
    if strides is None:
        products = accumulate(reversed(sizes[1:]), mul, initial=kind.itemsize)
        strides = list(products)[::-1] if sizes else []
    offset, storage = thing.get("offset", 0), base.untyped_storage()
    if not isinstance(strides, list | tuple) or {type(x) for x in (*strides, offset)} - {int}:
        raise FormatError("a view whose strides or offset are not whole numbers")
    if len(strides) != len(sizes) or prod(sizes) * kind.itemsize > storage.nbytes():
        raise FormatError("a view that does not lie in its base")
    if not prod(sizes):
        return torch.empty(sizes, dtype=kind)
    reach = [(size - 1) * stride for size, stride in zip(sizes, strides, strict=True)]
    low = offset + sum(step for step in reach if step < 0)
    high = offset + sum(step for step in reach if step > 0) + kind.itemsize
    if low < 0 or high > storage.nbytes() or (kind == torch.bool and base.dtype != kind):
        raise FormatError("a view that does not lie in its base")
    whole = all(step % kind.itemsize == 0 for step in (*strides, offset))
    if whole and min(strides, default=0) >= 0:
        steps = [stride // kind.itemsize for stride in strides]
        flat = over(storage, kind, (storage.nbytes() // kind.itemsize,))
        return flat.as_strided(sizes, steps, offset // kind.itemsize)
    # torch has no negative strides, so this becomes a copy.
    raw = over(storage, torch.uint8, (storage.nbytes(),)).numpy()
    array = np.ndarray(sizes, f"V{kind.itemsize}", raw.data, offset, strides).copy()
    return torch.from_numpy(array.reshape(-1).view(np.uint8)).view(kind).reshape(sizes)


def _lists_in(shape: tuple[int, ...]) -> int:
    """How many lists a nested list of this shape has."""
    return sum(accumulate(shape[:-1], mul, initial=1))


def _is_pair(parts: object) -> bool:
    return (
        isinstance(parts, list) and len(parts) == 2 and all(type(x) in (int, float) for x in parts)
    )
