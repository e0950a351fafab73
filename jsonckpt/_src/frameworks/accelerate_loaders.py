"""The place in a data loader that Accelerate prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def loader_state(accelerator: Any, loader: Any) -> dict[str, Any]:
    """What a data loader needs to go on: its epoch, its place, the generator of its order."""
    running = any(one is loader for one in accelerator.gradient_state.dataloader_references)
    finished = bool(getattr(loader, "end_of_dataloader", False))
    generator = getattr(loader, "synchronized_generator", None)
    return {
        # The count goes up when the loop asks for a batch after the last one.
        "epoch": getattr(loader, "iteration", 0) + (running and finished),
        "place": loader.state_dict() if _is_stateful(loader) else None,
        "inside_epoch": running and not finished,
        "generator": generator.get_state() if generator is not None else None,
        "seed": getattr(_sampler(loader), "initial_seed", None),
    }


def restore_loader(loader: Any, saved: Mapping[str, Any], restore_rng: Callable[[], None]) -> None:
    """Put a data loader back to its place.

    Args:
        restore_rng: is called when a loader that stopped inside an epoch has given its first batch.
            Its start draws random numbers, which the run that did not stop has drawn before.
    """
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(saved["epoch"])
    generator = getattr(loader, "synchronized_generator", None)
    if generator is not None and saved["generator"] is not None:
        generator.set_state(saved["generator"])
    if saved["seed"] is not None and hasattr(sampler := _sampler(loader), "initial_seed"):
        sampler.initial_seed = saved["seed"]
    if saved["place"] is None or not _is_stateful(loader):
        return
    loader.load_state_dict(saved["place"])
    if saved["inside_epoch"]:
        _after_first_batch(loader.base_dataloader, restore_rng)


def _is_stateful(loader: Any) -> bool:
    return bool(getattr(loader, "use_stateful_dataloader", False))


def _sampler(loader: Any) -> Any:
    return loader.get_sampler() if hasattr(loader, "get_sampler") else None


def _after_first_batch(loader: Any, then: Callable[[], None]) -> None:
    """Call a function once, when the next iterator of a loader has given its first batch."""

    def begin() -> Iterator[Any]:
        del loader.__iter__  # the class has the usual one
        batches = iter(loader)
        for first in batches:
            then()
            yield first
            yield from batches

    # Accelerate's wrapper looks the method up in the loader, not in its class.
    loader.__iter__ = begin
