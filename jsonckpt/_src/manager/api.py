"""``CheckpointManager``: the checkpoints of one run, from a training loop's point of view."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from ..errors import ArgumentError, CheckpointNotFoundError, JsonckptError, counted, quote
from ..load.options import ReadOptions
from ..storage.path_arguments import is_url
from .choice import Choice
from .ledger import Ledger
from .ranks import Ranks
from .rotation import Best, Rotation, check_count, newest_of_each
from .run import Run
from .saved_step import KEPT, SavedStep
from .saver import Saver, checked_options, report
from .states import frozen_in, numbers, tree_of, whole_number
from .store import reading, store_at
from .timing import Timing, seconds_until


class CheckpointManager:
    """Saves a run's checkpoints when they are due, keeps the right ones, and says when to stop.

    Each save is a checkpoint of its own, ``DIRECTORY/step-00000500``, and a row of
    ``DIRECTORY/history.json``. An old checkpoint is removed only after a newer one is committed,
    only if this manager wrote it, and never while :meth:`restore` reads it, in any process. Files
    of others stay. The newest checkpoint is the one that was saved last: after a restore of an
    older step, the steps behind it belong to the past.

    (The class is long because the arguments of its methods are explained here.)

    SIGTERM and SIGINT (Ctrl-C) make the next :meth:`step` save and return ``True``; a second one
    acts as usual. This needs the main thread, and begins with the first :meth:`step`.

    Args:
        directory: of the run: a path or a URL (extra ``remote``). It is made by the first save.
        keep_last: how many of the newest checkpoints stay; ``None`` for all.
        keep_best: ``(METRIC, "min" or "max", COUNT)``: the best ones by a metric stay, too.
        keep_every: each step that is a multiple of this stays, too.
        every_steps: :meth:`step` saves whenever so many more steps are full.
        every_minutes: :meth:`step` saves when the last save began so long ago.
        async_save: save in the background, as :func:`jsonckpt.save_async`. Checkpoints are removed
            after its commit. The last save before a stop is always waited for.
        deadline: when the run must have ended: ``"11h30m"``, seconds or a ``timedelta`` from now
            on, or a ``datetime``. :meth:`step` saves and returns ``True`` when what is left is
            needed for one more step and twice the time of the last save.
        single_file: save ``step-00000500.json`` instead of a directory.
        share_unchanged: tensors that have not changed since the last checkpoint are stored once. A
            checkpoint then needs files in directories beside it; :meth:`export` makes a whole one.
        on_error: ``"raise"``, or ``"warn"``: the run goes on after a failed save, with a
            ``RuntimeWarning``.
        metadata: your own plain JSON object, saved with each checkpoint.
        process_group: of ``torch.distributed``. All its ranks call the same methods, and decide
            together. Without it each rank decides for itself. Rank 0 writes in any case.
        storage_options: passed to fsspec for URLs.
        save_options: more arguments for :func:`jsonckpt.save`, such as ``compression="zstd"``.

    Raises:
        ArgumentError: an argument is not valid.

    >>> import tempfile, torch, jsonckpt
    >>> model, folder = torch.nn.Linear(2, 1), tempfile.TemporaryDirectory()
    >>> with CheckpointManager(folder.name, keep_last=2, every_steps=10) as manager:
    ...     start = manager.restore({"model": model}) or 1
    ...     for step in range(start, 41):
    ...         stop = manager.step(step, {"model": model}, metrics={"loss": 1 / step})
    >>> [saved.step for saved in manager.steps()], manager.restore({"model": model})
    ([30, 40], 41)
    >>> folder.cleanup()
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int | None = None,
        keep_best: tuple[str, str] | tuple[str, str, int] | None = None,
        keep_every: int | None = None,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        async_save: bool = False,
        deadline: Any = None,
        single_file: bool = False,
        share_unchanged: bool = False,
        on_error: str = "raise",
        metadata: Mapping[str, Any] | None = None,
        process_group: Any = None,
        storage_options: Mapping[str, Any] | None = None,
        **save_options: Any,
    ) -> None:
        counts = {"keep_last": keep_last, "keep_every": keep_every, "every_steps": every_steps}
        for name, value in counts.items():
            if value is not None:
                check_count(value, name)
        if every_minutes is not None and not (
            type(every_minutes) in (int, float) and every_minutes > 0
        ):
            raise ArgumentError(f"every_minutes must be positive, not {quote(every_minutes)}")
        if on_error not in ("raise", "warn"):
            raise ArgumentError(f"on_error must be 'raise' or 'warn', not {quote(on_error)}")
        if share_unchanged and (single_file or is_url(str(directory))):
            raise ArgumentError("share_unchanged needs checkpoints in local directories")
        self._store = store_at(
            directory, storage_options, sync=bool(save_options.get("sync", True))
        )
        self._where = self._store.path("")
        self._storage_options = storage_options
        options = dict(save_options)
        if storage_options is not None:
            options["storage_options"] = storage_options
        suffix = checked_options(
            options, background=async_save, single_file=single_file, directory=self._where
        )
        self._notes: list[str] = []
        self._best = Best.of(keep_best)
        reads = ReadOptions.of(threads=1, storage_options=storage_options)
        self._ranks = Ranks(process_group)
        self._timing = Timing(every_steps, every_minutes, seconds_until(deadline))
        note = self._notes.append
        ledger = Ledger(self._store, reads, note, sync=bool(options.get("sync", True)))
        self._run = Run(self._store, ledger, reads)
        self._choice = Choice(self._store, self._run, self._best, reads, note)
        self._saver = Saver(
            self._run,
            Rotation(keep_last, self._best, keep_every),
            self._timing,
            background=async_save,
            suffix=suffix,
            share=share_unchanged,
            metadata=metadata,
            options=options,
        )
        self._raises = on_error == "raise"
        self._stopped = False
        self._end = weakref.finalize(self, _end, self._saver, self._timing, self._run, os.getpid())

    # --- the loop ---------------------------------------------------------------------------------

    def restore(self, state: Any, which: Any = None, **load_options: Any) -> int | None:
        """Restore a checkpoint in place, and say with which step to go on.

        A damaged checkpoint is passed over with a ``RuntimeWarning`` that says what is wrong, and
        the one before it is restored.

        Args:
            state: what is given to :meth:`step`: a :class:`jsonckpt.TrainState`, or an object or a
                dictionary that :func:`jsonckpt.load_into` fills.
            which: ``None`` or ``"latest"`` for the newest, ``"best"``, a step, or a path. A step or
                a path that is damaged is an error.
            load_options: passed on to the restore, such as ``threads`` or ``strict``.

        Returns:
            the step after the one that was saved; ``None`` if nothing has been saved yet. (``0``
            for a path that does not say its step.)

        Raises:
            IncompleteCheckpointError: there are checkpoints, and all are damaged.
            CheckpointNotFoundError: there is no such step or path.
            StateMismatchError: the checkpoint and the state do not have the same tensors.
            JsonckptError: other errors of :func:`jsonckpt.load_into`.
        """
        self.wait()
        if self._storage_options is not None:
            load_options.setdefault("storage_options", self._storage_options)
        try:
            start, saved = self._choice.restore(state, which, load_options)
        finally:
            self._tell()
        self._ranks.check_same(start, "steps")
        if saved is not None:
            self._saver.after = saved.step
            self._timing.resumed(saved)
        return start

    def step(self, step: int, state: Any, metrics: Mapping[str, Any] | None = None) -> bool:
        """Say that a step has ended. Saves if that is due.

        Call it between optimizer steps: gradients are in no state.

        Args:
            step: its number. The numbers grow.
            state: as for :meth:`restore`. It is asked for its content only when a save is due.
            metrics: numbers that are saved with it, such as ``{"val_loss": 0.31}``.

        Returns:
            whether to stop the run: the time is up, or a signal came. The step is saved then.

        Raises:
            JsonckptError: this save failed, or the last one in the background, unless
                ``on_error="warn"``.
        """
        number = whole_number(step)
        self._timing.listen()
        asked = (*self._timing.stepped(number), self._saver.has_failed)
        due, stop, failed = self._ranks.any_of(*asked)
        if due or (stop and not self._stopped):
            self._save(number, state, metrics, wait=stop)
        elif failed:
            with self._errors(together=True):
                self._saver.check()
        if stop:
            self._stopped = True
            self._timing.unlisten()
        self._tell()
        self._timing.done()
        return stop

    def save(
        self, step: int, state: Any, metrics: Mapping[str, Any] | None = None
    ) -> SavedStep | None:
        """Save a step now, whether that is due or not.

        A step that was saved before is saved again, and the old checkpoint is removed.

        Args:
            step, state, metrics: as for :meth:`step`.

        Returns:
            what was saved. In the background it has ``status="saving"``. ``None`` on a rank that
            does not write, and after an error with ``on_error="warn"``.

        Raises: as :meth:`step`.
        """
        saved = self._save(whole_number(step), state, metrics, wait=False)
        self._tell()
        self._timing.done()
        return saved

    def _save(
        self, step: int, state: Any, metrics: Mapping[str, Any] | None, *, wait: bool
    ) -> SavedStep | None:
        given, saved = numbers(metrics), None
        if self._best is not None and given and self._best.metric not in given:
            self._notes.append(
                f"keep_best names the metric {quote(self._best.metric)}, but metrics has only "
                f"{', '.join(map(quote, given))}"
            )
        writes = self._ranks.writes
        # To collect a state may need all ranks.
        tree = tree_of(state) if writes or self._ranks.together else None
        with self._errors(together=True):
            if writes:
                saved = self._saver.save(step, tree, given, wait=wait, frozen=frozen_in(state))
        return saved

    def wait(self) -> None:
        """Wait until the save in the background is committed.

        Raises:
            JsonckptError: it failed, unless ``on_error="warn"``.
        """
        with self._errors():
            self._saver.settle()
        self._tell()

    def close(self) -> None:
        """Wait for the save in the background, and put the old signal handlers back.

        Raises: as :meth:`wait`.
        """
        try:
            self.wait()
        finally:
            self._timing.unlisten()
            self._run.end_writing()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        raises, self._raises = self._raises, False  # the error of the loop is the one to see
        try:
            self.close()
        finally:
            self._raises = raises

    # --- what there is ----------------------------------------------------------------------------

    def steps(self) -> list[SavedStep]:
        """The checkpoints that there are, by step. Each can be loaded as a path."""
        kept = [row for row in self._rows() if row.status == KEPT]
        return sorted(newest_of_each(kept), key=lambda row: row.step)

    def latest(self) -> SavedStep | None:
        """The newest checkpoint, ``None`` if there is none.

        Its payloads are not read. A damaged one is passed over with a ``RuntimeWarning``.
        """
        return self._first_whole("latest")

    def best(self) -> SavedStep | None:
        """The best checkpoint by the metric of ``keep_best``, ``None`` if there is none.

        Raises:
            ArgumentError: the manager has no ``keep_best``.
            CheckpointNotFoundError: there are checkpoints, and none has the metric.
        """
        return self._first_whole("best")

    @property
    def history(self) -> tuple[SavedStep, ...]:
        """All saves of the run, the oldest first, with those that failed or were removed."""
        return self._rows()

    @property
    def stop_reason(self) -> str | None:
        """Why :meth:`step` returned ``True``; ``None`` while it has not."""
        return self._timing.reason or ("another rank stops" if self._stopped else None)

    def export(self, which: Any, target: str | os.PathLike[str], **options: Any) -> SavedStep:
        """Copy a checkpoint to another place, whole: with all that it shares with others.

        Args:
            which: ``"latest"``, ``"best"`` or a step.
            target: a directory, or a ``.json`` or ``.json.zst`` file.
            options: more arguments for :func:`jsonckpt.edit.copy`, such as ``overwrite``; for a run
                behind a URL those of :func:`jsonckpt.convert`.

        Returns:
            what was copied.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            CheckpointExistsError: there is something at ``target``.
            JsonckptError: it cannot be read or written.
        """
        from ..convert.api import convert
        from ..edit.copy import copy

        self.wait()
        saved = self._first_whole("latest" if which is None else which)
        if saved is None:
            raise CheckpointNotFoundError("there is no whole checkpoint", file=self._where)
        with reading(self._store, saved.name):
            write: Any = convert if is_url(saved.path) else copy
            write(saved.path, target, **options)
        return saved

    def __repr__(self) -> str:
        try:
            kept = self.steps()
        except JsonckptError as error:
            return f"<CheckpointManager {self._where}: {error.message}>"
        newest = max(kept, key=lambda row: row.save, default=None)
        parts = [counted(len(kept), "checkpoint")]
        parts += [f"newest step {newest.step}"] if newest is not None else []
        ranked = self._best.ranked(kept) if self._best is not None else []
        parts += [f"best step {ranked[0].step}"] if ranked else []
        return f"<CheckpointManager {self._where}: {', '.join(parts)}>"

    def _first_whole(self, which: Any) -> SavedStep | None:
        try:
            return self._choice.first_whole(which)
        finally:
            self._tell()

    def _rows(self) -> tuple[SavedStep, ...]:
        rows = self._run.rows()
        self._tell()
        return rows

    @contextmanager
    def _errors(self, *, together: bool = False) -> Iterator[None]:
        """Raise the errors of a save, or warn of them. With ``together``, on all ranks."""
        failed: JsonckptError | None = None
        try:
            yield
        except JsonckptError as error:
            failed = error
        if together and self._ranks.any_of(failed is not None)[0] and failed is None:
            failed = JsonckptError("rank 0 could not save", file=self._where)
        if failed is not None and self._raises:
            raise failed
        if failed is not None:
            self._notes.append(f"a checkpoint was not saved: {failed}")

    def _tell(self) -> None:
        """Warn of what happened, also in the background. The warning shows the caller's line."""
        while self._notes:
            level, frame = 1, sys._getframe()
            while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
                level, frame = level + 1, frame.f_back
            warnings.warn(self._notes.pop(0), RuntimeWarning, stacklevel=level)


def _is_ours(module: str) -> bool:
    return module.startswith("jsonckpt._src.") or module == "contextlib"


def _end(saver: Saver, timing: Timing, run: Run, process: int) -> None:
    """When a manager is no longer used, or at exit."""
    if os.getpid() == process and not saver.is_own_thread:
        timing.unlisten()
        report(saver)
        run.end_writing()
