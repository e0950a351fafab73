"""Tensors of a target that lie in one memory: each piece of it takes one value, or none."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch

from ..format.dtypes import DTYPES
from ..format.model import Entry
from ..tensors.memory import contiguous_stride, dtype_name
from ..tensors.overlap import Region, overlaps_itself, sharing_groups
from .matching import Match
from .placeholders import Placeholder

_PLAIN: Final = (torch.Tensor, torch.nn.Parameter)
#: ``same_values(one, two, dtype)``: whether two slots are the same in a target of a dtype.
SameValues = Callable[[Placeholder, Placeholder, torch.dtype], bool]


@dataclass(slots=True)
class Fill:
    """A tensor that exists, and what goes into it.

    Attributes:
        echoes: other tensors over the same memory, which take the same values, with their names.
    """

    slot: Placeholder
    tensor: torch.Tensor
    echoes: tuple[tuple[str, torch.Tensor], ...] = ()

    def start_in(self, entry: Entry) -> int | None:
        """Where in the record its bytes begin; ``None`` where they are not one piece of it."""
        if DTYPES[entry.dtype].itemsize % DTYPES[self.slot.dtype].itemsize:
            return None  # a chunk may end within an element
        return flat_start(self.slot)

    def region(self) -> Region:
        """The bytes of its memory."""
        tensor = self.tensor
        return Region.of(tensor.data_ptr(), tensor.itemsize, tensor.shape, tensor.stride())

    def cell(self) -> tuple[object, ...]:
        """Equal for tensors that see the same memory in the same way."""
        tensor = self.tensor
        steps = _steps(tensor.shape, tensor.stride())
        flags = tensor.is_conj(), tensor.is_neg()
        return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), steps, flags

    def frame(self) -> object:
        """Equal for tensors that lie to one another as their bytes do in one record."""
        tensor, slot = self.tensor, self.slot
        if tensor.is_conj() or tensor.is_neg():
            return None
        if _steps(tensor.shape, tensor.stride()) != _steps(slot.shape, _stride(slot)):
            return None
        kept = dtype_name(tensor) == slot.dtype
        offset = slot.view.offset if slot.view is not None else 0
        base = tensor.data_ptr() - offset * tensor.itemsize
        return slot.record, base, None if kept else (slot.dtype, tensor.dtype)


def flat_start(slot: Placeholder) -> int | None:
    """Where in its record the bytes of a slot begin; ``None`` where they are not one piece."""
    if slot.view is None:
        return 0
    if _steps(slot.shape, slot.view.stride) != _steps(slot.shape, contiguous_stride(slot.shape)):
        return None
    return slot.view.offset * DTYPES[slot.dtype].itemsize


def apart(plan: Match, same_values: SameValues) -> list[Fill]:
    """What to fill, no memory twice but where it takes the same bytes again.

    What would have memory take two values is left out, and said in ``plan.mismatched``.
    """
    fills = [Fill(slot, tensor) for slot, tensor in plan.fills]
    if _plainly_apart(fills):
        return fills
    spaces: dict[object, list[Fill]] = {}
    result = []
    for fill in fills:
        single = _without_repeats(fill, plan)
        if single is None:
            continue
        if _has_memory(single.tensor):
            spaces.setdefault(_space(single.tensor), []).append(single)
        else:
            result.append(single)
    for members in spaces.values():
        alone = set(range(len(members)))
        for group in sharing_groups([fill.region() for fill in members]):
            alone -= set(group)
            result += _settled([members[i] for i in group], plan, same_values)
        result += [members[i] for i in sorted(alone)]
    return result


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether there are addresses to compare. What cannot be filled at all is refused later."""
    return type(tensor.detach()) is torch.Tensor and not tensor.is_meta and tensor.numel() > 0


def _plainly_apart(fills: list[Fill]) -> bool:
    """Whether no two share memory, as it nearly always is: seen without any arithmetic."""
    ranges = []
    for fill in fills:
        tensor = fill.tensor
        if type(tensor) not in _PLAIN or not tensor.is_cpu or not tensor.is_contiguous():
            return False
        start = tensor.data_ptr()
        ranges.append((start, start + tensor.nbytes))
    ranges.sort()
    return all(one[1] <= other[0] for one, other in itertools.pairwise(ranges))


def _space(tensor: torch.Tensor) -> object:
    """Within what addresses can be compared: all memory of the host, one storage of a device."""
    if tensor.is_cpu:
        return "cpu"
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _stride(slot: Placeholder) -> tuple[int, ...]:
    return contiguous_stride(slot.shape) if slot.view is None else slot.view.stride


def _steps(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """What of the strides means anything."""
    return tuple(step for size, step in zip(shape, stride) if size > 1)


def _without_repeats(fill: Fill, plan: Match) -> Fill | None:
    """A tensor that sees some memory twice, as one that sees it once; None where it takes two.

    It takes one where the checkpoint has the elements in one place, too.
    """
    slot, tensor = fill.slot, fill.tensor
    if not _has_memory(tensor) or not overlaps_itself(tensor.shape, tensor.stride()):
        return fill
    view, plain = slot.view, tensor.detach()
    if view is not None:
        for dim in reversed(range(plain.dim())):
            if plain.stride(dim) == 0 and view.stride[dim] == 0:
                plain = plain.select(dim, 0)
                view = replace(
                    view,
                    shape=(*view.shape[:dim], *view.shape[dim + 1 :]),
                    stride=(*view.stride[:dim], *view.stride[dim + 1 :]),
                )
        region = Region.of(0, 1, plain.shape, plain.stride())
        alike = _steps(plain.shape, plain.stride()) == _steps(view.shape, view.stride)
        if overlaps_itself(plain.shape, plain.stride()) and alike and region.gapless:
            plain = plain.as_strided((region.stop,), (1,))
            view = replace(view, shape=(region.stop,), stride=(1,))
        if not overlaps_itself(plain.shape, plain.stride()):
            once = replace(slot, shape=view.shape, view=view, tag="$view", body=view.to_json())
            return Fill(once, plain, ((slot.name, tensor),))
    plan.mismatched.append(
        f"{slot.name}: several elements of the target are one piece of memory, of the checkpoint "
        "not; give the target memory of its own with .clone()"
    )
    return None


def _settled(members: list[Fill], plan: Match, same_values: SameValues) -> list[Fill]:
    """What to fill of tensors that share memory: nothing where the checkpoint contradicts it."""
    cells: dict[tuple[object, ...], Fill] = {}
    clashes = []
    for fill in members:
        first = cells.setdefault(fill.cell(), fill)
        if first is fill:
            continue
        first.echoes += ((fill.slot.name, fill.tensor), *fill.echoes)
        if not same_values(first.slot, fill.slot, fill.tensor.dtype):
            clashes.append(
                f"{fill.slot.name}: in the same memory as {first.slot.name}, for which the "
                "checkpoint has other values"
            )
    kept = list(cells.values())
    frame = kept[0].frame()
    for fill in kept[1:]:
        if frame is None or fill.frame() != frame:
            clashes.append(
                f"{fill.slot.name}: shares memory with {kept[0].slot.name}, directly or through "
                "others, and not so in the checkpoint"
            )
    plan.mismatched += clashes
    return [] if clashes else kept
