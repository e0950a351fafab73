"""Decides which lists and numbers in a JSON text without dtypes are tensors, and makes them.

The rules, in this order. A value that none of them takes stays what it was.

1. **Asked for.** A list that ``--tensors`` or ``--shapes`` names is a tensor, or an error.
   ``--plain-lists`` takes the lists of the outermost object where they are arrays.
2. **Closed.** Nothing becomes a tensor in ``config``, ``args``, ``history``, ``param_groups`` and
   the like. In the ``state`` of an optimizer every array is a tensor, and numbers stay numbers.
3. **Array.** Only numbers in rows of equal length can be a tensor. Other lists stay lists.
4. **Sure.** An array is a parameter for certain, if only parameters have its name
   (``running_mean``, ``weight_ih_l0``); if it is named a weight and is a matrix of floats; or if it
   is named like the weight or bias beside it, and the sizes of the two fit.
5. **Whole.** An object is a state dict if all its leaves can be parameters, and: it is called
   ``state_dict``; or it is called like a model and holds a sure array; or all its leaves have
   names of parameters, and it or an object beside it holds a sure array. Then every array and
   number in it is a tensor.
6. **Beside.** In any other object, sure arrays are tensors. Beside them, so are arrays with a
   dotted name that ends like a parameter, or that begins with the module of a sure one.
7. **In order.** A list of arrays of unequal shape is a list of tensors, if it is called like the
   weights of a model (or is the whole file), and each vector fits the matrix before it. So is a
   list of such lists, one for each layer.

The dtype: bool for true and false. float32 (float64 where the user wants that) for arrays with a
float in them, and for arrays of whole numbers in a model that has a float anywhere, except under
names of counts and positions. Else int64, and uint64 where int64 is too small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise, takewhile
from typing import Any

import torch

from ..errors import FormatError, counted, quote
from ..format.pointer import join
from ..json_stream.scratch import Numbers, Ragged, Text
from . import dialects, jsonpickle
from .asked import Asked
from .default_dtype import dtype_of_array
from .parameter_names import Holder, Part, holder, part_of
from .payloads import Payload
from .survey import Array, Key, Made, Survey, fits, shape_of, survey
from .values import Values

_SETTLED = frozenset({str, int, float, bool, type(None)})
_NUMBERS = frozenset({int, float, bool, complex})
#: Names of lists in one note or error.
_SHOWN = 5
#: A list, and what each of its items is.
_Layers = tuple[list[Any], list[Array]]
_ASK = "If they are tensors, pass --tensors with their names or a glob"


def settled(root: Any, values: Values) -> Any:
    """Make the tensors in a tree, replace what is still lifted, and repair what JSON lost.

    Raises:
        FormatError: there is no tensor, or a list that was asked for makes none.
        StateMismatchError: a name or glob of ``tensors`` matches nothing.
        LimitError: too many lists and strings stay outside tensors.
    """
    if values.jsonpickle:
        root = jsonpickle.Restorer(values.tensor, values.plain.take).restore(root)
    box = {"": root}
    Asked(values).make(box)
    settler = _Settler(values)
    settler.root(box)
    seen = list(islice(_lists(box[""], ""), _SHOWN + 1)) if not values.tensors else []
    root = _plain(box[""], "", values)
    if not values.tensors:
        raise _no_tensor(values, seen)
    _add_notes(values)
    dialects.mend_optimizers(root)
    for kept, tied in dialects.retie(root, values.options.tie):
        values.notes.append(f"tied again: {tied} is {kept}")
    return root


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a survey stands.

    Attributes:
        name: its JSON Pointer.
        key: the last step of it.
        holds: what it may hold, by the names on the way.
        floats: there is a float in the model that it belongs to.
    """

    name: str
    key: Key
    holds: Holder
    floats: bool

    def below(self, key: Key, holds: Holder, floats: bool) -> _Place:
        return _Place(join(self.name, str(key)), key, holds, floats)


