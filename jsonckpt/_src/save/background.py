"""One save at a time in the background, in a thread of its own.

:class:`Background` keeps the order. The next save waits until the last one has ended, and raises
its error if nobody has seen it. The thread is not a daemon, so the interpreter waits for it at
every exit. A forked child does not have this thread, and begins without a save.

Why not ``concurrent.futures.Future``: it is built on ``Condition``, which is written in Python. A
Ctrl-C inside ``Future.result`` can leave its lock held, or become a RuntimeError. With the lock
held the save could not report its end, and the interpreter would wait for ever. A future also does
not know which thread runs the save, whether its error was seen, and which process it belongs to.
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
from ..parallel import CancelToken, Event, start_thread

Result = TypeVar("Result")
Prepared = TypeVar("Prepared")
#: Added to the niceness of the thread: it gets about a tenth of a processor that the training also
#: uses, and all of an idle one.
_NICER = 10
#: Seconds after which a waiting thread checks again, and after which a thread that has not begun
#: counts as dead.
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
        #: The ident of the thread that runs it. The first thread to put its own list here runs it;
        #: nothing can interrupt that step.
        self._runner: dict[str, list[int]] = {}
        self._over = Event()
        self._finished = False
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._seen = False  # whether a caller has seen the error

    def __repr__(self) -> str:
        if not self._finished:
            how = "under way"
        elif self._error is None:
            how = "written"
        else:
            how = f"failed: {type(self._error).__name__}"
        return f"<PendingSave to {self.path!r}, {how}>"

    def done(self) -> bool:
        """Whether it has ended: written, failed or cancelled."""
        if not self._finished:
            self._require_own_process()
        return self._finished

    def result(self, timeout: float | None = None) -> Result:
        """Wait until it is written. Returns what was written.

        Args:
            timeout: seconds to wait at most; ``None`` waits without a limit.

        Raises:
            TimeoutError: the time is up. The save goes on.
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
        """Stop it before its commit, and wait until its files are removed.

        Returns:
            ``True`` if it was cancelled: what was at the path before is still there. ``False`` if
            it was too late: the checkpoint was committed, or the save had failed. (On some remote
            file systems a single file counts as committed as soon as it is opened.)
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
                "the code that is interrupted here is writing this save",
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
        """Wait until a thread runs it, or run it here.

        If the thread dies of a lack of memory before it begins, the save is done here.
        """
        late = time.monotonic() + _PATIENCE
        while not self._runner:
            if time.monotonic() > late:
                self._run(here=True)
            self._over.wait(_LOOK / 10)

    @property
    def _is_mine(self) -> bool:
        """Whether this thread writes it, and so cannot wait for it."""
        return self._runner.get("it") == [threading.get_ident()]

    def _require_own_process(self) -> None:
        if os.getpid() != self._process:
            raise JsonckptError(
                f"this save belongs to process {self._process}; the present process was forked from"
                " it while the save was under way",
                file=self.path,
                hint="Ask for the result where the save was started.",
            )

    def _run_nicely(self) -> None:
        """What the thread runs."""
        # Give the interpreter's lock back to the thread that started this one. Otherwise this
        # thread keeps it for a switch interval (5 ms), and the training waits.
        time.sleep(0.001)
        _be_nice()
        self._run()

    def _run(self, *, here: bool = False) -> None:
        """Do the work, unless another thread does it or it has ended.

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
            # Raised by ``result``, or by the next call.
            work, error = None, raised
            seen = here and raised.__class__ is KeyboardInterrupt
            _clear_frames(raised)
            if seen:
                raise
        finally:
            # This records the end, whatever else fails. First without a call, since a call could
            # fail.
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
        # The interpreter waits only for threads that have begun. (A Python without that function
        # calls this with the other exit functions.)
        getattr(threading, "_register_atexit", atexit.register)(self._begin_at_exit)
        atexit.register(self._at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # A forked child has neither this thread nor the one that held the lock. The parent reports
        # the errors. Reentrant: a signal handler may save while its own thread waits for the lock.
        self._lock = threading.RLock()
        self._preparing = False
        self._last: PendingSave[Any] | None = None

    def run_next(self, prepare: Callable[[], Prepared]) -> Prepared:
        """Wait until no save is running, and keep other callers out while ``prepare`` runs.

        It is not a context manager: a signal can interrupt an ``__enter__`` or ``__exit__`` that is
        written in Python, and then others would be kept out for ever.

        Raises:
            JsonckptError: the last save failed and nobody has seen the error, or this thread is
                already preparing a save.
        """
        with self._lock:
            # Only a thread that already holds the lock gets here.
            if self._preparing:
                raise JsonckptError(
                    "save_async() was called while this thread is preparing another save",
                    hint="Do not call it from a signal handler or a to_json; set a flag there.",
                )
            # A signal handler may have started another one.
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
        """Wait until no save to a place is running. :meth:`run_next` raises its error.

        If the caller is a signal handler that interrupted that save, the save cannot go on before
        the handler returns. Then this does not wait.
        """
        while (last := self._last) is not None and last._place == place and not last.done():
            if last._is_mine:
                return
            last._wait(None)

    def start(
        self, path: str, work: Callable[[CancelToken], Result], *, place: str | None = None
    ) -> PendingSave[Result]:
        """Run ``work`` in the background. Call it inside :meth:`run_next`.

        Args:
            path: of the checkpoint, for messages.
            place: one name for each place, however it was given; else ``path``.

        If no thread can be started any more (in exit functions, from Python 3.12 on), the work is
        done when this returns.
        """
        pending: PendingSave[Result] = PendingSave(path, place or path, work)
        # Set before the start: after a Ctrl-C right behind the start, the next call must still see
        # this save.
        self._last = pending
        try:
            start_thread(pending._run_nicely, "jsonckpt-save", daemon=False)
        except (RuntimeError, MemoryError):
            pending._run(here=True)
        except BaseException:
            # The thread may have been started. If so, it stops before its commit.
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
        text = f"the previous background save has failed: {reason}"
        hint = "This call has saved nothing: call it again."
        if isinstance(error, WriteError):
            raise type(error)(text, errno=error.errno, file=last.path, hint=hint) from error
        kind = type(error) if isinstance(error, JsonckptError) else JsonckptError
        raise kind(text, file=last.path, hint=hint) from error

    def _begin_at_exit(self) -> None:
        last = self._last
        if last is not None:
            last._wait_for_begin()

    def _at_exit(self) -> None:
        """At exit: the last chance to report an error."""
        last = self._last
        if last is None:
            return
        # Nothing else waits for a thread that another exit function started.
        last._wait(None)
        error = last._untold()
        if error is not None and sys.stderr is not None:
            print(
                f"jsonckpt: the background save to {last.path!r} has failed:"
                f" {type(error).__name__}: {printable(error)}",
                file=sys.stderr,
            )


def _clear_frames(error: BaseException) -> None:
    """Clear the variables in an error's frames. They keep the copy of the state alive."""
    chain: list[BaseException | None] = [error]
    seen = set()
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            chain += [one.__cause__, one.__context__]


def _be_nice() -> None:
    """Lower the priority of this thread. Only Linux has a niceness for each thread."""
    if not sys.platform.startswith("linux"):
        return
    thread = threading.get_native_id()
    # If the system refuses, the save runs with normal priority.
    with suppress(OSError):
        niceness = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(19, niceness + _NICER))
