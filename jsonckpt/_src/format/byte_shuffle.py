"""The filter ``shuffle``: first bytes of all elements, then all second bytes, and so on.

Moving single bytes is as slow as the processor's stores: one a cycle. So elements are taken apart
and put together as wider integers, which NumPy shifts and converts with SIMD. Each of its calls
lets go of Python's lock and has to take it again, which another thread that does the same makes
slow: so a chunk of usual size is one block, and there are as few calls as can be.
(In blocks that stay in the cache two threads were slower than one.) Pure: bytes in, bytes out.
Little-endian machines only, as the whole package.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
#: Unsigned integers; there is none of 16 bytes.
_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.uint64}
#: Bytes of a block: those of a chunk of usual size. It bounds the memory for larger ones.
_BLOCK = 1 << 20


def take_planes(raw: Bytes, itemsize: int, first: int, out: Bytes) -> None:
    """Some of the byte planes of ``raw``, each in blocks that may lie apart.

    The byte ``n`` of an element is the lowest of the integer that begins there, and to make the
    lowest byte of an integer is a conversion, which is done with SIMD wherever the integer lies.

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
    # Not for the last of a block: behind it may be the end of the memory.
    words: Any = np.ndarray(
        (planes, blocks, count - 1), _WORDS[itemsize], raw.data, first, steps
    )  # fmt: skip
    np.copyto(out[:, :, :-1], words, casting="unsafe")
    last = raw.reshape(blocks, count, itemsize)[:, -1]
    out[:, :, -1] = last[:, first : first + planes].T


class Shuffler:
    """Takes elements apart into byte planes and puts them together; owns the memory it needs.

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
        """The elements of byte planes in ``out``, which is returned: undoes :meth:`apart`."""
        if itemsize == 1:
            np.copyto(out, planes)
            return out
        columns = planes.reshape(itemsize, -1)
        for start, stop in _blocks(len(out), itemsize):
            self._join(columns[:, start:stop], out[start * itemsize : stop * itemsize])
        return out

    def _join(self, rows: Any, out: Bytes) -> None:
        """Put rows of bytes together to integers of 16 bits, those to integers of 32, and so on.

        What goes into the upper half of an integer is widened to one that begins where that half
        does, which spares the shift. Its own upper half, zeros, is the lower half of the next.
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
        """Room for so many bytes and a word, other than for the widths next to this."""
        number = width == 2  # the integers of 16 and 64 bits are not needed at the same time
        if len(self._spare[number]) < nbytes + 8:
            self._spare[number] = np.empty(nbytes + 8, np.uint8)
        return self._spare[number][: nbytes + 8]


def _blocks(nbytes: int, itemsize: int) -> list[tuple[int, int]]:
    """Of so many bytes, in elements."""
    count, step = nbytes // itemsize, _BLOCK // itemsize
    return [(start, min(count, start + step)) for start in range(0, count, step)]
