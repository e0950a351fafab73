"""Scans one file of a damaged checkpoint, as far as it can be read."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..errors import JsonckptError
from ..format.limits import Limits
from ..storage.leftovers import File
from ..storage.local import LocalFile
from ..storage.spool import SpoolFile
from .damaged_files import DamagedZstd, PatchedFile
from .found_source import spool_beside
from .scan import ScanResult, scan

WRONG_VERSION = "its version is damaged: the seal matches another version"


@dataclass(frozen=True)
class ScannedFile:
    """What one file holds.

    Attributes:
        spool: holds the payloads of a compressed file.
    """

    file: File
    result: ScanResult
    spool: SpoolFile | None


def scan_file(
    file: File, limits: Limits, target: Path, stack: ExitStack, notes: list[str]
) -> ScannedFile:
    """Scan a shard, a single file, or what is left of one.

    Args:
        target: the new checkpoint; payloads of compressed files are spooled beside it.
        stack: removes the spool when it ends.
        notes: takes other findings.

    Raises:
        JsonckptError: the file cannot be opened, is over a limit, or has an unknown version.
    """
    name, spool = file.path.name, None
    try:
        with LocalFile(file.path, follow=limits.follow) as opened:
            patched = PatchedFile(opened)
            if file.compressed:
                spool = spool_beside(target, stack)
                zstd = DamagedZstd(patched, window=limits.zstd_window)
                result = scan(zstd, limits, spool=spool, fault_in=zstd.fault_in)
                if zstd.broken:
                    notes.append(f"{name}: {zstd.broken} zstd frame(s) are damaged")
            else:
                result = scan(patched, limits, fault_in=patched.fault_in)
    except JsonckptError as error:
        error.at(file=file.path)
        raise
    if result.wrong_version:
        notes.append(f"{name}: {WRONG_VERSION}")
    if patched.holes:
        notes.append(f"{name}: {patched.note()}")
    return ScannedFile(file, result, spool)
