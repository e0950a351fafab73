"""What ``load_into`` reads and where it goes, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch

from ..errors import StateMismatchError, UnsupportedTypeError, quote
from ..format.pointer import join
from ..tensors.memory import dtype_name, torch_dtype
from ..tensors.supported import require_cast, require_fillable
from .names import Prefixes
from .objects import call_loader, loads_itself
from .pairing import load_optimizer
from .placeholders import LEFT_OUT, Placeholder, placeholders_in, same_state, with_tensors

#: The ways out of mismatches, by their kind.
_WAYS: Final = {
    "dtype": "Pass cast=True to convert dtypes.",
    "cast": "torch cannot convert these dtypes: give the target the saved ones.",
    "optimizer": "Build the optimizer as in the run that saved it, from named_parameters() if the "
    "order of the parameters may differ.",
    "shape": "Build the target with the sizes of the run that saved it: no shape is changed.",
    "composite": "load_into fills dense tensors only: exclude= these and take them from "
    "jsonckpt.load.",
    "sharing": "Give the tensors of the target memory of their own with .clone(), or exclude= all "
    "but one.",
    "kind": "Where the kinds differ, None in a dict or list of the target takes what is saved.",
    "key": "Give the target the keys of the checkpoint: 0 and '0' are two.",
    "empty": "",
}
#: What to do about names that differ.
CHOOSE: Final = "Pass strict=False to copy what fits, include= or exclude= to choose."


@dataclass
class Plan:
    """What is read, and where it goes.

    Attributes:
        cast: whether a target may have another dtype.
        strict: whether all must fit.
        choose: what to do about names that differ.
        prefixes: names are compared without them.
        saved_names: by the id of a module, what each of its names is in the checkpoint.
        in_place: tensors of the checkpoint, with the existing tensors that they are copied into.
        own_loaders: objects that are loaded by their own ``load_state_dict``.
        allocated: by name, tensors that are read into new memory, and its device.
        actions: are called with these tensors when everything has been read.
        missing: names that only the target has, with their tensors; ``None`` for another object.
        unexpected: names that only the checkpoint has, with their tensors.
        mismatched: ``"name: what differs"`` for names that both have.
        kept: plain values of the target that the checkpoint lacks.
    """

    cast: bool
    strict: bool
    choose: str = CHOOSE
    prefixes: Prefixes = field(default_factory=Prefixes)
    saved_names: Mapping[int, Callable[[str], str]] = field(default_factory=dict)
    in_place: list[tuple[Placeholder, torch.Tensor]] = field(default_factory=list)
    own_loaders: list[OwnLoader] = field(default_factory=list)
    allocated: dict[str, tuple[Placeholder, torch.device]] = field(default_factory=dict)
    actions: list[Callable[[Mapping[str, torch.Tensor]], None]] = field(default_factory=list)
    missing: dict[str, torch.Tensor | None] = field(default_factory=dict)
    unexpected: dict[str, Any] = field(default_factory=dict)
    mismatched: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    _kinds: dict[str, None] = field(default_factory=dict)
    _seen: dict[int, tuple[str, Any]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether the plan copies nothing and has no error so far."""
        found = (self.in_place, self.own_loaders, self.allocated, self.actions)
        return not any(found) and not self.differs

    @property
    def differs(self) -> bool:
        """Whether anything does not fit."""
        return bool(self.missing or self.unexpected or self.mismatched)

    def is_first(self, target: object, pointer: str, value: Any) -> bool:
        """Whether an object that is changed as a whole is met for the first time."""
        first, other = self._seen.setdefault(id(target), (pointer, value))
        if first == pointer:
            return True
        if not same_state(other, value):
            self.differ(
                pointer,
                f"the same {type(target).__name__} as at {first}, for which the "
                "checkpoint has another state",
                "sharing",
            )
        return False

    def copy(self, source: Placeholder, tensor: torch.Tensor) -> None:
        """Copy into an existing tensor, if it fits.

        Raises:
            UnsupportedTypeError: the tensor cannot be filled: it has no memory of its own.
        """
        if not tensor.is_nested and is_composite(tensor):
            self.differ(
                source.name,
                f"a dense tensor in the checkpoint, {described(tensor)} in the target; only "
                "jsonckpt.load can give it",
                "composite",
            )
            return
        try:
            require_fillable(tensor)
        except UnsupportedTypeError as error:
            raise error.at(tensor=source.name)  # noqa: B904, the same error with its tensor
        if tuple(tensor.shape) != source.shape:
            self.differ(
                source.name,
                f"shape {list(source.shape)} in the checkpoint, {list(tensor.shape)} in the target",
                "shape",
            )
        elif self.check_dtype(source, tensor):
            self.in_place.append((source, tensor))

    def differ(self, pointer: str, what: str, kind: str = "kind") -> None:
        """Note that something does not fit.

        Args:
            kind: of the mismatch, which has a way out.
        """
        self.differ_all([f"{pointer or '/'}: {what}"], kind)

    def differ_all(self, found: Iterable[str], kind: str) -> None:
        """Note what does not fit: ``"name: what differs"``."""
        for text in found:
            self.mismatched.append(text)
            self._kinds[kind] = None

    def add_missing(self, target: Any, pointer: str) -> None:
        """Note that the checkpoint has nothing for a part of the target."""
        self.missing |= below(target, pointer)

    def add_unexpected(self, value: Any, pointer: str) -> None:
        """Note that the target has no place for a part of the checkpoint."""
        self.unexpected |= tensors_in(value, pointer)

    def ways_out(self, why: str) -> str:
        """What to do about the differences, in sentences.

        Args:
            why: what explains the names that differ.
        """
        kinds = (_WAYS[kind] for kind in self._kinds if not (why and kind == "kind"))
        return " ".join(filter(None, (why or self.choose, *kinds)))

    def check_dtype(self, source: Placeholder, tensor: torch.Tensor) -> bool:
        """Whether a tensor may take the source's dtype."""
        dtype = dtype_name(tensor)
        if dtype == source.dtype or (self.cast and _can_cast(source.dtype, tensor.dtype)):
            return True
        what = f"{source.dtype} in the checkpoint, {dtype} in the target"
        self.differ(source.name, what, "cast" if self.cast else "dtype")
        return False

    def allocate(self, value: Any, device: torch.device | None = None) -> None:
        """Read the tensors in ``value`` into new memory."""
        for source in placeholders_in(value):
            self.allocated[source.name] = (source, device or torch.device("cpu"))


