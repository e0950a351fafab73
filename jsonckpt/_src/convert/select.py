"""Walks a state, selects the part that is converted, and changes its dtype."""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ..errors import FormatError, JsonckptError
from ..foreign.scratch import new_tensor, tensor_spool
from ..foreign.tensor_values import dtype_named
from ..format.model import is_dense
from ..format.pointer import join
from ..pickles.unread import is_unread_item
from ..state.selector import refuse_unmatched, selector
from ..storage.spool import Spool
from ..tensors.pieces import blocks, memory_of
from .options import ConvertOptions

#: The value of a child that :func:`rebuilt` leaves out.
OMIT: Final = object()
_TRAINING = re.compile(
    r"(?:.*_)?(?:optim|optimizer|optimizers|opt|sched|scheduler|schedulers|scaler|amp|rng)"
    r"(?:_.*|\d*)?|random_state|rng.*"
)
_OPTIMIZER = re.compile(r"(?:.*_)?(?:optim|optimizer|optimizers|opt)(?:_.*|\d*)?")
_MODEL = re.compile(r"(?:.*_)?(?:model|module|state_dict|weights|params|ema|generator|net)(?:_.*)?")


@dataclass(frozen=True, slots=True)
class Selection:
    """The part of a state that was asked for.

    Attributes:
        state: the selected part.
        left_out: names of the tensors and whole optimizers in the rest.
        tensors_left_out: the number of tensors in the rest.
        notes: what was changed, one line each.
    """

    state: Any
    left_out: list[str]
    tensors_left_out: int
    notes: list[str]


def select(state: Any, options: ConvertOptions, directory: Path) -> Selection:
    """Apply ``optimizer``, ``include``, ``exclude`` and ``dtype`` to a state.

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
    count = _count(whole) - _count(state) if left_out else 0
    if options.dtype is not None:
        dtype, _ = dtype_named(options.dtype)
        if not dtype.is_floating_point:
            raise FormatError(f"--dtype {options.dtype} is not a floating-point dtype")
        with tensor_spool(directory) as spool:
            state, changed = cast(state, dtype, spool)
        notes.append(f"{changed} tensors of the model are now {dtype}")
    return Selection(state, left_out, count, notes)


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
    """True for what :func:`choose` may leave out: tensors, arrays, and unread parts of a pickle."""
    return isinstance(value, torch.Tensor | np.ndarray) or is_unread_item(key, value)


def _named_arrays(value: Any, name: str, key: object = None) -> Iterator[str]:
    """The names of what :func:`choose` may leave out."""
    if _is_leaf(value, key):
        yield name
    elif isinstance(value, dict) or type(value) in (list, tuple):
        for key, child in children(value):
            yield from _named_arrays(child, join(name, str(key)), key)


def is_optimizer(value: object) -> bool:
    """True if this has the form of an optimizer's ``state_dict()``."""
    return isinstance(value, Mapping) and {"state", "param_groups"} <= value.keys()


def drop_optimizers(state: Any) -> tuple[Any, list[str]]:
    """The state without the states of optimizers, and the names of those."""
    dropped: list[str] = []

    def pruned(value: Any, name: str) -> Any:
        def change(key: Any, child: Any) -> Any:
            below, text = join(name, str(key)), str(key).lower()
            named = _OPTIMIZER.fullmatch(text) and isinstance(child, dict | list | tuple)
            if named or is_optimizer(child):
                dropped.append(below)
                return OMIT
            return child if _MODEL.fullmatch(text) else pruned(child, below)

        return rebuilt(value, change) if isinstance(value, dict) else value

    return pruned(state, ""), dropped


def cast(state: Any, dtype: torch.dtype, spool: Spool) -> tuple[Any, int]:
    """Convert the floating-point tensors of the model to another dtype.

    Optimizers, schedulers, scalers and the states of random generators keep their dtypes. Tied
    tensors stay tied.

    Args:
        state: nested dictionaries and sequences.
        dtype: a floating-point dtype.
        spool: the memory for converted tensors.

    Returns:
        The new state, and the number of tensors that were converted.
    """
    done: dict[object, torch.Tensor] = {}

    def converted(tensor: torch.Tensor) -> torch.Tensor:
        key = (memory_of(tensor) or object(), tensor.requires_grad)
        if key not in done:
            done[key] = _converted(tensor, dtype, spool)
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(done[key].detach(), requires_grad=tensor.requires_grad)
        return done[key]

    def changed(value: Any, in_model: bool) -> Any:
        if isinstance(value, torch.Tensor):
            plain = value.layout == torch.strided and value.is_floating_point()
            return converted(value) if plain and value.dtype != dtype else value
        if is_optimizer(value):
            return value

        def change(key: Any, child: Any) -> Any:
            if in_model or not isinstance(value, dict):
                return changed(child, in_model)
            text = str(key).lower()
            if _TRAINING.fullmatch(text):
                return child
            return changed(child, _MODEL.fullmatch(text) is not None)

        return rebuilt(value, change)

    return changed(state, False), len(done)


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
