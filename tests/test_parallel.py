"""Jobs in order on several threads, and lanes side by side."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from jsonckpt._src.parallel import Lane, run_lanes, run_ordered


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


def test_lanes_give_results_in_order() -> None:
    def work(job: int, lane: Lane) -> int:
        time.sleep(0.01 * (3 - job))
        lane.check()
        return job * 10

    assert run_lanes([0, 1, 2], work, threads=3) == [0, 10, 20]
    assert run_lanes([], work, threads=1) == []


def test_a_failing_lane_stops_the_others_at_their_next_check() -> None:
    checks = 0

    def work(job: int, lane: Lane) -> None:
        nonlocal checks
        if job == 1:
            raise ZeroDivisionError("lane 1")
        for _ in range(10_000):
            time.sleep(0.001)
            checks += 1
            lane.check()

    began = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="lane 1"):
        run_lanes([0, 1], work, threads=2)
    assert checks < 1_000
    assert time.monotonic() - began < 5


def _short_and_long(
    on_done: Any = None, worker: Any = object, threads: int = 2
) -> dict[int, set[int]]:
    """Two lanes, of which one has much more to do; the threads that worked for each."""
    turns: dict[int, list[int]] = {0: [], 1: []}
    workers: dict[int, set[int]] = {0: set(), 1: set()}
    landed: list[None] = []

    def work(number: int, lane: Lane) -> None:
        def one(_: object, job: int) -> int:
            workers[number].add(threading.get_ident())
            time.sleep(0.002 if number else 0.0)
            return job

        def done(job: int) -> None:
            lane.check()
            if on_done is not None:
                on_done(number, job)

        run_ordered(
            range(100 if number else 3),
            threads=1,
            worker=worker,
            work=one,
            turn=lambda _, worked: turns[number].append(worked),
            land=lambda _, placed: landed.append(placed),
            done=done,
            lane=lane,
        )
        assert turns[number] == list(range(100 if number else 3))

    run_lanes([0, 1], work, threads=threads)
    assert len(landed) == 103
    return workers


def test_a_lane_that_is_done_helps_the_others_in_their_order() -> None:
    workers = _short_and_long()
    assert len(workers[1]) == 2
    assert not [t for t in threading.enumerate() if t.name.startswith("jsonckpt-")]


def test_one_lane_has_no_help() -> None:
    workers = _short_and_long(threads=1)
    assert len(workers[0] | workers[1]) == 1


def test_each_helper_has_a_worker_of_its_own() -> None:
    made: list[int] = []
    _short_and_long(worker=lambda: made.append(threading.get_ident()))
    assert len(made) == 3
    assert len(set(made)) == 2


def test_an_error_while_helping_is_raised_once_and_stops_all() -> None:
    owners: list[int] = []

    def fail(number: int, job: int) -> None:
        owners.append(threading.get_ident())
        if number == 1 and len(set(owners)) == 2 and job > 20:
            raise ZeroDivisionError("late")

    with pytest.raises(ZeroDivisionError, match="late"):
        _short_and_long(fail)
    assert not [t for t in threading.enumerate() if t.name.startswith("jsonckpt-")]


def test_a_helper_that_cannot_get_its_memory_fails_the_run() -> None:
    made: list[int] = []

    def worker() -> None:
        made.append(1)
        if len(made) == 3:
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
    assert run_lanes(range(20), lambda job, _: job * 2, threads=3) == list(range(0, 40, 2))
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

    def fails(job: int, _: object) -> None:
        if job == 7:
            raise ValueError("seven")

    with pytest.raises(ValueError, match="seven"):
        run_lanes(range(20), fails, threads=3)
    assert len(started) == most
