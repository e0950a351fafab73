"""Surveys a tree of JSON values: which lists are arrays of numbers, and what they stand beside.

Each value is looked at once. The survey of an object or list also counts what is below it, so a
decision on it takes no second look.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch

from ..json_stream.number_array import MAX_RANK
from ..json_stream.scratch import Numbers, Ragged
from .facts import typed_array
from .parameter_names import Part, holder, part_of

Key = str | int
_KINDS: tuple[type, ...] = (int, float, bool, complex)


@dataclass(frozen=True, slots=True)
class Array:
    """A list of numbers with rows of equal length, or one number.

    Attributes:
        shape: the lengths of the list and of the lists in it.
        floats: there is a number that is not whole, or that is written as such.
        bools: all values are true or false.
        complex: there is a complex number.
    """

    shape: tuple[int, ...]
    floats: bool = False
    bools: bool = False
    complex: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor that the user asked for. It says nothing about what is beside it."""

    tensor: torch.Tensor


#: A list of numbers that is no array: rows of unequal length, or null among the numbers.
Shape = Array | Literal["irregular"] | None


@dataclass(slots=True)
class Survey:
    """An object, or a list that is no array, and what is in it.

    Attributes:
        thing: the object or list.
        arrays: its members that are arrays, and single numbers under a name of parameters.
        irregular: its members that are lists of numbers, but no arrays.
        inner: its members that are objects and other lists.
        typed: the keys of ``arrays`` that are typed arrays of JavaScript.
        sure: the keys of ``arrays`` that are parameters for certain.
        tensors: the number of its members that are tensors already.
        every: how many members in all, also below: see :class:`Counts`.
    """

    thing: Any
    arrays: dict[Key, Array] = field(default_factory=dict)
    irregular: list[Key] = field(default_factory=list)
    inner: dict[Key, Survey] = field(default_factory=dict)
    typed: list[str] = field(default_factory=list)
    sure: set[Key] = field(default_factory=set)
    tensors: int = 0
    every: Counts = field(default_factory=lambda: Counts())


@dataclass(slots=True)
class Counts:
    """Counts of values in an object or list, and in everything below it.

    Attributes:
        lists: arrays that are lists.
        matrices: arrays of floats with two dimensions or more.
        sure: arrays that are parameters for certain, and tensors.
        short: such matrices with a name as short as ``W1``.
        unnamed: arrays and numbers whose name is not a usual name of parameters.
        loose: arrays with such a name that neither a module nor a size confirms.
        odd: values that cannot be parameters.
        floats: arrays with floats.
    """

    lists: int = 0
    matrices: int = 0
    sure: int = 0
    unnamed: int = 0
    loose: int = 0
    short: int = 0
    odd: int = 0
    floats: int = 0

    def add(self, other: Counts) -> None:
        """Add the counts of something inside."""
        self.lists += other.lists
        self.matrices += other.matrices
        self.sure += other.sure
        self.unnamed += other.unnamed
        self.loose += other.loose
        self.short += other.short
        self.odd += other.odd
        self.floats += other.floats


def survey(thing: Any) -> Survey:
    """Survey an object, or a list that is no array."""
    found = Survey(thing)
    items: Iterator[tuple[Key, Any]] = iter(
        thing.items() if isinstance(thing, dict) else enumerate(thing)
    )
    for key, value in items:
        kind = type(value)
        if kind is int or kind is float or kind is bool or kind is complex:
            _count_number(found, key, value)
        elif kind is Numbers or kind is Ragged or kind is list or kind is dict:
            _member(found, key, value)
        elif isinstance(value, torch.Tensor):
            found.tensors += 1
        elif kind is not Made and (value is not None or not _may_be_absent(key)):
            found.every.odd += 1
    _weigh(found)
    return found


def _member(found: Survey, key: Key, value: Any) -> None:
    if type(value) is dict:
        numbers = typed_array(value)
        if numbers is None:
            found.inner[key] = survey(value)
            return
        if isinstance(key, str):
            found.typed.append(key)
        value = numbers
    shape = shape_of(value)
    if isinstance(shape, Array):
        found.arrays[key] = shape
    elif shape is None:
        found.inner[key] = survey(value)
    else:
        found.irregular.append(key)


def shape_of(value: Any, depth: int = 0) -> Shape:
    """The shape of an array. ``None`` for a list with other things than numbers in it."""
    if isinstance(value, Numbers):
        kinds = {run.kind for run in value.runs}
        if "bool" in kinds and len(kinds) > 1:
            return "irregular"
        return Array(value.shape, "float" in kinds, kinds == {"bool"})
    if type(value) is not list:
        return "irregular" if type(value) is Ragged else None
    types = {*map(type, value)}
    if types <= {int, float} or types == {bool} or types <= {int, float, complex}:
        return Array((len(value),), float in types, bool in types, complex in types)
    if types <= {int, float, bool, type(None)}:
        return "irregular"
    if not types <= {int, float, bool, type(None), list, Numbers, Ragged}:
        return None
    shapes = [shape_of(item, depth + 1) for item in value if type(item) in (list, Numbers)]
    if None in shapes:
        return None
    arrays = [shape for shape in shapes if isinstance(shape, Array)]
    if len(arrays) < len(value) or depth >= MAX_RANK:
        return "irregular"
    first = arrays[0]
    if any(item.shape != first.shape for item in arrays):
        return "irregular"
    bools = sum(item.bools for item in arrays)
    if bools and prod(first.shape) and bools < len(arrays):
        return "irregular"
    return Array(
        (len(arrays), *first.shape),
        any(item.floats for item in arrays),
        bools == len(arrays),
        any(item.complex for item in arrays),
    )


