"""The random number generators of a training run, saved and restored."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch

from ..errors import StateMismatchError, quote

#: Generators of other devices: whether there are any, and how to read and set their state.
_OTHERS: Final[
    Mapping[str, tuple[Callable[[], bool], Callable[[], Any], Callable[[Any], object]]]
] = {
    "mps": (
        torch.backends.mps.is_available,
        lambda: torch.mps.get_rng_state(),
        lambda state: torch.mps.set_rng_state(state.cpu()),
    ),
    "xpu": (
        lambda: torch.xpu.is_available(),
        lambda: torch.xpu.get_rng_state_all(),
        lambda states: torch.xpu.set_rng_state_all([one.cpu() for one in states]),
    ),
}


def rng_state(*, cuda: bool | None = None) -> dict[str, Any]:
    """The state of every global random number generator that training draws from.

    Your own generators (``numpy.random.Generator``, ``torch.Generator``) are not included: save
    their ``bit_generator.state`` and ``get_state()``, too.

    Args:
        cuda: whether to include the generators of all CUDA devices; by default if there are any.
            Pass ``False`` in a loop that trains on the CPU of a machine with GPUs.

    Returns:
        ``python`` (the tuple of ``random.getstate``), ``numpy`` (a dictionary, any bit generator),
        ``torch`` (uint8 tensor), ``cuda`` (one uint8 tensor for each device, or ``None``); on such
        machines also ``mps`` (uint8 tensor) and ``xpu`` (as ``cuda``).

    >>> state = rng_state()
    >>> first = random.random(), float(np.random.rand()), float(torch.rand(()))
    >>> set_rng_state(state)
    >>> first == (random.random(), float(np.random.rand()), float(torch.rand(())))
    True
    """
    if cuda is None:
        cuda = torch.cuda.is_available()
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda else None,
    }
    return state | {name: get() for name, (is_there, get, _) in _OTHERS.items() if is_there()}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what :func:`rng_state` returned: all of it, or nothing.

    The tensors may be on any device. If ``state["cuda"]`` is ``None``, the generators of the GPUs
    stay as they are.

    Raises:
        StateMismatchError: a part is missing, or its generator rejects it, or the state was saved
            with another number of GPUs than this process sees. Nothing is changed.
    """
    parts: tuple[str, ...] = ("python", "numpy", "torch", "cuda")
    missing = [name for name in parts if not isinstance(state, Mapping) or name not in state]
    if missing:
        raise StateMismatchError(
            f"not a state of rng_state(): it lacks {', '.join(missing)}",
            hint="Save what rng_state() returns as it is.",
        )
    cuda = state["cuda"]
    if cuda is not None:
        _check_gpu_count(cuda)
    setters: dict[str, Callable[[Any], object]] = {
        "python": random.setstate,
        "numpy": np.random.set_state,
        "torch": lambda value: torch.set_rng_state(value.cpu()),
        "cuda": lambda value: torch.cuda.set_rng_state_all([one.cpu() for one in value]),
    }
    before = rng_state(cuda=cuda is not None)
    for name, (is_there, _, put) in _OTHERS.items():
        if name in state and is_there():  # those of a device that this machine lacks are left out
            parts, setters = (*parts, name), {**setters, name: put}
    for name in parts:
        if state[name] is None and name == "cuda":
            continue
        try:
            setters[name](state[name])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            for undone in parts[: parts.index(name) + 1]:
                if before[undone] is not None:
                    setters[undone](before[undone])
            raise StateMismatchError(
                f"the generator {name!r} rejects the saved state: {quote(error, 200)}",
                hint="Nothing was changed. Pass the state as rng_state() returned it, tuples "
                "as tuples and arrays as arrays.",
            ) from error


def _check_gpu_count(saved: object) -> None:
    if not isinstance(saved, Sequence):
        raise StateMismatchError(
            f"the state of the CUDA generators is {quote(type(saved).__name__)}, "
            "expected a list with one tensor for each GPU, or None"
        )
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(saved) != here:
        raise StateMismatchError(
            f"the random state was saved with {len(saved)} GPUs, and this process sees {here}",
            hint='Show the process the same number of GPUs, or set state["cuda"] = None and accept '
            "that random numbers drawn on a GPU (dropout) will differ.",
        )


@contextmanager
def fork_rng(*, cuda: bool | None = None) -> Iterator[None]:
    """Reset the generators at the end of the block, so that its random numbers have no effect.

    Wrap evaluation and text generation in it. Then the training does not depend on how often you
    evaluate.

    >>> random.seed(7); expected = random.random()
    >>> random.seed(7)
    >>> with fork_rng():
    ...     _ = random.random(), torch.rand(3)
    >>> random.random() == expected
    True
    """
    state = rng_state(cuda=cuda)
    try:
        yield
    finally:
        set_rng_state(state)
