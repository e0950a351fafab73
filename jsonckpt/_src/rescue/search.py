"""Searches a damaged checkpoint: scans its files and chooses what to restore."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from ..errors import (
    IncompleteCheckpointError,
    IntegrityError,
    JsonckptError,
    LimitError,
    WriteError,
    counted,
    is_change_of_text,
    is_refusal,
    line_endings,
    quote,
)
from ..format.filenames import is_content_name
from ..format.limits import Limits, exceeds, way_over
from ..format.manifest import parse_head, parse_manifest, parse_misread
from ..format.model import CONTENT_ID, Entry, Manifest
from ..storage.leftovers import CheckpointFiles, File, shared_shard, single_temporaries
from ..storage.local import LocalFile
from ..storage.missing import newest_hint
from .findings import Findings
from .scan import LostTensor
from .scan_files import WRONG_VERSION, ScannedFile
from .verify_deep import unsealed

ScanFile: TypeAlias = Callable[[File], ScannedFile]
_OTHERS_SHOWN = 5


def search_file(
    file: File, wanted: Path, findings: Findings, scan: ScanFile, *, trust_state: bool
) -> None:
    """Search a single file, a lone shard, or a temporary file of a killed save.

    Args:
        wanted: the single file. If it is missing, ``file`` is what a killed save left of it.
        trust_state: take the state although the seal contradicts it.
    """
    scanned = scan(file)
    findings.take_records(scanned)
    _take_head(scanned, findings, trust_state)
    if file.path.name != wanted.name:
        findings.notes.append(
            f"the file is missing; {quote(file.path.name, 200)}, its newest leftover, was used"
        )
        findings.notes += [
            f"{quote(other.path.name, 200)} was not searched"
            for other in single_temporaries(wanted)[:_OTHERS_SHOWN]
            if other != file
        ]


def _take_head(scanned: ScannedFile, findings: Findings, trust_state: bool) -> None:
    """Take the state and the other members of a file's head, if they are not damaged."""
    result, notes = scanned.result, findings.notes
    head = result.head
    if head is None:
        notes.append(f"the state is lost: the head of the file: {result.head_fault}")
        return
    findings.save_id = str(head["save_id"])
    if "state" not in head:
        notes.append("the file is one shard of a directory, which has no state")
    elif result.ended and not (result.sealed or result.rewritten or trust_state):
        findings.rejected_state = head["state"]
        notes.append(
            "the state is not used: the seal shows damage in the text around the tensors, which "
            "may be in the state; trust_state=True (--trust-state) uses it anyway"
        )
    else:
        try:
            findings.created_at, _, findings.metadata, findings.state = parse_head(head)
        except JsonckptError as error:
            notes.append(f"the state is lost: {error.message}")
            return
        findings.state_status = "verified" if result.sealed else "unverified"


def search_directory(
    files: CheckpointFiles,
    findings: Findings,
    scan: ScanFile,
    *,
    save_id: str | None,
    trust_state: bool,
) -> None:
    """Search a directory.

    Args:
        save_id: the beginning of the id of the save to restore; ``None`` to choose one.
        trust_state: take a manifest although its seal contradicts it.

    Raises:
        IncompleteCheckpointError: it holds no shard of the save.
    """
    manifest = _read_manifest(files.manifests, findings, save_id, trust_state=trust_state)
    if manifest is not None:
        _search_listed(manifest, files, findings, scan)
        return
    if not files.manifests:
        findings.notes.append("there is no manifest.json, so the state is lost")
    saves: dict[str, list[ScannedFile]] = {}
    for file in files.shards:
        scanned = _scan_shard(file, (), findings, scan)
        if scanned is not None:
            saves.setdefault(_save_of(scanned), []).append(scanned)
    chosen = _choose_save(saves, save_id or "")
    if chosen is None:
        known = ", ".join(sorted(saves)) or "none"
        raise IncompleteCheckpointError(
            f"no shards of {'this' if save_id else 'any'} save are left (there are: {known})",
            file=files.path,
            hint=None if saves else newest_hint(files.path),
        )
    findings.save_id = chosen
    if chosen == CONTENT_ID:
        _take_newest_first(saves[chosen], findings)
    for scanned in saves[chosen]:
        findings.take_records(scanned)
    findings.notes += [
        f"another save has {counted(len(saves[other]), 'shard')} here: "
        f"save_id={other!r} (--save-id) restores it"
        for other in sorted(set(saves) - {chosen})
    ]


def _take_newest_first(shards: list[ScannedFile], findings: Findings) -> None:
    """Order shards of saves by content, which have one id. Of two tensors the newer is restored."""
    shards.sort(key=lambda scanned: (-scanned.file.changed, scanned.file.path.name))
    names = [found.header.name for scanned in shards for found in scanned.result.found]
    if twice := len(names) - len(set(names)):
        findings.notes.append(
            f"these are shards of several saves by content, which have one save_id: of "
            f"{counted(twice, 'tensor')} the one in the newest file is restored; they may be of "
            "different saves"
        )


