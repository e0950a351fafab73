"""One save at a time in the background, in a thread of its own.

:class:`Background` keeps the order. Whoever prepares the next save waits until the last one is
over, and learns of its error if nobody has. The thread is no daemon, so the interpreter waits for
it when it exits, however it exits. A forked child has no thread but its own, and begins without a
save.

Why not ``concurrent.futures.Future``: it is built on ``Condition``, which is written in Python. A
Ctrl-C inside ``Future.result`` can leave its lock held, or become a RuntimeError. With the lock
held the save could not say that it is over, and the interpreter would wait for it for ever. A
future also does not know who runs the save, whether its error was seen, and which process it
belongs to.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from ..errors import JsonckptError, SaveCancelledError, WriteError, printable
from ..parallel import Event, start_thread
from .cancel import CancelToken

Result = TypeVar("Result")
Prepared = TypeVar("Prepared")
#: Added to the niceness of the thread: the scheduler gives it about a tenth of a processor that the
#: training wants as well, and all of one that is idle.
_NICER = 10
#: Seconds after which a waiting thread looks for itself, and after which a thread that has not
#: begun is given up.
_LOOK, _PATIENCE = 0.1, 1.0


class PendingSave(Generic[Result]):
    """A save in the background: what :func:`jsonckpt.save_async` returns.

    Attributes:
        path: of the checkpoint.
    """

    def __init__(self, path: str, place: str, work: Callable[[CancelToken], Result]) -> None:
        self.path = path
        self._place = place
        self._work: Callable[[CancelToken], Result] | None = work
        self._cancel = CancelToken()
        self._process = os.getpid()
        #: Who runs it, by the ident of its thread: the first to put a list of its own here, in one
        #: step that nothing interrupts.
        self._runner: dict[str, list[int]] = {}
        self._over = Event()
        self._finished = False
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._seen = False  # whether the error has been raised to somebody

    def __repr__(self) -> str:
        if not self._finished:
            how = "under way"
        elif self._error is None:
            how = "written"
        else:
            how = f"failed: {type(self._error).__name__}"
        return f"<PendingSave to {self.path!r}, {how}>"

    def done(self) -> bool:
        """Whether it is over: written, failed or cancelled."""
        if not self._finished:
            self._require_own_process()
        return self._finished

    def result(self, timeout: float | None = None) -> Result:
        """Wait until it is written, and say what was written.

        Args:
            timeout: seconds to wait at most; ``None`` waits as long as it takes.

        Raises:
            TimeoutError: the time is up; the save goes on.
            SaveCancelledError: :meth:`cancel` was called.
            WriteError, LimitError, …: what :func:`jsonckpt.save` would have raised.
        """
        self._wait(timeout)
        if self._error is not None:
            self._seen = True
            raise self._error
        assert self._result is not None
        return self._result

    def cancel(self) -> bool:
        """Stop it before its commit, and wait until what it has written so far is removed.

        Returns:
            ``True`` when it was cancelled: what was at the path before is still there. ``False``
            when it was too late: the checkpoint was committed, or the save has failed by itself. (A
            single file behind a URL is committed from the moment it is opened.)
        """
        if not self._finished:
            self._require_own_process()
        cancelled = self._cancel.cancel()
        self._wait(None)
        return cancelled

    def _wait(self, timeout: float | None) -> None:
        if self._finished:
            return
        self._require_own_process()
        if self._is_mine:
            raise JsonckptError(
                "this save is being written by the frame that is interrupted here",
                file=self.path,
                hint="Do not wait for it in a signal handler; set a flag there.",
            )
        began = time.monotonic()
        while not self._finished:
            waited = time.monotonic() - began
            left = _LOOK if timeout is None else min(_LOOK, timeout - waited)
            if left < 0:
                raise TimeoutError(f"the save to {self.path!r} is still under way")
            self._over.wait(left)
            if timeout is None:
                self._wait_for_begin()

    def _wait_for_begin(self) -> None:
        """Wait until a thread runs it. A thread that dies of a lack of memory while it begins never
        does; then it is done here."""
        late = time.monotonic() + _PATIENCE
        while not self._runner:
            if time.monotonic() > late:
                self._run(here=True)
            self._over.wait(_LOOK / 10)

    @property
    def _is_mine(self) -> bool:
        """Whether this thread is the one that writes it, and so cannot wait for it."""
        return self._runner.get("it") == [threading.get_ident()]

    def _require_own_process(self) -> None:
        if os.getpid() != self._process:
            raise JsonckptError(
                f"this save belongs to the process {self._process}, and this one was forked from"
                " it while the save was under way",
                file=self.path,
                hint="Ask for the result where the save was started.",
            )

    def _run_nicely(self) -> None:
        """The life of the thread."""
        # The thread that started this one waits for the interpreter's lock, and gets it now. Else
        # this one would keep it for a switch interval (5 ms), in which the training stands still.
        time.sleep(0.001)
        _be_nice()
        self._run()

    def _run(self, *, here: bool = False) -> None:
        """Do the work, unless another thread does it or it is over.

        Args:
            here: whether the thread is the caller's own: a Ctrl-C is raised at once.
        """
        me = [threading.get_ident()]
        result: Result | None = None
        error: BaseException | None = None
        seen = False
        try:
            if self._runner.setdefault("it", me) is not me or self._finished:
                return
            work = self._work
            assert work is not None
            result = work(self._cancel)
        except BaseException as raised:
            # Carried to whoever asks for the result, or to the next call.
            work, error = None, raised
            seen = here and raised.__class__ is KeyboardInterrupt
            _clear_frames(raised)
            if seen:
                raise
        finally:
            # Whatever else fails, this says how it ended. First without a call, which could fail.
            if "it" in self._runner and self._runner["it"] is me and not self._finished:
                self._work = None
                self._seen = seen or error.__class__ is SaveCancelledError
                self._result, self._error = result, error
                self._cancel._closed = True
                self._finished = self._over.is_set = True
                self._over.set()

    def _untold(self) -> BaseException | None:
        """The error that nobody has seen; it is seen now."""
        if not self._finished or self._error is None or self._seen:
            return None
        self._seen = True
        return self._error


class Background:
    """The saves of one process in the background, one at a time.

    >>> background = Background()
    >>> pending = background.run_next(lambda: background.start("somewhere", lambda gate: 6 * 7))
    >>> pending.result()
    42
    """

    def __init__(self) -> None:
        self._forget()
        # The interpreter waits for threads that have begun, and does not know of one that has not.
        # (A Python without that function calls this with the other exit functions.)
        getattr(threading, "_register_atexit", atexit.register)(self._begin_at_exit)
        atexit.register(self._at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # A forked child has neither the thread nor the thread that held the lock, and the parent
        # tells of the errors itself. Reentrant: a signal handler may save where its own thread
        # waits for the lock.
        self._lock = threading.RLock()
        self._preparing = False
        self._last: PendingSave[Any] | None = None

    def run_next(self, prepare: Callable[[], Prepared]) -> Prepared:
        """Wait until nothing is under way; keep others out while ``prepare`` runs.

        It is no context manager: those that are written in Python can be interrupted in their
        ``__enter__`` and ``__exit__``, and would keep others out for ever.

        Raises:
            JsonckptError: the last save failed, and nobody has seen the error; or this thread is
                preparing a save already.
        """
        with self._lock:
            # Only a thread that holds the lock already sees this.
            if self._preparing:
                raise JsonckptError(
                    "save_async() was called while it is preparing another save in this thread",
                    hint="Do not call it from a signal handler or a to_json; set a flag there.",
                )
            # A handler may start another one meanwhile.
            while (last := self._last) is not None and not last.done():
                last._wait(None)
            try:
                self._preparing = True
                self._raise_untold()
                prepared = prepare()
            finally:
                self._preparing = False
            return prepared

    def wait_for(self, place: str) -> None:
        """Wait until no save to a place is under way. Its error stays for :meth:`run_next`.

        A save in a frame that the caller interrupts cannot go on before the caller ends. It is not
        waited for, and comes last.
        """
        while (last := self._last) is not None and last._place == place and not last.done():
            if last._is_mine:
                return
            last._wait(None)

    def start(
        self, path: str, work: Callable[[CancelToken], Result], *, place: str | None = None
    ) -> PendingSave[Result]:
        """Run ``work`` in the background; to be called in :meth:`run_next`.

        Args:
            path: of the checkpoint, for messages.
            place: one name for each place, however it was given; else ``path``.

        Where no thread can be started any more (in exit functions, from Python 3.12 on), the work
        is done when this returns.
        """
        pending: PendingSave[Result] = PendingSave(path, place or path, work)
        # Before the start: a Ctrl-C that comes right after it must not let the next call believe
        # that nothing is under way.
        self._last = pending
        try:
            start_thread(pending._run_nicely, "jsonckpt-save", daemon=False)
        except (RuntimeError, MemoryError):
            pending._run(here=True)
        except BaseException:
            # Nobody knows whether the thread was started. If it was, it stops before its commit.
            pending._cancel.cancel()
            pending._run(here=True)
            raise
        return pending

    def _raise_untold(self) -> None:
        last, self._last = self._last, None
        error = None if last is None else last._untold()
        if last is None or error is None:
            return
        reason = error.message if isinstance(error, JsonckptError) else repr(error)
        text = f"the save before this one has failed in the background: {reason}"
        hint = "The present call has saved nothing: call it again."
        if isinstance(error, WriteError):
            raise type(error)(text, errno=error.errno, file=last.path, hint=hint) from error
        kind = type(error) if isinstance(error, JsonckptError) else JsonckptError
        raise kind(text, file=last.path, hint=hint) from error

    def _begin_at_exit(self) -> None:
        last = self._last
        if last is not None:
            last._wait_for_begin()

    def _at_exit(self) -> None:
        """The last chance to tell of an error."""
        last = self._last
        if last is None:
            return
        # Of a thread that was started by another exit function, nobody else waits for the end.
        last._wait(None)
        error = last._untold()
        if error is not None and sys.stderr is not None:
            print(
                f"jsonckpt: the save to {last.path!r} has failed in the background:"
                f" {type(error).__name__}: {printable(error)}",
                file=sys.stderr,
            )


def _clear_frames(error: BaseException) -> None:
    """Let go of the variables of an error's frames, for these hold on to the copy of the state."""
    chain: list[BaseException | None] = [error]
    seen = set()
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            chain += [one.__cause__, one.__context__]


def _be_nice() -> None:
    """Let the training go first. Linux has a niceness for each thread, other systems do not."""
    if not sys.platform.startswith("linux"):
        return
    thread = threading.get_native_id()
    # It is a courtesy: where the system refuses, the save runs like any thread.
    with suppress(OSError):
        niceness = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(19, niceness + _NICER))
