"""Saves the steps of a run, at once or in the background, and rotates after each commit."""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from ..errors import ArgumentError, printable, quote
from ..parallel import Event, start_thread
from ..save.api import save, save_async
from ..save.background import PendingSave
from ..save.options import SaveOptions
from ..save.write import SaveResult
from ..storage.path_arguments import is_url
from .rotation import Rotation
from .run import Run
from .saved_step import MEMBER, SavedStep, marks
from .timing import Timing

#: Arguments of :func:`jsonckpt.save` that the manager decides.
_OWN = {
    "state": "The manager gets the state with each step.",
    "path": "The manager names the checkpoints.",
    "overwrite": "The manager never overwrites a checkpoint.",
    "delete_first": "The manager removes a checkpoint only when a newer one is committed.",
    "single_file": "Pass single_file to the manager by its name.",
    "unchanged_from": "Pass share_unchanged=True.",
}


Frozen: TypeAlias = Callable[[str], bool] | None
#: Seconds after which a thread that has not begun counts as dead.
_PATIENCE = 1.0


class _Watch:
    """Work in a thread, or in the one that waits if that never begins."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        #: The first to put its ident here does the work; nothing can interrupt that step.
        self._runner: dict[str, list[int]] = {}
        self._over = Event()

    @property
    def is_mine(self) -> bool:
        """Whether this thread does it."""
        return self._runner.get("it") == [threading.get_ident()]

    def run(self) -> None:
        """Do it, unless another thread does."""
        me = [threading.get_ident()]
        if self._runner.setdefault("it", me) is me:
            try:
                self._work()
            finally:
                self._over.set()

    def wait(self) -> None:
        """Wait for its end."""
        late = time.monotonic() + _PATIENCE
        while not self._over.wait(_PATIENCE / 10):
            if not self._runner and time.monotonic() > late:
                self.run()


class Saver:
    """Saves steps, one after the other.

    Args:
        metadata: is saved with each checkpoint.
        options: arguments of :func:`jsonckpt.save`.
    """

    def __init__(
        self,
        run: Run,
        rotation: Rotation,
        timing: Timing,
        *,
        background: bool,
        suffix: str,
        share: bool,
        metadata: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> None:
        self._run = run
        self._rotation = rotation
        self._timing = timing
        self._background = background
        self._suffix = suffix
        self._share = share
        self._metadata = dict(metadata or {})
        if MEMBER in self._metadata:
            raise ArgumentError(f"metadata has a member {MEMBER}, which the manager writes")
        self._options = dict(options)
        self._watch: _Watch | None = None
        self._error: BaseException | None = None
        #: The step that the run is at: saved or restored last.
        self.after: int | None = None

    def save(
        self, step: int, tree: Any, metrics: dict[str, float], *, wait: bool, frozen: Frozen = None
    ) -> SavedStep:
        """Save a step.

        Args:
            tree: what is saved.
            frozen: says which tensors do not change, if they are shared.
            wait: return when it is committed, even if saves go on in the background.

        Returns:
            its row; with ``status="saving"`` if it goes on.

        Raises:
            JsonckptError: it failed, or the save before it.
        """
        self.settle()
        self._run.begin_writing()
        options = dict(self._options)
        if self._share:
            options["unchanged_from"] = self._run.newest_path()
            if frozen is not None:
                options.setdefault("frozen", frozen)
        row = self._run.begin(step, metrics, self.after, self._suffix)
        self._timing.save_begins()
        try:
            options["metadata"] = {MEMBER: marks(row), **self._metadata}
            if self._background and not wait:
                pending = save_async(tree, row.path, **options)
                self._after_commit(pending, row)
            else:
                options.pop("keep_buffers", None)
                row = self._commit(row, save(tree, row.path, **options))
        except BaseException as error:
            self._run.failed(row, error)
            raise
        self.after = step
        return row

    def _commit(self, row: SavedStep, result: SaveResult) -> SavedStep:
        self._timing.saved(result.seconds)
        return self._run.committed(row, result.seconds, result.stored_bytes, self._rotation)

    def _after_commit(self, pending: PendingSave[SaveResult], row: SavedStep) -> None:
        """Rotate when a background save is committed. Until then nothing is removed."""

        def work() -> None:
            try:
                result = pending.result()
            except BaseException as error:
                self._error = error
                self._run.failed(row, error)
                return
            try:
                self._commit(row, result)
            except BaseException as error:
                self._error = error

        self._watch = watch = _Watch(work)
        # If there can be no more threads, as at exit, :meth:`settle` does it.
        with suppress(RuntimeError, MemoryError):
            start_thread(watch.run, "jsonckpt-manager", daemon=False)

    def settle(self) -> None:
        """Wait for the save in the background.

        Raises:
            JsonckptError: it failed.
        """
        watch = self._watch
        if watch is not None:
            watch.wait()
            self._watch = None
        self.check()

    @property
    def is_own_thread(self) -> bool:
        """Whether this is the thread that waits for a save."""
        return self._watch is not None and self._watch.is_mine

    @property
    def has_failed(self) -> bool:
        """Whether there is an error that nobody has seen."""
        return self._error is not None

    def check(self) -> None:
        """Raise the error of a save in the background that has failed, once."""
        error = self.untold()
        if error is not None:
            raise error

    def untold(self) -> BaseException | None:
        """The error that nobody has seen; it is seen now."""
        error, self._error = self._error, None
        return error


def checked_options(
    options: Mapping[str, Any], *, background: bool, single_file: bool, directory: str
) -> str:
    """Check the arguments for :func:`jsonckpt.save`. Returns the end of the checkpoints' names.

    Raises:
        ArgumentError: one is not known, or not valid.
    """
    function = save_async if background else save
    known = set(inspect.signature(function).parameters) - {"state", "path"}
    for name in options:
        if name in _OWN:
            raise ArgumentError(f"{name} is not an argument of the manager", hint=_OWN[name])
        if name not in known:
            raise ArgumentError(
                f"{quote(name)} is not an argument of the manager or of jsonckpt.save",
                hint="help(jsonckpt.CheckpointManager) lists its arguments.",
            )
    checked = {name: value for name, value in options.items() if name != "keep_buffers"}
    made = SaveOptions.of(**checked)
    if made.with_reader and (single_file or is_url(directory)):
        raise ArgumentError("with_reader=True needs checkpoints in local directories")
    if not single_file:
        return ""
    return ".json.zst" if made.compresses_files else ".json"


def report(saver: Saver) -> None:
    """Wait for the save in the background. It is the last chance to tell its error."""
    error: BaseException | None = None
    try:
        saver.settle()
    except BaseException as raised:
        error = raised
    if error is not None and sys.stderr is not None:
        with suppress(OSError, ValueError):
            kind = type(error).__name__
            print(f"jsonckpt: a checkpoint was not saved: {kind}: {printable(error)}",
                  file=sys.stderr)  # fmt: skip
