"""Which tensors a read gives back, and on which devices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ArgumentError, quote
from ..state.selector import Selector, Unmatched, refuse_unmatched, selector
from ..tensors.map_location import MapLocation, Placement, placement

Allocate = Callable[[int], torch.UntypedStorage]


@dataclass(frozen=True)
class TensorSelection:
    """Which tensors are wanted, and where they go."""

    chosen: Callable[[str], bool]
    unmatched: Callable[..., Unmatched]
    placement: Placement
    allocate: Allocate | None

    @classmethod
    def of(
        cls,
        include: Selector | None = None,
        exclude: Selector | None = None,
        map_location: MapLocation = None,
        allocate: Allocate | None = None,
    ) -> TensorSelection:
        """From public arguments; ``allocate`` makes the storage of a CPU tensor from its size.

        Raises:
            ArgumentError: an argument is not valid.
        """
        chosen, unmatched = selector(_checked("include", include), _checked("exclude", exclude))
        return cls(chosen, unmatched, placement(map_location), allocate)

    def check(self, names: Collection[str], excludable: Iterable[str] = ()) -> None:
        """Check that each pattern matches one of the names.

        Args:
            excludable: what ``exclude`` may name although it has no tensor.

        Raises:
            StateMismatchError: a pattern matches nothing.
        """
        refuse_unmatched(self.unmatched(names, excludable), names)


def _checked(argument: str, value: Any) -> Selector | None:
    if value is None or isinstance(value, str) or callable(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        patterns = tuple(value)
        wrong = next((item for item in patterns if not isinstance(item, str)), None)
        if wrong is None:
            return patterns
        found = f"a sequence that holds {quote(wrong)}"
    else:
        found = quote(type(value).__name__)
    raise ArgumentError(
        f"{argument} must be a name, a pattern, a sequence of these, or a callable, not {found}"
    )
