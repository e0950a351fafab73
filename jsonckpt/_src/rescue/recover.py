"""``recover``: what is left of a damaged checkpoint, saved as a whole one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import (
    ArgumentError,
    CheckpointExistsError,
    IncompleteCheckpointError,
    JsonckptError,
    LimitError,
    WriteError,
    is_refusal,
    printable,
    quote,
)
from ..format.filenames import check_single_name, is_single
from ..format.limits import Limits, checked_limits, exceeds, way_over
from ..format.manifest import parse_misread
from ..format.model import Entry, Manifest
from ..load.restore import LoadOptions, StateBuilder
from ..load.single_file import parse_head
from ..parallel import thread_count
from ..save.cancel import CancelToken
from ..save.options import SaveOptions
from ..save.plan import RecordPlan, SavePlan
from ..save.snapshot import Snapshot, new_save_id
from ..save.targets import local_target
from ..save.write import write_checkpoint
from ..state.prune import named_state, prune
from ..state.tree import record_of, tensor_names
from ..storage.leftovers import File, searched, single_temporaries
from ..storage.local import LocalFile
from ..storage.new_file import shared_bits
from ..storage.path_arguments import is_url, path_text
from .damaged_files import DamagedPlain, DamagedZstd, PatchedFile
from .found_source import FoundSource, agrees, alike, choose, save_of, spool_beside
from .scan import Found, LostTensor, Scan, scan
from .verify_deep import seal_notes


@dataclass(frozen=True)
class RecoverReport:
    """What :func:`recover` restored. True in a boolean context when nothing was lost.

    Attributes:
        path, out: the damaged checkpoint, and the new one.
        save_id: of the save that was restored; ``""`` when it is not known.
        state: ``"verified"``: everything that is not a tensor is as it was saved; ``"unverified"``:
            it is as the file has it, but the seal is not there to vouch for it (or, with
            ``trust_state``, contradicts it);
            ``"lost"``: the tensors stand in dictionaries made from their names.
        recovered: names of the records that were restored, each byte of which has its checksum.
        lost: what was not, tensor by tensor.
        nbytes: raw bytes restored.
        notes: what else was found.
    """

    path: str
    out: str
    save_id: str
    state: str
    recovered: tuple[str, ...]
    lost: tuple[LostTensor, ...]
    nbytes: int
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether everything was restored and vouched for."""
        return not self.lost and self.state == "verified"

    def __bool__(self) -> bool:
        return self.complete

    def __str__(self) -> str:
        said = {
            "verified": "the state is as it was saved",
            "unverified": "the state could not be checked against a seal",
            "lost": "the state is lost; the tensors stand under their names",
        }
        lines = [
            f"{printable(self.out)}: {len(self.recovered)} tensors, {self.nbytes} bytes restored; "
            f"{len(self.lost)} lost; {said[self.state]}"
        ]
        lines += [f"  lost: {item}" for item in self.lost]
        lines += [f"  note: {printable(note)}" for note in self.notes]
        return "\n".join(lines)


