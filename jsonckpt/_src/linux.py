"""Calls of the operating system that the standard library lacks: advice on memory and files."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable


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


#: From the kernel's headers; the ``mmap`` module does not have it.
_MADV_POPULATE_WRITE = 23
#: Less than this is not worth a system call.
_LEAST = 64 << 10
_asks = True


def populate(address: int, nbytes: int) -> None:
    """Map the whole pages of ``[address, address + nbytes)``, which will be written next.

    Safe to call from several threads, and on memory that is mapped already. Call it for what is
    written now, not for a whole tensor: memory that a damaged file claims and never fills shall
    stay untaken.

    >>> memory = bytearray(1 << 20)
    >>> populate(ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory))
    """
    global _asks
    madvise = linux_call("madvise")
    if nbytes < _LEAST or not _asks or madvise is None:
        return
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (address + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_POPULATE_WRITE):
        # An older kernel, or no memory: the write itself goes on from here.
        _asks = False


#: ``SYNC_FILE_RANGE_WRITE``: begin, and do not wait. Without the flags that wait, the call leaves
#: an error of the disk for the fsync to report.
_BEGIN = 2
#: So many bytes at a time: a call for each chunk would make the disk's requests small.
_STEP = 8 << 20


class Writeback:
    """Of one file, written mostly from front to back.

    >>> import tempfile
    >>> with tempfile.TemporaryFile() as file:
    ...     _ = file.write(bytes(3))
    ...     Writeback().reached(file.fileno(), 3)
    """

    def __init__(self) -> None:
        self._begun = 0

    def reached(self, fd: int, end: int) -> None:
        """The file has been written up to about ``end``.

        Where two threads write one file, what lies before ``end`` may still have a hole: its bytes
        wait for the fsync then.
        """
        # A page that is written in part would go to the disk twice.
        stop = end // mmap.PAGESIZE * mmap.PAGESIZE
        start = self._begun
        if stop - start < _STEP:
            return
        self._begun = stop
        begin = linux_call("sync_file_range")
        if begin is not None:
            begin(fd, ctypes.c_int64(start), ctypes.c_int64(stop - start), _BEGIN)
