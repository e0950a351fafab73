"""Scans one file of a damaged checkpoint, as far as it can be read."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..errors import JsonckptError, counted, line_endings, rewritten
from ..format.filenames import ZSTD_MAGIC
from ..format.limits import Limits
from ..shards.shard_text import is_laid_out
from ..storage.leftovers import File
from ..storage.local import LocalFile
from ..storage.spool import SpoolFile
from .damaged_files import DamagedZstd, PatchedFile
from .found_source import spool_beside
from .scan import ScanResult, scan
from .scan_rewritten import UnixLines, scan_any_layout

_BEGINNING = 4096
WRONG_VERSION = "its version is damaged: the seal matches another version"


@dataclass(frozen=True)
class ScannedFile:
    """What one file holds.

    Attributes:
        spool: holds the payloads of a file that is compressed, or whose text was changed.
    """

    file: File
    result: ScanResult
    spool: SpoolFile | None


def scan_file(
    file: File, limits: Limits, target: Path, stack: ExitStack, notes: list[str]
) -> ScannedFile:
    """Scan a shard, a single file, or what is left of one.

    Args:
        target: the new checkpoint; payloads may be spooled beside it.
        stack: removes the spool when it ends.
        notes: takes other findings.

    Raises:
        JsonckptError: the file cannot be opened, is over a limit, or has an unknown version.
    """
    name = file.path.name
    try:
        with LocalFile(file.path, follow=limits.follow) as opened:
            scanned = _scan_opened(file, opened, limits, target, stack, notes)
    except JsonckptError as error:
        error.at(file=file.path)
        raise
    if scanned.result.wrong_version:
        notes.append(f"{name}: {WRONG_VERSION}")
    if scanned.result.rewritten:
        notes.append(f"{name}: {rewritten().message}")
    return scanned


def _scan_opened(
    file: File, opened: LocalFile, limits: Limits, target: Path, stack: ExitStack, notes: list[str]
) -> ScannedFile:
    name, patched, spool = file.path.name, PatchedFile(opened), None
    compressed = is_compressed(file, patched)
    if compressed:
        spool = spool_beside(target, stack)
        zstd = DamagedZstd(patched, window=limits.zstd_window)
        result = scan(zstd, limits, spool=spool, fault_in=zstd.fault_in)
        if zstd.broken:
            notes.append(f"{name}: {counted(zstd.broken, 'damaged zstd frame')}")
    elif _has_crlf(patched):
        spool = spool_beside(target, stack)
        result = scan(UnixLines(patched), limits, spool=spool)
        notes.append(f"{name}: {line_endings().message}; that was undone")
    else:
        result = scan(patched, limits, fault_in=patched.fault_in)
    if _may_be_rewritten(result) and (compressed or _may_be_whole(patched)):
        other = spool_beside(target, stack)
        again = scan_any_layout(
            lambda: (
                DamagedZstd(patched, window=limits.zstd_window)
                if compressed
                else PatchedFile(opened)
            ),
            limits,
            other,
            compressed=compressed,
        )
        if again is not None:
            return ScannedFile(file, again, other)
    if patched.holes:
        notes.append(f"{name}: {patched.note()}")
    return ScannedFile(file, result, spool)


def is_compressed(file: File, text: PatchedFile) -> bool:
    """Whether a file is compressed as a whole, by its name or else by its first bytes."""
    named = file.zstd_by_name
    return named if named is not None else _bytes(text, 0, len(ZSTD_MAGIC)) == ZSTD_MAGIC


def _has_crlf(file: PatchedFile) -> bool:
    """Whether the line feeds of a file became CRLF."""
    beginning = _bytes(file, 0, _BEGINNING)
    return is_laid_out(beginning) and beginning[: beginning.index(b"\n")].endswith(b"\r")


def _may_be_rewritten(result: ScanResult) -> bool:
    return not result.ended and (result.head is None or bool(result.lost) or not result.found)


def _may_be_whole(file: PatchedFile) -> bool:
    """Whether a file ends as JSON does."""
    return _bytes(file, file.size - _BEGINNING, file.size).rstrip().endswith(b"}")


def _bytes(file: PatchedFile, start: int, stop: int) -> bytes:
    text = bytearray(min(stop, file.size) - max(start, 0))
    file.read_range(max(start, 0), memoryview(text))
    return bytes(text)
