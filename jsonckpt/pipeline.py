"""Runs jobs on several threads in a fixed order. Only ``background`` has threads besides.

Each job is *worked* (in parallel), then has its *turn* (one at a time, in the order of the jobs),
then may be *landed* (in parallel again). A save encodes, then learns where its bytes go, then
writes them; a load reads and decodes, then checks the text around the payloads. At most one job per
thread is in flight, so memory is bounded by the number of threads times the size of a job.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

__all__ = ["Lane", "default_threads", "run_lanes", "run_ordered", "threads_for"]

Job = TypeVar("Job")
Worker = TypeVar("Worker")
Worked = TypeVar("Worked")
Placed = TypeVar("Placed")

_MOST_THREADS = 8
_SMALL_RECORD = 16 << 10


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
        """From now on none begins to take part in ``run``."""
        with self._lock:
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
        self.helpers = 0
        self._closed = False
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
        self._turns = threading.Condition()
        self._taken = 0
        self._next_turn = 0
        self._error: BaseException | None = None
        self._stopped = False

    def run(self, threads: int) -> None:
        pool = [
            threading.Thread(target=self._loop, name=f"jsonckpt-{number}", daemon=True)
            for number in range(threads)
        ]
        try:
            started = self._start(pool)
            if not started:
                self._loop()
            for thread in started:
                # A bare join() cannot be interrupted on every platform.
                while thread.is_alive():
                    thread.join(timeout=1.0)
        except BaseException:
            self._stop(None)
            for thread in pool:
                if thread.ident is not None:
                    thread.join()
            raise
        self._raise()

    def lead(self, lane: Lane) -> None:
        """Run all jobs on this thread, and on those that come to help."""
        lane.open(self)
        self._loop()
        lane.close(self)
        with self._turns:
            self._closed = True
            while self.helpers:
                self._turns.wait()
        self._raise()

    def help(self) -> None:
        """Take part in a run that another thread leads; its errors are raised there."""
        with self._turns:
            if self._closed:
                return
            self.helpers += 1
        self._loop()
        with self._turns:
            self.helpers -= 1
            self._turns.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None

    def _start(self, pool: list[threading.Thread]) -> list[threading.Thread]:
        for number, thread in enumerate(pool):
            try:
                thread.start()
            except RuntimeError:
                # The system has no more, or the interpreter is about to exit (from Python 3.12 on
                # it then starts none for a save in the background). Those that there are will do.
                return pool[:number]
        return pool

    def check(self) -> None:
        """Raise when the run has been stopped."""
        if self._stopped:
            raise Stopped

    def _loop(self) -> None:
        try:
            own = self._worker()
            while (taken := self._next_job()) is not None:
                if not self._one(own, *taken):
                    return
            del own  # buffers, which are not needed while helping
            if self._idle is not None:
                self._idle()
        except BaseException as error:
            # Carried to the caller's thread, which raises it.
            self._stop(error)

    def _one(self, own: Worker, number: int, job: Job) -> bool:
        """One job from its work to its end. A method of its own, so that nothing of it is kept
        while the next one is worked. ``False``: the run has been stopped."""
        worked = self._work(own, job)
        with self._turns:
            while number > self._next_turn + self._ahead and not self._stopped:
                self._turns.wait()
            if self._stopped:
                return False
            self._waiting[number] = job, worked
            while (ready := self._waiting.pop(self._next_turn, None)) is not None:
                placed = self._turn(*ready)
                self._next_turn += 1
            self._turns.notify_all()
        if self._land is not None:
            self._land(own, placed)
        if self._done is not None:
            with self._take:
                self._done(job)
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

    def _stop(self, error: BaseException | None) -> None:
        with self._turns:
            if self._error is None:
                self._error = error
            self._stopped, self.has_jobs = True, False
            self._turns.notify_all()
