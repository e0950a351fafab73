"""What a training loop must keep to go on, after a stop, exactly as if it had not stopped.

A loop resumes exactly when these are saved and put back: weights, optimizer, schedule, gradient
scaler, the random number generators, the place in the data, and its own counters. torch gives state
dicts for the first four; this room has the rest. All of it is plain Python, NumPy arrays and
tensors: put it into the state that :func:`jsonckpt.save` writes.

Save only between optimizer steps: gradients that are still being accumulated are in no state dict.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jsonckpt.errors import ArgumentError, LimitError, StateMismatchError, quote
from jsonckpt.objects import load_optimizer
from jsonckpt.runs import checkpoints, latest

__all__ = [
    "Deadline",
    "SeededOrder",
    "checkpoints",
    "fork_rng",
    "latest",
    "restore_optimizer",
    "rng_state",
    "set_rng_state",
]


# Random number generators ---------------------------------------------------------------------


def rng_state(*, cuda: bool | None = None) -> dict[str, Any]:
    """The state of every global random number generator that training draws from.

    Generators of your own (``numpy.random.Generator``, ``torch.Generator``) are not in it: save
    their ``bit_generator.state`` and ``get_state()`` beside it.

    Args:
        cuda: whether to include the generators of all CUDA devices; by default where there are any.
            Pass ``False`` in a loop that trains on the CPU of a machine that has GPUs.

    Returns:
        ``python`` (the tuple of ``random.getstate``), ``numpy`` (a dictionary, any bit generator),
        ``torch`` (uint8 tensor), ``cuda`` (one uint8 tensor for each device, or ``None``).

    >>> state = rng_state()
    >>> first = random.random(), float(np.random.rand()), float(torch.rand(()))
    >>> set_rng_state(state)
    >>> first == (random.random(), float(np.random.rand()), float(torch.rand(())))
    True
    """
    if cuda is None:
        cuda = torch.cuda.is_available()
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda else None,
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what :func:`rng_state` returned: all of it, or nothing.

    The tensors may lie on any device, so a checkpoint that was loaded onto a GPU will do. Where
    ``state["cuda"]`` is ``None`` the generators of the GPUs are left as they are.

    Raises:
        StateMismatchError: a part is missing or not what its generator takes, or the state was
            saved with another number of GPUs than this process sees.
    """
    parts = ("python", "numpy", "torch", "cuda")
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
    for name in parts:
        if state[name] is None and name == "cuda":
            continue
        try:
            setters[name](state[name])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            for undone in parts[: parts.index(name) + 1]:
                setters[undone](before[undone])
            raise StateMismatchError(
                f"the generator {name!r} does not take the saved state: {quote(error, 200)}",
                hint="Nothing was changed. The state must come back as rng_state() gave it, tuples "
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
    """Leave the training's random numbers alone: whatever the block draws is undone at its end.

    Wrap evaluation and the sampling of text in it, then how often one evaluates does not change
    the training.

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


# The place in the data ------------------------------------------------------------------------

_WORD = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_Words = npt.NDArray[np.uint64]


def _mix(values: _Words) -> _Words:
    """The SplitMix64 finaliser: a bijection of the 64-bit words that looks random."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values


class SeededOrder:
    """A shuffled order of samples that depends on ``(n, seed, epoch)`` alone, and a place in it.

    The permutation comes from 64-bit integer arithmetic, not from a library's generator: it is the
    same in every release of Python, NumPy and torch, and nothing of it needs saving.

    ``position`` counts the samples whose effect is in the weights. Only :meth:`advance` moves it,
    never iterating: a loader that reads ahead, or an accumulation that was cut off, does not
    move it. The object may be given to a ``DataLoader`` as its ``sampler``.

    Args:
        n: number of samples.
        seed: 0 up to 2**64-1.
        epoch: the epoch to begin with.

    Raises:
        LimitError: a number is out of its range.

    >>> order = SeededOrder(10, seed=1)
    >>> order.order().tolist()
    [0, 1, 4, 3, 9, 7, 2, 6, 8, 5]
    >>> order.advance(8)
    >>> resumed = SeededOrder(10)
    >>> resumed.load_state_dict(order.state_dict())
    >>> list(resumed)
    [8, 5]
    """

    def __init__(self, n: int, seed: int = 0, *, epoch: int = 0) -> None:
        for label, value in (("n", n), ("seed", seed), ("epoch", epoch)):
            if not isinstance(value, int | np.integer):
                kind = quote(type(value).__name__)
                raise ArgumentError(f"{label} must be an integer, not {kind}")
            if not 0 <= value <= _WORD:
                raise LimitError(f"{label} is {quote(value)}, expected 0 up to 2**64-1")
        self.n = n
        self.seed = seed
        self.epoch = epoch
        self.position = 0

    def order(self, epoch: int | None = None) -> npt.NDArray[np.int64]:
        """The permutation of ``range(n)`` for an epoch (the current one). Shape ``(n,)``."""
        # Arrays of one element, because NumPy warns when a scalar wraps around.
        seed_word = np.full(1, self.seed, dtype=np.uint64)
        epoch_word = np.full(1, self.epoch if epoch is None else epoch, dtype=np.uint64)
        # Mixing one before the other keeps (seed 0, epoch 1) and (seed 1, epoch 0) apart.
        base = _mix(_mix(seed_word + _GOLDEN) ^ (epoch_word * _GOLDEN))
        keys = _mix(base + np.arange(self.n).astype(np.uint64))
        return np.argsort(keys, kind="stable").astype(np.int64, copy=False)

    def remaining(self) -> npt.NDArray[np.int64]:
        """The indices of this epoch from ``position`` on. Shape ``(n - position,)``."""
        return self.order()[self.position :]

    def advance(self, count: int) -> None:
        """Count ``count`` more samples of this epoch as done.

        Raises:
            LimitError: the epoch has not so many left.
        """
        if not isinstance(count, int | np.integer):
            raise ArgumentError(f"count must be an integer, not {quote(type(count).__name__)}")
        if not 0 <= count <= self.n - self.position:
            raise LimitError(
                f"cannot advance by {quote(count)}: {self.position} of {self.n} samples are done",
                hint="Call next_epoch() at the end of an epoch.",
            )
        self.position += count

    def next_epoch(self) -> None:
        """Begin the next epoch at its first sample."""
        self.epoch += 1
        self.position = 0

    def __iter__(self) -> Iterator[int]:
        yield from self.remaining().tolist()

    def __len__(self) -> int:
        return self.n - self.position

    def state_dict(self) -> dict[str, int]:
        """``n``, ``seed``, ``epoch`` and ``position``."""
        return {"n": self.n, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a saved place; seed and epoch are taken from it, too.

        Raises:
            StateMismatchError: it is for another number of samples, or no such state.
        """
        numbers = [state.get(key) for key in ("n", "seed", "epoch", "position")]
        if not all(type(number) is int and 0 <= number <= _WORD for number in numbers):
            raise StateMismatchError(
                "not a state of SeededOrder: expected the integers n, seed, epoch and position"
            )
        n, seed, epoch, position = (int(number) for number in numbers if number is not None)
        if n != self.n or position > n:
            raise StateMismatchError(
                f"the saved order is at {position} of {n} samples, and there are {self.n} now",
                hint="Resume with the data that the run began with, or begin with a new order.",
            )
        self.seed, self.epoch, self.position = seed, epoch, position


# The optimizer --------------------------------------------------------------------------------


def restore_optimizer(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """``optimizer.load_state_dict(state_dict)``, but every state tensor keeps its saved dtype.

    torch casts the state to the dtype of the parameters (pytorch/pytorch#43706), which rounds, for
    instance, float32 moments of bfloat16 parameters, and a resumed run then differs. The tensors
    are moved to the parameters' devices; those that are there already are taken over, not copied.

    State goes to parameters by name where both sides have ``param_names`` (optimizers made from
    ``named_parameters()``), else by position. An optimizer that has a ``load_state_dict`` of its
    own, or hooks on it, checks and orders the state itself.

    Raises:
        StateMismatchError: the parameter groups, their names or the shapes differ, or the state is
            of another kind of optimizer, or it has no tensors, or its keys are no longer integers.
            The optimizer is then unchanged. Or the optimizer's own ``load_state_dict`` failed.

    >>> weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    >>> optimizer = torch.optim.SGD([weight], momentum=0.9)
    >>> saved = {"state": {0: {"momentum_buffer": torch.tensor([0.1, 0.2])}},
    ...          "param_groups": optimizer.state_dict()["param_groups"]}
    >>> restore_optimizer(optimizer, saved)
    >>> optimizer.state[weight]["momentum_buffer"]
    tensor([0.1000, 0.2000])
    """
    state, groups = state_dict.get("state"), state_dict.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, Sequence):
        raise StateMismatchError(
            "not the state of an optimizer: expected 'state' and 'param_groups'"
        )
    if state and not any(state.values()):
        raise StateMismatchError(
            "the saved optimizer has no tensors: they were left out when it was loaded",
            hint="Load without exclude=, or go on with a fresh optimizer without restoring it.",
        )
    load_optimizer(optimizer, "", dict(state_dict))


# The end of the session -----------------------------------------------------------------------


class Deadline:
    """When to save and stop: a time on the wall clock first, a signal second.

    As a context manager it takes SIGTERM for as long as the block runs, which only the main thread
    can do; in another thread it watches the clock alone. A second SIGTERM acts as it would have
    without this class, so a process that hangs can still be ended.

    Args:
        seconds: from now on; ``None`` for no limit of time.
        signals: the signals that ask for a stop.
        clock: seconds that never go back.

    >>> with Deadline(12 * 3600) as deadline:
    ...     deadline.reached(), deadline.reached(reserve=13 * 3600)
    (False, True)
    >>> deadline.reason
    'the time is up'
    """

    def __init__(
        self,
        seconds: float | None = None,
        *,
        signals: Sequence[signal.Signals] = (signal.SIGTERM,),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if seconds is not None and not (isinstance(seconds, int | float) and seconds == seconds):
            raise ArgumentError(f"seconds must be a number or None, not {quote(seconds)}")
        self._clock = clock
        self._end = float("inf") if seconds is None else clock() + seconds
        self._signals = tuple(signals)
        self._previous: dict[int, Any] = {}
        #: Why :meth:`reached` was true; ``None`` as long as it was not.
        self.reason: str | None = None

    def reached(self, reserve: float = 0.0) -> bool:
        """Whether to stop now.

        Args:
            reserve: seconds that the last save needs; twice the time of the one before is prudent.
        """
        if self.reason is None and self._clock() + reserve >= self._end:
            self.reason = "the time is up"
        return self.reason is not None

    def __enter__(self) -> Deadline:
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number in list(self._previous):
            self._give_back(number)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.reason = f"{signal.Signals(number).name} was received"
        self._give_back(number)

    def _give_back(self, number: int) -> None:
        previous = self._previous.pop(number)
        # None stands for a handler that was not installed from Python and cannot be put back.
        signal.signal(number, signal.SIG_DFL if previous is None else previous)
