"""``recover``: saves the intact parts of a damaged checkpoint as a new one.

The steps: find the files, scan each, choose what to restore, prune the state, save.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import (
    ArgumentError,
    CheckpointExistsError,
    FormatError,
    IncompleteCheckpointError,
    counted,
    printable,
    quote,
)
from ..format.filenames import check_single_name, is_single
from ..format.limits import Limits, checked_limits
from ..format.validation import LONGEST_BEGINNING
from ..parallel import CancelToken, thread_count
from ..progress import human
from ..save.local_targets import local_target
from ..save.options import SaveOptions
from ..save.plan import RecordPlan, SavePlan
from ..save.snapshot import Snapshot, new_save_id
from ..save.write import write_checkpoint
from ..shown import ShortRepr
from ..storage.leftovers import File, files_to_search
from ..storage.local import LocalFile
from ..storage.new_file import shared_bits
from ..storage.path_arguments import (
    check_storage_options,
    check_target_name,
    is_url,
    path_text,
)
from ..transfer.local_copies import LocalCopies
from .damaged_files import PatchedFile
from .findings import Findings
from .scan import LostTensor
from .scan_files import is_compressed, scan_file
from .search import search_directory, search_file

_STATE_STATUS = {
    "verified": "the state is as it was saved",
    "unverified": "the state could not be checked against a seal",
    "lost": "the state is lost; the tensors are in dictionaries made from their names",
}


@dataclass(frozen=True, repr=False)
class RecoverReport(ShortRepr):
    """What :func:`recover` restored. True in a boolean context when nothing was lost.

    Attributes:
        path, out: the damaged checkpoint, and the new one.
        save_id: of the save that was restored; ``""`` if it is not known.
        state: ``"verified"``: everything that is not a tensor is as it was saved. ``"unverified"``:
            it is as the file has it, but no seal confirms it (or, with ``trust_state``, the seal
            contradicts it). ``"lost"``: the tensors are in dictionaries made from their names.
        recovered: names of the records that were restored. Every byte of them has been checked.
        lost: the tensors that were not restored, each with the reason.
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
        """Whether everything was restored, and the state is verified."""
        return not self.lost and self.state == "verified"

    def __bool__(self) -> bool:
        return self.complete

    def __str__(self) -> str:
        lines = [
            f"{printable(self.out)}: {counted(len(self.recovered), 'tensor')}, "
            f"{human(self.nbytes)} restored; "
            f"{len(self.lost)} lost; {_STATE_STATUS[self.state]}"
        ]
        lines += [f"  lost: {item}" for item in self.lost]
        lines += [f"  note: {printable(note)}" for note in self.notes]
        return "\n".join(lines)


#: Texts that no JSON of another program has.
_OWN_MARKS = (b"jsonckpt.", b'"save_id"', b'"index_offset"')


