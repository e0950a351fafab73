"""Runs jobs on several threads. Two other modules start threads of their own: ``save/background.py``
and ``manager/saver.py``.

A sequence is a list of jobs in order, such as the chunks of one file. A job has up to three steps:
*work* runs in parallel, *turn* runs one job at a time in the order of the sequence, and *land* runs
in parallel again. A save encodes, then learns where its bytes go, then writes them. A load reads
and decodes, then checks the text around the payloads. One pool of threads runs several sequences at
once. Each thread has at most one job at a time, so memory is bounded by the number of threads times
the size of a job.

Why not ``concurrent.futures``: its locks are ``Condition`` objects, written in Python. A signal
handler that raises inside one of their methods can leave it locked for ever. This module uses only
plain locks in ``with`` statements, and :class:`Event`. The calling thread works, too, and waits
only for threads that have begun. So nothing waits for a thread that cannot be started, or that dies
of a lack of memory before its first line.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .errors import ArgumentError, SaveCancelledError, quote

Job = TypeVar("Job")
Worker = TypeVar("Worker")
Worked = TypeVar("Worked")
Placed = TypeVar("Placed")
_MOST_THREADS = 8
_SMALL_RECORD = 16 << 10
#: Seconds after which a waiting thread checks again: a signal may have lost its wake-up.
_LOOK = 0.1
#: Seconds that a started thread has to begin. After that, nothing waits for it.
_PATIENCE = 1.0


class Event:
    """A one-shot event. A signal handler may run, or raise, at any moment of any call.

    Attributes:
        is_set: may also be set directly, which needs no memory. Waiting threads see it soon.
    """

    __slots__ = ("_lock", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Wake all waiting threads. Only one thread may call this."""
        self.is_set = True
        if self._lock.locked():
            self._lock.release()

    def wait(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds. Returns whether the event is set."""
        if not self.is_set and self._lock.acquire(timeout=timeout):
            self._lock.release()
        return self.is_set


class _AlwaysSet(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        del timeout
        return True


def start_thread(target: Callable[[], object], name: str, *, daemon: bool) -> threading.Thread:
    """Start a thread, and do not wait until it has begun.

    ``Thread.start`` waits for that, and waits for ever if the new thread dies of a MemoryError
    first. So the event that it waits for is replaced. (If a later Python renames that event,
    ``start`` waits as usual.)

    Raises:
        RuntimeError, MemoryError: the system has no more threads or memory.
    """
    thread = threading.Thread(target=target, name=name, daemon=daemon)
    thread._started = _AlwaysSet()  # type: ignore[attr-defined]
    thread.start()
    return thread


def default_threads() -> int:
    """The number of processors that this process may use, at most 8.

    >>> default_threads() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    return min(_MOST_THREADS, os.cpu_count() or 1)


def thread_count(threads: int | None) -> int:
    """The public argument ``threads``, checked."""
    if threads is None:
        return default_threads()
    if type(threads) is not int or threads < 1:
        raise ArgumentError(f"threads must be a positive integer or None, not {quote(threads)}")
    return threads


def threads_for(threads: int, nbytes: int, records: int) -> int:
    """How many of the allowed threads are useful for ``nbytes`` bytes in ``records`` records.

    Small records cost Python more than they cost the codecs, and Python runs on one thread at a
    time: a second thread only takes turns with the first.

    >>> threads_for(2, 20 << 20, 20_000), threads_for(2, 20 << 20, 200)
    (1, 2)
    """
    return 1 if nbytes < records * _SMALL_RECORD else threads


@dataclass(eq=False)
class JobSequence(Generic[Job, Worker, Worked, Placed]):
    """A list of jobs whose turns run in order.

    Attributes:
        jobs: are taken one by one, by one thread at a time.
        work: in parallel; must not depend on other jobs.
        turn: one at a time, in the order of ``jobs``.
        land: in parallel, after the turn.
        done: one at a time, after landing, in any order (progress).
        finish: once, when all jobs have ended.
        ahead: without ``land``, how many jobs may wait for their turn while their threads go on;
            with 0 each thread waits. Then a thread that the system suspends does not block the
            others.
        most_threads: how many threads may work for it at the same time.
    """

    jobs: Iterator[Job]
    work: Callable[[Worker, Job], Worked]
    turn: Callable[[Job, Worked], Placed]
    land: Callable[[Worker, Placed], None] | None = None
    done: Callable[[Job], None] | None = None
    finish: Callable[[], None] | None = None
    ahead: int = 0
    most_threads: int = _MOST_THREADS
    #: The rest belongs to the pool. ``lock`` guards the turns, the pool's own lock the counts.
    lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    waiting: dict[int, tuple[Job, Worked]] = field(default_factory=dict, init=False)
    threads: int = field(default=0, init=False)
    taken: int = field(default=0, init=False)
    turned: int = field(default=0, init=False)
    ended: int = field(default=0, init=False)
    exhausted: bool = field(default=False, init=False)


def run_ordered(
    jobs: Iterable[Job],
    *,
    threads: int,
    worker: Callable[[], Worker],
    work: Callable[[Worker, Job], Worked],
    turn: Callable[[Job, Worked], Placed],
    land: Callable[[Worker, Placed], None] | None = None,
    done: Callable[[Job], None] | None = None,
    ahead: int = 0,
) -> None:
    """:func:`run_sequences` for one sequence; the arguments are those of :class:`JobSequence`."""
    sequence = JobSequence(iter(jobs), work, turn, land, done, None, ahead, max(1, threads))
    run_sequences([sequence], threads=threads, worker=worker)


def run_all(jobs: Iterable[Job], act: Callable[[Job], object], *, threads: int) -> None:
    """Call ``act`` for each job, on several threads. The first error stops all and is raised."""
    run_ordered(
        jobs,
        threads=threads,
        worker=lambda: None,
        work=lambda _, job: act(job),
        turn=lambda _, nothing: nothing,
        ahead=sys.maxsize,
    )


def run_sequences(
    sequences: Iterable[JobSequence[Any, Worker, Any, Any]],
    *,
    threads: int,
    worker: Callable[[], Worker],
) -> None:
    """Run all jobs of all sequences. The first error stops them all and is raised.

    Each thread joins the sequence that has the fewest threads. So threads keep to sequences of
    their own, as long as there are enough, and share the last ones.

    Args:
        sequences: are taken one by one. At most ``threads`` of them have jobs left at a time.
        worker: makes what one thread owns (buffers, codecs).
    """
    _Pool(iter(sequences), max(1, threads), worker).run()


class _PoolThread:
    """One thread of a pool. It tells the pool whether to wait for it.

    The thread first marks that it has begun, then checks that the pool still exists. The pool first
    removes itself, then checks whether the thread has begun. So one of them sees the other.
    """

    __slots__ = ("begun", "over", "pool", "thread")

    def __init__(self, pool: _Pool[Any]) -> None:
        self.pool: _Pool[Any] | None = pool
        self.begun = False
        self.over = Event()
        self.thread: threading.Thread | None = None

    def run(self) -> None:
        """What the thread runs."""
        self.begun = True
        pool = self.pool
        try:
            if pool is not None:
                pool.work()
        finally:
            pool = None
            # Directly at first: a call may fail where there is no memory.
            self.over.is_set = True
            self.over.set()

    def wait(self) -> None:
        """Wait until the thread has ended, or will do nothing."""
        self.pool = None
        late = time.monotonic() + _PATIENCE
        while not self.over.is_set and (
            self.begun or (self.thread is not None and time.monotonic() < late)
        ):
            self.over.wait(_LOOK)
        if self.begun and self.thread is not None:
            self.thread.join(timeout=_PATIENCE)


class _Pool(Generic[Worker]):
    """One call of :func:`run_sequences`."""

    def __init__(
        self,
        sequences: Iterator[JobSequence[Any, Worker, Any, Any]],
        threads: int,
        worker: Callable[[], Worker],
    ) -> None:
        self._sequences = sequences
        self._count = threads
        self._worker = worker
        self._threads: list[_PoolThread] = []
        self._lock = threading.Lock()
        #: Sequences that have jobs left.
        self._open: list[JobSequence[Any, Worker, Any, Any]] = []
        self._all_opened = False
        self._unfinished = 0
        #: Threads that wait for a turn.
        self._sleeping: list[Event] = []
        self._error: BaseException | None = None
        self._stopped = False

    def run(self) -> None:
        """Run all jobs. When this ends, however it does, no thread works on them any more."""
        started = False
        while True:
            try:
                if not started:
                    started = True
                    self._start(self._count - 1)
                    self.work()
                for thread in self._threads:
                    thread.wait()
                break
            except BaseException as error:
                # A Ctrl-C, for example. Wait for the other threads all the same: they write to
                # files that the caller is about to remove.
                self._fail(error)
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None
        if self._unfinished or not self._all_opened:
            # Every way in which a thread can end is handled above. A commit relies on it, so it is
            # checked here as well.
            raise MemoryError("a thread ended before its work was done")

    def _start(self, count: int) -> None:
        for number in range(count):
            thread = _PoolThread(self)
            self._threads.append(thread)
            try:
                thread.thread = start_thread(thread.run, f"jsonckpt-{number + 1}", daemon=True)
            except (RuntimeError, MemoryError):
                # The system has no more threads, or the interpreter is exiting (from Python 3.12 on
                # it then starts no thread for a background save). The existing threads do the work.
                return

    def work(self) -> None:
        """Work until there are no more jobs, or the pool has been stopped."""
        try:
            own = self._worker()
            while (taken := self._take()) is not None:
                sequence, number, job = taken
                if number is None or self._do(own, sequence, number, job):
                    if sequence.finish is not None:
                        sequence.finish()
                    with self._lock:
                        self._unfinished -= 1
                del sequence, number, job, taken
        except BaseException as error:
            # Carried to the calling thread, which raises it.
            self._fail(error)
            self._wake()

    def _take(self) -> tuple[JobSequence[Any, Worker, Any, Any], int | None, Any] | None:
        """The next job and its number. ``None`` means that a sequence needs only its finish."""
        with self._lock:
            while not self._stopped:
                sequence = self._choose()
                if sequence is None:
                    return None
                for job in sequence.jobs:
                    sequence.taken += 1
                    sequence.threads += 1
                    return sequence, sequence.taken - 1, job
                sequence.exhausted = True
                self._open.remove(sequence)
                if sequence.ended == sequence.taken:
                    return sequence, None, None
        return None

    def _choose(self) -> JobSequence[Any, Worker, Any, Any] | None:
        if len(self._open) < self._count and not self._all_opened:
            opened = next(self._sequences, None)
            if opened is None:
                self._all_opened = True
            else:
                self._unfinished += 1
                self._open.append(opened)
        free = [sequence for sequence in self._open if sequence.threads < sequence.most_threads]
        return min(free, key=lambda sequence: sequence.threads, default=None)

    def _do(
        self, own: Worker, sequence: JobSequence[Any, Worker, Any, Any], number: int, job: Any
    ) -> bool:
        """One job, from its work to its end. Returns whether it was the last of its sequence.

        A separate method, so that nothing of a job stays alive during the next one.
        """
        worked = sequence.work(own, job)
        event: Event | None = None
        while True:
            with sequence.lock:
                if self._stopped:
                    return False
                if number <= sequence.turned + sequence.ahead:
                    sequence.waiting[number] = job, worked
                    while (ready := sequence.waiting.pop(sequence.turned, None)) is not None:
                        placed = sequence.turn(*ready)
                        sequence.turned += 1
                    break
                if event is None or event.is_set:
                    event = Event()
                    with self._lock:
                        self._sleeping.append(event)
            event.wait(_LOOK)
        if self._sleeping:
            self._wake()
        if sequence.land is not None:
            sequence.land(own, placed)
        with self._lock:
            if sequence.done is not None:
                sequence.done(job)
            sequence.threads -= 1
            sequence.ended += 1
            return sequence.exhausted and sequence.ended == sequence.taken

    def _fail(self, error: BaseException) -> None:
        # Storing these needs no memory. A call may need some.
        if self._error is None:
            self._error = error
        self._stopped = True

    def _wake(self) -> None:
        with self._lock:
            sleeping, self._sleeping = self._sleeping, []
        for event in sleeping:
            event.set()


class CancelToken:
    """Whether a save may still be cancelled. The commit cannot be undone, so it ends this."""

    def __init__(self) -> None:
        # Reentrant: a signal handler may cancel while its own thread holds the lock.
        self._lock = threading.RLock()
        self._cancelled = False
        self._closed = False

    def check(self) -> None:
        """Call this now and then.

        Raises:
            SaveCancelledError: it was cancelled.
        """
        if self._cancelled:
            raise SaveCancelledError(
                "the save was cancelled", hint="What was at its path before is untouched."
            )

    def close(self) -> None:
        """Call this right before the commit: after it nobody can cancel.

        Raises:
            SaveCancelledError: it was cancelled.
        """
        with self._lock:
            self.check()
            self._closed = True

    def cancel(self) -> bool:
        """Ask the save to stop. Returns ``False`` when it is too late."""
        with self._lock:
            self._cancelled = self._cancelled or not self._closed
            return self._cancelled
