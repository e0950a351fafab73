"""The saves of a run: the rows of ``history.json``, in agreement with the checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ..errors import JsonckptError
from ..format.model import MANIFEST_NAME
from ..load.container import open_container
from ..load.options import ReadOptions
from .saved_step import (
    GONE,
    HISTORY,
    KEPT,
    MEMBER,
    REMOVED,
    SAVING,
    SavedStep,
    dump,
    from_marks,
    parse,
    step_in,
)
from .store import Store

#: A longer history is not read.
MOST_BYTES = 64 << 20


class Ledger:
    """The rows of a run.

    Args:
        notes: gets a sentence for each thing that the user should know.
        sync: whether the history is fsynced.

    Attributes:
        id: of the run; empty if there is none yet.
        is_live: this process writes the run, so that its rows are the ones that count.
        is_damaged: the history could not be read.
        unreadable: a sentence for each checkpoint that is there and of which nothing can be read.
    """

    def __init__(
        self, store: Store, options: ReadOptions, notes: Callable[[str], None], *, sync: bool
    ) -> None:
        self._store = store
        self._options = options
        self._notes = notes
        self._sync = sync
        self._rows: tuple[SavedStep, ...] = ()
        self._told: set[str] = set()
        self.id = ""
        self.is_live = False
        self.is_damaged = False
        self.unreadable: list[str] = []

    def rows(self) -> tuple[SavedStep, ...]:
        """All saves, the oldest first. They are read again unless this manager writes them."""
        if not self.is_live:
            self.read()
        return self._rows

    def read(self) -> None:
        """Read the history, and compare it with what is there."""
        self.unreadable = []
        names = [name for name in self._store.names() if step_in(name) is not None]
        rows = {row.save: self._settled(row, names) for row in self._history()}
        known = {row.name for row in rows.values() if row.status not in GONE}
        found = [self.look(name) for name in names if name not in known]
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
        text = self._store.read(HISTORY, MOST_BYTES)
        self.is_damaged = False
        if text is None:
            return []
        try:
            rows = parse(text[:MOST_BYTES], root)
        except JsonckptError as error:
            self.is_damaged = True
            self.tell(
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
            found = self.look(row.name)
            if found is not None and (found.run, found.save) == (row.run, row.save):
                return found
        return row

    def look(self, name: str) -> SavedStep | None:
        """The save at a path, if a manager wrote it. A damaged one is named."""
        path = self._store.path(name)
        if not self.has_text(name):  # what a killed save left, or only shards for other steps
            return None
        try:
            row = read_step(path, name, self._options)
        except JsonckptError as error:
            sentence = f"{path} is left out: {error.message}"
            self.unreadable.append(sentence)
            self.tell(sentence)
            return None
        return row

    def has_text(self, name: str) -> bool:
        """Whether a checkpoint's file is there, or the manifest of its directory."""
        return "." in name or self._store.exists(f"{name}/{MANIFEST_NAME}")

    def tell(self, sentence: str) -> None:
        """Tell the user something, once."""
        if sentence not in self._told:
            self._told.add(sentence)
            self._notes(sentence)

    def put(self, row: SavedStep) -> None:
        """Replace the row of a save, or add it. :meth:`write` makes it last."""
        rows = {one.save: one for one in self._rows}
        rows[row.save] = row
        self._rows = tuple(rows[save] for save in sorted(rows))

    def write(self, *, sync: bool | None = None) -> None:
        """Write the history. Raises :class:`WriteError`."""
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
