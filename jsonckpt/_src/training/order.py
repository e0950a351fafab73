"""A shuffled order of a data set that can resume in the middle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, LimitError, StateMismatchError, quote

_WORD = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_Words = npt.NDArray[np.uint64]


def _mix(values: _Words) -> _Words:
    """The SplitMix64 finaliser: a bijection of 64-bit words that looks random."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values


class SeededOrder:
    """A shuffled order of samples that depends only on ``(n, seed, epoch)``, and a place in it.

    The permutation comes from 64-bit integer arithmetic, not from a library's generator. It is the
    same in every release of Python, NumPy and torch, and does not need saving.

    ``position`` counts the samples whose effect is in the weights. Only :meth:`advance` moves it,
    never iteration: a loader that reads ahead does not move it, and neither does an interrupted
    accumulation. The object can be the ``sampler`` of a ``DataLoader``. A ``StatefulDataLoader``
    counts for itself, also with workers: with it, call only :meth:`next_epoch`.

    Args:
        n: the number of samples.
        seed: from 0 to 2**64-1.
        epoch: the first epoch.

    Raises:
        LimitError: a number is out of range.

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

    def __repr__(self) -> str:
        return (
            f"SeededOrder({self.n}, seed={self.seed}, epoch={self.epoch}, position={self.position})"
        )

    def order(self, epoch: int | None = None) -> npt.NDArray[np.int64]:
        """The permutation of ``range(n)`` for an epoch (the current one). Shape ``(n,)``."""
        # Arrays of one element: NumPy warns when a scalar wraps around.
        seed_word = np.full(1, self.seed, dtype=np.uint64)
        epoch_word = np.full(1, self.epoch if epoch is None else epoch, dtype=np.uint64)
        # The seed is mixed first, so that (seed 0, epoch 1) differs from (seed 1, epoch 0).
        base = _mix(_mix(seed_word + _GOLDEN) ^ (epoch_word * _GOLDEN))
        keys = _mix(base + np.arange(self.n).astype(np.uint64))
        return np.argsort(keys, kind="stable").astype(np.int64, copy=False)

    def remaining(self) -> npt.NDArray[np.int64]:
        """The indices of this epoch from ``position`` on. Shape ``(n - position,)``."""
        return self.order()[self.position :]

    def advance(self, count: int) -> None:
        """Count ``count`` more samples of this epoch as done.

        Raises:
            LimitError: fewer samples are left in the epoch.
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
        return _OrderIterator(self)

    def __len__(self) -> int:
        return self.n - self.position

    def state_dict(self) -> dict[str, int]:
        """``n``, ``seed``, ``epoch`` and ``position``."""
        return {"n": self.n, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a saved place, with its seed and epoch.

        Raises:
            StateMismatchError: not such a state, or one for another number of samples.
        """
        self.seed, self.epoch, self.position = self._place(state)

    def _place(self, state: Mapping[str, int]) -> tuple[int, int, int]:
        """The seed, epoch and position of a saved place."""
        found = state if isinstance(state, Mapping) else {}
        numbers = [found.get(key) for key in self.state_dict()]
        if not all(type(number) is int and 0 <= number <= _WORD for number in numbers):
            raise StateMismatchError(
                "not a state of SeededOrder: expected the integers n, seed, epoch and position"
            )
        n, seed, epoch, position = (int(number) for number in numbers if number is not None)
        if n != self.n or position > n:
            raise StateMismatchError(
                f"the saved order is at {position} of {n} samples, and there are {self.n} now",
                hint="Resume with the data of the original run, or begin with a new order.",
            )
        return seed, epoch, position


class _OrderIterator(Iterator[int]):
    """The samples of an epoch from a position on, with its own place for ``StatefulDataLoader``.

    Its place is the sample that comes next. That of the order is what was trained with.
    """

    def __init__(self, order: SeededOrder) -> None:
        self._order = order
        self._start(order.seed, order.epoch, order.position)

    def _start(self, seed: int, epoch: int, position: int) -> None:
        self._seed, self._epoch, self._position = seed, epoch, position
        self._samples = iter(
            SeededOrder(self._order.n, seed, epoch=epoch).order()[position:].tolist()
        )

    def __next__(self) -> int:
        sample = next(self._samples)
        self._position += 1
        return int(sample)

    def state_dict(self) -> dict[str, int]:
        return {
            "n": self._order.n,
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._start(*self._order._place(state))
