"""The parts of a training state: models without their wrappers, generators, loaders, and the rest.

A part that is not a module or an optimizer becomes an object with ``state_dict`` and
``load_state_dict``, so that all of them are saved and restored in one way.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from ..errors import ArgumentError, quote
from ..format.pointer import join
from .loader import ResumedLoader, is_stateful_loader
from .rng import rng_state, set_rng_state

#: When a part is loaded. Others may depend on the parts before them: a scheduler may look at its
#: optimizer, a loader moves its sampler, and the iterator of a loader draws a random number.
PLAIN, OF_OPTIMIZER, LOADER, OF_LOADER, GENERATOR = range(5)

#: Of a pointer to a part.
_LONGEST: Final = 512


@dataclass(frozen=True)
class Part:
    """An object that is loaded by its own ``load_state_dict``.

    Attributes:
        kind: when it is loaded, see :data:`PLAIN`.
        save, load: return its state, and take it.
    """

    kind: int
    save: Callable[[], Any]
    load: Callable[[Any], object]


def part_of(value: Any, name: str, optimizers: list[torch.optim.Optimizer]) -> Part:
    """The part that an object is.

    Raises:
        ArgumentError: it is nothing that has a state.
    """
    for generator, make in _GENERATORS.items():
        if isinstance(value, generator):
            return make(value)
    if not hasattr(value, "state_dict") or not hasattr(value, "load_state_dict"):
        raise _no_state(value, name)
    if is_stateful_loader(value):
        loader = ResumedLoader(value, name)
        return Part(LOADER, loader.state_dict, loader.load_state_dict)
    held = [*getattr(value, "__dict__", {}).values()]
    of_optimizer = any(item is optimizer for item in held for optimizer in optimizers)
    kind = OF_OPTIMIZER if of_optimizer else OF_LOADER if hasattr(value, "__iter__") else PLAIN
    return Part(kind, value.state_dict, value.load_state_dict)


def _no_state(value: Any, name: str) -> ArgumentError:
    hint = "Give objects with state_dict and load_state_dict, or lists and dicts of these; plain"
    hint = f"{hint} values go into extra={{...}}."
    if isinstance(value, torch.utils.data.DataLoader):
        hint = "A DataLoader does not know its position. Use torchdata's StatefulDataLoader, or a"
        hint = f"{hint} jsonckpt.training.SeededOrder as the sampler, and pass that."
    return ArgumentError(
        f"{name} is {quote(value, 60)}, which has no state_dict and load_state_dict", hint=hint
    )


def _torch_generator(generator: torch.Generator) -> Part:
    return Part(
        GENERATOR, generator.get_state, lambda state: generator.set_state(state.cpu()) and None
    )


def _numpy_generator(generator: np.random.Generator) -> Part:
    def load(state: Any) -> None:
        generator.bit_generator.state = state

    return Part(GENERATOR, lambda: generator.bit_generator.state, load)


def _numpy_legacy(generator: np.random.RandomState) -> Part:
    return Part(GENERATOR, lambda: generator.get_state(legacy=False), generator.set_state)


def _python_generator(generator: random.Random) -> Part:
    return Part(GENERATOR, generator.getstate, generator.setstate)


_GENERATORS: Final[Mapping[type, Callable[[Any], Part]]] = {
    torch.Generator: _torch_generator,
    np.random.Generator: _numpy_generator,
    np.random.RandomState: _numpy_legacy,
    random.Random: _python_generator,
}
#: The global random number generators.
GLOBAL_RNG: Final = Part(GENERATOR, rng_state, set_rng_state)


def extra_part(extra: dict[str, Any]) -> Part:
    """The plain values of the caller. They go back into the same dictionary."""

    def load(state: Any) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(f"expected a dictionary, found {type(state).__name__}")
        extra.update(state)

    return Part(PLAIN, lambda: dict(extra), load)


def _wrapped(module: torch.nn.Module) -> str:
    """The name of the module that a wrapper of torch holds; empty if it is no wrapper."""
    if isinstance(module, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        return "module"
    compiled = sys.modules.get("torch._dynamo.eval_frame")  # to import it takes seconds
    if compiled is not None and isinstance(module, compiled.OptimizedModule):
        return "_orig_mod"
    return ""


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The module in ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``."""
    while name := _wrapped(module):
        module = getattr(module, name)
    return module


class InnerNames:
    """The names in a module's state dict without those of wrappers inside of it.

    They are found by the modules, not by their names: a model may have a part named ``module``.

    Attributes:
        differ: whether there are any.

    >>> model = torch.nn.Sequential(torch.nn.DataParallel(torch.nn.Linear(1, 1)))
    >>> list(InnerNames(model).state_dict())
    ['0.weight', '0.bias']
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._inner = {
            path: name
            for path, part in module.named_modules(remove_duplicate=False)
            if (name := _wrapped(part))
        }
        self.differ = bool(self._inner)

    def state_dict(self) -> Any:
        """The module's state dict under these names."""
        state = self._module.state_dict()
        if not self._inner:
            return state
        result: Any = type(state)((self.plain(key), item) for key, item in state.items())
        if hasattr(state, "_metadata"):
            metadata: Any = state._metadata
            items = ((self.plain(path), item) for path, item in metadata.items())
            result._metadata = type(metadata)(items)
        return result

    def plain(self, key: str) -> str:
        """A name without the names that wrappers add."""
        path, kept = "", []
        for part in key.split("."):
            if self._inner.get(path) != part:
                kept.append(part)
            path = f"{path}.{part}" if path else part
        return ".".join(kept)


def leaves(value: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:
    """The objects in nested dicts and lists, with their pointers.

    Raises:
        ArgumentError: one contains itself.
    """
    if len(pointer) > _LONGEST:
        raise ArgumentError(f"parts are nested too deeply, or contain themselves: {quote(pointer)}")
    if isinstance(value, (Mapping, list, tuple)):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in pairs:
            yield from leaves(item, join(pointer, str(key)))
    else:
        yield pointer, value


def mapped(value: Any, change: Callable[[Any, str], Any], pointer: str = "") -> Any:
    """Nested dicts and lists with ``change(object, pointer)`` in place of each object."""
    if isinstance(value, Mapping):
        return {key: mapped(item, change, join(pointer, str(key))) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [
            mapped(item, change, join(pointer, str(position)))
            for position, item in enumerate(value)
        ]
    return change(value, pointer)