def recover(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    save_id: str | None = None,
    trust_state: bool = False,
    threads: int | None = None,
    limits: Limits | None = None,
    sync: bool = True,
) -> RecoverReport:
    """Restore every tensor that is wholly intact from a damaged checkpoint, and nothing else.

    For a truncated or damaged file, a directory without its manifest, and what a killed save left.
    ``path`` is never changed. A tensor is restored when the checksums of all its chunks and the
    digest of its record agree; no byte is made up. What the system fails to read counts as damage:
    the search goes on behind it, and behind a shard that cannot be opened. Where the seal shows
    that the text around the tensors was damaged, the state is not taken from it.

    Args:
        path: a directory, or a file (also a lone shard, or a temporary file of a save). For a
            single file that is missing, what a killed save left beside it is taken.
        out: the new checkpoint, a directory or a name ending in ``.json`` or ``.json.zst``. Nothing
            may lie there yet.
        save_id: which save, by the beginning of its id, where a directory without a manifest
            holds shards of several; ``None`` takes the newest whose shards are all complete.
        trust_state: take the state although the seal contradicts it.
        threads, limits: as for :func:`jsonckpt.load`.
        sync: as for :func:`jsonckpt.save`.

    Memory is that of a save: a few chunks beside what a manifest takes. Of compressed files the
    payloads of intact tensors are spooled to a temporary file beside ``out``.

    Raises:
        CheckpointNotFoundError: there is nothing at ``path``.
        CheckpointExistsError: something is at ``out``.
        IncompleteCheckpointError: nothing can be restored; nothing was written.
        UnsupportedVersionError: it has a version, or requires a feature, that this release does
            not know (and no seal says that the version is damage); nothing was written.
        LimitError: it holds more than the limits allow; nothing was written.
        WriteError: the system refused a write.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"a": torch.ones(2), "b": torch.zeros(2)}, directory + "/c.json")
    ...     size = os.path.getsize(directory + "/c.json")
    ...     os.truncate(directory + "/c.json", size - 300)
    ...     report = jsonckpt.recover(directory + "/c.json", directory + "/new.json")
    ...     report.recovered, jsonckpt.load(directory + "/new.json")
    (('/a',), {'a': tensor([1., 1.])})
    """
    limits = checked_limits(limits)
    source, target = Path(_local(path, "path")), Path(_local(out, "out"))
    if save_id is not None and not isinstance(save_id, str):
        raise ArgumentError(f"save_id must be str or None, not {quote(type(save_id).__name__)}")
    if is_single(target.name):
        check_single_name(str(target))
    if os.path.lexists(target) and not (target.is_dir() and not os.listdir(target)):
        raise CheckpointExistsError(
            "something lies at this path already",
            file=target,
            hint="Choose a new name: recover writes over nothing.",
        )
    files, manifests, is_directory = searched(source)
    with ExitStack() as stack:
        at = source if source.is_dir() else source.parent
        shared = shared_bits(at if is_directory else files[0].path)
        evidence = _Evidence(limits, trust_state, stack, target, shared)
        if is_directory:
            evidence.read_directory(source, files, manifests, save_id)
        else:
            evidence.read_single(files[0])
            evidence.note_others(files[0], source)
        return evidence.save(source, target, threads=thread_count(threads), sync=sync)


def _local(path: str | os.PathLike[str], argument: str) -> str:
    text = path_text(path, argument)
    if is_url(text):
        raise ArgumentError(f"{argument} is a URL; recover works on local files: copy it first")
    return text


_MISREAD = "the version that it says is damaged: the seal vouches for another"


