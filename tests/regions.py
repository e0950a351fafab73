"""Saves a state with some tensors cut into regions, as a writer on many ranks does."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jsonckpt._src.boxes import Box
from jsonckpt._src.format.model import PLAIN
from jsonckpt._src.format.regions import region_name, regions_json
from jsonckpt._src.parallel import CancelToken
from jsonckpt._src.save.api import target_of
from jsonckpt._src.save.options import SaveOptions
from jsonckpt._src.save.plan import plan_save
from jsonckpt._src.save.snapshot import take_snapshot
from jsonckpt._src.save.write import write_checkpoint
from jsonckpt._src.tensors.buffers import Source
from jsonckpt._src.tensors.memory import narrowed

#: Cuts a tensor of a name and a shape into boxes; ``None`` leaves it whole.
Cut = Callable[[str, Sequence[int]], "list[Box] | None"]


def save_in_regions(
    state: Any, path: str | Path, cut: Cut, *, shuffle: int | None = None, **options: Any
) -> None:
    """Save a state, with each tensor in the boxes that ``cut`` gives.

    Args:
        shuffle: a seed for the order of the records; by default as in the state.
        options: as for ``jsonckpt.save``.
    """
    snapshot = take_snapshot(state, options.pop("metadata", None))
    sources: list[Source] = []
    tagged: dict[str, Any] = {}
    for source in snapshot.sources:
        boxes = None if source.name.startswith("$") else cut(source.name, source.shape)
        if boxes is None:
            sources.append(source)
            continue
        tensor = source._tensor.detach()
        tagged[source.name] = regions_json(source.name, source.dtype, source.shape, boxes)
        names = {part["of"] for part in tagged[source.name]["$regions"]["parts"]}
        for offset, size in boxes:
            if region_name(offset, source.name) in names:
                part = Source.of(region_name(offset, source.name), narrowed(tensor, offset, size))
                part.layout = PLAIN
                sources.append(part)
    if shuffle is not None:
        random.Random(shuffle).shuffle(sources)
    snapshot = replace(snapshot, state=_with(snapshot.state, tagged), sources=sources)
    chosen = SaveOptions.of(**options)
    plan, target = plan_save(snapshot, chosen), target_of(path, chosen)
    target.check()
    write_checkpoint(plan, target, CancelToken(), time.perf_counter())


def _with(value: Any, tagged: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if list(value) == ["$tensor"] and value["$tensor"] in tagged:
            return tagged[value["$tensor"]]
        return {key: _with(item, tagged) for key, item in value.items()}
    return [_with(item, tagged) for item in value] if isinstance(value, list) else value


def grid(*counts: int) -> Cut:
    """Cuts each tensor into a grid, of up to so many pieces in each of its first dimensions."""

    def cut(_: str, shape: Sequence[int]) -> list[Box]:
        steps = []
        for size, count in itertools.zip_longest(shape, counts[: len(shape)], fillvalue=1):
            step = max(1, -(-size // count))
            steps.append([(at, min(step, size - at)) for at in range(0, max(size, 1), step)])
        boxes = itertools.product(*steps)
        return [(tuple(at for at, _ in box), tuple(size for _, size in box)) for box in boxes]

    return cut


def guillotine(shape: Sequence[int], choose: Callable[[int], int], cuts: int) -> list[Box]:
    """A random tiling: boxes that are cut in two, again and again.

    Args:
        choose: a number from 0 to below its argument.
    """
    boxes: list[Box] = [((0,) * len(shape), tuple(shape))]
    for _ in range(cuts):
        offset, size = boxes.pop(choose(len(boxes)))
        long = [number for number, length in enumerate(size) if length > 1]
        if not long:
            boxes.append((offset, size))
            continue
        at = long[choose(len(long))]
        left = 1 + choose(size[at] - 1)
        for start, length in ((0, left), (left, size[at] - left)):
            moved = tuple(o + start * (n == at) for n, o in enumerate(offset))
            boxes.append((moved, tuple(length if n == at else s for n, s in enumerate(size))))
    return boxes


def same_tensors(one: Any, two: Any) -> bool:
    """Whether two states have equal tensors, bit for bit, in equal containers."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(two, torch.Tensor)
            and (one.dtype, one.shape) == (two.dtype, two.shape)
            and Source.of("", one.detach()).read(0, one.nbytes)
            == Source.of("", two.detach()).read(0, two.nbytes)
        )
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same_tensors(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same_tensors, one, two))
    return bool(one == two)
