"""``merge``: several checkpoints into one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError, StateMismatchError, counted, printable, quote
from ..format.json_text import Json, dump
from ..format.limits import Limits
from ..inspect.plain_values import tag_of
from ..load.options import ReadOptions
from ..state.paths import child
from ..state.references import has_references, references_in
from .places import Rebuild, is_divisible, places_in, with_members, with_records
from .records import Opened, StoredRecord
from .write import Draft, WriteOptions, check_out, local, unique_names, whole_storages, write_draft

_STORAGE = re.compile(r"\$storage/[0-9]+", re.ASCII)


@dataclass(frozen=True, repr=False)
class MergeResult:
    """What :func:`merge` wrote.

    Attributes:
        path: of the new checkpoint.
        inputs: the checkpoints that it has everything of.
        tensors, nbytes: how many records, and their raw bytes.
        digest: as in :class:`jsonckpt.SaveResult`.
        notes: what else there is to know, one line each.
    """

    path: str
    inputs: tuple[str, ...]
    tensors: int
    nbytes: int
    digest: str
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<MergeResult {self.path!r}: {counted(self.tensors, 'tensor')}>"

    def __str__(self) -> str:
        lines = [
            f"{printable(self.path)}: {counted(self.tensors, 'tensor')}, "
            f"{counted(self.nbytes, 'byte')} from {counted(len(self.inputs), 'checkpoint')}"
        ]
        return "\n".join(lines + [f"note: {printable(note)}" for note in self.notes])


def merge(
    inputs: Sequence[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    threads: int | None = None,
    limits: Limits | None = None,
    sync: bool = True,
) -> MergeResult:
    """Join several checkpoints into one. Payloads are copied undecoded.

    Args:
        inputs: a sequence of checkpoints whose states are dictionaries: they are joined level by
            level. Or a dictionary: the whole state of each goes under its name.
        out: the new checkpoint.
        overwrite: replace a checkpoint at ``out``.
        threads, limits, sync: as for :func:`jsonckpt.save` and :func:`jsonckpt.load`.

    Ties between tensors of one input stay. Metadata is joined; of two values for one key the first
    stays, and a note says so. The checksum is that of the first input.

    Raises:
        StateMismatchError: two inputs have something at the same place; it names both.
        ArgumentError: fewer than two inputs.
        JsonckptError: an input cannot be read, or the output not written.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     a, b = directory + "/a.json", directory + "/b.json"
    ...     _ = jsonckpt.save({"w": torch.ones(1)}, a), jsonckpt.save({"step": 3}, b)
    ...     _ = jsonckpt.edit.merge({"model": a, "run": b}, directory + "/c.json")
    ...     jsonckpt.load(directory + "/c.json")
    {'model': {'w': tensor([1.])}, 'run': {'step': 3}}
    """
    named = inputs if isinstance(inputs, Mapping) else None
    paths = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    return merge_inputs(
        [*zip(named or [None] * len(paths), paths)],
        out,
        overwrite=overwrite,
        threads=threads,
        limits=limits,
        sync=sync,
    )


def merge_inputs(
    inputs: Sequence[tuple[str | None, str | os.PathLike[str]]],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    threads: int | None = None,
    limits: Limits | None = None,
    sync: bool = True,
) -> MergeResult:
    """:func:`merge` for pairs of a name, or ``None``, and a path."""
    if len(inputs) < 2 and not any(name is not None for name, _ in inputs):
        raise ArgumentError("merge takes two checkpoints or more")
    target = local(out, "out")
    options = WriteOptions(overwrite=overwrite, threads=threads, sync=sync)
    check_out(target, options)
    with ExitStack() as stack:
        opened = [Opened(path, ReadOptions.of(limits=limits), stack) for _, path in inputs]
        merger = _Merger()
        for (name, _), one in zip(inputs, opened):
            with one.container.errors():
                merger.add(name, one)
        unique_names([(record.name, record.opened.path) for record in merger.records])
        whole_storages(merger.records, opened)
        draft = Draft(
            inputs=opened,
            state=merger.state,
            metadata=merger.metadata,
            records=merger.records,
            plans={},
        )
        saved = write_draft(draft, target, options)
    return MergeResult(
        target,
        tuple(one.path for one in opened),
        saved.tensors,
        saved.nbytes,
        saved.digest,
        tuple(merger.notes),
    )


class _Merger:
    """The union of the states that were added."""

    def __init__(self) -> None:
        self.state: Json = None
        self.metadata: dict[str, Any] = {}
        self.records: list[StoredRecord] = []
        self.notes: list[str] = []
        self._first = True
        #: Which input each place came from.
        self._origin: dict[str, str] = {}
        self._storages = 0

    def add(self, name: str | None, opened: Opened) -> None:
        """Add a checkpoint, under a name or beside what there is."""
        state = opened.state
        list(references_in(state))  # refuses a malformed one
        if name is None and not is_divisible(state):
            raise StateMismatchError(
                "its state is no dictionary and has no keys to join",
                hint="Give it a name: model=PATH (in Python: {'model': path}).",
            )
        rebuild = Rebuild(below="" if name is None else child("", name))
        made = rebuild.state(state)
        names = dict(rebuild.names)
        for entry in opened.records:
            # A record without a place of its own gets a number that nobody else has.
            if entry.name not in names or _STORAGE.fullmatch(entry.name):
                names[entry.name] = f"$storage/{self._storages}"
                self._storages += 1
            new = names[entry.name]
            self.records.append(StoredRecord(opened, entry, new, entry.layout))
        made = with_records(made, lambda old: names.get(old, old))
        if name is not None:
            made = with_members({}, [(name, made)])
        self.state = made if self._first else self._union(self.state, made, "", opened.path)
        self._first = False
        self._note_origin(made, opened.path)
        self._add_metadata(opened)

    def _note_origin(self, made: Json, origin: str) -> None:
        pending = [("", made)]
        while pending:
            path, value = pending.pop()
            self._origin.setdefault(path, origin)
            if is_divisible(value):
                pending.extend((place.path, place.value) for place in places_in(value, path))

    def _union(self, one: Json, two: Json, path: str, origin: str) -> Json:
        if not (is_divisible(one) and is_divisible(two) and _alike(one, two)):
            if not has_references([one, two]) and dump(one) == dump(two):
                return one
            first = next(
                (self._origin[at] for at in _ancestors(path) if at in self._origin), "another input"
            )
            raise StateMismatchError(
                f"{printable(first)} and {printable(origin)} both have {quote(path, 200)}",
                hint="Put each under a name: jsonckpt merge a=PATH b=PATH -o OUT (in Python: "
                "{'a': path, 'b': path}); or leave it out of one with jsonckpt split --exclude.",
            )
        known = {dump(place.key): place for place in places_in(one, path)}
        added = []
        for place in places_in(two, path):
            mine = known.get(dump(place.key))
            if mine is None:
                added.append((place.key, place.value))
            else:
                mine.holder[mine.slot] = self._union(mine.value, place.value, mine.path, origin)
        return _with_metadata(_extended(one, added), one, two)

    def _add_metadata(self, opened: Opened) -> None:
        for key, value in opened.manifest.metadata.items():
            first = self.metadata.setdefault(key, value)
            if dump(first) != dump(value):
                self.notes.append(
                    f"metadata {key}: the value of {opened.path} was left out, an earlier "
                    "checkpoint has another one"
                )


def _ancestors(path: str) -> list[str]:
    found = [path]
    while path:
        path = path.rpartition("/")[0]
        found.append(path)
    return found


def _alike(one: Json, two: Json) -> bool:
    """Whether two dictionaries are of one type, so that one dictionary can hold both."""
    plain = ("", "$dict")
    tags = tag_of(one), tag_of(two)
    if tags[0] in plain and tags[1] in plain:
        return True
    if tags[0] == "$defaultdict" == tags[1]:
        bodies: list[Any] = [one[tags[0]], two[tags[1]]]  # type: ignore[call-overload, index]
        return bool(bodies[0].get("factory") == bodies[1].get("factory"))
    return tags[0] == tags[1]


def _extended(one: Json, added: list[tuple[Json, Json]]) -> Json:
    """A dictionary with more members behind its own."""
    own = [(place.key, place.value) for place in places_in(one, "")]
    return with_members(one, own + added)


def _with_metadata(made: Json, one: Json, two: Json) -> Json:
    """An ordered dictionary with the metadata of both."""
    tag = "$ordered_dict"
    if tag_of(one) != tag or tag_of(two) != tag:
        return made
    bodies: list[Any] = [one[tag], two[tag]]  # type: ignore[call-overload, index]
    if "metadata" in bodies[1]:
        first, second = bodies[0].get("metadata"), bodies[1]["metadata"]
        both = is_divisible(first) and is_divisible(second)
        known = {dump(place.key) for place in places_in(first, "")} if both else set()
        added = [
            (place.key, place.value)
            for place in (places_in(second, "") if both else [])
            if dump(place.key) not in known
        ]
        body: Any = made[tag]  # type: ignore[call-overload, index]
        body["metadata"] = _extended(first, added) if both else (first or second)
    return made
