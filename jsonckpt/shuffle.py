"""The filter ``shuffle``: first bytes of all elements, then all second bytes, and so on.

Moving single bytes is as slow as the processor's stores: one a cycle. So elements are taken apart
and put together as integers of 16 and 32 bits, whose shifts and conversions NumPy does with SIMD,
in blocks that stay in the cache; that is about twice as fast. Pure: bytes in, bytes out.
Little-endian machines only, as the whole package.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

__all__ = ["Shuffler"]

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"

#: Elements of a block. Smaller ones cost more calls, larger ones leave the cache.
_BLOCK = 1 << 16


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
        self._words: Any = np.empty((2, 0), np.uint32)

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
                part = halves[start:stop]
                shifted = self._half(0, stop - start)
                np.copyto(planes[0, start:stop], part, casting="unsafe")
                np.right_shift(part, 8, out=shifted)
                np.copyto(planes[1, start:stop], shifted, casting="unsafe")
        else:
            columns = raw.view(np.uint32).reshape(-1, itemsize // 4)
            for start, stop in _blocks(len(columns)):
                word, moved = self._word(0, stop - start), self._word(1, stop - start)
                for column in range(itemsize // 4):
                    np.copyto(word, columns[start:stop, column])
                    np.copyto(planes[4 * column, start:stop], word, casting="unsafe")
                    for byte in (1, 2, 3):
                        np.right_shift(word, 8 * byte, out=moved)
                        np.copyto(planes[4 * column + byte, start:stop], moved, casting="unsafe")
        return out

    def together(self, planes: Bytes, itemsize: int, out: Bytes) -> Bytes:
        """The elements of byte planes in ``out``, which is returned: undoes :meth:`apart`."""
        rows = planes.reshape(itemsize, -1)
        if itemsize == 1:
            np.copyto(out, rows[0])
        elif itemsize == 2:
            halves = out.view(np.uint16)
            for start, stop in _blocks(len(halves)):
                self._join(rows[0, start:stop], rows[1, start:stop], halves[start:stop])
        else:
            columns = out.view(np.uint32).reshape(-1, itemsize // 4)
            for start, stop in _blocks(len(columns)):
                half, word = self._half(1, stop - start), self._word(0, stop - start)
                low = self._word(1, stop - start)
                for column in range(itemsize // 4):
                    first = 4 * column
                    self._join(rows[first + 2, start:stop], rows[first + 3, start:stop], half)
                    np.copyto(word, half)
                    np.left_shift(word, 16, out=word)
                    self._join(rows[first, start:stop], rows[first + 1, start:stop], half)
                    np.copyto(low, half)
                    np.bitwise_or(word, low, out=columns[start:stop, column])
        return out

    def _join(self, low: Bytes, high: Bytes, out: np.ndarray[Any, np.dtype[np.uint16]]) -> None:
        """Two bytes into 16 bits."""
        spread = self._half(0, len(low))
        np.copyto(spread, high)
        np.left_shift(spread, 8, out=spread)
        np.copyto(out, low)
        np.bitwise_or(out, spread, out=out)

    def _half(self, number: int, count: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
        if self._halves.shape[1] < count:
            self._halves = np.empty((2, count), np.uint16)
        half: np.ndarray[Any, np.dtype[np.uint16]] = self._halves[number, :count]
        return half

    def _word(self, number: int, count: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
        if self._words.shape[1] < count:
            self._words = np.empty((2, count), np.uint32)
        word: np.ndarray[Any, np.dtype[np.uint32]] = self._words[number, :count]
        return word


def _blocks(count: int) -> list[tuple[int, int]]:
    return [(start, min(count, start + _BLOCK)) for start in range(0, count, _BLOCK)]
