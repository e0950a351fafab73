"""Which tensors become one record, and which records share a storage (``docs/format.md`` 6.4).

Addresses decide. Nothing is copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..format.json_text import Json
from ..format.model import Layout, is_dense
from .buffers import Source
from .memory import borrow_range, collapse, strided
from .overlap import Region, overlapping_chains, sharing_groups

#: Records of shared memory begin at a multiple of this in their storage, so that every view in
#: them is aligned after loading as it was before.
ALIGNMENT = 16
#: The memory between tensors may be as large as the tensors, in a record or a storage.
MAX_SPREAD = 2


class DistinctTensor:
    """A tensor of the state, equal to no other in address, dtype, shape and strides.

    Attributes:
        name: of its first reference.
        tensor: keeps the memory alive, so that it is not reused during the walk.
        references: the names and the JSON objects that refer to it.
        start: its address.
        flat: whether its memory, on the CPU, is its elements in row-major order.
    """

    __slots__ = ("flat", "name", "nbytes", "references", "start", "tensor")

    def __init__(self, name: str, tensor: torch.Tensor, start: int, *, flat: bool) -> None:
        self.name = name
        self.tensor = tensor
        self.references: list[tuple[str, dict[str, Json]]] = []
        self.start = start
        self.nbytes = tensor.nbytes
        self.flat = flat

    def region(self) -> Region:
        """Its bytes."""
        tensor = self.tensor
        if self.flat:
            return Region.flat(self.start, self.nbytes)
        return Region.of(self.start, tensor.itemsize, tensor.shape, tensor.stride())

    def source(self) -> Source:
        """A record of this tensor alone. Its memory has been checked."""
        return Source.of_checked(self.name, self.tensor, self.start if self.flat else 0)


@dataclass(slots=True)
class SharedRecord:
    """A record that several tensors are views of.

    Attributes:
        base: address of its first byte.
        owner: the tensor that covers all others, or ``None``: then the record is ``memory``.
        memory: one dimension.
        name: of the record; empty until it has one.
    """

    base: int
    owner: DistinctTensor | None
    memory: torch.Tensor | None
    name: str


def shared_records(tensors: Sequence[DistinctTensor]) -> dict[DistinctTensor, SharedRecord]:
    """The tensors that share memory, each with the record that holds it."""
    if _disjoint(tensors):
        return {}
    spaces: dict[object, list[DistinctTensor]] = {}
    for distinct in tensors:
        tensor = distinct.tensor
        # Tensors without elements have no memory. Lazily conjugated or negated ones have other
        # values than their memory. These are records of their own.
        if tensor.numel() and not tensor.is_conj() and not tensor.is_neg():
            spaces.setdefault(address_space(tensor), []).append(distinct)
    shared_by: dict[DistinctTensor, SharedRecord] = {}
    for members in spaces.values():
        regions = [distinct.region() for distinct in members]
        for group in _groups(members, regions):
            if len(group) == 1:
                region = regions[group[0]]
                if region.stop - region.start >= members[group[0]].nbytes:
                    continue
            chosen = _without_odd_bools([members[i] for i in group])
            if (shared := _shared_record(chosen)) is not None:
                shared_by.update((distinct, shared) for distinct in chosen)
    return shared_by


def _disjoint(tensors: Sequence[DistinctTensor]) -> bool:
    """A quick test, true in nearly all states: all tensors are flat and none overlap."""
    if not all(distinct.flat for distinct in tensors):
        return False
    ranges = sorted((distinct.start, distinct.start + distinct.nbytes) for distinct in tensors)
    return all(one[1] <= other[0] for one, other in itertools.pairwise(ranges))


def _groups(tensors: Sequence[DistinctTensor], regions: Sequence[Region]) -> list[list[int]]:
    """Positions of the tensors, grouped by the record that holds them.

    Tensors that share bytes are one group. So are tensors of one storage whose bytes interleave,
    unless most of the memory from the first to the last byte belongs to none of them.
    """
    groups = sharing_groups(regions)
    grouped = {i for group in groups for i in group}
    groups += [[i] for i in range(len(tensors)) if i not in grouped]
    storages: dict[int, list[tuple[int, int, int]]] = {}
    for number, group in enumerate(groups):
        key = tensors[group[0]].tensor.untyped_storage().data_ptr()
        start = min(regions[i].start for i in group)
        stop = max(regions[i].stop for i in group)
        storages.setdefault(key, []).append((start, stop, number))
    result = []
    for intervals in storages.values():
        spans = {number: stop - start for start, stop, number in intervals}
        for chain in overlapping_chains(intervals):
            merged = sorted(i for number in chain for i in groups[number])
            span = max(regions[i].stop for i in merged) - min(regions[i].start for i in merged)
            # The record of overlapping tensors holds the bytes between them anyway.
            own = sum(
                spans[number] if len(groups[number]) > 1 else tensors[groups[number][0]].nbytes
                for number in chain
            )
            if len(chain) > 1 and span <= MAX_SPREAD * own:
                result.append(merged)
            else:
                result += [groups[number] for number in chain]
    return sorted(result)


def note_storages(records: Sequence[tuple[Source, torch.Tensor]]) -> None:
    """Add to the layout of records that share a storage their position in it.

    Args:
        records: all records, each with its memory.
    """
    # At most one of several disjoint tensors begins where their storage begins.
    if not any(tensor.storage_offset() for _, tensor in records):
        return
    storages: dict[object, list[tuple[int, Source]]] = {}
    for source, tensor in records:
        plain = not tensor.is_conj() and not tensor.is_neg()
        if source.nbytes and plain and is_dense(tensor.shape, tensor.stride()):
            address = tensor.untyped_storage().data_ptr()
            offset = int(tensor.storage_offset()) * tensor.itemsize
            storages.setdefault((source.device, address), []).append((offset, source))
    number = 0
    for members in storages.values():
        members.sort(key=lambda item: item[0])
        base = members[0][0] // ALIGNMENT * ALIGNMENT
        size = members[-1][0] + members[-1][1].nbytes - base
        pairs = itertools.pairwise(members)
        disjoint = all(start + one.nbytes <= after for (start, one), (after, _) in pairs)
        own = sum(source.nbytes for _, source in members)
        if len(members) > 1 and disjoint and size <= MAX_SPREAD * own:
            for offset, source in members:
                source.layout = Layout(source.layout.stride, (number, offset - base, size))
            number += 1


def address_space(tensor: torch.Tensor) -> object:
    """Addresses of tensors can be compared where this is equal.

    On the CPU all memory is one space: arrays and tensors made from one another share memory but
    not a storage. On devices an address may be a handle, so each storage is a space of its own.
    """
    if tensor.is_cpu:
        return "cpu"
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _without_odd_bools(tensors: list[DistinctTensor]) -> list[DistinctTensor]:
    """The tensors without the bool tensors whose memory has bytes other than 0 and 1.

    torch takes any byte but 0 for True. No file may have such bytes, so these tensors are saved by
    themselves, as 0 and 1.
    """
    if len({distinct.tensor.dtype for distinct in tensors}) == 1:
        return tensors
    return [
        distinct
        for distinct in tensors
        if distinct.tensor.dtype != torch.bool or int(distinct.tensor.view(torch.uint8).max()) <= 1
    ]


def _shared_record(tensors: Sequence[DistinctTensor]) -> SharedRecord | None:
    """One record for tensors that share memory; ``None`` if no record can hold them all."""
    if not tensors:
        return None
    regions = [distinct.region() for distinct in tensors]
    start = min(region.start for region in regions)
    stop = max(region.stop for region in regions)
    uniform = len({distinct.tensor.dtype for distinct in tensors}) == 1
    if _aligned(tensors, start):
        for distinct, region in zip(tensors, regions):
            tensor = distinct.tensor
            contiguous = collapse(tensor.shape, tensor.stride())[1] == [1]
            covers = (region.start, region.stop) == (start, stop)
            # A bool record is written as 0 and 1, but other dtypes may have any bytes.
            if contiguous and covers and (uniform or tensor.dtype != torch.bool):
                return SharedRecord(start, distinct, None, distinct.name)
    first = next(each.tensor for each, region in zip(tensors, regions) if region.start == start)
    storage = first.untyped_storage()
    offset = start - storage.data_ptr()
    if len(tensors) > 1:
        offset = offset // ALIGNMENT * ALIGNMENT
    base = storage.data_ptr() + offset
    if not _aligned(tensors, base):
        # Some elements begin inside elements of another tensor. No view can do that.
        return None
    dtype = first.dtype if uniform else torch.uint8
    nbytes = stop - base
    if offset + nbytes <= storage.nbytes():
        count = nbytes // dtype.itemsize
        memory = strided(storage, dtype, offset // dtype.itemsize, (count,), (1,))
    else:
        # NumPy arrays that overlap in a chain: several storages together cover the memory.
        owners = [distinct.tensor for distinct in tensors]
        memory = borrow_range(base, nbytes, owners).view(dtype)
    return SharedRecord(base, None, memory, "")


def _aligned(tensors: Sequence[DistinctTensor], base: int) -> bool:
    return all((each.start - base) % each.tensor.itemsize == 0 for each in tensors)
