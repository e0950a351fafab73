"""Asks the system to begin writing to the disk what will have to be there soon.

Linux keeps what is written to a file in memory, and begins to write it to the disk when there is
much of it, when it is half a minute old, or at an fsync. A save whose bytes all wait for the fsync
uses the disk only when the processors are done: so they are handed over as they come. It is a
wish, which promises nothing and takes no error away: what tells whether the bytes are safe is the
fsync that follows.
"""

from __future__ import annotations

import ctypes
import mmap

from jsonckpt.libc import linux_call

__all__ = ["Writeback"]

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
