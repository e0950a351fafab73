"""Writes a run: one manager at a time, a row before each checkpoint, removals after each commit."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from datetime import datetime, timezone

from ..errors import JsonckptError, WriteError
from ..load.options import ReadOptions
from ..storage.lock import PathLock
from .ledger import MOST_BYTES, Ledger, read_step
from .rotation import Rotation
from .saved_step import (
    DAMAGED,
    FAILED,
    GONE,
    HISTORY,
    KEPT,
    MOST_SAVES,
    REMOVED,
    REMOVING,
    SAVING,
    SavedStep,
    name_of,
    step_in,
)
from .store import Store

#: Seconds to wait for the process that wrote to this run before: it may be ending.
_PATIENCE = 10.0
_OLD_HISTORY = "history-damaged.json"


class Run:
    """The saves of a run, for the manager that writes them."""

    def __init__(self, store: Store, ledger: Ledger, options: ReadOptions) -> None:
        self._store = store
        self._ledger = ledger
        self._options = options
        self._lock: PathLock | None = None
        self._problems: dict[int, str] = {}

    def rows(self) -> tuple[SavedStep, ...]:
        """All saves, the oldest first."""
        return self._ledger.rows()

    def unreadable(self) -> list[str]:
        """A sentence for each checkpoint of which not even its step can be read."""
        return self._ledger.unreadable

    def begin_writing(self) -> None:
        """Make sure that nobody else writes to this run, and tidy up what a killed one left.

        Raises:
            JsonckptError: another manager writes to it.
            WriteError: the directory cannot be made.
        """
        if self._lock is not None:
            return
        self._store.make()
        lock = self._store.lock("", shared=False)
        until = time.monotonic() + _PATIENCE
        while not lock.take():
            if time.monotonic() > until:
                raise JsonckptError(
                    "another manager writes checkpoints to this run",
                    file=self._store.path(""),
                    hint="One at a time: close() that one or end its process, or use another "
                    "directory.",
                )
            time.sleep(0.05)
        try:
            self._ledger.read()
            self._lock = lock
            self._ledger.is_live = True
            self._ledger.id = self._ledger.id or secrets.token_hex(6)
            if self._ledger.is_damaged:
                old = self._store.read(HISTORY, MOST_BYTES)
                self._store.write(_OLD_HISTORY, old or b"", sync=False)
            self._tidy()
            for row in self._ledger.rows():
                if row.status == KEPT and row.save in self._problems:
                    self._ledger.put(row.now(status=DAMAGED, problem=self._problems[row.save]))
        except BaseException:
            self.end_writing()
            lock.release()
            raise

    def end_writing(self) -> None:
        """Let others write to the run."""
        lock, self._lock = self._lock, None
        self._ledger.is_live = False
        if lock is not None:
            lock.release()

    def _tidy(self) -> None:
        """Remove what saves and removals that were killed have left."""
        self._store.tidy(HISTORY)
        left = [row for row in self._ledger.rows() if row.status in (SAVING, REMOVING)]
        for row in left:
            if row.status == SAVING:
                row = row.now(status=REMOVING, problem="the process ended before the commit")
            self._ledger.put(self._removed(row))
        if left:
            self._ledger.write()

    def begin(
        self, step: int, metrics: dict[str, float], after: int | None, suffix: str
    ) -> SavedStep:
        """A new row, in the history before its checkpoint is there."""
        save = max((row.save for row in self._ledger.rows()), default=0) + 1
        if save > MOST_SAVES:
            raise JsonckptError(
                f"the last save of this run has number {save - 1}, which none can follow",
                file=self._store.path(HISTORY),
                hint="Use another directory for the next saves.",
            )
        taken = {name for name in self._store.names() if step_in(name) is not None}
        taken |= {row.name for row in self._ledger.rows() if row.status not in GONE}
        row = SavedStep(
            step=step,
            path=self._store.path(name_of(step, taken, suffix)),
            save=save,
            run=self._ledger.id,
            status=SAVING,
            metrics=metrics,
            after=after,
        )
        self._ledger.put(row)
        try:
            # If it is lost, a killed save leaves files that nobody removes. That is all.
            self._ledger.write(sync=False)
        except BaseException as error:
            self.failed(row, error)
            raise
        return row

    def newest_path(self) -> str | None:
        """The path of the newest checkpoint that is there."""
        kept = [
            row
            for row in self._ledger.rows()
            if row.status == KEPT and self._ledger.has_text(row.name)
        ]
        return kept[-1].path if kept else None

    def committed(
        self, row: SavedStep, seconds: float, nbytes: int, rotation: Rotation
    ) -> SavedStep:
        """Note that a checkpoint is there, and remove those that need not stay.

        Raises:
            WriteError: the history cannot be written.
        """
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        row = row.now(status=KEPT, time=now, seconds=seconds, bytes=nbytes)
        self._ledger.put(row)
        victims = rotation.victims(self._ledger.rows())
        for victim in victims:
            self._ledger.put(victim.now(status=REMOVING))
        if victims:
            # On a full disk the removals make room. If they are killed then, files are left.
            with suppress(WriteError):
                self._ledger.write(sync=False)
        for victim in victims:
            self._ledger.put(self._removed(victim))
        self._ledger.write()
        return row

    def _removed(self, row: SavedStep) -> SavedStep:
        """Remove a checkpoint, if it is the one that this run wrote and nobody reads it.

        Returns:
            its row. If it could not be removed, the next save tries again.
        """
        try:
            if self._store.is_link(row.name) or (
                self._store.exists(row.name) and not self._is_ours(row)
            ):
                self._ledger.tell(
                    f"{row.path} is not removed: this run did not write what is there"
                )
            elif not self._store.remove_step(row.name):
                return row
        except WriteError as error:
            self._ledger.tell(f"{row.path} is not removed: {error.message}")
            return row.now(status=REMOVING)
        except JsonckptError as error:
            self._ledger.tell(
                f"{row.path} is not removed, because it cannot be read: {error.message}"
            )
            return row.now(status=DAMAGED, problem=error.message)
        never_whole = row.problem is not None and not row.time
        return row.now(status=FAILED if never_whole else REMOVED)

    def _is_ours(self, row: SavedStep) -> bool:
        """Whether this run wrote what is at the path of a row.

        Raises:
            JsonckptError: it cannot be read.
        """
        if not self._ledger.has_text(row.name):  # an interrupted removal has taken the manifest
            return True
        found = read_step(row.path, row.name, self._options)
        return found is not None and (found.run, found.save) == (row.run, row.save)

    def failed(self, row: SavedStep, error: BaseException) -> None:
        """Note that a save has failed. What it may have left is removed with the next rotation."""
        row = row.now(
            status=FAILED,
            problem=error.message if isinstance(error, JsonckptError) else repr(error)[:200],
        )
        with suppress(JsonckptError):  # the error of the save is the one to see
            if self._store.exists(row.name):
                # A commit may be followed by an error, such as that of the last fsync.
                found = self._ledger.look(row.name)
                kept = found is not None and self._is_ours(row)
                row = row.now(status=KEPT if kept else REMOVING)
                if found is not None and kept:
                    row = found.now(problem=row.problem)
            self._ledger.put(row)
            self._ledger.write(sync=False)

    def damaged(self, row: SavedStep, problem: str) -> None:
        """Remember that a checkpoint is damaged, for when this manager writes the history."""
        self._problems[row.save] = problem
