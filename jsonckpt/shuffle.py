"""The filter ``shuffle``: first bytes of all elements, then all second bytes, and so on.

Moving single bytes is as slow as the processor's stores: one a cycle. So elements are taken apart
and put together as integers of 16 and 32 bits, whose shifts and conversions NumPy does with SIMD.
Each of its calls lets go of Python's lock and has to take it again, which another thread that does
the same makes slow: so a chunk of usual size is one block, and there are as few calls as can be.
(In blocks that stay in the cache two threads were slower than one.) Pure: bytes in, bytes out.
Little-endian machines only, as the whole package.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

__all__ = ["Shuffler"]

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"

#: Elements of a block: those of a chunk of usual size. It bounds the memory for larger ones.
_BLOCK = 1 << 18


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
        self._halves: Any = np.empty((2, 0), np.uint16)

    def apart(self, raw: Bytes, itemsize: int, out: Bytes) -> Bytes:
        """The byte planes of ``raw`` in ``out``, which is returned.

        Args:
            raw: whole elements.
            itemsize: bytes of an element: 1, 2, 4, 8 or 16.
            out: as many bytes.
        """
        planes = out.reshape(itemsize, -1)
        if itemsize == 1:
            np.copyto(planes[0], raw)
        elif itemsize == 2:
            halves = raw.view(np.uint16)
            for start, stop in _blocks(len(halves)):
                _split(halves[start:stop], planes[:, start:stop], self._half(0, stop - start))
        else:
            columns = raw.view(np.uint32).reshape(-1, itemsize // 4)
            for start, stop in _blocks(len(columns)):
                half = self._half(0, stop - start)
                for column in range(itemsize // 4):
                    words = columns[start:stop, column]
                    rows = planes[4 * column : 4 * column + 4, start:stop]
                    np.copyto(half, words, casting="unsafe")
                    _split(half, rows[:2], half)
                    np.right_shift(words, 16, out=half, casting="unsafe", dtype=np.uint32)
                    _split(half, rows[2:], half)
        return out

    def together(self, planes: Bytes, itemsize: int, out: Bytes) -> Bytes:
        """The elements of byte planes in ``out``, which is returned: undoes :meth:`apart`."""
        rows = planes.reshape(itemsize, -1)
        if itemsize == 1:
            np.copyto(out, rows[0])
        elif itemsize == 2:
            halves = out.view(np.uint16)
            for start, stop in _blocks(len(halves)):
                _join(rows[:, start:stop], halves[start:stop], self._half(0, stop - start))
        else:
            columns = out.view(np.uint32).reshape(-1, itemsize // 4)
            for start, stop in _blocks(len(columns)):
                half, spread = (self._half(number, stop - start) for number in (0, 1))
                for column in range(itemsize // 4):
                    words = columns[start:stop, column]
                    part = rows[4 * column : 4 * column + 4, start:stop]
                    _join(part[2:], half, spread)
                    np.copyto(words, half)
                    np.left_shift(words, 16, out=words)
                    _join(part[:2], half, spread)
                    np.bitwise_or(words, half, out=words, dtype=np.uint32)
        return out

    def _half(self, number: int, count: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
        if self._halves.shape[1] < count:
            self._halves = np.empty((2, count), np.uint16)
        half: np.ndarray[Any, np.dtype[np.uint16]] = self._halves[number, :count]
        return half


def _split(halves: Any, rows: Bytes, spare: Any) -> None:
    """16 bits into two bytes; ``spare`` may be ``halves``, which are then lost."""
    np.copyto(rows[0], halves, casting="unsafe")
    np.right_shift(halves, 8, out=spare)
    np.copyto(rows[1], spare, casting="unsafe")


def _join(rows: Bytes, out: Any, spare: Any) -> None:
    """Two bytes into 16 bits. Conversions of their own are quicker than those inside of an or."""
    np.copyto(out, rows[1])
    np.left_shift(out, 8, out=out)
    np.copyto(spare, rows[0])
    np.bitwise_or(out, spare, out=out)


def _blocks(count: int) -> list[tuple[int, int]]:
    return [(start, min(count, start + _BLOCK)) for start in range(0, count, _BLOCK)]
