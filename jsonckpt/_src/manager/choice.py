"""Chooses a checkpoint of a run, and restores it. A damaged one is passed over, never silently."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import (
    ArgumentError,
    CheckpointNotFoundError,
    IncompleteCheckpointError,
    JsonckptError,
    StateMismatchError,
    UnsupportedTypeError,
    is_refusal,
)
from ..find.api import find
from ..find.look import problem_of
from ..load.options import ReadOptions
from ..storage.lock import PathLock
from ..storage.path_arguments import is_url, path_text
from .ledger import read_step
from .rotation import Best, newest_of_each
from .run import Run
from .saved_step import DAMAGED, KEPT, SavedStep
from .states import fill, whole_number
from .store import Store, reading

#: Errors of a restore that are about the caller's state, not about the checkpoint.
_NOT_DAMAGE = (StateMismatchError, ArgumentError, UnsupportedTypeError)


class Choice:
    """Finds the checkpoint that is meant, among those of a run.

    Args:
        notes: gets a sentence for each checkpoint that is passed over.
    """

    def __init__(
        self,
        store: Store,
        run: Run,
        best: Best | None,
        options: ReadOptions,
        notes: Callable[[str], None],
    ) -> None:
        self._store = store
        self._run = run
        self._best = best
        self._options = options
        self._notes = notes

    def candidates(self, which: Any) -> list[SavedStep]:
        """The checkpoints that may be meant, the first choice first.

        Raises:
            ArgumentError: ``which`` means nothing.
            CheckpointNotFoundError: there is no such step.
        """
        rows = self._run.rows()
        kept = [row for row in rows if row.status == KEPT]
        if which is None or which == "latest":
            return kept[::-1]
        if which == "best":
            return self._by_metric(kept)
        step = whole_number(which)
        found = [row for row in rows if row.step == step and row.status in (KEPT, DAMAGED)]
        if not found:
            there = ", ".join(str(row.step) for row in newest_of_each(kept)[-8:])
            raise CheckpointNotFoundError(
                f"there is no checkpoint of step {step}",
                file=self._store.path(""),
                hint=f"There are those of steps {there}." if there else "Nothing was saved yet.",
            )
        return found[::-1]

    def _by_metric(self, kept: list[SavedStep]) -> list[SavedStep]:
        if self._best is None:
            raise ArgumentError(
                "'best' needs keep_best", hint='Pass keep_best=("val_loss", "min", 1).'
            )
        ranked = self._best.ranked(kept)
        if kept and not ranked:
            raise CheckpointNotFoundError(
                f"no checkpoint has the metric {self._best.metric!r}",
                file=self._store.path(""),
                hint="Pass metrics= where the steps are saved.",
            )
        return ranked

    def first_whole(self, which: Any) -> SavedStep | None:
        """The first candidate that is whole, as far as its text tells; ``None`` without any."""
        for row in self.candidates(which):
            try:
                read_step(row.path, row.name, self._options)
            except JsonckptError as error:
                if is_refusal(error):
                    raise
                self._notes(f"{row.path} is skipped: {problem_of(error, row.path)}")
            else:
                return row
        return None

    def restore(
        self, state: Any, which: Any, options: Mapping[str, Any]
    ) -> tuple[int | None, SavedStep | None]:
        """Restore a checkpoint.

        Returns:
            the next step, and the row of the run. ``None`` for nothing, and for a path elsewhere.
        """
        if isinstance(which, os.PathLike) or (
            isinstance(which, str) and which not in ("latest", "best")
        ):
            return self._from_path(state, which, options)
        exact = which not in (None, "latest", "best")
        tried: set[int] = set()
        problems: list[str] = []
        # Another process may save and remove meanwhile. So they are listed again for each try.
        while rows := [row for row in self.candidates(which) if row.save not in tried]:
            row = rows[0]
            tried.add(row.save)
            with reading(self._store, row.name) as there:
                if not there:
                    problems.append(f"{row.path} was removed meanwhile")
                    continue
                try:
                    fill(state, row.path, options)
                    return row.step + 1, row
                except _NOT_DAMAGE:
                    raise
                except JsonckptError as error:
                    if exact or is_refusal(error):
                        raise
                    problem = problem_of(error, row.path)
            problems.append(f"{row.path} is skipped: {problem}")
            self._notes(problems[-1])
            self._run.damaged(row, problem)
        problems += self._run.unreadable()
        if problems:
            raise IncompleteCheckpointError(
                f"no checkpoint of this run could be restored: {'; '.join(problems[:3])}",
                file=self._store.path(""),
                hint="jsonckpt recover PATH NEW restores what is intact. To begin again, move the "
                "directory away.",
            )
        return None, None

    def _from_path(
        self, state: Any, which: Any, options: Mapping[str, Any]
    ) -> tuple[int, SavedStep | None]:
        path = path_text(which, "which")
        if is_url(path):
            fill(state, path, options)
        else:
            with PathLock(os.path.abspath(path), shared=True):
                fill(state, path, options)
        for row in self._run.rows():
            if row.status == KEPT and os.path.abspath(path) == os.path.abspath(row.path):
                return row.step + 1, row
        found = find(path, storage_options=self._options.storage_options).newest
        return (0 if found is None or found.step is None else found.step + 1), None
