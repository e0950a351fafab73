"""The filter ``shuffle``: the first bytes of all elements, then all second bytes, and so on.

Moving single bytes is slow: the processor stores one a cycle. So elements are taken apart and put
together as wider integers, which NumPy shifts and converts with SIMD. Each call of NumPy releases
Python's lock and takes it again, which is slow while another thread does the same. So a chunk of
usual size is one block, and there are few calls. (Two threads were slower than one with blocks that
stay in the cache.) Pure: bytes in, bytes out. Little-endian machines only, like the whole package.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
#: Unsigned integers that begin at an element; there is none of 16 bytes.
_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.uint64}
#: Bytes of a block, as many as a usual chunk has. It bounds the memory for larger chunks.
_BLOCK = 1 << 20


def take_planes(raw: Bytes, itemsize: int, first: int, out: Bytes) -> None:
    """Copy some byte planes of ``raw``; each plane goes to blocks that may lie apart.

    Byte ``n`` of an element is the lowest byte of the integer that begins there. Narrowing an
    integer to its lowest byte is a conversion that uses SIMD, aligned or not.

    Args:
        raw: whole elements.
        itemsize: bytes of an element: 2, 4, 8 or 16.
        first: the first plane that is taken.
        out: of shape (planes, blocks, elements in each).

    >>> planes = np.empty((1, 2, 3), np.uint8)
    >>> take_planes(np.arange(12, dtype=np.uint8), 2, 1, planes)
    >>> planes.tolist()
    [[[1, 3, 5], [7, 9, 11]]]
    """
    planes, blocks, count = out.shape
    if not count:
        return
    steps = (1, itemsize * count, itemsize)
    # The last element of a block is copied alone: the memory may end behind it.
    words: Any = np.ndarray(
        (planes, blocks, count - 1), _WORDS[itemsize], raw.data, first, steps
    )  # fmt: skip
    np.copyto(out[:, :, :-1], words, casting="unsafe")
    last = raw.reshape(blocks, count, itemsize)[:, -1]
    out[:, :, -1] = last[:, first : first + planes].T


class Shuffler:
    """Takes elements apart into byte planes and puts them together; keeps the memory it needs.

    Not thread-safe: each thread has its own.

    >>> shuffler = Shuffler()
    >>> planes = shuffler.apart(np.arange(6, dtype=np.uint8), 2, np.empty(6, np.uint8))
    >>> planes.tolist()
    [0, 2, 4, 1, 3, 5]
    >>> shuffler.together(planes, 2, np.empty(6, np.uint8)).tolist()
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(self) -> None:
        self._spare = [np.empty(0, np.uint8), np.empty(0, np.uint8)]

    def apart(self, raw: Bytes, itemsize: int, out: Bytes) -> Bytes:
        """The byte planes of ``raw`` in ``out``, which is returned.

        Args:
            raw: whole elements.
            itemsize: bytes of an element: 1, 2, 4, 8 or 16.
            out: as many bytes.
        """
        if itemsize == 1:
            np.copyto(out, raw)
            return out
        take_planes(raw, itemsize, 0, out.reshape(itemsize, 1, -1))
        return out

    def together(self, planes: Bytes, itemsize: int, out: Bytes) -> Bytes:
        """The elements of byte planes in ``out``, which is returned. Undoes :meth:`apart`."""
        if itemsize == 1:
            np.copyto(out, planes)
            return out
        columns = planes.reshape(itemsize, -1)
        step = _BLOCK // itemsize
        for start in range(0, columns.shape[1], step):
            block = out[start * itemsize : (start + step) * itemsize]
            self._join(columns[:, start : start + step], block)
        return out

    def _join(self, rows: Any, out: Bytes) -> None:
        """Join pairs of rows to integers of 16 bits, pairs of those to 32 bits, and so on.

        The upper half of an integer is written as a wide integer that begins in the middle of its
        place, which saves the shift. The zeros of its own upper half fall on the next integer's
        lower half.
        """
        itemsize, count = rows.shape
        width, nbytes = 1, len(out)
        while width < min(itemsize, 8):
            wide = _WORDS[2 * width]
            memory = self._memory(width, nbytes)
            memory[:width] = 0
            joined = memory[:nbytes].view(wide).reshape(-1, count)
            np.copyto(memory[width : width + nbytes].view(wide).reshape(-1, count), rows[1::2])
            width *= 2
            target = joined if width < itemsize else out.view(wide).reshape(1, count)
            np.bitwise_or(joined, rows[0::2], out=target, dtype=wide)
            rows = target
        if width < itemsize:
            np.copyto(out.view(rows.dtype).reshape(count, -1).T, rows)

    def _memory(self, width: int, nbytes: int) -> Bytes:
        """Scratch memory of so many bytes and a word, not that of the next width."""
        number = width == 2  # integers of 16 and of 64 bits are not needed at the same time
        if len(self._spare[number]) < nbytes + 8:
            self._spare[number] = np.empty(nbytes + 8, np.uint8)
        return self._spare[number][: nbytes + 8]
