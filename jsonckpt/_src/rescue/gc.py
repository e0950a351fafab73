"""``gc``: removes the files that killed saves left behind, and nothing else."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..errors import (
    ArgumentError,
    CheckpointNotFoundError,
    FormatError,
    IncompleteCheckpointError,
    JsonckptError,
    counted,
    is_refusal,
    printable,
    quote,
)
from ..format.filenames import SHARED_MARK, is_content_name, is_single
from ..format.limits import Limits, checked_limits
from ..format.manifest import parse_manifest
from ..format.model import MANIFEST_NAME
from ..load.container import open_container
from ..load.options import ReadOptions
from ..progress import human
from ..sharing.holders import files_in_use, is_marked
from ..shown import ShortRepr
from ..storage.leftovers import File, orphans, single_temporaries
from ..storage.local import LocalLocation
from ..storage.lock import DirectoryLock
from ..storage.missing import hint_for_missing
from ..storage.os_errors import write_error
from ..storage.path_arguments import check_storage_options, is_url, path_text, without_query
from ..transfer.remote_leftovers import abort_uploads, remote_leftovers

_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")
_FOREVER = 1e300
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
#: The hint if there are only leftovers, and no checkpoint.
_ABANDONED = (
    "jsonckpt recover PATH NEW restores their intact tensors; abandoned=True (--abandoned) lets "
    "gc remove them."
)


@dataclass(frozen=True, repr=False)
class GcReport(ShortRepr):
    """What :func:`gc` removed.

    Attributes:
        path: the checkpoint.
        removed: the names of the files; with ``dry_run``, of those that would be removed.
        kept: leftovers that are not old enough, that a save may be about to use, or that a manifest
            beside the directory may name that cannot be read.
        nbytes: bytes of the removed files.
        dry_run: whether nothing was removed.
        uploads: unfinished uploads to S3 that were ended.
    """

    path: str
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    nbytes: int
    dry_run: bool
    uploads: int = 0

    def __str__(self) -> str:
        verb = "would remove" if self.dry_run else "removed"
        files, size = counted(len(self.removed), "file"), human(self.nbytes)
        lines = [f"{printable(self.path)}: {verb} {files}, {size}"]
        lines += [f"  {verb}: {printable(name)}" for name in self.removed]
        if self.uploads:
            lines.append(f"  {verb}: {counted(self.uploads, 'unfinished upload')}")
        lines += [f"  kept, too new or maybe in use: {printable(name)}" for name in self.kept]
        return "\n".join(lines)


def gc(
    path: str | os.PathLike[str],
    *,
    older_than: str | float | timedelta = "24h",
    dry_run: bool = False,
    abandoned: bool = False,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> GcReport:
    """Remove what killed saves left in a checkpoint's directory, or beside a single file.

    In a directory these are shards (``shard-<id>-<number>.json``, and those named by their content)
    that the manifest does not name, and unfinished manifests. Beside a single file these are its
    temporary files. Beside either, the temporary files of a killed :func:`jsonckpt.recover` or
    conversion to it. Shards that checkpoints in the directories beside it use
    (``save(unchanged_from=…)``) stay. Other files, links and subdirectories are never touched. Only
    the age of its files tells a save in progress from a killed one: ``older_than`` must be longer
    than any save may take.

    Args:
        path: a checkpoint directory, or a ``.json`` or ``.json.zst`` file; also the output of a
            conversion to another program's file.
        older_than: ``"30m"``, ``"24h"``, ``"7d"``, a number of seconds, or a ``timedelta``; counted
            from the last change of a file.
        dry_run: report what would be removed, and remove nothing.
        abandoned: also remove the leftovers of a first save that never finished, where there is no
            checkpoint. :func:`jsonckpt.recover` might restore from them. A directory without a
            manifest must hold nothing else; the directory itself is kept.
        limits: as for :func:`jsonckpt.load`.
        storage_options: passed to fsspec for URLs. Behind a URL shards that a checkpoint beside
            this one names stay, and a file whose age the store does not say. Uploads to S3 that
            never ended are ended.

    Raises:
        CheckpointNotFoundError: there is no checkpoint at ``path``; the message names leftovers
            that ``abandoned`` would remove.
        IncompleteCheckpointError: the checkpoint cannot be read. The leftovers may be all that
            remains of it; :func:`jsonckpt.recover` searches them.
        LimitError, UnsupportedVersionError: as for :func:`jsonckpt.load`; nothing was removed.
        WriteError: the system refused to remove a file.
        ArgumentError: ``older_than`` is not an age.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"w": torch.ones(3)}, directory)
    ...     _ = open(directory + "/shard-0123456789ab-00001.json", "w").close()
    ...     jsonckpt.gc(directory, older_than=0, dry_run=True).removed
    ('shard-0123456789ab-00001.json',)
    """
    age = parse_age(older_than)
    limits = checked_limits(limits)
    text = path_text(path)
    check_storage_options(storage_options)
    if is_url(text):
        return _gc_remote(text, storage_options, time.time() - age, dry_run, abandoned, limits)
    place = Path(text)
    if place.name == MANIFEST_NAME and not place.is_dir():
        place = place.parent
    before = time.time() - age
    removed: list[File] = []
    kept: list[File] = []
    with DirectoryLock(place) as alone:
        for file in _leftovers(place, limits, abandoned):
            # A save may be about to use a shard of any age, if it is named by its content or if
            # checkpoints share it. It holds the lock.
            usable = is_content_name(file.path.name) or is_marked(place)
            if file.changed > before or (usable and not alone):
                kept.append(file)
            elif dry_run or _removed(file):
                removed.append(file)
    return GcReport(
        text,
        tuple(file.path.name for file in removed),
        tuple(file.path.name for file in kept),
        sum(file.nbytes for file in removed),
        dry_run,
    )


def _gc_remote(
    url: str,
    storage_options: Mapping[str, Any] | None,
    before: float,
    dry_run: bool,
    abandoned: bool,
    limits: Limits,
) -> GcReport:
    try:
        found = remote_leftovers(url, storage_options, limits)
    except CheckpointNotFoundError:
        raise
    except JsonckptError as error:
        if is_refusal(error) or not isinstance(error, FormatError | IncompleteCheckpointError):
            raise
        raise _unreadable(error) from error
    if not found.named and (found.others or not abandoned):
        listed = ", ".join(quote(entry.name, 200) for entry in found.entries[:3])
        other = f", and there are other files: {quote(found.others)}" if found.others else ""
        raise IncompleteCheckpointError(
            f"nothing was removed, because there is no {MANIFEST_NAME}: the files are those of a "
            f"first save that did not finish ({listed}){other}",
            file=without_query(url),
            hint=_ABANDONED,
        )
    old = [entry for entry in found.entries if 0 < entry.changed <= before]
    kept = [entry for entry in found.entries if entry not in old]
    if not dry_run:
        found.files.remove(entry.name for entry in old)
    uploads = abort_uploads(found.files, before, dry_run=dry_run)
    names = tuple(entry.name for entry in old), tuple(entry.name for entry in kept)
    return GcReport(url, *names, sum(entry.nbytes for entry in old), dry_run, uploads)


def _removed(file: File) -> bool:
    """Remove a file. False if another gc was faster."""
    try:
        os.unlink(file.path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise write_error(error, file.path) from error
    return True


def _leftovers(place: Path, limits: Limits, abandoned: bool) -> Sequence[File]:
    """What may be removed if it is old enough."""
    beside = single_temporaries(place)
    if place.is_dir():
        return [*_in_directory(place, limits, abandoned, beside), *beside]
    if not os.path.lexists(place):
        if not beside:
            raise CheckpointNotFoundError(
                "there is no such file or directory", file=place, hint=hint_for_missing(place)
            )
        # What recover and conversions leave can be made again. What a save leaves cannot.
        if is_single(place.name) and not abandoned:
            raise CheckpointNotFoundError(
                f"there is no such file, only leftovers of killed saves: {_listed(beside)}",
                file=place,
                hint=_ABANDONED,
            )
    elif is_single(place.name):
        try:
            open_container(place, ReadOptions(limits=limits))
        except JsonckptError as error:
            if is_refusal(error.at(file=place)):
                raise
            raise _unreadable(error) from error
    return beside


def _in_directory(
    place: Path, limits: Limits, abandoned: bool, beside: Sequence[File]
) -> Sequence[File]:
    """What may be removed in a directory.

    The files are listed before the manifests are read. So the manifests include shards that a save
    commits in between. Shards that checkpoints in the directories beside it use stay.

    Args:
        beside: leftovers beside it.
    """
    found = orphans(place, set())
    used = files_in_use(place) if found else frozenset[str]()
    if used is None:
        # A manifest that cannot be read may name any of them: none is old enough.
        found = [replace(file, changed=math.inf) for file in found]
        if not os.path.lexists(place / MANIFEST_NAME):
            return found
        used = frozenset()
    names = {file.path.name for file in found}
    found = [file for file in found if file.path.name not in used]
    if not os.path.lexists(place / MANIFEST_NAME) and (names or beside):
        if found and not names & used:
            _check_abandoned(place, found, abandoned)
        return found
    try:
        manifest = parse_manifest(
            LocalLocation(place, follow=limits.follow).manifest(limits.manifest_bytes), limits
        )
    except CheckpointNotFoundError:
        raise
    except JsonckptError as error:
        if is_refusal(error.at(file=place / MANIFEST_NAME)):
            raise
        raise _unreadable(error) from error
    named = manifest.own_files
    return [file for file in found if file.path.name not in named]


def _check_abandoned(place: Path, found: Sequence[File], abandoned: bool) -> None:
    """Whether all of a directory without a manifest may be removed.

    Raises:
        IncompleteCheckpointError: it holds other files, or the caller has not agreed.
    """
    if not abandoned:
        raise IncompleteCheckpointError(
            f"nothing was removed, because there is no {MANIFEST_NAME}: the files are those of a "
            f"first save that did not finish ({_listed(found)})",
            file=place,
            hint=_ABANDONED,
        )
    # If a save has committed in between, its manifest is one of the others.
    others = set(os.listdir(place)) - {file.path.name for file in found} - {SHARED_MARK}
    if others:
        raise IncompleteCheckpointError(
            f"nothing was removed: there is no {MANIFEST_NAME}, and the directory has other files "
            f"besides leftovers of saves: {quote(min(others))}",
            file=place,
            hint="Move the other files away, or remove the leftovers by hand.",
        )


def _listed(files: Sequence[File]) -> str:
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(quote(file.path.name, 200) for file in files[:3]) + more


def _unreadable(error: JsonckptError) -> IncompleteCheckpointError:
    return IncompleteCheckpointError(
        f"nothing was removed: the checkpoint cannot be read: {error.message}",
        file=error.file,
        hint="What killed saves left may be all that remains of it: see jsonckpt recover.",
    )


def parse_age(value: str | float | timedelta) -> float:
    """An age in seconds.

    Raises:
        ArgumentError: it is not an age.

    >>> parse_age("24h"), parse_age("1.5m"), parse_age(10)
    (86400.0, 90.0, 10.0)
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, str):
        match = _AGE.fullmatch(value.strip())
        if match is None:
            raise ArgumentError(f"{quote(value)} is not an age; write e.g. '30m', '24h' or '7d'")
        value = float(match[1]) * _SECONDS[match[2]]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentError(f"{quote(value)} is not an age; write e.g. '30m', '24h' or '7d'")
    if not 0 <= value < _FOREVER:
        raise ArgumentError(f"an age cannot be {quote(value)} seconds")
    return float(value)