_SINGLE = {kind: Array((), kind is float, kind is bool, kind is complex) for kind in _KINDS}


def _count_number(found: Survey, key: Key, value: float) -> None:
    """Count a single number. Only one that may be a parameter is kept: there may be millions."""
    part = part_of(key) if isinstance(key, str) else None
    found.every.floats += type(value) is float
    if part is not None and part.grade == "setting":
        found.every.odd += 1
    elif part is not None and (part.grade == "unique" or (part.dotted and part.grade == "named")):
        found.arrays[key] = _SINGLE[type(value)]
    else:
        found.every.unnamed += 1


def _may_be_absent(key: Key) -> bool:
    """True if null may stand there: a layer without bias."""
    return isinstance(key, str) and part_of(key).role == "bias"


def _weigh(found: Survey) -> None:
    """Find the members that are parameters for certain, and count."""
    every = found.every
    layers: dict[str, list[tuple[Key, Part, Array]]] = {}
    for key, array in found.arrays.items():
        part = part_of(key) if isinstance(key, str) else None
        every.lists += bool(array.shape)
        every.floats += array.floats and bool(array.shape)
        every.matrices += len(array.shape) > 1 and array.floats
        if part is None or part.grade == "unknown":
            every.unnamed += 1
        elif part.grade == "setting":
            every.odd += 1
        else:
            every.short += part.grade == "short" and len(array.shape) > 1 and array.floats
            if _sure_alone(part, array):
                found.sure.add(key)
            layers.setdefault(part.stem, []).append((key, part, array))
    loose = [k for layer in layers.values() for k, part, _ in layer if not part.dotted]
    for layer in layers.values():
        if len(layer) > 1:
            found.sure |= _sure_together(layer)
    every.loose += sum(key not in found.sure for key in loose)
    found.sure |= _sure_typed(found)
    if _is_matrix(found):
        every.odd += 1  # its sizes stay numbers
        found.sure.add("data")
    for key in found.irregular:
        grade, holds = part_of(str(key)).grade, holder(str(key))
        every.odd += grade == "setting" or holds == "closed"
        every.unnamed += isinstance(key, str) and grade == "unknown" and holds == "unknown"
    every.sure += len(found.sure) + found.tensors
    for key, inner in found.inner.items():
        every.add(inner.every)
        every.odd += bool(inner.thing) and isinstance(key, str) and holder(key) == "closed"


def _sure_alone(part: Part, array: Array) -> bool:
    if part.grade == "unique":
        return bool(array.shape) or part.stem.endswith("num_batches_tracked")
    matrix = len(array.shape) > 1 and prod(array.shape) > 0
    usual = part.grade == "named" and part.role == "weight"
    return usual and matrix and (array.floats or part.dotted)


def _sure_together(layer: list[tuple[Key, Part, Array]]) -> set[Key]:
    """The weight and bias of a layer, if their sizes fit."""
    weights = [
        (key, array)
        for key, part, array in layer
        if part.role == "weight" and (part.grade != "short" or (array.shape[1:] and array.floats))
    ]
    biases = [(key, array) for key, part, array in layer if part.role == "bias"]
    sure: set[Key] = set()
    for weight, matrix in weights[:4]:
        for bias, vector in biases[:4]:
            if fits(matrix, vector):
                sure |= {weight, bias}
    return sure


def fits(weight: Array, bias: Array) -> bool:
    """True if these may be the weight and the bias of one layer, or of one norm.

    >>> fits(Array((3, 2)), Array((3,))), fits(Array((3, 2)), Array((4,)))
    (True, False)
    """
    size = prod(bias.shape)
    if size == 0 or size != max(bias.shape, default=0) or len(bias.shape) > 2:
        return False
    return size in weight.shape and (len(weight.shape) > 1 or len(bias.shape) == 1)


def _is_matrix(found: Survey) -> bool:
    """True for a matrix of JavaScript: ``{"rows": 2, "cols": 1, "data": [[0.5], [1.5]]}``."""
    if type(found.thing) is not dict or "data" not in found.arrays:
        return False
    sizes: tuple[Any, Any] = (found.thing.get("rows"), found.thing.get("cols"))
    if not all(type(size) is int and size > 0 for size in sizes):
        return False
    return found.arrays["data"].shape in (sizes, (prod(sizes),))


def _sure_typed(found: Survey) -> set[Key]:
    """Typed arrays of JavaScript that are a weight with a bias beside them, and these biases.

    The bias may be one number. A flat weight has no sizes that could fit it.
    """
    if not found.typed:
        return set()
    biases: dict[str, list[Key]] = {}
    for key, value in found.thing.items():
        part = part_of(key)
        if part.role == "bias" and (key in found.arrays or type(value) in (int, float)):
            biases.setdefault(part.stem, []).append(key)
    sure: set[Key] = set()
    for key in found.typed:
        part = part_of(key)
        if part.grade == "named" and part.role == "weight" and part.stem in biases:
            sure |= {key, *biases[part.stem]} if found.arrays[key].floats else set()
    return sure & found.arrays.keys()
