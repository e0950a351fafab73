"""Runs numbered trials in forked children, so that a crash, a hang or a bomb is just a result.

A child does some hundreds of trials and ends. The number of its current trial is in shared memory.
If the child dies, that trial has killed it, and the next child continues after it.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import json
import mmap
import os
import resource
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import torch

from tools.reliability.common import BAD

#: Processor seconds of one trial. The kernel ends a child that takes more.
MOST_SECONDS = 2.0
#: Wall-clock seconds without progress, for a child that waits for ever.
_PATIENCE = 120.0
#: Address space beyond that of the process at the fork.
_EXTRA_BYTES = 2 << 30
_BATCH = 500

Trial = Callable[[int, Path], str]


@dataclass
class Tally:
    """The results of the trials.

    Attributes:
        verdicts: the count of each verdict.
        failures: number and verdict of each trial that failed.
    """

    verdicts: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    @property
    def trials(self) -> int:
        """The number of trials."""
        return sum(self.verdicts.values())

    def add(self, other: Tally) -> None:
        """Add another one."""
        self.verdicts.update(other.verdicts)
        self.failures += other.failures

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self.verdicts.most_common())
        return f"{self.trials} trials: {counts or 'none'}; {len(self.failures)} failures"


def run_trials(
    trial: Trial,
    numbers: Sequence[int],
    directory: Path,
    *,
    workers: int = 1,
    batch: int = _BATCH,
    seconds: float | None = None,
) -> Tally:
    """Run ``trial(number, folder)`` for each number.

    Args:
        trial: returns a verdict. A verdict that begins with :data:`BAD` is a failure, and so is an
            exception.
        numbers: the trials.
        directory: each worker has its own folder in it.
        workers: children at once.
        batch: trials of one child.
        seconds: begin no more batches after this time.
    """
    tally = Tally()
    began = time.monotonic()
    waiting = collections.deque(
        range(start, min(start + batch, len(numbers))) for start in range(0, len(numbers), batch)
    )
    running: list[_Child] = []
    free = list(range(workers))
    try:
        while waiting or running:
            late = seconds is not None and time.monotonic() - began > seconds
            if late:
                waiting.clear()
            while waiting and free:
                slot = free.pop()
                folder = directory / f"worker-{slot}"
                folder.mkdir(exist_ok=True)
                running.append(_Child(trial, numbers, waiting.popleft(), folder, slot))
            ready = select.select([child.pipe for child in running], [], [], 1.0)[0]
            for child in list(running):
                if child.pipe in ready and not child.read(tally):
                    rest = child.finish(tally)
                    running.remove(child)
                    free.append(child.slot)
                    if rest:
                        waiting.appendleft(rest)
                else:
                    child.watch()
    finally:
        for child in running:
            child.kill()
    return tally


def _confine() -> None:
    """Limit the resources of this process, a child."""
    torch.set_num_threads(1)
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _EXTRA_BYTES,) * 2)


def _timed(call: Callable[[], str]) -> str:
    """The verdict of a call. An exception is a verdict, too. The kernel ends a call that hangs."""
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        verdict = call()
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        verdict = f"{BAD}{type(error).__name__} at {place}: {error}"[:600]
    signal.setitimer(signal.ITIMER_PROF, 0)
    return verdict


def _death(status: int, *, hung: bool) -> str:
    """The verdict from the end of a child."""
    code = os.waitstatus_to_exitcode(status)
    if hung:
        return f"{BAD}hangs: nothing for {_PATIENCE:.0f} s"
    if code == -signal.SIGPROF:
        return f"{BAD}hangs: over {MOST_SECONDS} s of the processor"
    return f"{BAD}crash: the process ended with {code}"


class _Child:
    """One forked process, and its part of the trials."""

    def __init__(
        self, trial: Trial, numbers: Sequence[int], part: range, folder: Path, slot: int
    ) -> None:
        self.slot = slot
        self._numbers = numbers
        self._part = part
        self._at = mmap.mmap(-1, 8)
        self._set(part.start)
        self._seen = part.start
        self._looked = time.monotonic()
        self._waited = 0.0
        self._text = b""
        self._hung = False
        self.pipe, writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                os.close(self.pipe)
                self._work(trial, folder, writing)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writing)

    def _set(self, position: int) -> None:
        struct.pack_into("<q", self._at, 0, position)

    def _get(self) -> int:
        position: int = struct.unpack_from("<q", self._at, 0)[0]
        return position

    def _work(self, trial: Trial, folder: Path, writing: int) -> None:
        _confine()
        with os.fdopen(writing, "w", buffering=1) as out:
            for position in self._part:
                self._set(position)
                verdict = _timed(partial(trial, self._numbers[position], folder))
                if verdict.startswith(BAD):
                    # Failures are reported at once, because a later trial may kill this process.
                    out.write(json.dumps([self._numbers[position], verdict]) + "\n")
                    verdict = "failed"
                out.write(json.dumps({verdict: 1}) + "\n")
            self._set(self._part.stop)

    def read(self, tally: Tally) -> bool:
        """Read its reports. Returns False if it has ended."""
        data = os.read(self.pipe, 1 << 16)
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            found = json.loads(line)
            if isinstance(found, list):
                tally.failures.append((found[0], found[1]))
            else:
                tally.verdicts.update(found)
        return bool(data)

    def watch(self) -> None:
        """End it if it makes no progress."""
        position, now = self._get(), time.monotonic()
        # This process may have been suspended for a while, together with the child.
        waited, self._looked = min(now - self._looked, 2.0), now
        self._waited = 0.0 if position != self._seen else self._waited + waited
        self._seen = position
        if self._waited > _PATIENCE:
            self._hung = True
            os.kill(self._pid, signal.SIGKILL)

    def finish(self, tally: Tally) -> range | None:
        """It has ended. Returns what is left of its part if a trial has killed it."""
        os.close(self.pipe)
        _, status = os.waitpid(self._pid, 0)
        position = self._get()
        if position >= self._part.stop and os.waitstatus_to_exitcode(status) == 0:
            return None
        what = _death(status, hung=self._hung)
        tally.failures.append((self._numbers[min(position, len(self._numbers) - 1)], what))
        tally.verdicts["killed"] += 1
        return range(position + 1, self._part.stop) if position + 1 < self._part.stop else None

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.close(self.pipe)
        os.waitpid(self._pid, 0)


class Answerer:
    """Answers questions in a forked child. If a question kills the child, a new one replaces it.

    For callers whose questions depend on the answers, like Hypothesis when it shrinks an example. A
    crash is a verdict like any other, and the caller still has the question.

    Args:
        answer: ``answer(question, folder)`` gives a verdict, see :func:`run_trials`.
        folder: a directory for the child.
    """

    def __init__(self, answer: Callable[[Any, Path], str], folder: Path) -> None:
        self._answer = answer
        self._folder = folder
        self._pid = 0
        self._asked = 0
        self._line: Connection[Any, Any] | None = None

    def ask(self, question: Any) -> str:
        """The verdict on a question, which must be picklable."""
        if self._asked >= _BATCH:
            self.close()
        if self._line is None:
            self._fork()
        assert self._line is not None
        self._asked += 1
        hung = False
        try:
            self._line.send(question)
            # In short waits: this process may have been suspended for a while, with the child.
            if any(self._line.poll(1.0) for _ in range(int(_PATIENCE))):
                verdict: str = self._line.recv()
                return verdict
            hung = True
            os.kill(self._pid, signal.SIGKILL)
        except (EOFError, ConnectionError):
            pass  # it is dead, or will be soon
        return _death(self._end(), hung=hung)

    def _fork(self) -> None:
        self._line, other = Pipe()
        self._asked = 0
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._line.close()
                _confine()
                while True:
                    try:
                        question = other.recv()
                    except EOFError:
                        break
                    other.send(_timed(partial(self._answer, question, self._folder)))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            finally:
                os._exit(0)
        other.close()

    def _end(self) -> int:
        """Wait for the end of the child. Returns its status."""
        assert self._line is not None
        self._line.close()
        self._line = None
        return os.waitpid(self._pid, 0)[1]

    def close(self) -> None:
        """End the child, whatever it does."""
        if self._line is not None:
            os.kill(self._pid, signal.SIGKILL)
            self._end()

    def __enter__(self) -> Answerer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
