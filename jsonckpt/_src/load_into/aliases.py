"""Tensors of a target that share memory. Each byte of it can take only one value."""

from __future__ import annotations

import itertools
import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from ..format.dtypes import DTYPES
from ..format.model import Stored, Whole, contiguous_stride
from ..tensors.memory import dtype_name
from ..tensors.overlap import Region, overlaps_itself, sharing_groups
from .placeholders import Placeholder, placeholders_in
from .plan import Plan, is_composite

_PLAIN: Final = (torch.Tensor, torch.nn.Parameter)
#: ``same_values(one, two, dtype)``: whether two sources are equal in a target of a dtype.
SameValues = Callable[[Placeholder, Placeholder, torch.dtype], bool]


@dataclass(slots=True)
class InPlaceCopy:
    """A tensor of the target, and the tensor of the checkpoint that is copied into it.

    Attributes:
        aliases: names and tensors with the same memory and the same values.
    """

    source: Placeholder
    tensor: torch.Tensor
    aliases: tuple[tuple[str, torch.Tensor], ...] = ()

    def start_in(self, entry: Stored) -> int | None:
        """Where the source's bytes begin in its record; ``None`` if they are not contiguous."""
        if isinstance(entry, Whole):
            return None if self.source.view is not None else 0
        if DTYPES[entry.dtype].itemsize % DTYPES[self.source.dtype].itemsize:
            return None  # a chunk may end within an element
        return contiguous_start(self.source)

    def layout_key(self) -> object:
        """Equal for tensors that share memory as their sources share one record."""
        tensor, source = self.tensor, self.source
        if tensor.is_conj() or tensor.is_neg():
            return None
        if _steps(tensor.shape, tensor.stride()) != _steps(source.shape, _stride(source)):
            return None
        kept = dtype_name(tensor) == source.dtype
        offset = source.view.offset if source.view is not None else 0
        base = tensor.data_ptr() - offset * tensor.itemsize
        return source.record, base, None if kept else (source.dtype, tensor.dtype)


def _region(tensor: torch.Tensor) -> Region:
    """The range of a tensor's memory, in bytes."""
    return Region.of(tensor.data_ptr(), tensor.itemsize, tensor.shape, tensor.stride())


def _view_key(tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for tensors with the same memory, dtype, shape and strides."""
    steps = _steps(tensor.shape, tensor.stride())
    flags = tensor.is_conj(), tensor.is_neg()
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), steps, flags


def contiguous_start(source: Placeholder) -> int | None:
    """Where the bytes of a source begin in its record; ``None`` if they are not contiguous."""
    if source.view is None:
        return 0
    shape = source.shape
    if _steps(shape, source.view.stride) != _steps(shape, contiguous_stride(shape)):
        return None
    return source.view.offset * DTYPES[source.dtype].itemsize


def resolve_aliases(plan: Plan, same_values: SameValues) -> list[InPlaceCopy]:
    """The copies to make. Two of them overlap only where they write the same bytes.

    Copies that would write different values to the same memory are left out, and reported in
    ``plan.mismatched``.
    """
    copies = [InPlaceCopy(source, tensor) for source, tensor in plan.in_place]
    if _are_disjoint(copies):
        return copies
    spaces: dict[object, list[InPlaceCopy]] = {}
    result = []
    for copy in copies:
        single = _without_repeats(copy, plan)
        if single is None:
            continue
        if _has_memory(single.tensor):
            spaces.setdefault(_address_space(single.tensor), []).append(single)
        else:
            result.append(single)
    for members in spaces.values():
        alone = set(range(len(members)))
        for group in sharing_groups([_region(copy.tensor) for copy in members]):
            alone -= set(group)
            result += _resolve_group([members[i] for i in group], plan, same_values)
        result += [members[i] for i in sorted(alone)]
    return result


def settle_ties(plan: Plan, copies: list[InPlaceCopy]) -> list[str]:
    """Take tied tensors out of ``plan.missing`` and ``plan.unexpected``.

    A tensor of the target is not missing if its memory is filled through other names. One of the
    checkpoint is not unexpected if its values are loaded under another name.

    Returns:
        the names that are filled through others.
    """
    if plan.unexpected:
        every = [source for source, _ in (*plan.in_place, *plan.allocated.values())]
        every += [source for one in plan.own_loaders for source in placeholders_in(one.value)]
        loaded = {source.content_key() for source in every}
        plan.unexpected = {
            name: item
            for name, item in plan.unexpected.items()
            if not (isinstance(item, Placeholder) and item.content_key() in loaded)
        }
    if not any(tensor is not None for tensor in plan.missing.values()):
        return []
    keys = {_view_key(copy.tensor) for copy in copies}
    spans: dict[object, list[tuple[int, int]]] = {}
    for copy in copies:
        region = _region(copy.tensor) if _has_memory(copy.tensor) else None
        if region is not None and region.gapless:
            spans.setdefault(_address_space(copy.tensor), []).append((region.start, region.stop))
    merged = {space: _merged(found) for space, found in spans.items()}
    filled = []
    for name, tensor in plan.missing.items():
        if tensor is None or not _is_plain(tensor):
            continue
        region = _region(tensor)
        found = merged.get(_address_space(tensor), [])
        position = bisect_right(found, (region.start, sys.maxsize)) - 1
        if _view_key(tensor) in keys or (position >= 0 and region.stop <= found[position][1]):
            filled.append(name)
    for name in filled:
        del plan.missing[name]
    return filled


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of memory, where those that touch are one."""
    result: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(stop, result[-1][1]))
        else:
            result.append((start, stop))
    return result