def recover(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    save_id: str | None = None,
    trust_state: bool = False,
    threads: int | None = None,
    limits: Limits | None = None,
    sync: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> RecoverReport:
    """Restore every intact tensor of a damaged checkpoint, and nothing else.

    Works on a truncated or damaged file, a directory without its manifest, and what a killed save
    left. ``path`` is never changed. A tensor is restored if the checksums of all its chunks and the
    digest of its record match; no byte is made up. A range that the system cannot read counts as
    damage. The search continues after it, and after a shard that cannot be opened. If the seal
    shows that the text around the tensors is damaged, the state is not used. A file that a JSON
    tool wrote again is read in its layout; line feeds that became CRLF are restored.

    Args:
        path: a directory, or a file (also a lone shard, or a temporary file of a save). If a single
            file is missing, what a killed save left beside it is used.
        out: the new checkpoint, a directory or a name ending in ``.json`` or ``.json.zst``. It must
            not exist.
        save_id: the beginning of the id of the save to restore, if a directory without a manifest
            holds shards of several. ``None`` takes the newest whose shards are all complete.
        trust_state: use the state (of a directory, its manifest) although the seal contradicts it.
        threads, limits: as for :func:`jsonckpt.load`.
        sync, storage_options: as for :func:`jsonckpt.save`. What is at a URL is downloaded first.

    It needs the memory of a save: a few chunks and the size of a manifest. The intact payloads of
    compressed or rewritten files are spooled to a temporary file beside ``out``.

    Raises:
        CheckpointNotFoundError: there is nothing at ``path``.
        CheckpointExistsError: ``out`` exists.
        IncompleteCheckpointError: nothing can be restored; nothing was written.
        FormatError: it is the JSON of another program; nothing was written.
        UnsupportedVersionError: it has a version, or requires a feature, that this release does
            not know, and the seal does not show that the version is damaged; nothing was written.
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
    given, new = path_text(path, "path"), path_text(out, "out")
    check_storage_options(storage_options)
    if save_id is not None and not isinstance(save_id, str):
        raise ArgumentError(f"save_id must be str or None, not {quote(type(save_id).__name__)}")
    findings = Findings(limits)
    with ExitStack() as stack:
        near = None if is_url(new) else os.path.dirname(os.fspath(new).rstrip("/")) or os.curdir
        copies = stack.enter_context(LocalCopies(storage_options, near))
        target = copies.target(new, overwrite=False)
        _check_target(target, new)
        source = copies.source(given, leftovers=True)
        files = files_to_search(source)
        # Only those who can read the old checkpoint may read the new one.
        shared = shared_bits(files.path)
        scan = partial(scan_file, limits=limits, target=target, stack=stack, notes=findings.notes)
        if files.is_directory:
            search_directory(files, findings, scan, save_id=save_id, trust_state=trust_state)
        else:
            search_file(files.shards[0], source, findings, scan, trust_state=trust_state)
        findings.notes += [
            f"{where} has another {quote(name)}; the manifest means the one that was restored"
            for name, where in findings.unlisted
            if name in findings.records
        ]
        state = findings.usable_state()
        if not findings.records and findings.state_status == "lost":
            if not (files.is_directory or findings.lost):
                _refuse_foreign(files.shards[0], limits)
            reasons = "; ".join([*map(str, findings.lost[:2]), *findings.notes[:2]])
            raise IncompleteCheckpointError(
                f"nothing in it is intact ({reasons})" if reasons else "it is empty",
                file=source,
                hint="Nothing was written. Take another copy, or an earlier checkpoint.",
            )
        lost = tuple(replace(one, file=copies.shown(one.file)) for one in findings.lost_tensors())
        if not lost and findings.state_status == "verified":
            findings.restore_storages(state)
        options = SaveOptions(
            checksum=findings.checksum or "xxh3_128",
            overwrite=False,
            threads=thread_count(threads),
            sync=sync,
            shared=shared,
        )
        _save(findings, state, target, options)
        copies.publish()
    return RecoverReport(
        given,
        new,
        findings.save_id,
        findings.state_status,
        findings.names(),
        lost,
        sum(record.nbytes for record in findings.records.values()),
        tuple(findings.notes),
    )


def _check_target(target: Path, given: str) -> None:
    if is_single(target.name):
        check_single_name(str(target))
    if not os.path.isdir(target):
        check_target_name(given, "out")
    if os.path.lexists(target) and not (target.is_dir() and not os.listdir(target)):
        raise CheckpointExistsError(
            "there is something at this path",
            file=target,
            hint="Choose a new name: recover never overwrites anything.",
        )


def _refuse_foreign(file: File, limits: Limits) -> None:
    """Refuse a file in which nothing of a checkpoint was found, if it is JSON.

    Raises:
        FormatError: another program wrote it.
    """
    with LocalFile(file.path, follow=limits.follow) as opened:
        whole = PatchedFile(opened)
        if is_compressed(file, whole):
            return  # what comes out of damaged frames says too little
        size = min(whole.size, LONGEST_BEGINNING)
        begins, ends = bytearray(size), bytearray(size)
        whole.read_range(0, memoryview(begins))
        whole.read_range(whole.size - size, memoryview(ends))
    text = begins.removeprefix(b"\xef\xbb\xbf").strip(), ends.strip()
    closed = bytes(text[0][:1] + text[1][-1:]) in (b"{}", b"[]")
    if closed and not any(mark in part for mark in _OWN_MARKS for part in text):
        raise FormatError(
            "this is the JSON of another program, not a checkpoint that was damaged",
            file=file.path,
            hint="Nothing was written. python -m jsonckpt.convert reads the JSON of others.",
        )


def _save(findings: Findings, state: Any, target: Path, options: SaveOptions) -> None:
    """Save the new checkpoint."""
    records = list(findings.records.values())
    snapshot = Snapshot(
        new_save_id(),
        findings.created_at or datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        state,
        findings.metadata,
        records,  # type: ignore[arg-type]
    )
    plans = [RecordPlan(record, record.found.header.codec, record.nbytes) for record in records]
    plan = SavePlan(snapshot, options, plans)
    write_checkpoint(plan, local_target(target, options, str(target)), CancelToken(), 0.0)
