"""Walks a state, selects the part that is converted, and changes its dtype."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ..errors import (
    ArgumentError,
    FormatError,
    JsonckptError,
    StateMismatchError,
    counted,
    printable,
    quote,
)
from ..foreign.payloads import dtype_named
from ..format.model import is_dense
from ..format.pointer import join
from ..json_stream.spooled import new_tensor, tensor_spool
from ..pickles.unread import is_unread_item
from ..state.registry import default_rules
from ..state.selector import refuse_unmatched, selector
from ..storage.spool import Spool
from ..tensors.pieces import blocks, memory_of
from ..tensors.supported import require_cast, require_memory
from .model_tensors import (
    OPTIMIZER,
    Place,
    Role,
    holds_tensors,
    is_optimizer,
    place_of,
    place_of_root,
    role_of,
)
from .options import ConvertOptions
from .tally import Tally

#: Types of values that hold nothing else.
ATOMS: Final = frozenset({str, int, float, bool, type(None)})
#: The value of a child that :func:`rebuilt` leaves out.
OMIT: Final = object()
#: Containers of changed tensors that a note names.
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Selection:
    """The part of a state that was asked for.

    Attributes:
        state: the selected part.
        left_out: names of the tensors and whole optimizers in the rest.
        tensors_left_out: the number of tensors in the rest.
        changed: the number of tensors with a new dtype.
        notes: what was changed, one line each.
    """

    state: Any
    left_out: list[str]
    tensors_left_out: int
    changed: int
    notes: list[str]


#: Plain values and containers, which every checkpoint holds.
_PLAIN = (Mapping, Sequence, Set, bytearray, int, float, complex, type, type(None), np.generic)


def select(state: Any, options: ConvertOptions, directory: Path) -> Selection:
    """Apply ``optimizer``, ``include``, ``exclude``, ``dtype`` and ``dtype_of`` to a state.

    Args:
        directory: for temporary files.

    Raises:
        StateMismatchError: a pattern selects nothing.
        FormatError: ``dtype`` is unknown, or not a floating-point dtype.
        JsonckptError: a tensor has values that ``dtype`` cannot hold.
    """
    whole = state
    left_out: list[str] = []
    notes: list[str] = []
    if not options.optimizer:
        state, left_out = drop_optimizers(state)
        if not left_out:
            notes.append("no optimizer was found to leave out")
    state, unasked = choose(state, options.include, options.exclude)
    left_out += unasked
    idle = selector(None, options.exclude or None)[1](_named_arrays(whole, ""))
    notes += [f"--exclude {quote(name)} has no effect: it selects no tensor" for _, name in idle]
    count = _count(whole) - _count(state) if left_out else 0
    changed = 0
    if options.dtype is not None:
        dtype, _ = dtype_named(options.dtype)
        if not dtype.is_floating_point:
            raise FormatError(f"--dtype {options.dtype} is not a floating-point dtype")
        with tensor_spool(directory) as spool:
            done = cast(state, dtype, spool, options.dtype_of)
        state, changed = done.state, done.changed
        notes += done.notes
    elif options.dtype_of:
        raise ArgumentError("dtype_of needs dtype")
    return Selection(state, left_out, count, changed, notes)


def _count(state: Any) -> int:
    return sum(1 for _ in named_tensors(state))


def choose(state: Any, include: Sequence[str], exclude: Sequence[str]) -> tuple[Any, list[str]]:
    """The state without the tensors that were not asked for, and the names of those.

    The dictionaries and sequences around them are kept.

    Args:
        state: nested dictionaries and sequences.
        include, exclude: names or globs, as for :func:`jsonckpt.load`.

    Raises:
        StateMismatchError: a name or glob matches nothing.

    >>> choose({"a": torch.ones(1), "b": {"c": torch.ones(1)}, "n": 1}, ["b"], [])
    ({'b': {'c': tensor([1.])}, 'n': 1}, ['/a'])
    """
    if not include and not exclude:
        return state, []
    chosen, unmatched = selector(include or None, exclude or None)
    names = list(_named_arrays(state, ""))
    keys = state if isinstance(state, Mapping) else ()
    refuse_unmatched(unmatched(names, [f"{join('', str(k))}/" for k in keys]), names, option="--")

    def pruned(value: Any, name: str) -> Any:
        def change(key: Any, child: Any) -> Any:
            below = join(name, str(key))
            if _is_leaf(child, key) and not chosen(below):
                return OMIT
            return pruned(child, below)

        return rebuilt(value, change)

    return pruned(state, ""), [name for name in names if not chosen(name)]


def _is_leaf(value: object, key: object = None) -> bool:
    """True for what :func:`choose` may leave out: tensors, arrays, and what cannot be written."""
    if isinstance(value, torch.Tensor | np.ndarray) or is_unread_item(key, value):
        return True
    # With unsafe_pickle an object of a user's class is not unread: its class was imported.
    return not isinstance(value, _PLAIN) and type(value) not in default_rules().by_type


def _named_arrays(value: Any, name: str, key: object = None) -> Iterator[str]:
    """The names of what :func:`choose` may leave out."""
    if _is_leaf(value, key):
        yield name
    elif isinstance(value, dict) or type(value) in (list, tuple):
        for key, child in children(value):
            yield from _named_arrays(child, join(name, str(key)), key)


def drop_optimizers(state: Any) -> tuple[Any, list[str]]:
    """The state without the states of optimizers, and the names of those.

    Settings of an optimizer, which hold no tensor, stay.
    """
    dropped: list[str] = []

    def pruned(value: Any, name: str, place: Place) -> Any:
        def change(key: Any, child: Any) -> Any:
            below = join(name, str(key))
            named = OPTIMIZER.fullmatch(str(key).lower()) and not isinstance(child, torch.Tensor)
            if is_optimizer(child) or (named and holds_tensors(child)):
                dropped.append(below)
                return OMIT
            inside = place_of(child, key, value, place)
            return child if inside is Place.MODEL else pruned(child, below, inside)

        return rebuilt(value, change) if isinstance(value, dict) else value

    return pruned(state, "", place_of_root(state)), dropped


@dataclass(frozen=True, slots=True)
class Cast:
    """The result of :func:`cast`.

    Attributes:
        state: the new state.
        changed: the number of tensors that were converted. Tied ones count once.
        notes: what changed, what stayed, and why.
    """

    state: Any
    changed: int
    notes: list[str]


def cast(state: Any, dtype: torch.dtype, spool: Spool, only: Sequence[str] = ()) -> Cast:
    """Convert the floating-point tensors of models to another dtype.

    All others keep their dtypes (see :mod:`.model_tensors`). Tied tensors stay tied.

    Args:
        state: nested dictionaries and sequences.
        dtype: a floating-point dtype.
        spool: the memory for converted tensors.
        only: names or globs of the tensors to convert, in place of those of models.

    Raises:
        StateMismatchError: a name or glob matches nothing.
        JsonckptError: a tensor has values that ``dtype`` cannot hold.
    """
    chosen = None
    if only:
        chosen, unmatched = selector(only, None)
        names = [name for name, _ in named_tensors(state)]
        refuse_unmatched(unmatched(names, []), names, option="--dtype-of ")
    caster = _Caster(dtype, spool, chosen)
    place = place_of_root(state)
    if isinstance(state, torch.Tensor):
        place = Place.MODEL
        changed = caster.tensor(state, Role.MODEL, "")
    else:
        changed = caster.container(state, "", place)
    return Cast(changed, len(caster.done), caster.notes())


class _Caster:
    """Casts the tensors of one state."""

    def __init__(
        self, dtype: torch.dtype, spool: Spool, chosen: Callable[[str], bool] | None
    ) -> None:
        self.done: dict[object, torch.Tensor] = {}
        self._dtype = dtype
        self._spool = spool
        self._chosen = chosen
        self._models: dict[str, None] = {}
        self._kept = Tally()

    def container(self, value: Any, name: str, place: Place) -> Any:
        """The container with its tensors cast."""

        def change(key: Any, child: Any) -> Any:
            below = join(name, str(key))
            if isinstance(child, torch.Tensor):
                return self.tensor(child, role_of(child, key, value, place), below)
            if isinstance(child, np.ndarray) and child.dtype.kind == "f":
                self._kept.add("NumPy arrays keep their dtypes", below)
            return self.container(child, below, place_of(child, key, value, place))

        return rebuilt(value, change)

    def tensor(self, tensor: torch.Tensor, role: Role, name: str) -> torch.Tensor:
        """The tensor, cast if it is to be."""
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_meta
        if not plain or tensor.is_nested or tensor.layout != torch.strided:
            return tensor
        if not tensor.is_floating_point() or tensor.dtype == self._dtype:
            return tensor
        if self._chosen is not None:
            role = Role.MODEL if self._chosen(name) else Role.UNKNOWN
        if role is not Role.MODEL:
            if self._chosen is None:
                self._kept.add(f"unchanged are tensors {role.value}", name)
            return tensor
        if not _castable(tensor.dtype, self._dtype):
            self._kept.add(f"unchanged, since torch cannot convert them, are {tensor.dtype}", name)
            return tensor
        self._models.setdefault(name.rpartition("/")[0] or "/")
        key = (memory_of(tensor) or object(), tensor.requires_grad)
        if key not in self.done:
            try:
                require_memory(tensor)
                self.done[key] = _converted(tensor, self._dtype, self._spool)
            except JsonckptError as error:
                raise error.at(tensor=name) from error.__cause__
        if isinstance(tensor, torch.nn.Parameter):
            data = self.done[key].detach()
            return torch.nn.Parameter(data, requires_grad=tensor.requires_grad)
        return self.done[key]

    def notes(self) -> list[str]:
        """What changed, what stayed, and why."""
        places = [*self._models][:_SHOWN] + (["…"] if len(self._models) > _SHOWN else [])
        where = f", in {', '.join(map(printable, places))}" if places else ""
        what = "that --dtype-of names" if self._chosen is not None else Role.MODEL.value
        changed = f"converted to {self._dtype}: {counted(len(self.done), 'tensor')} {what}{where}"
        return [changed, *self._kept.notes()]


def _castable(source: torch.dtype, target: torch.dtype) -> bool:
    try:
        require_cast(source, target)
    except StateMismatchError:
        return False
    return True


def _converted(tensor: torch.Tensor, dtype: torch.dtype, spool: Spool) -> torch.Tensor:
    order = list(range(tensor.dim()))
    if is_dense(tensor.shape, tensor.stride()):
        # In the order of its memory, so that the new tensor has the same strides.
        steps = tensor.stride()
        order.sort(key=lambda dim: -steps[dim])
        tensor = tensor.permute(order)
    target = new_tensor(spool, dtype, tensor.shape)
    flat, position = target.view(-1), 0
    for block in blocks(tensor.detach()):
        part = flat[position : position + len(block)].copy_(block)
        if not torch.equal(part.double().isfinite(), block.double().isfinite()):
            raise JsonckptError(
                f"a tensor of {tensor.dtype} holds numbers too large for {dtype}",
                hint="torch.bfloat16 has the range of torch.float32.",
            )
        position += len(block)
    back = [order.index(dim) for dim in range(len(order))]
    return target.permute(back).requires_grad_(tensor.requires_grad)


def children(value: object) -> Iterable[tuple[Any, Any]]:
    """The items of a dictionary or sequence, with keys or indices. Other values have none."""
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def named_tensors(state: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor, with its name (a JSON Pointer).

    >>> [name for name, _ in named_tensors({"a": {0: torch.ones(1)}, "b": [torch.ones(1)]})]
    ['/a/0', '/b/0']
    """
    if isinstance(state, torch.Tensor):
        yield name, state
    for key, value in children(state):
        # Some states are lists of millions of numbers.
        if type(value) not in ATOMS:
            yield from named_tensors(value, join(name, str(key)))


def rebuilt(value: Any, change: Callable[[Any, Any], Any]) -> Any:
    """Copy a dictionary, list or tuple. ``change(key, child)`` gives each new child.

    A child for which it gives :data:`OMIT` is left out. Values of other types are not copied.

    >>> rebuilt({"a": 1, "b": 2}, lambda key, child: OMIT if key == "b" else child + 1)
    {'a': 2}
    """
    if not isinstance(value, dict) and type(value) not in (list, tuple):
        return value
    kept = []
    for key, child in children(value):
        new = change(key, child)
        if new is not OMIT:
            kept.append((key, new))
    if isinstance(value, defaultdict):
        return defaultdict(value.default_factory, kept)
    if isinstance(value, OrderedDict):
        copy = OrderedDict(kept)
        if hasattr(value, "_metadata"):
            copy._metadata = value._metadata  # type: ignore[attr-defined]
        return copy
    return dict(kept) if isinstance(value, dict) else type(value)(new for _, new in kept)
