"""A lock on a directory: one process at a time uses the files that are named by their content."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from .local import Descriptor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class DirectoryLock:
    """A lock that the system frees when its process ends. It leaves no file.

    Several saves may share a file that is named by its content. Whoever adds, adopts or removes
    such a file holds the lock of the directory. It is never waited for, because a signal handler
    may save while its own thread holds the lock.

    Args:
        shared: several may hold it at once, as long as nobody holds it alone: who only needs that
            nothing is removed.
    """

    def __init__(self, directory: Path, *, shared: bool = False) -> None:
        self._directory = directory
        self._shared = shared
        self._opened: Descriptor | None = None

    def take(self) -> bool:
        """Whether it is taken. A file system without locks has one user, so there it always is."""
        if fcntl is None:
            return True
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY
            self._opened = Descriptor(self._directory, flags)
            how = fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX
            fcntl.flock(self._opened.number, how | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        except OSError:
            self.release()
        return True

    def release(self) -> None:
        """Free it. A forked child that inherited it holds it no longer, either."""
        opened, self._opened = self._opened, None
        if opened is not None:
            with suppress(OSError):  # there may be none
                fcntl.flock(opened.number, fcntl.LOCK_UN)
            with suppress(OSError):
                opened.close()

    def __enter__(self) -> bool:
        return self.take()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
