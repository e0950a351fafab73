"""Reading a jsonckpt checkpoint back, in parts, to compare it with what it was made of.

The source is a mapped file, so its pages come and go. Of the checkpoint a large tensor is read some
rows at a time, and small ones together, with whatever shares memory with them.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..format.pointer import join
from . import core
from .compare import Comparison, Differences, compare
from .spool import Spool

#: Bytes that are read at once: at least, and at most; between them, a 64th of the whole.
LEAST_PART, LARGEST_PART = 4 << 20, 8 << 20
#: Bytes of rows of one large tensor that are read at once.
ROWS = 4 << 20
_WORTH_MAPPING = 64 << 10
_PLAIN = (str, int, float, bool, complex, bytes, type(None))


@dataclass(slots=True)
class _Unit:
    """A member of a dictionary that holds tensors and is loaded as a whole.

    Attributes:
        name: its JSON Pointer.
        keys: the way to it.
        value: what stands there.
        nbytes: of its tensors.
        storages: the memory they lie in.
    """

    name: str
    keys: tuple[Any, ...]
    value: Any
    nbytes: int = 0
    storages: set[int] = field(default_factory=set)


def compare_checkpoint(
    expected: Any, path: Path, directory: Path, advance: Callable[[int], None] = lambda _: None
) -> Comparison:
    """Compare a state with the jsonckpt checkpoint that was made of it.

    Args:
        expected: the state.
        path: the checkpoint.
        directory: for temporary files; they are needed for what is larger than 32 MiB and cannot
            be loaded in parts, as from a file that is compressed as a whole.
        advance: told of the bytes compared.
    """
    units = list(_units(expected, "", ())) if isinstance(expected, dict) else []
    total = sum(unit.nbytes for unit in units)
    if units and (total <= LEAST_PART or not _compressed(path)):
        part = min(LARGEST_PART, max(LEAST_PART, total // 64))
        result = _compare_in_parts(expected, path, directory, _connected(units), part, advance)
        if not result.differences:
            return result
    # In parts, a place that is told apart by more than its name looks like a difference. The last
    # word has the comparison of the whole.
    with Spool(directory) as spool:
        found = core.load_checkpoint(path, allocate=spool.allocate)
    return compare(expected, found)


def _compressed(path: Path) -> bool:
    """Whether reading a part means to decompress all that lies before it."""
    return path.name.endswith(".zst") or (path.is_dir() and any(path.glob("shard-*.zst")))


def _compare_in_parts(
    expected: Any,
    path: Path,
    directory: Path,
    groups: list[list[_Unit]],
    part_size: int,
    advance: Callable[[int], None],
) -> Comparison:
    result = Comparison()
    walk = Differences(result, exact_types=True)
    with core.open_checkpoint(path) as checkpoint:
        entries = checkpoint.state()
        _compare_structure(walk, expected, entries, "")
        if result.differences:
            return result
        large, parts = _planned(groups, part_size)
        for part in parts:
            found = _load_part(checkpoint, part, directory)
            for unit in part:
                walk.compare(unit.value, _at(found, unit.keys), unit.name)
            del found
            advance(sum(unit.nbytes for unit in part))
        if large:
            shells = checkpoint.load("meta")
            for group in large:
                _compare_large(walk, group, shells, entries, advance)
    return result


def _planned(
    groups: list[list[_Unit]], part_size: int
) -> tuple[list[list[_Unit]], list[list[_Unit]]]:
    """What is read row by row, and what is loaded together."""
    large: list[list[_Unit]] = []
    parts: list[list[_Unit]] = []
    size = part_size
    for group in groups:
        nbytes = sum(unit.nbytes for unit in group)
        if nbytes > part_size and _is_one_tensor(group, part_size):
            large.append(group)
            continue
        if size + nbytes > part_size:
            parts.append([])
            size = 0
        parts[-1] += group
        size += nbytes
    return large, parts


def _compare_structure(walk: Differences, expected: Any, found: Any, name: str) -> None:
    """Compare dictionaries down to the units, and whatever is no unit."""
    if type(expected) is not type(found):
        walk.compare(expected, found, name)
        return
    walk.keys(expected, found, name)
    for key, value in expected.items():
        if key not in found:
            continue
        if isinstance(value, dict):
            _compare_structure(walk, value, found[key], join(name, str(key)))
        elif not _holds_tensors(value):
            walk.compare(value, found[key], join(name, str(key)))


def _is_one_tensor(group: list[_Unit], part_size: int) -> bool:
    """Whether these are one tensor, perhaps at several places, that can be read row by row."""
    first = group[0].value
    if not isinstance(first, torch.Tensor) or first.layout != torch.strided or first.is_quantized:
        return False
    if not first.dim() or first.numel() * first.itemsize // first.shape[0] > part_size:
        return False
    if first.is_conj() or first.is_neg():
        return False
    return all(
        isinstance(unit.value, torch.Tensor)
        and (unit.value.data_ptr(), unit.value.dtype) == (first.data_ptr(), first.dtype)
        and (unit.value.shape, unit.value.stride()) == (first.shape, first.stride())
        for unit in group
    )


def _compare_large(
    walk: Differences,
    group: list[_Unit],
    shells: Any,
    entries: Any,
    advance: Callable[[int], None],
) -> None:
    """Compare one tensor some rows at a time, and its types with those of a state without data."""
    found = [_at(shells, unit.keys) for unit in group]
    for unit, shell in zip(group, found):
        if not walk.facts(unit.value, shell, unit.name):
            return
        if _storage(shell) != _storage(found[0]):
            walk.result.differ(unit.name, "is no longer tied to another tensor")
    tensor, entry = group[0].value.detach(), _at(entries, group[0].keys)
    row = tensor.numel() * tensor.itemsize // tensor.shape[0]
    rows = max(1, ROWS // row)
    for start in range(0, tensor.shape[0], rows):
        stop = min(start + rows, tensor.shape[0])
        walk.elements(tensor[start:stop], entry[start:stop], group[0].name, start)
        advance((stop - start) * row)
    walk.result.tensors += 1
    walk.result.nbytes += tensor.numel() * tensor.itemsize


def _storage(tensor: torch.Tensor) -> int:
    """Tells the memory of tensors without data apart, which have no address."""
    return int(tensor.untyped_storage()._cdata)


def _at(state: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        state = state.get(key) if isinstance(state, dict) else None
    return state


def _load_part(checkpoint: Any, part: list[_Unit], directory: Path) -> Any:
    exact = {unit.name for unit in part}
    below = tuple(f"{name}{mark}" for name in exact for mark in ("/", "#"))

    def wanted(name: str) -> bool:
        return name in exact or name.startswith(below)

    if sum(unit.nbytes for unit in part) <= LARGEST_PART:
        return core.load_opened(checkpoint, include=wanted, allocate=_mapped)
    with Spool(directory) as spool:
        return core.load_opened(checkpoint, include=wanted, allocate=spool.allocate)


def _mapped(nbytes: int) -> torch.UntypedStorage:
    """Memory that is given back when the tensor is gone.

    What the C library's allocator was given back once in large pieces it keeps in its heaps, for
    each thread, and in huge pages: up to 80 MiB were measured.
    """
    if nbytes < _WORTH_MAPPING:
        return torch.UntypedStorage(nbytes)  # type: ignore[no-untyped-call]
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()


def _holds_tensors(value: Any) -> bool:
    """Whether tensors may lie in this; unknown types may hold some."""
    if isinstance(value, _PLAIN):
        return False
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_holds_tensors, value))
    if isinstance(value, dict):
        return any(map(_holds_tensors, value.values()))
    return True


def _units(state: dict[Any, Any], name: str, keys: tuple[Any, ...]) -> Iterator[_Unit]:
    for key, value in state.items():
        below = join(name, str(key))
        if isinstance(value, dict):
            yield from _units(value, below, (*keys, key))
        elif _holds_tensors(value):
            unit = _Unit(below, (*keys, key), value)
            for tensor in _tensors(value):
                unit.nbytes += tensor.numel() * tensor.itemsize
                if tensor.layout == torch.strided and not tensor.is_quantized:
                    unit.storages.add(tensor.untyped_storage().data_ptr() or -id(tensor))
            yield unit


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))


def _connected(units: list[_Unit]) -> list[list[_Unit]]:
    """Units that share memory together, in order of their first."""
    group_of: dict[int, list[_Unit]] = {}
    groups: list[list[_Unit]] = []
    for unit in units:
        joined = [group_of[s] for s in unit.storages if s in group_of]
        distinct = {id(group): group for group in joined}
        merged = next(iter(distinct.values()), None)
        if merged is None:
            merged = []
            groups.append(merged)
        for other in list(distinct.values())[1:]:
            merged += other
            groups = [group for group in groups if group is not other]
        merged.append(unit)
        for member in merged if len(distinct) > 1 else [unit]:
            for storage in member.storages:
                group_of[storage] = merged
    return groups
