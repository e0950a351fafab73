"""Which tensors of a state to convert, and to what dtype."""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import JsonckptError, LimitError
from ..format.model import is_dense
from ..format.pointer import join
from ..state.selector import refuse_unmatched, selector
from .pieces import blocks
from .spool import Spool

MAX_DEPTH = 500
_TRAINING = re.compile(
    r"(?:.*_)?(?:optim|optimizer|optimizers|opt|sched|scheduler|schedulers|scaler|amp|rng)"
    r"(?:_.*|\d*)?|random_state|rng.*"
)
_OPTIMIZER = re.compile(r"(?:.*_)?(?:optim|optimizer|optimizers|opt)(?:_.*|\d*)?")
_MODEL = re.compile(r"(?:.*_)?(?:model|module|state_dict|weights|params|ema|generator|net)(?:_.*)?")


def named_tensors(state: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in dictionaries and sequences, with its name (a JSON Pointer).

    >>> [name for name, _ in named_tensors({"a": {0: torch.ones(1)}, "b": [torch.ones(1)]})]
    ['/a/0', '/b/0']
    """
    if isinstance(state, torch.Tensor):
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from named_tensors(value, join(name, str(key)))
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            yield from named_tensors(value, f"{name}/{index}")


def choose(state: Any, include: Sequence[str], exclude: Sequence[str]) -> tuple[Any, list[str]]:
    """The state without the tensors that are not asked for, and their names.

    The parents of what is left out are kept.

    Args:
        state: nested dictionaries and sequences.
        include, exclude: names or globs, as for :func:`jsonckpt.load`.

    Raises:
        StateMismatchError: one of them selects nothing.

    >>> choose({"a": torch.ones(1), "b": {"c": torch.ones(1)}, "n": 1}, ["b"], [])
    ({'b': {'c': tensor([1.])}, 'n': 1}, ['/a'])
    """
    if not include and not exclude:
        return state, []
    chosen, unmatched = selector(include or None, exclude or None)
    names = list(_prunable(state, ""))
    keys = state if isinstance(state, Mapping) else ()
    places = [f"{join('', str(key))}/" for key in keys]
    refuse_unmatched(unmatched(names, places), names, option="--")
    return _prune(state, "", chosen), [name for name in names if not chosen(name)]


def _prunable(value: Any, name: str) -> Iterator[str]:
    """The names of what :func:`_prune` may leave out."""
    if isinstance(value, torch.Tensor | np.ndarray):
        yield name
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _prunable(item, join(name, str(key)))
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            yield from _prunable(item, f"{name}/{index}")


def _prune(value: Any, name: str, chosen: Callable[[str], bool]) -> Any:
    if isinstance(value, dict):
        kept = [
            (key, _prune(item, below, chosen))
            for key, item in value.items()
            if _stays(item, below := join(name, str(key)), chosen)
        ]
        return _like(value, kept)
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(
            _prune(item, f"{name}/{index}", chosen)
            for index, item in enumerate(value)
            if _stays(item, f"{name}/{index}", chosen)
        )
    return value


def _stays(value: Any, name: str, chosen: Callable[[str], bool]) -> bool:
    return not isinstance(value, torch.Tensor | np.ndarray) or chosen(name)


def _like(value: dict[Any, Any], items: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dictionary of the same type as ``value`` with other items."""
    if isinstance(value, defaultdict):
        return defaultdict(value.default_factory, items)
    if isinstance(value, OrderedDict):
        copy = OrderedDict(items)
        if hasattr(value, "_metadata"):
            copy._metadata = value._metadata  # type: ignore[attr-defined]
        return copy
    return dict(items)


def is_optimizer(value: object) -> bool:
    """Whether this has the form of an optimizer's ``state_dict()``."""
    return isinstance(value, Mapping) and {"state", "param_groups"} <= value.keys()


def drop_optimizers(state: Any) -> tuple[Any, list[str]]:
    """The state without the states of optimizers, and the names of what was left out."""
    dropped: list[str] = []

    def walk(value: Any, name: str, inside_model: bool) -> Any:
        if not isinstance(value, dict) or inside_model:
            return value
        kept = []
        for key, item in value.items():
            below, text = join(name, str(key)), str(key).lower()
            named = _OPTIMIZER.fullmatch(text) and isinstance(item, dict | list | tuple)
            if named or is_optimizer(item):
                dropped.append(below)
            else:
                kept.append((key, walk(item, below, _MODEL.fullmatch(text) is not None)))
        return _like(value, kept)

    return walk(state, "", False), dropped


def cast(state: Any, dtype: torch.dtype, spool: Spool) -> tuple[Any, int]:
    """The state with the model's floating-point tensors in another dtype.

    Optimizers, schedulers, scalers and the states of random generators keep theirs. Tensors that
    are tied stay tied.

    Args:
        state: nested dictionaries and sequences.
        dtype: of floating point.
        spool: where converted tensors lie.

    Returns:
        The state, and how many tensors were converted.
    """
    done: dict[tuple[object, ...], torch.Tensor] = {}
    count = 0

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal count
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype)
        key = (*place, tuple(tensor.shape), tensor.stride(), tensor.requires_grad)
        if key not in done or not tensor.numel():
            count += 1
            done[key] = _converted(tensor, dtype, spool)
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(done[key].detach(), requires_grad=tensor.requires_grad)
        return done[key]

    def walk(value: Any, checked: bool, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise LimitError(f"the state is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, torch.Tensor):
            plain = value.layout == torch.strided and value.is_floating_point()
            return convert(value) if plain and value.dtype != dtype else value
        if isinstance(value, dict):
            if is_optimizer(value):
                return value
            return _like(
                value,
                [
                    (key, item)
                    if checked and _TRAINING.fullmatch(str(key).lower())
                    else (
                        key,
                        walk(
                            item,
                            checked and not _MODEL.fullmatch(str(key).lower()),
                            depth + 1,
                        ),
                    )
                    for key, item in value.items()
                ],
            )
        if type(value) in (list, tuple):
            return type(value)(walk(item, checked, depth + 1) for item in value)
        return value

    return walk(state, True, 0), count


def _converted(tensor: torch.Tensor, dtype: torch.dtype, spool: Spool) -> torch.Tensor:
    order = list(range(tensor.dim()))
    if is_dense(tensor.shape, tensor.stride()):
        # In the order of its memory, so that it lies there as before.
        steps = tensor.stride()
        order.sort(key=lambda dim: -steps[dim])
        tensor = tensor.permute(order)
    target = spool.tensor(dtype, tensor.shape)
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