def with_tied_names(value: Any, own: Mapping[str, Any]) -> Any:
    """A state dict with the names that it lacks because the target ties them to others."""
    lacking = [key for key in own if key not in value and isinstance(own[key], torch.Tensor)]
    if not lacking:
        return value
    memory = {}
    for key, item in own.items():
        if key in value and isinstance(item, torch.Tensor) and _is_plain(item):
            memory[_view_key(item)] = key
    tied = {
        key: value[memory[_view_key(own[key])]]
        for key in lacking
        if _is_plain(own[key]) and _view_key(own[key]) in memory
    }
    if not tied:
        return value
    copy: Any = value.copy()
    if hasattr(value, "_metadata"):
        copy._metadata = value._metadata
    copy.update(tied)
    return copy


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) in _PLAIN and not is_composite(tensor) and _has_memory(tensor)


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether it has an address to compare. Tensors that cannot be filled are refused later."""
    return type(tensor.detach()) is torch.Tensor and not tensor.is_meta and tensor.numel() > 0


def _are_disjoint(copies: list[InPlaceCopy]) -> bool:
    """A quick test for the usual case: no two tensors share memory."""
    ranges = []
    for copy in copies:
        tensor = copy.tensor
        if type(tensor) not in _PLAIN or not tensor.is_cpu or not tensor.is_contiguous():
            return False
        start = tensor.data_ptr()
        ranges.append((start, start + tensor.nbytes))
    ranges.sort()
    return all(one[1] <= other[0] for one, other in itertools.pairwise(ranges))


def _address_space(tensor: torch.Tensor) -> object:
    """Addresses in the same space can be compared: the host, or one storage of a device."""
    if tensor.is_cpu:
        return "cpu"
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _stride(source: Placeholder) -> tuple[int, ...]:
    return contiguous_stride(source.shape) if source.view is None else source.view.stride


def _steps(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """The strides that matter: those of dimensions with several elements."""
    return tuple(step for size, step in zip(shape, stride) if size > 1)


def _without_repeats(copy: InPlaceCopy, plan: Plan) -> InPlaceCopy | None:
    """The same copy to a tensor that has each byte once.

    ``None``, and reported, if several elements of the tensor share memory but differ in the
    checkpoint.
    """
    source, tensor = copy.source, copy.tensor
    if not _has_memory(tensor) or not overlaps_itself(tensor.shape, tensor.stride()):
        return copy
    view, plain = source.view, tensor.detach()
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
            once = replace(source, shape=view.shape, view=view, tag="$view", body=view.to_json())
            return InPlaceCopy(once, plain, ((source.name, tensor),))
    plan.differ(
        source.name,
        "several elements of the target share memory, but not those of the checkpoint",
        "sharing",
    )
    return None


def _resolve_group(
    members: list[InPlaceCopy], plan: Plan, same_values: SameValues
) -> list[InPlaceCopy]:
    """The copies to tensors that share memory; none if the checkpoint has different values."""
    views: dict[tuple[object, ...], InPlaceCopy] = {}
    conflicts = []
    for copy in members:
        first = views.setdefault(_view_key(copy.tensor), copy)
        if first is copy:
            continue
        first.aliases += ((copy.source.name, copy.tensor), *copy.aliases)
        if not same_values(first.source, copy.source, copy.tensor.dtype):
            conflicts.append(
                (
                    copy,
                    f"in the same memory as {first.source.name}, for which the checkpoint has "
                    "other values",
                )
            )
    kept = list(views.values())
    layout = kept[0].layout_key()
    for copy in kept[1:]:
        if layout is None or copy.layout_key() != layout:
            conflicts.append(
                (
                    copy,
                    f"shares memory with {kept[0].source.name}, directly or through others, but "
                    "not in the checkpoint",
                )
            )
    for copy, what in conflicts:
        plan.differ(copy.source.name, what, "sharing")
    return [] if conflicts else kept
