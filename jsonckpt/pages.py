"""Fresh memory in huge pages, where Linux has them: advice about addresses, nothing else.

The first touch of each page of 4 KiB costs a page fault; these faults, not the copying, bound the
speed of loading: one thread fills fresh memory with 1.9 GB/s in small pages and with 12 GB/s in
pages of 2 MiB. It is advice only: where the system does not take it, everything works as before.
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import functools
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path

from jsonckpt.libc import linux_call

__all__ = ["LEAST", "FreshPages"]

#: Less than this is not worth a system call, and rarely holds a whole huge page.
LEAST = 4 << 20
#: Between two tensors that were allocated one after the other there is less than this.
_NEIGHBOURS = 64 << 10
#: From the kernel's headers; the ``mmap`` module has the first on Linux only, the second not yet.
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
#: So many refusals that took the kernel long are enough.
_MOST_REFUSALS = 3


class FreshPages:
    """Memory that is about to be written for the first time.

    Asks for huge pages at once. That alone serves large tensors only: an allocator writes a few
    bytes before each tensor, and where a small page is, the kernel puts no huge one any more. So
    :meth:`before_writing` has small pages around a place exchanged for a huge one (Linux 6.1).

    Args:
        ranges: ``(address, nbytes)`` of each tensor. Those that lie close together are taken as
            one: allocators give neighbouring places to tensors that are made one after the other.

    >>> memory = bytearray(8 << 20)
    >>> address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    >>> pages = FreshPages([(address, len(memory))])
    >>> pages.before_writing(address, 1 << 20)
    """

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._done: set[int] = set()
        self._refusals = 0
        self._stretches: list[tuple[int, int]] = []
        if linux_call("madvise") is None:
            return
        found = [(start, stop) for start, stop in _stretches(ranges) if stop - start >= LEAST]
        for start, stop in found:
            _advise(start, stop, _MADV_HUGEPAGE)
        if _page_size():
            self._stretches = found

    def __bool__(self) -> bool:
        """Whether there is any use in :meth:`before_writing`."""
        return bool(self._stretches)

    def before_writing(self, address: int, nbytes: int) -> None:
        """Make ready what will be written next; safe to call from several threads.

        Only then, because memory that a damaged file asks for and never fills shall stay untaken.
        """
        stretches = self._stretches
        number = bisect.bisect_right(stretches, address, key=lambda stretch: stretch[0]) - 1
        if number < 0:
            return
        low, high = stretches[number]
        size = _page_size()
        for page in range(address // size * size, min(address + nbytes, high), size):
            if page in self._done or page < low or page + size > high:
                continue
            self._done.add(page)
            # Nothing was there yet (then a huge page comes by itself), or an old kernel: both say
            # so quickly. The other two mean that the kernel has looked for memory in vain.
            if _advise(page, page + size, _MADV_COLLAPSE) in (errno.ENOMEM, errno.EBUSY):
                self._refusals += 1
                if self._refusals >= _MOST_REFUSALS:
                    self._stretches = []
                    return


def _stretches(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The ranges as ``(start, stop)``, in order, neighbours joined."""
    ordered = sorted((address, address + nbytes) for address, nbytes in ranges if nbytes)
    if not ordered:
        return
    start, stop = ordered[0]
    for low, high in ordered[1:]:
        if low - stop > _NEIGHBOURS:
            yield start, stop
            start = low
        stop = max(stop, high)
    yield start, stop


def _advise(start: int, stop: int, advice: int) -> int:
    """Give advice on the whole pages of a range; 0 or the error number."""
    madvise = linux_call("madvise")
    start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = stop // mmap.PAGESIZE * mmap.PAGESIZE
    if madvise is None or start >= stop:
        return 0
    # Of a stretch with holes the kernel says that there are, and takes what is there.
    refused = madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), advice)
    return ctypes.get_errno() if refused else 0


@functools.cache
def _page_size() -> int:
    """Bytes of a huge page; 0 where the administrator wants none, or where that is not known.

    Other than advice on fresh memory, an exchange of pages does not ask for that setting.
    """
    try:
        if "[never]" in (_SETTINGS / "enabled").read_text():
            return 0
        return int((_SETTINGS / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0
