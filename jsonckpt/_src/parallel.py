"""Runs jobs on several threads in a fixed order. Only ``background`` has threads besides.

Each job is *worked* (in parallel), then has its *turn* (one at a time, in the order of the jobs),
then may be *landed* (in parallel again). A save encodes, then learns where its bytes go, then
writes them; a load reads and decodes, then checks the text around the payloads. At most one job per
thread is in flight, so memory is bounded by the number of threads times the size of a job.

The calling thread works, too, and waits only for threads that have begun. So a thread that cannot
be started, or dies of a lack of memory before its first line, holds up nobody. Signal handlers run
and raise in the main thread between any two calls, so nothing here relies on ``Condition``, which
an interrupt may leave locked: there are plain locks in ``with`` statements, and :class:`Latch`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from .errors import ArgumentError, quote

Job = TypeVar("Job")
Worker = TypeVar("Worker")
Worked = TypeVar("Worked")
Placed = TypeVar("Placed")
_MOST_THREADS = 8
_SMALL_RECORD = 16 << 10
#: Seconds after which a thread that waits looks for itself: a signal may have lost it a wake-up.
_LOOK = 0.1
#: Seconds that a started thread has to begin before nobody waits for it any more.
_PATIENCE = 1.0


class Latch:
    """It is shut, then open for ever. A handler may run, or raise, at any moment of a wait.

    Attributes:
        is_open: may also be set by itself, which needs no memory; who waits sees it soon.
    """

    __slots__ = ("_lock", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        """Let all pass; to be called by one thread."""
        self.is_open = True
        if self._lock.locked():
            self._lock.release()

    def wait(self, timeout: float) -> bool:
        """Wait so many seconds at most; whether it is open."""
        if not self.is_open and self._lock.acquire(timeout=timeout):
            self._lock.release()
        return self.is_open


class _Begun(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        del timeout
        return True


def start_thread(target: Callable[[], object], name: str, *, daemon: bool) -> threading.Thread:
    """Start a thread, and do not wait until it has begun.

    ``Thread.start`` waits for that, for ever where the new thread dies of a MemoryError first. The
    event that it waits for is replaced by one that lets it pass. (Should a later Python call it
    otherwise, it waits as it always did.)

    Raises:
        RuntimeError, MemoryError: the system has no more.
    """
    thread = threading.Thread(target=target, name=name, daemon=daemon)
    thread._started = _Begun()  # type: ignore[attr-defined]
    thread.start()
    return thread


def default_threads() -> int:
    """As many threads as processors may be used, up to 8.

    >>> default_threads() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    return min(_MOST_THREADS, os.cpu_count() or 1)


def threads_for(threads: int, nbytes: int, records: int) -> int:
    """How many of the threads that are allowed are of use for so many bytes in so many records.

    Small records cost Python more than they cost the codecs, and Python runs on one thread at a
    time: a second one only takes turns with the first.

    >>> threads_for(2, 20 << 20, 20_000), threads_for(2, 20 << 20, 200)
    (1, 2)
    """
    return 1 if nbytes < records * _SMALL_RECORD else threads


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
    lane: Lane | None = None,
) -> None:
    """Run all jobs; the first error stops them all and is raised.

    Args:
        worker: makes what one thread owns (buffers, codecs).
        work: in parallel; must not depend on other jobs.
        turn: one at a time, in the order of ``jobs``.
        land: in parallel, after the turn.
        done: one at a time, after landing, in any order (progress).
        ahead: without ``land``, how many worked jobs may wait for their turn while their threads go
            on; 0 lets each thread wait. A thread that the system has put aside then holds up
            nobody.
        lane: where ``threads`` is 1, the lane that this runs in: the threads of others that have
            nothing more to do take part.
    """
    if threads <= 1 and lane is not None and lane.has_others:
        _Run(iter(jobs), worker, work, turn, land, done).lead(lane)
        return
    if threads <= 1:
        own = worker()
        for job in jobs:
            placed = turn(job, work(own, job))
            if land is not None:
                land(own, placed)
            del placed  # not to be held while the next job is worked
            if done is not None:
                done(job)
        return
    _Run(iter(jobs), worker, work, turn, land, done, ahead if land is None else 0).run(threads)


