"""Locks on files and directories: who writes to a run, and what is being read."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress

from ..storage.local import Descriptor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_held: weakref.WeakSet[PathLock] = weakref.WeakSet()


class PathLock:
    """A lock that the system frees when its process ends. It leaves no file.

    It is never waited for. A forked child does not hold it: a worker that outlives a killed run
    must not keep the next one out.
    """

    def __init__(self, path: str, *, shared: bool) -> None:
        self._path = path
        self._shared = shared
        self._opened: Descriptor | None = None

    def take(self) -> bool:
        """Whether nobody else holds it. A file system without locks has one user, too."""
        if fcntl is None:
            return True
        try:
            opened = Descriptor(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self._opened = opened
            how = fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX
            fcntl.flock(opened.number, how | fcntl.LOCK_NB)
        except BlockingIOError:
            self.forget()
            return False
        except OSError:  # no locks here; or whoever reads it next learns why it cannot be opened
            self.forget()
        else:
            _held.add(self)
        return True

    def release(self) -> None:
        """Free it."""
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

    def __exit__(self, *_: object) -> None:
        self.release()


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
