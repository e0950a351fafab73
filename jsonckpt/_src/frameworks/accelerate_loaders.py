"""The place in a data loader that Accelerate prepared."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

#: Data loaders whose first iterator was not made by ``prepare``.
_known_order: weakref.WeakSet[Any] = weakref.WeakSet()
#: Members of a place that say where the data set itself is.
_OF_DATA_SETS = ("dataset_state", "fetcher_state")


def loader_state(accelerator: Any, loader: Any) -> dict[str, Any]:
    """What a data loader needs to go on: its epoch, its place, the generator of its order."""
    running = any(one is loader for one in accelerator.gradient_state.dataloader_references)
    finished = bool(getattr(loader, "end_of_dataloader", False))
    generator = getattr(loader, "synchronized_generator", None)
    if running and not finished and _has_unknown_order(loader):
        warnings.warn(
            "the order of the first epoch of a stateful data loader with workers cannot be "
            "restored: Accelerate draws it before the seed of the order is known. JsonAccelerator "
            "draws it later. Checkpoints of later epochs, and those between epochs, are exact",
            RuntimeWarning,
            stacklevel=4,
        )
    return {
        # The count goes up when the loop asks for a batch after the last one.
        "epoch": getattr(loader, "iteration", 0) + (running and finished),
        "place": loader.state_dict() if _is_stateful(loader) else None,
        "inside_epoch": running and not finished,
        "generator": generator.get_state() if generator is not None else None,
        "seed": getattr(_sampler(loader), "initial_seed", None),
    }


def draw_order_later(loader: Any) -> Any:
    """Let the first iterator of a stateful loader begin with the loop, not when it is prepared."""
    if _is_stateful(loader):
        loader.load_state_dict({})
        _known_order.add(loader)
    return loader


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
    _known_order.add(loader)
    if saved["inside_epoch"] or _says_of_data_set(saved["place"]):
        loader.load_state_dict(saved["place"])
    elif saved["epoch"] > 0:
        loader.load_state_dict({})  # the next epoch begins with a new iterator, as it would have
    if saved["inside_epoch"]:
        _after_first_batch(loader.base_dataloader, restore_rng)


def _is_stateful(loader: Any) -> bool:
    return bool(getattr(loader, "use_stateful_dataloader", False))


def _has_unknown_order(loader: Any) -> bool:
    """Whether the first iterator is older than the sampler that gives the order."""
    return (
        _is_stateful(loader)
        and getattr(loader, "num_workers", 0) > 0
        and getattr(loader, "iteration", 0) == 0
        and hasattr(_sampler(loader), "initial_seed")
        and loader not in _known_order
    )


def _says_of_data_set(place: Any) -> bool:
    if not isinstance(place, Mapping):
        return False
    return any(
        value is not None if key in _OF_DATA_SETS else _says_of_data_set(value)
        for key, value in place.items()
    )


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