class Stopped(Exception):
    """Another lane has failed; raised inside the lanes that still run, and never outside."""


class Lane:
    """What the work of all lanes has in common.

    Args:
        threads: how many lanes there are.
        check: raises when the run has been stopped.
    """

    def __init__(self, threads: int, check: Callable[[], None]) -> None:
        self.has_others = threads > 1
        self.check = check
        self._lock = threading.Lock()
        self._runs: list[_Run[Any, Any, Any, Any]] = []

    def open(self, run: _Run[Any, Any, Any, Any]) -> None:
        """From now on idle threads take part in ``run``."""
        with self._lock:
            self._runs.append(run)

    def close(self, run: _Run[Any, Any, Any, Any]) -> None:
        """From now on none finds ``run``."""
        with self._lock:
            if run in self._runs:
                self._runs.remove(run)

    def help(self) -> None:
        """Take part in what the others do, until there are no jobs to take."""
        while True:
            with self._lock:
                runs = [run for run in self._runs if run.has_jobs]
            if not runs:
                return
            min(runs, key=lambda run: run.helpers).help()


def run_lanes(
    jobs: Iterable[Job],
    work: Callable[[Job, Lane], Worked],
    *,
    threads: int,
) -> list[Worked]:
    """Run long jobs side by side; their results in the order of the jobs.

    Args:
        work: gets the lane. It should call its ``check`` now and then, which raises when another
            job has failed, and give it to :func:`run_ordered`: long jobs are of one size at best,
            not of one duration, and a thread that is done with its own helps the others.

    The first error stops all lanes and is raised.
    """
    results: list[Worked] = []
    runs: list[_Run[Job, None, Worked, None]] = []
    lane = Lane(threads, lambda: runs[0].check())
    run = _Run(
        iter(jobs),
        worker=lambda: None,
        work=lambda _, job: work(job, lane),
        turn=lambda _, worked: results.append(worked),
        land=None,
        done=None,
        idle=lane.help,
    )
    runs.append(run)
    try:
        run.run(threads)
    finally:
        # The run's own work refers to it: all that a save has held would wait for the collector.
        runs.clear()
    return results


class _Seat:
    """The part of one thread in a run, by which the run's leader knows whom to wait for.

    The thread says that it has begun and then looks whether there is still a run. The leader takes
    the run away and then looks whether the thread has begun. So one of them sees the other.
    """

    __slots__ = ("begun", "over", "run", "thread")

    def __init__(self, run: _Run[Any, Any, Any, Any]) -> None:
        self.run: _Run[Any, Any, Any, Any] | None = run
        self.begun = False
        self.over = Latch()
        self.thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        return self.begun and not self.over.is_open

    def take(self) -> None:
        """Take part in the run, if there still is one."""
        self.begun = True
        run = self.run
        try:
            if run is not None and not run.closed:
                run.loop()
        finally:
            run = None
            # By itself at first: a call may fail where there is no memory.
            self.over.is_open = True
            self.over.open()


