"""Which tensors of a state are one record, and which records lie in one storage.

Nothing is copied: everything here is decided by addresses.
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
from .overlap import Region, runs, sharing_groups

#: Records of shared memory begin at a multiple of this in their storage, so that every view in
#: them is aligned after loading as it was before.
_ALIGNMENT = 16
#: Memory that is nobody's may be as much as what is somebody's, in a record or a storage.
_MOST_SPREAD = 2


class Leaf:
    """One way of seeing one piece of memory, and the JSON objects that refer to it."""

    __slots__ = ("flat", "name", "nbytes", "references", "start", "tensor")

    def __init__(self, name: str, tensor: torch.Tensor, start: int, *, flat: bool) -> None:
        self.name = name
        self.tensor = tensor  # also keeps its memory from being reused while the state is walked
        self.references: list[tuple[str, dict[str, Json]]] = []
        self.start = start
        self.nbytes = tensor.nbytes
        self.flat = flat  # row-major, without a gap, as it is, on the CPU

    def region(self) -> Region:
        """Its bytes."""
        tensor = self.tensor
        if self.flat:
            return Region.flat(self.start, self.nbytes)
        return Region.of(self.start, tensor.itemsize, tensor.shape, tensor.stride())

    def source(self) -> Source:
        """The record of it alone. That its memory is there has been checked."""
        if self.flat:
            return Source.of_flat(self.name, self.tensor, self.start, self.nbytes)
        return Source.of_checked(self.name, self.tensor)


@dataclass(slots=True)
class Shared:
    """A record that others are views of.

    Attributes:
        base: address of its first byte.
        cover: the leaf that it is, or ``None`` for a record of its own.
        record: otherwise the memory, one dimension.
        name: of the record; empty until it has one.
    """

    base: int
    cover: Leaf | None
    record: torch.Tensor | None
    name: str


def shared_records(leaves: Sequence[Leaf]) -> dict[Leaf, Shared]:
    """The leaves that are views, or that others are views of, each with the record of them all."""
    if _all_apart(leaves):
        return {}
    spaces: dict[object, list[Leaf]] = {}
    for leaf in leaves:
        tensor = leaf.tensor
        # Lazily conjugated or negated memory means other values than it holds, and a tensor
        # without elements has no memory: these are saved by themselves.
        if tensor.numel() and not tensor.is_conj() and not tensor.is_neg():
            spaces.setdefault(space_of(tensor), []).append(leaf)
    shared_by: dict[Leaf, Shared] = {}
    for members in spaces.values():
        regions = [leaf.region() for leaf in members]
        for group in _groups(members, regions):
            if len(group) == 1:
                region = regions[group[0]]
                if region.stop - region.start >= members[group[0]].nbytes:
                    continue
            chosen = _without_odd_bools([members[i] for i in group])
            if (shared := _share(chosen)) is not None:
                shared_by.update((leaf, shared) for leaf in chosen)
    return shared_by


def _all_apart(leaves: Sequence[Leaf]) -> bool:
    """Whether it is plain to see that no two leaves share memory, as it nearly always is."""
    if not all(leaf.flat for leaf in leaves):
        return False
    ranges = sorted((leaf.start, leaf.start + leaf.nbytes) for leaf in leaves)
    return all(one[1] <= other[0] for one, other in itertools.pairwise(ranges))


def _groups(leaves: Sequence[Leaf], regions: Sequence[Region]) -> list[list[int]]:
    """Positions of the leaves that are to be one record, those by themselves among them.

    These are the ones that share bytes, and of one storage those whose bytes lie between each
    other's, unless that takes too much memory that is nobody's.
    """
    groups = sharing_groups(regions)
    together = {i for group in groups for i in group}
    groups += [[i] for i in range(len(leaves)) if i not in together]
    storages: dict[int, list[tuple[int, int, int]]] = {}
    for number, group in enumerate(groups):
        key = leaves[group[0]].tensor.untyped_storage().data_ptr()
        start = min(regions[i].start for i in group)
        stop = max(regions[i].stop for i in group)
        storages.setdefault(key, []).append((start, stop, number))
    result = []
    for intervals in storages.values():
        spans = {number: stop - start for start, stop, number in intervals}
        for run in runs(intervals):
            merged = sorted(i for number in run for i in groups[number])
            span = max(regions[i].stop for i in merged) - min(regions[i].start for i in merged)
            # Of overlapping ones all that is between them is in their record anyway.
            own = sum(
                spans[number] if len(groups[number]) > 1 else leaves[groups[number][0]].nbytes
                for number in run
            )
            if len(run) > 1 and span <= _MOST_SPREAD * own:
                result.append(merged)
            else:
                result += [groups[number] for number in run]
    return sorted(result)


def note_storages(pieces: Sequence[tuple[Source, torch.Tensor]]) -> None:
    """Let records that lie in one storage, apart from each other, say where.

    Args:
        pieces: all records with the memory that they are.
    """
    # Of tensors that are apart at most one begins where their storage does.
    if not any(tensor.storage_offset() for _, tensor in pieces):
        return
    storages: dict[object, list[tuple[int, Source]]] = {}
    for source, tensor in pieces:
        plain = not tensor.is_conj() and not tensor.is_neg()
        if source.nbytes and plain and is_dense(tensor.shape, tensor.stride()):
            memory = tensor.untyped_storage().data_ptr()
            offset = int(tensor.storage_offset()) * tensor.itemsize
            storages.setdefault((source.device, memory), []).append((offset, source))
    number = 0
    for found in storages.values():
        found.sort(key=lambda item: item[0])
        base = found[0][0] // _ALIGNMENT * _ALIGNMENT
        size = found[-1][0] + found[-1][1].nbytes - base
        apart = all(at + one.nbytes <= then for (at, one), (then, _) in itertools.pairwise(found))
        own = sum(source.nbytes for _, source in found)
        if len(found) > 1 and apart and size <= _MOST_SPREAD * own:
            for offset, source in found:
                source.layout = Layout(source.layout.stride, (number, offset - base, size))
            number += 1


def space_of(tensor: torch.Tensor) -> object:
    """Within what addresses can be compared.

    On the CPU that is all memory: arrays and tensors made from one another share it under
    storages of their own. On devices an address may be a handle, so there it is one storage.
    """
    if tensor.is_cpu:
        return "cpu"
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _without_odd_bools(leaves: list[Leaf]) -> list[Leaf]:
    """Without the bools seen in memory of other dtypes that holds bytes which are no bool.

    torch takes any byte but 0 for True and so keeps them, but no file may have them. Saved by
    themselves they keep their values.
    """
    if len({leaf.tensor.dtype for leaf in leaves}) == 1:
        return leaves
    return [
        leaf
        for leaf in leaves
        if leaf.tensor.dtype != torch.bool or int(leaf.tensor.view(torch.uint8).max()) <= 1
    ]


def _share(leaves: Sequence[Leaf]) -> Shared | None:
    """One record for leaves that share memory, or ``None`` where no record can serve them all."""
    if not leaves:
        return None
    regions = [leaf.region() for leaf in leaves]
    start = min(region.start for region in regions)
    stop = max(region.stop for region in regions)
    uniform = len({leaf.tensor.dtype for leaf in leaves}) == 1
    if _aligned(leaves, start):
        for leaf, region in zip(leaves, regions):
            contiguous = collapse(leaf.tensor.shape, leaf.tensor.stride())[1] == [1]
            covers = (region.start, region.stop) == (start, stop)
            # A bool record is written as 0 and 1 only, which other dtypes need not hold.
            if contiguous and covers and (uniform or leaf.tensor.dtype != torch.bool):
                return Shared(start, leaf, None, leaf.name)
    first = next(leaf for leaf, region in zip(leaves, regions) if region.start == start)
    storage = first.tensor.untyped_storage()
    offset = start - storage.data_ptr()
    if len(leaves) > 1:
        offset = offset // _ALIGNMENT * _ALIGNMENT
    base = storage.data_ptr() + offset
    if not _aligned(leaves, base):
        # Arrays whose elements lie across each other: no view can start inside an element.
        return None
    dtype = first.tensor.dtype if uniform else torch.uint8
    nbytes = stop - base
    if offset + nbytes <= storage.nbytes():
        count = nbytes // dtype.itemsize
        record = strided(storage, dtype, offset // dtype.itemsize, (count,), (1,))
    else:
        # Arrays in a chain: each has a storage of its own, together they cover the memory.
        record = borrow_range(base, nbytes, [leaf.tensor for leaf in leaves]).view(dtype)
    return Shared(base, None, record, "")


def _aligned(leaves: Sequence[Leaf], base: int) -> bool:
    return all((leaf.start - base) % leaf.tensor.itemsize == 0 for leaf in leaves)
