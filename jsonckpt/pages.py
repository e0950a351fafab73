"""Fresh memory, made ready right before it is written: advice about addresses, nothing else.

The first touch of each page of 4 KiB is a page fault. Asking the kernel for a stretch of pages at
once (``MADV_POPULATE_WRITE``, Linux 5.14) costs about a fifth less. Huge pages would cost far less
where the host of a virtual machine has backed that memory already, and three to ten times more
where it has not, which is what a new process finds. Nothing tells the two apart beforehand, so
nothing asks for huge pages here. Where the administrator has set them to ``always``, the kernel
uses them by itself.
"""

from __future__ import annotations

import ctypes
import mmap

from jsonckpt.libc import linux_call

__all__ = ["populate"]

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
