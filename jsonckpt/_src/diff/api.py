"""``jsonckpt.diff``: compares two checkpoints, and reads only what stored checksums leave open."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from ..format.json_text import Json, collector_paused
from ..format.limits import Limits
from ..format.manifest import parse_manifest
from ..format.model import MANIFEST_NAME, Manifest
from ..inspect.facts import TensorFacts, tensors_of
from ..inspect.plain_values import is_tensor, members_of
from ..load.container import Container, open_container
from ..load.options import ReadOptions
from ..state.selector import Selector, refuse_unmatched, selector
from ..storage.path_arguments import is_url, path_text
from .contents import Contents, same_bytes, same_checksums, step_for
from .distance import distance_of
from .facts import Change, Diff, Kind
from .states import TensorPair, walk


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    stats: bool = False,
    include: Selector | None = None,
    exclude: Selector | None = None,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Diff:
    """What differs between two checkpoints: plain values, tensors, structure.

    Stored checksums decide where both sides have the same kind for the same pieces. Then nothing is
    read. Otherwise both tensors are read, and no more than a few chunks are in memory. How tensors
    are encoded, and when and where they were saved, is no difference.

    Args:
        a, b: as for :func:`jsonckpt.load`; or a ``manifest.json`` alone, without its shards.
        stats: also read tensors that differ, and say how far they are apart.
        include, exclude: only differences at these places: names or globs.
        limits, storage_options: as for :func:`jsonckpt.load`.

    Raises:
        StateMismatchError: a name or glob is at no place of either checkpoint.
        JsonckptError: one is no whole checkpoint, or a tensor that must be read is damaged.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = jsonckpt.save({"w": torch.ones(2), "lr": 0.1, "b": torch.ones(1)}, folder + "/a")
    ...     _ = jsonckpt.save({"w": torch.zeros(2), "lr": 0.2, "b": torch.ones(1)}, folder + "/b")
    ...     found = jsonckpt.diff(folder + "/a", folder + "/b")
    >>> bool(found), found.same
    (True, 1)
    >>> print(*found.changes, sep="\\n")
    ~ /w  float32 [2]
    ~ /lr  0.1 → 0.2
    """
    options = ReadOptions.of(limits=limits, storage_options=storage_options)
    chosen, unmatched = selector(include, exclude)
    with collector_paused():
        sides = _Side.open(a, options), _Side.open(b, options)
        if include is not None or exclude is not None:
            names = [name for side in sides for name in _places(side)]
            refuse_unmatched(unmatched(names), names)
        return _Comparison(sides, stats=stats).result(chosen)


@dataclass(frozen=True)
class _Side:
    path: str
    manifest: Manifest
    container: Container | None
    tensors: Mapping[str, TensorFacts]

    @classmethod
    def open(cls, path: str | os.PathLike[str], options: ReadOptions) -> _Side:
        text = path_text(path, "the path")
        if os.path.basename(text) == MANIFEST_NAME and not is_url(text) and is_readable(text):
            most = options.limits.manifest_bytes
            with open(text, "rb") as file:
                begun = file.read(-1 if most is None else most + 1)
            manifest, container = parse_manifest(begun, options.limits), None
        else:
            container = open_container(path, options)
            manifest = container.manifest
        tensors = {tensor.name: tensor for tensor in tensors_of(manifest)}
        return cls(text, manifest, container, tensors)


def is_readable(path: str) -> bool:
    """Whether a path is a file that can be opened and that ends."""
    return os.path.isfile(path) and os.access(path, os.R_OK)


def _places(side: _Side) -> Iterator[str]:
    """The names of all tensors and values of a state, and of what holds them."""
    yield from side.tensors
    pending: list[tuple[str, Json]] = [("", side.manifest.state)]
    while pending:
        place, value = pending.pop()
        yield place
        members = None if is_tensor(value) else members_of(value, place)
        pending += [(member.path, member.value) for member in members or ()]


class _Comparison:
    def __init__(self, sides: tuple[_Side, _Side], *, stats: bool) -> None:
        self._sides = sides
        self._stats = stats
        self._same = 0
        #: Pairs of tensors, and the place in the changes where their difference would be.
        self._open: list[tuple[int, TensorFacts, TensorFacts]] = []
        self._differ: list[tuple[int, TensorFacts, TensorFacts]] = []

    def result(self, chosen: Any) -> Diff:
        changes: list[Change | None] = []
        for found in walk(*(side.manifest.state for side in self._sides)):
            if isinstance(found, Change):
                if chosen(found.name):
                    changes.append(found)
                continue
            for name, before, after in self._pairs(found):
                if chosen(name):
                    self._pair(before, after, changes)
        read = len(self._open)
        self._read(changes)
        kept = tuple(change for change in changes if change is not None)
        return Diff(self._sides[0].path, self._sides[1].path, kept, self._same, read)

    def _pairs(self, pair: TensorPair) -> Iterator[tuple[str, TensorFacts, TensorFacts]]:
        for one, two in zip(pair.before, pair.after):
            if one in self._sides[0].tensors and two in self._sides[1].tensors:
                yield two, self._sides[0].tensors[one], self._sides[1].tensors[two]

    def _pair(self, before: TensorFacts, after: TensorFacts, changes: list[Change | None]) -> None:
        texts = [f"{tensor.dtype} {list(tensor.shape)}" for tensor in (before, after)]
        if before.dtype != after.dtype:
            changes.append(Change(after.name, "dtype", texts[0], texts[1], True))
        elif before.shape != after.shape:
            changes.append(Change(after.name, "shape", texts[0], texts[1], True))
        else:
            for change in _relations(before, after):
                changes.append(change)
            algorithms = self._sides[0].manifest.checksum, self._sides[1].manifest.checksum
            same = same_checksums(algorithms, before, after)
            changes.append(None if same is not False else _data(after))
            entry = (len(changes) - 1, before, after)
            if same is None:
                self._open.append(entry)
            elif same:
                self._same += 1
            elif self._stats:
                self._differ.append(entry)

    def _read(self, changes: list[Change | None]) -> None:
        """Read what checksums leave open, and with ``stats`` what differs."""
        undecided, self._open = self._open, []
        if any(side.container is None for side in self._sides):
            for place, _, after in undecided:
                text = f"{after.dtype} {list(after.shape)}"
                unknown = f"{text}: not known to be the same, its shards are not here"
                changes[place] = Change(after.name, "data", text, unknown, True)
            return
        pairs = [*undecided, *self._differ]
        with ExitStack() as stack:
            both = [
                stack.enter_context(Contents(container, wanted))
                for container, wanted in self._wanted(pairs, stack)
            ]
            sides = both[0], both[1]
            for place, before, after in undecided:
                if same_bytes(sides, before, after):
                    self._same += 1
                    continue
                changes[place] = _data(after)
                if self._stats:
                    self._differ.append((place, before, after))
            for place, before, after in self._differ:
                step = step_for(before, after)
                parts = zip(sides[0].parts(before, step), sides[1].parts(after, step))
                changes[place] = replace(_data(after), distance=distance_of(after.dtype, parts))

    def _wanted(
        self, pairs: list[tuple[int, TensorFacts, TensorFacts]], stack: ExitStack
    ) -> Iterator[tuple[Container, list[TensorFacts]]]:
        """Each side with the tensors to read; its errors name its path."""
        befores, afters = [pair[1] for pair in pairs], [pair[2] for pair in pairs]
        for side, wanted in zip(self._sides, (befores, afters)):
            if side.container is not None:
                stack.enter_context(side.container.errors())
                yield side.container, wanted


def _data(tensor: TensorFacts) -> Change:
    text = f"{tensor.dtype} {list(tensor.shape)}"
    return Change(tensor.name, "data", text, text, True)


def _relations(before: TensorFacts, after: TensorFacts) -> Iterator[Change]:
    """Differences in how a tensor lies in memory, what it shares it with, and in its device."""
    both = before, after
    facts: dict[Kind, list[str]] = {
        "strides": [str(tensor.steps()) for tensor in both],
        "sharing": [_sharing(tensor) for tensor in both],
        "device": [tensor.entry.device for tensor in both],
    }
    for kind, (one, two) in facts.items():
        if one != two:
            yield Change(after.name, kind, one, two, True)


def _sharing(tensor: TensorFacts) -> str:
    if tensor.kind == "tensor":
        return "memory of its own"
    start = f" from element {tensor.offset}" if tensor.offset else ""
    return f"{tensor.kind} of {tensor.entry.name}{start}"