@dataclass
class OwnLoader:
    """An object, and the state that goes to its ``load_state_dict``."""

    target: Any
    pointer: str
    value: Any

    def load(self, tensors: Mapping[str, torch.Tensor], plan: Plan) -> None:
        """Call its ``load_state_dict``.

        Raises:
            StateMismatchError: the object refused the state.
        """
        state = with_tensors(self.value, tensors)
        if isinstance(self.target, torch.optim.Optimizer):
            load_optimizer(self.target, self.pointer, state)
        elif isinstance(self.target, torch.nn.Module):
            self._load_module(state, plan)
        else:
            call_loader(self.target, self.pointer, state)

    def _load_module(self, state: Any, plan: Plan) -> None:
        left_out = {key for key, item in self.value.items() if item is LEFT_OUT}
        if plan.strict and not left_out:
            call_loader(self.target, self.pointer, state)
            return
        try:
            result = call_loader(self.target, self.pointer, state, partial=True)
        except StateMismatchError as error:
            if plan.strict or not isinstance(error.__cause__, RuntimeError):
                raise
            # A module copies what fits before it reports what does not.
            plan.mismatched.append(error.message)
            return
        missing = [
            join(self.pointer, key)
            for key in getattr(result, "missing_keys", ())
            if key not in left_out
        ]
        unexpected = [join(self.pointer, key) for key in getattr(result, "unexpected_keys", ())]
        if plan.strict and (missing or unexpected):
            raise StateMismatchError(
                "the checkpoint and the target differ; the part of this module that fits is loaded",
                missing=missing,
                unexpected=unexpected,
            )
        plan.missing |= dict.fromkeys(missing)
        plan.unexpected |= dict.fromkeys(unexpected)


@lru_cache
def _can_cast(source: str, target: torch.dtype) -> bool:
    try:
        require_cast(torch_dtype(source), target)
    except StateMismatchError:
        return False
    return True


def is_composite(tensor: torch.Tensor) -> bool:
    """Whether it is sparse or quantized: its memory is more than one dense tensor."""
    return tensor.is_quantized or tensor.layout != torch.strided


def described(value: Any) -> str:
    """What something is, for a message.

    >>> described([1, 2]), described(torch.ones(1)), described(1)
    ('a list of 2', 'a dense tensor', 'the int 1')
    """
    if isinstance(value, torch.Tensor):
        if value.is_quantized:
            return f"a quantized tensor ({str(value.dtype).removeprefix('torch.')})"
        layout = str(value.layout).removeprefix("torch.")
        return "a dense tensor" if layout == "strided" else f"a tensor of layout {layout}"
    if isinstance(value, Placeholder):
        return "a tensor"
    if isinstance(value, Mapping):
        return f"a dict of {len(value)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array of shape {list(value.shape)}"
    if type(value) in (int, float, bool):
        return f"the {type(value).__name__} {value}"
    return "None" if value is None else f"the {type(value).__name__} {quote(value, 40)}"


def below(target: Any, pointer: str) -> dict[str, torch.Tensor | None]:
    """The tensors in a target by name; ``None`` for objects that are loaded as a whole."""
    if isinstance(target, torch.Tensor):
        return {pointer: target}
    if isinstance(target, torch.nn.Module):
        if loads_itself(target):
            return {pointer: None}
        target = target.state_dict()
    elif hasattr(target, "load_state_dict") and not isinstance(target, (Mapping, list, tuple)):
        return {pointer: None}
    found: dict[str, torch.Tensor | None] = {}
    for key, item in _members(target):
        found |= below(item, join(pointer, str(key)))
    return found


def tensors_in(value: Any, pointer: str) -> dict[str, Any]:
    """The tensors in a part of the checkpoint by name: placeholders, and those read at once."""
    if isinstance(value, Placeholder):
        return {value.name: value}
    if isinstance(value, torch.Tensor):
        return {pointer: value}
    found: dict[str, Any] = {}
    for key, item in _members(value):
        found |= tensors_in(item, join(pointer, str(key)))
    return found


def _members(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)
