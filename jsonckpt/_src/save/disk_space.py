"""Disk space for a save: a warning before it, details in its errors, and ``delete_first``."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import JsonckptError, WriteError, printable, quote
from ..storage import commit
from ..storage.os_errors import TOO_LARGE, writing
from .plan import SavePlan

#: The hint of a save that has deleted the old checkpoint and failed to write a new one.
_REMOVED = (
    "The previous checkpoint was removed first (delete_first=True): there is none at this path "
    "now. Save again, here or elsewhere, while this process still has the state."
)
_UNTOUCHED = "The previous checkpoint is untouched."


class DiskSpace:
    """The disk space of one save.

    Args:
        size_known: whether a lower bound of what is written is known. It is not where whole files
            are compressed.
    """

    def __init__(self, plan: SavePlan, *, size_known: bool) -> None:
        self._plan = plan
        self._size_known = size_known
        self._free: int | None = None
        self._was_there = False
        self._gone = False

    def delete_first(self, first: Path, others: Callable[[], None] | None = None) -> None:
        """With ``delete_first``, remove the old checkpoint, its manifest or single file first.

        A reader finds the old checkpoint whole, or none, but never one with missing files. So the
        other files are removed only after the removal of the first is durable.

        Args:
            others: removes the other files.

        Raises:
            WriteError: the system refused.
        """
        options = self._plan.options
        self._was_there = os.path.lexists(first)
        if not (options.delete_first and self._was_there):
            return
        with writing(first):
            os.unlink(first)
        self._gone = True
        if options.sync:
            commit.fsync_directory(first.parent)
        if others is not None:
            others()

    def warn(self, directory: Path) -> None:
        """Warn if the text certainly does not fit.

        A warning, not an error: with compressing file systems and quotas, ``free`` is a guess.
        """
        with suppress(OSError):
            self._free = shutil.disk_usage(directory).free
        least = sum(record.least_text for record in self._plan.written) if self._size_known else 0
        if self._free is not None and least > self._free:
            warnings.warn(
                f"{printable(directory)}: this save takes {least:,} bytes or more and "
                f"{self._free:,} are free: it will probably fail. {self._advice()}",
                RuntimeWarning,
                stacklevel=2,
            )

    def explain(self, error: BaseException) -> None:
        """Add to an error how much space the save needs, and the fate of the old checkpoint."""
        if not isinstance(error, JsonckptError):
            if self._gone and hasattr(error, "add_note"):  # since Python 3.11
                error.add_note(_REMOVED)
            return
        if isinstance(error, WriteError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = "" if self._free is None else f", and {self._free:,} were free"
            most = sum(record.most_text for record in self._plan.written)
            error.hint = f"It takes up to {most:,} bytes{free}. {self._advice()}"
            if self._was_there and not self._gone:
                error.hint += f" {_UNTOUCHED}"
            if self._gone:
                error.hint += f" {_REMOVED}"
        elif isinstance(error, WriteError) and error.errno == errno.EFBIG:
            error.hint = self._about_size()
            if self._was_there:
                error.hint += f" {_REMOVED if self._gone else _UNTOUCHED}"
        elif self._gone:
            # Other hints say that the previous checkpoint is untouched.
            error.hint = _REMOVED

    def _about_size(self) -> str:
        """The way out where each file is limited. A tensor lies in one file."""
        largest = max(self._plan.written, key=lambda record: record.most_text, default=None)
        if largest is None:
            return TOO_LARGE
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        needs = f"tensor {quote(largest.source.name)} takes up to {largest.most_text:,} bytes"
        if 0 <= limit < largest.least_text:
            return (
                f"A file may have {limit:,} bytes here (ulimit -f) and {needs}: a smaller "
                "max_shard_size cannot help, since a tensor lies in one file. Raise the limit."
            )
        return f"{TOO_LARGE} A tensor lies in one file: {needs}."

    def _advice(self) -> str:
        if self._was_there and not self._gone:
            return (
                "Free some space, save elsewhere, or pass delete_first=True, which gives up the "
                "previous checkpoint before the new one is written."
            )
        return "Free some space or save elsewhere."