class _Run(Generic[Job, Worker, Worked, Placed]):
    """One call of :func:`run_ordered` on several threads."""

    def __init__(
        self,
        jobs: Iterator[Job],
        worker: Callable[[], Worker],
        work: Callable[[Worker, Job], Worked],
        turn: Callable[[Job, Worked], Placed],
        land: Callable[[Worker, Placed], None] | None,
        done: Callable[[Job], None] | None,
        ahead: int = 0,
        idle: Callable[[], None] | None = None,
    ) -> None:
        self.has_jobs = True
        self.closed = False
        self._idle = idle
        self._ahead = ahead
        self._waiting: dict[int, tuple[Job, Worked]] = {}
        self._jobs = jobs
        self._worker = worker
        self._work = work
        self._turn = turn
        self._land = land
        self._done = done
        self._take = threading.Lock()
        self._turns = threading.Lock()
        self._sleeping: list[Latch] = []
        self._seats: list[_Seat] = []
        self._taken = 0
        self._next_turn = 0
        self._ended = 0
        self._error: BaseException | None = None
        self._stopped = False

    @property
    def helpers(self) -> int:
        """How many threads take part beside the leader."""
        return sum(seat.is_busy for seat in self._seats)

    def run(self, threads: int) -> None:
        """Run all jobs on this thread and on ``threads - 1`` others."""
        self._conduct(lambda: self._start(threads - 1))

    def lead(self, lane: Lane) -> None:
        """Run all jobs on this thread, and on those that come to help."""
        try:
            self._conduct(lambda: lane.open(self))
        finally:
            lane.close(self)

    def help(self) -> None:
        """Take part in a run that another thread leads; its errors are raised there."""
        seat = _Seat(self)
        self._seats.append(seat)
        seat.take()

    def check(self) -> None:
        """Raise when the run has been stopped."""
        if self._stopped:
            raise Stopped

    def _conduct(self, begin: Callable[[], None]) -> None:
        """Run all jobs; when this ends, however it does, no thread works on them any more."""
        begun = False
        while True:
            try:
                if not begun:
                    begun = True
                    begin()
                    self.loop()
                self._close()
                break
            except BaseException as error:
                # A Ctrl-C, wherever it came. The others are waited for all the same: they write to
                # files that the caller is about to remove.
                self._fail(error)
        self._raise()

    def _start(self, count: int) -> None:
        for number in range(count):
            seat = _Seat(self)
            self._seats.append(seat)
            try:
                seat.thread = start_thread(seat.take, f"jsonckpt-{number + 1}", daemon=True)
            except (RuntimeError, MemoryError):
                # The system has no more, or the interpreter is about to exit (from Python 3.12 on
                # it then starts none for a save in the background). Those that there are will do.
                return

    def _close(self) -> None:
        """From now on none begins to take part; wait for those that do."""
        self.closed = True
        for seat in self._seats:
            seat.run = None
            late = time.monotonic() + _PATIENCE
            while seat.is_busy or (seat.thread and not seat.begun and time.monotonic() < late):
                seat.over.wait(_LOOK)
            if seat.begun and seat.thread is not None:
                seat.thread.join(timeout=_PATIENCE)

    def _raise(self) -> None:
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None
        if self.has_jobs or not self._taken == self._next_turn == self._ended:
            # Each end of a thread is looked after. This must hold even if one was overlooked, for a
            # commit relies on it.
            raise MemoryError("a thread ended before its work was done")

    def loop(self) -> None:
        """Work until there are no more jobs, or the run has been stopped."""
        try:
            own = self._worker()
            while (taken := self._next_job()) is not None:
                if not self._one(own, *taken):
                    return
            del own  # buffers, which are not needed while helping
            if self._idle is not None:
                self._idle()
        except BaseException as error:
            # Carried to the leader's thread, which raises it. The facts first: to store them needs
            # no memory, and a call may need some.
            if self._error is None:
                self._error = error
            self._stopped, self.has_jobs = True, False
            self._wake()

    def _one(self, own: Worker, number: int, job: Job) -> bool:
        """One job from its work to its end. A method of its own, so that nothing of it is kept
        while the next one is worked. ``False``: the run has been stopped."""
        worked = self._work(own, job)
        latch: Latch | None = None
        while True:
            with self._turns:
                if self._stopped:
                    return False
                if number <= self._next_turn + self._ahead:
                    self._waiting[number] = job, worked
                    while (ready := self._waiting.pop(self._next_turn, None)) is not None:
                        placed = self._turn(*ready)
                        self._next_turn += 1
                    break
                if latch is None or latch.is_open:
                    latch = Latch()
                    self._sleeping.append(latch)
            latch.wait(_LOOK)
        if self._sleeping:
            self._wake()
        if self._land is not None:
            self._land(own, placed)
        with self._take:
            if self._done is not None:
                self._done(job)
            self._ended += 1
        return True

    def _next_job(self) -> tuple[int, Job] | None:
        with self._take:
            if self._stopped:
                return None
            for job in self._jobs:
                number = self._taken
                self._taken += 1
                return number, job
            self.has_jobs = False
            return None

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._stopped, self.has_jobs = True, False

    def _wake(self) -> None:
        with self._turns:
            sleeping, self._sleeping = self._sleeping, []
        for latch in sleeping:
            latch.open()


def thread_count(threads: int | None) -> int:
    """The argument ``threads`` of the face, checked."""
    if threads is None:
        return default_threads()
    if type(threads) is not int or threads < 1:
        raise ArgumentError(f"threads must be a positive integer or None, not {quote(threads)}")
    return threads
