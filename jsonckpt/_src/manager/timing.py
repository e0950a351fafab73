"""When a save is due, and when a run must stop."""

from __future__ import annotations

import math
import re
import signal
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from ..errors import ArgumentError, quote
from ..training.deadline import Deadline
from .saved_step import SavedStep

_TIME = re.compile(r"(?:([0-9.]+)d)?(?:([0-9.]+)h)?(?:([0-9.]+)m)?(?:([0-9.]+)s)?")
_UNITS = (86_400, 3_600, 60, 1)
_MOST = 1e10
#: Seconds that the last save may take, while no save of this run has been timed.
_UNKNOWN = 60.0


def seconds_until(deadline: Any) -> float | None:
    """The argument ``deadline``, in seconds from now on; ``None`` for no deadline.

    Raises:
        ArgumentError: it is no time.

    >>> seconds_until("11h30m"), seconds_until("1d 12h"), seconds_until(90)
    (41400.0, 129600.0, 90.0)
    """
    if deadline is None:
        return None
    if isinstance(deadline, str):
        match = _TIME.fullmatch(deadline.replace(" ", "").lower())
        try:
            parts = [float(part) if part else 0.0 for part in match.groups()] if match else []
        except ValueError:
            parts = []
        if any(parts):
            deadline = sum(part * unit for part, unit in zip(parts, _UNITS, strict=True))
    elif isinstance(deadline, timedelta):
        deadline = deadline.total_seconds()
    elif isinstance(deadline, datetime):
        deadline = deadline.timestamp() - time.time()
    if type(deadline) not in (int, float) or not -_MOST < deadline < _MOST:
        raise ArgumentError(
            f"deadline is {quote(deadline)}, which is no time",
            hint="Write '11h30m', a number of seconds, a timedelta, or a datetime.",
        )
    return float(deadline)


class Timing:
    """Says at each step whether to save and whether to stop.

    Args:
        every_steps: a save is due when this many steps are full.
        every_minutes: a save is due when the last one is this old.
        deadline: seconds from now on, or ``None``.
        clock: a clock that never goes back, in seconds.
    """

    def __init__(
        self,
        every_steps: int | None,
        every_minutes: float | None,
        deadline: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every_steps = every_steps
        self._every_seconds = math.inf if every_minutes is None else every_minutes * 60
        self._clock = clock
        self._saved_at = clock()
        self._step: int | None = None
        self._stepped_at: float | None = None
        #: How long a step takes, and how long a save took.
        self._step_seconds = 0.0
        self._total = deadline
        self._save_seconds: float | None = None
        self._deadline = Deadline(deadline, signals=(signal.SIGTERM, signal.SIGINT), clock=clock)
        self._listens = False

    @property
    def reason(self) -> str | None:
        """Why the run must stop; ``None`` while it need not."""
        return self._deadline.reason

    def listen(self) -> None:
        """Handle signals from now on, in the main thread."""
        if not self._listens and self.reason is None:
            self._listens = True
            self._deadline.__enter__()

    def unlisten(self) -> None:
        """Put the old handlers back."""
        # Only the main thread can do that. A manager may be forgotten in another one.
        if self._listens and threading.current_thread() is threading.main_thread():
            self._listens = False
            self._deadline.__exit__(None, None, None)

    def resumed(self, saved: SavedStep) -> None:
        """Note where the run goes on, and how long that save took."""
        self._step = saved.step
        if saved.seconds is not None:
            self._save_seconds = saved.seconds

    def stepped(self, step: int) -> tuple[bool, bool]:
        """A step has ended. Whether a save is due, and whether the run must stop."""
        now = self._clock()
        if self._stepped_at is not None:
            self._step_seconds = now - self._stepped_at
        due = now - self._saved_at >= self._every_seconds
        if self._every_steps is not None:
            before = self._step
            if before is None:  # the first step: only a full number of steps counts
                due = due or (step > 0 and step % self._every_steps == 0)
            else:
                due = due or step // self._every_steps > before // self._every_steps
        self._step = step
        return due, self._deadline.reached(reserve=self._reserve())

    def _reserve(self) -> float:
        """Seconds that must be left: for two saves, and for the step that would come next."""
        saving = self._save_seconds
        if saving is None:
            saving = 0.0 if self._total is None else min(_UNKNOWN, self._total / 40)
        return 2 * saving + self._step_seconds

    def saved(self, seconds: float) -> None:
        """Note that a save has ended, and how long it took."""
        self._save_seconds = seconds

    def done(self) -> None:
        """The manager returns to the loop. What it did is not a part of the next step."""
        self._stepped_at = self._clock()

    def save_begins(self) -> None:
        """The time to the next save counts from here."""
        self._saved_at = self._clock()
