"""``split``: parts of a checkpoint as checkpoints of their own."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, LimitError, StateMismatchError, counted, printable, quote
from ..format.filenames import is_part, is_single
from ..format.json_text import Json
from ..format.limits import Limits
from ..inspect.plain_values import contents, tag_of
from ..load.options import ReadOptions
from ..progress import human
from ..save.options import parse_size
from ..state.references import Reference, references_in
from ..state.selector import Selector, refuse_unmatched, selector
from .places import is_divisible, places_in, with_members, with_records
from .records import Opened, StoredRecord
from .write import Draft, WriteOptions, check_out, local, whole_storages, write_draft

#: The part for what no other part takes.
REST = "rest"
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_NAME = 60
_MOST_PARTS = 1_000


@dataclass(frozen=True)
class SplitPart:
    """One checkpoint that :func:`split` wrote.

    Attributes:
        path: of the checkpoint.
        tensors, nbytes: how many records, and their raw bytes.
        digest: as in :class:`jsonckpt.SaveResult`.
    """

    path: str
    tensors: int
    nbytes: int
    digest: str

    def __str__(self) -> str:
        return f"{printable(self.path)}: {counted(self.tensors, 'tensor')}, {human(self.nbytes)}"


@dataclass(frozen=True, repr=False)
class SplitResult:
    """What :func:`split` wrote.

    Attributes:
        path: of the checkpoint that was split.
        parts: the new checkpoints.
        left_out: the places that are in no part, without what is below them.
        notes: what else there is to know, one line each: ties and views across parts.
    """

    path: str
    parts: tuple[SplitPart, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<SplitResult {self.path!r}: {counted(len(self.parts), 'part')}>"

    def __str__(self) -> str:
        lines = [*map(str, self.parts)]
        if self.left_out:
            shown = ", ".join(map(quote, self.left_out[:5]))
            more = f" and {len(self.left_out) - 5} more" if len(self.left_out) > 5 else ""
            lines.append(f"left out: {shown}{more}")
        return "\n".join(lines + [f"note: {printable(note)}" for note in self.notes])


@dataclass(slots=True)
class _Unit:
    """What stays together: a value that is no dictionary, or an empty one.

    Attributes:
        nbytes: raw bytes of the records that its tensors are in.
        compound: a list or an object, with places of its own.
    """

    path: str
    references: list[Reference]
    nbytes: int
    compound: bool
    part: str | None = None


@dataclass
class _Part:
    name: str
    state: Json
    records: list[StoredRecord] = field(default_factory=list)


def split(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    by: str | int | Mapping[str, Selector] | None = None,
    include: Selector | None = None,
    exclude: Selector | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    limits: Limits | None = None,
    sync: bool = True,
) -> SplitResult:
    """Write parts of a checkpoint as checkpoints of their own. Payloads are copied undecoded.

    Args:
        path: of the checkpoint.
        out: without ``by`` the new checkpoint; with ``by`` a directory, in which each part gets a
            name. The parts of a single file are single files, those of a directory are directories.
        by: ``"top-level"``: a part for each key of the state that holds tensors, and ``rest``. A
            size (``"500MB"``): parts of about so many raw bytes, in order. A dictionary from names
            of parts to names or patterns of places: the first that fits takes a place, and ``rest``
            takes what no pattern fits.
        include, exclude: names or patterns of places as for :func:`jsonckpt.load`. Here they select
            plain values, too: what is not selected is in no part.
        overwrite: replace checkpoints at the paths of the parts.
        threads, limits, sync: as for :func:`jsonckpt.save` and :func:`jsonckpt.load`.

    Dictionaries are divided; lists, tuples and arrays stay whole. A tensor that is tied to one in
    another part is written in both, and a note names it. :func:`merge` of all parts has everything
    again; dictionaries have the order of the parts.

    Raises:
        StateMismatchError: a pattern selects nothing, or a part of a list.
        ArgumentError: an argument is not valid.
        JsonckptError: the checkpoint cannot be read, or a part not written.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     state = {"model": {"w": torch.ones(1)}, "optimizer": {"lr": 0.1}, "epoch": 3}
    ...     _ = jsonckpt.save(state, directory + "/c.json")
    ...     weights = directory + "/weights.json"
    ...     _ = jsonckpt.edit.split(directory + "/c.json", weights, include="/model")
    ...     jsonckpt.load(weights)
    {'model': {'w': tensor([1.])}}
    """
    target = local(out, "out")
    options = WriteOptions(overwrite=overwrite, threads=threads, sync=sync)
    with ExitStack() as stack:
        opened = Opened(path, ReadOptions.of(limits=limits), stack)
        with opened.container.errors():
            units = list(_units(opened))
            _select(units, include, exclude)
            _assign(units, by)
            parts, notes, left_out = _parts(opened, units)
        if by is None:
            paths = [target]
        else:
            paths = [str(Path(target) / name) for name in _file_names(parts, opened)]
        for one in paths:
            check_out(one, options)
        written = []
        for part, one in zip(parts, paths):
            whole_storages(part.records, [opened])
            draft = Draft(
                inputs=[opened],
                state=part.state,
                metadata=opened.manifest.metadata,
                records=part.records,
                plans={},
                created_at=opened.manifest.created_at,
            )
            saved = write_draft(draft, one, options)
            written.append(SplitPart(one, saved.tensors, saved.nbytes, saved.digest))
    return SplitResult(opened.path, tuple(written), tuple(left_out), tuple(notes))


def _units(opened: Opened) -> Iterator[_Unit]:
    """What stays together, in the order of the state."""
    by_name = opened.by_name
    pending: list[tuple[str, Json]] = [("", opened.state)]
    while pending:
        path, value = pending.pop()
        places = list(places_in(value, path)) if is_divisible(value) else []
        if places:
            pending.extend((place.path, place.value) for place in reversed(places))
            continue
        references = list(references_in(value))
        missing = [r for r in references if r.record not in by_name]
        if missing:
            raise StateMismatchError(
                f"{quote(path, 200)} refers to the record {quote(missing[0].record, 200)}, "
                "which is missing"
            )
        owned = {r.record for r in references if r.tag == "$tensor"}
        nbytes = sum(by_name[name].nbytes for name in owned)
        yield _Unit(path, references, nbytes, contents(value) is not None)


def _select(units: Sequence[_Unit], include: Selector | None, exclude: Selector | None) -> None:
    """Assign all selected units to one part."""
    chosen, unmatched = selector(include, exclude)
    names = [unit.path for unit in units]
    inside = [reference.name for unit in units for reference in unit.references]
    refuse_unmatched(unmatched([*names, *inside]), [*names, *inside])
    for unit in units:
        if chosen(unit.path):
            unit.part = REST
        if unit.compound and unit.references:
            _check_whole(unit, chosen)
    if not any(unit.part for unit in units):
        raise StateMismatchError("nothing is selected", hint="Nothing was written.")


def _check_whole(unit: _Unit, chosen: Callable[[str], bool]) -> None:
    """Check that all of a list is selected, or nothing of it."""
    found = {chosen(reference.name) for reference in unit.references}
    if found == {True}:
        unit.part = REST
    elif found == {True, False} or (unit.part and False in found):
        raise StateMismatchError(
            f"{quote(unit.path, 200)} is no dictionary, and only some of its tensors are selected",
            hint=f"It is written whole or not at all: name {quote(unit.path)}.",
        )


def _assign(units: Sequence[_Unit], by: str | int | Mapping[str, Selector] | None) -> None:
    """Give each selected unit the name of its part."""
    selected = [unit for unit in units if unit.part]
    if by is None:
        return
    if isinstance(by, Mapping):
        rules = [(name, selector(patterns, None)) for name, patterns in by.items()]
        names = [unit.path for unit in selected]
        for name, (_, unmatched) in rules:
            _check_part_name(name)
            refuse_unmatched(unmatched(names), names, option="by ")
        for unit in selected:
            unit.part = next((name for name, (fits, _) in rules if fits(unit.path)), REST)
    elif by == "top-level":
        keys: dict[str, bool] = {}
        for unit in selected:
            top = "/".join(unit.path.split("/")[:2])
            keys[top] = keys.get(top, False) or bool(unit.references)
        for unit in selected:
            top = "/".join(unit.path.split("/")[:2])
            unit.part = top if keys[top] else REST
    else:
        most, number, size = parse_size(by, "by"), 1, 0
        for unit in selected:
            if size and size + unit.nbytes > most:
                number, size = number + 1, 0
            size += unit.nbytes
            unit.part = f"part-{number:05d}"


def _check_part_name(name: str) -> None:
    if not isinstance(name, str) or not name or _UNSAFE.search(name) or len(name) > _LONGEST_NAME:
        raise ArgumentError(
            f"{quote(name)} cannot be the name of a part",
            hint=f"Use at most {_LONGEST_NAME} letters, digits, - and _.",
        )


def _file_names(parts: Sequence[_Part], opened: Opened) -> list[str]:
    """A file name for each part: safe on every system, and none twice."""
    ending = ""
    if opened.is_single:
        ending = ".json.zst" if (opened.container.single or "").endswith(".zst") else ".json"
    taken: set[str] = set()
    for part in parts:
        stem = _UNSAFE.sub("_", part.name.removeprefix("/"))[:_LONGEST_NAME].strip("_-") or "part"
        if is_part(f"{stem}.json") or is_part(f"{stem.lower()}.json"):
            stem = f"part_{stem}"
        name, number = stem, 2
        while name.lower() in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.lower())
        part.name = f"{name}{ending}"
    assert all(is_single(part.name) == opened.is_single for part in parts)
    return [part.name for part in parts]


def _parts(opened: Opened, units: Sequence[_Unit]) -> tuple[list[_Part], list[str], list[str]]:
    """The parts in order, notes on what crosses them, and the places that are in none."""
    parts_at: dict[str, set[str | None]] = {}
    for unit in units:
        above = unit.path
        parts_at.setdefault(above, set()).add(unit.part)
        while above:
            above = above.rpartition("/")[0]
            parts_at.setdefault(above, set()).add(unit.part)
    owner: dict[str, str | None] = {}
    for unit in units:
        for reference in unit.references:
            if reference.tag == "$tensor":
                owner[reference.record] = unit.part
    left_out = [
        path
        for path, found in parts_at.items()
        if found == {None} and (not path or parts_at[path.rpartition("/")[0]] != {None})
    ]
    parts: list[_Part] = []
    notes: list[str] = []
    of_part: dict[str, list[Reference]] = {}
    for unit in units:
        if unit.part:
            of_part.setdefault(unit.part, []).extend(unit.references)
    if len(of_part) > _MOST_PARTS:
        raise LimitError(
            f"{len(of_part)} parts; split writes at most {_MOST_PARTS}", hint="Ask for larger ones."
        )
    for name in of_part:
        state = _pruned(opened.state, "", parts_at, name)
        mine = of_part[name]
        state, names = _adopt(state, mine)
        records = [
            StoredRecord(opened, entry, names[entry.name], entry.layout)
            for entry in opened.records
            if entry.name in names
        ]
        parts.append(_Part(name, state, records))
        notes += _crossings(mine, owner, name)
    return parts, notes, left_out


def _crossings(
    references: Sequence[Reference], owner: Mapping[str, str | None], part: str
) -> Iterator[str]:
    for reference in references:
        if reference.tag == "$tensor" or owner.get(reference.record, part) == part:
            continue
        elsewhere = owner[reference.record]
        where = "is left out" if elsewhere is None else f"is in {elsewhere.removeprefix('/')!r}"
        name, record = quote(reference.name), quote(reference.record)
        if reference.tag == "$tied":
            yield f"{name} was tied to {record}, which {where}: it has a copy of its own now"
        else:
            yield f"{name} is a view of {record}, which {where}: all of that is in both parts"


def _pruned(value: Json, path: str, parts_at: Mapping[str, set[str | None]], part: str) -> Json:
    """The state of one part: dictionaries with the members that are in it."""
    places = list(places_in(value, path)) if is_divisible(value) else []
    if not places:
        return value
    kept: list[tuple[Json, Json]] = [
        (place.key, _pruned(place.value, place.path, parts_at, part))
        for place in places
        if part in parts_at[place.path]
    ]
    return with_members(value, kept)


def _adopt(state: Json, references: Sequence[Reference]) -> tuple[Json, dict[str, str]]:
    """The state with an owner for each record, and the new names of the records.

    Where the place of a record is in another part, the first tensor that was tied to it takes its
    place. A record with views only gets no place.
    """
    owners = {r.record for r in references if r.tag == "$tensor"}
    names = {record: record for record in owners}
    for reference in references:
        if reference.tag == "$tied" and reference.record not in names:
            names[reference.record] = reference.name
    storages = {r.record for r in references if r.record.startswith("$storage/")}
    number = 0
    for reference in references:
        if reference.record not in names:
            if reference.record in storages:
                names[reference.record] = reference.record
                continue
            while f"$storage/{number}" in storages:
                number += 1
            names[reference.record] = f"$storage/{number}"
            storages.add(f"$storage/{number}")
    adopted = {names[record] for record in names if record not in owners}
    return with_records(_owned(state, adopted), lambda name: names[name]), names


def _owned(value: Json, adopted: set[str]) -> Json:
    """The state in which the ties that take over a record hold it."""
    if type(value) is list:
        return [_owned(item, adopted) for item in value]
    if type(value) is not dict:
        return value
    if tag_of(value) == "$tied":
        body: Any = value["$tied"]
        return {"$tensor": body["name"]} if body["name"] in adopted else value
    return {key: _owned(item, adopted) for key, item in value.items()}
