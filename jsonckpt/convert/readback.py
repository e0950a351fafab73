"""Reading a jsonckpt checkpoint back, in parts, to compare it with what it was made of.

The source is a mapped file, so its pages come and go. The checkpoint is loaded some 32 MB at a
time: as many tensors as that, with whatever shares memory with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from jsonckpt.convert import core
from jsonckpt.convert.compare import Comparison, Differences, compare
from jsonckpt.convert.spool import Spool
from jsonckpt.names import join

__all__ = ["compare_checkpoint"]

#: Bytes of tensors that are loaded at once.
PART = 32 << 20
_PLAIN = (str, int, float, bool, complex, bytes, type(None))


@dataclass(slots=True)
class _Unit:
    """A member of a dictionary that holds tensors and is loaded as a whole.

    Attributes:
        name: its JSON Pointer.
        nbytes: of its tensors.
        storages: the memory they lie in.
    """

    name: str
    nbytes: int
    storages: set[int] = field(default_factory=set)


def compare_checkpoint(
    expected: Any, path: Path, directory: Path, advance: Callable[[int], None] = lambda _: None
) -> Comparison:
    """Compare a state with the jsonckpt checkpoint that was made of it.

    Args:
        expected: the state.
        path: the checkpoint.
        directory: for temporary files; they are needed for what is larger than 32 MiB and cannot
            be loaded in parts.
        advance: told of the bytes compared.
    """
    parts = _parts(expected)
    if len(parts) > 1:
        result = Comparison()
        for number, part in enumerate(parts):
            walk = Differences(result, exact_types=True)
            names = {unit.name for unit in part}
            found = _load_part(path, part, directory)
            _compare_part(walk, expected, found, names, first=number == 0)
            advance(sum(unit.nbytes for unit in part))
        if not result.differences:
            return result
    # In parts, a place that is told apart by more than its name looks like a difference. The last
    # word has the comparison of the whole.
    with Spool(directory) as spool:
        found = core.load_checkpoint(path, allocate=spool.allocate)
    return compare(expected, found)


def _load_part(path: Path, part: list[_Unit], directory: Path) -> Any:
    exact = {unit.name for unit in part}
    below = tuple(f"{name}{mark}" for name in exact for mark in ("/", "#"))

    def wanted(name: str) -> bool:
        return name in exact or name.startswith(below)

    if sum(unit.nbytes for unit in part) <= 2 * PART:
        return core.load_checkpoint(path, include=wanted)
    with Spool(directory) as spool:
        return core.load_checkpoint(path, include=wanted, allocate=spool.allocate)


def _compare_part(
    walk: Differences, expected: Any, found: Any, names: set[str], *, first: bool, name: str = ""
) -> None:
    """Compare dictionaries down to the units; of these only those in ``names``."""
    if type(expected) is not type(found):
        walk.compare(expected, found, name)
        return
    present, units = {}, {}
    for key, value in expected.items():
        below = join(name, str(key))
        if isinstance(value, dict) or not _holds_tensors(value):
            present[key] = value
        elif below in names:
            present[key] = units[key] = value
    others = expected.keys() - present.keys()
    kept = {key: value for key, value in found.items() if key not in others}
    walk.keys(_retyped(expected, present), _retyped(found, kept), name)
    for key, value in present.items():
        below = join(name, str(key))
        if key not in found:
            continue
        if key in units or not isinstance(value, dict):
            if first or key in units:
                walk.compare(value, found[key], below)
        else:
            _compare_part(walk, value, found[key], names, first=first, name=below)


def _retyped(original: Any, items: dict[Any, Any]) -> Any:
    """``items`` with what else a dictionary is known by."""
    shell = original.copy()
    shell.clear()
    if hasattr(original, "_metadata"):
        shell._metadata = original._metadata
    shell.update(items)
    return shell


def _holds_tensors(value: Any) -> bool:
    """Whether tensors may lie in this; unknown types may hold some."""
    if isinstance(value, _PLAIN):
        return False
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_holds_tensors, value))
    if isinstance(value, dict):
        return any(map(_holds_tensors, value.values()))
    return True


def _parts(state: Any) -> list[list[_Unit]]:
    """The units of a state in groups of about 32 MiB; none if it is no dictionary."""
    if not isinstance(state, dict):
        return []
    units = list(_units(state, ""))
    groups = _connected(units)
    parts: list[list[_Unit]] = [[]]
    size = 0
    for group in groups:
        nbytes = sum(unit.nbytes for unit in group)
        if parts[-1] and size + nbytes > PART:
            parts.append([])
            size = 0
        parts[-1] += group
        size += nbytes
    return parts


def _units(state: dict[Any, Any], name: str) -> Iterator[_Unit]:
    for key, value in state.items():
        below = join(name, str(key))
        if isinstance(value, dict):
            yield from _units(value, below)
        elif _holds_tensors(value):
            unit = _Unit(below, 0)
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
