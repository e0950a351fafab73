"""Processes that repeat one action and count its outcomes."""

from __future__ import annotations

import collections
import json
import os
import time
import traceback
from collections.abc import Callable

import torch

from tools.reliability.common import BAD


class Crew:
    """Forked processes. Start all, then :meth:`join`."""

    def __init__(self) -> None:
        self._running: list[tuple[int, int]] = []

    def start(self, action: Callable[[], str], seconds: float) -> int:
        """Repeat ``action`` for some time. It returns its outcome; an exception is a failure.

        Returns:
            The number of the process.
        """
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(reading)
                torch.set_num_threads(1)
                found = _repeat(action, seconds)
                with os.fdopen(writing, "w") as out:
                    json.dump(found, out)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writing)
        self._running.append((pid, reading))
        return pid

    def join(self) -> collections.Counter[str]:
        """Wait for all. Returns all outcomes."""
        total: collections.Counter[str] = collections.Counter()
        for pid, reading in self._running:
            with os.fdopen(reading) as said:
                text = said.read()
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            if code or not text:
                total[f"{BAD}a process ended with {code}"] += 1
            else:
                total.update(json.loads(text))
        self._running.clear()
        return total


def _repeat(action: Callable[[], str], seconds: float) -> collections.Counter[str]:
    found: collections.Counter[str] = collections.Counter()
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        try:
            found[action()] += 1
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            found[f"{BAD}{type(error).__name__} at {where.name}: {error}"[:400]] += 1
    return found
