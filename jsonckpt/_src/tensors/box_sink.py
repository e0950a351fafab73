"""How the elements of a box of a record get into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..boxes import common_box, row_boxes, with_a_dimension
from ..errors import ArgumentError, FormatError
from ..format.dtypes import DTYPES
from .buffers import Target
from .memory import borrow, empty, narrowed, raw_dtype, torch_dtype

_CPU = torch.device("cpu")


def check_box(shape: Sequence[int], offset: Sequence[int], size: Sequence[int]) -> None:
    """Check that a box lies in a tensor.

    Raises:
        ArgumentError: it does not.
    """
    inside = len(offset) == len(size) == len(shape) and all(
        0 <= start <= start + width <= length for start, width, length in zip(offset, size, shape)
    )
    if not inside:
        raise ArgumentError(
            f"a box of shape {list(size)} at {list(offset)} is not in a tensor of shape "
            f"{list(shape)}"
        )


class BoxSink:
    """Takes a record's bytes and keeps those of a box, in a tensor of any device and strides.

    Safe in several threads. Takes a few times a chunk of extra memory.

    Args:
        tensor: of the shape ``size``, of the record's dtype unless ``cast``.
        dtype, shape: of the record.
        offset, size: of the box, which lies in the record.
        cast: convert the values if the tensor has another dtype.

    Raises:
        StateMismatchError: another shape, or another dtype without (possible) ``cast``.
        UnsupportedTypeError: not a dense tensor, or one without memory of its own.
    """

    def __init__(
        self,
        tensor: torch.Tensor,
        dtype: str,
        shape: Sequence[int],
        offset: Sequence[int],
        size: Sequence[int],
        *,
        cast: bool = False,
    ) -> None:
        target = Target.into(tensor, dtype, size, cast=cast)
        self._target = target
        self._shape, self._offset, self._size = with_a_dimension(shape, offset, size)
        inner = math.prod(self._shape[1:])
        # Rows are one range of bytes.
        self._rows = list(self._size[1:]) == list(self._shape[1:])
        itemsize = DTYPES[dtype].itemsize
        self._start = self._offset[0] * inner * itemsize
        self._stop = self._start + target.nbytes
        self._itemsize = itemsize
        self._dtype = torch_dtype(dtype)
        self._is_bool = dtype == "bool"
        view = tensor.detach()
        if tensor.dtype == self._dtype and not (view.is_conj() or view.is_neg()):
            self._dtype = raw_dtype(self._dtype)
            view = view.view(self._dtype)
        self._view = view if tensor.dim() else view.view(1)
        self._announced = False

    def window(self, start: int, stop: int) -> memoryview | None:
        """The tensor's own memory, if the bytes are in the box and lie there in one piece."""
        if not self._rows or start < self._start or stop > self._stop:
            return None
        return self._target.window(start - self._start, stop - self._start)

    def write(self, start: int, data: memoryview) -> None:
        """Keep what lies in the box."""
        if not self._target.needs_data:
            return
        if not self._announced:
            self._announced = True
            torch.autograd.graph.increment_version(self._view)
        raw = borrow(np.frombuffer(data, dtype=np.uint8))
        if self._is_bool and raw.numel() and int(raw.max()) > 1:
            raise FormatError("a bool is neither 0 nor 1")
        first = start // self._itemsize
        count = raw.numel() // self._itemsize
        piece: torch.Tensor | None = None
        for ranges, done in row_boxes(self._shape, first, first + count):
            common = common_box(ranges, self._offset, self._size)
            if common is None:
                continue
            if piece is None:
                # Elements need aligned memory, and bytes from a file rarely are aligned.
                piece = empty(count, self._dtype, _CPU)
                piece.view(torch.uint8).copy_(raw)
            low, sizes = common
            shape = [stop - begin for begin, stop in ranges]
            part = piece[done : done + math.prod(shape)].view(shape)
            part = narrowed(part, [a - b for a, (b, _) in zip(low, ranges)], sizes)
            at = [a - b for a, b in zip(low, self._offset)]
            narrowed(self._view, at, sizes).copy_(part)

    def finish(self) -> None:
        """Check what was written to windows.

        Raises:
            FormatError: a ``bool`` byte that is neither 0 nor 1.
        """
        self._target.finish()