class _Settler:
    """Makes tensors by the rules of this module, from the outside to the inside."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._plain_lists = values.options.plain_lists

    def root(self, box: dict[str, Any]) -> None:
        """Make the tensors in the only member of ``box``."""
        root = box[""]
        shape = shape_of(root)
        if isinstance(shape, Array):
            if self._plain_lists:
                self._make(box, "", shape, _Place("", "", "unknown", shape.floats), "")
            return
        if shape == "irregular":
            least = 1 if self._plain_lists else 2
            if not self._in_order(box, "", least, _Place("", "", "unknown", floats=False)):
                self._stays("")
            return
        if type(root) not in (dict, list) or not root:
            return
        found = survey(root)
        place = _Place("", "", "unknown", _floats_outside_holders(found))
        self._decide(found, place)
        if self._plain_lists:
            for key, array in found.arrays.items():
                if array.shape:
                    self._make(root, key, array, place, place.below(key, "unknown", False).name)
            for key in found.irregular:
                self._in_order(root, key, 0, place.below(key, "unknown", place.floats))

    def _decide(self, found: Survey, place: _Place, beside: bool = False) -> None:
        thing = found.thing
        if type(thing) is dict and _is_optimizer(thing):
            self._optimizer(found, place)
        elif _is_whole(found, place, beside):
            self._whole(found, place)
        else:
            modules = any(
                inner.every.sure and holder(str(key)) == "unknown"
                for key, inner in found.inner.items()
            )
            self._beside(found, place, modules)
            for key, inner in found.inner.items():
                holds = holder(key) if isinstance(key, str) else place.holds
                if holds == "unknown" and place.holds in ("state_dict", "model"):
                    holds = "model"
                if holds == "closed":
                    continue
                own = holds != "unknown" and place.holds == "unknown"
                floats = inner.every.floats > 0 if own else place.floats
                self._decide(inner, place.below(key, holds, floats), modules)

    def _optimizer(self, found: Survey, place: _Place) -> None:
        state = found.inner.get("state")
        pending = [] if state is None else [(state, place.below("state", "closed", True))]
        while pending:
            inner, at = pending.pop()
            for key, array in inner.arrays.items():
                if array.shape:
                    name = at.below(key, "closed", True).name
                    self._make(inner.thing, key, array, at, name, moments=True)
            pending += [(deep, at.below(k, "closed", True)) for k, deep in inner.inner.items()]

    def _whole(self, found: Survey, place: _Place) -> None:
        floats = place.floats or found.every.floats > 0
        pending = [(found, _Place(place.name, place.key, place.holds, floats))]
        while pending:
            inner, at = pending.pop()
            thing = inner.thing
            self._irregular(inner, at, everywhere=True)
            for key, value in thing.items() if type(thing) is dict else enumerate(thing):
                array = inner.arrays.get(key)
                if type(value) in _NUMBERS:
                    kind = type(value)
                    array = Array((), kind is float, kind is bool, kind is complex)
                if array is not None:
                    self._make(thing, key, array, at, join(at.name, str(key)))
            for key, deep in inner.inner.items():
                own = at.holds == "unknown" and holder(str(key)) != "unknown"
                floats = deep.every.floats > 0 if own else at.floats
                pending.append((deep, at.below(key, at.holds, floats)))

    def _beside(self, found: Survey, place: _Place, modules: bool) -> None:
        thing = found.thing
        self._irregular(found, place, everywhere=False)
        taken = bool(found.sure) or found.tensors > 0 or modules
        roots = {_first(key) for key in found.sure if isinstance(key, str) and "." in key}
        for key, array in list(found.arrays.items()) if type(thing) is dict else ():
            assert isinstance(key, str)
            part = part_of(key)
            if key in found.sure or (taken and _belongs(key, part, array, roots)):
                self._make(thing, key, array, place, join(place.name, key))
                continue
            may_be = place.holds != "unknown" or taken or part.role != "other"
            matrix = len(array.shape) > 1 and array.floats
            comes_later = self._plain_lists and not place.name
            listed = array.shape not in ((), (0,)) and part.grade != "setting"
            if listed and (may_be or matrix) and not comes_later:
                self._stays(join(place.name, key))
        self._numbers_beside(found, place, roots)

    def _numbers_beside(self, found: Survey, place: _Place, roots: set[str]) -> None:
        """Make tensors of dotted numbers with names that say nothing, beside sure arrays."""
        if not roots or type(found.thing) is not dict:
            return
        for key, value in found.thing.items():
            beside = type(value) in _NUMBERS and "." in key and _first(key) in roots
            if beside and part_of(key).grade == "unknown":
                single = Array((), type(value) is float, type(value) is bool)
                self._make(found.thing, key, single, place, join(place.name, key))

    def _irregular(self, found: Survey, place: _Place, *, everywhere: bool) -> None:
        """Make lists of tensors of the lists of arrays of unequal shapes."""
        thing = found.thing
        parallel = self._parallel(found) if type(thing) is dict else {}
        for key, (items, arrays) in parallel.items():
            self._each(thing, key, items, arrays, place.below(key, place.holds, place.floats))
            found.arrays.pop(key, None)
            found.sure.discard(key)
        for key in found.irregular:
            if key in parallel:
                continue
            text = str(key) if isinstance(key, str) else str(place.key)
            part, below = part_of(text), place.below(key, place.holds, place.floats)
            named = part.grade == "named" and part.role == "weight"
            holds = holder(text) in ("state_dict", "model")
            if (named or holds or everywhere) and self._in_order(thing, key, 1, below):
                continue
            doubtful = named or part.role == "bias" or holds or everywhere or found.sure
            (self._values.stayed if doubtful else self._values.irregular).append(below.name)

    def _parallel(self, found: Survey) -> dict[Key, _Layers]:
        """Lists of the weights and of the biases of the same layers, beside each other."""
        stems: dict[str, dict[str, Key]] = {}
        for key in [*found.irregular, *found.arrays]:
            part = part_of(str(key))
            if part.grade == "named" and type(found.thing[key]) in (list, Ragged, Numbers):
                stems.setdefault(part.stem, {})[part.role] = key
        pairs: dict[Key, _Layers] = {}
        for roles in stems.values():
            keys = [roles[role] for role in ("weight", "bias") if role in roles]
            if len(keys) < 2 or not set(keys) & set(found.irregular):
                continue
            lists = [self._values.plain.peek(found.thing[key]) for key in keys]
            weights, biases = map(_items, lists)
            alike = weights and biases and len(weights) == len(biases)
            if weights and biases and alike and all(map(fits, weights, biases)):
                pairs[keys[0]], pairs[keys[1]] = (lists[0], weights), (lists[1], biases)
        return pairs

    def _in_order(self, thing: Any, key: Key, least: int, place: _Place) -> bool:
        """Make tensors of the items of a member, if they are the weights of layers in order.

        They may be in one list, or in one for each layer.
        """
        items = self._values.plain.peek(thing[key])
        arrays = _in_order(items, least)
        if arrays is not None:
            self._each(thing, key, items, arrays, place)
            return True
        if type(items) is not list or not {*map(type, items)} <= {list, Ragged}:
            return False
        layers = [self._values.plain.peek(item) for item in items]
        found = list(takewhile(bool, (_in_order(layer, 1) for layer in layers)))
        if not len(layers) == len(found) >= max(1, least):
            return False
        self._values.plain.release(thing[key])
        thing[key] = items
        for index, (layer, arrays) in enumerate(zip(layers, found, strict=True)):
            self._each(items, index, layer, arrays or [], place.below(index, place.holds, True))
        return True

    def _each(
        self, thing: Any, key: Key, items: list[Any], arrays: list[Array], place: _Place
    ) -> None:
        """Make tensors of ``items``, the list that the member ``key`` is or becomes."""
        self._values.plain.release(thing[key])
        thing[key] = items
        floats = place.floats or any(array.floats for array in arrays)
        at = _Place(place.name, place.key, place.holds, floats)
        for index, array in enumerate(arrays):
            self._make(items, index, array, at, f"{place.name}/{index}")

    def _make(
        self, thing: Any, key: Key, array: Array, place: _Place, name: str, moments: bool = False
    ) -> None:
        """Replace a member by the tensor of it, where there is one."""
        value = thing[key]
        if isinstance(value, torch.Tensor | Made):
            return
        text = str(key) if isinstance(key, str) else str(place.key)
        wanted = torch.float32 if moments else self._values.options.floats
        dtype = dtype_of_array(text, array, place.floats, wanted)
        numbers = list(value.values()) if isinstance(value, dict) else value  # a typed array
        made = self._values.tensor_or_list(Payload(numbers, dtype), name)
        thing[key] = value if made is numbers else made

    def _stays(self, name: str) -> None:
        self._values.stayed.append(name)


def _is_optimizer(thing: dict[str, Any]) -> bool:
    return isinstance(thing.get("param_groups"), list) and isinstance(
        thing.get("state"), dict | list
    )


def _is_whole(found: Survey, place: _Place, beside: bool) -> bool:
    """Rule 5. ``beside`` is true where an object beside this one holds a sure array."""
    every = found.every
    if every.odd or place.holds == "closed":
        return False
    if place.holds == "state_dict":
        return every.lists + every.sure > 0
    if place.holds == "model":
        weights = "weights" in str(place.key).lower() and every.matrices > 0
        return every.sure + every.short > 0 or weights
    module = beside and every.lists > 0 and part_of(str(place.key)).grade != "setting"
    return every.unnamed == 0 and (module or (every.sure > 0 and every.loose == 0))


def _belongs(key: str, part: Part, array: Array, roots: set[str]) -> bool:
    """Rule 6, for an array beside a sure one."""
    if part.grade == "setting":
        return False
    if part.dotted:
        return part.grade in ("unique", "named") or _first(key) in roots
    return part.grade == "named" and part.role == "other" and len(array.shape) > 1


def _first(key: str) -> str:
    return key.partition(".")[0]


def _floats_outside_holders(found: Survey) -> bool:
    """True if there is a float in what belongs to the outermost object itself."""
    beside = (inner for key, inner in found.inner.items() if holder(str(key)) == "unknown")
    return any(array.floats and array.shape for array in found.arrays.values()) or any(
        inner.every.floats for inner in beside
    )


def _items(value: Any) -> list[Array] | None:
    """The shapes of the items of a list, if each item is an array."""
    if type(value) is not list or not value:
        return None
    shapes = [shape_of(item) for item in value]
    arrays = [shape for shape in shapes if isinstance(shape, Array)]
    return arrays if len(arrays) == len(value) else None


def _in_order(value: Any, least: int) -> list[Array] | None:
    """The arrays in a list, if they are the weights of layers in order: rule 7.

    Args:
        least: how many vectors must fit the matrix before them, where there are vectors.
    """
    arrays = _items(value)
    if arrays is None:
        return None
    matrices = [array for array in arrays if len(array.shape) > 1]
    if not any(array.floats for array in matrices):
        return None
    fitting, last = 0, None
    for array in arrays:
        if len(array.shape) > 1:
            last = array
        elif last is None or not fits(last, array):
            return None
        else:
            fitting += 1
    if fitting:
        return arrays if fitting >= least else None
    chained = all(set(a.shape) & set(b.shape) for a, b in pairwise(matrices))
    return arrays if chained and (least < 2 or len(matrices) > 2) else None


def _plain(value: Any, name: str, values: Values) -> Any:
    """Make Python values of what is still lifted."""
    if isinstance(value, Numbers | Ragged | Text):
        return values.plain.take(value, name)
    if isinstance(value, Made):
        return value.tensor
    if isinstance(value, list):
        for index, item in enumerate(value):
            if type(item) not in _SETTLED:
                value[index] = _plain(item, f"{name}/{index}", values)
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(item) not in _SETTLED:
                value[key] = _plain(item, join(name, key), values)
    return value


def _lists(value: Any, name: str) -> Iterator[str]:
    """The names of the lists of numbers in a tree."""
    if isinstance(value, Numbers | Ragged):
        yield name
    elif isinstance(value, dict | list):
        shape = shape_of(value)
        if shape is not None:
            if value:
                yield name
            return
        items: Iterable[tuple[Key, Any]] = (
            value.items() if isinstance(value, dict) else enumerate(value)
        )
        for key, item in items:
            if type(item) not in _SETTLED:
                yield from _lists(item, join(name, str(key)))


def _named(names: list[str], count: int) -> str:
    more = f" and {count - _SHOWN:,} more" if count > _SHOWN else ""
    return ", ".join(quote(name or "the outermost list", 80) for name in names[:_SHOWN]) + more


def _no_tensor(values: Values, seen: list[str]) -> FormatError:
    """The error for a text without tensors: what there is, and what to do."""
    if values.summary is not None:
        return FormatError(dialects.NO_VALUES, tensor=values.summary)
    if not seen:
        return FormatError(
            "no tensor was found in this JSON: it has no list of numbers",
            hint="Convert the file that holds the weights.",
        )
    shown = ", ".join(quote(name or "the outermost list", 60) for name in seen[:_SHOWN])
    more = ", …" if len(seen) > _SHOWN else ""
    flag = values.options.plain_lists
    why = "; none of the outermost ones is an array of numbers" if flag else ""
    return FormatError(
        f"no tensor was found in this JSON. There are lists of numbers that may be settings: "
        f"{shown}{more}{why}",
        hint="Pass --tensors with the names of those that are tensors, or a glob"
        + ("." if flag else ", or --plain-lists for all outermost ones."),
    )


def _add_notes(values: Values) -> None:
    floats = str(values.options.floats).removeprefix("torch.")
    if values.without_dtype:
        some = counted(values.without_dtype, "tensor came", "tensors came")
        values.notes.append(f"{some} without a dtype: {floats}, int64 or bool by the values")
    if values.digits_lost:
        some = counted(values.digits_lost, "of these loses", "of these lose")
        values.notes.append(f"{some} digits in float32; --dtype float64 keeps them")
    if values.stayed:
        count = len(values.stayed)
        stay = counted(count, "list of numbers stays a list", "lists stay lists")
        values.notes.append(f"{stay}: {_named(values.stayed, count)}. {_ASK}")
    if values.irregular:
        count = len(values.irregular)
        stay = counted(count, "list stays a list", "lists stay lists")
        names = _named(values.irregular, count)
        values.notes.append(f"{stay}, with unequal rows, or null or true among numbers: {names}")
