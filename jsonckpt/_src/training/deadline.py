"""Tells a run when to save and stop: its time is up, or a signal came."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any

from ..errors import ArgumentError, quote


class Deadline:
    """When to save and stop: after a time, or on a signal.

    As a context manager it handles SIGTERM while the block runs. Only the main thread can do that;
    in another thread only the clock counts. A second SIGTERM acts as it would without this class,
    so a process that hangs can still be ended.

    Args:
        seconds: the time from now on; ``None`` for no limit.
        signals: the signals that ask for a stop.
        clock: a clock that never goes back, in seconds.

    >>> with Deadline(12 * 3600) as deadline:
    ...     deadline.reached(), deadline.reached(reserve=13 * 3600)
    (False, True)
    >>> deadline.reason
    'the time is up'
    """

    def __init__(
        self,
        seconds: float | None = None,
        *,
        signals: Sequence[signal.Signals] = (signal.SIGTERM,),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if seconds is not None and not (isinstance(seconds, int | float) and seconds == seconds):
            raise ArgumentError(f"seconds must be a number or None, not {quote(seconds)}")
        self._clock = clock
        self._end = float("inf") if seconds is None else clock() + seconds
        self._signals = tuple(signals)
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()
        #: Why :meth:`reached` is true; ``None`` while it is not.
        self.reason: str | None = None

    def reached(self, reserve: float = 0.0) -> bool:
        """Whether to save and stop now.

        Args:
            reserve: seconds to leave for the last save, e.g. twice the time of the previous save.
        """
        if self.reason is None and self._clock() + reserve >= self._end:
            self.reason = "the time is up"
        return self.reason is not None

    def __repr__(self) -> str:
        if self.reason is not None:
            return f"<Deadline: {self.reason}>"
        left = self._end - self._clock()
        return "<Deadline: no limit>" if left == float("inf") else f"<Deadline: {left:.0f} s left>"

    def __enter__(self) -> Deadline:
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number in list(self._previous):
            self._restore(number)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked worker. A Ctrl-C comes to it, too, and the run needs it until it stops.
            if number != signal.SIGINT:
                self._restore(number)
                os.kill(os.getpid(), number)
            return
        self.reason = f"{signal.Signals(number).name} was received"
        self._restore(number)

    def _restore(self, number: int) -> None:
        previous = self._previous.pop(number)
        # None: a handler that was not installed from Python. It cannot be put back.
        signal.signal(number, signal.SIG_DFL if previous is None else previous)
