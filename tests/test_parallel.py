"""Jobs in order on several threads, and several sequences of them at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from jsonckpt._src.parallel import JobSequence, run_all, run_ordered, run_sequences


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_turns_come_in_order_whatever_the_work_takes(threads: int) -> None:
    order: list[int] = []
    landed: list[int] = []

    def work(_: object, job: int) -> int:
        time.sleep(0.002 * (job % 3))
        return job * job

    def turn(job: int, worked: int) -> int:
        assert worked == job * job
        order.append(job)
        return worked

    run_ordered(
        range(30),
        threads=threads,
        worker=object,
        work=work,
        turn=turn,
        land=lambda _, placed: landed.append(placed),
    )
    assert order == list(range(30))
    assert sorted(landed) == [job * job for job in range(30)]


def test_each_thread_has_a_worker_of_its_own() -> None:
    used: dict[int, set[int]] = {}

    def work(worker: list[Any], _: int) -> None:
        used.setdefault(id(worker), set()).add(threading.get_ident())
        time.sleep(0.001)

    workers: list[list[Any]] = []

    def make() -> list[Any]:
        workers.append([])
        return workers[-1]

    run_ordered(range(40), threads=3, worker=make, work=work, turn=lambda job, _: job)
    assert len(workers) == 3
    assert all(len(threads) == 1 for threads in used.values())


@pytest.mark.parametrize("stage", ["work", "turn", "land", "worker", "done"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_stops_all_and_is_raised(stage: str, threads: int) -> None:
    def fail(here: str, job: int) -> None:
        if here == stage and job >= 5:
            raise ZeroDivisionError(here)

    turned: list[int] = []

    def turn(job: int, _: object) -> int:
        fail("turn", job)
        turned.append(job)
        return job

    def worker() -> None:
        fail("worker", 5)

    with pytest.raises(ZeroDivisionError, match=stage):
        run_ordered(
            range(1000),
            threads=threads,
            worker=worker,
            work=lambda _, job: fail("work", job),
            turn=turn,
            land=lambda _, job: fail("land", job),
            done=lambda job: fail("done", job),
        )
    assert turned == list(range(len(turned)))
    assert len(turned) < 20
    assert not [t for t in threading.enumerate() if t.name.startswith("jsonckpt-")]


def test_an_error_of_the_source_of_jobs_is_raised() -> None:
    def jobs() -> Any:
        yield 1
        raise KeyError("jobs")

    with pytest.raises(KeyError, match="jobs"):
        run_ordered(
            jobs(), threads=2, worker=object, work=lambda _, job: job, turn=lambda job, _: job
        )


def test_all_jobs_in_any_order() -> None:
    done: list[int] = []
    run_all(range(50), done.append, threads=3)
    assert sorted(done) == list(range(50))
    run_all([], done.append, threads=1)


def test_a_failing_sequence_stops_the_others() -> None:
    worked: list[int] = []

    def work(_: object, job: int) -> int:
        if job < 0:
            raise ZeroDivisionError("sequence 1")
        time.sleep(0.001)
        worked.append(job)
        return job

    jobs = [iter(range(10_000)), iter([-1])]
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="sequence 1"):
        run_sequences(
            [JobSequence(one, work, turn=lambda job, _: job) for one in jobs],
            threads=2,
            worker=object,
        )
    assert len(worked) < 1_000
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_sequences_keep_their_order_and_finish_once(threads: int, count: int) -> None:
    turns: list[list[int]] = [[] for _ in range(count)]
    landed: list[int] = []
    finished: list[int] = []
    opened: list[int] = []

    def work(_: object, job: int) -> int:
        time.sleep(0.001 * (job % 3))
        return job

    def sequences() -> Iterator[JobSequence[int, object, int, int]]:
        for number in range(count):
            # No more have jobs left than there are threads.
            assert number - len(finished) <= 2 * threads
            opened.append(number)

            def finish(number: int = number) -> None:
                assert turns[number] == list(range(5 * number))
                finished.append(number)

            def turn(job: int, worked: int, number: int = number) -> int:
                turns[number].append(job)
                return worked

            yield JobSequence(
                iter(range(5 * number)),
                work=work,
                turn=turn,
                land=lambda _, placed: landed.append(placed),
                finish=finish,
            )

    run_sequences(sequences(), threads=threads, worker=object)
    assert opened == list(range(count))
    assert sorted(finished) == opened
    assert len(landed) == sum(5 * number for number in range(count))
    assert not [t for t in threading.enumerate() if t.name.startswith("jsonckpt-")]


def _short_and_long(
    on_done: Any = None, worker: Any = object, threads: int = 2, most: int = 8
) -> dict[int, set[int]]:
    """Two sequences, of which one has much more to do; the threads that worked for each."""
    turns: dict[int, list[int]] = {0: [], 1: []}
    workers: dict[int, set[int]] = {0: set(), 1: set()}
    landed: list[None] = []

    def sequence(number: int) -> JobSequence[int, Any, int, None]:
        def one(_: object, job: int) -> int:
            workers[number].add(threading.get_ident())
            time.sleep(0.002 if number else 0.0)
            return job

        return JobSequence(
            iter(range(100 if number else 3)),
            work=one,
            turn=lambda _, worked: turns[number].append(worked),
            land=lambda _, placed: landed.append(placed),
            done=None if on_done is None else lambda job: on_done(number, job),
            most_threads=most,
        )

    run_sequences([sequence(0), sequence(1)], threads=threads, worker=worker)
    assert len(landed) == 103
    assert turns == {0: list(range(3)), 1: list(range(100))}
    return workers


def test_a_thread_without_work_joins_another_sequence() -> None:
    workers = _short_and_long()
    assert len(workers[1]) == 2
    assert not [t for t in threading.enumerate() if t.name.startswith("jsonckpt-")]


def test_one_thread_does_all() -> None:
    workers = _short_and_long(threads=1)
    assert len(workers[0] | workers[1]) == 1


def test_a_sequence_for_one_thread_at_a_time() -> None:
    working: list[int] = []

    def work(_: object, job: int) -> int:
        working.append(job)
        assert len(working) == 1
        time.sleep(0.001)
        working.pop()
        return job

    sequence = JobSequence(iter(range(20)), work, turn=lambda job, _: job, most_threads=1)
    run_sequences([sequence], threads=3, worker=object)


def test_each_thread_makes_its_worker_once() -> None:
    made: list[int] = []
    _short_and_long(worker=lambda: made.append(threading.get_ident()))
    assert len(made) == 2
    assert len(set(made)) == 2


def test_an_error_in_a_shared_sequence_is_raised_once_and_stops_all() -> None:
    owners: list[int] = []

    def fail(number: int, job: int) -> None:
        owners.append(threading.get_ident())
        if number == 1 and len(set(owners)) == 2 and job > 20:
            raise ZeroDivisionError("late")

    with pytest.raises(ZeroDivisionError, match="late"):
        _short_and_long(fail)
    assert not [t for t in threading.enumerate() if t.name.startswith("jsonckpt-")]


def test_an_error_in_a_finish_is_raised() -> None:
    def finish() -> None:
        raise ZeroDivisionError("finish")

    def work(_: object, job: int) -> int:
        return job

    sequence = JobSequence(iter([1]), work, turn=lambda job, _: job, finish=finish)
    with pytest.raises(ZeroDivisionError, match="finish"):
        run_sequences([sequence], threads=2, worker=object)


def test_a_thread_that_cannot_get_its_memory_fails_the_run() -> None:
    made: list[int] = []

    def worker() -> None:
        made.append(1)
        if len(made) == 2:
            raise MemoryError("no buffers")

    with pytest.raises(MemoryError, match="no buffers"):
        _short_and_long(worker=worker)


@pytest.mark.parametrize("most", [0, 1, 2])
def test_fewer_threads_than_wanted(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def limited(thread: threading.Thread) -> None:
        if len(started) == most:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    done: list[int] = []
    run_all(range(20), done.append, threads=3)
    assert sorted(done) == list(range(20))
    started.clear()
    turns: list[int] = []
    run_ordered(
        range(20),
        threads=3,
        worker=object,
        work=lambda _, job: job,
        turn=lambda _, worked: turns.append(worked),
    )
    assert turns == list(range(20))
    started.clear()

    def fails(job: int) -> None:
        if job == 7:
            raise ValueError("seven")

    with pytest.raises(ValueError, match="seven"):
        run_all(range(20), fails, threads=3)
    assert len(started) == most
