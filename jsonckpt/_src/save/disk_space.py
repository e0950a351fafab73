"""Room for a save: advice before its first byte, figures after a refusal, and delete-first."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import JsonckptError, WriteError, printable
from ..format.dtypes import DTYPES
from ..storage import commit
from . import plan
from .snapshot import SaveOptions, Snapshot

#: What a save says that has lost the old checkpoint and has made no new one.
_REMOVED = (
    "The previous checkpoint was removed first, as delete_first asks: there is none at this path "
    "now. Save again, here or elsewhere, as long as this process holds the state."
)


class DiskSpace:
    """The room that one save has, and what it gives up for more of it."""

    def __init__(self, contents: Snapshot, options: SaveOptions, *, compressed: bool) -> None:
        """
        Args:
            compressed: whether whole files are, so that nothing is certain about their size.
        """
        self._contents = contents
        self._options = options
        self._compressed = compressed
        self._free: int | None = None
        self._was_there = False
        self._gone = False

    def make(self, first: Path, others: Sequence[Path]) -> None:
        """With ``delete_first``, remove what lies there: what makes it a checkpoint comes first.

        A reader finds the old checkpoint whole, or none; never one with files missing. So the
        others are touched only when it is durable that the first is gone.

        Raises:
            WriteError: the system refused.
        """
        self._was_there = os.path.lexists(first)
        if not (self._options.delete_first and self._was_there):
            return
        with commit.writing(first):
            os.unlink(first)
        self._gone = True
        if self._options.sync:
            commit.fsync_directory(first.parent)
        commit.unlink_all(others, threads=self._options.threads)

    def look(self, directory: Path) -> None:
        """Warn when it is certain that the text does not fit; to be called before it is written.

        A warning, no error: file systems that compress, and quotas, make ``free`` a guess.
        """
        with suppress(OSError):
            self._free = shutil.disk_usage(directory).free
        least = self._least()
        if self._free is not None and least > self._free:
            warnings.warn(
                f"{printable(directory)}: this save takes {least:,} bytes or more and "
                f"{self._free:,} are free: it will probably fail. {self._advice()}",
                RuntimeWarning,
                stacklevel=2,
            )

    def explain(self, error: BaseException) -> None:
        """Let an error of this save say what it needed, and what has become of the old one."""
        if not isinstance(error, JsonckptError):
            if self._gone and hasattr(error, "add_note"):  # since Python 3.11
                error.add_note(_REMOVED)
            return
        if isinstance(error, WriteError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = "" if self._free is None else f", and {self._free:,} were free"
            error.hint = f"It takes up to {self._most():,} bytes{free}. {self._advice()}"
            if self._was_there and not self._gone:
                error.hint += " The previous checkpoint is untouched."
            if self._gone:
                error.hint += f" {_REMOVED}"
        elif self._gone:
            # What deeper places say of the previous checkpoint is not true of this save.
            error.hint = _REMOVED

    def _advice(self) -> str:
        if self._was_there and not self._gone:
            return (
                "Free some space, save elsewhere, or pass delete_first=True, which gives up the "
                "previous checkpoint before the new one is written."
            )
        return "Free some space or save elsewhere."

    def _least(self) -> int:
        """Bytes that the text certainly has."""
        if self._compressed:
            return 0
        total = 0
        for record in self._contents.plans:
            if record.codec.encoding == "list":
                # An element takes a digit and a comma at least.
                itemsize = DTYPES[self._contents.sources[record.source].dtype].itemsize
                total += 2 * (record.nbytes // itemsize)
            elif record.codec.compression == "none":
                total += record.nbytes * 4 // 3
        return total

    def _most(self) -> int:
        sources = self._contents.sources
        return sum(plan.text_estimate(p, sources[p.source].dtype) for p in self._contents.plans)
