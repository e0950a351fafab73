"""Cancels a save, which is possible until its commit."""

from __future__ import annotations

import threading

from ..errors import SaveCancelledError


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
