"""The saves of a run: ``history.json`` and the checkpoints, brought into agreement."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from ..errors import JsonckptError, WriteError, is_refusal
from ..format.model import MANIFEST_NAME
from ..load.container import open_container
from ..load.options import ReadOptions
from .rotation import Rotation
from .saved_step import (
    DAMAGED,
    FAILED,
    GONE,
    HISTORY,
    KEPT,
    MEMBER,
    REMOVED,
    REMOVING,
    SAVING,
    SavedStep,
    dump,
    from_marks,
    name_of,
    parse,
    step_in,
)
from .store import Store

#: A longer history is not read.
_MOST_BYTES = 256 << 20
#: Seconds to wait for the process that wrote to this run before: it may be ending.
_PATIENCE = 10.0
_OLD_HISTORY = "history-damaged.json"


class Run:
    """The rows of a run. Only the one that writes changes files.

    Args:
        notes: gets a sentence for each thing that the user should know.
        sync: whether the history is fsynced.
    """

    def __init__(
        self, store: Store, options: ReadOptions, notes: Callable[[str], None], *, sync: bool
    ) -> None:
        self._store = store
        self._options = options
        self._notes = notes
        self._sync = sync
        self._rows: tuple[SavedStep, ...] = ()
        self._lock: Any = None
        self._told: set[str] = set()
        self._problems: dict[int, str] = {}
        self._is_damaged = False
        self.id = ""

    # --- what there is ----------------------------------------------------------------------------

    def rows(self) -> tuple[SavedStep, ...]:
        """All saves, the oldest first. They are read again unless this manager writes them."""
        if self._lock is None:
            self._read()
        return self._rows

    def _read(self) -> None:
        """Read the history, and compare it with what is there."""
        names = [name for name in self._store.names() if step_in(name) is not None]
        rows = {row.save: self._settled(row, names) for row in self._history()}
        known = {row.name for row in rows.values() if row.status not in GONE}
        found = [self._look(name) for name in names if name not in known]
        others = [row for row in found if row is not None]
        if not rows and others:
            # Most checkpoints here are of this run. Somebody may have copied others to it.
            self.id = Counter(row.run for row in reversed(others)).most_common(1)[0][0]
        for row in others:
            before = rows.get(row.save)
            if row.run == self.id and (before is None or before.status in GONE):
                rows[row.save] = row if before is None else before.now(status=KEPT, problem=None)
        self._rows = tuple(rows[save] for save in sorted(rows))

    def _history(self) -> list[SavedStep]:
        root = self._store.path("x")[:-1]
        text = self._store.read(HISTORY, _MOST_BYTES)
        self._is_damaged = False
        if text is None:
            return []
        try:
            rows = parse(text[:_MOST_BYTES], root)
        except JsonckptError as error:
            self._is_damaged = True
            self._tell(
                f"{self._store.path(HISTORY)} is damaged and is made again from the checkpoints: "
                f"{error.message}"
            )
            return []
        if rows:
            self.id = rows[0].run
        return rows

    def _settled(self, row: SavedStep, names: Sequence[str]) -> SavedStep:
        """A row as it is now: a process may have been killed since it was written."""
        if row.status in GONE:
            return row
        if row.status != SAVING:
            return row if row.name in names else row.now(status=REMOVED)
        if row.name in names:
            found = self._look(row.name, tell=False)
            if found is not None and (found.run, found.save) == (row.run, row.save):
                return found
        return row

    def _look(self, name: str, *, tell: bool = True) -> SavedStep | None:
        """The save at a path, if a manager wrote it. A damaged one is named."""
        path = self._store.path(name)
        if not self._has_text(name):  # what a killed save left, or only shards for other steps
            return None
        try:
            row = read_step(path, name, self._options)
        except JsonckptError as error:
            if is_refusal(error) or tell:
                self._tell(f"{path} is left out: {error.message}")
            return None
        return row

    def _has_text(self, name: str) -> bool:
        """Whether a checkpoint's file is there, or the manifest of its directory."""
        return "." in name or self._store.exists(f"{name}/{MANIFEST_NAME}")

    def _tell(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self._notes(sentence)

    # --- writing ----------------------------------------------------------------------------------

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
            self._read()
            self._lock = lock
            self.id = self.id or secrets.token_hex(6)
            if self._is_damaged:
                old = self._store.read(HISTORY, _MOST_BYTES)
                self._store.write(_OLD_HISTORY, old or b"", sync=False)
            self._tidy()
            for row in self._rows:
                if row.status == KEPT and row.save in self._problems:
                    self._put(row.now(status=DAMAGED, problem=self._problems[row.save]))
        except BaseException:
            self.end_writing()
            lock.release()
            raise

    def end_writing(self) -> None:
        """Let others write to the run."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def _tidy(self) -> None:
        """Remove what saves and removals that were killed have left."""
        self._store.tidy(HISTORY)
        left = [row for row in self._rows if row.status in (SAVING, REMOVING)]
        for row in left:
            if row.status == SAVING:
                row = row.now(status=REMOVING, problem="the process ended before the commit")
            self._put(self._removed(row))
        if left:
            self._write()

    def begin(
        self, step: int, metrics: dict[str, float], after: int | None, suffix: str
    ) -> SavedStep:
        """A new row, in the history before its checkpoint is there."""
        taken = {name for name in self._store.names() if step_in(name) is not None}
        taken |= {row.name for row in self._rows if row.status not in GONE}
        row = SavedStep(
            step=step,
            path=self._store.path(name_of(step, taken, suffix)),
            save=max((row.save for row in self._rows), default=0) + 1,
            run=self.id,
            status=SAVING,
            metrics=metrics,
            after=after,
        )
        self._put(row)
        # If it is lost, a killed save leaves files that nobody removes. That is all.
        self._write(sync=False)
        return row

    def newest_path(self) -> str | None:
        """The path of the newest checkpoint that is there."""
        kept = [row for row in self._rows if row.status == KEPT and self._has_text(row.name)]
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
        self._put(row)
        victims = rotation.victims(self._rows)
        for victim in victims:
            self._put(victim.now(status=REMOVING))
        if victims:
            # On a full disk the removals make room. If they are killed then, files are left.
            with suppress(WriteError):
                self._write(sync=False)
        for victim in victims:
            self._put(self._removed(victim))
        self._write()
        return row

    def _removed(self, row: SavedStep) -> SavedStep:
        """Remove a checkpoint, if it is the one that this run wrote and nobody reads it.

        Returns:
            its row. If it could not be removed, the next save tries again.
        """
        try:
            if self._store.exists(row.name) and not self._is_ours(row):
                self._tell(f"{row.path} is not removed: this run did not write what is there")
            elif not self._store.remove_step(row.name):
                return row
        except WriteError as error:
            self._tell(f"{row.path} is not removed: {error.message}")
            return row.now(status=REMOVING)
        except JsonckptError as error:
            self._tell(f"{row.path} is not removed, because it cannot be read: {error.message}")
            return row.now(status=DAMAGED, problem=error.message)
        never_whole = row.problem is not None and not row.time
        return row.now(status=FAILED if never_whole else REMOVED)

    def _is_ours(self, row: SavedStep) -> bool:
        """Whether this run wrote what is at the path of a row.

        Raises:
            JsonckptError: it cannot be read.
        """
        if not self._has_text(row.name):  # an interrupted removal has taken the manifest
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
                found = self._look(row.name)
                kept = found is not None and self._is_ours(row)
                row = row.now(status=KEPT if kept else REMOVING)
                if found is not None and kept:
                    row = found.now(problem=row.problem)
            self._put(row)
            self._write(sync=False)

    def damaged(self, row: SavedStep, problem: str) -> None:
        """Remember that a checkpoint is damaged, for when this manager writes the history."""
        self._problems[row.save] = problem

    def _put(self, row: SavedStep) -> None:
        rows = {one.save: one for one in self._rows}
        rows[row.save] = row
        self._rows = tuple(rows[save] for save in sorted(rows))

    def _write(self, *, sync: bool | None = None) -> None:
        text = dump(self._rows)
        self._store.write(HISTORY, text, sync=self._sync if sync is None else sync)


def read_step(path: str, name: str, options: ReadOptions) -> SavedStep | None:
    """The save that a checkpoint's own metadata names; ``None`` if no manager wrote it.

    Raises:
        JsonckptError: it is not whole, or cannot be read.
    """
    container = open_container(path, options)
    manifest = container.manifest
    with container.errors():
        container.check_files(range(len(manifest.shards)))
    row = from_marks(manifest.metadata.get(MEMBER), path, name)
    if row is None:
        return None
    size = container.first_bytes + sum(
        shard.bytes for shard in manifest.shards if not getattr(shard, "directory", "")
    )
    return row.now(time=manifest.created_at, bytes=size)
