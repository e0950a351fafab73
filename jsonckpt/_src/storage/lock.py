"""Locks on files and directories: who writes there, and what is being read."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from types import TracebackType

from .local import Descriptor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_held: weakref.WeakSet[PathLock] = weakref.WeakSet()


class PathLock:
    """A lock that the system frees when its process ends. It leaves no file.

    It is never waited for, because a signal handler may save while its own thread holds the lock. A
    forked child does not hold it: a worker that outlives a killed run must not keep the next one
    out.

    Args:
        shared: several may hold it at once, as long as nobody holds it alone: who only needs that
            nothing is removed.
    """

    _flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)

    def __init__(self, path: str | os.PathLike[str], *, shared: bool = False) -> None:
        self._path = path
        self._shared = shared
        self._opened: Descriptor | None = None

    def take(self) -> bool:
        """Whether it is taken. A file system without locks has one user, so there it always is."""
        if fcntl is None:
            return True
        try:
            self._opened = Descriptor(self._path, self._flags)
            how = fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX
            fcntl.flock(self._opened.number, how | fcntl.LOCK_NB)
        except BlockingIOError:
            self.forget()
            return False
        except OSError:  # no locks here; or whoever opens it next learns why that cannot be done
            self.forget()
        else:
            _held.add(self)
        return True

    def release(self) -> None:
        """Free it. A forked child that inherited it holds it no longer, either."""
        if self._opened is not None:
            with suppress(OSError):
                fcntl.flock(self._opened.number, fcntl.LOCK_UN)
        self.forget()

    def forget(self) -> None:
        """Close it. In a forked child: to unlock it would unlock that of the parent."""
        opened, self._opened = self._opened, None
        if opened is not None:
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


class DirectoryLock(PathLock):
    """A lock on a directory: one process at a time removes or adopts files that others may use.

    Several saves may share a file that is named by its content, or by several manifests. Whoever
    adds, adopts or removes such a file holds the lock of the directory.
    """

    _flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0)


class NoLock(PathLock):
    """Where there are no locks: nobody else holds it."""

    def __init__(self) -> None:
        super().__init__("", shared=True)

    def take(self) -> bool:
        """True."""
        return True


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
