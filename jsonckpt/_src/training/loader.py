"""torchdata's ``StatefulDataLoader`` in a training state: what its own state leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from ..errors import ArgumentError, StateMismatchError, quote
from .sampler import ResumableSampler

#: Samplers that draw their order when an epoch begins.
_DRAWS: Final = (
    torch.utils.data.WeightedRandomSampler,
    torch.utils.data.SubsetRandomSampler,
    torch.utils.data.RandomSampler,
)


def is_stateful_loader(value: Any) -> bool:
    """Whether it is torchdata's ``StatefulDataLoader``, which need not be installed."""
    return any(kind.__name__ == "StatefulDataLoader" for kind in type(value).__mro__)


class ResumedLoader:
    """A ``StatefulDataLoader`` with all that its order depends on.

    Its own state lacks the generator that the caller gave to it, and the epoch of a distributed
    sampler. Where there are such, the state is a dictionary of ``loader`` (its own state) and
    ``generator`` or ``epoch``.

    Raises:
        ArgumentError: its order cannot be resumed: torchdata goes to a position of a sampler
            without state by iterating it again, and one that draws at random gives another order.
    """

    def __init__(self, loader: Any, name: str) -> None:
        self._loader = loader
        batches = getattr(loader, "batch_sampler", None)
        self._sampler = getattr(loader if batches is None else batches, "sampler", None)
        if isinstance(self._sampler, _DRAWS):
            kind = type(self._sampler).__name__
            raise ArgumentError(
                f"{name} has a {kind}, which draws its order anew when a run resumes",
                hint=f"Pass sampler=jsonckpt.training.ResumableSampler({kind}(...)) to the loader,"
                " or shuffle=True where that is the same.",
            )

    def _generator(self) -> torch.Generator | None:
        found = getattr(self._loader, "generator", None)
        if found is None and isinstance(self._sampler, ResumableSampler):
            found = getattr(self._sampler.sampler, "generator", None)
        return found if isinstance(found, torch.Generator) else None

    def state_dict(self) -> Any:
        """The position, and what else the order depends on."""
        state, beside = self._loader.state_dict(), {}
        generator = self._generator()
        if generator is not None:
            beside["generator"] = generator.get_state()
        if hasattr(self._sampler, "set_epoch") and type(_epoch(self._sampler)) is int:
            beside["epoch"] = _epoch(self._sampler)
        return {"loader": state, **beside} if beside else state

    def load_state_dict(self, state: Any) -> None:
        """Go to a position, and make the iterator now.

        The iterator draws a random number when it is made. In the run that saved, it was made at
        the beginning of the epoch. So it is made before the random state is restored. The next
        ``iter()`` of the loader returns it.
        """
        beside = {}
        if isinstance(state, Mapping) and "loader" in state:
            beside = {key: item for key, item in state.items() if key != "loader"}
            state = state["loader"]
        generator, saved = self._generator(), beside.get("generator")
        if (generator is None) != (saved is None):
            one = "the checkpoint" if generator is None else "this loader"
            raise StateMismatchError(
                f"only {one} has a generator of its own",
                hint="Build the loader with generator= as in the run that saved it.",
            )
        if beside.get("epoch") is not None:
            self._sampler.set_epoch(beside["epoch"])  # type: ignore[union-attr]
        self._loader.load_state_dict(state)
        try:
            self._loader.state_dict()
        except (AssertionError, LookupError) as error:
            self._loader.load_state_dict({})
            raise StateMismatchError(
                f"the loader refused its position: {quote(error, 200) or type(error).__name__}",
                hint="Resume with the same dataset, batch size and num_workers.",
            ) from error
        if generator is not None and saved is not None:
            generator.set_state(saved.cpu())


def _epoch(sampler: Any) -> Any:
    inner = sampler.sampler if isinstance(sampler, ResumableSampler) else sampler
    return getattr(inner, "epoch", None)