@dataclass
class _Evidence:
    """What was found, gathered until it can be saved."""

    limits: Limits
    trust_state: bool
    stack: ExitStack
    target: Path
    #: What group and others may be allowed to do with the new checkpoint at most.
    shared: int
    sources: dict[str, FoundSource] = field(default_factory=dict)
    lost: list[LostTensor] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    save_id: str = ""
    checksum: str = ""
    created_at: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    state: Any = None
    state_is: str = "lost"
    #: A state that is not taken: it says which tensors there were.
    claimed: Any = None
    expected: dict[str, Any] = field(default_factory=dict)
    spools: dict[Path, Path] = field(default_factory=dict)
    #: Records that are not those which the manifest means.
    others: list[tuple[str, str]] = field(default_factory=list)
    #: Intact records that were not taken, because another one has their name.
    rivals: list[LostTensor] = field(default_factory=list)

    # --- gathering --------------------------------------------------------------------------

    def read_single(self, file: File) -> None:
        """A single file, a lone shard, or what a killed save left of one."""
        found = self._scan(file)
        self._take(file, found)
        head = found.head
        if head is None:
            self.notes.append(f"the state is lost: the head of the file: {found.head_fault}")
            return
        self.save_id = str(head["save_id"])
        if "state" not in head:
            self.notes.append("the file is one shard of a directory, which has no state")
            return
        if found.ended and not found.sealed and not self.trust_state:
            self.claimed = head["state"]
            self.notes.append(
                "the state is not taken: the seal shows damage in the text around the tensors, "
                "and it may lie there; trust_state takes it all the same"
            )
            return
        try:
            self.created_at, _, self.metadata, self.state = parse_head(head)
        except JsonckptError as error:
            self.notes.append(f"the state is lost: {error.message}")
            return
        self.state_is = "verified" if found.sealed else "unverified"

    def read_directory(
        self, path: Path, files: Sequence[File], manifests: Sequence[File], save_id: str | None
    ) -> None:
        """A directory: by its manifest if that is whole, else by what its shards say."""
        manifest = self._manifest(manifests, save_id)
        if manifest is not None:
            self._adopt(manifest)
            named = {shard.file for shard in manifest.shards}
            by_file: dict[str, list[Entry]] = {name: [] for name in named}
            for entry in manifest.entries:
                by_file[manifest.shards[entry.shard].file].append(entry)
            for file in files:
                if file.path.name in named:
                    scanned = self._scan_shard(file, by_file[file.path.name])
                    if scanned is not None:
                        self._take(file, scanned)
                    named.remove(file.path.name)
            self.notes += [f"{quote(name, 200)} is missing" for name in sorted(named)]
            return
        if not manifests:
            self.notes.append("there is no manifest.json, so the state is lost")
        groups: dict[str, list[tuple[File, Scan]]] = {}
        for file in files:
            shard = self._scan_shard(file)
            if shard is None:
                continue
            groups.setdefault(save_of(file, shard), []).append((file, shard))
        chosen = choose(groups, save_id)
        if chosen is None:
            known = ", ".join(sorted(groups)) or "none"
            raise IncompleteCheckpointError(
                f"no shards of {'this' if save_id else 'any'} save are left (there are: {known})",
                file=path,
            )
        self.save_id = chosen
        for file, found in groups[chosen]:
            self._take(file, found)
        for other in sorted(set(groups) - {chosen}):
            self.notes.append(
                f"{len(groups[other])} shard(s) of another save are there, too: "
                f"save_id={other!r} restores these"
            )

    def _manifest(self, files: Sequence[File], save_id: str | None) -> Manifest | None:
        for file in files:
            try:
                with LocalFile(file.path, follow=self.limits.follow) as opened:
                    limit = self.limits.manifest_bytes
                    if exceeds(opened.size, limit):
                        raise LimitError(
                            f"the manifest has {opened.size} bytes, the limit is {limit}",
                            hint=way_over("manifest_bytes"),
                        )
                    read = bytearray(opened.size)
                    opened.read_range(0, memoryview(read))
                    text = bytes(read)
                manifest, as_sealed = parse_misread(text, self.limits)
                if as_sealed is not text:
                    self.notes.append(f"{file.path.name}: {_MISREAD}")
            except JsonckptError as error:
                if is_refusal(error.at(file=file.path)):
                    raise
                self.notes.append(f"{file.path.name} is not used: {error.message}")
                continue
            if save_id is not None and not manifest.save_id.startswith(save_id):
                self.notes.append(f"{file.path.name} is of the save {manifest.save_id}")
                continue
            if file.path.name.endswith(".tmp"):
                self.notes.append(f"the manifest is {file.path.name}, of a save cut short")
            unsealed = seal_notes(file.path.name, as_sealed)
            self.notes += unsealed
            self.state_is = "unverified" if unsealed else "verified"
            return manifest
        return None

    def _adopt(self, manifest: Manifest) -> None:
        """A manifest that its seal vouches for (or whose editor does)."""
        self.save_id, self.created_at = manifest.save_id, manifest.created_at
        self.metadata, self.state = manifest.metadata, manifest.state
        self.checksum = manifest.checksum
        self.expected = dict(manifest.by_name)

    def _scan(self, file: File) -> Scan:
        try:
            with LocalFile(file.path, follow=self.limits.follow) as opened:
                patched = PatchedFile(opened)
                found = self._found_in(patched, file)
        except JsonckptError as error:
            error.at(file=file.path)
            raise
        if found.misread:
            self.notes.append(f"{file.path.name}: {_MISREAD}")
        if patched.holes:
            self.notes.append(f"{file.path.name}: {patched.note()}")
        return found

    def _found_in(self, patched: PatchedFile, file: File) -> Scan:
        if not file.compressed:
            plain = DamagedPlain(patched)
            return scan(plain, self.limits, fault_in=plain.fault_in)
        spool = spool_beside(self.target, self.stack)
        source = DamagedZstd(patched, window=self.limits.zstd_window)
        found = scan(source, self.limits, spool=spool, fault_in=source.fault_in)
        if source.broken:
            self.notes.append(f"{file.path.name}: {source.broken} zstd frame(s) are damaged")
        self.spools[file.path] = spool.path
        return found

    def _scan_shard(self, file: File, entries: Sequence[Entry] = ()) -> Scan | None:
        """One shard of several; ``None`` where it cannot be opened, which costs its tensors only.

        Args:
            entries: what the manifest says of it, when there is one.
        """
        try:
            return self._scan(file)
        except JsonckptError as error:
            if is_refusal(error) or isinstance(error, WriteError):
                raise
            self.notes.append(f"{file.path.name} is not used: {error.message}")
            where = str(file.path)
            self.lost += [LostTensor(entry.name, error.message, where) for entry in entries]
            return None

    def _take(self, file: File, found: Scan) -> None:
        where = str(file.path)
        data = self.spools.get(file.path, file.path)
        self.lost += [LostTensor(item.name, item.reason, where, item.chunk) for item in found.lost]
        for record in found.found:
            name, entry = record.header.name, self.expected.get(record.header.name)
            if self.expected and (entry is None or not agrees(record, entry)):
                said = "says otherwise" if entry is not None else "does not name it"
                self.lost.append(LostTensor(name, f"the manifest {said}", where))
                self.others.append((name, where))
            elif name in self.sources:
                self._take_no_second(name, record, where)
            else:
                self.sources[name] = FoundSource(record, data, self.limits, where)
        if not self.expected:
            self.checksum = next((r.algorithm for r in found.found), self.checksum)

    def note_others(self, taken: File, wanted: Path) -> None:
        """Say what else killed saves left of a single file that is missing."""
        if taken.path.name == wanted.name:
            return
        self.notes.append(
            f"the file is missing; {quote(taken.path.name, 200)} was taken, the newest"
        )
        for file in single_temporaries(wanted)[:5]:
            if file != taken:
                self.notes.append(f"{quote(file.path.name, 200)} was not looked into")

    def _take_no_second(self, name: str, record: Found, where: str) -> None:
        first = self.sources[name]
        if alike(first.found, record):
            self.notes.append(f"{quote(name)} stands twice, with the same content")
            return
        reason = (
            f"another record of this name, intact, too, was taken: it came first, in {first.at}"
        )
        self.rivals.append(LostTensor(name, reason, where))

    # --- saving -----------------------------------------------------------------------------

    def save(self, source: Path, target: Path, *, threads: int, sync: bool) -> RecoverReport:
        """Write the new checkpoint."""
        total = sum(record.nbytes for record in self.sources.values())
        self.notes += [
            f"{where} holds another {quote(name)}; the manifest means the one that was taken"
            for name, where in self.others
            if name in self.sources
        ]
        state = self._state()
        if not self.sources and self.state_is == "lost":
            reasons = "; ".join([*(str(item) for item in self.lost[:2]), *self.notes[:2]])
            raise IncompleteCheckpointError(
                f"nothing in it is intact ({reasons})" if reasons else "nothing in it is left",
                file=source,
                hint="Nothing was written. Take another copy, or an earlier checkpoint.",
            )
        options = SaveOptions(
            checksum=self.checksum or "xxh3_128",
            overwrite=False,
            threads=threads,
            sync=sync,
            shared=self.shared,
        )
        snapshot = Snapshot(
            new_save_id(),
            self.created_at or datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            state,
            self.metadata,
            list(self.sources.values()),  # type: ignore[arg-type]
        )
        records = [
            RecordPlan(record, record.found.header.codec, record.nbytes)
            for record in self.sources.values()
        ]
        plan = SavePlan(snapshot, options, records)
        result = write_checkpoint(plan, local_target(target, options), CancelToken(), 0.0)
        return RecoverReport(
            str(source),
            result.path,
            self.save_id,
            self.state_is,
            tuple(self.sources),
            tuple(self._losses()),
            total,
            tuple(self.notes),
        )

    def _state(self) -> Any:
        if self.state_is != "lost":
            try:
                list(tensor_names(self.state))  # refuses references that are none
                pruned = prune(self.state, self.sources.__contains__)
                StateBuilder(pruned, LoadOptions.of(None, None)).check(self.sources)  # type: ignore[arg-type]
                return pruned
            except (JsonckptError, RecursionError) as error:
                self.notes.append(f"the state cannot be used: {error}")
                self.state_is = "lost"
        return named_state(self.sources)

    def _names(self, state: Any) -> dict[str, str]:
        """The names in a state, with the records that they need."""
        try:
            return {name: record_of(name, body) for name, _, body in tensor_names(state)}
        except (JsonckptError, RecursionError):
            return {}

    def _losses(self) -> Iterator[LostTensor]:
        """What is lost, each name once, with the best reason there is."""
        reasons: dict[str | None, LostTensor] = {}
        for item in self.lost:
            if item.name is not None:
                reasons.setdefault(item.name, item)
        names = self._names(self.state) if self.state is not None else {}
        wanted = dict.fromkeys([*self.expected, *names.values()])
        known = bool(wanted)
        for record in wanted:
            if record not in self.sources:
                yield reasons.get(record) or LostTensor(record, "it is in no file that is left")
        for name, record in names.items():
            if name != record and record not in self.sources:
                yield LostTensor(name, f"its data is that of {quote(record)}, which is lost")
        for item in self.lost:
            if known and item.name in wanted:
                continue
            if item.name is None or item.name not in self.sources:
                if known and item.name is None:
                    continue  # the tensor is listed by the name that it should have
                yield item
        claimed = dict.fromkeys(self._names(self.claimed).values())
        for name in claimed:
            if name not in self.sources and name not in reasons:
                yield LostTensor(name, "it is in no file that is left")
        yield from self.rivals
