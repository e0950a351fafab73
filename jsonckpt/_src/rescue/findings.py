"""The findings of a search: records, state, and what is lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import FormatError, JsonckptError, quote
from ..format.limits import Limits
from ..format.model import Entry, Layout, Manifest, Whole, claimed_bytes
from ..format.regions import (
    PREFIX,
    Regions,
    find_regions,
    put_together,
    regions_by_names,
    state_in_regions,
)
from ..format.validation import Problems, check_storages
from ..load.restore import StateBuilder
from ..load.selection import TensorSelection
from ..state.prune import named_state, prune
from ..state.references import references_in
from ..tensors.storages import MAX_SPREAD
from .found_source import FoundSource
from .scan import LostTensor
from .scan_files import ScannedFile
from .scan_record import FoundRecord

_NOWHERE = "no file contains it"


@dataclass
class Findings:
    """What was found in a damaged checkpoint.

    Attributes:
        limits: for reading the records again.
        records: the intact records to save, by name.
        lost: records that are not intact, or not those of the manifest.
        duplicates: intact records that are not saved, because another record has the same name.
        unlisted: name and file of intact records that are not those of the manifest.
        notes: other findings.
        manifest: the manifest, if it is whole. Then only its records are restored.
        save_id, created_at, metadata, checksum: of the save; empty if they are not known.
        wholes: the tensors all of whose regions are intact, by name.
        state: as it was found, before it is pruned.
        state_status: ``"verified"``, ``"unverified"`` or ``"lost"``.
        rejected_state: a state that is not used. It shows which tensors existed.
    """

    limits: Limits
    records: dict[str, FoundSource] = field(default_factory=dict)
    lost: list[LostTensor] = field(default_factory=list)
    duplicates: list[LostTensor] = field(default_factory=list)
    unlisted: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    manifest: Manifest | None = None
    save_id: str = ""
    created_at: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    checksum: str = ""
    wholes: dict[str, Whole] = field(default_factory=dict)
    state: Any = None
    state_status: str = "lost"
    rejected_state: Any = None

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The entries of the manifest, by name; empty without a manifest."""
        return self.manifest.by_name if self.manifest is not None else {}

    def take_manifest(self, manifest: Manifest, *, sealed: bool) -> None:
        """Take the state, the metadata and the entries of a manifest."""
        self.manifest = manifest
        self.save_id, self.created_at = manifest.save_id, manifest.created_at
        self.metadata, self.checksum = manifest.metadata, manifest.checksum
        self.state, self.state_status = manifest.state, "verified" if sealed else "unverified"

    def take_records(self, scanned: ScannedFile) -> None:
        """Add the records of a file: those of the manifest, else the first of each name."""
        where = str(scanned.file.path)
        for item in scanned.result.lost:
            self.lost.append(LostTensor(item.name, item.reason, where, item.chunk))
        for found in scanned.result.found:
            name, entry = found.header.name, self.entries.get(found.header.name)
            if self.entries and (entry is None or not _is_entry(found, entry)):
                reason = "does not name it" if entry is None else "describes another record"
                self.lost.append(LostTensor(name, f"the manifest {reason}", where))
                self.unlisted.append((name, where))
            elif name in self.records:
                self._add_duplicate(found, where)
            else:
                self.records[name] = FoundSource(
                    found, scanned.file.path, self.limits, scanned.spool
                )
                if not self.entries:
                    self.checksum = self.checksum or found.algorithm

    def _add_duplicate(self, found: FoundRecord, where: str) -> None:
        name = found.header.name
        first = self.records[name]
        if _content(found) == _content(first.found):
            self.notes.append(f"{quote(name)} exists twice, with the same content")
            return
        reason = f"another intact record of this name was restored: the first one, in {first.file}"
        self.duplicates.append(LostTensor(name, reason, where))

    def usable_state(self) -> Any:
        """The state without the tensors that are lost; or dictionaries of the tensors' names."""
        if self.state_status != "lost":
            try:
                list(references_in(self.state))  # an error if a reference is malformed
                self._put_together(find_regions(self.state))
                pruned = prune(self.state, self.tensors.__contains__)
                self._check(pruned)
                self._leave_out_parts()
                return pruned
            except (JsonckptError, RecursionError) as error:
                self.notes.append(f"the state cannot be used: {error}")
                self.state_status = "lost"
        self._put_together(regions_by_names(self.records.values()))
        self._leave_out_parts()
        return state_in_regions(named_state(self.tensors), self.wholes)

    @property
    def tensors(self) -> dict[str, Any]:
        """What the state may refer to, by name: records, and what regions make together."""
        records = {name: one for name, one in self.records.items() if not name.startswith(PREFIX)}
        return {**records, **self.wholes}

    def names(self) -> tuple[str, ...]:
        """The names of the records, and of the tensors that regions make, in their place."""
        whole = {e.name: name for name, one in self.wholes.items() for e in one.entries}
        return tuple(dict.fromkeys(whole.get(name, name) for name in self.records))

    def _put_together(self, said: Iterable[Regions]) -> None:
        """Find the tensors all of whose regions are intact. The others are lost."""
        self.wholes.clear()
        records: Mapping[str, Any] = self.records
        for regions in said:
            missing = [name for name in regions.records if name not in records]
            try:
                if missing:
                    raise FormatError(f"its region {quote(missing[0])} is lost")
                self.wholes[regions.name] = put_together(regions, records)
            except FormatError as error:
                self.lost.append(LostTensor(regions.name, error.message))

    def _leave_out_parts(self) -> None:
        """Leave out regions of tensors that are not whole."""
        kept = {entry.name for whole in self.wholes.values() for entry in whole.entries}
        for name in list(self.records):
            if name.startswith(PREFIX) and name not in kept:
                del self.records[name]

    def restore_storages(self, state: Any) -> None:
        """Let records share their storages again. Call it if the checkpoint is complete.

        Only the seal protects a record's place in its storage; the record's digest does not.

        Args:
            state: from :meth:`usable_state`.
        """
        records = self.records.values()
        for record in records:
            record.layout = self.entries.get(record.name, record.found.header).layout
        try:
            problems = Problems()
            check_storages(records, problems)  # type: ignore[arg-type]
            problems.raise_if_any()
            self._check(state)
            nbytes = claimed_bytes((one.nbytes, one.layout) for one in records)
            fits = nbytes <= MAX_SPREAD * sum(one.nbytes for one in records)
        except JsonckptError:
            fits = False
        if not fits:
            for record in records:
                record.layout = Layout(record.layout.stride)

    def _check(self, state: Any) -> None:
        """Whether each tensor of a state fits the record that it refers to."""
        StateBuilder(state, TensorSelection.of()).check(self.tensors)

    def lost_tensors(self) -> Iterator[LostTensor]:
        """What is lost: each name once, with the best known reason."""
        reasons: dict[str | None, LostTensor] = {}
        for item in self.lost:
            reasons.setdefault(item.name, item)
        # Which record each tensor of the state needs.
        needed = _needed_records(self.state)
        names = [name for name in self.entries if not name.startswith(PREFIX)]
        known = dict.fromkeys([*names, *needed.values()])
        for name in known:
            if name not in self.records and name not in self.wholes:
                yield reasons.get(name) or LostTensor(name, _NOWHERE)
        for name, record in needed.items():
            if name != record and record not in self.records and record not in self.wholes:
                yield LostTensor(name, f"its data is that of {quote(record)}, which is lost")
        for item in self.lost:
            # A record without a name is already listed under the name that it should have.
            listed = item.name in known or (item.name is None and known)
            if not listed and item.name not in self.records:
                yield item
        for name in dict.fromkeys(_needed_records(self.rejected_state).values()):
            if name not in self.records and name not in self.wholes and name not in reasons:
                yield LostTensor(name, _NOWHERE)
        yield from self.duplicates


def _needed_records(state: Any) -> dict[str, str]:
    """The names of the tensors in a state, with the record that each needs."""
    try:
        return {reference.name: reference.record for reference in references_in(state)}
    except (JsonckptError, RecursionError):
        return {}


def _content(found: FoundRecord) -> tuple[object, ...]:
    """A key that is equal for records with the same bytes of the same tensor."""
    header = found.header
    return header.dtype, header.shape, header.device, header.codec.chunk_bytes, found.checksums


def _is_entry(found: FoundRecord, entry: Entry) -> bool:
    """Whether a record is the one of an entry in the manifest."""
    header, checksums = found.header, [checksum for _, _, checksum in entry.chunks]
    expected = entry.dtype, entry.shape, entry.device, entry.codec, checksums
    return expected == (header.dtype, header.shape, header.device, header.codec, found.checksums)
