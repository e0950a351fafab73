"""Linux calls that Python does not offer. They are hints or save work; none is needed.

If a call is missing (another system, another C library, an older kernel), everything works without
it.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: ``MADV_POPULATE_WRITE`` of the kernel's headers; the ``mmap`` module does not have it.
_MADV_POPULATE_WRITE = 23
#: A smaller range is not worth a call.
_SMALLEST_POPULATED = 64 << 10
#: ``SYNC_FILE_RANGE_WRITE``: begin, and do not wait. Without the flags that wait, the call leaves
#: an error of the disk for the fsync to report.
_SYNC_FILE_RANGE_WRITE = 2
#: The bytes of one call: a call for each chunk would make the disk's requests small.
_WRITEBACK_STEP = 8 << 20
#: Of ``renameat2``: paths are relative to the working directory, and nothing is replaced.
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1
_can_populate = True


@functools.cache
def linux_call(name: str) -> Callable[..., int] | None:
    """A function of the C library, which leaves its error number to ``ctypes.get_errno``.

    >>> linux_call("no_such_call") is None
    True
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):  # a libc without the function
        return None
    return found


def populate(address: int, nbytes: int) -> None:
    """Map the whole pages of ``[address, address + nbytes)``, which will be written next.

    The first touch of each page of 4 KiB is a page fault. Asking for many pages at once (Linux
    5.14) costs about a fifth less. Huge pages are not asked for: they are three to ten times
    slower where the host of a virtual machine has not backed that memory yet, as in a new process.

    Safe to call from several threads, and on memory that is mapped already. Call it for what is
    written now, not for a whole tensor: a damaged file may claim memory that it never fills.

    >>> memory = bytearray(1 << 20)
    >>> populate(ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory))
    """
    global _can_populate
    madvise = linux_call("madvise")
    if nbytes < _SMALLEST_POPULATED or not _can_populate or madvise is None:
        return
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (address + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_POPULATE_WRITE):
        # An older kernel, or no memory. The write itself maps the pages.
        _can_populate = False


class Writeback:
    """Asks the system to begin writing one file to the disk, before an fsync.

    Linux keeps written bytes in memory until there are many, they are half a minute old, or an
    fsync comes. If all bytes of a save wait for the fsync, the disk is idle until the processors
    are done. The request promises nothing and hides no error: only the fsync that follows tells
    whether the bytes are safe.

    >>> import tempfile
    >>> with tempfile.TemporaryFile() as file:
    ...     _ = file.write(bytes(3))
    ...     Writeback().reached(file.fileno(), 3)
    """

    def __init__(self) -> None:
        self._begun = 0

    def reached(self, fd: int, end: int) -> None:
        """The file has been written up to about ``end``.

        If two threads write one file, there may still be a hole before ``end``. Its bytes wait for
        the fsync.
        """
        # A page that is written in part would go to the disk twice.
        stop = end // mmap.PAGESIZE * mmap.PAGESIZE
        start = self._begun
        if stop - start < _WRITEBACK_STEP:
            return
        self._begun = stop
        begin = linux_call("sync_file_range")
        if begin is not None:
            begin(fd, ctypes.c_int64(start), ctypes.c_int64(stop - start), _SYNC_FILE_RANGE_WRITE)


def rename_new(source: Path, target: Path) -> bool:
    """Rename a file without replacing anything; ``False`` if the call does not work.

    Raises:
        FileExistsError: the new name exists.
    """
    call = linux_call("renameat2")
    if call is None:
        return False
    paths = os.fsencode(source), os.fsencode(target)
    if not call(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], ctypes.c_uint(_RENAME_NOREPLACE)):
        return True
    if ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    return False


def widen_pipe(stream: Any) -> None:
    """Let a pipe hold 1 MiB instead of 64 KiB: fewer switches between processes."""
    try:
        import fcntl

        fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)
    except (ImportError, AttributeError, OSError, ValueError):
        return  # not a pipe, or not Linux: it is only slower
