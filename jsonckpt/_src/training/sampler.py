"""Gives a sampler of torch a place that can be saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from ..errors import ArgumentError, StateMismatchError, quote


class ResumableSampler(torch.utils.data.Sampler[Any]):
    """A sampler of torch, in a ``StatefulDataLoader``, that resumes with the same order.

    ``WeightedRandomSampler``, ``SubsetRandomSampler`` and others draw their order when an epoch
    begins, and keep no state: a resumed run draws another order. This class remembers the random
    state from which the order was drawn. It holds the indices of one epoch in memory.

    Args:
        sampler: any iterable of indices that draws from torch's global generator, or from the
            ``torch.Generator`` in its attribute ``generator``.

    >>> weights = torch.utils.data.WeightedRandomSampler([0.1, 0.9, 0.5], 6)
    >>> samples = iter(ResumableSampler(weights))
    >>> first = [next(samples), next(samples)]
    >>> resumed = iter(ResumableSampler(weights))
    >>> resumed.load_state_dict(samples.state_dict())
    >>> list(resumed) == list(samples)
    True
    """

    def __init__(self, sampler: Iterable[Any]) -> None:
        if not isinstance(sampler, Iterable):
            raise ArgumentError(f"sampler must be iterable, not {quote(sampler, 60)}")
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        return _Samples(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Pass the number of the epoch on, as a ``DistributedSampler`` wants it."""
        self.sampler.set_epoch(epoch)  # type: ignore[attr-defined]


class _Samples(Iterator[Any]):
    """The indices of one epoch."""

    def __init__(self, sampler: Iterable[Any]) -> None:
        self._sampler = sampler
        self._start = self._generators()
        self._order = list(sampler)
        self._next = 0

    def _own(self) -> torch.Generator | None:
        own = getattr(self._sampler, "generator", None)
        return own if isinstance(own, torch.Generator) else None

    def _generators(self) -> dict[str, Any]:
        own = self._own()
        return {
            "torch": torch.get_rng_state(),
            "generator": None if own is None else own.get_state(),
            "epoch": getattr(self._sampler, "epoch", None),
        }

    def _draw(self, start: Mapping[str, Any]) -> list[Any]:
        """The order that is drawn from a random state. The generators stay as they are."""
        before, own = self._generators(), self._own()
        try:
            torch.set_rng_state(start["torch"].cpu())
            if own is not None and start["generator"] is not None:
                own.set_state(start["generator"].cpu())
            if start["epoch"] is not None:
                self._sampler.epoch = start["epoch"]  # type: ignore[attr-defined]
            return list(self._sampler)
        finally:
            torch.set_rng_state(before["torch"])
            if own is not None:
                own.set_state(before["generator"])

    def __next__(self) -> Any:
        if self._next == len(self._order):
            raise StopIteration
        self._next += 1
        return self._order[self._next - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"yielded": self._next, "start": self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        try:
            order, count = self._draw(state["start"]), int(state["yielded"])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise StateMismatchError(
                f"not a state of ResumableSampler: {quote(error, 200)}"
            ) from error
        if not 0 <= count <= len(order):
            raise StateMismatchError(
                f"the saved sampler is at {count}, and the order has {len(order)} samples now",
                hint="Resume with the data of the original run.",
            )
        self._start, self._order, self._next = dict(state["start"]), order, count
