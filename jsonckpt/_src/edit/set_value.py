"""``set_value``: changes plain values of a state and metadata, and copies all tensors as they are.

Of a directory only ``manifest.json`` is written. A single file is written anew beside the old one:
the payloads are copied undecoded, the text around them, the index and the seal are made again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from ..errors import (
    ArgumentError,
    StateMismatchError,
    UnsupportedTypeError,
    counted,
    printable,
    quote,
)
from ..format import json_text
from ..format.checksums import CRYPTOGRAPHIC
from ..format.json_text import Json, dump
from ..format.limits import DEFAULT_LIMITS, Limits
from ..format.manifest import dump_manifest
from ..format.model import MANIFEST_NAME
from ..format.regions import state_in_regions
from ..inspect.plain_values import RULES, contents, is_pairs, tag_of
from ..load.options import ReadOptions
from ..save import reader_limits
from ..save.snapshot import created_by
from ..state.references import has_references
from ..state.tree import encode_state
from ..storage import commit
from ..storage.new_file import mode_for
from .places import (
    Place,
    find,
    is_dictionary,
    is_divisible,
    nothing_at,
    places_in,
    value_at,
    with_contents,
    with_members,
)
from .records import Opened, StoredRecord
from .values import check_value, fitted, kind_of, new_key
from .write import Draft, WriteOptions, local, write_draft

_REAL_AGAIN = "it was edited by hand before; its seal is real again"
_NOTHING = "it has this already; nothing was written"


class _Delete:
    """The type of :data:`DELETE`."""


#: In place of a new value: the place is removed.
DELETE = _Delete()


@dataclass(frozen=True)
class Change:
    """One change.

    Attributes:
        name: of the place; of metadata ``metadata KEY``.
        old, new: the values as JSON, see ``docs/format.md`` section 6; ``None`` also where there
            is none.
        what: ``"set"``, ``"created"`` or ``"deleted"``.
    """

    name: str
    old: Any
    new: Any
    what: str

    def __str__(self) -> str:
        old, new = (quote(dump(value).decode(), 60).strip("'") for value in (self.old, self.new))
        shown = {"set": f"{old} -> {new}", "created": f"{new} (new)", "deleted": f"{old} (deleted)"}
        return f"{printable(self.name)}: {shown[self.what]}"


@dataclass(frozen=True, repr=False)
class SetResult:
    """What :func:`set_value` did.

    Attributes:
        path: of the checkpoint.
        changes: one for each place, in the order given.
        digest: the new ``"sha256:…"`` of the manifest; of a single file its new seal; ``""`` if
            nothing was written.
        pin: the digest for ``expected_digest=``, where the checkpoint can be pinned.
        notes: what else happened, one line each.
    """

    path: str
    changes: tuple[Change, ...]
    digest: str
    pin: str | None
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<SetResult {self.path!r}: {counted(len(self.changes), 'change')}>"

    def __str__(self) -> str:
        lines = [*map(str, self.changes), *(f"note: {note}" for note in self.notes)]
        if self.digest:
            lines.append(f"{printable(self.path)}: written")
        return "\n".join(lines)


@dataclass(frozen=True)
class Edit:
    """One change that is asked for: a value as JSON, or :data:`DELETE`."""

    name: str
    value: Any


def set_value(
    path: str | os.PathLike[str],
    name: str,
    value: object,
    *,
    create: bool = False,
    force: bool = False,
    dry_run: bool = False,
    limits: Limits | None = None,
    sync: bool = True,
) -> SetResult:
    """Set one plain value of a checkpoint's state, and leave everything else as it is.

    The change is atomic: a reader finds the old checkpoint or the new one. Of a directory only
    ``manifest.json`` is written. Of a single file all bytes are copied, none is decoded. The seal
    is made anew, so the digest changes. ``save_id`` and ``created_at`` stay.

    Args:
        path: a local directory, ``.json`` or ``.json.zst``.
        name: the place, as ``jsonckpt inspect`` shows it: ``/optimizer/param_groups/0/lr``.
        value: a Python value without tensors. It keeps the type of the old value: an ``int`` for a
            float becomes a float, a list for a tuple a tuple.
        create: add the last key of ``name`` if it does not exist; ``-`` appends to a list.
        force: accept a value of another type.
        dry_run: only say what would change.
        limits, sync: as for :func:`jsonckpt.load` and :func:`jsonckpt.save`.

    Raises:
        StateMismatchError: nothing is at ``name``; the hint names what is near.
        ArgumentError: the value has another type, or a tensor is there.
        JsonckptError: the checkpoint cannot be read or written; it is unchanged.

    >>> import tempfile, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = directory + "/c.json"
    ...     _ = jsonckpt.save({"lr": 0.1, "betas": (0.9, 0.99)}, path)
    ...     _ = jsonckpt.edit.set_value(path, "/betas", [0.9, 0.95])
    ...     print(jsonckpt.edit.set_value(path, "/lr", 1).changes[0])
    ...     jsonckpt.load(path)
    /lr: 0.1 -> 1.0
    {'lr': 1.0, 'betas': (0.9, 0.95)}
    """
    return apply_edits(
        path,
        [Edit(name, to_json(value))],
        create=create,
        force=force,
        dry_run=dry_run,
        limits=limits,
        sync=sync,
    )


def to_json(value: object) -> Json:
    """The JSON of a Python value without tensors.

    Raises:
        UnsupportedTypeError: a value of a type that needs torch.
    """
    return encode_state(value, _Refusing(), rules=RULES)


class _Refusing:
    """Takes no tensors."""

    def is_tensor(self, _value: object, /) -> bool:
        """Nothing is one here, so that the error names the type."""
        return False

    def put(self, _value: Any, _name: str, /) -> Json:
        """Is never called."""
        raise AssertionError

    def put_array(self, _array: Any, _name: str, /) -> Json:
        """Refuses an array, which would be a new record."""
        raise UnsupportedTypeError(
            "an array is stored as a tensor, and edits make no tensors",
            hint="Load the checkpoint, change it in Python and save it.",
        )


def apply_edits(
    path: str | os.PathLike[str],
    edits: Sequence[Edit],
    *,
    metadata: Mapping[str, Any] | None = None,
    create: bool = False,
    force: bool = False,
    dry_run: bool = False,
    limits: Limits | None = None,
    sync: bool = True,
) -> SetResult:
    """Several changes at once: all of them, or none. See :func:`set_value`.

    Args:
        metadata: new values of the metadata, or :data:`DELETE`.
    """
    text = local(path, "path")
    with ExitStack() as stack:
        opened = Opened(text, ReadOptions.of(limits=limits), stack)
        with opened.container.errors():
            manifest = opened.manifest
            state, about = opened.state, dict(manifest.metadata)
            changes: list[Change] = []
            for edit in edits:
                state, change = _apply(state, edit, create=create, force=force)
                changes.append(change)
            changes += _apply_metadata(about, metadata or {})
            changed = any(change.what != "set" or not _same(change) for change in changes)
            notes = [] if manifest.sealed else [_REAL_AGAIN]
            _check_text({"state": state, "metadata": about})
            if dry_run or not (changed or notes):
                notes = ["dry run: nothing was written"] if dry_run else [_NOTHING]
                return SetResult(text, tuple(changes), "", None, tuple(notes))
            if opened.is_single:
                digest = _write_file(opened, text, state, about, sync=sync)
            else:
                digest = _write_manifest(opened, state, about, sync=sync)
    pin = digest if manifest.checksum in CRYPTOGRAPHIC else None
    return SetResult(text, tuple(changes), digest, pin, tuple(notes))


def _same(change: Change) -> bool:
    return dump(change.old) == dump(change.new)


def _check_text(value: Json) -> None:
    """Check that readers accept the state and the metadata: depth, numbers, marks."""
    json_text.parse(
        dump(value),
        what="the new state",
        max_depth=DEFAULT_LIMITS.depth or 1_000,
        max_number=DEFAULT_LIMITS.number_chars or 1 << 20,
        max_marks=DEFAULT_LIMITS.marks,
    )


def _write_file(
    opened: Opened, text: str, state: Json, metadata: dict[str, Any], *, sync: bool
) -> str:
    manifest = opened.manifest
    draft = Draft(
        inputs=[opened],
        state=state,
        metadata=metadata,
        records=[StoredRecord.of(opened, entry) for entry in opened.records],
        plans={},
        save_id=manifest.save_id,
        created_at=manifest.created_at,
    )
    return write_draft(draft, text, WriteOptions(overwrite=True, sync=sync)).digest


def _write_manifest(opened: Opened, state: Json, metadata: dict[str, Any], *, sync: bool) -> str:
    manifest = opened.manifest
    state = state_in_regions(state, manifest.wholes) if manifest.wholes else state
    manifest = replace(manifest, state=state, metadata=metadata, created_by=created_by())
    text = dump_manifest(manifest)
    reader_limits.check_manifest(text, manifest)
    target = opened.local_path() / MANIFEST_NAME
    temporary = target.with_name(f".manifest-{secrets.token_hex(6)}.tmp")
    opened.check_unchanged()
    commit.commit(temporary, target, text, sync=sync, mode=mode_for(target))
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def _apply(state: Json, edit: Edit, *, create: bool, force: bool) -> tuple[Json, Change]:
    name = edit.name if edit.name[:1] in ("/", "") else f"/{edit.name}"
    try:
        place, holder = find(state, name)
    except StateMismatchError as error:
        if not name or isinstance(edit.value, _Delete):
            raise
        if not create:
            error.hint = f"{error.hint or ''} To add it, pass --create (create=True).".strip()
            raise
        return _create(state, name, edit.value)
    old = place.value
    if has_references(old):
        raise _no_tensors(name, old)
    if isinstance(edit.value, _Delete):
        return _delete(state, place, holder), Change(name, old, None, "deleted")
    new = fitted(old, edit.value, name, force=force)
    check_value(new, name)
    _check_unique(holder, place, new)
    place.holder[place.slot] = new
    return state, Change(name, old, new, "set")


def _no_tensors(name: str, old: Json) -> ArgumentError:
    is_tensor = contents(old) is None
    what = "is a tensor" if is_tensor else "holds tensors"
    return ArgumentError(
        f"{quote(name, 200)} {what}, and set changes plain values only",
        hint="To change numbers in it, load the checkpoint in Python and save it again. To remove "
        f"it, write a checkpoint without it: jsonckpt split PATH -o OUT --exclude {quote(name)}.",
    )


def _check_unique(holder: Json, place: Place | None, new: Json) -> None:
    if tag_of(holder) in ("$set", "$frozenset"):
        others = [p.value for p in places_in(holder, "") if place is None or p.slot != place.slot]
        if dump(new) in map(dump, others):
            raise ArgumentError(f"the set holds {quote(dump(new).decode(), 60)} already")


def _replaced(state: Json, path: str, new: Json) -> Json:
    """The state with another value at a path; ``""`` is the state itself."""
    if not path:
        return new
    place, _ = find(state, path)
    place.holder[place.slot] = new
    return state


def _delete(state: Json, place: Place, holder: Json) -> Json:
    if is_dictionary(holder) and not is_divisible(holder):
        raise ArgumentError(
            f"{quote(place.path, 200)} belongs to {kind_of(holder)}, which needs all its members"
        )
    if type(place.members) is list and not is_pairs(holder):
        behind = place.members[place.position + 1 :]
        if has_references(behind):
            raise ArgumentError(
                f"behind {quote(place.path, 200)} there are tensors, whose names would shift",
                hint="Delete from the end of the list, or change it in Python.",
            )
    was_tagged = bool(tag_of(holder))
    del place.members[place.position]
    if was_tagged or not tag_of(holder):
        return state
    # One of several members remains, and must not look like a tag.
    members: list[Json] = [[key, value] for key, value in holder.items()]  # type: ignore[union-attr]
    return _replaced(state, place.path.rpartition("/")[0], {"$dict": members})


def _create(state: Json, name: str, value: Json) -> tuple[Json, Change]:
    above, _, last = name.rpartition("/")
    try:
        holder = value_at(state, above)
    except StateMismatchError as error:
        error.hint = f"{error.hint or ''} Create what is above it first.".strip()
        raise
    body = contents(holder)
    check_value(value, name)
    label = last.replace("~1", "/").replace("~0", "~")
    if is_divisible(holder):
        key = new_key(holder, label)
        members = [(place.key, place.value) for place in places_in(holder, "")]
        made = with_members(holder, [*members, (key, value)])
    elif type(body) is list and not is_dictionary(holder):
        if last not in ("-", str(len(body))):
            raise nothing_at(state, name)
        _check_unique(holder, None, value)
        made = with_contents(holder, [*body, value])
    else:
        raise ArgumentError(
            f"{quote(above, 200)} is {kind_of(holder)}, which has no members to add to"
        )
    return _replaced(state, above, made), Change(name, None, value, "created")


def _apply_metadata(about: dict[str, Any], edits: Mapping[str, Any]) -> Iterable[Change]:
    changes = []
    for key, value in edits.items():
        old, known = about.get(key), key in about
        if isinstance(value, _Delete):
            if not known:
                raise StateMismatchError(f"the metadata has no key {quote(key)}", missing=[key])
            del about[key]
            changes.append(Change(f"metadata {key}", old, None, "deleted"))
            continue
        reader_limits.require_json({key: value}, "metadata")
        about[key] = value
        what = "set" if known else "created"
        changes.append(Change(f"metadata {key}", old, value, what))
    return changes
