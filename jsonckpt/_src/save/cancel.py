"""Cancelling a save, which is possible until its commit."""

from __future__ import annotations

import threading

from ..errors import SaveCancelledError


class CancelToken:
    """Whether a save may still be cancelled. The commit, which cannot be taken back, closes it."""

    def __init__(self) -> None:
        # Reentrant, because a signal handler may cancel while its own thread is in here.
        self._lock = threading.RLock()
        self._cancelled = False
        self._closed = False

    def check(self) -> None:
        """To be called now and then.

        Raises:
            SaveCancelledError: it was cancelled.
        """
        if self._cancelled:
            raise SaveCancelledError(
                "the save was cancelled", hint="What was at its path before is untouched."
            )

    def close(self) -> None:
        """To be called right before the commit: from now on nobody can cancel.

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