def _search_listed(
    manifest: Manifest, files: CheckpointFiles, findings: Findings, scan: ScanFile
) -> None:
    """Scan the shards that the manifest lists, those in other directories, too."""
    entries: dict[str, list[Entry]] = {shard.path: [] for shard in manifest.shards}
    for entry in manifest.entries:
        entries[manifest.shards[entry.shard].path].append(entry)
    found = {file.path.name: file for file in files.shards}
    for path in [shard.path for shard in manifest.shards if shard.directory]:
        file = shared_shard(files.path, path, follow=findings.limits.follow)
        if file is not None:
            found[path] = file
    for path in sorted(entries.keys() & found.keys()):
        scanned = _scan_shard(found[path], entries[path], findings, scan)
        if scanned is not None:
            findings.take_records(scanned)
    for path in sorted(entries.keys() - found.keys()):
        gone = not (files.path / path).parent.is_dir()
        where = f": there is no directory {quote(path.rpartition('/')[0], 200)}" if gone else ""
        findings.notes.append(f"{quote(path, 200)} is missing{where}")


def _read_manifest(
    files: Sequence[File], findings: Findings, save_id: str | None, *, trust_state: bool
) -> Manifest | None:
    """The first whole manifest of the save. The findings take its members."""
    notes = findings.notes
    for file in files:
        name = file.path.name
        try:
            text = _manifest_text(file.path, findings.limits)
            manifest, why = _parse(text, findings.limits, trust_state=trust_state)
        except JsonckptError as error:
            if is_refusal(error.at(file=file.path)):
                raise
            notes.append(f"{name} is not used: {error.message}")
            if isinstance(error, IntegrityError):
                notes[-1] += "; trust_state=True (--trust-state) uses it anyway"
            continue
        if why:
            notes.append(f"{name}: {why}")
        if save_id is not None and not manifest.save_id.startswith(save_id):
            notes.append(f"{name} belongs to the save {manifest.save_id}")
            continue
        if name.endswith(".tmp"):
            notes.append(f"the manifest is {name}, of a save that did not finish")
        if not manifest.sealed and not why:
            notes.append(unsealed(name))
        findings.take_manifest(manifest, sealed=manifest.sealed)
        return manifest
    return None


def _parse(text: bytes, limits: Limits, *, trust_state: bool) -> tuple[Manifest, str]:
    """A manifest, and what was wrong with its text.

    Raises:
        JsonckptError: it cannot be used.
    """
    try:
        manifest, sealed_text = parse_misread(text, limits)
        return manifest, "" if sealed_text is text else WRONG_VERSION
    except JsonckptError as error:
        if error.hint == line_endings().hint:
            restored = text.replace(b"\r\n", b"\n")
            return parse_manifest(restored, limits), f"{error.message}; that was undone"
        if is_change_of_text(error) or (trust_state and isinstance(error, IntegrityError)):
            return parse_manifest(text, limits, trust=True), error.message
        raise


def _manifest_text(path: Path, limits: Limits) -> bytes:
    with LocalFile(path, follow=limits.follow) as file:
        if exceeds(file.size, limits.manifest_bytes):
            raise LimitError(
                f"the manifest has {file.size} bytes, the limit is {limits.manifest_bytes}",
                hint=way_over("manifest_bytes"),
            )
        text = bytearray(file.size)
        file.read_range(0, memoryview(text))
        return bytes(text)


def _scan_shard(
    file: File, entries: Sequence[Entry], findings: Findings, scan: ScanFile
) -> ScannedFile | None:
    """One shard of several. If it cannot be opened, only its own tensors are lost.

    Args:
        entries: its entries in the manifest, if there is one.
    """
    try:
        return scan(file)
    except JsonckptError as error:
        if is_refusal(error) or isinstance(error, WriteError):
            raise
        findings.notes.append(f"{file.path.name} is not used: {error.message}")
        findings.lost += [LostTensor(e.name, error.message, str(file.path)) for e in entries]
        return None


def _save_of(scanned: ScannedFile) -> str:
    """The id of a shard's save, or the beginning of the id, which is in the file's name."""
    head = scanned.result.head
    if head is not None:
        return str(head["save_id"])
    name = scanned.file.path.name
    return CONTENT_ID if is_content_name(name) else name.removeprefix("shard-").partition("-")[0]


def _choose_save(saves: Mapping[str, Sequence[ScannedFile]], save_id: str) -> str | None:
    """The newest save whose shards are all complete, else the newest.

    Args:
        save_id: what its id must begin with.
    """
    ranks = {
        key: (
            all(scanned.result.ended for scanned in files),
            max(scanned.file.changed for scanned in files),
        )
        for key, files in saves.items()
        if key.startswith(save_id)
    }
    return max(ranks, key=lambda key: ranks[key], default=None)
