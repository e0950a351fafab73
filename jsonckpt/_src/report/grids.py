"""A small picture of a tensor, and its dead rows and columns, from numbers that stream by."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..inspect.element_values import Numbers

#: Rows and columns beyond this many are not watched: each takes a byte.
_MOST_LINES = 1 << 22
#: Codes of a cell: 0 says that a number in it is not finite.
_LEVELS = 127


@dataclass(frozen=True, slots=True)
class Picture:
    """A tensor as a matrix, in cells.

    Attributes:
        rows, columns: cells.
        scale: the value of the largest code, 0 if all cells are 0.
        signed: whether a cell is one element; else it is the root mean square of several.
        codes: base64 of a byte for each cell, row by row: ``128 + 127 * value / scale``; 0 where
            a number is not finite.
        dead_rows, dead_columns: rows and columns of the matrix that are all zero; ``None`` if that
            was not watched.
    """

    rows: int
    columns: int
    scale: float
    signed: bool
    codes: str
    dead_rows: int | None
    dead_columns: int | None


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """The first dimension and the product of the others; a vector is one row.

    >>> as_matrix((4, 3, 2)), as_matrix((5,)), as_matrix(())
    ((4, 6), (1, 5), (1, 1))
    """
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


class Grid:
    """Takes the numbers of one tensor in any order of pieces; :meth:`picture` draws them.

    Args:
        shape: of the tensor.
        width: numbers for each element of ``shape`` (two where two share a byte).
        itemsize: raw bytes of one of these numbers; may be a half.
        side: cells in each direction, at most.
    """

    def __init__(self, shape: Sequence[int], width: int, itemsize: float, side: int) -> None:
        rows, columns = as_matrix(shape)
        self._lines, self._length = rows, columns * width
        self._itemsize = itemsize
        if rows == 1 and self._length > side:  # a vector becomes a block of rows
            self._cells = (min(side, self._length // side), side)
            self._fold = True
        else:
            self._cells = (min(rows, side), min(self._length, side))
            self._fold = False
        cells = self._cells[0] * self._cells[1]
        self._squares, self._sums = np.zeros(cells), np.zeros(cells)
        self._counts = np.zeros(cells, np.int64)
        self._broken = np.zeros(cells, np.bool_)
        watched = len(shape) >= 2 and max(self._lines, self._length) <= _MOST_LINES
        self._live_rows = np.zeros(rows, np.bool_) if watched else None
        self._live_columns = np.zeros(self._length, np.bool_) if watched else None

    def take(self, place: int, numbers: Numbers) -> None:
        """Take numbers; ``place`` is that of the first, in raw bytes."""
        first = int(place / self._itemsize)
        while len(numbers):
            row, column = divmod(first, self._length)
            if column or len(numbers) < self._length:
                part = numbers[: self._length - column]
                self._block(row, column, part.reshape(1, -1))
            else:
                whole = len(numbers) // self._length
                part = numbers[: whole * self._length]
                self._block(row, 0, part.reshape(whole, self._length))
            numbers, first = numbers[len(part) :], first + len(part)

    def _block(self, row: int, column: int, block: Numbers) -> None:
        """Take a part of the matrix that begins at a row and a column."""
        if self._live_rows is not None and self._live_columns is not None:
            alive = block != 0
            self._live_rows[row : row + len(block)] |= alive.any(axis=1)
            self._live_columns[column : column + block.shape[1]] |= alive.any(axis=0)
        wide = np.abs(block).astype(np.float64) if block.dtype.kind == "c" else block
        finite = np.isfinite(wide)  # before the cast, which warns of signalling NaN
        whole = bool(finite.all())
        wide = (wide if whole else np.where(finite, wide, 0)).astype(np.float64)
        height, width = self._cells
        if self._fold:
            places = (np.arange(column, column + wide.shape[1]) * (height * width)) // self._length
            edges, cells = _runs(places)
            starts = np.zeros(1, np.int64)
            lines = np.zeros(1, np.int64)
        else:
            at = np.arange(column, column + wide.shape[1]) * width // self._length
            edges, cells = _runs(at)
            starts, lines = _runs(np.arange(row, row + len(wide)) * height // self._lines)
            lines = lines * width
        target = (lines[:, None] + cells[None, :]).reshape(-1)
        with np.errstate(over="ignore"):
            for sums, values in ((self._squares, wide * wide), (self._sums, wide)):
                sums[target] += _reduce(values, starts, edges)
        sizes = np.diff(np.append(starts, len(wide)))[:, None]
        self._counts[target] += (sizes * np.diff(np.append(edges, wide.shape[1]))).reshape(-1)
        if not whole:
            self._broken[target] |= _reduce(~finite, starts, edges) > 0

    def picture(self) -> Picture | None:
        """The picture; ``None`` of an empty tensor."""
        if not self._counts.size or not self._counts.any():
            return None
        signed = int(self._counts.max()) == 1
        counts = np.maximum(self._counts, 1)
        values = self._sums if signed else np.sqrt(self._squares / counts)
        values = np.where(np.isfinite(values), values, np.finfo(np.float64).max)
        scale = float(np.abs(values).max())
        codes = np.zeros(len(values), np.uint8)
        if scale:
            codes[:] = np.rint(values / scale * _LEVELS) + 128
        else:
            codes[:] = 128
        codes[self._broken] = 0
        dead = [
            None if live is None else int(len(live) - np.count_nonzero(live))
            for live in (self._live_rows, self._live_columns)
        ]
        text = base64.b64encode(codes.tobytes()).decode()
        return Picture(*self._cells, scale, signed, text, *dead)


def _runs(places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where runs of equal numbers begin in a sorted array, and their numbers."""
    starts = np.flatnonzero(np.diff(places, prepend=places[0] - 1))
    return starts, places[starts]


def _reduce(
    values: Numbers, starts: NDArray[np.int64], edges: NDArray[np.int64]
) -> NDArray[np.float64]:
    columns = np.add.reduceat(values, edges, axis=1, dtype=np.float64)
    sums: NDArray[np.float64] = np.add.reduceat(columns, starts, axis=0)
    return sums.reshape(-1)
